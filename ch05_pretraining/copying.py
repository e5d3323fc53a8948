"""Does a model copy what stands before? Three measurements, from a repeat to a head.

The long run of chapter 5 is watched with them; `long_run.ipynb` explains them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from shared.ch03 import attention_weights
from shared.ch04 import GPTModel


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


@torch.no_grad()
def induction_scores(model: GPTModel, ids: torch.Tensor) -> torch.Tensor:
    """How much each head attends to what followed the last time: (n_layers, H).

    At a token of the second half, that is the token after its first appearance. The
    score is the mean of the attention it gets: 1 for a head that looks nowhere else.

    Source: Olsson et al. (2022), In-context Learning and Induction Heads.

    Args:
        model: in eval mode.
        ids: from `random_text_twice`, (B, 2 * length).
    """
    inputs, length = [], ids.shape[1] // 2
    hooks = [
        block.att.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        for block in model.trf_blocks
    ]
    try:
        model.features(ids)
    finally:
        for hook in hooks:
            hook.remove()
    scores = []
    for block, x in zip(model.trf_blocks, inputs, strict=True):
        weights = attention_weights(block.att, x)  # (B, H, 2L, 2L)
        followers = weights.diagonal(1 - length, dim1=2, dim2=3)  # query t, key t-L+1
        scores.append(followers[..., 1:].mean(dim=(0, 2)))  # the queries of half two
    return torch.stack(scores)


PROMPTS = (
    'The teacher said: "The word for today is {0}." The children wrote down the word',
    "My dog is called {0}. Yesterday I went for a walk with my dog",
    "{0} is a town by the sea. Every summer many people come to",
    "A: Which word shall I write?\nB: Please write {0}.\nA: So I write the word",
)


@torch.no_grad()
def asked_for_words(
    model: GPTModel, tokenizer, words: Sequence[str], prompts: Sequence[str] = PROMPTS
) -> list[bool]:
    """Whether the model's likeliest next token is the word that each prompt asks for.

    Args:
        model: in eval mode.
        tokenizer: GPT-2's.
        words: of one token each, with the blank before them; every one is put into
            every prompt.
        prompts: texts with one gap `{0}`, after which its word comes next.
    """
    right = []
    for prompt in prompts:
        for word in words:
            ids = tokenizer.encode(prompt.format(word.strip()))
            guess = model(torch.tensor([ids]))[0, -1].argmax().item()
            right.append(guess == tokenizer.encode(word)[0])
    return right
