"""What chapter 5 refuses, and in which words; imports nothing of the course."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager

# The largest matrix of a block, by our name and by GPT-2's.
WIDEST = re.compile(r"(trf_blocks\.\d+\.ff\.layers\.0|h\.\d+\.mlp\.c_fc)\.weight$")

__all__ = [
    "check_fractions",
    "check_one_text",
    "check_counts",
    "check_batches",
    "check_counted",
    "check_training",
    "check_sampling",
    "check_not_tensorflow",
    "check_same_shapes",
    "check_same_config",
    "check_sizes",
    "check_that_builds",
    "check_qkv_bias",
    "check_tied",
    "check_model_size",
    "check_floating",
    "check_record",
]


def check_fractions(train_fraction: float, val_fraction: float) -> None:
    """Refuse shares that are no shares."""
    smaller, total = min(train_fraction, val_fraction), train_fraction + val_fraction
    if not (smaller >= 0 and total <= 1):  # in this form nan is refused, too
        raise ValueError(
            f"train_fraction {train_fraction} and val_fraction {val_fraction} must not "
            "be negative, nor their sum above 1; try 0.8 and 0.1"
        )


def check_one_text(shape: Sequence[int]) -> None:
    """Refuse ids that are not those of one text."""
    if len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        raise ValueError(
            f"ids of shape {tuple(shape)} are not one text; decode row by row"
        )


def check_counts(**counts: int | None) -> None:
    """Refuse numbers below 1; None means no limit."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be 1 or more, not {count}")


def check_batches(num_batches: int | None = None, **loaders: Iterable) -> None:
    """Refuse loaders that have nothing to give, and to read no batch of them."""
    for name, loader in loaders.items():
        try:
            length = len(loader)
        except TypeError:  # a stream, as torch's IterableDataset
            if num_batches is None:
                raise TypeError(
                    f"{name} is a stream without a length; say how many of its batches "
                    "to read: num_batches (in training eval_iter)"
                ) from None
            continue
        if length == 0:
            raise ValueError(
                f"{name} has no batches: its text is too short for one; use a longer "
                "text, a smaller max_length or batch_size, or drop_last=False"
            )
    check_counts(num_batches=num_batches)


def check_counted(tokens: int) -> None:
    """Refuse data in which no target counts: they have no loss."""
    if tokens == 0:
        raise ValueError(
            "there is no target to measure a loss on: every one is -100, or the loader "
            "gave no batch"
        )


def check_training(
    model,
    train_loader: Sized,
    val_loader: Iterable,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int | None = None,
) -> None:
    """Refuse a run that could learn nothing, or with a look every zero steps."""
    check_counts(num_epochs=num_epochs, eval_freq=eval_freq)
    check_batches(train_loader=train_loader)  # its length is an epoch
    check_batches(eval_iter, val_loader=val_loader)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "all weights of the model are frozen, so none could learn; call "
            "model.requires_grad_(True), and make the optimizer after that"
        )


