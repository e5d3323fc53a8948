"""What a page refuses, and in which words; knows the course's classes by name only."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from shared.gpt_layers import GPT_LAYERS, check_finite, foreign_layer

END_OF_TEXT = "<|endoftext|>"
LARGE = 50_000_000  # bytes of a page that nobody sends without meaning to
TOO_LARGE = 400_000_000  # bytes; a browser's texts end at 2**29 characters
LAYERS = GPT_LAYERS | {"GPTClassifier"}  # what the page's forward pass knows
REMEDIES = {
    "LinearWithLoRA": "merge the updates first: shared.appendix_e.merge_lora(model)",
    "PackedLinear": "give the model that was packed, not its packed copy",
    "Int8Linear": "give the model before it was quantised; the page has its own int8",
    "Int4Linear": "give the model before it was quantised; the page has its own int8",
    "LlamaModel": "a page reads the GPTModel of chapter 4, not chapter 8's models",
}
NEEDED = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")


def check_path(path: str | Path, overwrite: bool) -> Path:
    """Refuse a name that no browser opens, and a file that is there already."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"{path} does not end in .html, so no browser would open it; "
            f"name it {path.name}.html"
        )
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already; name another file, or allow it to be replaced "
            "(overwrite=True, or --overwrite)"
        )
    return path


def check_model(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The GPT of a model that a page can hold, and its parameters by name.

    A tied output head is left out.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, not a GPTModel")
    if found := foreign_layer(model, LAYERS):
        place, kind = found
        remedy = REMEDIES.get(kind, "a page reads the GPTModel of chapter 4")
        raise TypeError(f"a page cannot hold this model: {place} is a {kind}; {remedy}")
    gpt = model.gpt if type(model).__name__ == "GPTClassifier" else model
    cfg = getattr(gpt, "cfg", None)
    is_gpt = type(gpt).__name__ == "GPTModel" and isinstance(cfg, dict)
    if not is_gpt or any(name not in cfg for name in NEEDED):
        raise TypeError(
            f"model is a {type(gpt).__name__}, without the settings of chapter 4's "
            "GPTModel in its cfg; a page reads that class, and chapter 6's classifier"
        )
    parameters = {
        name: p
        for name, p in gpt.named_parameters()  # names a shared one once
        if name != "out_head.weight" or p is not gpt.tok_emb.weight
    }
    _check_shapes(parameters, expected_shapes(gpt))
    check_finite(parameters.items())
    return gpt, parameters


def _check_shapes(found: Mapping[str, torch.Tensor], expected: dict) -> None:
    shapes = {name: tuple(p.shape) for name, p in found.items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise TypeError(
                f"parameter {name} has the shape {shapes.get(name)}, and in a GPTModel "
                f"of these settings {expected.get(name)}; a page reads chapter 4's "
                "GPTModel"
            )


def expected_shapes(gpt: nn.Module) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a GPTModel's parameters, by its settings.

    The output head may have any number of rows: it may be a classifier's.
    """
    cfg, head = gpt.cfg, gpt.out_head
    V, T, C = cfg["vocab_size"], cfg["context_length"], cfg["emb_dim"]

    def names() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "tok_emb.weight", (V, C)
        yield "pos_emb.weight", (T, C)
        for n in range(cfg["n_layers"]):
            block = f"trf_blocks.{n}"
            for part in ("W_query", "W_key", "W_value"):
                yield f"{block}.att.{part}.weight", (C, C)
                if cfg.get("qkv_bias"):
                    yield f"{block}.att.{part}.bias", (C,)
            yield f"{block}.att.out_proj.weight", (C, C)
            yield f"{block}.att.out_proj.bias", (C,)
            yield f"{block}.ff.layers.0.weight", (4 * C, C)
            yield f"{block}.ff.layers.0.bias", (4 * C,)
            yield f"{block}.ff.layers.2.weight", (C, 4 * C)
            yield f"{block}.ff.layers.2.bias", (C,)
            for norm in ("norm1", "norm2"):
                yield f"{block}.{norm}.scale", (C,)
                yield f"{block}.{norm}.shift", (C,)
        yield "final_norm.scale", (C,)
        yield "final_norm.shift", (C,)
        if head.weight is not gpt.tok_emb.weight:
            yield "out_head.weight", (head.weight.shape[0], C)
        if head.bias is not None:
            yield "out_head.bias", (head.weight.shape[0],)

    return dict(names())


def check_labels(gpt: nn.Module, labels: Sequence[str] | None) -> list[str] | None:
    """A classifier's labels, one for each class; None for a model that writes."""
    rows, vocab_size = gpt.out_head.weight.shape[0], gpt.cfg["vocab_size"]
    if rows == vocab_size:
        if labels is not None:
            raise ValueError(
                f"labels are for a classifier, and this model writes: its head has "
                f"{rows:,} rows, one for each token; leave the labels out"
            )
        return None
    if labels is None:
        raise ValueError(
            f"this model is a classifier: its head has {rows} rows, and the vocabulary "
            f"{vocab_size:,} tokens. Name its classes, class 0 first, as in "
            'labels=("not spam", "spam")'
        )
    if isinstance(labels, str) or len(labels) != rows or not all(labels):
        raise ValueError(
            f"labels={labels!r}, but the classifier has {rows} classes; give a name to "
            "each of them"
        )
    return [str(label) for label in labels]


def check_style(style: str | None, styles: Mapping[str, object]) -> str | None:
    """Refuse a prompt style that there is none of; None: the model tells stories."""
    if style is not None and style not in styles:
        raise ValueError(f"style must be one of {', '.join(styles)}, not {style!r}")
    return style


def check_size(n_parameters: int, large: bool) -> None:
    """Refuse a page that is too large, or larger than one expects."""
    size = n_parameters * 4 // 3  # base64 writes three bytes as four
    if size > TOO_LARGE:
        raise ValueError(
            f"{n_parameters:,} parameters would make a page of {size / 1e6:,.0f} MB, "
            f"and a browser can hold {TOO_LARGE / 1e6:,.0f} MB; take a smaller model"
        )
    if size > LARGE and not large:
        raise ValueError(
            f"{n_parameters:,} parameters make a page of {size / 1e6:,.0f} MB, which a "
            "phone may not open; if you want it, say so (large=True, or --large)"
        )


def check_fits(gpt: nn.Module, tables: dict) -> None:
    """Refuse a tokenizer that has other ids than the model."""
    ids = [*tables["byte_ids"], *tables["merges"][2::3]]
    n_vocab = max(*ids, *tables["special_tokens"].values()) + 1
    if n_vocab != gpt.cfg["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {n_vocab:,} tokens and the model "
            f"{gpt.cfg['vocab_size']:,}; give the tokenizer that the model was trained "
            "with"
        )
