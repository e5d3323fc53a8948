"""GPT-2 in plain functions of tensors, right, or wrong in one of the usual ways.

The tests compare your numbers with the right ones. If they differ, the tests make each
usual mistake on purpose, and tell you if one of them gives exactly your numbers.
"""

import math

import torch
import torch.nn.functional as F

# What each mistake is, as a sentence that ends "Your numbers are exactly those of ...".
OF_NORMS = {
    "norm over tokens": "a norm over the tokens of a text; each token has its own mean "
    "and variance, over the last axis",
    "norm over everything": "one mean and variance for the whole batch; each token has "
    "its own, over the last axis",
    "sample variance": "a variance divided by C - 1, as `var` does unless you say "
    "`unbiased=False`; GPT-2 divides by C",
    "deviation plus epsilon": "a division by the standard deviation plus epsilon; "
    "epsilon belongs under the root, added to the variance",
    "no epsilon": "a norm without epsilon under the root",
    "no mean": "a norm that does not subtract the mean (that is RMSNorm, chapter 8)",
    "no scale and shift": "a norm without its scale and shift",
    "no shift": "a norm without its shift",
}
OF_ATTENTION = {
    "no scaling": "scores that are not divided by the square root of the head's width",
    "scaled by the whole width": "scores divided by the square root of the whole width "
    "C; each head has its own product, over D = C / H numbers",
    "multiplied by the root": "scores multiplied by the square root of the head's "
    "width; divide by it",
    "no mask": "attention without a mask: every token sees the whole text",
    "mask one too late": "a mask that begins one place too late: every token sees the "
    "next one, which is the one to be guessed",
    "mask hides the token itself": "a mask that also hides each token from itself; the "
    "first token has nothing left to look at, so its weights are nan",
    "mask upside down": "a mask that hides the past and shows the future",
    "mask after softmax": "weights that are masked after the softmax, so that those of "
    "a token no longer add up to 1; mask the scores, with -inf",
    "softmax over queries": "a softmax over the queries' axis; the weights of one "
    "query, over the keys (the last axis), have to add up to 1",
    "softmax over heads": "a softmax over the heads' axis; it belongs over the keys, "
    "the last axis",
    "heads cut without a transpose": "heads cut by `view(B, H, T, D)`, which mixes "
    "tokens; cut into (B, T, H, D), and then swap T and H",
    "heads joined without a transpose": "heads joined without swapping H and T back, "
    "so a row holds pieces of several tokens",
    "heads joined in the wrong order": "heads interleaved, D before H; after the "
    "transpose a row is head 0, then head 1, ...",
    "no output projection": "attention without its last linear layer, `out_proj`",
    "queries and keys exchanged": "queries and keys in each other's place",
    "no bias": "queries, keys and values without the bias that `qkv_bias` asks for",
}
OF_BLOCKS = {
    "norm after": "a norm after each part, as in the first transformer; GPT-2 norms "
    "what a part reads, and leaves the stream alone",
    "norm in the shortcut": "a shortcut that starts behind the norm; it starts before "
    "it, so that x itself is added",
    "no shortcuts": "a block without its two shortcuts",
    "no shortcut of attention": "attention that replaces x, where it should be added "
    "to it",
    "no shortcut of the feed-forward network": "a feed-forward network that replaces "
    "x, where it should be added to it",
    "both read the same": "a feed-forward network that reads x as it was before "
    "attention",
    "first norm twice": "the first norm in both places; the feed-forward network has "
    "its own",
    "no norms": "a block without norms",
    "relu": "ReLU in place of GELU",
    "exact gelu": "the exact GELU; GPT-2 was trained with the tanh form, "
    '`approximate="tanh"`',
    "no nonlinearity": "a feed-forward network without a nonlinearity in between",
}
OF_MODELS = {
    "no positions": "a model without the embeddings of positions: it cannot tell one "
    "order of words from another",
    "positions from 1": "positions that begin at 1",
    "the same position for all": "position 0 for every token",
    "no final norm": "a model without the norm before the output head",
    "blocks in reverse": "blocks in the reverse order",
    "one block for all": "the first block in the place of every block",
    "head from the embedding": "the token embedding as output head (tied weights); "
    "these settings give the head a matrix of its own",
    "probabilities": "probabilities; the model returns logits, without a softmax",
}
MISTAKES = {**OF_NORMS, **OF_ATTENTION, **OF_BLOCKS, **OF_MODELS}


