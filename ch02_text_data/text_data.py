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
    "get_tokenizer",
    "GPTDatasetV1",
    "create_dataloader_v1",
]


SPLIT_PATTERN = re.compile(r"""(--|[,.:;?!_"'()]|\s)""")


def split_text(text: str) -> list[str]:
    """Cut a text into words and punctuation marks; drop the blanks between them.

    A double hyphen is one token; a single hyphen belongs to its word.

    Args:
        text: any string.

    Returns:
        The tokens in order. None of them is empty or contains white space.

    Source: Build a Large Language Model (From Scratch), section 2.2.
    """
    return [piece for piece in SPLIT_PATTERN.split(text) if piece.strip()]


def build_vocabulary(
    tokens: Iterable[str], special_tokens: Iterable[str] = ()
) -> dict[str, int]:
    """Number the different tokens, in sorted order, and after them the special ones.

    Args:
        tokens: the tokens of a text, with repetitions.
        special_tokens: names that never occur in ordinary text, such as `<|unk|>`.

    Returns:
        The id of each token: 0 to V - 1.

    Source: Build a Large Language Model (From Scratch), section 2.3.
    """
    ordered = [*sorted(set(tokens)), *special_tokens]
    return {token: token_id for token_id, token in enumerate(dict.fromkeys(ordered))}


