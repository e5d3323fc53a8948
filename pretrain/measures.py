"""What a model can do, in numbers that compare models with different tokens.

    python -m pretrain.measures data/base --shards runs/base/shards-8192

prints them: nats a character on texts of each source, random tokens given twice, and in
tales of the village whether the model still knows who, what, where and whose (see
`shared.ladder`), with combinations that training had, that it never had, and with names
that it never had.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from ch05_pretraining.copying import random_text_twice, repeat_losses
from pretrain.prepare import open_sources, open_tokenizer
from shared import data
from shared.ch02 import END_OF_TEXT, BPETokenizer
from shared.ch04 import GPTModel
from shared.ch05 import build_pretrained, read_gpt2_folder
from shared.ladder import exam, examine, tales_without_contradiction
from shared.village import PARTS

CHARACTERS = 800  # of each text: what fits into 256 tokens or not much more
TEXTS, TALES, TOLD, REPEAT_LENGTH = 32, 100, 100, 64
OF_NO_SOURCE = ("held-out", "short-story")
FIRST_TALE = 10**6  # seeds from here on are read by no training


@torch.no_grad()
def nats_a_character(
    model: GPTModel, tokenizer: BPETokenizer, texts: Iterable[str]
) -> float:
    """The loss on texts, by characters: each text begins a sequence of its own.

    Characters are what two tokenizers have in common.

    Args:
        model: in eval mode.
        tokenizer: that of the model.
        texts: longer ones are read in pieces as long as the model's context.
    """
    nats = characters = 0
    for text in texts:
        ids = torch.tensor([tokenizer.encode_ordinary(text)])
        for piece in ids.split(model.cfg["context_length"], dim=1):
            logits = model(piece)[0, :-1]
            nats += F.cross_entropy(logits, piece[0, 1:], reduction="sum").item()
        characters += len(text)
    return nats / characters


def held_out_texts(shards: Path, tokenizer: BPETokenizer) -> dict[str, list[str]]:
    """Of each source some documents that training never reads, or their beginnings.

    They are the first in the order by which documents were held out, so they hardly
    depend on the tokenizer.
    """
    texts = {}
    for name, source in open_sources(shards, "held_out", 1).items():
        ids = [i for shard in source.shards for i in shard.tolist()]
        whole = filter(None, tokenizer.decode(ids).split(END_OF_TEXT))
        found = sorted(whole, key=lambda x: hashlib.sha256(x.encode()).hexdigest())
        if found:
            texts[name] = [text[:CHARACTERS] for text in found[:TEXTS]]
    return texts


def measure(
    model: GPTModel,
    tokenizer: BPETokenizer,
    texts: dict[str, Sequence[str]],
    tales: int = TALES,
    told: int = 0,
) -> dict:
    """All numbers of a model, rounded: see the head of this file.

    Args:
        model: is left in eval mode.
        tokenizer: that of the model.
        texts: of each source, as `held_out_texts` gives them.
        tales: how many tales of each part of the village the model reads.
        told: how many it tells.
    """
    model.eval()
    nats = {n: nats_a_character(model, tokenizer, found) for n, found in texts.items()}
    for name in OF_NO_SOURCE:
        paragraphs = data.load_text(name).split("\n\n")
        nats[name] = nats_a_character(model, tokenizer, paragraphs)
    twice = random_text_twice(8, REPEAT_LENGTH, model.cfg["vocab_size"])
    first, second = repeat_losses(model, twice)
    found = {
        "nats a character": nats,
        "random tokens twice": {"first": first, "second": second},
    }
    for part in PARTS:
        found[f"village, {part}"] = examine(
            model, tokenizer, exam(tales, FIRST_TALE, part=part)
        )
    if told:
        whole = tales_without_contradiction(model, tokenizer, told)
        found["tales without a contradiction"] = {"of": told, "whole": whole}
    return {
        name: {key: round(value, 3) for key, value in numbers.items()}
        for name, numbers in found.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.measures",
        description="Measure models on the held-out texts of a folder of shards.",
    )
    parser.add_argument("models", type=Path, nargs="+", help="folders of models")
    parser.add_argument("--shards", type=Path, required=True, help="see pretrain.base")
    given = parser.parse_args(arguments)
    try:
        texts = held_out_texts(given.shards, open_tokenizer(given.shards))
        for folder in given.models:
            model = build_pretrained(*read_gpt2_folder(folder))
            found = measure(model, open_tokenizer(folder), texts, told=TOLD)
            print(folder, json.dumps(found, indent=1), flush=True)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
