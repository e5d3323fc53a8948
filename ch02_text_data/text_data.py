"""Chapter 2: Text data.

Turn a raw text into batches of token ids, and those ids into the vectors that a GPT
reads.

Exported from text_data.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import functools
import json
import re
from collections.abc import Iterable

import tiktoken
import torch
from tiktoken_ext.openai_public import r50k_pat_str
from torch.utils.data import DataLoader, Dataset

from ch02_text_data.bpe_files import BYTE_CHARACTERS
from ch02_text_data.guards import (
    require_batches,
    require_known_ids,
    require_known_tokens,
    require_no_name,
    require_unknown_token,
    require_windows,
)
from shared.data import get as data_path

__all__ = [
    "SPLIT_PATTERN",
    "split_text",
    "build_vocabulary",
    "SimpleTokenizerV1",
    "END_OF_TEXT",
    "UNKNOWN",
    "SimpleTokenizerV2",
    "load_gpt2_ranks",
    "END_OF_TEXT_ID",
    "get_tokenizer",
    "GPTDatasetV1",
    "create_dataloader_v1",
]


SPLIT_PATTERN = re.compile(r"""(--|[,.:;?!_"'()]|\s)""")


def split_text(text: str) -> list[str]:
    """The words and punctuation marks of a text, without its spaces; `--` is a mark."""
    return [piece for piece in SPLIT_PATTERN.split(text) if piece.strip()]


def build_vocabulary(
    tokens: Iterable[str], special_tokens: Iterable[str] = ()
) -> dict[str, int]:
    """The id of each token: words in sorted order, then the special tokens."""
    special_tokens = list(special_tokens)
    words = sorted(set(tokens) - set(special_tokens))
    return {token: token_id for token_id, token in enumerate(words + special_tokens)}


class SimpleTokenizerV1:
    """A tokenizer for the words of a vocabulary. Source: Raschka (2024), 2.3."""

    def __init__(self, vocab: dict[str, int]):
        self.str_to_int = vocab
        self.int_to_str = {token_id: token for token, token_id in vocab.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of the text's tokens; KeyError if one is not in the vocabulary."""
        tokens = split_text(text)
        require_known_tokens(tokens, self.str_to_int)
        return [self.str_to_int[token] for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The text for a sequence of ids; KeyError if the vocabulary lacks one."""
        ids = [int(token_id) for token_id in ids]  # of a tensor, too
        require_known_ids(ids, self.int_to_str)
        text = " ".join(self.int_to_str[token_id] for token_id in ids)
        return re.sub(r"\s+([,.:;?!\"'()])", r"\1", text)


END_OF_TEXT = "<|endoftext|>"


UNKNOWN = "<|unk|>"


class SimpleTokenizerV2(SimpleTokenizerV1):
    """The same, with `<|unk|>` for unknown words. Source: Raschka (2024), 2.4."""

    def __init__(self, vocab: dict[str, int]):
        require_unknown_token(UNKNOWN, vocab)
        super().__init__(vocab)

    def encode(self, text: str) -> list[int]:
        """The ids of the text's tokens, that of `<|unk|>` for an unknown one."""
        unknown_id = self.str_to_int[UNKNOWN]
        text = text.replace(END_OF_TEXT, f" {END_OF_TEXT} ")  # spaces: it stands alone
        tokens = split_text(text)
        return [self.str_to_int.get(token, unknown_id) for token in tokens]


def load_gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's 50,256 ordinary tokens, as bytes, with their ids (Radford et al. 2019).

    Ids 0 to 255 are the single bytes; id 256 + n is the result of merge n, from 0 on.
    """
    ids = json.loads(data_path("gpt2-bpe/encoder.json").read_text(encoding="utf-8"))
    del ids[END_OF_TEXT]
    byte_of = {character: byte for byte, character in BYTE_CHARACTERS.items()}
    return {bytes(byte_of[c] for c in token): i for token, i in ids.items()}


END_OF_TEXT_ID = 50_256  # in GPT-2's vocabulary: after the ordinary tokens


@functools.cache  # made once, then remembered
def get_tokenizer() -> tiktoken.Encoding:
    """GPT-2's tokenizer: `tiktoken.get_encoding("gpt2")`, but without network."""
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=r50k_pat_str,  # cuts a text into words before any merge
        mergeable_ranks=load_gpt2_ranks(),
        special_tokens={END_OF_TEXT: END_OF_TEXT_ID},
    )


class GPTDatasetV1(Dataset):
    """Windows of a text: `dataset[i]` is an input and its target, both (T,).

    T is `max_length`, and windows start `stride` tokens apart. They are views of one
    list of ids. `<|endoftext|>` is read as one token. Source: Raschka (2024), 2.6.
    """

    def __init__(self, txt: str, tokenizer, max_length: int, stride: int):
        require_no_name(txt)
        ids = tokenizer.encode(txt, allowed_special={END_OF_TEXT})
        require_windows(len(ids), max_length, stride)
        ids = torch.tensor(ids)  # (n,)
        self.inputs = ids[:-1].unfold(0, max_length, stride)  # (N, T)
        self.targets = ids[1:].unfold(0, max_length, stride)  # (N, T)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[i], self.targets[i]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """Batches of a text's windows, in GPT-2's tokens: pairs (inputs, targets), (B, T).

    B is `batch_size`, T is `max_length`; `generator` (by default torch's global one)
    decides the order of the windows. Source: Raschka (2024), section 2.6.
    """
    dataset = GPTDatasetV1(txt, get_tokenizer(), max_length, stride)
    require_batches(len(dataset), batch_size, drop_last)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
        generator=generator,
    )
