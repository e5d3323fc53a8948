"""How many blocks does it take to keep the thread? Chapter 5c's record.

    python -m experiments.blocks

Models of one, two and four blocks, and one of two blocks that is not told where a word
stands, learn from the same simple tales, three seeds each, as chapter 5's storyteller
does. At the end each is asked, where a name or a thing comes back, whether it names the
right one, another one of the story, or something else. Can be stopped and called again:
a model that is done stays. Takes twenty minutes on one core.
"""

import tempfile
from pathlib import Path

import torch

from corpus.grammar import TOKEN, words
from experiments.storyteller import rounded, storyteller_tokenizer, teller
from shared import ladder
from shared.ch05 import (
    STORYTELLER,
    Muon,
    evaluating,
    learn_to_tell,
    new_storyteller,
    tale_batches,
)
from shared.files import extend_record
from shared.precision import has_fast_bfloat16
from shared.village import Tale

RECORD = Path(__file__).with_name("records") / "blocks.json"
SHAPES = {
    "one block": {"n_layers": 1},
    "two blocks": {},
    "four blocks": {"n_layers": 4},
    "two blocks, no positions": {},
}
SEEDS = (1, 2, 3)
STEPS = 500
LOOKS = 100  # steps from one look to the next


def rivals(tale: Tale, start: int, word: str) -> set[str]:
    """Other words of the same list that the tale has used before."""
    before = set(TOKEN.findall(tale.text[:start]))
    lists = [entries for entries in words().values() if word in entries]
    return {other for entries in lists for other in entries if other in before} - {word}


def answers(model, tokenizer, tales: list[Tale]) -> dict[str, dict[str, float]]:
    """By kind of mark: the share of right words, of others of the tale, of the rest."""
    end = ladder.end_of(tokenizer)
    counts = {kind: {"right": 0, "rival": 0, "else": 0} for kind in ladder.KINDS}
    with evaluating(model):
        for tale in tales:
            ids, marks = ladder.encode_tale(tokenizer, tale)
            likeliest = model(torch.tensor([[end, *ids]])).argmax(-1)[0].tolist()
            places = sorted(tale.marks, key=lambda mark: mark[1])
            for (kind, number), (_, start, stop) in zip(marks, places, strict=True):
                word = tale.text[start:stop]
                first = {
                    tokenizer.encode(" " + other)[0]
                    for other in rivals(tale, start, word)
                }
                said = likeliest[number]
                answer = "rival" if said in first else "else"
                counts[kind]["right" if said == ids[number] else answer] += 1
    return {
        kind: {answer: n / max(1, sum(found.values())) for answer, n in found.items()}
        for kind, found in counts.items()
    }


def learn(shape: str, seed: int, steps: int = STEPS, tales: int = 100) -> dict:
    """Train one model, and say what it can tell apart."""
    tokenizer = storyteller_tokenizer()
    torch.manual_seed(seed)
    model = new_storyteller(**SHAPES[shape])
    if shape.endswith("no positions"):
        model.pos_emb.weight.data.zero_()
        model.pos_emb.weight.requires_grad_(False)
    exam = ladder.exam(tales, simple=True)
    progress = {"step": 0, "last": steps, "tokens": 0, "looks": []}

    def look(progress: dict) -> None:
        if progress["step"] % LOOKS == 0 or progress["step"] == steps:
            row = rounded(ladder.examine(model, tokenizer, exam))
            at = {key: progress[key] for key in ("step", "tokens")}
            progress["looks"].append({**at, **row})

    batches = tale_batches(teller(1.0), tokenizer, 2 * steps * seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        learn_to_tell(model, batches, Muon(model), progress, look, path)
    if progress["step"] < steps:
        raise SystemExit("Stopped; the same command tries this model again.")
    looks = progress["looks"]
    print(shape, seed, looks[-1], flush=True)
    apart = {k: rounded(v) for k, v in answers(model, tokenizer, exam).items()}
    size = sum(p.numel() for p in model.parameters())
    return {"parameters": size, "looks": looks, "answers": apart}


def run(name: str) -> dict:
    """The run with a name such as "two blocks, seed 1"."""
    shape, seed = name.split(", seed ")
    return {"seed": name, "shape": shape, **learn(shape, int(seed))}


def main() -> None:
    names = [f"{shape}, seed {seed}" for seed in SEEDS for shape in SHAPES]
    facts = {"bfloat16": has_fast_bfloat16(), "steps": STEPS}
    facts["made_of"] = {"settings": STORYTELLER, "steps": STEPS}
    extend_record(RECORD, facts, names, run)


if __name__ == "__main__":
    main()
