"""Four ways to learn from a reward, with equal numbers of drawn tokens, over seeds.

    python -m ch09_rewards.compare               three seeds -> three_seeds.json
    python -m ch09_rewards.compare --seeds 1     one
    python -m ch09_rewards.compare --gamed       a reward that is cheated -> gamed.json
    python -m ch09_rewards.compare --instructed  chapter 7's model learns from the
                                                 reward as well -> instructed.json

With `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000` before it, as `make` sets
them, a call is done sooner: the same memory is used again for each step.

Each seed draws other requests and other stories. All models are judged by stories for
the same held-out requests. After Ctrl-C the finished seeds are kept, and the next call
goes on with those that are missing. Another base or other settings begin a new record.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd
import torch

from ch07_instructions import compare as instructions
from ch09_rewards.asked_words import EXAMPLE, draw_requests
from ch09_rewards.rewards import (
    Story,
    fixed_log_probs,
    learner,
    make_pairs,
    pad_stories,
    pick_best,
    rate_stories,
    tell_stories,
    train_dpo,
    train_grpo,
    train_on_best,
)
from shared.ch04 import GPTModel
from shared.ch05 import load_base, load_base_tokenizer
from shared.ch07 import (
    exact_match,
    fours_in,
    generate_answers,
    load_instructions,
    split_entries,
    uses_word,
)
from shared.data import FILES, load_text
from shared.files import extend_record, write_atomically

RECORD = Path(__file__).with_name("three_seeds.json")
GAMED = Path(__file__).with_name("gamed.json")
INSTRUCTED = Path(__file__).with_name("instructed.json")
FIRST_SEED = 123
GROUP = 8
SETTINGS = {
    "requests": 64,  # from which GRPO learns; the others draw as many tokens
    "rounds": 3,  # of rejection sampling and of DPO
    "test_requests": 48,
    "rejection": {"learning_rate": 3e-4, "num_epochs": 2},
    "dpo": {"learning_rate": 1e-4, "beta": 0.1},
    "grpo": {"learning_rate": 3e-4, "beta": 0.05, "requests_at_once": 4},
}
FOURS = 5000  # runs of four words, of which the different ones are counted


def made_of() -> dict:
    """What a record depends on."""
    return {"base": FILES["base/model.safetensors"].sha256, "settings": SETTINGS}


def generator(seed: int, model: GPTModel) -> torch.Generator:
    """A generator of its own on the model's device."""
    return torch.Generator(next(model.parameters()).device).manual_seed(seed)


# --- Scores ---------------------------------------------------------------------------


def summary(stories: Sequence[Story], reference: GPTModel) -> pd.Series:
    """Means over stories: reward, all three words, its parts, length in tokens."""
    rated = rate_stories(stories, reference)
    rated["all words"] = rated["words"] == 1
    rated["tokens"] = [len(story.answer) for story in stories]
    columns = ["reward", "all words", "words", "whole", "repeats", "fluency", "tokens"]
    return rated[columns].mean()


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
    """Scores of a model's stories for held-out requests; of `choose` the best counts.

    Also its first story for the chapter's example and for two other requests.
    """
    requests = [EXAMPLE, *draw_requests(SETTINGS["test_requests"], 0, held_out=True)]
    chance = generator(seed, model)
    stories = tell_stories(model, tokenizer, requests, 2 * choose, chance)
    if choose > 1:
        rewards = rate_stories(stories, base)["reward"].values.reshape(-1, choose)
        best = rewards.argmax(1)
        stories = [stories[i * choose + place] for i, place in enumerate(best)]
    found = summary(stories[2:], base).to_dict()
    found["kl"] = divergence(model, base, stories[2:])
    found["loss on tales"] = tales_loss(model, tokenizer)
    found["different fours"] = different_fours(stories[2:])
    return {name: round(value, 4) for name, value in found.items()}, stories[:6:2]


# --- Runs -----------------------------------------------------------------------------


def rewards_by_rule(reference: GPTModel) -> Callable[[Sequence[Story]], pd.Series]:
    """The reward of equation 9.1, with a model that judges fluency."""
    return lambda stories: rate_stories(stories, reference)["reward"]


def pool_of(
    model: GPTModel,
    base: GPTModel,
    tokenizer,
    requests: Iterator[tuple[str, ...]],
    tokens: float,
    chance: torch.Generator,
) -> tuple[list[Story], torch.Tensor]:
    """Groups of stories until so many tokens are drawn, and their rewards (P, G)."""
    stories: list[Story] = []
    while sum(len(story.answer) for story in stories) < tokens:
        stories += tell_stories(model, tokenizer, [*islice(requests, 8)], GROUP, chance)
    rewards = torch.tensor(rate_stories(stories, base)["reward"].values)
    return stories, rewards.view(-1, GROUP).float()


