"""Chapter 2, text data."""

from ch02_text_data.bpe import *  # noqa: F401,F403
from ch02_text_data.text_data import *  # noqa: F401,F403