def part(weights, prefix):
    """The weights whose names begin with this, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): w for k, w in weights.items() if k.startswith(start)}


def linear(x, w, name, bias=True):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias") if bias else None)


def norm(x, w, mistake=None):
    """Layer norm with `scale` and `shift`: (..., C) -> (..., C)."""
    axes = {"norm over tokens": 1, "norm over everything": (0, 1, 2)}.get(mistake, -1)
    mean = 0 if mistake == "no mean" else x.mean(axes, keepdim=True)
    ddof = 1 if mistake in ("sample variance", "deviation plus epsilon") else 0
    variance = x.var(axes, correction=ddof, keepdim=True)
    if mistake == "no mean":
        variance = x.square().mean(-1, keepdim=True)
    if mistake == "deviation plus epsilon":
        y = (x - mean) / (variance.sqrt() + 1e-5)
    else:
        y = (x - mean) / (variance + 1e-5 * (mistake != "no epsilon")).sqrt()
    if mistake == "no scale and shift":
        return y
    return y * w["scale"] + w["shift"] * (mistake != "no shift")


def attention(x, w, heads, mistake=None):
    """Causal multi-head attention: (B, T, C) -> (B, T, C)."""
    B, T, C = x.shape
    D = C // heads
    bias = mistake != "no bias"
    rows = [linear(x, w, f"W_{kind}", bias) for kind in ("query", "key", "value")]
    if mistake == "heads cut without a transpose":
        q, k, v = (row.view(B, heads, T, D) for row in rows)
    else:
        q, k, v = (row.view(B, T, heads, D).transpose(1, 2) for row in rows)
    if mistake == "queries and keys exchanged":
        q, k = k, q
    divisor = {
        "no scaling": 1.0,
        "scaled by the whole width": math.sqrt(C),
        "multiplied by the root": 1 / math.sqrt(D),
    }.get(mistake, math.sqrt(D))
    scores = q @ k.transpose(2, 3) / divisor  # (B, H, T, T)
    hidden = torch.ones(T, T, dtype=torch.bool)
    hidden = {
        "no mask": torch.zeros_like(hidden),
        "mask one too late": hidden.triu(2),
        "mask hides the token itself": hidden.triu(0),
        "mask upside down": hidden.tril(-1),
    }.get(mistake, hidden.triu(1))
    axis = {"softmax over queries": -2, "softmax over heads": 1}.get(mistake, -1)
    if mistake == "mask after softmax":
        weights = scores.softmax(-1).masked_fill(hidden, 0.0)
    elif mistake == "softmax over heads":  # -inf in all heads would be nan
        weights = scores.masked_fill(hidden, -1e9).softmax(1).masked_fill(hidden, 0.0)
    else:
        weights = scores.masked_fill(hidden, -math.inf).softmax(axis)
    context = weights @ v  # (B, H, T, D)
    if mistake == "heads joined without a transpose":
        joined = context.reshape(B, T, C)
    elif mistake == "heads joined in the wrong order":
        joined = context.permute(0, 2, 3, 1).reshape(B, T, C)
    else:
        joined = context.transpose(1, 2).reshape(B, T, C)
    return (
        joined if mistake == "no output projection" else linear(joined, w, "out_proj")
    )


def feed_forward(x, w, mistake=None):
    hidden = linear(x, w, "layers.0")
    if mistake == "relu":
        hidden = hidden.relu()
    elif mistake != "no nonlinearity":
        form = "none" if mistake == "exact gelu" else "tanh"
        hidden = F.gelu(hidden, approximate=form)
    return linear(hidden, w, "layers.2")


def block(x, w, heads, mistake=None):
    """A transformer block: (B, T, C) -> (B, T, C)."""

    def norm1(x):
        return x if mistake == "no norms" else norm(x, part(w, "norm1"), mistake)

    def norm2(x):
        name = "norm1" if mistake == "first norm twice" else "norm2"
        return x if mistake == "no norms" else norm(x, part(w, name), mistake)

    def att(x):
        return attention(x, part(w, "att"), heads, mistake)

    def ff(x):
        return feed_forward(x, part(w, "ff"), mistake)

    if mistake == "norm after":
        x = norm1(x + att(x))
        return norm2(x + ff(x))
    if mistake == "norm in the shortcut":
        x = norm1(x)
        x = norm2(x + att(x))
        return x + ff(x)
    first, bare = x, ("no shortcuts", "no shortcut of attention")
    x = att(norm1(x)) + (0 if mistake in bare else x)
    bare = ("no shortcuts", "no shortcut of the feed-forward network")
    read = norm2(first if mistake == "both read the same" else x)
    return ff(read) + (0 if mistake in bare else x)


def model(ids, w, cfg, mistake=None):
    """The whole model: ids (B, T) -> logits (B, T, V)."""
    T = ids.shape[1]
    places = torch.arange(T) + (mistake == "positions from 1")
    if mistake == "the same position for all":
        places = torch.zeros(T, dtype=torch.long)
    x = w["tok_emb.weight"][ids]
    if mistake != "no positions":
        x = x + w["pos_emb.weight"][places]
    order = range(cfg["n_layers"])
    for n in reversed(order) if mistake == "blocks in reverse" else order:
        n = 0 if mistake == "one block for all" else n
        x = block(x, part(w, f"trf_blocks.{n}"), cfg["n_heads"], mistake)
    if mistake != "no final norm":
        x = norm(x, part(w, "final_norm"), mistake)
    tied = mistake == "head from the embedding"
    logits = x @ w["tok_emb.weight" if tied else "out_head.weight"].T
    return logits.softmax(-1) if mistake == "probabilities" else logits


def weights_of(cfg, seed=0):
    """Random numbers for every parameter of the model, none of them 0 or 1."""
    C, V, T = cfg["emb_dim"], cfg["vocab_size"], cfg["context_length"]
    shapes = {"tok_emb.weight": (V, C), "pos_emb.weight": (T, C)}
    for n in range(cfg["n_layers"]):
        start = f"trf_blocks.{n}."
        for name in ("query", "key", "value"):
            shapes[f"{start}att.W_{name}.weight"] = (C, C)
            if cfg["qkv_bias"]:
                shapes[f"{start}att.W_{name}.bias"] = (C,)
        shapes |= {
            f"{start}att.out_proj.weight": (C, C),
            f"{start}att.out_proj.bias": (C,),
        }
        shapes |= {f"{start}ff.layers.0.weight": (4 * C, C)}
        shapes |= {f"{start}ff.layers.0.bias": (4 * C,)}
        shapes |= {f"{start}ff.layers.2.weight": (C, 4 * C)}
        shapes |= {f"{start}ff.layers.2.bias": (C,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{start}{name}.{k}": (C,) for k in ("scale", "shift")}
    shapes |= {"final_norm.scale": (C,), "final_norm.shift": (C,)}
    shapes["out_head.weight"] = (V, C)
    generator = torch.Generator().manual_seed(seed)
    drawn = {k: torch.randn(s, generator=generator) for k, s in shapes.items()}
    return {k: w * 0.3 + k.endswith("scale") for k, w in drawn.items()}
