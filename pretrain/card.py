"""Describe a finished pretraining run in numbers, for its model card.

    python -m pretrain.card runs/base-1 runs/base-2 data/base

copies the model and the logs (`log-1.jsonl` and so on) into the folder `data/base`,
draws the losses there (`loss.png`), and writes what can be measured into its
`README.md`, between two marks that must be there. If the logs have samples, it makes a
page of them (`growing_up.md`). With several runs, each began with the model of the one
before it, so their tokens are counted on.
"""

import argparse
import json
import math
import re
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from pretrain.looks import SAMPLE_TOKENS, TOP_P
from pretrain.looks import TEMPERATURE as SAMPLE_TEMPERATURE
from pretrain.prepare import TOKENIZER, open_tokenizer
from shared import data, plots
from shared.ch04 import GPTModel
from shared.ch05 import (
    build_pretrained,
    calc_loss_batch,
    generate,
    read_gpt2_folder,
    text_to_token_ids,
    token_ids_to_text,
)
from shared.files import copy_file, write_atomically

BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"
PAGE = "growing_up.md"
PROMPTS = (
    "The train was late, and",
    "The capital of France is",
    "User: I would like to book a table for two.\nAssistant:",
    "Water boils when",
    "Do you have any plans for the weekend?",
)
TEMPERATURE, TOP_K, NEW_TOKENS = 0.7, 40, 50


def readable(name: str | Path) -> str:
    """A name on one line; letters that are no UTF-8, as of an old ZIP, are replaced."""
    text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return " ".join(text.split())


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 59.5:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes > 1 else "1 minute"


def read_log(run: Path) -> list[dict]:
    """The lines of a run's log, without the paths of its folders.

    The peak of the arithmetic is measured again whenever a run goes on, and comes out
    too low while another program runs. So the highest one is used for the whole log.
    (A log that was kept is read again when a later run is added.)

    Raises:
        ValueError: if the run has not come to its end.
    """
    text = (run / "log.jsonl").read_text(encoding="utf-8")
    log = [json.loads(line) for line in text.splitlines()]
    if not log or log[-1]["event"] != "end":
        raise ValueError(f"{run} is not finished; give its command again")
    peak = max(line.get("peak_flops", 0.0) for line in log)
    measured = peak
    for line in log:
        if "peak_flops" in line:
            measured, line["peak_flops"] = line["peak_flops"], peak
        if "utilisation" in line:
            line["utilisation"] = round(line["utilisation"] * measured / peak, 4)
    settings = log[0].get("settings", {})
    for key in {"shards", "run_folder", "initial"} & settings.keys():
        settings[key] = settings[key] and Path(settings[key]).name
    return log


def count_on(logs: list[list[dict]]) -> list[list[dict]]:
    """The same logs, with tokens counted from the first run on."""
    result, before = [], 0
    for log in logs:
        result.append(
            [
                {**line, "tokens": line["tokens"] + before}
                if "tokens" in line
                else line
                for line in log
            ]
        )
        before = result[-1][-1]["tokens"]
    return result


def compares_all_tokens(settings: dict, step: int) -> bool:
    """Whether the training loss of a step was over the whole vocabulary."""
    for stage in settings.get("stages") or [settings]:
        if step <= stage.get("steps", step):
            return stage.get("vocabulary") is None
        step -= stage["steps"]
    return True


