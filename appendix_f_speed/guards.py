"""What the functions of appendix F refuse, and in which words."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ch04_gpt_model.guards import check_length
from ch05_pretraining.guards import check_counts, check_sampling

__all__ = [
    "check_bits",
    "check_counts",
    "check_features",
    "check_frozen",
    "check_room",
    "check_sampling",
    "check_texts",
]


def check_features(
    features: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int
) -> None:
    """Refuse vectors, a head and targets whose shapes do not fit."""
    check_counts(chunk=chunk)
    if features.shape[:-1] != targets.shape or features.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)}, weight {tuple(weight.shape)} and "
            f"targets {tuple(targets.shape)} do not fit; they should be (..., C), "
            "(V, C) and (...)"
        )
    if not (targets != -100).any():
        raise ValueError("no target counts: all of them are -100")


def check_bits(bits: int, linears: Mapping[str, nn.Linear]) -> None:
    """Refuse bits for which there is no layer, and rows of a wrong length."""
    if bits not in (4, 8):
        raise ValueError(f"bits must be 8 or 4, not {bits!r}")
    for name, linear in linears.items():
        if linear.in_features % 32:  # PyTorch's routines would read beyond the row
            raise ValueError(
                f"{name}: a row of {linear.in_features} numbers is no multiple of 32; "
                "quantise a model whose emb_dim is one"
            )


def check_frozen(classifier) -> None:
    """Refuse to keep vectors that change from one pass to the next."""
    gpt = classifier.gpt
    rate = gpt.cfg["drop_rate"]
    if rate > 0:
        raise ValueError(
            f"drop_rate {rate} changes what a frozen block computes in every pass, so "
            "it cannot be kept; finetune a model with drop_rate 0"
        )
    if gpt.tok_emb.weight.requires_grad or gpt.pos_emb.weight.requires_grad:
        raise ValueError(
            "the embeddings learn, so nothing can be kept; freeze them first, for "
            'example with set_trainable(classifier, "last block")'
        )


def check_texts(
    model, prompts: Iterable[Sequence[int]], max_new_tokens: int, context_size: int
) -> list[list[int]]:
    """The prompts as lists of ids; refuse those that no model can continue."""
    check_length("context_size", context_size, model.cfg["context_length"])
    texts = [torch.as_tensor(ids).tolist() for ids in prompts]
    V = model.cfg["vocab_size"]
    if not texts:
        raise ValueError("there are no prompts; give at least one list of ids")
    for number, ids in enumerate(texts):
        if not isinstance(ids, list) or not ids:
            raise ValueError(
                f"prompt {number} is {ids!r}; each must be a list of at least one id; "
                "<|endoftext|> alone is enough"
            )
        unknown = [i for i in ids if not isinstance(i, int) or not 0 <= i < V]
        if unknown:
            raise ValueError(
                f"prompt {number} holds {unknown[0]!r}, but vocab_size is {V}: ids are "
                f"whole numbers from 0 to {V - 1}"
            )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, not {max_new_tokens}")
    return texts


def check_room(
    model, prompt: Sequence[int], max_new_tokens: int, n_gram: int, n_guesses: int
) -> list[int]:
    """The prompt as a list of ids; refuse a text that would not fit the context."""
    longest = model.cfg["context_length"]
    (text,) = check_texts(model, [prompt], max_new_tokens, longest)
    check_counts(n_gram=n_gram, n_guesses=n_guesses)
    if len(text) + max_new_tokens > longest:
        raise ValueError(
            f"{len(text)} tokens and {max_new_tokens} new ones do not fit into "
            f"context_length {longest}; ask for fewer, or use generate_fast"
        )
    return text
