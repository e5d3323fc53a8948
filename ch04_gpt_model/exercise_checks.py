"""Checks for the exercises of chapter 4: each says what is wrong, and hints at why."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from shared.ch04 import GPT2_CONFIGS, GPT_CONFIG_124M, GPTModel
from shared.exercises import require_answer

TINY = {
    "vocab_size": 50,
    "context_length": 16,
    "emb_dim": 32,
    "n_heads": 8,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


def _rounded(vector: torch.Tensor) -> list[float]:
    return [round(number, 4) for number in vector.tolist()]


def _tiny_model(**changes: object) -> GPTModel:
    torch.manual_seed(4)
    model = GPTModel({**TINY, **changes}).eval()
    with torch.no_grad():  # larger weights, so that nothing is a near tie
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 8
    return model


def rms_norm(norm: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Exercise 1: the same as `F.rms_norm`, on vectors of any scale."""
    generator = torch.Generator().manual_seed(1)
    x = 3 + 5 * torch.randn(2, 4, 8, generator=generator)
    scale = torch.rand(8, generator=generator) + 0.5
    try:
        found = norm(x.clone(), scale)
    except RuntimeError as error:
        raise AssertionError(
            f"torch says: {error}. A mean that lost its axis does not fit to x any "
            "more; keepdim=True keeps the axis that a mean is taken over"
        ) from error
    require_answer(found, "rms_norm")
    assert found.shape == x.shape, (
        f"the shape {tuple(x.shape)} became {tuple(found.shape)}; keepdim=True keeps "
        "the axis that a mean is taken over"
    )
    assert not torch.allclose(found, scale * F.layer_norm(x, (8,)), atol=1e-3), (
        "that is layer normalisation; RMSNorm does not subtract the mean"
    )
    assert not torch.allclose(found, F.rms_norm(x, (8,), eps=1e-5), atol=1e-4), (
        "every channel still has to be multiplied by its `scale`"
    )
    wanted = F.rms_norm(x, (8,), scale, eps=1e-5)
    assert torch.allclose(found, wanted, atol=1e-4), (
        f"the first vector should begin with {_rounded(wanted[0, 0, :4])}, not "
        f"{_rounded(found[0, 0, :4])}; divide by the root of the mean (not the "
        "sum) of the squares of its C numbers, over the last axis"
    )
    zeros = norm(torch.zeros(1, 8), scale)
    assert not zeros.isnan().any(), (
        "a vector of zeros gives nan: add eps below the root"
    )
    tiny = norm(1e-3 * x, scale)
    assert torch.allclose(tiny, F.rms_norm(1e-3 * x, (8,), scale, 1e-5), atol=1e-3), (
        "vectors a thousand times smaller come out wrong: eps belongs to the mean "
        "square, before the root is taken"
    )
    print("Right: equal to F.rms_norm.")


