"""Appendix Fb: Writing faster.

You will keep what a model has read, find out how fast your machine can write one text
at best, and get past that: with many texts at once, with smaller numbers, and with
guesses.

Exported from writing.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from appendix_f_speed.guards import (
    check_bits,
    check_counts,
    check_room,
    check_sampling,
    check_texts,
)
from shared.ch03 import MultiHeadAttention
from shared.ch04 import GPTModel
from shared.ch05 import next_token_probabilities
from shared.ch08 import Int4Linear, Int8Linear, quantize_q4_1

__all__ = [
    "read_at",
    "stream",
    "generate_fast",
    "PackedLinear",
    "packed",
    "quantised",
    "guess_next",
    "speculate",
]


def _new_slots(model: GPTModel, B: int, length: int) -> torch.Tensor:
    """Room for keys and values of B texts in each block: (L, 2, B, H, length, D)."""
    H, D = model.cfg["n_heads"], model.cfg["emb_dim"] // model.cfg["n_heads"]
    # zeros, not empty: an unused slot has weight 0, but 0 times nan is nan
    return model.pos_emb.weight.new_zeros(len(model.trf_blocks), 2, B, H, length, D)


def _attend(
    attention: MultiHeadAttention,
    x: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Attention of new tokens (B, T, C), whose keys and values go into their slots."""
    B, T, C = x.shape
    rows = torch.arange(B, device=x.device)[:, None]  # (B, 1)
    for kind, W in enumerate((attention.W_key, attention.W_value)):
        slots[kind][rows, :, positions] = W(x).view(B, T, attention.num_heads, -1)
    keys, values = slots[:, :, :, : mask.shape[-1]]  # (B, H, seen, D)
    queries = attention.split_heads(attention.W_query(x))  # (B, H, T, D)
    context = F.scaled_dot_product_attention(queries, keys, values, mask)
    return attention.out_proj(context.transpose(1, 2).reshape(B, T, C))


