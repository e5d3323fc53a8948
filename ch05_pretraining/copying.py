"""Does a model look back at what stands before? Measurements, and a guide towards it.

The long run of chapter 5 is watched with them; `long_run.ipynb` explains them.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from shared import ladder
from shared.ch03 import attention_weights
from shared.ch04 import GPTModel
from shared.village import Tale


def random_text_twice(
    count: int, length: int, vocab_size: int, seed: int = 123
) -> torch.Tensor:
    """Random tokens, and the same tokens again: ids (count, 2 * length).

    Nothing but the first half helps to predict the second, and that helps perfectly.
    """
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(vocab_size, (count, length), generator=generator)
    return torch.cat([text, text], dim=1)


@torch.no_grad()
def repeat_losses(model: GPTModel, ids: torch.Tensor) -> tuple[float, float]:
    """Mean loss per token, in nats, on the first and on the second half of a repeat.

    The first token of each half is left out: nothing announces it.

    Args:
        model: in eval mode.
        ids: from `random_text_twice`, (B, 2 * length).
    """
    logits = model(ids[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    length = ids.shape[1] // 2
    return losses[:, : length - 1].mean().item(), losses[:, length:].mean().item()


def attention_inputs(model: GPTModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """What the attention layer of each block reads, (B, T, C), for ids (B, T)."""
    inputs = []
    hooks = [
        block.att.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        for block in model.trf_blocks
    ]
    try:
        model.features(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def all_attention_weights(model: GPTModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """The attention weights of each block, (B, H, T, T), for ids (B, T)."""
    inputs = attention_inputs(model, ids)
    return [
        attention_weights(block.att, x)
        for block, x in zip(model.trf_blocks, inputs, strict=True)
    ]


@torch.no_grad()
def induction_scores(model: GPTModel, ids: torch.Tensor) -> torch.Tensor:
    """How much each head attends to what followed the last time: (n_layers, H).

    At a token of the second half, that is the token after its first appearance. The
    score is the mean of the attention that it gets: 1 if the head attends to nothing
    else.

    Source: Olsson et al. (2022), In-context Learning and Induction Heads.

    Args:
        model: in eval mode.
        ids: from `random_text_twice`, (B, 2 * length).
    """
    length = ids.shape[1] // 2
    scores = [
        # query t, key t - L + 1; of the queries those of the second half
        weights.diagonal(1 - length, dim1=2, dim2=3)[..., 1:].mean(dim=(0, 2))
        for weights in all_attention_weights(model, ids)
    ]
    return torch.stack(scores)


@torch.no_grad()
def previous_token_scores(model: GPTModel, ids: torch.Tensor) -> torch.Tensor:
    """How much each head attends to the token before: (n_layers, H).

    The score is the mean of the attention that token t - 1 gets from token t.

    Args:
        model: in eval mode.
        ids: any texts, (B, T).
    """
    scores = [
        weights.diagonal(-1, dim1=2, dim2=3).mean(dim=(0, 2))
        for weights in all_attention_weights(model, ids)
    ]
    return torch.stack(scores)


@torch.no_grad()
def look_back_scores(
    model: GPTModel,
    tokenizer,
    tales: Iterable[Tale],
    kinds: Sequence[str] = ladder.KINDS,
) -> torch.Tensor:
    """How much each head attends to the word that comes back next: (n_layers, H).

    Wherever a word comes back in a tale, this is the attention that goes to the places
    where the first token of that word stood before; the score is the mean.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        tales: of the village, each short enough for the model.
        kinds: which marks count: who, what, where, whose.

    Raises:
        ValueError: if no word of these kinds comes back.
    """
    end, found = ladder.end_of(tokenizer), []
    for tale in tales:
        ids, marks = ladder.encode_tale(tokenizer, tale)
        ids = torch.tensor([end, *ids])  # (T,)
        weights = torch.stack(all_attention_weights(model, ids[None]))[:, 0]
        for kind, t in marks:  # token t predicts the next one, with which a word begins
            before = ids[: t + 1] == ids[t + 1]
            if kind in kinds and before.any():
                found.append(weights[:, :, t, : t + 1][..., before].sum(dim=-1))
    if not found:
        raise ValueError(
            f"no word of the kinds {', '.join(kinds)} comes back; give more tales"
        )
    return torch.stack(found).mean(dim=0)


def about_somebody_else(
    tokenizer, tales: Iterable[Tale], stranger: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Beginnings of tales up to where a name comes back, and the same of a stranger.

    Each pair of ids, (T + 1,) both, ends with the name that comes back and with the
    stranger's. Tales of the stranger are left out, and so are names of several tokens.

    Raises:
        ValueError: if the stranger's name is no single token.
    """
    end, new = ladder.end_of(tokenizer), tokenizer.encode(" " + stranger)
    if len(new) != 1:
        raise ValueError(f"{stranger!r} is {len(new)} tokens; give a name that is one")
    for tale in tales:
        if stranger in tale.text:
            continue
        ids, marks = ladder.encode_tale(tokenizer, tale)
        ids = torch.tensor([end, *ids])
        places = sorted(tale.marks, key=lambda mark: mark[1])
        for (_, t), (_, start, stop) in zip(marks, places, strict=True):
            name = tale.text[start:stop]
            is_token = tokenizer.encode(" " + name) == [ids[t + 1].item()]
            if name[0].isupper() and is_token and (ids[: t + 1] == ids[t + 1]).any():
                text = ids[: t + 2]
                yield text, text.masked_fill(text == text[-1], new[0])


