"""A model as one HTML file that you can send to somebody: it needs no network.

    save_page(model, tokenizer, "my_model.html", title="My storyteller")

A `GPTModel` tells stories on its page, a finetuned one of chapter 7 answers, and a
classifier of chapter 6 gives its verdict. The file holds the weights in int8, by rows,
the tokenizer, and a forward pass in JavaScript. Its parts in `page_parts/` can be read:
`gpt.js` is chapter 4, `tokenizer.js` chapter 2b, `sampling.js` chapters 5 to 7.
"""

import base64
import html
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shared.data import get as data_path
from shared.files import write_atomically
from shared.page_parts.checks import (
    END_OF_TEXT,
    check_fits,
    check_labels,
    check_model,
    check_path,
    check_size,
    check_style,
)

PARTS = Path(__file__).with_name("page_parts")
SETTINGS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
# What stands before the question, between it and the text that it is about, and before
# the answer, in each of chapter 7's styles.
PROMPTS = {
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\n",
        "\n\n### Input:\n",
        "\n\n### Response:\n",
    ),
    "chat": ("User: ", " ", "\nAssistant:"),
    "plain": ("", " ", "\n\n"),
}
TITLES = {
    "tell": "A small storyteller",
    "ask": "A small model to ask",
    "judge": "A small judge of texts",
}
BEGINNINGS = {"tell": "Once upon a time there was a", "ask": "", "judge": ""}


def save_page(
    model: nn.Module,
    tokenizer,
    path: str | Path,
    *,
    title: str | None = None,
    about: str = "",
    beginning: str | None = None,
    labels: Sequence[str] | None = None,
    style: str | None = None,
    end_first: bool = True,
    overwrite: bool = False,
    large: bool = False,
) -> Path:
    """Write a model's page into one file, and return its path.

    Args:
        model: a `GPTModel` of chapter 4, or a `GPTClassifier` of chapter 6.
        tokenizer: the `BPETokenizer` of chapter 2b, or tiktoken's for GPT-2.
        title: what the page is called.
        about: what the model has read, and its licence, in one line.
        beginning: what stands in the text field when the page opens.
        labels: the names of a classifier's classes, class 0 first.
        style: chapter 7's form of a prompt, by default the one that the model carries.
        end_first: whether a story begins after `<|endoftext|>`, as in training.
        overwrite: whether a file of this name may be replaced.
        large: whether the page may take more than 50 MB.

    Raises:
        TypeError: if a page can hold no such model or tokenizer.
        ValueError: if weights are not finite, the tokenizer is another model's, labels
            are missing, or the page is too large.
        FileExistsError: if there is such a file, and `overwrite` is False.
    """
    path = check_path(path, overwrite)
    said = (title, about, beginning, labels, style, end_first, large)
    page = build_page(model, tokenizer, *said)
    write_atomically(path, page)
    return path


def build_page(
    model: nn.Module,
    tokenizer,
    title: str | None = None,
    about: str = "",
    beginning: str | None = None,
    labels: Sequence[str] | None = None,
    style: str | None = None,
    end_first: bool = True,
    large: bool = False,
) -> str:
    """The text of the page; arguments and errors as those of `save_page`."""
    gpt, parameters = check_model(model)
    labels = check_labels(gpt, labels)
    style = check_style(style or gpt.cfg.get("prompt_style"), PROMPTS)
    kind = "judge" if labels else "ask" if style else "tell"
    tables = tokenizer_tables(tokenizer)
    check_fits(gpt, tables)
    n_parameters = sum(p.numel() for p in parameters.values())
    check_size(n_parameters, large)
    layout, weights = pack(parameters)
    info = {
        "kind": kind,
        "cfg": {name: gpt.cfg[name] for name in SETTINGS},
        "layout": layout,
        "bytes": len(weights),
        "adler32": zlib.adler32(weights),
        "tokenizer": tables,
        "end_first": end_first and kind == "tell",
        "labels": labels,
        "prompt": PROMPTS[style] if kind == "ask" else None,
    }
    values = {
        "title": html.escape(TITLES[kind] if title is None else title),
        "about": html.escape(about),
        "beginning": html.escape(BEGINNINGS[kind] if beginning is None else beginning),
        "facts": html.escape(facts(gpt, kind, n_parameters)),
        # "<" could end the script element that it stands in
        "info": json.dumps(info, separators=(",", ":")).replace("<", "\\u003c"),
        "weights": in_lines(base64.b64encode(weights).decode()),
    }
    return re.sub(
        r"\{\{([\w.]+)\}\}",
        lambda match: values[match[1]] if match[1] in values else _part(match[1]),
        _part("page.html"),
    )


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def in_lines(text: str, width: int = 4096) -> str:
    """The text in lines, because some programs cut very long ones."""
    return "\n".join(text[i : i + width] for i in range(0, len(text), width))


