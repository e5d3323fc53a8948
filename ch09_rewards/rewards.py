"""Chapter 9: Rewards and preferences.

You will let a model learn from what was *judged better*: rules say which of its own
stories have the words that were ordered, and four methods make such stories likelier.
You will also see how a model cheats a rule, and what a reward costs elsewhere.

Exported from rewards.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
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
    check_answers,
    check_beta,
    check_drawing,
    check_group,
    check_pairs,
    check_reference,
    check_rewards,
    check_some,
)
from shared.ch04 import GPTModel, next_token_logits
from shared.ch05 import evaluating
from shared.ch07 import fours_in, has_ending, repeated_fours, uses_word

__all__ = [
    "request",
    "draw_tokens",
    "draw_answers",
    "LONGEST",
    "TEMPERATURE",
    "Story",
    "tell_stories",
    "pad_stories",
    "token_log_probs",
    "fixed_log_probs",
    "SHORTEST",
    "LEAST_FLUENT",
    "rate_stories",
    "summary",
    "learner",
    "frozen_copy",
    "make_optimizer",
    "take_step",
    "batches_of",
    "pick_best",
    "train_on_best",
    "dpo_loss",
    "make_pairs",
    "train_dpo",
    "group_advantages",
    "kl_to_reference",
    "grpo_loss",
    "learn_from_draw",
    "train_grpo",
]


def request(words: Sequence[str]) -> str:
    """The order of a story, in the wording that the base has read before stories."""
    first, second, third = words
    return f"Write a story with the words {first}, {second} and {third}.\n\n"


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
) -> list[list[int]]:
    """Draw an answer to each prompt; its end token belongs to it, unless it is cut."""
    check_drawing(prompts, max_new_tokens, temperature)
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
                left = left[~ended]
                for layer in cache:
                    layer.keys = layer.keys[~ended]
                    layer.values = layer.values[~ended]
                ended = ended[~ended]
    texts = zip(rows.tolist(), lengths.tolist(), strict=True)
    new = [row[n : n + max_new_tokens] for row, n in texts]
    return [ids[: ids.index(eos_id) + 1] if eos_id in ids else ids for ids in new]


LONGEST = 128  # tokens that a story may have, with its end


TEMPERATURE = 0.7  # at which stories are drawn, so it belongs to the policy


@dataclass(frozen=True)
class Story:
    """What a model told to an order."""

    words: tuple[str, ...]  # that were ordered
    prompt: list[int]
    answer: list[int]  # with the end token, unless the story was cut off
    text: str
    ended: bool


def tell_stories(
    model: GPTModel,
    tokenizer,
    orders: Sequence[tuple[str, ...]],
    each: int = 1,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> list[Story]:
    """Stories to each order, `each` of them one after the other."""
    check_some("orders", orders)
    orders, end = [words for words in orders for _ in range(each)], tokenizer.eot_token
    stories = []
    for start in range(0, len(orders), batch_size):
        some = orders[start : start + batch_size]
        prompts = [tokenizer.encode_ordinary(request(words)) for words in some]
        drawn = draw_answers(model, prompts, LONGEST, end, TEMPERATURE, generator)
        for words, prompt, answer in zip(some, prompts, drawn, strict=True):
            ended = answer[-1] == end
            text = tokenizer.decode(answer[:-1] if ended else answer).strip()
            stories.append(Story(words, prompt, answer, text, ended))
    return stories


def pad_stories(
    stories: Sequence[Story], device: torch.device | str = "cpu"
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


def fixed_log_probs(
    model: GPTModel,
    ids: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = TEMPERATURE,
    batch_size: int = 32,
) -> torch.Tensor:
    """The same without gradients, and a few stories at a time."""
    parts = zip(ids.split(batch_size), targets.split(batch_size), strict=True)
    with evaluating(model):
        return torch.cat([token_log_probs(model, *p, temperature) for p in parts])


SHORTEST = 40  # words of a whole story


LEAST_FLUENT = -1.5  # mean ln p of a token, under the base


def rate_stories(stories: Sequence[Story], reference: GPTModel) -> pd.DataFrame:
    """The parts of each story's reward, and the reward; the reference judges fluency.

    `words` is the share of the ordered words that are there, in any form. `whole` is 1
    if the story ends by itself, with a sentence, after `SHORTEST` words or more.
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
    rated["reward"] = rated["words"] - (1 - rated["whole"]) / 2  # eq. 9.1
    rated["reward"] -= rated["repeats"] + lacking
    return rated