@torch.no_grad()
def read_at(
    model: GPTModel, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """Read tokens (B, T), each at its own position (B, T): the vectors (B, T, C).

    The same as `model.features` without dropout, but each text of the batch has its own
    positions. `slots` hold what was read before; the new tokens are added.
    """
    seen = torch.arange(int(positions.max()) + 1, device=ids.device)
    mask = (seen <= positions[:, :, None])[:, None]  # (B, 1, T, seen), eq. Fb.2
    x = model.tok_emb(ids) + model.pos_emb(positions)
    for block, own_slots in zip(model.trf_blocks, slots, strict=True):
        x = x + _attend(block.att, block.norm1(x), positions, mask, own_slots)
        x = x + block.ff(block.norm2(x))
    return model.final_norm(x)


def _with_room(
    texts: list[list[int]], more: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts with room for `more` tokens on the right, (B, room), and lengths (B,)."""
    lengths = [len(text) for text in texts]
    room = max(lengths) + more
    rows = [text + [0] * (room - len(text)) for text in texts]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


def _read_windows(
    model: GPTModel, ids: torch.Tensor, lengths: torch.Tensor, context: int
) -> torch.Tensor:
    """The last vector (B, C) of each text's last `context` tokens, read afresh."""
    positions = torch.arange(context, device=ids.device).expand(len(ids), -1)
    windows = ids.gather(1, lengths[:, None] - context + positions)
    slots = _new_slots(model, len(ids), context)
    return read_at(model, windows, positions, slots)[:, -1]


@torch.no_grad()
def _steps(
    model: GPTModel,
    texts: list[list[int]],
    max_new_tokens: int,
    context: int,
    draw: Callable[[torch.Tensor], torch.Tensor],
    eos_id: int | None,
) -> Iterator[torch.Tensor]:
    """The next token of each text, (B,), again and again."""
    ids, lengths = _with_room(texts, max_new_tokens, model.pos_emb.weight.device)
    slots = _new_slots(model, len(ids), min(ids.shape[1], context))
    rows = torch.arange(len(ids), device=ids.device)
    done = torch.zeros_like(lengths, dtype=torch.bool)
    T = min(int(lengths.max()), context)
    new, last = ids[:, :T], (lengths - 1).clamp(max=T - 1)  # first, all of the prompts
    positions = torch.arange(T, device=ids.device).expand(len(ids), -1)
    for _ in range(max_new_tokens):
        vectors = read_at(model, new, positions, slots)[rows, last]  # (B, C)
        late = lengths > context
        if late.any():
            vectors[late] = _read_windows(model, ids[late], lengths[late], context)
        drawn = draw(model.out_head(vectors))  # (B, V) -> (B,)
        if eos_id is not None:
            drawn = drawn.masked_fill(done, eos_id)
            done |= drawn == eos_id
        yield drawn
        if done.all():
            return
        ids[rows, lengths] = drawn
        new, last = drawn[:, None], torch.zeros_like(last)  # later, one token of each
        positions = lengths.clamp(max=context - 1)[:, None]
        lengths = lengths + 1


def stream(
    model: GPTModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    top_p: float | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[torch.Tensor]:
    """Continue prompts of any lengths; yield the next token of each, (B,), when drawn.

    The arguments are those of chapter 5's `generate`, with a list of prompts.
    """
    texts = check_texts(model, prompts, max_new_tokens, context_size)
    check_sampling(temperature, top_k, top_p, model.cfg["vocab_size"])

    def draw(logits: torch.Tensor) -> torch.Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        probs = next_token_probabilities(logits, temperature, top_k, top_p)
        return torch.multinomial(probs, 1, generator=generator)[:, 0]

    return _steps(model, texts, max_new_tokens, context_size, draw, eos_id)


def generate_fast(
    model: GPTModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    top_p: float | None = None,
    *,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Each prompt with its continuation, up to and including its own `eos_id`.

    For all prompts together what chapter 5's `generate` gives for each of them alone.
    """
    settings = (context_size, temperature, top_k, eos_id, top_p)
    steps = stream(model, prompts, max_new_tokens, *settings, generator=generator)
    new = [drawn.tolist() for drawn in steps]
    results = []
    for row, prompt in enumerate(prompts):
        answer = [drawn[row] for drawn in new]
        if eos_id in answer:
            answer = answer[: answer.index(eos_id) + 1]
        results.append(torch.as_tensor(prompt).tolist() + answer)
    return results


class PackedLinear(nn.Module):
    """A linear layer for inference, its matrix in tiles for `rows` vectors at once.

    With another number of vectors MKL's routine uses the matrix itself. If that is not
    float32 on a CPU, there are no tiles. The layer cannot be copied, and never learns.
    """

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        check_counts(rows=rows)
        self.linear, self.rows, self.tiles = linear, rows, None
        W = linear.weight.detach()
        if torch.backends.mkl.is_available() and W.is_cpu and W.dtype == torch.float32:
            self.tiles = torch.ops.mkl._mkl_reorder_linear_weight(W, rows)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.tiles is None:
            return self.linear(x)
        W, bias = self.linear.weight, self.linear.bias
        return torch.ops.mkl._mkl_linear(x, self.tiles, W, bias, self.rows)


def packed(model: nn.Module, rows: int) -> nn.Module:
    """The same model, to write `rows` texts at a time: its linear layers in tiles.

    It shares its parameters with `model`; the tiles are a second copy of the matrices.
    """
    own = {id(p): p for p in model.parameters()}  # deepcopy takes these as copied
    twin = copy.deepcopy(model, own).eval()
    for name, module in list(twin.named_modules()):
        if type(module) is nn.Linear and name:
            twin.set_submodule(name, PackedLinear(module, rows))
    return twin


class _PlusBias(nn.Module):
    """A layer without a bias, and the bias."""

    def __init__(self, layer: nn.Module, bias: torch.Tensor):
        super().__init__()
        self.layer, self.bias = layer, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.bias


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy of a model for inference on a CPU, its linear layers in 8 or 4 bits.

    In four bits, a matrix whose number of rows is no multiple of 16 keeps eight.
    """
    small = copy.deepcopy(model).requires_grad_(False).eval()
    linears = {n: m for n, m in small.named_modules() if type(m) is nn.Linear and n}
    check_bits(bits, linears)
    for name, linear in linears.items():
        W, bias = linear.weight, linear.bias
        if bits == 4 and len(W) % 16 == 0:
            layer = Int4Linear(quantize_q4_1(W).view(len(W), -1, 20))
        else:
            layer = Int8Linear(W)
        small.set_submodule(name, layer if bias is None else _PlusBias(layer, bias))
    return small


def guess_next(text: Sequence[int], n_gram: int, n_guesses: int) -> list[int]:
    """What followed the last `n_gram` tokens of a text where they stood before."""
    tail = list(text[-n_gram:])
    for start in range(len(text) - n_gram - 1, -1, -1):  # the latest place first
        if list(text[start : start + n_gram]) == tail:
            return list(text[start + n_gram : start + n_gram + n_guesses])
    return []


@torch.no_grad()
def speculate(
    model: GPTModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    eos_id: int | None = None,
    n_gram: int = 2,
    n_guesses: int = 8,
) -> list[int]:
    """The greedy text of `generate_fast`, by guesses that are checked many at a time.

    Inside the model's context only. Source: Leviathan, Kalman and Matias (2023), Fast
    Inference from Transformers via Speculative Decoding, section 2, with n-grams of the
    text itself as the guessing model.
    """
    text = check_room(model, prompt, max_new_tokens, n_gram, n_guesses)
    device = model.pos_emb.weight.device
    read, end = 0, len(text) + max_new_tokens
    slots = _new_slots(model, 1, end)
    while len(text) < end:
        guesses = guess_next(text, n_gram, n_guesses)[: end - len(text) - 1]
        unread = torch.tensor([text[read:] + guesses], device=device)
        positions = torch.arange(read, read + unread.shape[1], device=device)[None]
        vectors = read_at(model, unread, positions, slots)[0, len(text) - read - 1 :]
        best = model.out_head(vectors).argmax(-1).tolist()  # one more than guesses
        agreed = 0
        while agreed < len(guesses) and guesses[agreed] == best[agreed]:
            agreed += 1
        new = best[: agreed + 1]
        if eos_id in new:
            return text + new[: new.index(eos_id) + 1]
        read = len(text) + agreed  # behind that, the slots will be overwritten
        text = text + new
    return text