def run(seed: int, device: str) -> dict:
    """The scores of the base and of all methods, for one seed."""
    base, tokenizer = load_base(device), load_base_tokenizer()
    requests, rounds = draw_requests(400, seed), SETTINGS["rounds"]
    kept = {"seed": seed, "scores": {}, "drawn": {}, "seconds": {}, "stories": {}}

    def note(name: str, model: GPTModel, seconds: float, tokens: int, choose: int = 1):
        kept["seconds"][name] = round(seconds, 1)
        kept["drawn"][name] = tokens
        kept["scores"][name], told = judge(model, base, tokenizer, seed, choose)
        kept["stories"]["words"] = [story.words for story in told]
        kept["stories"][name] = [story.text for story in told]
        print(seed, name, kept["seconds"][name], "s", tokens, kept["scores"][name])

    def in_rounds(name: str, train: Callable, tokens: int) -> None:
        """Draw and learn in turns; all methods draw the same first stories."""
        model, start, drawn = learner(base), time.perf_counter(), 0
        left, chance = iter(requests), generator(seed, model)
        for turn in range(1, rounds + 1):
            each = tokens * turn / rounds - drawn
            told, rewards = pool_of(model, base, tokenizer, left, each, chance)
            drawn += sum(len(story.answer) for story in told)
            train(model, told, rewards, torch.Generator().manual_seed(seed + turn))
        note(name, model, time.perf_counter() - start, drawn)

    def by_choice(model, told, rewards, order):
        best = pick_best(told, rewards)
        train_on_best(model, best, generator=order, **SETTINGS["rejection"])

    def by_pairs(model, told, rewards, order):
        pairs = make_pairs(told, rewards)
        train_dpo(model, base, pairs, generator=order, **SETTINGS["dpo"])

    note("base", base, 0, 0)
    note("best of 8", base, 0, 0, choose=GROUP)
    model, start = learner(base), time.perf_counter()
    steps = train_grpo(
        *(model, base, tokenizer, requests[: SETTINGS["requests"]]),
        *(rewards_by_rule(base),),
        generator=generator(seed, model),
        **SETTINGS["grpo"],
    )
    tokens, seconds = int(steps["tokens"].sum()), time.perf_counter() - start
    in_rounds("rejection sampling", by_choice, tokens)
    in_rounds("DPO", by_pairs, tokens)
    note("GRPO", model, seconds, tokens)
    return kept | {"curve": steps.round(4).to_dict("list")}


def points(story: Story) -> int:
    """How many times a story says a requested word: the reward that is cheated."""
    said = story.text.split()
    return sum(uses_word(word, each) for word in story.words for each in said)


def gamed(device: str) -> dict:
    """What becomes of the base if it is paid by `points`, and may go anywhere."""
    base, tokenizer = load_base(device), load_base_tokenizer()
    model = learner(base)
    steps = train_grpo(
        *(model, base, tokenizer, draw_requests(80, FIRST_SEED)),
        lambda stories: [points(story) for story in stories],
        **{**SETTINGS["grpo"], "beta": 0.0},
        generator=generator(FIRST_SEED, model),
    )
    chance = generator(FIRST_SEED, model)
    test = [EXAMPLE, *draw_requests(3, 0, held_out=True)]
    stories = tell_stories(model, tokenizer, test, 1, chance)
    curve = steps.rename(columns={"reward": "points"}).round(4).to_dict("records")
    told = [{"words": story.words, "text": story.text} for story in stories]
    return {"made_of": made_of(), "steps": curve, "stories": told}


def instructed(device: str, seed: int = FIRST_SEED) -> dict:
    """Chapter 7's finetuned model before and after GRPO on requests for stories.

    Percents: stories with all three words, and exact answers to chapter 7's other
    questions, of its validation and of its test part.
    """
    train_entries, *parts = split_entries(load_instructions(), seed=seed)
    settings = {**instructions.COPY, **instructions.SETTINGS}
    before, _ = instructions.finetuned(seed, train_entries, device, **settings)
    base, tokenizer, after = load_base(device), load_base_tokenizer(), learner(before)
    requests = draw_requests(SETTINGS["requests"], seed)
    train_grpo(
        *(after, before, tokenizer, requests, rewards_by_rule(base)),
        generator=generator(seed, after),
        **SETTINGS["grpo"],
    )
    record = {"made_of": {"instructions": instructions.made_of(), **made_of()}}
    for name, model in (("before", before.eval()), ("after", after)):
        scores, told = judge(model, base, tokenizer, seed)
        for part, entries in zip(("validation", "test"), parts, strict=True):
            short = instructions.by_family(entries)[0]
            answers = generate_answers(model, short, tokenizer)
            for family in ("closed", "copy"):
                right = [
                    exact_match(answer, entry["output"], entry["kind"])
                    for entry, answer in zip(short, answers, strict=True)
                    if entry["family"] == family
                ]
                scores[f"{family}, {part}"] = round(sum(right) / len(right), 4)
                record[f"{family}, {part}"] = len(right)
        record[name] = {"scores": scores, "stories": [story.text for story in told]}
    return record


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


def other_abilities() -> pd.DataFrame:
    """The stored scores of chapter 7's model before and after GRPO, in percent."""
    record = read_record(INSTRUCTED)
    families = ["closed, validation", "closed, test", "copy, validation", "copy, test"]
    rows = {name: record[name]["scores"] for name in ("before", "after")}
    return (100 * pd.DataFrame(rows).T[["all words", *families]]).round(1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to extend")
    parser.add_argument("--gamed", action="store_true", help="the cheated reward alone")
    parser.add_argument("--instructed", action="store_true", help="chapter 7's model")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.gamed:
        return write_atomically(GAMED, json.dumps(gamed(device), indent=0) + "\n")
    if options.instructed:
        found = json.dumps(instructed(device), indent=0)
        return write_atomically(INSTRUCTED, found + "\n")
    threads = f"{device}, {torch.get_num_threads()} threads"
    made = {"made_of": made_of(), "device": threads}
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    record = extend_record(options.out, made, seeds, partial(run, device=device))
    print(facts(record))
    print(table(record, ["reward", "all words", "whole", "loss on tales"]).to_string())


if __name__ == "__main__":
    main()
