"""The checks of the exercises: what they accept, what they refuse, and in which words.

Every check is tried with the answer of `solutions.ipynb`, with one in another style at
least, with four wrong ones at least, and with values that no check expects.
"""

import codecs
import copy
import itertools
import math
import random
import re
from collections import Counter
from importlib import import_module

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn

import shared.exercises
from ch02_text_data.bpe import merge_by_rank
from shared.appendix_e import LinearWithLoRA, LoRALayer
from shared.appendix_f import generate_fast, speculate
from shared.ch02 import SPLIT_PATTERN, split_text
from shared.ch04 import GPTModel, generate_text_simple
from shared.ch05 import calc_loss_batch
from shared.ch07 import format_answer, format_prompt, uses_word
from shared.exercises import NotYet, checked, close, number, tensor, yes_or_no
from tools.export import ROOT

FOLDERS = [
    "ch02_text_data",
    "ch03_attention",
    "ch04_gpt_model",
    "ch05_pretraining",
    "ch06_classification",
    "ch07_instructions",
    "ch08_modern_models",
    "ch09_rewards",
    "appendix_e_lora",
    "appendix_f_speed",
]
CASES = {}  # (folder, check): (other right answers, wrong answers with their messages)


def case(folder, check, right, wrong):
    """Note a check's cases; an answer is a function, or several in a tuple."""
    [found] = [name for name in FOLDERS if folder in name]
    right = [answer if isinstance(answer, tuple) else (answer,) for answer in right]
    wrong = [(a if isinstance(a, tuple) else (a,), message) for a, message in wrong]
    CASES[found, check] = right, wrong


def says(value):
    """A prediction, or any other answer that always returns the same."""
    return lambda *arguments, **settings: value


# Chapter 2


def pieces_at(pattern):
    return lambda text: [piece for piece in re.split(pattern, text) if piece]


def runs_of_spaces(text):
    """One piece for a run of spaces."""
    return re.findall(r"""--|[,.:;?!_"'()]|\s+|(?:(?!--)[^\s,.:;?!_"'()])+""", text)


def pieces_one_by_one(text):
    """A generator in place of a list."""
    for piece in SPLIT_PATTERN.split(text):
        if piece != "":
            yield piece


