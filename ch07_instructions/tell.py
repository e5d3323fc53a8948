"""Let the base model tell several stories for each order, and keep the best.

    python -m ch07_instructions.tell

writes `data/told.json`. Every tale of `data/tales.json` is ordered as in the entries of
chapter 7, but in the wording that the base read while it was pretrained. Of the base's
stories, drawn with a temperature, the one with the best scores by rule is kept
(`stories.py`): above all it should have the words. So the examples for finetuning are
the base's own language, and only their choice is new. No order is left out, whatever
the best story is worth: the test part stays a fair sample.

After Ctrl-C the finished stories are kept, and the next call goes on. Another base
begins a new file. A new file needs its sha256 in `shared/data.py`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence

import torch
from tqdm import tqdm

from ch07_instructions.make_entries import SOURCE, read_kinds, story_entry
from ch07_instructions.stories import fours_in, repeated_fours, score_stories
from shared.ch04 import GPTModel
from shared.ch05 import load_base, load_base_tokenizer
from shared.ch07 import answer_together, format_prompt, load_instructions
from shared.data import FILES, REPOSITORY_DATA, load_text
from shared.files import write_atomically

__all__ = ["tell", "worth", "orders"]

TRIES = 16  # stories for each order
TOGETHER = 8  # orders that are answered at once
TEMPERATURE, TOP_P = 0.8, 0.9
Entries = Sequence[Mapping[str, str]]
LONGEST, SHORTEST = 180, 60  # tokens that a story may have, words that it should have


def orders() -> list[dict[str, str]]:
    """The orders of all entries, each in the wording that the base knows."""
    kinds = read_kinds(SOURCE.read_text(encoding="utf-8"))
    tales = json.loads(load_text("tales"))
    found = []
    for entry in load_instructions():
        if entry["family"] == "story":
            number = int(entry["group"].removeprefix("tale-"))
            found.append(story_entry(kinds[entry["kind"]], number, tales[number - 1]))
    return sorted(found, key=lambda entry: int(entry["group"].removeprefix("tale-")))


def tell(
    model: GPTModel, tokenizer, asked: Entries, tries: int, seed: int
) -> list[tuple[list[str], list[bool]]]:
    """For each order several stories, and whether each was cut off at `LONGEST`."""
    prompts = [tokenizer.encode_ordinary(format_prompt(e, "plain")) for e in asked]
    drawn = answer_together(
        *(model, [ids for ids in prompts for _ in range(tries)], LONGEST),
        tokenizer.eot_token,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        generator=torch.Generator().manual_seed(seed),
    )
    texts = [" ".join(tokenizer.decode(ids).split()) for ids in drawn]
    cut = [len(ids) == LONGEST for ids in drawn]
    parts = [slice(i, i + tries) for i in range(0, len(drawn), tries)]
    return [(texts[part], cut[part]) for part in parts]


def worth(
    entry: Mapping[str, str], texts: Sequence[str], cut: Sequence[bool]
) -> list[float]:
    """How good each story is, by rule, from 0 to 1.

    The words that were asked for count more than one name, an ending, no circles and
    `SHORTEST` words together. A story without a name can keep it no worse than another.
    A tenth of its runs of four words told twice is as bad as all of them. An untidy
    story is worth nothing.
    """
    scores = score_stories([entry] * len(texts), texts, cut)
    scores = scores.drop(columns=["kind", "all_words"]).fillna(1.0)
    again = [repeated_fours(text) / max(len(fours_in(text)), 1) for text in texts]
    scores["no_repeats"] = [max(0.0, 1 - 10 * share) for share in again]
    scores["long"] = [float(len(text.split()) >= SHORTEST) for text in texts]
    scores["words"] *= 6
    tidy = [float(is_tidy(text)) for text in texts]
    return (scores.sum(axis=1) * tidy / (6 + len(scores.columns) - 1)).tolist()


def is_tidy(text: str) -> bool:
    """Whether a text has only ASCII, and every quotation mark that opens closes."""
    return text.isascii() and text.count('"') % 2 == 0


def as_file(record: Mapping, told: Mapping[str, str]) -> str:
    """What the file holds: what its stories were made of, and the stories."""
    return json.dumps({**record, "stories": told}, indent=0) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m ch07_instructions.tell", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "--tries", type=int, default=TRIES, help="stories for each order"
    )
    tries = parser.parse_args(arguments).tries
    if tries < 1:
        sys.exit(f"error: --tries must be 1 or more, not {tries}")
    path = REPOSITORY_DATA / "told.json"
    record = {"base": FILES["base/model.safetensors"].sha256, "tries": tries}
    told: dict[str, str] = {}
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        stories = old.pop("stories", {})
        told = stories if old == record else {}
    model, tokenizer = load_base(), load_base_tokenizer()
    asked = orders()
    for start in tqdm(range(0, len(asked), TOGETHER)):
        some = asked[start : start + TOGETHER]
        if all(entry["group"] in told for entry in some):
            continue
        drawn = tell(model, tokenizer, some, tries, seed=start)
        for entry, (texts, cut) in zip(some, drawn, strict=True):
            found = worth(entry, texts, cut)
            told[entry["group"]] = texts[found.index(max(found))]
        write_atomically(path, as_file(record, told))
    content = as_file(record, told)
    digest = hashlib.sha256(content.encode()).hexdigest()
    print(f"{len(told)} stories, {len(content)} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
