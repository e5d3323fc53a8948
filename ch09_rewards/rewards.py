"""Chapter 9: Rewards and preferences.

You will let a model learn from what was *judged better*: a rule scores its stories, and
four methods use the scores. You will also see how a model cheats a rule, and what it
forgets.

Exported from rewards.ipynb and deeper.ipynb, which explain every line: change it there,
then run `python -m tools.export`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from ch09_rewards.guards import (
    as_rewards,
    check_answers,
    check_beta,
    check_drawing,
    check_group,
    check_learner,
    check_pairs,
    check_reference,
    check_some,
    check_words,
)
from shared.ch04 import GPTModel, next_token_logits
from shared.ch05 import evaluating
from shared.ch06 import let_rate_fall
from shared.ch07 import fours_in, has_ending, repeated_fours, uses_word

__all__ = [
    "request",
    "LONGEST",
    "TEMPERATURE",
    "Story",
    "tell_stories",
    "token_log_probs",
    "SHORTEST",
    "LEAST_FLUENT",
    "rate_stories",
    "learn",
    "pick_best",
    "train_on_best",
    "dpo_loss",
    "make_pairs",
    "train_dpo",
    "group_advantages",
    "grpo_loss",
    "learn_from_draw",
    "train_grpo",
    "draw_tokens",
    "draw_answers",
    "pad_stories",
    "fixed_log_probs",
    "learner",
    "make_optimizer",
    "kl_to_reference",
]


def request(words: Sequence[str]) -> str:
    """A request for a story, in a wording that the base has read before stories."""
    check_words(words)
    first, second, third = words
    return f"Write a story with the words {first}, {second} and {third}.\n\n"


LONGEST = 128  # tokens that a story may have, with its end


TEMPERATURE = 0.7  # at which stories are drawn


@dataclass(frozen=True)
class Story:
    """What a model told when it was asked for some words."""

    words: tuple[str, ...]  # that were asked for
    prompt: list[int]
    answer: list[int]  # with the end token, unless the story was cut off
    text: str
    ended: bool


def tell_stories(
    model: GPTModel,
    tokenizer,
    requests: Sequence[tuple[str, ...]],
    each: int = 1,
    generator: torch.Generator | None = None,
) -> list[Story]:
    """Stories for each request, `each` of them one after the other."""
    check_some("requests", requests)
    asked, end = [words for words in requests for _ in range(each)], tokenizer.eot_token
    prompts = [tokenizer.encode_ordinary(request(words)) for words in asked]
    drawn = draw_answers(model, prompts, LONGEST, end, TEMPERATURE, generator)
    stories = []
    for words, prompt, answer in zip(asked, prompts, drawn, strict=True):
        ended = answer[-1] == end
        text = tokenizer.decode(answer[:-1] if ended else answer).strip()
        stories.append(Story(words, prompt, answer, text, ended))
    return stories


def token_log_probs(
    model: GPTModel,
    ids: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """ln p of each target under a model (B, T); 0 where the target is -100."""
    counts = targets != -100  # (B, T), of which n count
    logits = model.out_head(model.features(ids)[counts]).float()  # (n, V)
    losses = F.cross_entropy(logits / temperature, targets[counts], reduction="none")
    return torch.zeros(targets.shape, device=ids.device).masked_scatter(counts, -losses)


SHORTEST = 40  # words of a whole story


LEAST_FLUENT = -1.5  # mean ln p of a token, under the base


def rate_stories(stories: Sequence[Story], reference: GPTModel) -> pd.DataFrame:
    """The parts of each story's reward, and the reward; the reference judges fluency.

    `words` is the share of the requested words that are there, in any form. `whole` is
    1 if the story ends by itself, with a sentence, after `SHORTEST` words or more.
    `repeats` is the share of its runs of four words that were there before.
    """
    ids, targets = pad_stories(stories, next(reference.parameters()).device)
    log_probs = fixed_log_probs(reference, ids, targets, temperature=1.0)
    fluency = log_probs.sum(-1) / (targets != -100).sum(-1)  # (B,)
    rows = []
    for story, fluent in zip(stories, fluency.tolist(), strict=True):
        words = [uses_word(word, story.text) for word in story.words]
        long_enough = len(story.text.split()) >= SHORTEST
        whole = story.ended and has_ending(story.text) and long_enough
        repeats = repeated_fours(story.text) / max(len(fours_in(story.text)), 1)
        row = {"words": sum(words) / len(words), "whole": float(whole)}
        rows.append(row | {"repeats": repeats, "fluency": fluent})
    rated = pd.DataFrame(rows)
    lacking = (LEAST_FLUENT - rated["fluency"]).clip(lower=0)
    rated["reward"] = rated["words"] ** 2 - (1 - rated["whole"]) / 4  # eq. 9.1
    rated["reward"] -= rated["repeats"] + lacking
    return rated


def learn(
    optimizer: torch.optim.Optimizer,
    examples: Sequence,
    loss_of: Callable[[list], torch.Tensor],
    batch_size: int,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Go once through examples in random order, a step a batch; the loss of each."""
    losses = []
    for batch in torch.randperm(len(examples), generator=generator).split(batch_size):
        loss = loss_of([examples[i] for i in batch.tolist()])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def pick_best(stories: Sequence[Story], rewards: torch.Tensor) -> list[Story]:
    """The best story for each request; none where all are worth the same.

    `rewards` (requests, group) are those of the stories, in the same order.
    """
    check_group(rewards)
    group, best = rewards.shape[1], []
    for i, row in enumerate(rewards):
        if row.max() > row.min():
            best.append(stories[i * group + row.argmax().item()])
    return best