case(
    "ch02",
    "lossless_split",
    [pieces_at(SPLIT_PATTERN), runs_of_spaces, pieces_one_by_one],
    [
        (split_text, "were spaces or line ends dropped"),
        (list, "cut where split_text cuts"),
        (SPLIT_PATTERN.split, "empty pieces"),
        (
            pieces_at(r"""(--|[,.:;?!_"()]|\s)"""),  # the apostrophe is missing
            "\"wasn't\" stands where split_text has 'wasn'",
        ),
        (pieces_at(r"""(--|[,.:;?!_"'()]| )"""), "line ends and tabs too"),
        (pieces_at(r"( )"), "cut where split_text cuts"),
        (lambda text: text, "not one string"),
        (lambda text: SPLIT_PATTERN.split(text)[999], "raises IndexError"),
    ],
)
case(
    "ch02",
    "count_windows",
    [
        lambda n, t, s: len(range(0, n - t, s)),
        lambda n, t, s: max(0, -((t - n) // s)),
        lambda n, t, s: torch.tensor(max(0, math.ceil((n - t) / s))),
    ],
    [
        (lambda n, t, s: (n - 1 - t) // s + 1, "has none"),
        (lambda n, t, s: max(0, (n - t) // s + 1), "one token beyond"),
        (lambda n, t, s: max(0, (n - t) // s), "first window"),
        (lambda n, t, s: max(0, (n - 1 - t) / s + 1), "whole"),
        (lambda n, t, s: range(0, n - t, s), "should return one whole number, but"),
        (lambda n, t: n - t, "raises TypeError .*positional argument"),
    ],
)
case(
    "ch02",
    "embedding_parameters",
    [
        lambda v, t, c: v * c + t * c,
        lambda v, t, c: sum(torch.empty(r, c, device="meta").numel() for r in (v, t)),
    ],
    [
        (lambda v, t, c: v * c, "two tables"),
        (lambda v, t, c: (v + t + 1) * c, "two tables"),
        (lambda v, t, c: v * t * c, "two tables"),
        (lambda v, t, c: f"{(v + t) * c}", "one whole number, but returned '3938"),
    ],
)


def incremental(ids, tokenizer):
    decoder = codecs.getincrementaldecoder("utf-8")()
    for token_id in ids:
        if part := decoder.decode(tokenizer.decode_single_token_bytes(token_id)):
            yield part


def streamed_list(ids, tokenizer):
    parts, done = [], 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[done:end])
        if "\ufffd" not in text:
            parts.append(text)
            done = end
    return parts


case(
    "ch02",
    "stream",
    [incremental, streamed_list],
    [
        (lambda ids, t: [t.decode([i]) for i in ids], "half a character"),
        (lambda ids, t: [t.decode(ids)], "do not wait"),
        (lambda ids, t: t.decode(ids), "yield"),
        (
            lambda ids, t: [t.decode([i]).replace("\ufffd", "") for i in ids],
            "bytes left over",
        ),
        (
            lambda ids, t: [t.decode_single_token_bytes(i).decode() for i in ids],
            "raises UnicodeDecodeError",
        ),
        (
            lambda ids, t: (t.decode_single_token_bytes(i) for i in ids),
            r"should return strings, .* but returned \[b'plain'\]",
        ),
    ],
)


def looped_gradient(ids, upstream, vocab_size):
    """Token by token, in double precision."""
    gradient = torch.zeros(vocab_size, upstream.shape[-1], dtype=torch.float64)
    rows = upstream.reshape(-1, upstream.shape[-1])
    for token_id, row in zip(ids.flatten().tolist(), rows, strict=True):
        gradient[token_id] += row
    return gradient


def one_hot_gradient(ids, upstream, vocab_size):
    """Equation 2.3."""
    one_hot = F.one_hot(ids, vocab_size).float()
    return torch.einsum("...v,...c->vc", one_hot, upstream)


def unflattened_gradient(ids, upstream, vocab_size):
    gradient = torch.zeros(vocab_size, upstream.shape[-1])
    return gradient.index_add_(0, ids, upstream)


def overwriting_gradient(ids, upstream, vocab_size):
    """The last occurrence wins."""
    gradient = torch.zeros(vocab_size, upstream.shape[-1])
    gradient[ids] += upstream
    return gradient


case(
    "ch02",
    "embedding_gradient",
    [looped_gradient, one_hot_gradient],
    [
        (overwriting_gradient, "add up"),
        (
            unflattened_gradient,
            r"\(a tensor \(2, 3\), .*raises.*in your line .*give ids one axis",
        ),
        (lambda ids, g, v: g, r"of shape \(5, 2\), not"),
        (lambda ids, g, v: one_hot_gradient(ids, g, v).tolist(), "return a tensor"),
        (
            lambda ids, g, v: torch.zeros(v, g.shape[-1]),
            "row 2 should be .* not .0.0, 0.0",
        ),
    ],
)


def merge_with(ids, pair, new_id):
    """All of `pair`, from left to right, replaced."""
    merged = []
    for token_id in ids:
        merged.append(token_id)
        if tuple(merged[-2:]) == pair:
            merged[-2:] = [new_id]
    return merged


def merging(key):
    """The merge step, with a rule for which pair comes first."""

    def merge(ids, new_id):
        pairs = sorted(zip(ids, ids[1:], strict=False), key=key)
        return merge_with(ids, max(pairs, key=pairs.count, default=None), new_id)

    return merge


merge_by_sorting = merging(None)


def merge_overlapping(ids, new_id):
    """The second of a pair is used again."""
    if len(ids) < 2:
        return ids
    pairs = list(zip(ids, ids[1:], strict=False))
    pair = max(pairs, key=pairs.count)
    return [new_id if p == pair else p[0] for p in pairs] + ids[-1:]


def merge_first(ids, new_id):
    """Another rule for ties: the pair that comes first in the text."""
    pairs = list(zip(ids, ids[1:], strict=False))
    return merge_with(ids, max(pairs, key=pairs.count, default=None), new_id)


def merge_without_guard(ids, new_id):
    pairs = sorted(zip(ids, ids[1:], strict=False))
    return merge_with(ids, max(pairs, key=pairs.count), new_id)


def merge_in_place(ids, new_id):
    ids[:] = merge_by_sorting(ids, new_id)
    return ids


case(
    "ch02",
    "merge_most_frequent",
    [merge_by_sorting, lambda ids, n: tuple(merge_by_sorting(ids, n))],
    [
        (merge_overlapping, "should become"),
        (merge_first, "smallest left id"),
        (merging(lambda pair: pair[::-1]), "smallest left id"),
        (merging(lambda pair: pair[0]), "2 is smaller than 3"),
        (merge_without_guard, "raises ValueError .*stays as it is"),
        (merge_in_place, "changed its argument `ids`"),
        (lambda ids, new_id: new_id, "should return a list of ids, but returned 256"),
    ],
)

ORDER = says(
    ["as it is", "upper case", "without spaces", "spaces doubled", "without vowels"]
)


def order_by(key):
    return lambda texts, t: sorted(texts, key=lambda name: key(texts[name], t))


def counted(texts, tokenizer):
    n_tokens = Counter({name: -len(tokenizer.encode(t)) for name, t in texts.items()})
    return (name for name, _ in n_tokens.most_common())


case(
    "ch02",
    "cheapest_first",
    [(counted, ORDER), (order_by(lambda text, t: len(t.encode(text))), ORDER)],
    [
        (
            (order_by(lambda text, t: -len(t.encode(text))), ORDER),
            "the most expensive text",
        ),
        ((order_by(lambda text, t: len(text)), ORDER), "so the order is"),
        ((order_by(lambda text, t: len(text.split())), ORDER), "so the order is"),
        ((order_by(lambda text, t: len(text.encode())), ORDER), "so the order is"),
        ((counted, says(["as it is"])), "an order of all the names"),
        ((lambda texts, t: len(texts), ORDER), "the names of the texts in a list"),
    ],
)


def expanded_by_stack(token_id, merges):
    parts, ids, found = {new: pair for pair, new in merges.items()}, [token_id], []
    while ids:
        i = ids.pop()
        if i < 256:
            found.append(i)
        else:
            ids += reversed(parts[i])
    return bytearray(found)


def expanded_once(token_id, merges):
    parts = {new: pair for pair, new in merges.items()}
    return bytes(parts.get(token_id, [token_id]))


def expanded_backwards(token_id, merges):
    return bytes(expanded_by_stack(token_id, merges))[::-1]


case(
    "ch02",
    "expand",
    [expanded_by_stack, lambda i, m: bytes(expanded_by_stack(i, m))],
    [
        (expanded_once, "raises ValueError .*any other was made of two ids"),
        (expanded_backwards, "in this order"),
        (lambda i, m: bytes([i]), "raises ValueError"),
        (lambda i, m: chr(i), "bytes are wanted"),
        (lambda i, m: bytes([i % 256]), "it was made of"),
        (
            lambda i, m: bytes(expanded_by_stack(i, m)).decode(),
            "UnicodeDecodeError|wan",
        ),
    ],
)


def dropping(skipped=lambda chance, p: chance.random() < p, pick=min, whole=False):
    def drop(ids, merges, p, chance):
        if whole and skipped(chance, p):
            return ids
        while True:
            pairs = enumerate(zip(ids, ids[1:], strict=False))
            kept = [(merges[pair], i) for i, pair in pairs if pair in merges]
            kept = [m for m in kept if whole or not skipped(chance, p)]
            if not kept:
                return ids
            new_id, i = pick(kept)
            ids = [*ids[:i], new_id, *ids[i + 2 :]]

    return drop


def thinned(ids, merges, p, chance):
    """Merges are left out of the table, once for the word."""
    kept = {pair: new for pair, new in merges.items() if chance.random() >= p}
    return tuple(merge_by_rank(ids, kept))


case(
    "ch02",
    "drop_merges",
    [dropping(), thinned],
    [
        (dropping(pick=lambda kept: kept[0]), "the smallest new id"),
        (dropping(lambda chance, p: chance.random() > p), "with p = 0"),
        (dropping(lambda chance, p: chance.random() < p * p), "70% are expected"),
        (dropping(whole=True), "draw again"),
        (lambda ids, merges, p, chance: merge_by_rank(ids, merges), "with p = 1"),
        (lambda ids, merges, p, chance: b"", "should become"),
        (
            lambda ids, merges, p, chance: ids.clear() or [],
            "changed its argument `ids`",
        ),
    ],
)


def matched(word, tokens, longest=True, rest=True):
    ends = range(1, len(word) + 1)
    while word:
        ends = [n for n in range(1, len(word) + 1) if word[:n] in tokens]
        n = ends[-1] if longest else ends[0]
        yield word[:n]
        word = word[n:] if rest else word[1:]


def matched_by_size(word, tokens):
    if not word:
        return []
    for token in sorted(tokens, key=len, reverse=True):
        if word.startswith(token):
            return [token, *matched_by_size(word[len(token) :], tokens)]


def matched_in_order(word, tokens):
    return [bytes([b]) for b in word] if word else []


MORE = says("more")
case(
    "ch02",
    "longest_match",
    [
        (matched, MORE),
        (lambda word, tokens: list(matched(word, tokens)), says("fewer")),
    ],
    [
        ((lambda w, t: matched(w, t, longest=False), MORE), "abc is longer"),
        ((lambda w, t: matched(w, t, rest=False), MORE), "is .*, not"),
        ((matched_in_order, MORE), "abc is longer"),
        ((lambda w, t: [max(t, key=len)], MORE), "abc is longer|is .*, not"),
        ((lambda w, t: matched(w, t - {b"x"}), MORE), "raises IndexError .*take the b"),
        ((matched, says("longer")), "predict one of 'more'"),
    ],
)

# Chapter 3


def by_filling(scores):
    hidden = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(hidden, 0.0), dim=-1).masked_fill(hidden, 0)


def by_clamping(scores):
    exponentials = (scores - scores.amax(-1, keepdim=True).clamp(min=-1e30)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-30)


def in_place(scores):
    hidden = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.double().masked_fill_(hidden, 0).softmax(-1).masked_fill_(hidden, 0)


def naive(scores):
    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)


def one_maximum_for_all(scores):
    exponentials = (scores - scores.max()).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True).clamp(min=1e-30)


def without_keepdim(scores):
    return (scores - scores.max(dim=-1).values).exp()


case(
    "ch03",
    "causal_mask",
    [
        lambda T: torch.arange(T) > torch.arange(T)[:, None],
        lambda T: torch.ones(T, T).triu(1).bool(),
        lambda T: torch.tensor([[j > i for j in range(T)] for i in range(T)]),
    ],
    [
        (lambda T: torch.ones(T, T).triu(1), "True and False"),
        (lambda T: torch.ones(T, T).triu().bool(), "diagonal"),
        (lambda T: torch.ones(T, T).tril(-1).bool(), "the past"),
        (lambda T: torch.ones(T, T).triu(2).bool(), "all six"),
        (lambda T: torch.ones(4).bool(), "shape"),
        (lambda T: [[j > i for j in range(T)] for i in range(T)], "return a tensor"),
        (lambda T: torch.ones(4, 4).triu(1).bool(), r"of shape \(1, 1\), not"),
    ],
)
case(
    "ch03",
    "safe_softmax",
    [by_filling, by_clamping, in_place],
    [
        (naive, "subtract the largest"),
        (lambda s: torch.softmax(s, dim=-1), "row of -inf"),
        (lambda s: torch.softmax(s, dim=0), "sum to 1"),
        (one_maximum_for_all, "its own largest score"),
        (without_keepdim, "raises RuntimeError .*keepdim=True keeps it"),
        (lambda s: s.softmax(-1).nan_to_num(1.0), "all zeros"),
    ],
)


def by_prefixes(layer, T, d_in):
    x = torch.randn(1, T, d_in, generator=torch.Generator().manual_seed(0))
    whole = layer(x)
    return any(
        not torch.allclose(layer(x[:, :t]), whole[:, :t], atol=1e-6)
        for t in range(1, T)
    )


def by_derivatives(layer, T, d_in):
    x = torch.randn(1, T, d_in, generator=torch.Generator().manual_seed(0))
    moved = torch.autograd.functional.jacobian(layer, x)  # (1, T, D, 1, T, C)
    return (moved.abs().sum(dim=(0, 2, 3, 5)).triu(1) > 1e-7).any()


def changes_the_last_token_only(layer, T, d_in):
    x = torch.randn(1, T, d_in, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, -1] += 1
    return not torch.allclose(layer(x)[:, :-1], layer(changed)[:, :-1], atol=1e-6)


def every_pair_apart(layer, T, d_in):
    x = torch.randn(1, T, d_in)
    return (layer(x) != layer(x + 1)).any(dim=2)


case(
    "ch03",
    "leaks",
    [by_prefixes, by_derivatives],
    [
        (lambda layer, T, d_in: True, "has no leak"),
        (lambda layer, T, d_in: False, "after the softmax"),
        (changes_the_last_token_only, "only token 2 see only token 3"),
        (every_pair_apart, "not 6 of them"),
        (lambda layer, T: False, "raises TypeError .*positional arg"),
        (lambda layer, T, d_in: layer(torch.zeros(T, d_in)) > 9, "one text"),
        (lambda layer, T, d_in: "no", "one True or False, but returned 'no'"),
    ],
)

RIGHT_COSTS = [
    lambda width: 4 * width * width + width,
    lambda T, width: sum([4 * 2 * T * width**2, 2 * 2 * T * T * width]),
    lambda T, width, n_layers, size: 2 * n_layers * T * width * size,
]
case(
    "ch03",
    "costs",
    [tuple(RIGHT_COSTS), tuple(lambda *a, f=f: float(f(*a)) for f in RIGHT_COSTS)],
    [
        ((lambda w: 4 * w**2, *RIGHT_COSTS[1:]), "one bias"),
        ((lambda w: 4 * w**2 + 4 * w, *RIGHT_COSTS[1:]), "one bias"),
        ((RIGHT_COSTS[0], lambda T, w: 4 * T * w**2, RIGHT_COSTS[2]), "2abc"),
        ((RIGHT_COSTS[0], lambda T, w: 8 * T * w**2, RIGHT_COSTS[2]), "six products"),
        ((*RIGHT_COSTS[:2], lambda T, w, n, b: T * w * n * b), "one key"),
        ((*RIGHT_COSTS[:2], lambda T, w, n, b: 8 * T * w * n), "XL"),
        ((*RIGHT_COSTS[:2], says(None)), "still unanswered"),
    ],
)


def by_groups(queries, keys, values):
    B, H, T, D = queries.shape
    queries = queries.view(B, keys.shape[1], -1, T, D)
    scores = queries @ keys[:, :, None].transpose(3, 4) / math.sqrt(D)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    return (weights @ values[:, :, None]).reshape(B, H, T, D)


def by_pytorch(queries, keys, values):
    return F.scaled_dot_product_attention(
        queries, keys, values, is_causal=True, enable_gqa=True
    )


def head_by_head(queries, keys, values):
    copies = queries.shape[1] // keys.shape[1]
    heads = [
        by_groups(
            queries[:, [h]].double(), keys[:, [g]].double(), values[:, [g]].double()
        )
        for h in range(queries.shape[1])
        for g in [h // copies]
    ]
    return torch.cat(heads, dim=1)


def repeated_wrongly(queries, keys, values, **options):
    copies = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat(1, copies, 1, 1), values.repeat(1, copies, 1, 1)
    options = {"is_causal": True, **options}
    return F.scaled_dot_product_attention(queries, keys, values, **options)


def without_mask(queries, keys, values):
    return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)


def without_scale(queries, keys, values):
    return by_pytorch(queries * math.sqrt(queries.shape[-1]), keys, values)


def without_copies(queries, keys, values):
    return torch.softmax(queries @ keys.transpose(2, 3), dim=-1) @ values


def only_keys_in_order(queries, keys, values):
    keys, values = keys.repeat_interleave(2, dim=1), values.repeat(1, 2, 1, 1)
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)


def always_two_copies(queries, keys, values):
    keys, values = (x.repeat_interleave(2, dim=1) for x in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)


case(
    "ch03",
    "grouped_query_attention",
    [by_groups, by_pytorch, head_by_head],
    [
        (repeated_wrongly, ": query .*interleave"),
        (without_mask, ": a token attends to later"),
        (without_scale, ": the scores are not div"),
        (
            lambda q, k, v: repeated_wrongly(q, k, v, is_causal=False),
            "interleave.*; and a token attends to later",
        ),
        (without_copies, "raises RuntimeError .*key head of its"),
        (only_keys_in_order, ": query head 1 is wrong"),
        (always_two_copies, "raises RuntimeError .*these were 3 query heads and 3"),
    ],
)


def in_blocks(queries, keys, values, block_size, shrinks=True, stable=True):
    """Split into blocks first; `shrinks=False` forgets to shrink the old sums."""
    T, D = queries.shape[2:]
    total, context, largest = 0, 0, torch.full((1, 1, T, 1), -1e30)
    columns = torch.arange(T).split(block_size)
    blocks = zip(
        keys.split(block_size, 2), values.split(block_size, 2), columns, strict=True
    )
    for some_keys, some_values, places in blocks:
        scores = torch.einsum("bhtd,bhsd->bhts", queries, some_keys) / math.sqrt(D)
        future = places > torch.arange(T)[:, None]
        scores = scores.masked_fill(future, -torch.inf)
        new = scores.amax(-1, keepdim=True).clamp(min=-1e30).maximum(largest)
        new = new if stable else torch.zeros_like(new)
        shrink = (largest - new).exp() if shrinks and stable else 1
        exponentials = (scores - new).exp()
        total = total * shrink + exponentials.sum(-1, keepdim=True)
        context = context * shrink + exponentials @ some_values
        largest = new
    return context / total


def softmax_of_blocks(queries, keys, values, block_size):
    """Blocks that are finished by themselves, and joined by their sums."""
    T, D = queries.shape[2:]
    parts, sums = [], []
    for start in range(0, T, block_size):
        block = slice(start, start + block_size)
        scores = queries @ keys[:, :, block].mT / math.sqrt(D)
        future = torch.arange(T)[block] > torch.arange(T)[:, None]
        scores = scores.masked_fill(future, -1e30)
        sums.append(scores.logsumexp(-1))
        parts.append(scores.softmax(-1) @ values[:, :, block])
    weights = torch.stack(sums).softmax(0)[..., None]
    return (weights * torch.stack(parts)).sum(0)


case(
    "ch03",
    "blockwise_attention",
    [in_blocks, softmax_of_blocks],
    [
        (
            lambda q, k, v, n: F.scaled_dot_product_attention(q, k, v),
            "token 0 .* causal mask",
        ),
        (lambda *a: in_blocks(*a, shrinks=False), "shrink both old sums"),
        (lambda *a: in_blocks(*a, stable=False), "running maximum"),
        (lambda q, k, v, n: by_groups(q, k, v), "65,536 numbers"),
        (
            lambda q, k, v, n: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "PyTorch's own attention",
        ),
        (
            lambda q, k, v, n: by_groups(q[:, :, :n], k[:, :, :n], v[:, :, :n]),
            r"a tensor of shape \(2, 3, 8, 4\)",
        ),
    ],
)


def layers_of_attention(window, n_layers, T=None):
    """Measured by derivatives of a stack of layers."""
    T = T or window * n_layers + 3
    x = torch.randn(T, 2, dtype=torch.float64, requires_grad=True)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    hidden, y = (distance < 0) | (distance >= window), x
    for _ in range(n_layers):
        y = torch.softmax((y @ y.T).masked_fill(hidden, -torch.inf), dim=-1) @ y
    moved = torch.autograd.grad(y[-1].sum(), x)[0].abs().sum(dim=1)
    return T - 1 - (moved > 0).nonzero().min()


def steps_back(window, n_layers):
    return n_layers * window - n_layers


case(
    "ch03",
    "reach",
    [(steps_back, layers_of_attention), (steps_back, lambda w, n: float(n * (w - 1)))],
    [
        ((lambda w, n: w * n, layers_of_attention), "one more layer"),
        ((lambda w, n: w - 1, layers_of_attention), "one more layer"),
        ((steps_back, lambda w, n: n * (w - 1) + 1), "counts as 0"),
        ((steps_back, lambda w, n: layers_of_attention(w, n, 4)), "must be longer"),
        ((steps_back, lambda w, n: w - 1), "must be longer"),
        (
            (steps_back, says([1])),
            r"should return a number of tokens, but returned \[1",
        ),
    ],
)

# Chapter 4


def rms_in_place(x, scale):
    return x.div_((x.square().mean(-1, keepdim=True) + 1e-5).sqrt()).mul_(scale)


def over_axis_one(x, scale):
    return scale * x / ((x**2).mean(2, keepdim=True) + 1e-5).sqrt()


case(
    "ch04",
    "rms_norm",
    [lambda x, s: F.rms_norm(x, (8,), s, eps=1e-5), rms_in_place],
    [
        (lambda x, s: s * F.layer_norm(x, (8,)), "subtract the mean"),
        (lambda x, s: F.rms_norm(x, (8,), eps=1e-5), "`scale`"),
        (lambda x, s: s * x / x.norm(dim=-1, keepdim=True), "sum"),
        (lambda x, s: s * x / (x**2).mean(-1).sqrt(), "raises RuntimeError .*keepdim"),
        (lambda x, s: s * x / (x**2).mean(-1, keepdim=True).sqrt(), "eps"),
        (
            lambda x, s: s * x / ((x**2).mean(-1, keepdim=True).sqrt() + 1e-5),
            "before the root",
        ),
        (over_axis_one, "raises IndexError"),
    ],
)


def slope_by_distribution(z):
    normal = torch.distributions.Normal(0.0, 1.0)
    return normal.cdf(z.float()) + z * normal.log_prob(z).exp()


def slope_by_autograd(z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(F.gelu(z).sum(), z)[0]


case(
    "ch04",
    "gelu_slope",
    [slope_by_distribution, slope_by_autograd],
    [
        (lambda z: (1 + torch.erf(z / 2**0.5)) / 2, "first half of the product rule"),
        (lambda z: (z > 0).double(), "autograd finds"),
        (
            lambda z: (1 + torch.erf(z / 2**0.5)) / 2 + z * torch.exp(-(z**2) / 2),
            "has a factor",
        ),
        (lambda z: torch.exp(-(z**2) / 2) / (2 * math.pi) ** 0.5, "autograd finds"),
        (lambda z: (1 + math.erf(z / 2**0.5)) / 2, "raises"),
        (lambda z: slope_by_autograd(z)[:9], r"of shape \(101,\), not"),
    ],
)


def leaks_only_from_the_last_token(model, ids, vocab_size, before=1):
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % vocab_size
    old, new = model(ids)[:, :-before], model(changed)[:, :-before]
    return not torch.allclose(new, old, atol=1e-5)


def compares_with_prefixes(model, ids, vocab_size):
    whole = model(ids)
    return any(
        not torch.allclose(model(ids[:, :t]), whole[:, :t], atol=1e-5)
        for t in range(1, ids.shape[1])
    )


def changes_all_in_one_batch(model, ids, vocab_size):
    T = ids.shape[1]
    changed = (ids + torch.eye(T, dtype=torch.long)) % vocab_size  # row t: token t
    moved = (model(changed) - model(ids)).abs().amax(dim=-1) > 1e-5  # (T, T)
    return moved.tril(-1).any()


def changes_the_ids_it_was_given(model, ids, vocab_size):
    before = model(ids)
    for t in range(1, ids.shape[1]):
        ids[:, t] = (ids[:, t] + 1) % vocab_size
        if not torch.allclose(model(ids)[:, :t], before[:, :t], atol=1e-5):
            return True
    return False


def compares_the_changed_token_too(model, ids, vocab_size):
    changed = ids.clone()
    changed[:, 5] += 1
    return not torch.allclose(model(changed)[:, :6], model(ids)[:, :6], atol=1e-5)


case(
    "ch04",
    "looks_ahead",
    [compares_with_prefixes, changes_all_in_one_batch],
    [
        (lambda *a: leaks_only_from_the_last_token(*a, before=2), "each token in turn"),
        (leaks_only_from_the_last_token, "only token 2 see only token 3"),
        (lambda model, ids, v: True, "has no leak"),
        (lambda model, ids, v: False, "you missed a model"),
        (compares_the_changed_token_too, "has no leak"),
        (changes_the_ids_it_was_given, "changed its argument `ids`"),
        (lambda model, ids, v: model(ids)[0, :, 0] > 99, "not 10 of them"),
        (lambda model, ids, v: model(ids + 45).isnan().any(), r"raises .*\(B, T, V\)"),
    ],
)
case(
    "ch04",
    "cache_bytes",
    [
        lambda c, t, b: 8.0 * c["n_layers"] * c["emb_dim"] * t * b,
        lambda c, t, b: (
            np.prod(
                [2, c["n_layers"], b, c["n_heads"], t, c["emb_dim"] // c["n_heads"]]
            )
            * 4
        ),
    ],
    [
        (lambda c, t, b: 4 * c["n_layers"] * c["emb_dim"] * t * b, "keys and values"),
        (
            lambda c, t, b: 8 * c["n_layers"] * c["emb_dim"] * t,
            "each text of the batch",
        ),
        (
            lambda c, t, b: 8 * c["n_layers"] * c["emb_dim"] * t * b * c["n_heads"],
            "share the C numbers",
        ),
        (lambda c, t, b: 8 * c["emb_dim"] * t * b, "each block has a cache"),
        (lambda c, t, b: 2 * c["n_layers"] * c["emb_dim"] * t * b, "four bytes"),
        (lambda c, t, b: 8 * c["n_layers"] * c["width"] * t * b, "raises KeyError"),
        (lambda c, t, b: 0, "count one block first"),
    ],
)


def two_halves(model, idx, new, size, keep=None, cached=True):
    """The window is kept as a tensor of its own."""
    window, cache = idx, model.new_cache(size)
    unread = idx
    for _ in range(new):
        if window.shape[1] > size:
            window = unread = window[:, -(keep or size // 2) :]
            cache = model.new_cache(size)
        logits = model(unread, cache) if cached else model(window)
        unread = logits[:, -1:].argmax(-1)
        window = torch.cat([window, unread], dim=1)
        idx = torch.cat([idx, unread], dim=1)
    return idx


def many_caches(model, idx, new, size):
    """Two counters, and single tokens after the first reading."""
    generated, cache, read, start = idx.clone(), model.new_cache(size), 0, 0
    while generated.shape[1] < idx.shape[1] + new:
        if read == size:
            start, read = generated.shape[1] - size // 2, 0
            cache = model.new_cache(size)
        logits = model(generated[:, start + read :], cache)
        read = generated.shape[1] - start
        best = logits[:, -1].max(dim=-1).indices[:, None]
        generated = torch.hstack([generated, best])
    return generated


case(
    "ch04",
    "generate_half_window",
    [two_halves, many_caches],
    [
        (lambda *a: two_halves(*a, cached=False), "were read"),
        (
            lambda m, i, new, size: generate_text_simple(
                m, i, new, size, use_cache=True
            ),
            "start an empty cache",
        ),
        (lambda *a: two_halves(*a, keep=3), "token .* differs"),
        (lambda m, i, new, size: two_halves(m, i, new, size)[:, i.shape[1] :], "shape"),
        (lambda m, i, new, size: two_halves(m, i, new - 1, size), "shape"),
        (lambda m, i, new, size: m(i, m.new_cache(1)), "raises"),
    ],
)


def sum_of_layers(cfg, bias=True, shift=True, head=True):
    C, V, n = cfg["emb_dim"], cfg["vocab_size"], cfg["n_layers"]
    linear = {
        "qkv": 3 * (C * C + C * (cfg["qkv_bias"] and bias)),
        "out": C * C + C,
        "ff": C * 4 * C + 4 * C + 4 * C * C + C,
        "norms": 2 * (2 if shift else 1) * C,
    }
    tied = cfg.get("tie_weights") if head else True
    return (
        (V + cfg["context_length"]) * C
        + n * sum(linear.values())
        + 2 * C
        + (0 if tied else V * C)
    )


case(
    "ch04",
    "count_parameters",
    [sum_of_layers, lambda c: torch.tensor(sum_of_layers(c))],
    [
        (lambda c: 2 * c["vocab_size"] * c["emb_dim"], "a difference of"),
        (lambda c: sum_of_layers(c, bias=False), "qkv_bias True, .* a difference of"),
        (lambda c: sum_of_layers(c, shift=False), "a difference of"),
        (lambda c: sum_of_layers(c, head=False), "tie_weights False"),
        (
            lambda c: sum_of_layers({**c, "tie_weights": c["tie_weights"]}),
            "raises KeyError .*untied",
        ),
        (
            lambda c: sum_of_layers({**c, "tie_weights": c.get("tie_weights", True)}),
            "the head is not tied",
        ),
    ],
)


def change_on(model, surgery, ids, copied=copy.deepcopy, size=torch.Tensor.abs, last=0):
    before = model(ids)
    patient = copied(model)
    with torch.no_grad():
        surgery(patient)
        return size(patient(ids) - before)[:, last:].max()


def change_by_weights(model, surgery, ids):
    """The old weights are kept and put back, the modules too."""
    patient = GPTModel(model.cfg).eval()
    patient.load_state_dict(model.state_dict())
    surgery(patient)
    return max((patient(ids) - model(ids)).abs().flatten().tolist())


GUESS = says(
    {
        "two neurons": "same",
        "two heads": "other",
        "two blocks": "same",
        "queries and keys": "same",
    }
)
case(
    "ch04",
    "largest_change",
    [(change_on, GUESS), (change_by_weights, GUESS)],
    [
        ((lambda *a: change_on(*a, copied=lambda m: m), GUESS), "copy.deepcopy"),
        ((lambda *a: change_on(*a, size=torch.neg), GUESS), "absolute values"),
        ((lambda *a: change_on(*a, last=5), GUESS), "logits of all tokens"),
        ((lambda m, s, ids: 0.0, GUESS), "the largest change is"),
        ((change_on, says({"two heads": "same"})), "for each name in SURGERIES"),
        ((change_on, says(dict.fromkeys(GUESS(), "maybe"))), "predict one of 'same'"),
        ((lambda m, s, ids: s(m)(ids), GUESS), "raises TypeError"),
    ],
)

# Chapter 5


def bits_in_float32(loss, n_tokens, n_bytes):
    nats = torch.tensor(loss) * n_tokens
    return nats / torch.log(torch.tensor(2.0)) / n_bytes


case(
    "ch05",
    "bits_per_byte",
    [bits_in_float32, lambda loss, n, b: loss * n / b * math.log2(math.e)],
    [
        (lambda loss, n, b: loss * n / b, "divide by ln 2"),
        (lambda loss, n, b: loss * b / n / math.log(2), "multiply"),
        (lambda loss, n, b: loss, "divide by ln 2"),
        (lambda loss, n, b: loss / math.log(2), "wanted 0.75"),
        (lambda loss, n, b: [loss], "one number, but"),
        (lambda loss, n, b: loss.item(), "raises AttributeError"),
    ],
)


def unigram_with_tensors(train_ids, val_ids, vocab_size, **options):
    ids = torch.tensor(train_ids, **(options or {"dtype": torch.long}))
    counts = torch.bincount(ids, minlength=vocab_size) + 1.0
    return -(counts / counts.sum())[val_ids].log().mean()


def unigram_with_numpy(train_ids, val_ids, vocab_size):
    counts = np.ones(vocab_size)
    np.add.at(counts, np.array(train_ids, dtype=int), 1)
    return np.log(counts.sum() / counts[val_ids]).mean()


def unigram_with_float_ids(train_ids, val_ids, vocab_size):
    counts = torch.bincount(torch.tensor(train_ids), minlength=vocab_size) + 1
    return -(counts / counts.sum())[val_ids].log().mean().item()


def unigram_unsmoothed(train, val, v):
    return -sum(math.log(train.count(i) / len(train)) for i in val) / len(val)


case(
    "ch05",
    "unigram_loss",
    [unigram_with_tensors, unigram_with_numpy],
    [
        (unigram_unsmoothed, "raises ValueError .*add 1"),
        (lambda t, val, v: math.inf, "add 1"),
        (lambda t, val, v: -math.log(0.4 * 0.3 * 0.1), "the mean"),
        (lambda t, val, v: -unigram_with_tensors(t, val, v), "minus the logarithm"),
        (unigram_with_float_ids, "an empty training text"),
        (lambda t, val, v: 1 / len(t), "not 0.1667"),
        (
            lambda t, val, v: unigram_with_tensors(t, val, v) if t else 0.0,
            "ln V = 3.91",
        ),
    ],
)


def min_p_row_by_row(probabilities, p):
    rows = [row * (row >= p * row.max()) for row in probabilities]
    return torch.stack([row / row.sum() for row in rows])


def min_p_in_double(probabilities, p):
    largest = probabilities.max(dim=-1, keepdim=True).values
    kept = torch.where(probabilities >= p * largest, probabilities, 0).double()
    return F.normalize(kept, p=1, dim=-1)


def min_p(probabilities, p, share=True, least=torch.lt, keepdim=True, copied=True):
    largest = probabilities.amax(-1, keepdim=keepdim)
    kept = probabilities.clone() if copied else probabilities
    kept[least(probabilities, p * largest)] = 0.0
    return kept / kept.sum(-1, keepdim=keepdim) if share else kept


case(
    "ch05",
    "keep_min_p",
    [min_p_row_by_row, min_p_in_double, min_p],
    [
        (lambda p, s: p.masked_fill(p < s, 0.0), "0.2"),
        (lambda p, s: p.masked_fill(p < s * p.max(), 0.0), "probability of its own"),
        (lambda p, s: min_p(p, s, share=False), "divide by the sum"),
        (lambda p, s: min_p(p, s, least=torch.le), "exactly the share p"),
        (lambda p, s: min_p(p, s, keepdim=False), "raises .*keepdim=True"),
        (lambda p, s: min_p(p, s, copied=False), "changed its argument"),
        (lambda p, s: min_p(p, s).tolist(), r"return a tensor \(B, V\)"),
    ],
)


def by_sums(model, pieces):
    model.zero_grad()
    total = sum(targets.numel() for _, targets in pieces)
    for inputs, targets in pieces:
        logits = model(inputs).flatten(0, 1)
        F.cross_entropy(logits, targets.flatten(), reduction="sum").backward()
    for parameter in model.parameters():
        parameter.grad /= total


def one_graph(model, pieces):
    """All losses are added before a single backward."""
    model.zero_grad()
    sizes = [targets.numel() for _, targets in pieces]
    losses = [calc_loss_batch(*piece, model, "cpu") for piece in pieces]
    sum(a * b for a, b in zip(losses, sizes, strict=True)).div(sum(sizes)).backward()


def accumulate(model, pieces, weight, forget="once"):
    total = sum(targets.numel() for _, targets in pieces)
    if forget == "once":
        model.zero_grad()
    for inputs, targets in pieces:
        if forget == "always":
            model.zero_grad()
        loss = calc_loss_batch(inputs, targets, model, "cpu")
        (loss * weight(targets.numel(), total, len(pieces))).backward()


def one_large_batch(model, pieces):
    model.zero_grad()
    inputs, targets = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    calc_loss_batch(inputs, targets, model, "cpu").backward()


def steps_too(model, pieces):
    by_sums(model, pieces)
    torch.optim.SGD(model.parameters(), lr=1.0).step()


case(
    "ch05",
    "accumulate_gradients",
    [by_sums, one_graph],
    [
        (one_large_batch, "got 6 windows at once"),
        (lambda m, p: accumulate(m, p, lambda n, total, k: 1), "a sum of means"),
        (lambda m, p: accumulate(m, p, lambda n, total, k: 1 / k), "weigh three times"),
        (
            lambda m, p: accumulate(m, p, lambda n, total, k: n / total, "never"),
            "the old gradients must go first",
        ),
        (
            lambda m, p: accumulate(m, p, lambda n, total, k: 1, "always"),
            "the last piece alone",
        ),
        (lambda m, p: accumulate(m, p, lambda n, total, k: n), "48 times too large"),
        (steps_too, "weights must not change"),
        (lambda m, p: None, "still unanswered"),
        (lambda m, p: m(p).backward(), "raises TypeError"),
    ],
)


def stopping(losses, patience, better=lambda new, old: new < old, late=0):
    best = 0
    for look, loss in enumerate(losses):
        if better(loss, losses[best]):
            best = look
        if look - best >= patience + late:
            return [best, look]
    return best, len(losses) - 1


def stopping_by_counting(losses, patience):
    best, waited = 0, 0
    for look in range(1, len(losses)):
        waited += 1
        if losses[look] < min(losses[:look]):
            best, waited = look, 0
        if waited == patience:
            break
    else:
        look = len(losses) - 1
    return torch.tensor([best, look])


case(
    "ch05",
    "early_stopping",
    [stopping, stopping_by_counting],
    [
        (lambda a, p: stopping(a, p, lambda new, old: new <= old), "no improvement"),
        (lambda a, p: (a.index(min(a)), len(a) - 1), "never gets to see the 3.0"),
        (lambda a, p: stopping(a, p)[::-1], "first the best look"),
        (lambda a, p: stopping(a, p, late=1), "wanted best and last"),
        (lambda a, p: stopping(a, p)[0], "two indices"),
        (lambda a, p: (a[0], a[1], p), "two indices"),
    ],
)


def sliding(ids, model, stride, side_by_side=False, twice=False, tail=True):
    """Right, or with a fault."""
    T, n = model.cfg["context_length"], len(ids)
    total, count, begin, end = 0.0, 0, 0, 1
    while end < n and (tail or begin + T < n):
        done, end = (begin + 1 if twice else end), min(begin + T + 1, n)
        targets = ids[begin + 1 : end].clone()
        targets[: done - begin - 1] = -100
        pair = ids[None, begin : end - 1], targets[None]
        total += calc_loss_batch(*pair, model, "cpu").item() * (end - done)
        count += end - done
        begin += T if side_by_side else stride
    return total / max(count, 1)


def sliding_by_token(ids, model, stride):
    """Every loss of every window; the first one of each token stays."""
    T, first = model.cfg["context_length"], {}
    for begin in range(0, len(ids) - 1, stride):
        window = ids[begin : begin + T + 1]
        each = F.cross_entropy(
            model(window[None, :-1])[0], window[1:], reduction="none"
        )
        for place, loss in enumerate(each, start=begin + 1):
            first.setdefault(place, loss)
    return torch.stack(list(first.values())).mean()


def sliding_in_place(ids, model, stride):
    loss = sliding(ids, model, stride)
    ids[0] = -100
    return loss


case(
    "ch05",
    "sliding_loss",
    [sliding, sliding_by_token],
    [
        (lambda i, m, s: sliding(i, m, s) * (len(i) - 1), "that is the sum"),
        (lambda i, m, s: sliding(i, m, s, side_by_side=True), "windows side by side"),
        (lambda i, m, s: sliding(i, m, s, twice=True), "in the first of them only"),
        (lambda i, m, s: sliding(i, m, s, tail=False), "the last may be short"),
        (sliding_in_place, "changed its argument"),
        (lambda i, m, s: m(i)[0, 0, 0, 0], "raises .*that was a text of 6 tokens"),
    ],
)


@torch.no_grad()
def adamw(
    parameters, state, n, lr, betas, eps, weight_decay, decoupled=True, correct=True
):
    """AdamW with moving averages by `lerp`; or Adam, with the decay in the gradient."""
    for i, p in enumerate(parameters):
        m, v = state.setdefault(i, (torch.zeros_like(p), torch.zeros_like(p)))
        grad = p.grad if decoupled else p.grad + weight_decay * p
        m.lerp_(grad, 1 - betas[0])
        v.lerp_(grad.square(), 1 - betas[1])
        ones = (1 - betas[0] ** n, 1 - betas[1] ** n) if correct else (1, 1)
        p.mul_(1 - lr * weight_decay if decoupled else 1)
        p.addcdiv_(m / ones[0], (v / ones[1]).sqrt() + eps, value=-lr)


@torch.no_grad()
def adamw_by_name(parameters, state, n, *, lr, betas, eps, weight_decay):
    """State in two lists, and `copy_`."""
    if not state:
        state["m"] = [torch.zeros_like(p) for p in parameters]
        state["v"] = [torch.zeros_like(p) for p in parameters]
    for i, p in enumerate(parameters):
        state["m"][i] = betas[0] * state["m"][i] + (1 - betas[0]) * p.grad
        state["v"][i] = betas[1] * state["v"][i] + (1 - betas[1]) * p.grad**2
        m, v = state["m"][i] / (1 - betas[0] ** n), state["v"][i] / (1 - betas[1] ** n)
        p.copy_(p - lr * weight_decay * p - lr * m / (v.sqrt() + eps))


def adamw_forgetting(parameters, state, n, **settings):
    adamw(parameters, {}, n, **settings)


def adamw_on_copies(parameters, state, n, **settings):
    with torch.no_grad():
        parameters = [p - settings["lr"] * p.grad for p in parameters]


case(
    "ch05",
    "adamw_step",
    [adamw, adamw_by_name],
    [
        (lambda *a, **s: adamw(*a, **s, decoupled=False), "after step 1 .* the decay"),
        (lambda *a, **s: adamw(*a, **s, correct=False), "after step 1 .*corrections"),
        (adamw_forgetting, "after step 2 .*kept in `state`"),
        (adamw_on_copies, "no weight has moved"),
        (
            lambda parameters, state, n, **s: parameters[0].sub_(1),
            "raises RuntimeError",
        ),
        (lambda *a, **s: None, "still unanswered"),
    ],
)


def noise(model, train, val, n, lr, optimizer=torch.optim.AdamW, forget=True, on=0):
    pairs = train, val
    optimizer = optimizer(model.parameters(), lr=lr)
    for _ in range(n):
        loss = calc_loss_batch(*pairs[on], model, "cpu")
        if forget:
            model.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack([calc_loss_batch(*pair, model, "cpu") for pair in pairs])


def noise_by_hand(model, train, val, n, lr):
    state = {}
    for step in range(1, n + 1):
        model.zero_grad()
        F.cross_entropy(model(train[0]).mT, train[1]).backward()
        settings = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
        adamw(list(model.parameters()), state, step, lr=lr, **settings)
    return tuple(F.cross_entropy(model(x).mT, y).item() for x, y in (train, val))


def noise_looked_at_before(model, train, val, n, lr):
    before = calc_loss_batch(*val, model, "cpu")
    return noise(model, train, val, n, lr)[0], before


NEAR = says(("near", "near"))
case(
    "ch05",
    "learn_noise",
    [(noise, NEAR), (noise_by_hand, says(["below", "above"]))],
    [
        ((lambda *a: noise(*a[:3], 0, a[4]), NEAR), "as before the training"),
        ((noise_looked_at_before, NEAR), "before training"),
        ((lambda *a: noise(*a).flip(0), NEAR), "first the training loss"),
        ((lambda *a: noise(*a, optimizer=torch.optim.SGD), NEAR), "AdamW"),
        ((lambda *a: noise(*a, on=1), NEAR), "after 40 steps"),
        ((lambda *a: noise(*a)[0], NEAR), "should return two losses"),
        ((noise, says(("low", "high"))), "predict one of 'below'"),
        ((noise, says("below")), "should return two words"),
    ],
)


def overlap(is_val, length, stride):
    return [range(i * stride, i * stride + length) for i in range(len(is_val))]


def seen_by_tensors(is_val, length, stride, of=1, once=True):
    counts = torch.zeros(2, len(is_val) * stride + length)
    for tokens, val in zip(overlap(is_val, length, stride), is_val, strict=True):
        counts[int(val), tokens.start : tokens.stop] += 1
    both = (counts > 0).all(0)
    counts = (counts > 0).float() if once else counts
    return (both * counts[of]).sum() / counts[of].sum()


def seen_by_lists(is_val, length, stride):
    windows = list(zip(overlap(is_val, length, stride), is_val, strict=True))
    trained = {token for tokens, val in windows if not val for token in tokens}
    validated = {token for tokens, val in windows if val for token in tokens}
    return sum(token in trained for token in validated) / len(validated)


HALF = says(0.5)
case(
    "ch05",
    "seen_share",
    [(seen_by_tensors, HALF), (seen_by_lists, says(torch.tensor(0.9)))],
    [
        ((lambda *a: seen_by_tensors(*a, of=0), HALF), "of the training tokens"),
        ((lambda *a: seen_by_tensors(*a, once=False), HALF), "count it once"),
        ((lambda *a: 1 - seen_by_tensors(*a), HALF), "share no token"),
        ((lambda *a: 0.0, HALF), "training has seen token 3"),
        ((lambda v, t, s: seen_by_tensors(v, t + 1, s), HALF), "wanted 0.000"),
        ((seen_by_tensors, says(90)), "between 0 and 1, not 90"),
        ((seen_by_tensors, says("most")), "should return one number between"),
    ],
)

# Chapter 6


def padding_in_tensors(lengths, batch_size):
    batches = torch.tensor(lengths, dtype=torch.float32).split(batch_size)
    read = sum(batch.max() * len(batch) for batch in batches)
    return 1 - sum(lengths) / read


def padding_counted(lengths, batch_size, full=False):
    pads = read = 0
    while lengths:
        batch, lengths = lengths[:batch_size], lengths[batch_size:]
        read += max(batch) * (batch_size if full else len(batch))
        pads += max(batch) * (batch_size if full else len(batch)) - sum(batch)
    return pads / read


def padding_of_all(lengths, batch_size):
    return 1 - sum(lengths) / (max(lengths) * len(lengths))


def padding_by_batch(lengths, batch_size):
    starts = range(0, len(lengths), batch_size)
    batches = [lengths[i : i + batch_size] for i in starts]
    return sum(padding_of_all(b, 1) for b in batches) / len(batches)


case(
    "ch06",
    "padding_share",
    [padding_in_tensors, padding_counted],
    [
        (padding_of_all, "its own longest"),
        (lambda lengths, size: 1 - padding_counted(lengths, size), "of real tokens"),
        (padding_by_batch, "mean of the batches' shares"),
        (lambda lengths, size: padding_counted(lengths, size, True), "may be smaller"),
        (lambda lengths, size: padding_counted(sorted(lengths), size), "are padding"),
        (lambda lengths, size: lengths[size:][size], "raises IndexError"),
    ],
)
case(
    "ch06",
    "allowed_false_alarms",
    [
        lambda p, r, s: r * s * (1 / p - 1) / (1 - s),
        lambda p, r, s: torch.tensor(r * s / (1 - s)) * ((1 - p) / p),
    ],
    [
        (lambda p, r, s: (1 - p) * r, "equation 6.4 gives"),
        (lambda p, r, s: r * s * (1 - p) / p, "equation 6.4 gives"),
        (lambda p, r, s: r * s * (1 - p) / (1 - s), "equation 6.4 gives"),
        (lambda p, r, s: r * (1 - s) * (1 - p) / (p * s), "equation 6.4 gives"),
        (lambda p, r, s: p - r, "is positive, not"),
        (lambda p, r, s: r * s / (r - r), "raises ZeroDivisionError"),
    ],
)


def split_by_sampling(keys, train_frac, seed=123):
    groups = sorted(set(keys))
    chosen = random.Random(seed).sample(groups, int(train_frac * len(groups)))
    keys = np.array(keys)
    return np.flatnonzero(np.isin(keys, chosen)), np.flatnonzero(~np.isin(keys, chosen))


def split_by_groups(keys, train_frac, seed=123, shuffled=True, share=None):
    places = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    groups = list(places.values())
    if shuffled:
        random.Random(seed).shuffle(groups)
    n = int(train_frac * len(groups)) + (share or 0)
    return tuple(list(itertools.chain(*part)) for part in (groups[:n], groups[n:]))


def split_messages(keys, train_frac, seed=123):
    n = int(train_frac * len(keys))
    return list(range(n)), list(range(n, len(keys)))


def split_anew_each_time(keys, train_frac, seed=123):
    return split_by_groups(keys, train_frac, random.random())


case(
    "ch06",
    "split_by_key",
    [split_by_sampling, split_by_groups],
    [
        (split_messages, "deal keys, not messages"),
        (lambda k, f, s: split_by_groups(k, f, s, shuffled=False), "another seed"),
        (lambda k, f, s: split_by_groups(k, f, s, share=1), "belong into training"),
        (split_anew_each_time, "the same seed"),
        (lambda k, f, s: ([], split_by_groups(k, f, s)[1]), "exactly one of the two"),
        (lambda k, f, s: list(range(200)), "two lists"),
        (lambda k, f, s: (list(range(100)),), "two lists"),
        (lambda k, f, s: (k[:150], k[150:]), "two lists of ind"),
        (lambda k, f, s: (7, 8), "two lists"),
    ],
)


def losses_of(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def loss_for_all(logits, labels, join=torch.mean, classes=None):
    losses = losses_of(logits, labels)
    classes = labels.unique().tolist() if classes is None else classes
    return join(torch.stack([losses[labels == c].mean() for c in classes]))


def loss_by_weights(logits, labels):
    counts = labels.bincount(minlength=logits.shape[1])
    weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return F.cross_entropy(logits, labels, weight=weights)


case(
    "ch06",
    "balanced_loss",
    [
        loss_for_all,
        lambda z, y: loss_for_all(z.double(), y)[None],
        loss_by_weights,
    ],
    [
        (F.cross_entropy, "plain mean"),
        (lambda z, y: loss_for_all(z, y, classes=(0, 1)), "must not give nan"),
        (lambda z, y: loss_for_all(z, y, join=torch.sum), "sum of the two class means"),
        (lambda z, y: F.cross_entropy(z, y).item(), "no .item"),
        (lambda z, y: loss_for_all(z.detach(), y), "differentiable"),
        (losses_of, "one number"),
        (lambda z, y: loss_for_all(z, y, classes=(0,)), "wanted .*, the mean of"),
        (lambda z, y: F.cross_entropy(z, y[:, None]), "raises RuntimeError"),
    ],
)


def area_by_ranks(p_spam, labels):
    ranks = (p_spam[:, None] > p_spam).sum(1) + (p_spam[:, None] == p_spam).sum(1) / 2
    n_spam, n_ham = (labels == 1).sum(), (labels == 0).sum()
    wins = ranks[labels == 1].sum() - n_spam**2 / 2
    return (wins / (n_spam * n_ham)).item()


def area_by_loops(p_spam, labels, tie=0.5, sign=1):
    pairs = list(zip(p_spam.tolist(), labels.tolist(), strict=True))
    wins = [
        tie if a == b else float(sign * a > sign * b)
        for a, spam in pairs
        for b, other in pairs
        if spam and not other
    ]
    return sum(wins) / len(wins)


case(
    "ch06",
    "area_under_curve",
    [area_by_ranks, area_by_loops],
    [
        (lambda p, y: area_by_loops(p, y, tie=0), "ties, which count half"),
        (lambda p, y: area_by_loops(p, y, tie=1), "ties, which count half"),
        (lambda p, y: area_by_loops(p, y, sign=-1), "turned round"),
        (lambda p, y: ((p > 0.5) == (y == 1)).float().mean(), "in the right order"),
        (lambda p, y: (p[y == 1] > p[y == 0]).float().mean(), "raises RuntimeError"),
        (lambda p, y: p, "should return one number, but returned a tensor"),
    ],
)


def tfidf_by_hand(texts, log=math.log, plus=1.0, dtype=torch.float64, unit=True):
    words = sorted(set().union(*texts))
    counts = torch.tensor([[t.count(w) for w in words] for t in texts], dtype=dtype)
    n_with = (counts > 0).sum(dim=0).tolist()
    weights = [log((1 + len(texts)) / (1 + n)) + plus for n in n_with]
    rows = counts * torch.tensor(weights, dtype=dtype)
    return F.normalize(rows, dim=1) if unit else rows


def tfidf_divided(texts):
    rows = tfidf_by_hand(texts, unit=False).tolist()
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


case(
    "ch06",
    "tfidf_rows",
    [
        tfidf_by_hand,
        lambda texts: tfidf_by_hand(texts, dtype=torch.float32),
        lambda texts: tfidf_by_hand(texts).numpy(),
    ],
    [
        (lambda texts: [[1.0] * 11] * 5, "5 rows with a column for each"),
        (lambda texts: [1.0] * 5, "a row of numbers for each text"),
        (lambda texts: 1.0, "a row of numbers for each text"),
        (lambda texts: tfidf_by_hand(texts, log=math.log10), "natural"),
        (lambda texts: tfidf_by_hand(texts, plus=0.0), "outside of it"),
        (lambda texts: tfidf_by_hand(texts, unit=False), "must have the length 1"),
        (lambda texts: [[1.0] * 10] * 5, "only zeros"),
        (lambda texts: tfidf_by_hand(texts).flip(1), "in sorted order"),
        (tfidf_divided, "raises ZeroDivisionError"),
    ],
)


def filtered(change, train, test, changes=(True, True), fit_all=False, score="test"):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    parts = [
        ([change(text) for text in texts] if changed else list(texts), labels)
        for (texts, labels), changed in zip((train, test), changes, strict=True)
    ]
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False)
    model = make_pipeline(vectorizer, LogisticRegression(C=10))
    model.fit(*(parts[1] if fit_all else parts[0]))
    return model.score(*parts[score == "test"])


NEED = says("signs")
case(
    "ch06",
    "accuracy_after",
    [
        (filtered, NEED),
        (lambda change, a, b: 1 - (1 - torch.tensor(filtered(change, a, b))), NEED),
    ],
    [
        ((lambda *a: filtered(*a, changes=(False, True)), NEED), "texts of both parts"),
        ((lambda *a: filtered(*a, score="train"), NEED), "score on the test part"),
        ((lambda *a: filtered(*a, fit_all=True), NEED), "on the training part alone"),
        ((lambda *a: 4 * filtered(*a), NEED), "a share is at most 1"),
        ((lambda *a: 1 - filtered(*a), NEED), "share of errors|change the texts"),
        ((filtered, says("words")), "predict one of 'digits'"),
        ((lambda change, a, b: change(a), NEED), "raises|but returned"),
    ],
)

# Chapter 7


def cut_by_length(prompt, text):
    if text[: len(prompt)] != prompt:
        raise ValueError(text)
    return text[len(prompt) :].split("<|endoftext|>")[0].strip()


def cut_by_prefix(prompt, text):
    rest = text.removeprefix(prompt)
    if len(rest) + len(prompt) != len(text):
        raise UnicodeError("a kind of ValueError")
    return re.match(r"\s*(.*?)\s*(<\|endoftext\|>|$)", rest, re.DOTALL)[1]


def after_the_heading(prompt, text):
    if not text.startswith(prompt):
        raise ValueError
    return text.split("Assistant:")[1].strip()


def without_looking(prompt, text):
    return text[len(prompt) :].partition("<|endoftext|>")[0].strip()


def asserting(prompt, text):
    assert text.startswith(prompt)
    return without_looking(prompt, text)


case(
    "ch07",
    "extract_answer",
    [cut_by_length, cut_by_prefix],
    [
        (after_the_heading, "instead of searching"),
        (lambda p, t: t.removeprefix(p).strip(), r"before <\|endoftext\|>"),
        (without_looking, "must raise a ValueError"),
        (lambda p, t: cut_by_length(p, t) or None, "returned nothing; is a `return`"),
        (lambda p, t: t[len(p) :].partition("<|endoftext|>")[0], "wanted 'A pear.'"),
        (asserting, "raises AssertionError"),
        (lambda p, t: t.index("<|endoftext|>"), "raises ValueError"),
    ],
)


def mask(targets, lengths, shift):
    places = torch.arange(targets.shape[1])
    return targets.masked_fill(places < torch.tensor(lengths)[:, None] - shift, -100)


def mask_by_where(targets, lengths):
    B, T = targets.shape
    places = torch.arange(1, T + 1).expand(B, T)
    hidden = places.T < torch.as_tensor(lengths)
    return torch.where(hidden.T, torch.tensor(-100), targets)


def mask_by_numpy(targets, lengths):
    places = np.arange(1, targets.shape[1] + 1)[None]
    hidden = places < np.array(lengths)[:, None]
    return torch.from_numpy(np.where(hidden, -100, targets.numpy()))


def mask_in_place(targets, lengths):
    targets.copy_(mask(targets, lengths, 1))
    return targets


def mask_with_a_loop(targets, lengths):
    targets = targets.clone()
    for row, length in zip(targets, lengths, strict=True):
        row[: max(length - 1, 0)] = -100
    return targets


def masked_row(row, length):
    return row.masked_fill(torch.arange(len(row)) < length - 1, -100)


def pairs(targets, lengths):
    return zip(targets, lengths, strict=True)


def mask_by_mapping(targets, lengths):
    return torch.stack(list(map(masked_row, targets, lengths)))


case(
    "ch07",
    "mask_prompts",
    [mask_by_where, mask_by_numpy],
    [
        (lambda t, n: mask(t, n, 0), "one place too many"),
        (lambda t, n: mask(t, n, 2), "for prompts of 3 and 1"),
        (mask_in_place, "changed its argument `targets`"),
        (lambda t, n: mask(t, n, 1).tolist(), r"a tensor \(B, T\) of targets, but"),
        (mask_with_a_loop, "there is a loop"),
        (mask_by_mapping, "there is a loop"),
        (
            lambda t, n: torch.stack([masked_row(*p) for p in pairs(t, n)]),
            "there is a loop",
        ),
        (lambda t, n: t.masked_fill(torch.arange(4) < n, -100), "raises TypeError"),
    ],
)


def conversation(turns, tokenizer, end=(50256,), learn_end=True, learn=(False, True)):
    ids, learned = [], []
    for asked, said in turns:
        prompt = tokenizer.encode(format_prompt({"instruction": asked}, "chat"))
        answer = tokenizer.encode(format_answer(said, "chat"))
        ids += [*prompt, *answer, *end]
        learned += [learn[0]] * len(prompt) + [learn[1]] * len(answer)
        learned += [learn_end] * len(end)
    return ids, learned


def conversation_in_tensors(turns, tokenizer):
    ids, learned = conversation(turns, tokenizer)
    return torch.tensor([ids]), torch.tensor(learned)


def conversation_in_numpy(turns, tokenizer):
    return [np.array(part) for part in conversation(turns, tokenizer)]


def end_in_letters(turns, tokenizer):
    end = tokenizer.encode("<|endoftext|>", disallowed_special=())
    return conversation(turns, tokenizer, end)


case(
    "ch07",
    "encode_conversation",
    [conversation, conversation_in_tensors, conversation_in_numpy],
    [
        (lambda turns, t: conversation(turns, t)[0], "two lists"),
        (lambda turns, t: (["Pear."], [True]), "must hold ids"),
        (lambda turns, t: conversation(turns, t, end=()), "the conversation reads"),
        (lambda turns, t: conversation(turns, t, learn_end=False), "learn to stop"),
        (end_in_letters, "the one token 50256"),
        (lambda turns, t: conversation(turns, t, learn=(True, True)), "to be learned"),
        (lambda turns, t: conversation(turns[:1], t), "the conversation reads"),
        (lambda turns, t: (conversation(turns, t)[0], [True]), "every id needs a mark"),
        (lambda turns, t: t.encode(turns[0]), "raises TypeError"),
    ],
)


def verdict_by_table(judge, one, other):
    return {(True, False): 1, (False, True): 2}.get(
        (judge(one, other), judge(other, one)), 0
    )


def verdict_by_sum(judge, one, other):
    wins = int(judge(one, other)) + int(not judge(other, one))
    return torch.tensor([2, 0, 1])[wins]


case(
    "ch07",
    "fair_verdict",
    [verdict_by_table, verdict_by_sum],
    [
        (lambda judge, a, b: 1 if judge(a, b) else 2, "told nothing"),
        (lambda judge, a, b: 0, "so 1, not 0"),
        (lambda judge, a, b: 1, "so 2"),
        (lambda judge, a, b: verdict_by_table(judge, b, a), "so 1, not 2"),
        (lambda judge, a, b: (0, 2, 1)[verdict_by_table(judge, a, b)], "so 1, not 2"),
        (lambda judge, a, b: "one", "should return 1, 2 or 0, but returned 'one'"),
        (lambda judge, a, b: judge(a), "raises TypeError"),
    ],
)


def drawn_together(one, other, repeats, generator, wins=torch.gt, of=(0, 1)):
    both = torch.tensor([one, other])
    drawn = torch.randint(len(one), (repeats, len(one)), generator=generator)
    means = both[:, drawn].mean(dim=2)
    return wins(means[of[0]], means[of[1]]).float().mean()


def drawn_by_weights(one, other, repeats, generator):
    n, wins = len(one), 0
    differences = np.subtract(one, other)
    for drawn in torch.randint(n, (repeats, n), generator=generator).numpy():
        wins += np.bincount(drawn, minlength=n) @ differences > 0
    return wins / repeats


def drawn_apart(one, other, repeats, generator):
    means = []
    for values in (torch.tensor(one), torch.tensor(other)):
        drawn = torch.randint(len(values), (repeats, len(values)), generator=generator)
        means.append(values[drawn].mean(dim=1))
    return (means[0] > means[1]).float().mean().item()


def singles(one, other, repeats, generator):
    drawn = torch.randint(len(one), (repeats,), generator=generator)
    return (torch.tensor(one) > torch.tensor(other))[drawn].float().mean()


case(
    "ch07",
    "share_better",
    [drawn_together, drawn_by_weights],
    [
        (drawn_apart, "for each model apart"),
        (lambda *arguments: 0.5, "by the normal distribution"),
        (lambda *a: drawn_together(*a, of=(1, 0)), "the second model wins"),
        (lambda *a: drawn_together(*a, wins=torch.ge), "equal means"),
        (singles, "by the normal distribution"),
        (lambda one, other, n, g: drawn_together(one, other, n, None), "can repeat it"),
        (lambda one, other, n, g: torch.tensor(one) > 9, "should return one number"),
        (lambda one, other, n, g: one - other, "raises TypeError"),
    ],
)


def answer_losses(model, entries, tokenizer, style, begin=0, end=None, prompt=False):
    losses = []
    for entry in entries:
        asked = tokenizer.encode(format_prompt(entry, style))
        said = tokenizer.encode(format_answer(entry["output"], style))
        ids = torch.tensor([asked + said + [50256]])
        each = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
        losses.append(each if prompt else each[len(asked) - 1 + begin : end])
    return losses


def joined(*arguments, **options):
    return torch.cat(answer_losses(*arguments, **options)).mean()


def in_one_batch(model, entries, tokenizer, style):
    from shared.ch07 import InstructionDataset, custom_collate_fn

    dataset = InstructionDataset(entries, tokenizer, True, style)
    return calc_loss_batch(*custom_collate_fn(list(dataset)), model, "cpu").item()


CHAT = says("chat")
case(
    "ch07",
    "answer_loss",
    [(joined, CHAT), (in_one_batch, says("alpaca"))],
    [
        ((lambda *a: joined(*a, prompt=True), CHAT), "the prompts must not count"),
        ((lambda *a: joined(*a, end=-1), CHAT), "the end after each answer"),
        ((lambda *a: joined(*a, begin=1), CHAT), "the answer's first token"),
        (
            (
                lambda *a: torch.stack([x.mean() for x in answer_losses(*a)]).mean(),
                CHAT,
            ),
            "count tokens, not entries",
        ),
        (
            (lambda m, e, t, style: joined(m, e, t, "chat"), CHAT),
            "in the style 'alpaca'",
        ),
        ((lambda *a: torch.cat(answer_losses(*a)), CHAT), "should return one number"),
        ((joined, says("both")), "predict one of 'chat', 'alpaca'"),
        ((lambda m, e, t, s: m(e), CHAT), "raises"),
    ],
)

# Chapter 8


def rms(x, scale, eps, axis=-1, mean=torch.mean, root=torch.sqrt):
    return scale * x / root(mean(x**2, axis, True) + eps)


def rms_by_numpy(x, scale, eps):
    array = x.double().numpy()
    size = np.sqrt((array * array).mean(-1, keepdims=True) + eps)
    return torch.from_numpy(array / size) * scale


def rms_of_last_three(x, scale, eps):
    B, T, C = x.shape
    return rms(x.view(-1, C), scale, eps).view(B, T, C)


TIMES = says("times 3")
case(
    "ch08",
    "rms_norm",
    [
        (rms, TIMES),
        (rms_by_numpy, TIMES),
        (
            lambda x, s, eps: x.mul_(torch.rsqrt((x * x).mean(-1, True) + eps)) * s,
            TIMES,
        ),
    ],
    [
        ((lambda x, s, eps: s * F.layer_norm(x, (8,)), TIMES), "subtract the mean"),
        ((lambda x, s, eps: F.rms_norm(x, (8,), eps=eps), TIMES), "`scale`"),
        ((lambda *a: rms(*a, mean=torch.sum), TIMES), "not their sum"),
        ((lambda *a: rms(*a, root=torch.abs), TIMES), "root of the mean square"),
        ((lambda *a: rms(*a, axis=1), TIMES), "over the last axis"),
        ((lambda *a: rms(*a, axis=2), TIMES), "raises IndexError"),
        ((rms_of_last_three, TIMES), "raises ValueError"),
        ((lambda x, s, eps: rms(x, s, 1e-5), TIMES), "with eps = 4"),
        ((lambda x, s, eps: s * x / (x**2).mean(-1).sqrt(), TIMES), "keepdim=True"),
        ((rms, says("plus 3")), "LayerNorm that does not notice"),
        ((rms, says("times -3")), "squares forget the sign"),
        ((rms, says("backwards")), "a scale of its own"),
        ((rms, says("times 2")), "predict one of 'times 3'"),
    ],
)


def angle_by_table(cfg, pair, position):
    """Reduced by full turns, in float32."""
    D = cfg["emb_dim"] // cfg["n_heads"]
    speeds = 1.0 / (cfg["rope_base"] ** (torch.arange(0, D, 2) / D))
    return (torch.tensor([float(position)])[:, None] * speeds)[0, pair] % (2 * math.pi)


def angle(cfg, i, position, step=-2, width=None):
    D = width or cfg["emb_dim"] / cfg["n_heads"]
    return position * cfg["rope_base"] ** (step * i / D)


def first_turn(cfg, last=-1, turn=2 * math.pi, rounded=math.ceil, position=1):
    pair = cfg["emb_dim"] // cfg["n_heads"] // 2 + last
    return rounded(turn / angle(cfg, pair, position))


def first_turn_by_search(cfg):
    """Halving an interval, which ends with the first position."""
    pair = cfg["emb_dim"] // cfg["n_heads"] // 2 - 1
    low, high = 0, 10**9
    while high - low > 1:
        middle = (low + high) // 2
        turned = angle(cfg, pair, middle) >= math.tau
        low, high = (low, middle) if turned else (middle, high)
    return np.int64(high)


def first_turn_in_float32(cfg):
    D = cfg["emb_dim"] // cfg["n_heads"]
    speed = torch.tensor(cfg["rope_base"]) ** -((D - 2) / D)
    return torch.ceil(torch.tensor(math.tau) / speed)


case(
    "ch08",
    "rotary_angles",
    [
        (angle_by_table, first_turn_by_search),
        (angle, first_turn_in_float32),
        (lambda cfg, i, p: np.float64(angle(cfg, i, p)), lambda cfg: first_turn(cfg)),
    ],
    [
        ((lambda c, i, p: angle(c, i, p, width=c["emb_dim"]), first_turn), "of a head"),
        ((lambda c, i, p: angle(c, i, p, step=-1), first_turn), "i counts pairs"),
        (
            (lambda c, i, p: angle(c, i, p, step=2), first_turn),
            "later pairs are slower",
        ),
        ((lambda c, i, p: math.degrees(angle(c, i, p)), first_turn), "in radians"),
        ((lambda c, i, p: angle(c, i, 1), first_turn), "angle of one position"),
        ((lambda c, i, p: angle(c, i, p + 1), first_turn), "pair i turns by"),
        ((lambda c, i, p: -angle(c, i, p), first_turn), "pair i turns by"),
        ((lambda c, i, p: [angle(c, i, p)], first_turn), "one number, but returned"),
        ((lambda c, i: c, first_turn), "raises TypeError"),
        ((angle, lambda c: first_turn(c, rounded=math.floor)), "round up"),
        ((angle, lambda c: first_turn(c, rounded=float)), "turn at position 136"),
        ((angle, lambda c: first_turn(c, last=0)), "count from 0"),
        ((angle, lambda c: first_turn(c, turn=math.pi)), "half a turn"),
        ((angle, lambda c: 7), "turn of the fastest pair"),
        ((angle, lambda c: first_turn(c, turn=360)), "2 pi is a turn"),
        ((angle, lambda c: first_turn({**c, "rope_base": 100.0})), "base 10,000"),
        ((angle, lambda c: c["emb_dims"]), r"raises KeyError \(.emb_dims"),
    ],
)


def bytes_of_caches(
    cfg, tokens, size, both=2, heads="n_kv_heads", of="n_heads", n=None
):
    D = cfg["emb_dim"] // cfg[of]
    return both * (n or cfg["n_layers"]) * cfg[heads] * D * tokens * size


case(
    "ch08",
    "grouped_cache_bytes",
    [
        lambda c, t, s: sum(
            s * t * c["emb_dim"] * c["n_kv_heads"] / c["n_heads"]
            for _ in range(2 * c["n_layers"])
        ),
        lambda c, t, s: torch.tensor(bytes_of_caches(c, t, s)),
    ],
    [
        (lambda *a: bytes_of_caches(*a, heads="n_heads"), "not H heads"),
        (
            lambda *a: bytes_of_caches(*a, of="n_kv_heads"),
            "of C / H numbers",
        ),
        (lambda *a: bytes_of_caches(*a, both=1), "both kept"),
        (lambda *a: bytes_of_caches(*a, n=1), "each block has a cache"),
        (lambda c, t, s: bytes_of_caches(c, t, 4), "here a number takes 2 bytes"),
        (lambda c, t, s: bytes_of_caches(c, t, 1), "here a number takes 4 bytes"),
        (
            lambda c, t, s: bytes_of_caches({**c, "n_kv_heads": 1}, t, s),
            "all G heads of keys",
        ),
        (
            lambda c, t, s: 2 * c["n_layers"] * c["n_kv_heads"] * c["emb_dim"] * t * s,
            "not all C",
        ),
        (lambda c, t, s: bytes_of_caches(c, 16, s), "count one block"),
        (lambda c, t, s: 2 * c["n_layers"] * c["n_kv_heads"] * t * s, "D = C / H"),
        (lambda c, t, s: 0, "you say 0"),
        (lambda c, t, s: f"{bytes_of_caches(c, t, s)}", "whole number, but returned '"),
        (lambda c, t, s: c.n_layers, "raises AttributeError"),
    ],
)


def block_by_numpy(block):
    d, m = np.frombuffer(block, "<f2", count=2)  # float16 to the end
    levels = np.frombuffer(block, np.uint8, offset=4)
    return np.concatenate([levels % 16, levels // 16]).astype("f2") * d + m


def block_by_torch(block):
    blocks = torch.tensor([list(block)], dtype=torch.uint8)
    d, m = blocks[:, :4].contiguous().view(torch.float16)[0]
    return d * torch.cat([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], dim=1) + m  # (1, 32)


def block_one_by_one(block):
    d, m = (int.from_bytes(block[i : i + 2], "little") for i in (0, 2))
    d, m = torch.tensor([d, m]).to(torch.int16).view(torch.float16).double()
    for i in range(32):
        yield m + d * (block[4 + i % 16] // 16 ** (i // 16) % 16)


def block(block, first="low", order="<ee", number=lambda d, n, m: d * n + m, upper=1):
    d, m = np.frombuffer(block[:4], order[0] + "f2").tolist()
    low, high = [b & 15 for b in block[4:]], [(b >> 4) * upper for b in block[4:]]
    halves = {
        "low": low + high,
        "high": high + low,
        "mixed": [n for pair in zip(low, high, strict=True) for n in pair],
    }
    return [number(d, n, m) for n in halves[first]]


case(
    "ch08",
    "take_apart",
    [block_by_numpy, block_by_torch, block_one_by_one, lambda b: tuple(block(b))],
    [
        (lambda b: block(b, "mixed"), "not neighbours"),
        (lambda b: block(b, "high"), "the lower four bits are the first half"),
        (lambda b: block(b, number=lambda d, n, m: d * n), "m is missing"),
        (lambda b: block(b, number=lambda d, n, m: d * n - m), "so it is added"),
        (lambda b: block(b, number=lambda d, n, m: m * n + d), "d stands first"),
        (lambda b: block(b, number=lambda d, n, m: d * (n - 8) + m), "not from -8"),
        (lambda b: block(b, order=">"), "lower byte of a float16"),
        (lambda b: block(b, upper=16), "moved down"),
        (lambda b: block(b, number=lambda d, n, m: d * (n + 1) + m), "number 0|d q"),
        (lambda b: block(b)[:16], "32 numbers are wanted, not 16"),
        (lambda b: [math.nan] * 32, "number 0 of block 1"),
        (lambda b: b.view(torch.float16), "raises AttributeError.*of type bytes"),
        (lambda b: block(b)[0], "should return 32 numbers, but returned"),
    ],
)


def change_at(model, change, ids, over=-1, size=torch.Tensor.abs, copied=copy.deepcopy):
    other = copied(model)
    change(other)
    return size(other(ids) - model(ids)).amax(over).squeeze()


def change_as_list(model, change, ids):
    before, other = model(ids)[0], type(model)(model.cfg).eval()
    other.load_state_dict(model.state_dict())
    change(other)
    after = other(ids)[0]
    pairs = zip(before, after, strict=True)
    return [max(map(abs, (a - b).tolist())) for a, b in pairs]


def change_of_probabilities(model, change, ids):
    other = copy.deepcopy(model)
    change(other)
    return (other(ids).softmax(-1) - model(ids).softmax(-1)).abs().amax(-1)


SURE = says(
    {
        "another base": "not at 0",
        "other pairs": "everywhere",
        "later positions": "nowhere",
        "another gate": "everywhere",
    }
)
case(
    "ch08",
    "changed_logits",
    [
        (change_at, SURE),
        (change_as_list, SURE),
        (lambda *a: change_at(*a).numpy(), SURE),
        (lambda *a: change_at(*a)[None], SURE),
    ],
    [
        ((lambda *a: change_at(*a, copied=lambda m: m), SURE), "itself was changed"),
        ((lambda *a: change_at(*a, copied=copy.copy), SURE), "itself was changed"),
        ((lambda *a: change_at(*a, size=torch.clone), SURE), "largest absolute"),
        ((lambda *a: change_at(*a, over=1), SURE), "8 numbers are wanted, not 50"),
        ((lambda *a: change_at(*a, over=(1, 2)), SURE), "8 numbers are wanted, not 1"),
        ((lambda m, c, ids: torch.zeros(ids.shape[1]), SURE), "change of a logit at"),
        ((change_of_probabilities, SURE), "compare the two models' logits"),
        ((lambda m, c, ids: m(ids)[0, :, 0], SURE), "token . is .*, not"),
        ((lambda m, c, ids: c(m)(ids), SURE), "raises TypeError"),
        ((change_at, says({"other pairs": "nowhere"})), "should return one of"),
        (
            (change_at, says(dict.fromkeys(SURE(), "somewhere"))),
            "predict one of 'nowhere'",
        ),
    ],
)

# Chapter 9


def count_up(p, wanted):
    if p <= 0:
        raise ValueError("never")
    n = 1
    while 1 - (1 - p) ** n < wanted:
        n += 1
    return torch.tensor(n)


def needed(p, wanted, rounded=math.ceil, change=0):
    if p <= 0:
        raise ValueError("never")
    found = math.log(1 - wanted) / math.log(1 - p) if p < 1 else 1
    return rounded(found) + change


case(
    "ch09",
    "stories_needed",
    [count_up, lambda p, wanted: float(needed(p, wanted))],
    [
        (lambda p, w: needed(p, w, rounded=float), "round up"),
        (lambda p, w: math.ceil(w / p) if p else count_up(p, w), "do not add up"),
        (lambda p, w: needed(p, w, change=1), "wanted 1 to reach 0.5, found 2"),
        (lambda p, w: needed(p, w, rounded=math.floor), "wanted 2 to reach 0.51"),
        (lambda p, w: needed(max(p, 1e-9), w), "raise a ValueError"),
        (lambda p, w: needed(p, w) if p < 1 else 2, "one is enough"),
        (lambda p, w: needed(p, w) if p else 1 / p, "raises ZeroDivisionError"),
        (lambda p, w: "many", "a whole number, but returned 'many'"),
    ],
)


def others_by_loop(rewards):
    found = torch.zeros_like(rewards)
    for i, row in enumerate(rewards):
        for j in range(len(row)):
            found[i, j] = row[j] - torch.cat([row[:j], row[j + 1 :]]).mean()
    return found


def spoils(rewards):
    rewards -= rewards.mean()
    return others_by_loop(rewards)


case(
    "ch09",
    "leave_one_out",
    [
        others_by_loop,
        lambda r: (r - r.mean(1, keepdim=True)) * r.shape[1] / (r.shape[1] - 1),
    ],
    [
        (lambda r: r - r.mean(1, keepdim=True), "itself must not count"),
        (lambda r: r - (r.sum() - r) / (r.numel() - 1), "in its row"),
        (lambda r: -others_by_loop(r), r"wanted \[0.8"),
        (lambda r: others_by_loop(r) / 2, "wanted"),
        (lambda r: others_by_loop(r)[0], r"shape \(2, 4\), not \(4,\)"),
        (lambda r: r.tolist(), "a tensor"),
        (spoils, "changed its argument `rewards`"),
    ],
)


def opinion(a, b, a0, b0, beta):
    return torch.sigmoid(beta * ((a - a0) - (b - b0)))


def opinion_by_exp(a, b, a0, b0, beta):
    first, second = (beta * (a - a0)).exp(), (beta * (b - b0)).exp()
    return first / (first + second)


case(
    "ch09",
    "preferred",
    [
        opinion,
        lambda a, b, a0, b0, beta: F.logsigmoid(beta * (a - a0 - b + b0)).exp(),
        lambda a, b, a0, b0, beta: torch.stack(
            [beta * (a - a0), beta * (b - b0)]
        ).softmax(0)[0],
    ],
    [
        (lambda a, b, a0, b0, beta: opinion(a, b, 0, 0, beta), "with the reference"),
        (lambda a, b, a0, b0, beta: opinion(a, b, a0, b0, 1), "beta is missing"),
        (lambda a, b, a0, b0, beta: opinion(b, a, b0, a0, beta), "the other text"),
        (lambda a, b, a0, b0, beta: beta * (a - a0 - b + b0), "margins of 0.2"),
        (opinion_by_exp, "exp overflows"),
        (lambda a, b, a0, b0, beta: 0.5, "a tensor"),
        (lambda a, b, a0, b0, beta: opinion(a, b, a0, b0, beta)[0], "shape"),
    ],
)


def slope_by_drawing(theta, r, n, generator, baseline=torch.mean, sign=1):
    pi = theta.softmax(0)
    drawn = torch.multinomial(pi, n, replacement=True, generator=generator)
    found = r[drawn] - (baseline(r[drawn]) if baseline else 0)
    return sign * (found[:, None] * (F.one_hot(drawn, len(pi)) - pi)).mean(0)


def drawn_by_autograd(theta, r, n, generator):
    theta = theta.clone().requires_grad_()
    drawn = torch.multinomial(theta.softmax(0), n, True, generator=generator)
    gain = ((r[drawn] - r[drawn].mean()) * theta.log_softmax(0)[drawn]).mean()
    return torch.autograd.grad(gain, theta)[0]


def slope_exactly(theta, r, n, generator):
    torch.rand(1, generator=generator)
    pi = theta.softmax(0)
    return pi * (r - (pi * r).sum())


case(
    "ch09",
    "drawn_slope",
    [slope_by_drawing, drawn_by_autograd],
    [
        (lambda *a: slope_by_drawing(*a, baseline=None), "noisy: subtract"),
        (lambda *a: slope_by_drawing(*a, sign=-1), "the way down"),
        (slope_exactly, "that is the exact slope"),
        (lambda t, r, n, g: slope_by_drawing(t, r, n, None), "generator given"),
        (lambda *a: 3 * slope_by_drawing(*a), "wanted about"),
        (lambda *a: slope_by_drawing(*a).sum(), "shape"),
        (lambda *a: [0.0] * 4, "a tensor"),
    ],
)


def used(words, text, split=r"[.!?]", least=4, ordered_too=False, once=True):
    found = []
    for sentence in re.split(split, text):
        said = sentence.split()
        other = [x for x in said if not any(uses_word(w, x) for w in words)]
        if len(said if ordered_too else other) >= least:
            found += [word for word in words if uses_word(word, sentence)]
    return len(set(found)) if once else len(found)


def used_word_by_word(words, text):
    """For each word, whether any good sentence has it; as a float."""

    def good(sentence):
        return sum(not any(uses_word(w, x) for w in words) for x in sentence.split())

    parts = [x for x in re.split(r"[.!?]+", text) if good(x) > 3]
    return float(sum(any(uses_word(w, x) for x in parts) for w in words))


case(
    "ch09",
    "used_words",
    [used_word_by_word, lambda w, t: torch.tensor(used(w, t))],
    [
        (lambda w, t: sum(uses_word(x, t) for x in w), "a list of the words"),
        (lambda w, t: used(w, t, ordered_too=True), "do not count among the four"),
        (lambda w, t: used(w, t, split=r"\n"), "the last sentence has two"),
        (lambda w, t: used(w, t, once=False), "counts once"),
        (lambda w, t: sum(x in t.split() for x in w) if t else 0, "wanted"),
        (lambda w, t: used(w, t[: t.rfind(".") + 1]), "wanted 3"),
        (lambda w, t: t.split()[99], "raises IndexError"),
        (lambda w, t: {"kite"}, "a whole number"),
    ],
)

# Appendix E


def count_right(cfg, rank, head=True):
    C, tied = cfg["emb_dim"], cfg.get("tie_weights", False)
    return cfg["n_layers"] * 18 * rank * C + (0 if tied else rank) * (
        (C + cfg["vocab_size"]) * head
    )


def count_layers(cfg, rank):
    C = cfg["emb_dim"]
    layers = [(C, C)] * 4 + [(C, 4 * C), (4 * C, C)]
    layers *= cfg["n_layers"]
    if not cfg.get("tie_weights"):
        layers.append((C, cfg["vocab_size"]))
    return float(sum(rank * (a + b) for a, b in layers))


case(
    "appendix_e",
    "lora_parameters",
    [count_layers, lambda cfg, r: torch.tensor(count_right(cfg, r))],
    [
        (lambda cfg, r: count_right(cfg, r, False), "untied head gets"),
        (lambda c, r: count_right({**c, "tie_weights": 0}, r), "no upd"),
        (lambda cfg, r: count_right(cfg, 1), "the rank counts once"),
        (lambda cfg, r: count_right(cfg, r) + 1, "four matrices"),
        (
            lambda c, r: count_right(
                {**c, "tie_weights": c.get("tie_weights", True)}, r
            ),
            "without tie_weights",
        ),
        (
            lambda c, r: count_right({**c, "tie_weights": c["tie_weights"]}, r),
            r"raises KeyError \('tie_weights'\).* knows both",
        ),
        (lambda cfg, r: [count_right(cfg, r)], r"one number, but returned \["),
        (lambda cfg, r: f"{count_right(cfg, r)}", "one number, but returned '"),
    ],
)


def strength(model, s, power=1, last=None):
    layers = [m for m in model.modules() if isinstance(m, LoRALayer)]
    for layer in layers[:last]:
        layer.scaling = s**power * layer.alpha / layer.rank


def strength_remembered(model, s):
    for name, layer in model.named_modules():
        if name.endswith("lora"):
            layer.full = getattr(layer, "full", layer.scaling)
            layer.scaling = layer.full * s


def strength_lost(model, s):
    for layer in model.modules():
        if isinstance(layer, LoRALayer):
            layer.scaling *= s


def strength_in_a(model, s):
    for layer in model.modules():
        if isinstance(layer, LoRALayer):
            layer.start = getattr(layer, "start", layer.A.detach().clone())
            layer.A.data = s * layer.start


case(
    "appendix_e",
    "set_strength",
    [strength, strength_remembered],
    [
        (lambda m, s: None, "still gives"),
        (lambda m, s: strength(m, s + 0.5), "count nothing"),
        (strength_lost, "not from the last scaling"),
        (lambda m, s: strength(m, s, power=2), "should count once"),
        (strength_in_a, "A, B and W can stay"),
        (lambda m, s: strength(m, s, last=-1), "count nothing"),
        (lambda m, s: setattr(m.lora, "scaling", s), "raises AttributeError"),
    ],
)


def adapter(ends=("W_query", "W_value"), freeze="first", result=list, rank=None):
    def adapt(model, r, alpha):
        if freeze == "first":
            model.requires_grad_(False)
        found = [n for n, _ in model.named_modules() if n.endswith(ends)]
        for name in found:
            layer = LinearWithLoRA(model.get_submodule(name), rank or r, alpha)
            model.set_submodule(name, layer)
        if freeze == "last":
            model.requires_grad_(False)
        return result(found)

    return adapt


def adapt_blocks(model, r, alpha):
    for parameter in model.parameters():
        parameter.requires_grad = False
    for i, block in enumerate(model.trf_blocks):
        for name in ("W_value", "W_query"):
            layer = getattr(block.att, name)
            setattr(block.att, name, LinearWithLoRA(layer, r, alpha))
            yield f"trf_blocks.{i}.att.{name}"


def adapt_anew(model, r, alpha):
    model.requires_grad_(False)
    found = [n for n, _ in model.named_modules() if n.endswith(("W_query", "W_value"))]
    for name in found:
        model.set_submodule(name, LinearWithLoRA(nn.Linear(24, 24), r, alpha))
    return found


case(
    "appendix_e",
    "adapt_queries_and_values",
    [adapter(), adapter(result=tuple), adapt_blocks],
    [
        (adapter(("W_query", "W_key")), "layers were replaced"),
        (adapter(result=lambda n: n[1:]), "return the names"),
        (adapter(freeze="never"), "freeze the model first"),
        (adapter(freeze="last"), "replace afterwards"),
        (adapter(rank=3), "were asked for, not 3"),
        (adapt_anew, "did a layer lose"),
        (adapter(result=len), "should return the names of the replaced layers"),
        (lambda m, r, alpha: m.W_query, "raises AttributeError"),
    ],
)


def svd_factors(change, rank, first=True, times=1):
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    keep = slice(rank) if first else slice(len(S) - rank, None)
    return U[:, keep] * S[keep] ** times, Vh[keep]


def eigen_factors(change, rank):
    """The largest eigenvectors of ΔW^T ΔW, and what the matrix makes of them."""
    _, V = torch.linalg.eigh(change.T @ change)
    V = V[:, -rank:]
    return [(change @ V).float(), V.T.float()]


def svd_in_place(change, rank):
    found = svd_factors(change, rank)
    change.zero_()
    return found


case(
    "appendix_e",
    "low_rank",
    [lambda c, r: list(svd_factors(c, r)), eigen_factors],
    [
        (lambda c, r: svd_factors(c, r, first=False), "first pieces"),
        (lambda c, r: svd_factors(c, r, times=2), "count each singular value once"),
        (lambda c, r: svd_factors(c, r)[::-1], "should be"),
        (svd_in_place, "changed its argument `change`"),
        (lambda c, r: torch.linalg.svd(c), "should return two tensors, A and B"),
        (
            lambda c, r: svd_factors(c, r)[0] @ svd_factors(c, r)[1],
            "two t|should be",
        ),
        (lambda c, r: torch.linalg.svd(c[0, 0]), "raises"),
    ],
)
case(
    "appendix_e",
    "gpt3_lora_parameters",
    [lambda r: 96 * 2 * r * 2 * 12_288, lambda r: torch.tensor(4_718_592.0) * r],
    [
        (lambda rank: 96 * 2 * rank * 12_288, "both A and B"),
        (lambda rank: 96 * 2 * 12_288**2, "matrices themselves"),
        (lambda rank: 4_718_592, "at rank 8"),
        (lambda rank: 96 * 4 * rank * 2 * 12_288, "each of the two matrices"),
        (lambda rank: (4_718_592,), "one number, but returned"),
        (lambda rank: 96 * 2 * rank / 0, "raises ZeroDivisionError"),
    ],
)


def fitted(change, rank, steps=400, parts=slice(None), size=torch.sum, wider=0):
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(12, rank + wider, generator=generator).requires_grad_()
    B = torch.zeros(rank + wider, 8, requires_grad=True)
    optimizer = torch.optim.Adam([A, B][parts], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        error = size((change - A @ B) ** 2)
        error.backward()
        optimizer.step()
    return error


def alternating(change, rank):
    """Each factor in turn by least squares."""
    A = torch.linalg.qr(torch.randn(12, rank, generator=torch.manual_seed(1))).Q
    for _ in range(30):
        B = torch.linalg.lstsq(A, change).solution
        A = torch.linalg.lstsq(B.T, change.T).solution.T
    return ((change - A @ B) ** 2).sum().item()


THREE = says(3)
case(
    "appendix_e",
    "trained_error",
    [(alternating, says(8)), (fitted, THREE)],
    [
        ((lambda c, r: fitted(c, r, steps=5), THREE), "both A and B trained"),
        ((lambda c, r: fitted(c, r, parts=slice(1)), THREE), "both A and B trained"),
        (
            (lambda c, r: fitted(c, r, size=torch.mean), THREE),
            "no product comes closer",
        ),
        ((lambda c, r: fitted(c, r, wider=1), THREE), "too many columns"),
        ((alternating, says(0)), "predict a rank from 1 to 8"),
        (
            (alternating, says("three")),
            "but returned 'three'",
        ),
        ((lambda c, r: fitted(c.T, r), THREE), "raises RuntimeError"),
    ],
)

# Appendix F


def token_bytes(cfg, int8, weight=(4, 1), scale=2, rest=4, head=1, table=0):
    C, V, L = cfg["emb_dim"], cfg["vocab_size"], cfg["n_layers"]
    weights, rows = 12 * L * C * C + head * V * C, 9 * L * C + head * V
    others = L * (10 * C + 3 * C * cfg["qkv_bias"])
    n = weight[bool(int8)] * weights + (scale * rows if int8 else 0) + rest * others
    return n + table * 4 * C * (V + cfg["context_length"])


def token_bytes_of_layers(cfg, int8):
    """Layer by layer, with the final norm and a row of each embedding."""
    with torch.device("meta"):
        model = GPTModel(cfg)
    total = sum(p.nbytes for p in model.final_norm.parameters()) + 8 * cfg["emb_dim"]
    for part in (model.trf_blocks, model.out_head):
        for p in part.parameters():
            codes = p.numel() + 2 * len(p)
            total += codes if int8 and p.dim() == 2 else p.nbytes
    return torch.tensor(total)


def rate_of(count, share=1.0):
    return lambda cfg, int8, bandwidth: share * bandwidth / count(cfg, int8)


def bytes_with(**options):
    return lambda cfg, int8: token_bytes(cfg, int8, **options)


def operations_of(learns=6, frozen_too=2, head=6, table=0, tokens=True):
    def count(cfg, batch, length, frozen):
        C, V, L = cfg["emb_dim"], cfg["vocab_size"], cfg["n_layers"]
        n = 12 * C**2 * (frozen_too * frozen + learns * (L - frozen))
        return (n + (head + table) * V * C) * (batch * length if tokens else 1)

    return count


def operations_of_layers(cfg, batch, length, frozen):
    """Layer by layer, as a float and in a tensor."""
    with torch.device("meta"):
        model = GPTModel(cfg)
    total = 6.0 * model.out_head.weight.numel()
    for i, block in enumerate(model.trf_blocks):
        for p in block.parameters():
            total += (2 if i < frozen else 6) * p.numel() * (p.dim() == 2)
    return torch.tensor(total * batch * length, dtype=torch.float64)


case(
    "appendix_f",
    "step_operations",
    [operations_of(), operations_of_layers],
    [
        (operations_of(tokens=False), "for one token"),
        (operations_of(learns=2, head=2), "forward pass alone"),
        (operations_of(3, 1, 3), "are two operations"),
        (operations_of(table=6), "looked up, not multiplied"),
        (operations_of(head=0), "head is missing"),
        (operations_of(frozen_too=6), "has no backward pass"),
        (operations_of(frozen_too=0), "two operations for each weight"),
        (operations_of(learns=5), "takes six operations"),
        (lambda cfg, batch, length, frozen: "many", "one number, but returned 'many'"),
        (lambda cfg, batch, length: 1, "raises TypeError"),
    ],
)
RATE = rate_of(token_bytes)
case(
    "appendix_f",
    "tokens_per_second",
    [
        (token_bytes, RATE),
        (token_bytes_of_layers, rate_of(token_bytes_of_layers)),
        (lambda cfg, int8: float(token_bytes(cfg, int8)), lambda *a: int(RATE(*a))),
    ],
    [
        ((lambda cfg, int8: token_bytes(cfg, False), RATE), "look at `int8`"),
        ((bytes_with(weight=(1, 1), rest=1), RATE), "of four bytes each"),
        ((bytes_with(head=0), RATE), "all its V C weights"),
        ((bytes_with(table=1), RATE), "one row is read"),
        ((bytes_with(rest=0), RATE), "biases and the numbers of their norms"),
        ((bytes_with(scale=0), RATE), "a scale of two bytes"),
        ((bytes_with(scale=4), RATE), "in 9 C rows"),
        ((lambda cfg, int8: cfg["width"], RATE), r"raises KeyError \('width'\)"),
        ((lambda cfg, int8: [1], RATE), r"one number, but returned \[1\]"),
        ((token_bytes, lambda c, i, b: token_bytes(c, i) / b), "seconds a token takes"),
        ((token_bytes, rate_of(lambda c, i: token_bytes(c, 0))), "rate for float32"),
        ((token_bytes, rate_of(token_bytes, 1 / 8)), "not in bits"),
        ((token_bytes, rate_of(token_bytes, 2)), "once for each token"),
    ],
)


def coded(row, bits, top=None, size=lambda w: w.abs().max(), near=torch.round, wide=1):
    top = 2 ** (bits - 1) - 1 if top is None else top(bits)
    scale = wide * size(row).clamp(min=1e-30) / top
    return near(row / scale), scale


def coded_by_hand(row, bits):
    """A loop, whole numbers of Python, and halves away from zero."""
    top = 2 ** (bits - 1) - 1
    scale = max(abs(w) for w in row.tolist()) / top
    if scale == 0:
        return [0] * len(row), 0.0
    codes = [math.copysign(math.floor(abs(w) / scale + 0.5), w) for w in row.tolist()]
    return [int(q) for q in codes], scale


def coded_by_numpy(row, bits):
    w = row.numpy().astype(np.float64)
    scale = np.abs(w).max(keepdims=True) / (2 ** (bits - 1) - 1)
    codes = np.rint(np.divide(w, scale, out=np.zeros_like(w), where=scale > 0))
    return codes.astype(np.int8), scale


def coded_in_place(row, bits):
    codes, scale = coded(row, bits)
    return row.copy_(codes), scale


def coded_from_the_lowest(row, bits):
    scale = (row.max() - row.min()) / (2**bits - 1)
    return ((row - row.min()) / scale).round(), scale


def coded_and_cut_off(row, bits):
    codes, scale = coded(row, bits, top=lambda b: 2 ** (b - 1))
    return codes.clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1), scale


case(
    "appendix_f",
    "quantise",
    [coded, coded_by_hand, coded_by_numpy, lambda r, b: list(coded(r, b))],
    [
        (lambda r, b: coded(r, b, top=lambda b: 127), "codes go from -7 to 7"),
        (lambda r, b: coded(r, b, top=lambda b: 2 ** (b - 1)), "from -127 to 127"),
        (lambda r, b: coded(r, b, size=torch.max), "largest number below zero.*size"),
        (lambda r, b: coded(r, b, near=torch.floor), "do not cut off"),
        (lambda r, b: coded(r, b, near=torch.trunc), "do not cut off"),
        (lambda r, b: coded(r, b, near=lambda q: q), "codes are whole numbers"),
        (lambda r, b: coded(r, b, wide=1.5), "larger error than needed|off by"),
        (lambda r, b: coded(r, b, wide=-1), "the size of a step, not -"),
        (lambda r, b: (r / r.abs().max(), 1.0), "whole numbers"),
        (lambda r, b: (r * 0, r.abs().max()), "off by 1.00 steps.*s q should be near"),
        (lambda r, b: coded(r, b)[::-1], "codes are wanted, one for each"),
        (
            lambda r, b: ((r * (2 ** (b - 1) - 1) / r.abs().max()).round(), 1 / 127),
            "off by",
        ),
        (
            lambda r, b: ((r / (s := r.abs().max() / (2 ** (b - 1) - 1))).round(), s),
            "zeros, 8 bits.*divide by zero",
        ),
        (coded_from_the_lowest, "as many on each side of zero"),
        (coded_and_cut_off, "off by"),
        (coded_in_place, "changed its argument `row`"),
        (lambda r, b: coded(r, b)[0], "codes of the row and its scale, but returned"),
        (lambda r: r, "raises TypeError"),
    ],
)


def calls_of(where, prompt_too=False, kept=None):
    """How many calls a hook counts; `kept` is a list that is never emptied."""

    def count(model, prompt, n):
        calls = [] if kept is None else kept
        hook = where(model).register_forward_hook(lambda *_: calls.append(1))
        text = speculate(model, prompt, n)
        hook.remove()
        return (len(text) if prompt_too else n) - len(calls)

    return count


def saved_by_the_head(model, prompt, n):
    """The head in place of a hook counts, and greedy's calls are counted too."""
    calls, plain = [], model.out_head.forward
    model.out_head.forward = lambda x: (calls.append(1), plain(x))[1]
    generate_fast(model, [prompt], n, model.cfg["context_length"])
    greedy = len(calls)
    speculate(model, prompt, n)
    model.out_head.forward = plain
    return torch.tensor(2 * greedy - len(calls))


def final_norm(model):
    return model.final_norm


SAVED, STORY = calls_of(final_norm), says("short story")
case(
    "appendix_f",
    "calls_saved",
    [(saved_by_the_head, STORY), (calls_of(lambda m: m.trf_blocks[1].ff), STORY)],
    [
        ((calls_of(lambda m: m), STORY), "never calls the model or"),
        ((lambda m, p, n: n - SAVED(m, p, n), STORY), "greedy writing calls once"),
        ((calls_of(final_norm, prompt_too=True), STORY), "were there before"),
        ((lambda m, p, n: -SAVED(m, p, n), STORY), "tokens minus calls"),
        ((lambda m, p, n: SAVED(m, p, n) / n, STORY), "not their share"),
        ((calls_of(final_norm, kept=[]), STORY), "from 0 for each text"),
        ((lambda m, p, n: n - 3 * (n - SAVED(m, p, n)), STORY), "of every block"),
        ((lambda m, p, n: [n], STORY), "should return one number of calls"),
        ((lambda m, p, n: speculate(m, p), STORY), "raises TypeError"),
        ((SAVED, says("the story")), "predict one of 'repeating text', 'short story'"),
    ],
)

# All of them

NAMES = [f"{folder}-{check}" for folder, check in CASES]
MODULES = {name: import_module(f"{name}.exercise_checks") for name in FOLDERS}


def notebook(folder, stem):
    return nbformat.read(ROOT / folder / f"{stem}.ipynb", as_version=4)


def definitions_and_calls(folder, stem):
    """The answers in a notebook, by name, and for each check what it is called with."""
    names, calls = {}, {}
    cells = [
        cell.source for cell in notebook(folder, stem).cells if "code" in cell.cell_type
    ]
    solutions = [c.source for c in notebook(folder, "solutions").cells]
    marked = [re.findall(r"^def (\w+)", s, re.M) for s in solutions if "BEGIN SOL" in s]
    answers = set(itertools.chain(*marked))
    exec(cells[0], names)
    for source in cells[1:]:
        if answers & set(re.findall(r"^def (\w+)", source, re.M)):
            exec(source, names)
        elif call := re.match(r"checks\.(\w+)\((.*)\)", source):
            calls[call[1]] = [name.strip() for name in call[2].split(",")]
    return names, calls


@pytest.fixture(scope="module")
def solved():
    """For each check the answers of `solutions.ipynb`."""
    found = {}
    for folder in FOLDERS:
        names, calls = definitions_and_calls(folder, "solutions")
        for check, arguments in calls.items():
            found[folder, check] = tuple(names[name] for name in arguments)
    return found


@pytest.fixture(params=CASES, ids=NAMES)
def check(request):
    folder, name = request.param
    return getattr(MODULES[folder], name), *CASES[request.param], request.param


def test_every_check_has_cases(solved):
    assert set(solved) == set(CASES)
    for key, (right, wrong) in CASES.items():
        assert len(right) >= 1 and len(wrong) >= 4, key


def test_right_answers_in_several_styles_are_accepted(check, solved, capsys):
    check, right, _, key = check
    for answers in [solved[key], *right]:
        check(*answers)
        assert capsys.readouterr().out.splitlines()[-1].startswith("Right")


def sentence_of(check, answers):
    """What a check says; it raises nothing else, and prints nothing."""
    with pytest.raises(NotYet) as refusal:
        check(*answers)
    sentence = str(refusal.value)
    assert re.match(r"Exercise (2b|\d|[EF])\.\d: ", sentence), sentence
    lines = refusal.value._render_traceback_()
    assert "\n" not in sentence and " ".join(lines).split() == sentence.split()
    assert all(len(line) <= 88 or " " not in line for line in lines), lines
    return sentence


def test_wrong_answers_are_told_why(check, capsys):
    check, _, wrong, _ = check
    for answers, message in wrong:
        sentence = sentence_of(check, answers)
        assert re.search(message, sentence), f"{sentence!r} lacks {message!r}"
    assert capsys.readouterr().out == ""


WEIRD = [3, "x", [], {}, (1, 2), [None], torch.zeros(2, 3), math.nan, object(), True]


def test_no_answer_makes_a_check_crash(check, solved):
    check, _, _, key = check
    for i, answer in enumerate(solved[key]):
        for value in WEIRD:
            answers = list(solved[key])
            answers[i] = says(value)
            if i == 0 and answer.__name__ != "predicted_rank":
                sentence_of(check, answers)
                continue
            try:  # a strange prediction may be a good one
                check(*answers)
            except NotYet:
                pass
    for answer in (3, None, ...):
        assert "pass a function" in sentence_of(check, [answer, *solved[key][1:]])


def test_blank_answers_are_named(check, solved):
    check, _, _, key = check
    returns_nothing = {"accumulate_gradients", "adamw_step", "set_strength"}
    for value in (None, ...):
        sentence = sentence_of(check, [says(value)] * len(solved[key]))
        named = "..." if key[1] == "set_strength" else "still unanswered"
        assert named in sentence or value is ... and key[1] in returns_nothing


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_blanks_of_the_exercises_are_unanswered(folder):
    names, calls = definitions_and_calls(folder, "exercises")
    assert calls
    for check, arguments in calls.items():
        answers = [names[name] for name in arguments]
        sentence = sentence_of(getattr(MODULES[folder], check), answers)
        assert "unanswered" in sentence or "replace the `...`" in sentence


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_chapter_has_an_experiment_and_reasons(folder):
    cells = notebook(folder, "solutions").cells
    titles = [cell.source for cell in cells if re.match("#+ .*xperiment", cell.source)]
    assert titles
    for cell in cells:
        if "BEGIN SOLUTION" in cell.source:
            assert "# Why" in cell.source, cell.source


def test_a_notebook_shows_one_sentence_and_the_solver_s_own_line(tmp_path):
    stub = "def count_windows(n, max_length, stride):\n    {}"
    check = "checks.count_windows(count_windows)"
    answers = [
        "...",
        "return (n - 1 - max_length) // stride + 1",
        "return range(n)[\n        n + 1]",
        "return len(range(0, n - max_length, stride))",
    ]
    cells = ["from ch02_text_data import exercise_checks as checks"]
    for answer in answers:
        cells += [stub.format(answer), check]
    book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    NotebookClient(book, timeout=120, allow_errors=True).execute(cwd=str(tmp_path))
    unanswered, short, failing, right = (c.outputs[0] for c in book.cells[2::2])
    for output in (unanswered, short, failing):
        assert output.output_type == "error" and output.ename == "NotYet"
        sentence = output.evalue
        assert sentence.startswith("Exercise 2.2: ")
        assert " ".join(output.traceback) == sentence
        assert "\n" not in sentence and "\x1b" not in sentence
    assert "still unanswered" in unanswered.evalue
    assert "has none" in short.evalue
    assert "IndexError" in failing.evalue and "your line 2, `return" in failing.evalue
    assert right.text.startswith("Right")


# What all checks share


def test_the_innermost_line_of_the_solver_is_quoted():
    def helper(x):
        return x.no_such_attribute

    def answer(x):
        return helper(x)

    @checked("2.9", wants="anything")
    def check(answer):
        answer(torch.zeros(2, 3))

    sentence = sentence_of(check, [answer])
    assert "answer(a tensor (2, 3)) raises AttributeError" in sentence
    assert "`return x.no_such_attribute`" in sentence
    assert sentence.endswith("; it should return anything")


def test_answers_get_copies_unless_they_need_the_thing_itself():
    def spoil(numbers, x, weight):
        numbers.append(1)
        x.add_(1)
        weight.data.add_(1)

    numbers, x, weight = [0], torch.zeros(2), nn.Parameter(torch.zeros(2))

    @checked("2.9", wants=None)
    def check(answer):
        answer(numbers, x, weight)

    check(spoil)
    assert numbers == [0] and x.sum() == 0 and weight.sum() == 2
    with pytest.raises(NotYet, match="changed its argument `numbers`"):
        checked("2.9", wants=None, keeps=True)(check.__wrapped__)(spoil)


def test_a_check_that_fails_itself_names_what_was_returned():
    @checked("2.9", wants=None)
    def check(answer):
        answer()
        raise RuntimeError("no such thing\nand more")

    with pytest.raises(
        NotYet, match=r"the check fails with RuntimeError \(no such thing\)"
    ):
        check(lambda: 3)


@pytest.mark.parametrize(
    "value",
    [3, 3.0, torch.tensor(3), torch.tensor([[3.0]]), np.int64(3)],
)
def test_numbers_of_every_kind(value):
    assert number(value) == 3 and type(number(value)) in (int, float)


@pytest.mark.parametrize("value", ["3", [3], True, None, torch.ones(2), 1j])
def test_what_is_no_number(value):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        number(value)


def test_verdicts_tensors_and_closeness():
    assert yes_or_no(torch.tensor([True])) and not yes_or_no(np.bool_(False))
    with pytest.raises(AssertionError, match="not 2 of them"):
        yes_or_no(torch.ones(2))
    with pytest.raises(TypeError):
        yes_or_no("no")
    with pytest.raises(TypeError):
        tensor([1.0], 1)
    assert close(torch.ones(2), torch.ones(2, dtype=torch.float64) + 1e-7)


@pytest.mark.parametrize("T", [1, 2, 3, 6])
@pytest.mark.parametrize("does", shared.exercises.LEAKS)
def test_leaks_are_where_they_say_and_short_texts_can_be_read(does, T):
    x = torch.randn(1, T, 8, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    leak = shared.exercises.LEAKS[does](x)
    assert leak.shape == x.shape
    seen = (
        torch.stack(
            [
                torch.autograd.grad(leak[0, t].sum(), x, retain_graph=True)[0][0]
                for t in range(T)
            ]
        )
        if leak.requires_grad
        else torch.zeros(T, T, 1)
    )
    assert (seen.abs().sum(2).triu(1) > 0).any() == (
        T > (3 if "token 2" in does else 1)
    )