def check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, vocab_size: int
) -> None:
    """Refuse the first setting that describes no distribution."""
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature must be 0 (greedy) or a positive number, not {temperature}"
        )
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(
            f"top_k must be between 1 and the vocabulary's {vocab_size}, not {top_k}; "
            "None keeps all tokens"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(
            f"top_p must be above 0 and at most 1, not {top_p}; None keeps all tokens"
        )


def check_not_tensorflow(params: Mapping) -> None:
    """Refuse the nested dictionaries that the book's own download makes."""
    if "blocks" in params:
        raise ValueError(
            "these are the book's dictionaries of TensorFlow arrays ('blocks', 'wte', "
            "...); settings, params = download_and_load_gpt2('124M', folder) of "
            "shared.ch05 gets the same weights under GPT-2's names"
        )


def check_same_shapes(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], where: str
) -> None:
    """Refuse a set of tensors, naming those missing, unknown or misshapen."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    problems += [
        f"{name} has the shape {tuple(found[name])} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if len(problems) > 4:
        problems[4:] = [f"and {len(problems) - 4} more"]
    if problems:
        raise ValueError(f"{where} does not fit the model: {'; '.join(problems)}")


def check_same_config(
    saved: Mapping | None, cfg: Mapping | None, where: str, ignore: str = ""
) -> None:
    """Refuse a config that differs from another, naming each key that does."""
    if saved is None or cfg is None:
        return
    saved, cfg = {"tie_weights": False, **saved}, {"tie_weights": False, **cfg}
    differences = [
        f"{key} is {saved.get(key)} there and {cfg.get(key)} here"
        for key in sorted({*saved, *cfg})
        if key != ignore and saved.get(key) != cfg.get(key)
    ]
    if differences:
        raise ValueError(f"{where} is of another config: {'; '.join(differences)}")


def check_sizes(
    settings: Mapping, shapes: Mapping[str, Sequence[int]], where: str
) -> None:
    """Refuse settings that the tensors of a file, by their shapes, do not bear out.

    A few bytes of settings can ask for a model of any size, so this comes before
    anything is built. What it passes is at most a few times as large as the file.
    """
    keys = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
    for key in keys:
        size = settings.get(key)
        if type(size) is not int or size < 1:
            raise ValueError(f"{where}: {key} must be 1 or more, not {size!r}")
    V, T, C, H, n_layers = (settings[key] for key in keys)
    for ends, wanted in (
        (("tok_emb.weight", "wte.weight"), (V, C)),
        (("pos_emb.weight", "wpe.weight"), (T, C)),
    ):
        found = [(n, tuple(shape)) for n, shape in shapes.items() if n.endswith(ends)]
        for name, shape in found or [(ends[0], None)]:
            if shape != wanted:
                has = "is missing" if shape is None else f"has the shape {shape}"
                raise ValueError(
                    f"{where} asks for embeddings of shape {wanted}, but {name} {has}; "
                    "get or save the file again"
                )
    widths = [tuple(shape) for n, shape in shapes.items() if WIDEST.search(n)]
    if len(widths) != n_layers or {*widths} - {(C, 4 * C), (4 * C, C)} or H > C:
        raise ValueError(
            f"{where} asks for n_layers {n_layers} of emb_dim {C} with n_heads {H}, "
            f"but the file has {len(widths)} blocks of shapes {sorted({*widths})[:3]}; "
            "get or save the file again"
        )


@contextmanager
def check_that_builds(where: str) -> Iterator[None]:
    """Refuse settings from a file that make building a model fail, in whatever way."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise ValueError(f"{where}: its settings build no model: {reason}") from None


def check_qkv_bias(cfg: Mapping) -> None:
    """Refuse a model without the biases that GPT-2's attention has."""
    if not cfg["qkv_bias"]:
        raise ValueError("GPT-2 has biases in attention: set qkv_bias to True")


def check_tied(are_equal: Iterable[bool]) -> None:
    """Refuse an output head of its own for a model whose head is the embedding."""
    if not all(are_equal):
        raise ValueError(
            "these weights have an output head of their own; build the model with "
            "tie_weights False"
        )


def check_model_size(model_size: str, known: Iterable[str]) -> None:
    """Refuse the name of a GPT-2 that was never published."""
    if model_size not in known:
        sizes = ", ".join(known)
        raise ValueError(f"model_size must be one of {sizes}, not {model_size!r}")


def check_floating(dtype) -> None:
    """Refuse to store weights as whole numbers; `dtype` is one of torch's."""
    if not dtype.is_floating_point:
        raise ValueError(f"weights cannot be stored as {dtype}; try torch.bfloat16")


def check_record(record: object, where: str) -> None:
    """Refuse what stands in a checkpoint's header unless `save_checkpoint` wrote it."""

    def is_kind(value: object, kind: type) -> bool:
        return value is None or isinstance(value, kind)

    good = isinstance(record, dict) and "config" in record
    good = good and all(
        is_kind(record.get(key), dict) for key in ("config", "optimizer", "progress")
    )
    if good and record.get("optimizer") is not None:
        optimizer = record["optimizer"]
        groups = optimizer.get("groups")
        good = isinstance(optimizer.get("kind"), str) and isinstance(groups, list)
        good = good and all(
            isinstance(group, dict) and isinstance(group.get("params"), list)
            for group in groups
        )
    if not good:
        raise ValueError(
            f"{where} is damaged: its record is none that save_checkpoint writes; use "
            "an older checkpoint"
        )