def summary(stories: Sequence[Story], reference: GPTModel) -> pd.Series:
    """Means over stories: reward, its parts, all three words, length in tokens."""
    rated = rate_stories(stories, reference)
    means = rated.mean()
    all_words = float((rated["words"] == 1).mean())
    length = sum(len(story.answer) for story in stories) / len(stories)
    parts = {name: means[name] for name in ("words", "whole", "repeats", "fluency")}
    first = {"reward": means["reward"], "all words": all_words}
    return pd.Series({**first, **parts, "tokens": length})


def learner(model: GPTModel) -> GPTModel:
    """A copy of a model to train; its token embedding stays as it is (chapter 7)."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    model.tok_emb.requires_grad_(False)
    return model


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of a model that never learns: the reference."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW for the parameters that are not frozen."""
    learning = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(learning, learning_rate, weight_decay=0.0)


def take_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Go one step down, with a gradient of length 1 at most."""
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def batches_of(
    number: int, batch_size: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """The numbers from 0 on in a random order, dealt into batches."""
    order = torch.randperm(number, generator=generator)
    return [part.tolist() for part in order.split(batch_size)]


def pick_best(stories: Sequence[Story], rewards: torch.Tensor) -> list[Story]:
    """The best story of each order; none where all are worth the same.

    `rewards` (orders, group) are those of the stories, in their order.
    """
    check_group(rewards)
    best, least = rewards.max(1), rewards.min(1).values
    group = rewards.shape[1]
    return [
        stories[order * group + place]
        for order, place in enumerate(best.indices.tolist())
        if best.values[order] > least[order]
    ]


def train_on_best(
    model: GPTModel,
    stories: Sequence[Story],
    learning_rate: float,
    batch_size: int = 16,
    num_epochs: int = 1,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Rejection sampling's second half: finetune a model on chosen stories."""
    device = next(model.parameters()).device
    check_some("stories", stories)
    optimizer, losses = make_optimizer(model, learning_rate), []
    for _ in range(num_epochs):
        for batch in batches_of(len(stories), batch_size, generator):
            ids, targets = pad_stories([stories[i] for i in batch], device)
            log_probs = token_log_probs(model, ids, targets)  # (B, T)
            loss = -log_probs.sum() / (targets != -100).sum()  # eq. 7.1
            take_step(optimizer, loss)
            losses.append(loss.item())
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
    stories: Sequence[Story], rewards: torch.Tensor
) -> list[tuple[Story, Story]]:
    """The best and the worst story of each order; none where all are worth the same."""
    check_group(rewards)
    group, pairs = rewards.shape[1], []
    for order, row in enumerate(rewards):
        best, worst = row.argmax().item(), row.argmin().item()
        if row[best] > row[worst]:
            at = order * group
            pairs.append((stories[at + best], stories[at + worst]))
    return pairs


