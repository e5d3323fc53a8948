"""What chapter 9 draws: who learns from which stories, and what comes of it."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

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
        "The rewards of eight stories for one request, four times. Best of n gives out "
        "the best one. Rejection sampling imitates the best. DPO learns from pairs "
        "which one is better. GRPO learns from all eight, by their advantages.",
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
