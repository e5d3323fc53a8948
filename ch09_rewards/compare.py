"""Four ways to learn from a reward, with equal numbers of drawn tokens, over seeds.

    python -m ch09_rewards.compare              three seeds -> three_seeds.json
    python -m ch09_rewards.compare --seeds 1    one
    python -m ch09_rewards.compare --gamed      a reward that is cheated -> gamed.json

With `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000` before it, as `make` sets
them, a call is done sooner: the same memory is used again for each step.

Each seed draws other orders and other stories. All models are judged by stories for the
same held-out orders. After Ctrl-C the finished seeds are kept, and the next call goes
on with those that are missing. Another base or other settings begin a new record.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from ch09_rewards.orders import EXAMPLE, draw_orders
from ch09_rewards.rewards import (
    Story,
    fixed_log_probs,
    frozen_copy,
    learner,
    make_pairs,
    pad_stories,
    pick_best,
    rate_stories,
    summary,
    tell_stories,
    train_dpo,
    train_grpo,
    train_on_best,
)
from shared.ch04 import GPTModel
from shared.ch05 import load_base, load_base_tokenizer
from shared.ch07 import fours_in, uses_word
from shared.data import FILES, load_text
from shared.files import extend_record, write_atomically

RECORD = Path(__file__).with_name("three_seeds.json")
GAMED = Path(__file__).with_name("gamed.json")
FIRST_SEED = 123
GROUP = 8
SETTINGS = {
    "tokens": 60_000,  # that each method may draw to learn from
    "rounds": 2,  # of rejection sampling and of DPO
    "test_orders": 64,
    "rejection": {"learning_rate": 3e-4, "num_epochs": 2},
    "dpo": {"learning_rate": 1e-4, "beta": 0.1, "num_epochs": 1},
    "grpo": {"learning_rate": 3e-4, "beta": 0.02, "orders_at_once": 4},
}
FOURS = 5000  # runs of four words, of which the different ones are counted
Orders = Sequence[tuple[str, ...]]


def made_of() -> dict:
    """What a record depends on."""
    return {"base": FILES["base/model.safetensors"].sha256, "settings": SETTINGS}


def generator(seed: int, model: GPTModel) -> torch.Generator:
    """A generator of its own on the model's device."""
    return torch.Generator(next(model.parameters()).device).manual_seed(seed)


@torch.no_grad()
def tales_loss(model: GPTModel, tokenizer, number: int = 100) -> float:
    """The loss per token on tales of chapter 7, which no model of ours has read."""
    tales = json.loads(load_text("tales"))[:number]
    end = tokenizer.eot_token
    stories = []
    for tale in tales:
        answer = tokenizer.encode_ordinary(tale["text"])[:400] + [end]
        stories.append(Story((), [end], answer, tale["text"], True))
    ids, targets = pad_stories(stories, next(model.parameters()).device)
    log_probs = fixed_log_probs(model, ids, targets, temperature=1.0)
    return -(log_probs.sum() / (targets != -100).sum()).item()


def different_fours(stories: Sequence[Story], number: int = FOURS) -> float:
    """The share of the first runs of four words that are different ones."""
    fours = [four for story in stories for four in fours_in(story.text)][:number]
    return len(set(fours)) / max(len(fours), 1)


def divergence(model: GPTModel, base: GPTModel, stories: Sequence[Story]) -> float:
    """Mean of ln pi - ln pi_0 over stories that a model told: its KL divergence."""
    ids, targets = pad_stories(stories, next(model.parameters()).device)
    own = fixed_log_probs(model, ids, targets).sum(-1)
    return (own - fixed_log_probs(base, ids, targets).sum(-1)).mean().item()


def judge(model: GPTModel, base: GPTModel, tokenizer, seed: int, choose: int = 1):
    """Scores of a model's stories for held-out orders; of `choose`, the best is taken.

    Also the first two stories that it tells for the chapter's example.
    """
    orders = [EXAMPLE, *draw_orders(SETTINGS["test_orders"], 0, held_out=True)]
    chance = generator(seed, model)
    stories = tell_stories(model, tokenizer, orders, 2 * choose, chance)
    if choose > 1:
        rewards = rate_stories(stories, base)["reward"].values.reshape(-1, choose)
        best = rewards.argmax(1)
        stories = [stories[i * choose + place] for i, place in enumerate(best)]
    found = summary(stories[2:], base).to_dict()
    found["kl"] = divergence(model, base, stories[2:])
    found["loss on tales"] = tales_loss(model, tokenizer)
    found["different fours"] = different_fours(stories[2:])
    found = {name: round(value, 4) for name, value in found.items()}
    return found, [story.text for story in stories[:2]]


def pool_of(
    model: GPTModel, base: GPTModel, tokenizer, orders: Orders, tokens: float, seed: int
) -> tuple[list[Story], torch.Tensor]:
    """Groups of stories until so many tokens are drawn, and their rewards (P, G)."""
    stories, chance, drawn = [], generator(seed, model), 0
    for start in range(0, len(orders), 16):
        if drawn >= tokens:
            break
        some = orders[start : start + 16]
        stories += tell_stories(model, tokenizer, some, GROUP, chance)
        drawn = sum(len(story.answer) for story in stories)
    rewards = rate_stories(stories, base)["reward"].values
    return stories, torch.tensor(rewards).view(-1, GROUP).float()