def train_dpo(
    model: GPTModel,
    reference: GPTModel,
    pairs: Sequence[tuple[Story, Story]],
    beta: float,
    learning_rate: float,
    batch_size: int = 8,
    num_epochs: int = 1,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Train on pairs (better, worse); means for each step."""
    check_reference(model, reference)
    check_pairs([(better.answer, worse.answer) for better, worse in pairs])
    device = next(model.parameters()).device
    optimizer, rows = make_optimizer(model, learning_rate), []
    for _ in range(num_epochs):
        for batch in batches_of(len(pairs), batch_size, generator):
            better, worse = zip(*[pairs[i] for i in batch], strict=True)
            ids, targets = pad_stories([*better, *worse], device)
            known = fixed_log_probs(reference, ids, targets).sum(-1)  # (2 B,)
            new = token_log_probs(model, ids, targets).sum(-1)
            half = len(batch)
            loss, won, lost = dpo_loss(
                new[:half], new[half:], known[:half], known[half:], beta
            )
            take_step(optimizer, loss)
            row = {"loss": loss.item(), "chosen": won.mean().item()}
            row |= {"rejected": lost.mean().item(), "pairs": len(batch)}
            rows.append(row | {"right": (won > lost).float().mean().item()})
    return pd.DataFrame(rows)


def group_advantages(rewards: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """How much better each story is than its group's mean, in deviations: (P, G).

    Where all of a group are worth the same, each advantage is 0.

    Source: Shao et al. (2024), section 4.1.2.
    """
    check_group(rewards)
    mean = rewards.mean(1, keepdim=True)
    deviation = rewards.std(1, keepdim=True, correction=0)
    return (rewards - mean) / (deviation + eps)  # eq. 9.7


def kl_to_reference(new: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """An estimate of the KL divergence for each drawn token, from its two ln p.

    Source: Schulman (2020), Approximating KL divergence, k3.
    """
    d = reference - new
    return d.exp() - d - 1


def grpo_loss(
    new: torch.Tensor,
    old: torch.Tensor,
    reference: torch.Tensor,
    advantages: torch.Tensor,
    counts: torch.Tensor,
    beta: float,
    clip: float = 0.2,
) -> torch.Tensor:
    """GRPO's loss, a mean over all tokens of the answers.

    Args:
        new, old, reference: ln p of each token under the policy that learns, the one
            that drew, and the reference, (B, T).
        advantages: of the stories, (B,).
        counts: which tokens belong to an answer, (B, T).
        beta: how much it costs to leave the reference; 0 for nothing.
        clip: how far a token's ratio may go before it is pushed no more.

    Source: Shao et al. (2024), equation 3; the mean over tokens is that of Yu et al.
    (2025), DAPO, equation 8.
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
    for batch in batches_of(len(stories), batch_size, generator):
        new = token_log_probs(model, ids[batch], targets[batch])
        counts = targets[batch] != -100
        parts = (new, old[batch], known[batch], advantages[batch])
        take_step(optimizer, grpo_loss(*parts, counts, beta))
    return kl_to_reference(old, known).sum(-1).mean().item()


def train_grpo(
    model: GPTModel,
    reference: GPTModel,
    tokenizer,
    orders: Sequence[tuple[str, ...]],
    reward: Callable[[Sequence[Story]], torch.Tensor],
    beta: float,
    learning_rate: float,
    group: int = 8,
    orders_at_once: int = 8,
    batch_size: int = 16,
    max_tokens: float = float("inf"),
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Draw groups of stories, and learn from each in steps of `batch_size` stories.

    It ends after all orders, or once `max_tokens` are drawn. `reward` returns the
    rewards (B,) of stories. A row for each draw has the means over its stories: reward,
    length in tokens, KL divergence from the reference; and how many tokens were drawn.
    """
    check_reference(model, reference)
    check_some("orders", orders)
    optimizer, rows = make_optimizer(model, learning_rate), []
    for start in tqdm(range(0, len(orders), orders_at_once), leave=False):
        some = orders[start : start + orders_at_once]
        stories = tell_stories(model, tokenizer, some, group, generator)
        rewards = reward(stories)
        check_rewards(rewards)
        advantages = group_advantages(rewards.view(-1, group)).flatten()
        shuffle = torch.Generator().manual_seed(start)
        parts = (model, reference, optimizer, stories, advantages)
        kl = learn_from_draw(*parts, beta, batch_size, shuffle)
        tokens = sum(len(story.answer) for story in stories)
        row = {"reward": rewards.mean().item(), "length": tokens / len(stories)}
        rows.append(row | {"kl": kl, "tokens": tokens})
        if sum(row["tokens"] for row in rows) >= max_tokens:
            break
    return pd.DataFrame(rows)
