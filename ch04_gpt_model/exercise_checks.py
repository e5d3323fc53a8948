"""Checks for the exercises of chapter 4: each says what is wrong, with a hint why."""

import copy
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F

from shared.ch04 import GPT2_CONFIGS, GPTModel, generate_text_simple
from shared.ch05 import load_base, load_base_tokenizer
from shared.exercises import checked, close, number, one_of, tensor

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


@checked("4.1", wants="a tensor of the same shape as x")
def rms_norm(norm: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """The same as `F.rms_norm`, on vectors of any scale and with any axes before."""
    generator = torch.Generator().manual_seed(1)
    x = 3 + 5 * torch.randn(2, 4, 8, generator=generator)
    scale = torch.rand(8, generator=generator) + 0.5
    norm.hint = (
        "a mean without its axis no longer fits to x; keepdim=True keeps the axis that "
        "the mean is taken over"
    )
    found = tensor(norm(x, scale), 2, 4, 8)
    assert not close(found, scale * F.layer_norm(x, (8,)), atol=1e-3), (
        "that is layer normalisation; RMSNorm does not subtract the mean"
    )
    assert not close(found, F.rms_norm(x, (8,), eps=1e-5), atol=1e-4), (
        "every channel still has to be multiplied by its `scale`"
    )
    wanted = F.rms_norm(x, (8,), scale, eps=1e-5)
    assert close(found, wanted, atol=1e-4), (
        f"the first vector should begin with {_rounded(wanted[0, 0, :4])}, not "
        f"{_rounded(found[0, 0, :4])}; divide by the root of the mean (not the "
        "sum) of the squares of its C numbers, over the last axis"
    )
    one = x[0, 0]
    assert close(tensor(norm(one, scale), 8), wanted[0, 0], atol=1e-4), (
        "right for (2, 4, 8), but not for a single vector (8,): mean over dim=-1"
    )
    zeros = tensor(norm(torch.zeros(1, 8), scale), 1, 8)
    assert not zeros.isnan().any(), (
        "a vector of zeros gives nan: add eps below the root"
    )
    tiny = tensor(norm(1e-3 * x, scale), 2, 4, 8)
    assert close(tiny, F.rms_norm(1e-3 * x, (8,), scale, 1e-5), atol=1e-3), (
        "vectors a thousand times smaller come out wrong: eps belongs to the mean "
        "square, before the root is taken"
    )
    print("Right: equal to F.rms_norm.")


@checked("4.2", wants="a tensor of the same shape as z")
def gelu_slope(slope: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The derivative of the exact GELU, as autograd finds it."""
    z = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(F.gelu(z).sum(), z)
    z = z.detach()
    found = tensor(slope(z), 101)
    density = torch.exp(-(z**2) / 2)
    cumulative = (1 + torch.erf(z / 2**0.5)) / 2
    assert not close(found, cumulative), (
        "that is the first half of the product rule; Phi depends on z too"
    )
    assert not close(found, cumulative + z * density), (
        "the normal density has a factor 1 / sqrt(2 pi) before the exponential"
    )
    worst = (found - wanted).abs().argmax()
    assert close(found, wanted), (
        f"at z = {z[worst]:.1f} autograd finds {wanted[worst]:.4f}, you "
        f"{found[worst]:.4f}; the derivative of Phi is the normal density"
    )
    print("Right: equal to autograd's on 101 points.")


def _shares(model: GPTModel, ids: torch.Tensor, token_id: int) -> dict:
    """The right shares, and what some mistakes would give, by name."""
    x = model.tok_emb(ids) + model.pos_emb(torch.arange(ids.shape[1]))
    added = [x]
    for block in model.trf_blocks:
        for norm, part in ((block.norm1, block.att), (block.norm2, block.ff)):
            added.append(part(norm(x)))
            x = x + added[-1]
    terms, norm = torch.cat(added)[:, -1], model.final_norm  # (1 + 2n, C)
    size = torch.sqrt(x[0, -1].var(unbiased=False) + norm.eps)
    weight = model.out_head.weight[token_id]
    row, centred = norm.scale * weight / size, terms - terms.mean(-1, keepdim=True)
    own = torch.sqrt(terms.var(-1, unbiased=False, keepdim=True) + norm.eps)
    return {
        "right": centred @ row,
        "the stream up to each part, not what each part adds": centred.cumsum(0) @ row,
        "shares of which each was divided by its own size": (centred / own)
        @ row
        * size,
        "shares without the learned factors `final_norm.scale`": centred
        @ weight
        / size,
        "shares that were not divided by the size of the stream": centred @ row * size,
        "shares from which no mean was subtracted": terms @ row,
        "shares of the first token's stream": torch.cat(added)[:, 0] @ row,
    }


@checked("4.3", wants="a tensor of 1 + 2n numbers")
@torch.no_grad()
def shares(find: Callable) -> None:
    """The shares add up to the logit, on small models; then a look into the base."""
    generator = torch.Generator().manual_seed(3)
    for n_layers, T in ((3, 9), (2, 5)):
        model = _tiny_model(n_layers=n_layers)
        norm = model.final_norm
        norm.scale += 0.5 * torch.rand(norm.scale.shape, generator=generator)
        norm.shift += torch.randn(norm.shift.shape, generator=generator)
        ids = torch.randint(50, (1, T), generator=generator)
        known = _shares(model, ids, 7)
        found = tensor(find(model, ids, 7), 1 + 2 * n_layers)
        for mistake, numbers in list(known.items())[1:]:
            assert not close(found, numbers, atol=1e-3), f"these are {mistake}"
        logit = model(ids)[0, -1, 7].item()
        total = (known["right"].sum() - found.sum()).abs().item()
        assert total < 1e-3, (
            f"with the constant, your shares add up to {logit - total:.3f} or "
            f"{logit + total:.3f}, and the logit is {logit:.3f}"
        )
        assert close(found, known["right"], atol=1e-3), (
            f"the sum is right, but the first share should be {known['right'][0]:.3f}, "
            f"not {found[0]:.3f}; the order is embeddings, attention 1, network 1, ..."
        )
    base, tokenizer = load_base(), load_base_tokenizer()
    text = "Tom had a red ball. He kicked the"
    ids = torch.tensor([tokenizer.encode(text)])
    found = find(base, ids, tokenizer.encode(" ball")[0])
    names = [f"{part} {n}" for n in range(1, 9) for part in ("attention", "network")]
    best = found[1:].topk(3)
    pushed = [
        f"{names[i]} ({share:+.1f})"
        for i, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    print(f"{text} ... ball: most of it by {', '.join(pushed)}")
    print("Right: the shares add up to the logit.")


BEGINNINGS = ("Once upon a time", "One day Tim went", "Lily and her mom were at home.")


@checked("4.4", wants="the changed model")
@torch.no_grad()
def obsessed(change: Callable, favourite: Callable) -> None:
    """The word comes where the base does not use it, and the text stays readable."""
    tokenizer, base = load_base_tokenizer(), load_base()
    favourite.wants = 'a word as a text, such as " dog"'
    word = favourite()
    if not isinstance(word, str):
        raise TypeError(f"no text: {word!r}")
    token = tokenizer.encode(word)
    assert len(token) == 1, (
        f"the base knows {word!r} as {len(token)} tokens; choose a more common word, "
        "with a space before it"
    )
    model = change(load_base(), token[0])
    if not isinstance(model, torch.nn.Module):
        raise TypeError("no model")
    counted, losses, stories = 0, [], []
    for text in BEGINNINGS:
        ids = torch.tensor([[base.cfg["vocab_size"] - 1, *tokenizer.encode(text)]])
        begun = ids.shape[1]
        try:
            told = generate_text_simple(model.eval(), ids, 30, 512)
        except Exception as error:
            raised = f"{type(error).__name__} ({error})"
            raise AssertionError(
                f"when your model writes, it raises {raised}"
            ) from error
        usual = generate_text_simple(base, ids, 30, 512, use_cache=True)
        counted += token[0] in told[0, begun:] and token[0] not in usual[0, begun:]
        logits = base(told[:, :-1])[0, begun - 1 :]
        losses.append(F.cross_entropy(logits, told[0, begun:]).item())
        stories.append(" ".join(tokenizer.decode(told[0, 1:].tolist()).split()))
    loss = sum(losses) / len(losses)
    assert loss < 2, (
        f"the base finds your stories strange (a loss of {loss:.1f}, where 2 is the "
        f"limit): {stories[0][-60:]!r}; push less, or at another block"
    )
    assert counted >= 2, (
        f"{word!r} came in {counted} of {len(BEGINNINGS)} stories where the base had "
        f"not used it anyway: {stories[0][-60:]!r}; push more, or at another block"
    )
    print(*stories, sep="\n")
    print(f"Right: {word!r} in {counted} of 3 stories, with a loss of {loss:.1f}.")


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


@checked("4.5", wants="a tensor (B, T + max_new_tokens) of ids")
@torch.no_grad()
def generate_half_window(generate: Callable[..., torch.Tensor]) -> None:
    """The ids of a slow reference, with a fraction of the reading."""
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
        found = tensor(found, *wanted.shape)
        different = (found != wanted).any(dim=0).nonzero()
        assert len(different) == 0, (
            f"window of {size}, prompt of {length}: token {int(different[0])} differs; "
            f"when {size} tokens have been read and one more has to be, start an empty "
            f"cache with the last {size // 2} tokens, including the newest"
        )
        most = length + new + (size // 2) * (1 + 2 * new // size)
        assert sum(read) <= most, (
            f"{sum(read)} tokens were read where about {most} are enough; between two "
            "fresh starts read only what the cache has not seen"
        )
    print("Right: the reference's ids, and each token read about twice at most.")


PUBLISHED = {  # parameters of OpenAI's models
    "124M": 124_439_808,
    "355M": 354_823_168,
    "774M": 774_030_080,
    "1558M": 1_557_611_200,
}


@checked("4.6", wants="one whole number")
def count_parameters(count: Callable[[dict], int]) -> None:
    """Every variant of every size, and GPT-2 XL's known number."""
    sizes = {"tiny": TINY, "wide": {**TINY, "emb_dim": 48, "n_heads": 3}}
    for (name, size), bias, tied in product(
        sizes.items(), (False, True), (False, True)
    ):
        cfg = {**size, "qkv_bias": bias, "tie_weights": tied}
        wanted = sum(p.numel() for p in GPTModel(cfg).parameters())
        found = number(count(dict(cfg)))
        assert found == wanted, (
            f"{name}, qkv_bias {bias}, tie_weights {tied}: {wanted:,} are counted, you "
            f"say {found:,}, a difference of {found - wanted:,}; for comparison: C = "
            f"{cfg['emb_dim']}, V C = {cfg['vocab_size'] * cfg['emb_dim']:,}, n C = "
            f"{cfg['n_layers'] * cfg['emb_dim']:,}"
        )
    for name, wanted in PUBLISHED.items():
        found = number(count(dict(GPT2_CONFIGS[name])))
        assert found == wanted, f"GPT-2 {name} has {wanted:,}, you say {found:,}"
    book = {**GPT2_CONFIGS["1558M"], "qkv_bias": False}
    del book["tie_weights"]
    count.hint = "a config without the key tie_weights is that of an untied model"
    found = number(count(book))
    assert found == 1_637_792_000, (
        f"without the key tie_weights the head is not tied; then GPT-2 XL has "
        f"1,637,792,000 parameters, not {found:,}"
    )
    print(f"Right: {found:,} parameters in GPT-2 XL, and all other variants too.")


def swap_neurons(model: GPTModel) -> None:
    """Swap neurons 3 and 7 of the first feed-forward network."""
    first, _, second = model.trf_blocks[0].ff.layers
    order = list(range(first.weight.shape[0]))
    order[3], order[7] = 7, 3
    first.weight.data, first.bias.data = first.weight[order], first.bias[order]
    second.weight.data = second.weight[:, order]


def swap_heads(model: GPTModel) -> None:
    """Swap heads 0 and 1 of the first attention layer, in its output too."""
    att, D = model.trf_blocks[0].att, model.cfg["emb_dim"] // model.cfg["n_heads"]
    order = [*range(D, 2 * D), *range(D), *range(2 * D, model.cfg["emb_dim"])]
    for layer in (att.W_query, att.W_key, att.W_value):
        layer.weight.data = layer.weight[order]
    att.out_proj.weight.data = att.out_proj.weight[:, order]


def swap_blocks(model: GPTModel) -> None:
    """Swap the first two blocks."""
    blocks = model.trf_blocks
    blocks[0], blocks[1] = blocks[1], blocks[0]


def swap_queries_and_keys(model: GPTModel) -> None:
    """Swap the matrices of queries and keys in the first attention layer."""
    att = model.trf_blocks[0].att
    att.W_query, att.W_key = att.W_key, att.W_query


SURGERIES = {
    "two neurons": swap_neurons,
    "two heads": swap_heads,
    "two blocks": swap_blocks,
    "queries and keys": swap_queries_and_keys,
}


@checked("4.7", wants="one number")
def largest_change(measure: Callable, predicted: Callable) -> None:
    """The model must stay as it is, and every logit counts; predictions are free."""
    model, generator = _tiny_model(), torch.Generator().manual_seed(7)
    texts = [torch.randint(50, (2, 6), generator=generator) for _ in range(4)]
    predicted.wants = '"same" or "other" for each name in SURGERIES, a dictionary'
    guesses = predicted()
    if set(guesses) != set(SURGERIES):
        raise TypeError(f"predictions for {set(guesses)}")
    for name in SURGERIES:
        one_of(guesses[name], ["same", "other"])
    before = copy.deepcopy(model.state_dict())
    lines = ["what is swapped      predicted  largest change of a logit"]
    for (name, surgery), ids in product(SURGERIES.items(), texts):
        found = number(measure(model, surgery, ids))
        kept = all(torch.equal(a, before[n]) for n, a in model.state_dict().items())
        assert kept, (
            f"after measuring {name!r} the model itself was changed, so that the next "
            "measurement would start from it; change copy.deepcopy(model) instead"
        )
        changed = copy.deepcopy(model)
        with torch.no_grad():
            surgery(changed)
            wanted = (changed(ids) - model(ids)).abs().max().item()
        assert abs(found - wanted) < 1e-3, (
            f"{name!r}: the largest change is {wanted:.3f}, not {found:.3f}; compare "
            "the logits of all tokens, and take absolute values before the maximum"
        )
        if ids is texts[0]:
            lines.append(f"{name:19}  {guesses[name]:9}  {abs(found):.3f}")
    print(*lines, sep="\n")
    print("Right: two of the four swaps make no difference.")