class SimpleTokenizerV1:
    """A tokenizer that knows the words of its vocabulary and no others.

    Args:
        vocab: the id of each token, as `build_vocabulary` makes it.

    Source: Build a Large Language Model (From Scratch), section 2.3.
    """

    def __init__(self, vocab: dict[str, int]):
        self.str_to_int = dict(vocab)
        self.int_to_str = {token_id: token for token, token_id in vocab.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of the text's tokens; KeyError if one is not in the vocabulary."""
        tokens = split_text(text)
        for token in tokens:
            if token not in self.str_to_int:
                raise KeyError(
                    f"the token {token!r} is not in the vocabulary; build one from a "
                    "text that has it, or use SimpleTokenizerV2"
                )
        return [self.str_to_int[token] for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The text for a sequence of ids; KeyError if the vocabulary lacks one."""
        ids = [int(token_id) for token_id in ids]
        for token_id in ids:
            if token_id not in self.int_to_str:
                raise KeyError(
                    f"no token has the id {token_id}; the vocabulary holds "
                    f"{len(self.int_to_str)} tokens and their ids start at 0"
                )
        text = " ".join(self.int_to_str[token_id] for token_id in ids)
        return re.sub(r"\s+([,.:;?!\"'()])", r"\1", text)


END_OF_TEXT = "<|endoftext|>"


UNKNOWN = "<|unk|>"


class SimpleTokenizerV2(SimpleTokenizerV1):
    """A tokenizer that writes `<|unk|>` for each word that it does not know.

    Args:
        vocab: the id of each token; it must contain `<|unk|>`, and should contain
            `<|endoftext|>` where documents are joined.

    Raises:
        ValueError: if the vocabulary lacks `<|unk|>`.

    Source: Build a Large Language Model (From Scratch), section 2.4.
    """

    def __init__(self, vocab: dict[str, int]):
        if UNKNOWN not in vocab:
            raise ValueError(
                f"the vocabulary of {len(vocab)} tokens lacks {UNKNOWN!r}; make one by "
                f"build_vocabulary(tokens, [{END_OF_TEXT!r}, {UNKNOWN!r}])"
            )
        super().__init__(vocab)

    def encode(self, text: str) -> list[int]:
        """The ids of the text's tokens; those of unknown ones are that of `<|unk|>`."""
        unknown_id = self.str_to_int[UNKNOWN]
        tokens = split_text(text.replace(END_OF_TEXT, f" {END_OF_TEXT} "))
        return [self.str_to_int.get(token, unknown_id) for token in tokens]


def load_gpt2_ranks() -> dict[bytes, int]:
    """Read GPT-2's vocabulary: the id of each of its 50,256 ordinary tokens.

    The ids 0 to 255 are the single bytes; id 256 + n is the result of the n-th merge.

    Returns:
        The bytes of each token and its id, which is also the order of the merges.

    Raises:
        shared.data.DataUnavailable: if the file is found nowhere.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
    section 2.2, and the file `encoder.json` of its release.
    """
    written = json.loads(data_path("gpt2-bpe/encoder.json").read_text(encoding="utf-8"))
    del written[END_OF_TEXT]
    # Visible characters stand for their own byte and come first among the ids.
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    in_id_order = visible + [b for b in range(256) if b not in visible]
    characters = {token: in_id_order[i] for token, i in written.items() if i < 256}
    return {bytes(characters[c] for c in token): i for token, i in written.items()}


@functools.cache
def get_tokenizer() -> tiktoken.Encoding:
    """GPT-2's tokenizer, made once per process, without network.

    It behaves like `tiktoken.get_encoding("gpt2")`: V = 50,257, and `<|endoftext|>`
    (50256) is the only special token.

    Raises:
        shared.data.DataUnavailable: if the vocabulary file is found nowhere.

    Source: Build a Large Language Model (From Scratch), section 2.5.
    """
    ranks = load_gpt2_ranks()
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=r50k_pat_str,  # cuts a text into words before any merge
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )


def _require_positive(**values: int) -> None:
    """Raise ValueError naming the first argument that is less than 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} {value} is not positive; use 1 or more")


class GPTDatasetV1(Dataset):
    """Windows of a text: `dataset[i]` is an input and its target, both (T,).

    The target is the input moved on by one token. All windows are views of one list
    of ids, so memory is 8 bytes per token of the text whatever the stride.

    Args:
        txt: the text; `<|endoftext|>` in it is read as the special token.
        tokenizer: has `encode(text, allowed_special=...)`, like `get_tokenizer()`.
        max_length: T, the tokens in a window.
        stride: the tokens from one window's start to the next one's.

    Raises:
        ValueError: if max_length or stride is not positive, or the text too short.

    Source: Build a Large Language Model (From Scratch), section 2.6.
    """

    def __init__(self, txt: str, tokenizer, max_length: int, stride: int):
        _require_positive(max_length=max_length, stride=stride)
        ids = tokenizer.encode(txt, allowed_special={END_OF_TEXT})
        if len(ids) < max_length + 1:
            shorter = f", or max_length at most {len(ids) - 1}" if len(ids) > 1 else ""
            raise ValueError(
                f"the text has {len(ids)} tokens, but a window of max_length "
                f"{max_length} and its target need {max_length + 1}; "
                f"use a longer text{shorter}"
            )
        ids = torch.tensor(ids)  # (n,)
        self.inputs = ids[:-1].unfold(0, max_length, stride)  # (N, T)
        self.targets = ids[1:].unfold(0, max_length, stride)  # (N, T)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[i], self.targets[i]


def _require_full_batch(batch_size: int, windows: int) -> None:
    """Raise ValueError if so few windows do not fill a single batch."""
    if windows < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is larger than the data set of {windows} "
            "windows, and drop_last=True would drop them all; use a batch_size of at "
            f"most {windows}, a longer text, a smaller stride or drop_last=False"
        )


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

    Args:
        txt: the text; `<|endoftext|>` in it is read as the special token.
        batch_size: B, the windows in a batch.
        max_length: T, the tokens in a window.
        stride: the tokens from one window's start to the next one's.
        shuffle: whether each epoch has an order of its own.
        drop_last: whether to leave out the last batch if it is not full.
        num_workers: processes that prepare batches; 0 does it in this one.
        generator: source of the order; by default torch's global one.

    Raises:
        ValueError: if a size is not positive, or there are no windows or no batch.

    Source: Build a Large Language Model (From Scratch), section 2.6.
    """
    _require_positive(batch_size=batch_size)
    dataset = GPTDatasetV1(txt, get_tokenizer(), max_length, stride)
    if drop_last:
        _require_full_batch(batch_size, len(dataset))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
        generator=generator,
    )
