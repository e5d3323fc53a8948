"""What chapter 9 refuses, and in which words; imports nothing of the course."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

__all__ = ["check_beta", "check_drawing", "check_answers", "check_group"]
__all__ += ["check_reference", "check_pairs", "check_rewards", "check_some"]
__all__ += ["check_learner", "check_words", "as_rewards"]


def check_some(name: str, values: Sequence) -> None:
    """Refuse an empty list of requests, stories or pairs."""
    if len(values) == 0:
        raise ValueError(f"{name} is empty; give at least one of them")


def check_beta(beta: float, lowest: str = "above 0") -> None:
    """Refuse a beta that is no number, or too low: "above 0", or "0 or more"."""
    enough = beta > 0 if lowest == "above 0" else beta >= 0
    if not (enough and math.isfinite(beta)):
        reason = (
            "at 0 all pairs have the same loss, below it the worse answer is learned"
            if lowest == "above 0"
            else "below 0 the model would be paid for leaving its reference"
        )
        raise ValueError(f"beta must be {lowest}, not {beta}: {reason}")


def check_drawing(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float
) -> None:
    """Refuse to draw after nothing, nothing at all, or without a temperature."""
    check_some("prompts", prompts)
    empty = [i for i, ids in enumerate(prompts) if len(ids) == 0]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty; a model needs a token to go on")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"temperature must be above 0, not {temperature}: without chance all "
            "stories for a request would be the same"
        )


def check_answers(answers: Sequence[Sequence[int]]) -> None:
    """Refuse answers without a token: nothing in them could be learned."""
    check_some("answers", answers)
    empty = [i for i, ids in enumerate(answers) if len(ids) == 0]
    if empty:
        raise ValueError(
            f"answer {empty[0]} has no token, not even an end; leave it out"
        )


def check_rewards(rewards: torch.Tensor) -> None:
    """Refuse rewards that are no numbers: they would spoil every parameter."""
    if not torch.isfinite(rewards).all():
        wrong = rewards[~torch.isfinite(rewards)][0].item()
        raise ValueError(f"a reward is {wrong}; a rule must return a finite number")


def as_rewards(given: object, number: int) -> torch.Tensor:
    """What a reward function gave, as float32 (number,): one reward for each story.

    Raises:
        TypeError: if it is no list of numbers.
        ValueError: if there are more or fewer, or one is no finite number.
    """
    remedy = f"it must return one number for each of the {number} stories, in a list"
    if isinstance(given, Mapping | str) or not isinstance(given, Iterable):
        raise TypeError(f"reward gave {given!r}; {remedy}")
    if getattr(given, "ndim", 1) == 0:  # a tensor, or numpy's, that holds one number
        raise TypeError(f"reward gave {given!r}; {remedy}")
    values = list(given)
    if len(values) != number:
        raise ValueError(f"reward gave {len(values)} for {number} stories; {remedy}")
    rewards = []
    for i, value in enumerate(values):
        if isinstance(value, str):  # float("1") would be 1
            raise TypeError(f"reward {i} is {value!r}; {remedy}")
        try:
            rewards.append(float(value))
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"reward {i} is {value!r}; {remedy}") from None
    rewards = torch.tensor(rewards, dtype=torch.float32)
    check_rewards(rewards)
    return rewards


def check_words(words: object) -> None:
    """Refuse anything but three words; one alone would be taken for its letters."""
    example = "('kite', 'brave', 'climb')"
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise TypeError(f"a request is three words such as {example}, not {words!r}")
    if len(words) != 3:
        raise ValueError(
            f"a request has three words, such as {example}; {words!r} has {len(words)}"
        )
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"{word!r} in {words!r} is no word; write it as a text")
        if not word.strip():
            raise ValueError(
                f"{words!r} has an empty word; name three that say something"
            )


def check_learner(model: nn.Module) -> None:
    """Refuse a model of which no weight would learn, as one is after merge_lora."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "all weights of the model are frozen, so none could learn; train "
            "learner(model), a copy, or call model.requires_grad_(True)"
        )


def check_group(rewards: torch.Tensor) -> None:
    """Refuse rewards that are not of shape (requests, group), or a group of one."""
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards have the shape {tuple(rewards.shape)}; give one row for each "
            "request, of two stories or more: one alone is compared with nothing"
        )
    check_rewards(rewards)


def check_reference(model: nn.Module, reference: nn.Module) -> None:
    """Refuse a frozen model, and a reference that changes with the model."""
    check_learner(model)
    learning = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    if learning & {p.data_ptr() for p in reference.parameters()}:
        raise ValueError(
            "the reference is the model itself, or has weights of it, and would change "
            "with it; take copy.deepcopy(model) before the training begins"
        )


def check_pairs(texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Refuse pairs of two equal answers, between which nobody can choose."""
    check_some("pairs", texts)
    for i, (chosen, rejected) in enumerate(texts):
        if list(chosen) == list(rejected):
            raise ValueError(
                f"both answers of pair {i} are the same, so that neither is better; "
                "leave it out"
            )
