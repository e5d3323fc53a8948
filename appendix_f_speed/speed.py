"""Appendix F: Speed.

Say on paper how fast a model can train and write on your machine, find what keeps it
from that, and remove it one piece at a time, without changing an answer unless you
choose to.

Exported from speed.ipynb, which explains every line: change it there, then run `python
-m tools.export`.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from appendix_f_speed.guards import (
    check_bits,
    check_counts,
    check_features,
    check_frozen,
    check_room,
    check_sampling,
    check_texts,
)
from shared.ch03 import MultiHeadAttention
from shared.ch04 import GPTModel, TransformerBlock
from shared.ch05 import next_token_probabilities
from shared.ch06 import GPTClassifier, last_real_position
from shared.ch08 import Int4Linear, Int8Linear, quantize_q4_1

__all__ = [
    "chunked_cross_entropy",
    "read_last",
    "KeptBelow",
    "PackedLinear",
    "packed",
    "read_at",
    "stream",
    "generate_fast",
    "quantised",
    "guess_next",
    "speculate",
]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients (eq. F.3) of vectors (N, C), `chunk` of them at a time."""

    @staticmethod
    def forward(ctx, features, weight, targets, chunk):
        N, wide = len(targets), torch.promote_types(features.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=features.device)
        d_features, d_weight = torch.empty_like(features), torch.zeros_like(weight)
        parts = (features, targets, d_features)
        for x, y, d_x in zip(*(p.split(chunk) for p in parts), strict=True):
            errors = F.log_softmax(x @ weight.t(), -1, dtype=wide)  # (chunk, V)
            loss -= errors.gather(1, y[:, None]).sum() / N
            errors.exp_()  # p, in the same memory
            errors[torch.arange(len(y), device=y.device), y] -= 1
            errors = errors.to(x.dtype)
            d_x.copy_(errors @ weight / N)
            d_weight.addmm_(errors.t(), x, alpha=1 / N)
        ctx.save_for_backward(d_features, d_weight)
        return loss

    @staticmethod
    def backward(ctx, d_loss):
        d_features, d_weight = ctx.saved_tensors
        return d_features.mul_(d_loss), d_weight.mul_(d_loss), None, None  # no copies


def chunked_cross_entropy(
    features: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk: int = 256,
) -> torch.Tensor:
    """Mean cross-entropy of a head (V, C) on vectors (..., C), without all the logits.

    Targets (...) of -100 do not count, as in `F.cross_entropy`. At most `chunk` rows of
    logits exist at once. Under autocast the products are of its precision.
    """
    check_features(features, weight, targets, chunk)
    counted, device = targets != -100, features.device.type
    dtype = features.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    vectors, weight = features[counted].to(dtype), weight.to(dtype)
    return _ChunkedCrossEntropy.apply(vectors, weight, targets[counted], chunk)


