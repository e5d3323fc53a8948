"""Describe a finished pretraining run in numbers, for its model card.

    python -m pretrain.card runs/base data/base

copies the model and the log of the run `runs/base` into the folder `data/base`, draws
its losses there (`loss.png`), and writes what can be measured into its `README.md`,
between the two marks that it finds there.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from shared import data, plots
from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel
from shared.ch05 import (
    build_pretrained,
    calc_loss_batch,
    generate,
    read_gpt2_folder,
    text_to_token_ids,
    token_ids_to_text,
)
from shared.files import write_atomically

BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"
PROMPTS = (
    "The train was late, and",
    "The capital of France is",
    "User: I would like to book a table for two.\nAssistant:",
    "Water boils when",
    "Do you have any plans for the weekend?",
)
TEMPERATURE, TOP_K, NEW_TOKENS = 0.7, 40, 50


def read_log(run: Path) -> list[dict]:
    """The lines of a run's log.

    Raises:
        ValueError: if the run has not come to its end.
    """
    text = (run / "log.jsonl").read_text(encoding="utf-8")
    log = [json.loads(line) for line in text.splitlines()]
    if not log or log[-1]["event"] != "end":
        raise ValueError(f"{run} is not finished; give its command again")
    return log


def draw_losses(log: list[dict], path: Path) -> None:
    """Training loss, and held-out loss of each source, against tokens seen."""
    plots.use_style()
    figure, axes = plt.subplots(figsize=(8, 4.5))
    train = [line for line in log if line["event"] == "train"]
    axes.plot(
        [line["tokens"] / 1e6 for line in train],
        [line["loss"] for line in train],
        color="0.8",
        label="training",
    )
    looks = [line for line in log if line["event"] == "eval"]
    for number, name in enumerate(looks[-1]["losses"]):
        points = [(line["tokens"] / 1e6, line["losses"][name]) for line in looks]
        style = "-:"[number // len(plots.COLORS) % 2]  # more sources than colours
        axes.plot(*zip(*points, strict=True), style, marker=".", label=name)
    axes.set(xlabel="tokens (millions)", ylabel="loss (nats per token)")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def perplexity(model: GPTModel, text: str, tokenizer) -> tuple[int, float]:
    """How many tokens of a text were guessed, and the perplexity of the guesses.

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
    """What the model writes after a prompt, unedited."""
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


def describe(folder: Path, log: list[dict]) -> str:
    """The measured part of the card, as Markdown."""
    start, end = log[0], log[-1]
    model = build_pretrained(*read_gpt2_folder(folder))
    size = (folder / "model.safetensors").stat().st_size
    rate = end["tokens"] / end["seconds"]
    facts = {
        "parameters": f"{start['parameters']:,} (output head tied to the embedding)",
        "tokens seen": f"{end['tokens']:,} in {end['step']:,} steps",
        "hardware": f"{start['device']}, {start['threads']} threads, "
        f"{start['precision']}, torch {start['torch']}",
        "training time": f"{end['seconds'] / 60:.0f} minutes, {rate:,.0f} tokens/s",
        "floating-point operations": f"{end['tokens'] * start['flops_per_token']:.2g}",
        "file": f"{size / 1e6:.1f} MB, bfloat16",
    }
    lines = ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items()), ""]
    look = [line for line in log if line["event"] == "eval"][-1]
    lines += ["| held-out text of | loss | perplexity |", "|---|---|---|"]
    for name, loss in {**look["losses"], "**the mixture**": look["loss"]}.items():
        lines.append(f"| {name} | {loss:.3f} | {math.exp(loss):.1f} |")
    tokenizer = get_tokenizer()
    for name in ("held-out", "short-story"):
        tokens, value = perplexity(model, data.load_text(name), tokenizer)
        lines.append(
            f"| `{name}`, of no source ({tokens:,} tokens) | {math.log(value):.3f} | "
            f"{value:.1f} |"
        )
    lines += [
        "",
        f"Five samples, unedited: temperature {TEMPERATURE}, top-k {TOP_K}, seeds 1 to "
        f"{len(PROMPTS)}, {NEW_TOKENS} tokens.",
        "",
    ]
    for seed, prompt in enumerate(PROMPTS, start=1):
        lines += ["```", sample(model, prompt, seed, tokenizer).rstrip(), "```", ""]
    return "\n".join(lines)


def write_card(run: Path, folder: Path) -> None:
    """Copy the model and the log of a run, draw the losses, fill the card in.

    Raises:
        FileNotFoundError: if the run has no model, or the folder no `README.md`.
        ValueError: if the run is not finished, or `README.md` lacks the marks.
    """
    card = folder / "README.md"
    before, found, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{card} lacks the marks {BEGIN} and {END}")
    log = read_log(run)
    for source in (*(run / "model").iterdir(), run / "log.jsonl"):
        shutil.copyfile(source, folder / source.name)
    draw_losses(log, folder / "loss.png")
    text = f"{before}{BEGIN}\n\n{describe(folder, log)}\n{END}{after}"
    write_atomically(card, text)


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.card",
        description="Describe a finished pretraining run in numbers.",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("folder", type=Path, help="the model's folder with README.md")
    given = parser.parse_args(arguments)
    try:
        write_card(given.run, given.folder)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