def gelu_slope(slope: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Exercise 2: the derivative of the exact GELU, as autograd finds it."""
    z = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(F.gelu(z).sum(), z)
    z = z.detach()
    found = slope(z)
    require_answer(found, "gelu_slope")
    density = torch.exp(-(z**2) / 2)
    cumulative = (1 + torch.erf(z / 2**0.5)) / 2
    assert not torch.allclose(found, cumulative, atol=1e-6), (
        "that is the first half of the product rule; z also stands inside Phi"
    )
    assert not torch.allclose(found, cumulative + z * density, atol=1e-6), (
        "the normal density has a factor 1 / sqrt(2 pi) before the exponential"
    )
    worst = (found - wanted).abs().argmax()
    assert torch.allclose(found, wanted, atol=1e-6), (
        f"at z = {z[worst]:.1f} autograd finds {wanted[worst]:.4f}, you "
        f"{found[worst]:.4f}; the derivative of Phi is the normal density"
    )
    print("Right: equal to autograd's on 101 points.")


class _Leaky(nn.Module):
    """A causal model, plus a chosen path from later tokens to earlier logits."""

    def __init__(self, leak: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.model, self.leak = _tiny_model(), leak

    def forward(self, in_idx: torch.Tensor) -> torch.Tensor:
        vectors = self.model.tok_emb(in_idx)
        return self.model(in_idx) + self.model.out_head(self.leak(vectors))


def _from_next(vectors: torch.Tensor) -> torch.Tensor:
    return F.pad(vectors[:, 1:], (0, 0, 0, 1))


def _from_last_to_first(vectors: torch.Tensor) -> torch.Tensor:
    leak = torch.zeros_like(vectors)
    leak[:, 0] = vectors[:, -1]
    return leak


def _from_fourth_to_third(vectors: torch.Tensor) -> torch.Tensor:
    leak = torch.zeros_like(vectors)
    if vectors.shape[1] > 3:  # a beginning of the text may be read alone
        leak[:, 2] = vectors[:, 3]
    return leak


def _verdict(detect: Callable[..., bool], model: nn.Module) -> bool:
    """What the detector says of a model, if it says it properly."""
    ids = torch.arange(10).unsqueeze(0)
    found = detect(model, ids, 50)
    assert ids.tolist() == [list(range(10))], (
        "looks_ahead changed the ids that it was given, and with them every later "
        "comparison; work on a clone()"
    )
    require_answer(found, "looks_ahead")
    assert not isinstance(found, torch.Tensor) or found.numel() == 1, (
        f"looks_ahead returned a tensor of shape {tuple(found.shape)}; return one True "
        "or False, for instance with .any()"
    )
    return bool(found)


def looks_ahead(detect: Callable[[nn.Module, torch.Tensor, int], bool]) -> None:
    """Exercise 3: an honest model passes, and each of four leaks is found."""
    honest = _verdict(detect, _tiny_model())
    assert not honest, (
        "a GPTModel was accused; a change of token t may move the logits of token t "
        "and of those after it, only those before must stay. Differences of 1e-6 are "
        "rounding: compare with torch.allclose"
    )
    leaks = {
        "every token sees the mean of the whole text": lambda v: v.mean(
            dim=1, keepdim=True
        ).expand_as(v),
        "every token sees the next one": _from_next,
        "the first token sees the last one": _from_last_to_first,
        "the third token sees the fourth": _from_fourth_to_third,
    }
    for name, leak in leaks.items():
        assert _verdict(detect, _Leaky(leak)), (
            f"a model in which {name} was not found out; change each token in turn, "
            "and compare the logits of all tokens before it"
        )
    print("Right: four leaks found, and nobody accused without reason.")


def cache_bytes(count: Callable[[dict, int, int], int]) -> None:
    """Exercise 4: the bytes that real caches hold, and those of GPT-2 XL."""
    require_answer(count(TINY, 16, 1), "cache_bytes")
    for changes, tokens, batch in (
        ({}, 16, 1),
        ({}, 7, 1),
        ({}, 16, 5),
        ({"n_layers": 5, "emb_dim": 24, "n_heads": 6}, 9, 7),
    ):
        model = _tiny_model(**changes)
        cache = model.new_cache(tokens)
        with torch.no_grad():
            model.features(torch.zeros(batch, tokens, dtype=torch.long), cache)
        wanted = sum(
            kept.numel() * kept.element_size()
            for layer in cache
            for kept in (layer.keys, layer.values)
        )
        found = count(model.cfg, tokens, batch)
        hint = {
            batch: "each text of the batch has its own keys and values",
            model.cfg["n_layers"]: "each block has a cache of its own",
            model.cfg["n_heads"]: "the H heads share the C numbers, D = C / H each",
            2: "keys and values are both kept",
            4: "a float32 takes four bytes",
        }
        off = wanted / found if found else 0
        remedy = hint.get(off, hint.get(1 / off if off else 0, "count one block first"))
        assert found == wanted, (
            f"{tokens} tokens, batch {batch}, {model.cfg}: the cache takes {wanted:,} "
            f"bytes, you say {found:,}; {remedy}"
        )
    largest = count(GPT2_CONFIGS["1558M"], 1024, 1)
    assert largest == 629_145_600, (
        f"GPT-2 XL's takes 629,145,600 bytes, not {largest:,}"
    )
    print("Right: GPT-2 XL keeps 600 MiB for each full window.")


def _half_window_reference(
    model: GPTModel, idx: torch.Tensor, new: int, size: int
) -> torch.Tensor:
    start = 0
    for _ in range(new):
        if idx.shape[1] - start > size:
            start = idx.shape[1] - size // 2
        logits = model(idx[:, start:])[:, -1]
        idx = torch.cat([idx, logits.argmax(-1, keepdim=True)], dim=1)
    return idx


@torch.no_grad()
def generate_half_window(generate: Callable[..., torch.Tensor]) -> None:
    """Exercise 5: the ids of a slow reference, with a fraction of the reading."""
    model = _tiny_model()
    generator = torch.Generator().manual_seed(5)
    for size, length, batch, new in ((16, 3, 1, 12), (16, 5, 2, 60), (9, 9, 1, 40)):
        prompt = torch.randint(50, (batch, length), generator=generator)
        wanted = _half_window_reference(model, prompt, new, size)
        read = []
        hook = model.tok_emb.register_forward_hook(
            lambda layer, inputs, output, read=read: read.append(output.shape[1])
        )
        try:
            found = generate(model, prompt, new, size)
        finally:
            hook.remove()
        require_answer(found, "generate_half_window")
        assert found.shape == wanted.shape, (
            f"a prompt of {length} and {new} new tokens make {tuple(wanted.shape)}, "
            f"not {tuple(found.shape)}"
        )
        different = (found != wanted).any(dim=0).nonzero()
        assert len(different) == 0, (
            f"window of {size}, prompt of {length}: token {int(different[0])} differs; "
            f"when {size} tokens have been read and one more must be, start an empty "
            f"cache with the last {size // 2} tokens, the newest among them"
        )
        most = length + new + (size // 2) * (1 + 2 * new // size)
        assert sum(read) <= most, (
            f"{sum(read)} tokens were read where about {most} are enough; between two "
            "fresh starts read only what the cache has not seen"
        )
    print("Right: the reference's ids, and each token read about twice at most.")


def parameter_count(count: Callable[[dict], int]) -> None:
    """Exercise 6: every variant of every size, and GPT-2 XL's known number."""
    require_answer(count(GPT_CONFIG_124M), "count_parameters")
    sizes = {
        "tiny": TINY,
        "wide": {**TINY, "emb_dim": 48, "n_heads": 3},
        **GPT2_CONFIGS,
    }
    for name, size in sizes.items():
        for bias in (False, True):
            for tied in (False, True):
                cfg = {**size, "qkv_bias": bias, "tie_weights": tied}
                with torch.device("meta"):
                    model = GPTModel(cfg)
                wanted = sum(p.numel() for p in model.parameters())
                found = count(cfg)
                assert found == wanted, (
                    f"{name}, qkv_bias {bias}, tie_weights {tied}: {wanted:,} are "
                    f"counted, you say {found:,}, a difference of {found - wanted:,}. "
                    f"For comparison: C = {cfg['emb_dim']}, V C = "
                    f"{cfg['vocab_size'] * cfg['emb_dim']:,}, n C = "
                    f"{cfg['n_layers'] * cfg['emb_dim']:,}"
                )
    book = {**GPT2_CONFIGS["1558M"], "qkv_bias": False}
    del book["tie_weights"]
    found = count(book)
    assert found == 1_637_792_000, (
        f"without the key tie_weights the head is not tied; then GPT-2 XL has "
        f"1,637,792,000 parameters, not {found:,}"
    )
    print(f"Right: {found:,} parameters in GPT-2 XL, and all other variants too.")