PROMPTS = (
    "My dog is called {0}. A man asked what my dog is called. My dog is called",
    "The word is {0}. Please repeat the word. The word is",
    "She comes from {0}. Where does she come from? She comes from",
    "A: Our code is {0}.\nB: What is our code?\nA: Our code is",
)


@torch.no_grad()
def asked_for_words(
    model: GPTModel, tokenizer, words: Sequence[str], prompts: Sequence[str] = PROMPTS
) -> list[bool]:
    """Whether the model's likeliest next token is the word that each prompt asks for.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        words: of one token each, with the space before them; every one is put into
            every prompt.
        prompts: texts with one gap `{0}`, after which its word comes next.
    """
    right, device = [], next(model.parameters()).device
    for prompt in prompts:
        for word in words:
            ids = tokenizer.encode(prompt.format(word.strip()))
            guess = model(torch.tensor([ids], device=device))[0, -1].argmax().item()
            right.append(guess == tokenizer.encode(word)[0])
    return right


GUIDE_WEIGHT = 0.1  # of the guide's loss, beside the model's


class Guide:
    """Shows three heads where to look: what copying needs, and chance finds late.

    One head learns to attend to the token before. Then each position knows which token
    it follows, and two other heads learn to look for a position that follows the
    current token: the one that comes next, if the text repeats itself. They also learn
    to copy what they find: what they add, read by the output head, should name it.

    Source: Deshpande and Narasimhan (2020), Guiding Attention for Self-Supervised
    Learning with Transformers; Olsson et al. (2022), In-context Learning and Induction
    Heads, for the two kinds of heads.

    Args:
        gpt: the model. The first kind is the first head of the second block, the others
            are the first heads of the two blocks above the middle.
    """

    def __init__(self, gpt: GPTModel):
        top = len(gpt.trf_blocks) - 1
        self.gpt, self.inputs = gpt, {}
        self.before = min(1, top)
        self.match = sorted({(top + 1) // 2, min((top + 1) // 2 + 1, top)})
        for i in {self.before, *self.match}:
            gpt.trf_blocks[i].register_forward_pre_hook(self._keep(i))

    def _keep(self, i: int):
        def keep(block, given):
            self.inputs[i] = given[0]

        return keep

    def _read(self, i: int) -> torch.Tensor:
        """What a block's attention reads, (B, T, C)."""
        return self.gpt.trf_blocks[i].norm1(self.inputs[i])

    def log_attention(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Logarithm of what a block's first head gives to each token, (B, T, T)."""
        att = self.gpt.trf_blocks[i].att
        queries, keys = (
            first_head(layer, x, att.head_dim) for layer in (att.W_query, att.W_key)
        )
        scores = queries @ keys.transpose(1, 2) / att.head_dim**0.5
        future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -torch.inf).log_softmax(dim=-1)

    def added(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """What a block's first head adds for a token that it looks at, (B, T, C)."""
        att = self.gpt.trf_blocks[i].att
        values = first_head(att.W_value, x, att.head_dim)
        return F.linear(values, att.out_proj.weight[:, : att.head_dim])

    def loss(
        self, ids: torch.Tensor, rows: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """How little the heads do what they should, in the last forward pass.

        Args:
            ids: what the model read, (B, T).
            rows: rows of the output head, (N, C).
            places: which of them belongs to the *next* token, (B, T).
        """
        before = self.log_attention(self.before, self._read(self.before))
        total = -before.diagonal(-1, 1, 2).mean()
        followed = follows_the_same(ids)
        known = followed.any(dim=-1)
        for i in self.match:
            x = self._read(i)
            weights = self.log_attention(i, x)[known]
            found = weights.masked_fill(~followed[known], -torch.inf).logsumexp(dim=-1)
            total = total - found.sum() / known.sum().clamp(min=1)
            said = self.gpt.final_norm(self.added(i, x)[:, 1:][:, ::4]) @ rows.t()
            names = places[:, :-1][:, ::4]  # the next token of t is the token at t + 1
            total = total + F.cross_entropy(said.flatten(0, 1), names.flatten())
        self.inputs.clear()
        return total


def first_head(layer: nn.Linear, x: torch.Tensor, D: int) -> torch.Tensor:
    """A projection's output for the first head alone, (B, T, D)."""
    return F.linear(x, layer.weight[:D], None if layer.bias is None else layer.bias[:D])


def follows_the_same(ids: torch.Tensor) -> torch.Tensor:
    """Where each token's likes were followed: (B, T) -> (B, T, T).

    True at [t, k], k <= t, if token k - 1 is the same as token t.
    """
    B, T = ids.shape
    result = torch.zeros(B, T, T, dtype=torch.bool, device=ids.device)
    result[:, :, 1:] = ids[:, :, None] == ids[:, None, :-1]
    return result.tril()
