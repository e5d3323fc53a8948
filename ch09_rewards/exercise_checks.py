"""Checks for the exercises of chapter 9: each says what is wrong, and hints at why."""

import math
from collections.abc import Callable, Sequence

import torch

from shared.exercises import NotYet, checked, close, number, tensor


@checked("9.1", wants="a whole number")
def stories_needed(answer: Callable[[float, float], int]) -> None:
    """The smallest n for which one of n is right with a given probability."""
    for p, wanted, n in (
        (0.5, 0.5, 1),
        (0.5, 0.51, 2),
        (0.3, 0.94, 8),
        (0.25, 0.95, 11),
    ):
        found = number(answer(p, wanted))
        exact = math.log(1 - wanted) / math.log(1 - p)
        assert found == n or not math.isclose(found, exact), (
            "nobody can tell a part of a story: round up to a whole number"
        )
        assert found == n or found not in (wanted / p, math.ceil(wanted / p)), (
            "the chances of the single stories do not add up, or two of 0.5 would be "
            "sure; multiply the chances that each one is wrong"
        )
        assert found == n, (
            f"for stories that are right with probability {p}, wanted {n} to reach "
            f"{wanted}, found {found}"
        )
    assert number(answer(1.0, 0.9)) == 1, "if every story is right, one is enough"
    try:
        answer(0.0, 0.5)
        refused = False
    except NotYet as failure:
        if not (refused := isinstance(failure.error, ValueError)):
            raise
    assert refused, "if no story is ever right, no n is enough: raise a ValueError"
    print("Right: what is rare is expensive to find by chance.")


@checked("9.2", wants="a tensor (requests, group)", keeps=True)
def leave_one_out(answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Each reward minus the mean of the others in its group."""
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.1], [0.3, 0.3, 0.3, 0.3]])
    found = tensor(answer(rewards), 2, 4)
    own = rewards - rewards.mean(1, keepdim=True)
    assert not close(found, own), (
        "that is the distance from the whole group's mean; the story itself must not "
        "count in what it is compared with"
    )
    everybody = rewards - (rewards.sum() - rewards) / 7
    assert not close(found, everybody), (
        "each story is compared with those of its own request, in its row"
    )
    wanted = torch.tensor([[0.8, -0.5333, 0.1333, -0.4], [0.0, 0.0, 0.0, 0.0]])
    assert close(found, wanted, atol=1e-3), (
        f"for {rewards[0].tolist()} wanted {wanted[0].tolist()}, found "
        f"{[round(x, 4) for x in found[0].tolist()]}"
    )
    found = tensor(answer(torch.tensor([[2.0, 1.0]])), 1, 2)
    assert close(found, torch.tensor([[1.0, -1.0]])), (
        "in a group of two the mean of the others is the other reward"
    )
    print("Right: no story is compared with itself.")


@checked("9.3", wants="a tensor (B,) of probabilities", keeps=True)
def preferred(answer: Callable[..., torch.Tensor]) -> None:
    """Bradley and Terry's probability, by the implicit rewards of a policy."""
    one, other = torch.tensor([-10.0, -50.0]), torch.tensor([-12.0, -20.0])
    one_0, other_0 = torch.tensor([-11.0, -55.0]), torch.tensor([-11.0, -20.0])
    found = tensor(answer(one, other, one_0, other_0, 0.1), 2)
    assert not close(found, torch.sigmoid(0.1 * (one - other))), (
        "a long text is unlikely under every model: compare with the reference, which "
        "is what the implicit reward does"
    )
    assert not close(found, torch.sigmoid(torch.tensor([2.0, 5.0]))), (
        "beta is missing: the implicit reward is beta times the difference"
    )
    wanted = torch.sigmoid(torch.tensor([0.2, 0.5]))
    assert not close(found, 1 - wanted), "that is the chance of the other text"
    assert close(found, wanted), (
        f"for margins of 0.2 and 0.5 wanted {wanted.tolist()}, found {found.tolist()}"
    )
    found = tensor(answer(one * 1e4, other, one_0 * 1e4, other_0, 1.0), 2)
    assert torch.isfinite(found).all(), (
        "with large numbers the result is no number: exp overflows; torch.sigmoid "
        "does not"
    )
    print("Right: the policy has an opinion on pairs that nobody has judged.")


@checked("9.4", wants="a tensor (V,), the slope", keeps=True)
def drawn_slope(answer: Callable[..., torch.Tensor]) -> None:
    """The slope of the mean reward, from drawn tokens alone."""
    theta = torch.tensor([0.5, 0.0, -0.5, 0.2])
    rewards = torch.tensor([1.0, 3.0, 2.0, 2.5])
    pi = theta.softmax(0)
    exact = pi * (rewards - (pi * rewards).sum())
    chance = torch.Generator().manual_seed(1)
    before = chance.get_state()
    found = tensor(answer(theta, rewards, 40_000, chance), 4)
    assert not torch.equal(chance.get_state(), before), (
        "nobody can repeat this: draw with the generator given"
    )
    assert not close(found, -exact, atol=0.02), (
        "that is the way down; the reward shall grow"
    )
    assert not close(found, exact), (
        "that is the exact slope: it needs every token's probability and reward; use "
        "only the tokens that were drawn"
    )
    assert close(found, exact, atol=0.02), (
        f"from 40,000 draws wanted about {[round(x, 2) for x in exact.tolist()]}, "
        f"found {[round(x, 2) for x in found.tolist()]}"
    )
    chances = [torch.Generator().manual_seed(seed) for seed in range(300)]
    several = torch.stack([tensor(answer(theta, rewards, 50, c), 4) for c in chances])
    noise = several.var(0).sum().item()
    plain = (pi * rewards.square() * (1 + pi.square().sum() - 2 * pi)).sum().item() / 50
    assert noise < plain / 2, (
        "right on average, but noisy: subtract the mean reward of the draws"
    )
    print("Right: what is better than usual is pushed up, by as much as it is better.")


@checked("9.5", wants="a whole number from 0 to 3")
def used_words(answer: Callable[[Sequence[str], str], int]) -> None:
    """Words count only in a sentence with four others."""
    words = ("kite", "brave", "climb")
    story = "Mia saw her red kite in a tree. She was a very brave girl. Up she climbed!"
    cases = {
        "Kite, brave, climb.": (0, "a list of the words is no sentence with others"),
        "The brave kite can climb.": (
            0,
            "the requested words do not count among the four others",
        ),
        story: (2, "the last sentence has two other words, so `climbed` is not used"),
        story.replace("!", " to get it!"): (3, "`climbed` is a form of climb"),
        "Mia saw a red kite there. The red kite was there again.": (
            1,
            "a word that is said in two sentences counts once",
        ),
        "We saw the brave girl climb to her kite": (
            3,
            "a last sentence without a full stop is one, too",
        ),
        "": (0, "an empty story uses no word"),
    }
    for text, (wanted, reason) in cases.items():
        found = number(answer(words, text))
        assert found == wanted, f"for {text!r} wanted {wanted}, found {found}: {reason}"
    print("Right: until somebody lists them in a longer sentence.")