def train_on_best(
    model: GPTModel,
    stories: Sequence[Story],
    learning_rate: float,
    batch_size: int = 8,
    num_epochs: int = 2,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Rejection sampling's second half: finetune on chosen stories; losses of steps."""
    check_some("stories", stories)
    check_learner(model)
    device = next(model.parameters()).device

    def loss_of(batch: list[Story]) -> torch.Tensor:
        ids, targets = pad_stories(batch, device)
        log_probs = token_log_probs(model, ids, targets)  # (B, T)
        return -log_probs.sum() / (targets != -100).sum()  # eq. 7.1

    steps = num_epochs * -(-len(stories) // batch_size)
    optimizer, losses = make_optimizer(model, learning_rate, steps), []
    for _ in range(num_epochs):
        losses += learn(optimizer, stories, loss_of, batch_size, generator)
    return losses


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """DPO's mean loss, and the implicit rewards (B,) of chosen and rejected answers.

    Each argument is ln of the probability of whole answers (B,).

    Source: Rafailov et al. (2023), equation 7.
    """
    check_beta(beta)
    chosen_rewards = beta * (chosen - reference_chosen)
    rejected_rewards = beta * (rejected - reference_rejected)
    loss = -F.logsigmoid(chosen_rewards - rejected_rewards).mean()  # eq. 9.5
    return loss, chosen_rewards.detach(), rejected_rewards.detach()


def make_pairs(
    stories: Sequence[Story], rewards: torch.Tensor, least: float = 0.05
) -> list[tuple[Story, Story]]:
    """Pairs (better, worse) of each group: best and worst, second best and ...

    They differ by `least` or more, and each story is in one pair at most.
    """
    check_group(rewards)
    group, pairs = rewards.shape[1], []
    for i, row in enumerate(rewards):
        order = row.argsort(descending=True, stable=True).tolist()
        for better, worse in zip(order[: group // 2], reversed(order), strict=False):
            if row[better] - row[worse] >= least:
                pairs.append((stories[i * group + better], stories[i * group + worse]))
    return pairs


def train_dpo(
    model: GPTModel,
    reference: GPTModel,
    pairs: Sequence[tuple[Story, Story]],
    beta: float,
    learning_rate: float,
    batch_size: int = 8,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Go once through pairs (better, worse); loss and implicit rewards of each step."""
    check_reference(model, reference)
    check_pairs([(better.answer, worse.answer) for better, worse in pairs])
    device, rows = next(model.parameters()).device, []

    def loss_of(batch: list[tuple[Story, Story]]) -> torch.Tensor:
        better, worse = zip(*batch, strict=True)
        ids, targets = pad_stories([*better, *worse], device)
        new = token_log_probs(model, ids, targets).sum(-1)  # (2 B,)
        known = fixed_log_probs(reference, ids, targets).sum(-1)
        loss, won, lost = dpo_loss(*new.chunk(2), *known.chunk(2), beta)
        row = {"loss": loss.item(), "chosen": won.mean().item()}
        rows.append(row | {"rejected": lost.mean().item()})
        return loss

    optimizer = make_optimizer(model, learning_rate, -(-len(pairs) // batch_size))
    learn(optimizer, pairs, loss_of, batch_size, generator)
    return pd.DataFrame(rows)


def group_advantages(rewards: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """How much better each story is than its group's mean, in deviations: (P, G).

    Where all of a group are worth the same, each advantage is 0.

    Source: Shao et al. (2024), section 4.1.2.
    """
    check_group(rewards)
    mean = rewards.mean(1, keepdim=True)
    deviation = rewards.std(1, keepdim=True)
    advantages = (rewards - mean) / (deviation + eps)  # eq. 9.7
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return advantages.masked_fill(equal, 0.0)  # a rounded mean may miss them a little


def grpo_loss(
    new: torch.Tensor,
    old: torch.Tensor,
    reference: torch.Tensor,
    advantages: torch.Tensor,
    counts: torch.Tensor,
    beta: float,
    clip: float = 0.2,
) -> torch.Tensor:
    """GRPO's loss, a mean over the tokens that count, those of the answers.

    `new`, `old` and `reference` are ln p of each token (B, T) under the policy that
    learns, the one that drew, and the reference; `advantages` are of stories (B,).

    Source: Shao et al. (2024), equation 3; for the mean over tokens Yu et al. (2025).
    """
    check_beta(beta, "0 or more")
    ratio = (new - old).exp()
    A = advantages[:, None]  # (B, 1)
    gain = torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
    gain = gain - beta * kl_to_reference(new, reference)
    return -gain[counts].mean()  # eq. 9.8


def learn_from_draw(
    model: GPTModel,
    reference: GPTModel,
    optimizer: torch.optim.Optimizer,
    stories: Sequence[Story],
    advantages: torch.Tensor,
    beta: float,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> float:
    """A step for each `batch_size` of the stories; the KL divergence before them."""
    device = next(model.parameters()).device
    ids, targets = pad_stories(stories, device)
    old = fixed_log_probs(model, ids, targets)
    known = fixed_log_probs(reference, ids, targets)
    advantages = advantages.to(device)

    def loss_of(batch: list[int]) -> torch.Tensor:
        new = token_log_probs(model, ids[batch], targets[batch])
        parts = (new, old[batch], known[batch], advantages[batch])
        return grpo_loss(*parts, targets[batch] != -100, beta)

    learn(optimizer, range(len(stories)), loss_of, batch_size, generator)
    return kl_to_reference(old, known).sum(-1).mean().item()


def train_grpo(
    model: GPTModel,
    reference: GPTModel,
    tokenizer,
    requests: Sequence[tuple[str, ...]],
    reward: Callable[[Sequence[Story]], Sequence[float]],
    beta: float,
    learning_rate: float,
    group: int = 8,
    requests_at_once: int = 8,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Draw groups of stories, and learn from each draw in steps of `batch_size`.

    `reward` gives the rewards of stories. A row for each draw: means over its stories
    of reward, length in tokens, and KL divergence; and how many tokens were drawn.
    """
    check_reference(model, reference)
    check_some("requests", requests)
    draws = [
        requests[start : start + requests_at_once]
        for start in range(0, len(requests), requests_at_once)
    ]
    steps = sum(-(-len(some) * group // batch_size) for some in draws)
    optimizer, rows = make_optimizer(model, learning_rate, steps), []
    shuffle = torch.Generator().manual_seed(0)  # of the stories of a draw
    for some in tqdm(draws, leave=False):
        stories = tell_stories(model, tokenizer, some, group, generator)
        rewards = as_rewards(reward(stories), len(stories)).view(-1, group)
        parts = (model, reference, optimizer, stories)
        advantages = group_advantages(rewards).flatten()
        kl = learn_from_draw(*parts, advantages, beta, batch_size, shuffle)
        tokens = sum(len(story.answer) for story in stories)
        row = {"reward": rewards.mean().item(), "length": tokens / len(stories)}
        rows.append(row | {"kl": kl, "tokens": tokens})
    return pd.DataFrame(rows)


def draw_tokens(
    logits: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """A token for each row, drawn by its probability: logits (B, V) -> ids (B,)."""
    ends = logits.softmax(-1).cumsum(-1)  # (B, V), where each token's stretch ends
    number = torch.rand(len(ends), 1, generator=generator, device=ends.device)
    drawn = torch.searchsorted(ends, number * ends[:, -1:], right=True)  # (B, 1)
    return drawn[:, 0].clamp(max=logits.shape[-1] - 1)


def draw_answers(
    model: GPTModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    eos_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> list[list[int]]:
    """Draw an answer to each prompt; its end token belongs to it, unless it is cut."""
    check_drawing(prompts, max_new_tokens, temperature)
    if len(prompts) > batch_size:
        parts = (prompts[:batch_size], prompts[batch_size:])
        rest = (max_new_tokens, eos_id, temperature, generator, batch_size)
        return [ids for part in parts for ids in draw_answers(model, part, *rest)]
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    start, longest = min(map(len, prompts)), max(map(len, prompts)) + max_new_tokens
    rows = [ids + [eos_id] * (longest - len(ids)) for ids in prompts]
    rows = torch.tensor(rows, device=device)  # (B, T)
    cache, left = model.new_cache(longest), torch.arange(len(rows), device=device)
    ended = torch.zeros_like(left, dtype=torch.bool)  # of the rows that are left
    with evaluating(model):
        for t in range(start, longest):
            logits = next_token_logits(model, rows[left, :t], longest, cache).float()
            new = draw_tokens(logits / temperature, generator)
            own = t < lengths[left]  # the prompt is not over
            rows[left, t] = torch.where(own | ended, rows[left, t], new)
            ended |= ~own & (new == eos_id)
            if ended.all():
                break
            if ended.float().mean() > 0.2:  # the others go on without them
                for layer in cache:
                    layer.keys = layer.keys[~ended]
                    layer.values = layer.values[~ended]
                left, ended = left[~ended], ended[~ended]
    texts = zip(rows.tolist(), lengths.tolist(), strict=True)
    new = [row[n : n + max_new_tokens] for row, n in texts]
    return [ids[: ids.index(eos_id) + 1] if eos_id in ids else ids for ids in new]


def pad_stories(
    stories: Sequence["Story"], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T); targets that are no token of an answer are -100."""
    check_answers([story.answer for story in stories])
    longest = max(len(s.prompt) + len(s.answer) for s in stories)
    ids = torch.zeros(len(stories), longest, dtype=torch.long)
    targets = torch.full((len(stories), longest), -100)
    for row, story in enumerate(stories):
        begin, end = len(story.prompt), len(story.prompt) + len(story.answer)
        ids[row, :end] = torch.tensor(story.prompt + story.answer)
        targets[row, begin - 1 : end - 1] = ids[row, begin:end]
    return ids[:, :-1].to(device), targets[:, :-1].to(device)


def fixed_log_probs(
    model: GPTModel,
    ids: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = TEMPERATURE,
    batch_size: int = 32,
) -> torch.Tensor:
    """ln p of each target, without gradients, and a few stories at a time: (B, T)."""
    parts = zip(ids.split(batch_size), targets.split(batch_size), strict=True)
    with evaluating(model):
        return torch.cat([token_log_probs(model, *p, temperature) for p in parts])


def learner(model: GPTModel) -> GPTModel:
    """A copy of a model to train; its token embedding stays as it is (chapter 7)."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    model.tok_emb.requires_grad_(False)
    return model


def make_optimizer(
    model: nn.Module, learning_rate: float, num_steps: int
) -> torch.optim.Optimizer:
    """AdamW for what is not frozen; the learning rate falls to zero in these steps."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, learning_rate, weight_decay=0.0)
    let_rate_fall(optimizer, num_steps)
    return optimizer


def kl_to_reference(new: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """An estimate of the KL divergence for each drawn token, from its two ln p.

    Source: Schulman (2020), Approximating KL divergence, k3.
    """
    d = reference - new
    return d.exp() - d - 1