def run(seed: int, device: str) -> dict:
    """The scores of the base and of all methods, for one seed."""
    base, tokenizer = frozen_copy(load_base(device)), load_base_tokenizer()
    scores, told, seconds, drawn = {}, {}, {}, {}
    rounds = SETTINGS["rounds"]
    each = SETTINGS["tokens"] / rounds
    orders = [draw_orders(200, seed * rounds + turn) for turn in range(rounds)]

    def note(name: str, model: GPTModel, start: float, tokens: int, choose: int = 1):
        seconds[name], drawn[name] = round(time.perf_counter() - start, 1), tokens
        scores[name], told[name] = judge(model, base, tokenizer, seed, choose)
        print(seed, name, seconds[name], "s", tokens, scores[name], flush=True)

    def in_rounds(name: str, train: Callable) -> None:
        """Draw and learn in turns; the first pool is the same for all methods."""
        model, start, tokens = learner(base), time.perf_counter(), 0
        for turn in range(rounds):
            stories, rewards = pool_of(
                model, base, tokenizer, orders[turn], each, seed + 1000 * turn
            )
            tokens += sum(len(story.answer) for story in stories)
            order = torch.Generator().manual_seed(seed + turn)
            train(model, stories, rewards, order)
        note(name, model, start, tokens)

    note("base", base, time.perf_counter(), 0)
    note("best of 8", base, time.perf_counter(), 0, choose=GROUP)
    in_rounds(
        "rejection sampling",
        lambda model, stories, rewards, order: train_on_best(
            *(model, pick_best(stories, rewards)),
            generator=order,
            **SETTINGS["rejection"],
        ),
    )
    in_rounds(
        "DPO",
        lambda model, stories, rewards, order: train_dpo(
            *(model, base, make_pairs(stories, rewards)),
            generator=order,
            **SETTINGS["dpo"],
        ),
    )
    model, start = learner(base), time.perf_counter()
    steps = train_grpo(
        *(model, base, tokenizer, sum(orders, []), rewards_by_rule(base)),
        group=GROUP,
        max_tokens=SETTINGS["tokens"],
        generator=generator(seed, model),
        **SETTINGS["grpo"],
    )
    note("GRPO", model, start, int(steps["tokens"].sum()))
    curve = steps.round(4).to_dict("list")
    kept = {"seed": seed, "scores": scores, "drawn": drawn, "seconds": seconds}
    return kept | {"curve": curve, "stories": told}


def rewards_by_rule(base: GPTModel) -> Callable[[Sequence[Story]], torch.Tensor]:
    """The reward of equation 9.1, with the base as the judge of fluency."""
    return lambda stories: torch.tensor(rate_stories(stories, base)["reward"].values)


def points(story: Story) -> int:
    """How many times a story says an ordered word: the reward that is cheated."""
    said = story.text.split()
    return sum(uses_word(word, each) for word in story.words for each in said)


def gamed(device: str) -> dict:
    """What becomes of the base if it is paid by `points`, without a leash."""
    base, tokenizer = frozen_copy(load_base(device)), load_base_tokenizer()
    model = learner(base)
    steps = train_grpo(
        *(model, base, tokenizer, draw_orders(64, FIRST_SEED)),
        lambda stories: torch.tensor([float(points(story)) for story in stories]),
        **{**SETTINGS["grpo"], "beta": 0.0},
        generator=generator(FIRST_SEED, model),
    )
    chance = generator(FIRST_SEED, model)
    test = [EXAMPLE, *draw_orders(3, 0, held_out=True)]
    stories = tell_stories(model, tokenizer, test, 1, chance)
    curve = steps.rename(columns={"reward": "points"}).round(4).to_dict("records")
    told = [{"words": story.words, "text": story.text} for story in stories]
    return {"made_of": made_of(), "steps": curve, "stories": told}


# --- The record -----------------------------------------------------------------------


def read_record(path: Path = RECORD) -> dict:
    """The stored comparison."""
    return json.loads(path.read_text(encoding="utf-8"))


def means(record: dict) -> pd.DataFrame:
    """The scores of each method, as means over the seeds."""
    return (
        _over_seeds(record)
        .mean()
        .unstack("score")[_scores(record)]
        .loc[list(record["runs"][0]["scores"])]
    )


def spreads(record: dict) -> pd.DataFrame:
    """Their standard deviations over the seeds; 0 for a single one."""
    found = _over_seeds(record).std().fillna(0).unstack("score")
    return found[_scores(record)].loc[list(record["runs"][0]["scores"])]


def _scores(record: dict) -> list[str]:
    return list(record["runs"][0]["scores"]["base"])


def _over_seeds(record: dict):
    rows = [
        {"method": method, "score": score, "value": value}
        for kept in record["runs"]
        for method, scores in kept["scores"].items()
        for score, value in scores.items()
    ]
    return pd.DataFrame(rows).groupby(["method", "score"])["value"]


def table(record: dict, columns: Sequence[str]) -> pd.DataFrame:
    """Chosen scores of each method, written as mean and standard deviation."""
    mean, spread = means(record), spreads(record)
    rows = {
        name: {
            column: f"{mean.loc[name, column]:.2f} ± {spread.loc[name, column]:.2f}"
            for column in columns
        }
        for name in mean.index
    }
    return pd.DataFrame(rows).T


def facts(record: dict) -> str:
    """How many seeds a record has, and how many tokens were drawn to learn from."""
    runs = record["runs"]
    drawn = [n for kept in runs for n in kept["drawn"].values() if n]
    most, least = max(drawn), min(drawn)
    seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
    return f"{seeds}; {least:,} to {most:,} tokens drawn by each method that learns"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to extend")
    parser.add_argument("--gamed", action="store_true", help="the cheated reward alone")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.gamed:
        text = json.dumps(gamed(device), indent=0)
        return write_atomically(GAMED, text + "\n")
    threads = f"{device}, {torch.get_num_threads()} threads"
    made = {"made_of": made_of(), "device": threads}
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    record = extend_record(options.out, made, seeds, partial(run, device=device))
    print(facts(record))
    print(table(record, ["reward", "all words", "whole", "loss on tales"]).to_string())


if __name__ == "__main__":
    main()
