"""What chapter 9 draws: who learns from which stories, and what comes of it."""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ch09_rewards import compare
from ch09_rewards.rewards import group_advantages
from shared import plots
from shared.drawings import Drawing

REWARDS = [0.2, -0.4, 0.6, 1.0, 0.1, -0.5, 0.3, 0.3]  # of eight stories, to show


def four_ways() -> Drawing:
    """The rewards of one group, and what each method makes of them."""
    d = Drawing(
        720,
        330,
        "The rewards of the same eight stories, once for each method. Best of n gives "
        "out the best story. Rejection sampling imitates it. DPO makes the better "
        "story of each pair likelier than the worse one. GRPO learns from all eight, "
        "by their advantages.",
    )
    places = d.steps(["best of n", "rejection sampling", "DPO", "GRPO"])
    notes = ["give out\nthe best", "imitate\nthe best", "better over worse", "push all"]
    order = sorted(range(len(REWARDS)), key=lambda story: -REWARDS[story])
    better, worse = order[: len(order) // 2], order[len(order) // 2 :]
    for i, (place, note) in enumerate(zip(places, notes, strict=True)):
        x = place.x + (28 if i == 3 else 62)
        column = [[value] for value in REWARDS]
        drawn = d.matrix(x, 68, column, title="rewards", cell=25, digits=1)
        d.text(place.x + place.width / 2, 288, note)
        for story in ([better[:1], better[:1], better, []])[i]:
            d.mark(drawn.cells[story][0], "green")
        for story in worse if i == 2 else []:
            d.mark(drawn.cells[story][0], "vermillion")
    advantages = group_advantages(torch.tensor([REWARDS]))[0]
    column = [[round(value, 1) + 0.0] for value in advantages.tolist()]  # no -0.0
    d.matrix(places[3].x + 102, 68, column, title="advantages", cell=25, digits=1)
    return d


def implicit_rewards(steps: pd.DataFrame) -> Figure:
    """The implicit rewards of both kinds of stories, at each step of DPO."""
    figure, (ax,) = plots.panels(1, width=6.4, height=3.0)
    for name in ("chosen", "rejected"):
        ax.plot(range(1, len(steps) + 1), steps[name], label=name)
    ax.set(xlabel="steps", ylabel="implicit reward")
    ax.legend()
    return figure


def draws(steps: pd.DataFrame) -> Figure:
    """How the stories change from draw to draw of GRPO."""
    figure, axes = plots.panels(3, width=3.0, height=2.6)
    units = {"reward": "mean reward", "length": "tokens a story", "kl": "nats a story"}
    titles = ("reward", "length", "KL divergence from the base")
    for ax, (name, unit), title in zip(axes, units.items(), titles, strict=True):
        ax.plot(range(1, len(steps) + 1), steps[name], "o-")
        ax.set(xlabel="draws", ylabel=unit, title=title)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def side_by_side(record: dict) -> Figure:
    """How often all three words are there, for each method, with the single seeds."""
    mean, spread = compare.means(record), compare.spreads(record)
    figure, ax = plt.subplots(figsize=(6.4, 3.0))
    names = list(mean.index)
    share, error = 100 * mean["all words"], 100 * spread["all words"]
    ax.bar(names, share, yerr=error, color=plots.COLORS[: len(names)], capsize=4)
    for kept in record["runs"]:
        dots = [100 * kept["scores"][name]["all words"] for name in names]
        ax.plot(names, dots, ".", color="black")
    ax.set(ylabel="all three words (%)", ylim=(0, 100))
    ax.tick_params(axis="x", labelrotation=15)
    return figure