def draw_losses(logs: list[list[dict]], path: Path, copying: bool = True) -> None:
    """Training loss, held-out loss of each source, and the repeat test, by tokens seen.

    Training losses over a part of the vocabulary are left out: they are not comparable.
    The looks on the way are at a sample of the held-out text, the last one is at all of
    it, so its loss is a mark of its own.

    Args:
        logs: lines of each run's log.
        path: the picture's file.
        copying: whether to draw the repeat test, if the logs have it.
    """
    plots.use_style()
    looks = [line for log in logs for line in log if line["event"] == "eval"]
    repeats = [line for line in looks if copying and "repeat" in line]
    figure, panels = plt.subplots(
        1 + bool(repeats), figsize=(8, 4.5 + 2.5 * bool(repeats)), squeeze=False
    )
    axes, *others = panels[:, 0]
    label = "training"
    for log in logs:
        train = [
            line
            for line in log
            if line["event"] == "train"
            and compares_all_tokens(log[0].get("settings", {}), line["step"])
        ]
        axes.plot(
            [line["tokens"] / 1e6 for line in train],
            [line["loss"] for line in train],
            color="0.8",
            label=label,
        )
        label = None
    names = dict.fromkeys(name for line in looks for name in line["losses"])
    for number, name in enumerate(names):
        sample, whole = (
            [
                (line["tokens"] / 1e6, line["losses"][name])
                for line in looks
                if name in line["losses"] and (line.get("sequences", 0) is None) == end
            ]
            for end in (False, True)
        )
        style = "-:"[number // len(plots.COLORS) % 2]  # more sources than colours
        (curve,) = axes.plot(*zip(*sample or whole, strict=True), style, marker=".")
        curve.set_label(readable(name))
        if sample and whole:  # other text, so no line leads from one to the other
            (end,) = axes.plot(*zip(*whole, strict=True), "s", color=curve.get_color())
            end.set_label(None if number else "all held-out text, at the end")
    axes.set(xlabel="tokens (millions)", ylabel="loss (nats per token)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=2)
    for below in others:
        tokens = [line["tokens"] / 1e6 for line in repeats]
        for half, name in enumerate(("first time", "second time")):
            losses = [line["repeat"][half] for line in repeats]
            below.plot(tokens, losses, marker=".", label=f"random tokens, {name}")
        below.set(xlabel="tokens (millions)", ylabel="loss (nats per token)", ylim=0)
        below.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def perplexity(model: GPTModel, text: str, tokenizer) -> tuple[int, float]:
    """How many tokens of a text were predicted, and the perplexity.

    The text is read in windows as long as the model's context.
    """
    ids = text_to_token_ids(text, tokenizer)
    T, total = model.cfg["context_length"], 0.0
    with torch.no_grad():
        for start in range(0, ids.shape[1] - 1, T):
            window = ids[:, start : start + T + 1]
            loss = calc_loss_batch(window[:, :-1], window[:, 1:], model, "cpu")
            total += loss.item() * (window.shape[1] - 1)
    tokens = ids.shape[1] - 1
    return tokens, math.exp(total / tokens)


def sample(model: GPTModel, prompt: str, seed: int, tokenizer) -> str:
    """A prompt and what the model writes after it, unedited."""
    ids = generate(
        model,
        text_to_token_ids(prompt, tokenizer),
        NEW_TOKENS,
        model.cfg["context_length"],
        temperature=TEMPERATURE,
        top_k=TOP_K,
        generator=torch.Generator().manual_seed(seed),
    )
    return token_ids_to_text(ids, tokenizer)


def describe(
    folder: Path,
    logs: list[list[dict]],
    tokens: str | None = None,
    course_texts: bool = True,
) -> str:
    """The measured part of the card, as Markdown.

    Args:
        folder: the model's.
        logs: lines of each run's log.
        tokens: whose the tokens are, in words; by default the model's own or GPT-2's.
        course_texts: whether to measure texts of the course, which are of no source,
            and the mean over all sources. Of somebody's own text they say nothing.
    """
    seconds = sum(log[-1]["seconds"] for log in logs)
    model = build_pretrained(*read_gpt2_folder(folder))
    tokenizer = open_tokenizer(folder)
    own = (folder / TOKENIZER).is_file()
    whose = tokens or (f"its own (`{TOKENIZER}`)" if own else "GPT-2's")
    size = (folder / "model.safetensors").stat().st_size
    parameters = logs[-1][0]["parameters"]
    facts = {
        "parameters": f"{parameters:,} (output head tied to the embedding)",
        "vocabulary": f"{tokenizer.n_vocab:,} tokens, {whose}",
        "tokens seen": f"{logs[-1][-1]['tokens']:,}",
        "training time": duration(seconds),
        "file": f"{size / 1e6:.1f} MB, bfloat16",
    }
    for number, log in enumerate(logs, start=1):
        begun, ended = log[0], log[-1]
        facts[f"run {number}"] = (
            f"{ended['step']:,} steps in {duration(ended['seconds'])}, up to "
            f"token {ended['tokens']:,}; {begun['device']}, {begun['threads']} threads"
            f", {begun['precision']}, torch {begun['torch']}"
        )
    lines = ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items()), ""]
    looks = [line for line in logs[-1] if line["event"] == "eval"]
    losses = dict(looks[-1]["losses"]) if looks else {}
    if looks and course_texts:
        losses["**the mixture**"] = looks[-1]["loss"]
    if losses or course_texts:
        lines += ["| held-out text of | loss | perplexity |", "|---|---|---|"]
    else:
        lines.append(
            "No text as long as a training sequence was held out, so no losses."
        )
    for name, loss in losses.items():
        lines.append(f"| {readable(name)} | {loss:.3f} | {math.exp(loss):.1f} |")
    for name in ("held-out", "short-story") if course_texts else ():
        text = data.load_text(name)
        tokens, value = perplexity(model, text, tokenizer)
        loss = math.log(value)
        of_a_character = loss * tokens / len(text)  # compares any two tokenizers
        lines.append(
            f"| `{name}`, of no source ({tokens:,} tokens; {of_a_character:.3f} nats a "
            f"character) | {loss:.3f} | {value:.1f} |"
        )
    prompts = logs[-1][0].get("settings", {}).get("prompts") or PROMPTS
    lines += [
        "",
        f"Samples, unedited: temperature {TEMPERATURE}, top-k {TOP_K}, seeds 1 to "
        f"{len(prompts)}, {NEW_TOKENS} tokens.",
        "",
    ]
    for seed, prompt in enumerate(prompts, start=1):
        lines += [fenced(sample(model, prompt, seed, tokenizer)), ""]
    return "\n".join(lines)


