"""Chapter 2, text data."""
# ruff: noqa: F401, F403, F405

from ch02_text_data.bpe import *
from ch02_text_data.bpe_fast import *
from ch02_text_data.bpe_files import AFTER_UNICODE_16, BYTE_CHARACTERS
from ch02_text_data.text_data import *

# What `from shared.ch02 import *` gives; the steps on the way are imported by name.
__all__ = [
    "split_text",
    "build_vocabulary",
    "SimpleTokenizerV1",
    "SimpleTokenizerV2",
    "END_OF_TEXT",
    "END_OF_TEXT_ID",
    "UNKNOWN",
    "get_tokenizer",
    "GPTDatasetV1",
    "create_dataloader_v1",
    "BPETokenizerSimple",
    "BPETokenizer",
]