def read_last(
    block: TransformerBlock, x: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """What a block says at one place of each text: (B, T, C), (B,) -> (B, C).

    As `block(x)[range(B), last]`, without dropout.
    """
    attention, rows = block.att, torch.arange(len(x), device=x.device)
    normed = block.norm1(x)  # (B, T, C)
    query = attention.split_heads(attention.W_query(normed[rows, last][:, None]))
    keys = attention.split_heads(attention.W_key(normed))  # (B, H, T, D)
    values = attention.split_heads(attention.W_value(normed))
    seen = torch.arange(x.shape[1], device=x.device) <= last[:, None]  # (B, T)
    context = F.scaled_dot_product_attention(query, keys, values, seen[:, None, None])
    y = x[rows, last] + attention.out_proj(context.flatten(1))  # (B, C)
    return y + block.ff(block.norm2(y))


class KeptBelow(nn.Module):
    """A classifier, after `set_trainable`, that goes through frozen blocks once a text.

    It gives the same logits, (B, num_classes), and trains the same weights. The vectors
    are kept as long as it lives: make a new one when frozen weights change.
    """

    def __init__(self, classifier: GPTClassifier):
        super().__init__()
        check_frozen(classifier)
        self.classifier, self.kept = classifier, {}
        blocks = classifier.gpt.trf_blocks
        learns = [any(p.requires_grad for p in b.parameters()) for b in blocks]
        self.first = [*learns, True].index(True)  # len(blocks): the head alone learns

    @torch.no_grad()
    def keep(self, ids: torch.Tensor, texts: list[tuple[int, ...]]) -> None:
        """Read texts, padded to (B, T), up to the first block that learns."""
        gpt = self.classifier.gpt
        x = gpt.tok_emb(ids) + gpt.pos_emb.weight[: ids.shape[1]]  # (B, T, C)
        x = gpt.trf_blocks[: self.first](x)
        for text, vectors in zip(texts, x, strict=True):
            self.kept[text] = vectors[: len(text)].clone()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        gpt, padding = self.classifier.gpt, self.classifier.pad_token_id
        last = last_real_position(ids, padding)  # (B,)
        ends = (last + 1).tolist()
        texts = [tuple(t[:n]) for t, n in zip(ids.tolist(), ends, strict=True)]
        new = [i for i, text in enumerate(texts) if text not in self.kept]
        if new:
            self.keep(ids[new], [texts[i] for i in new])
        x = nn.utils.rnn.pad_sequence([self.kept[t] for t in texts], True)  # (B, T, C)
        learning = gpt.trf_blocks[self.first :]
        x = learning[:-1](x)
        x = read_last(learning[-1], x, last) if learning else x[range(len(x)), last]
        return gpt.out_head(gpt.final_norm(x))


class PackedLinear(nn.Module):
    """A linear layer to read with, its matrix in tiles for `rows` vectors at once.

    With any other number of vectors MKL's routine reads the matrix itself; one that is
    not in float32 on a CPU gets no tiles. It cannot be copied, and it never learns.
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
    """The same model, to write `rows` texts at a time with: its linear layers in tiles.

    Its parameters are those of `model`; the tiles are a second copy of the matrices.
    """
    own = {id(p): p for p in model.parameters()}  # deepcopy takes these as copied
    twin = copy.deepcopy(model, own).eval()
    for name, module in list(twin.named_modules()):
        if type(module) is nn.Linear and name:
            twin.set_submodule(name, PackedLinear(module, rows))
    return twin


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

    As `model.features` without dropout, but every text of the batch may be at another
    place. `slots` hold what was read before, and are filled.
    """
    seen = torch.arange(int(positions.max()) + 1, device=ids.device)
    mask = (seen <= positions[:, :, None])[:, None]  # (B, 1, T, seen), eq. F.5
    x = model.tok_emb(ids) + model.pos_emb(positions)
    for block, own_slots in zip(model.trf_blocks, slots, strict=True):
        x = x + _attend(block.att, block.norm1(x), positions, mask, own_slots)
        x = x + block.ff(block.norm2(x))
    return model.final_norm(x)


def _read_windows(
    model: GPTModel, ids: torch.Tensor, lengths: torch.Tensor, context: int
) -> torch.Tensor:
    """The last vector (B, C) of each text's last `context` tokens, read anew."""
    positions = torch.arange(context, device=ids.device).expand(len(ids), -1)
    windows = ids.gather(1, lengths[:, None] - context + positions)
    slots = _new_slots(model, len(ids), context)
    return read_at(model, windows, positions, slots)[:, -1]


def _last_vectors(
    model: GPTModel,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    slots: torch.Tensor,
    context: int,
    all_new: bool,
) -> torch.Tensor:
    """The vector (B, C) of each text's last token: all are new, or just the last."""
    last = (lengths - 1)[:, None]  # (B, 1)
    places = last.clamp(max=context - 1)  # a longer text is read anew, below
    new, positions, at = ids.gather(1, last), places, torch.zeros_like(last)
    if all_new:
        T, at = int(places.max()) + 1, places
        new = ids[:, :T]
        positions = torch.arange(T, device=ids.device).expand(len(ids), -1)
    vectors = read_at(model, new, positions, slots)  # (B, T, C)
    vectors = vectors.take_along_dim(at[:, :, None], dim=1)[:, 0]
    late = lengths > context
    if late.any():
        vectors[late] = _read_windows(model, ids[late], lengths[late], context)
    return vectors


@torch.no_grad()
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

    Arguments as in chapter 5's `generate`, but for the list of prompts.
    """
    texts = check_texts(model, prompts, max_new_tokens, context_size)
    check_sampling(temperature, top_k, top_p, model.cfg["vocab_size"])
    ids, lengths = _fill_up(texts, max_new_tokens, model.pos_emb.weight.device)
    slots = _new_slots(model, len(ids), min(ids.shape[1], context_size))
    rows = torch.arange(len(ids), device=ids.device)
    done = torch.zeros_like(lengths, dtype=torch.bool)
    for step in range(max_new_tokens):
        vectors = _last_vectors(model, ids, lengths, slots, context_size, step == 0)
        logits = model.out_head(vectors)  # (B, V): one position of each text
        drawn = _draw(logits, temperature, top_k, top_p, generator)  # (B,)
        if eos_id is not None:
            drawn = drawn.masked_fill(done, eos_id)
            done |= drawn == eos_id
        yield drawn
        if done.all():
            return
        ids[rows, lengths] = drawn
        lengths = lengths + 1


def _fill_up(
    texts: list[list[int]], more: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts with room for `more` tokens on the right, (B, room), and lengths (B,)."""
    lengths = [len(text) for text in texts]
    room = max(lengths) + more
    rows = [text + [0] * (room - len(text)) for text in texts]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


def _draw(logits, temperature, top_k, top_p, generator) -> torch.Tensor:
    if temperature == 0:  # the likeliest token needs no probabilities
        return logits.argmax(-1)
    probs = next_token_probabilities(logits, temperature, top_k, top_p)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


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
    """Each prompt with its continuation, up to and with its own `eos_id`.

    What chapter 5's `generate` gives for each prompt alone, for all of them together.
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


class _PlusBias(nn.Module):
    """A layer without a bias, and the bias."""

    def __init__(self, layer: nn.Module, bias: torch.Tensor):
        super().__init__()
        self.layer, self.bias = layer, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.bias


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy of a model to read with, for a CPU, its linear layers in 8 or 4 bits.

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
        read = len(text) + agreed  # what was guessed wrongly will be overwritten
        text = text + new
    return text