def facts(gpt: nn.Module, kind: str, n_parameters: int) -> str:
    """What the model is, in one line."""
    cfg = gpt.cfg
    what = {"tell": "GPT", "ask": "finetuned GPT", "judge": "GPT as a classifier"}[kind]
    return (
        f"A {what} of {n_parameters:,} parameters in int8: {cfg['n_layers']} blocks of "
        f"{cfg['n_heads']} heads, {cfg['vocab_size']:,} tokens, room for "
        f"{cfg['context_length']:,} of them. It runs on your machine, in this file, "
        "and sends nothing anywhere."
    )


# Weights


def quantise_rows(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (rows, columns) as int8 and a float32 scale for each row.

    The largest number of a row becomes 127 or -127; int8 times scale gives it back.
    """
    numbers = matrix.detach().float().cpu()
    scale = numbers.abs().amax(dim=1) / 127  # (rows,)
    divisor = torch.where(scale > 0, scale, 1.0)[:, None]  # a row of zeros stays so
    codes = (numbers / divisor).round().clamp(-127, 127).to(torch.int8)
    return codes.numpy(), scale.numpy()


def pack(parameters: dict[str, torch.Tensor]) -> tuple[list[dict], bytes]:
    """All parameters in one row of bytes, and where each of them is.

    Matrices are in int8 with a scale for each row, vectors in float32; each begins at a
    multiple of four.
    """
    layout, data = [], bytearray()

    def add(numbers: np.ndarray) -> int:
        start = len(data)
        data.extend(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
        data.extend(b"\0" * (-len(data) % 4))
        return start

    for name, parameter in parameters.items():
        entry = {"name": name, "shape": list(parameter.shape)}
        if parameter.dim() == 2:
            codes, scale = quantise_rows(parameter)
            entry |= {"at": add(codes), "scale_at": add(scale)}
        else:
            entry["at"] = add(parameter.detach().float().cpu().numpy())
        layout.append(entry)
    return layout, bytes(data)


# The tokenizer


def tokenizer_tables(tokenizer) -> dict:
    """Byte ids, merges and special tokens, as `tokenizer.js` reads them."""
    if getattr(tokenizer, "name", None) == "gpt2":  # tiktoken's
        byte_ids, merges = gpt2_tables()
        special = {END_OF_TEXT: tokenizer.eot_token}
    elif all(hasattr(tokenizer, x) for x in ("merges", "vocab", "special_tokens")):
        special = dict(tokenizer.special_tokens)
        ordinary = tokenizer.vocab.keys() - set(special.values())
        of_bytes = {tokenizer.vocab[i]: i for i in sorted(ordinary, reverse=True)}
        byte_ids = [of_bytes[bytes([byte])] for byte in range(256)]
        merges = [(*pair, new) for pair, new in tokenizer.merges.items()]
    else:
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}; a page holds the BPETokenizer "
            "of chapter 2b, or GPT-2's tokenizer: shared.ch02.get_tokenizer()"
        )
    flat = [i for merge in merges for i in merge]
    return {"byte_ids": byte_ids, "merges": flat, "special_tokens": special}


def gpt2_tables() -> tuple[list[int], list[tuple[int, int, int]]]:
    """GPT-2's ids of the bytes, and its merges, from OpenAI's files."""
    encoder = json.loads(data_path("gpt2-bpe/encoder.json").read_text("utf-8"))
    lines = data_path("gpt2-bpe/vocab.bpe").read_text("utf-8").splitlines()[1:]
    pairs = [line.split(" ") for line in lines if line]
    merges = [(encoder[a], encoder[b], encoder[a + b]) for a, b in pairs]
    # The first 256 ids are the bytes: those that Latin-1 prints, then the others.
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    order = visible + [b for b in range(256) if b not in visible]
    return [order.index(byte) for byte in range(256)], merges