def fenced(text: str) -> str:
    """A text as Markdown shows it word for word, in lines of a page's width."""
    lines = [textwrap.fill(line, 88) for line in text.rstrip().split("\n")]
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return "\n".join([fence, *lines, fence])


def growing_up(logs: list[list[dict]]) -> str:
    """A page, as Markdown, of the samples in the logs; empty if there are none.

    It shows for each prompt what the model wrote after it while it learned.
    """
    written: dict[str, list[str]] = {}
    for log in logs:
        prompts = log[0].get("settings", {}).get("prompts", [])
        for line in (line for line in log if line["event"] == "sample"):
            when = f"**{line['tokens']:,} tokens** ({line['step']:,} steps)"
            for prompt, text in zip(prompts, line["texts"], strict=False):
                if text.startswith(prompt):  # they may change when a run goes on
                    more = fenced(text.removeprefix(prompt).strip())
                    written.setdefault(prompt, []).append(f"{when}\n\n{more}\n")
    if not written:
        return ""
    head = (
        "# How it learned to write\n\nThe same beginnings, continued by the model "
        "before training, while it went on, and at the end. Unedited, always with the "
        f"same random seed, temperature {SAMPLE_TEMPERATURE}, top-p {TOP_P}, at most "
        f"{SAMPLE_TOKENS} tokens.\n"
    )
    parts = (
        "\n".join([f"## {textwrap.shorten(prompt, 60)}\n\n{fenced(prompt)}\n", *texts])
        for prompt, texts in written.items()
    )
    return "\n".join([head, *parts])


def write_card(runs: list[Path], folder: Path) -> None:
    """Copy the last run's model and all logs, draw the losses, fill in the card.

    Raises:
        FileNotFoundError: if the last run has no model, or the folder no `README.md`.
        ValueError: if a run is not finished, or `README.md` lacks the marks.
    """
    card = folder / "README.md"
    before, found, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{card} lacks the marks {BEGIN} and {END}")
    logs = [read_log(run) for run in runs]
    sources = list((runs[-1] / "model").iterdir())
    for old in (*folder.glob("log-*.jsonl"), folder / TOKENIZER, folder / PAGE):
        old.unlink(missing_ok=True)  # of an earlier model
    for source in sources:
        copy_file(source, folder / source.name)
    for number, log in enumerate(logs, start=1):
        lines = "".join(json.dumps(line) + "\n" for line in log)
        write_atomically(folder / f"log-{number}.jsonl", lines)
    logs = count_on(logs)
    draw_losses(logs, folder / "loss.png")
    measured = describe(folder, logs)
    if page := growing_up(logs):
        write_atomically(folder / PAGE, page)
        measured += f"\nWhat it wrote while it learned: [{PAGE}]({PAGE}).\n"
    write_atomically(card, f"{before}{BEGIN}\n\n{measured}\n{END}{after}")


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.card",
        description="Describe a finished pretraining run in numbers.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="the folder of each run")
    parser.add_argument("folder", type=Path, help="the model's folder with README.md")
    given = parser.parse_args(arguments)
    try:
        write_card(given.runs, given.folder)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
