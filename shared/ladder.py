"""The ladder: what a model makes of the village's tales, in one row.

A chapter that trains a model ends with the same row. On tales of the village that
nobody trained on, it says how many nats a character costs the model; how often the
likeliest token is the right one where a name (who), a thing (what) or a place (where)
comes back, and where two of a kind could be named and only what has happened decides
(whose); and how many of a hundred tales that the model tells contradict nothing. Then
the model continues the same beginning as all others.
"""

import itertools
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from shared.data import cache_folder
from shared.files import write_atomically
from shared.village import Tale, contradictions, tell

KINDS = ("who", "what", "where", "whose")
END = "<|endoftext|>"
# Held-out tales for choosing settings, and others for the numbers that are reported.
CHOOSING, REPORTING = 10_000, 20_000  # the first of their seeds
LONGEST_TALE = 1_600  # characters, so that any model with a context of 512 can read it
TEMPERATURE = 0.7  # of the tales that a model tells, for every rung
LONGEST = 400  # tokens that it may add to a beginning
BEGINNING = (
    "Once upon a time there was a fox named Zoe, who lived near the mill. "
    "What Zoe liked best was her red kite."
)
STORED = Path(__file__).parents[1] / "experiments" / "records" / "ladder.json"


def exam(
    count: int, first: int = CHOOSING, simple: bool = False, part: str = "held-out"
) -> list[Tale]:
    """Tales to examine a model on, without the few that are very long."""
    found = (tell(seed, part, simple=simple) for seed in itertools.count(first))
    fitting = (tale for tale in found if len(tale.text) <= LONGEST_TALE)
    return list(itertools.islice(fitting, count))


def end_of(tokenizer) -> int:
    """The id of the token that ends a tale, and that stands before the next one."""
    return tokenizer.encode(END, allowed_special={END})[0]


def encode_tale(tokenizer, tale: Tale) -> tuple[list[int], list[tuple[str, int]]]:
    """The ids of a tale, and each mark's kind with the number of its first token.

    The text is cut before each marked word and the space in front of it. Tokenizers
    that cut a text into words, as GPT-2's does, give the same ids without that.
    """
    ids, marks, done = [], [], 0
    for kind, start, _ in sorted(tale.marks, key=lambda mark: mark[1]):
        at = start - (tale.text[start - 1 : start] == " ")
        ids += tokenizer.encode(tale.text[done:at])
        marks.append((kind, len(ids)))
        done = at
    return ids + tokenizer.encode(tale.text[done:]), marks


@torch.no_grad()
def examine(model, tokenizer, tales: Sequence[Tale], batch_size: int = 20) -> dict:
    """Half of a row: nats a character, and of each kind the share named right.

    Raises:
        ValueError: if there is no tale, or one is too long for the model.
    """
    if not tales:
        raise ValueError("there is no tale to examine the model on; give it at least 1")
    end, device = end_of(tokenizer), next(model.parameters()).device
    encoded = [encode_tale(tokenizer, tale) for tale in tales]
    encoded.sort(key=lambda tale: len(tale[0]))
    longest = model.cfg["context_length"]
    if len(encoded[-1][0]) >= longest:
        raise ValueError(
            f"a tale has {len(encoded[-1][0])} tokens, and the model reads at most "
            f"{longest}; make one with a longer context_length"
        )
    nats, right = 0.0, {kind: [] for kind in KINDS}
    for i in range(0, len(encoded), batch_size):
        batch = encoded[i : i + batch_size]
        texts = [torch.tensor([end, *ids, end]) for ids, _ in batch]
        rows = pad_sequence(texts, True, -100).to(device)  # (B, T + 1)
        logits = model(rows[:, :-1].clamp(min=0)).float()  # (B, T, V)
        nats += F.cross_entropy(logits.mT, rows[:, 1:], reduction="sum").item()
        named = (logits.argmax(-1) == rows[:, 1:]).tolist()  # (B, T)
        for row, (_, marks) in enumerate(batch):
            for kind, number in marks:
                right[kind].append(named[row][number])
    shares = {kind: sum(x) / len(x) if x else math.nan for kind, x in right.items()}
    return {"nats": nats / sum(len(tale.text) for tale in tales), **shares}


@torch.no_grad()
def continued(
    model,
    tokenizer,
    beginnings: Sequence[str],
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> list[str]:
    """Each beginning as the model goes on with it, all in one batch.

    A tale that the model has not ended within `LONGEST` tokens, or when its context is
    full, ends with "...".
    """
    end, device = end_of(tokenizer), next(model.parameters()).device
    chance = torch.Generator().manual_seed(seed)
    told = [[end, *tokenizer.encode(text)] for text in beginnings]
    room = min(max(map(len, told)) + LONGEST, model.cfg["context_length"])
    cache = model.new_cache(room) if hasattr(model, "new_cache") else None
    ended = [False] * len(told)
    for n in range(1, room):  # the token of number n is next, given or drawn
        if all(ended):
            break
        # Each tale has n tokens now, or more if it still reads its beginning.
        ids = torch.tensor([ids[:n] for ids in told], device=device)
        logits = model(ids) if cache is None else model(ids[:, -1:], cache)
        probs = (logits[:, -1].float().cpu() / temperature).softmax(-1)  # (B, V)
        drawn = torch.multinomial(probs, 1, generator=chance)[:, 0].tolist()
        for row, ids in enumerate(told):
            if len(ids) == n:
                ids.append(end if ended[row] else drawn[row])
                ended[row] = ids[-1] == end
    pairs = zip(told, ended, strict=True)
    ends = [ids.index(end, 1) if done else None for ids, done in pairs]
    return [
        tokenizer.decode(ids[1:stop]) + ("" if stop else " ...")
        for ids, stop in zip(told, ends, strict=True)
    ]


def two_sentences(text: str) -> str:
    """The beginning of a tale, up to the end of its second sentence."""
    ends = [found.end() for found in re.finditer(r"[.!?]\"?(?=\s)", text)]
    return text[: ends[1]] if len(ends) > 1 else text


def tales_without_contradiction(
    model, tokenizer, n: int = 100, seed: int = 0, simple: bool = False
) -> int:
    """How many of `n` tales that a model tells are whole and contradict nothing.

    It goes on from the first two sentences of held-out tales. They are drawn in one
    batch, with a generator of their own.
    """
    beginnings = [two_sentences(tale.text) for tale in exam(n, REPORTING, simple)]
    told = continued(model, tokenizer, beginnings, seed=seed)
    return sum(not text.endswith(" ...") and not contradictions(text) for text in told)


def measure(model, tokenizer) -> dict:
    """A whole row, by name, with the beginning that all models continue."""
    was_training = model.training
    model.eval()
    try:
        row = examine(model, tokenizer, exam(200, REPORTING))
        row["tales"] = tales_without_contradiction(model, tokenizer)
        row["text"] = continued(model, tokenizer, [BEGINNING])[0]
    finally:
        model.train(was_training)
    return row


def climb(rung: str, model, tokenizer, folder: Path | None = None) -> dict:
    """Measure a model, keep its row, and print the ladder up to this rung.

    A rung is named by its chapter and its model: "5, your storyteller". Its row lies in
    a file of its own in your cache (or in `folder`), so that notebooks that run side by
    side lose nothing. Rungs that you have not climbed show the course's numbers.
    """
    row = {"rung": rung, **measure(model, tokenizer)}
    folder = folder or cache_folder() / "ladder"
    name = re.sub(r"[^a-z0-9]+", "-", rung.lower()).strip("-")
    write_atomically(folder / f"{name}.json", json.dumps(row, indent=1) + "\n")
    rows = rungs(folder)
    lower = [rows[name] for name in rows if height(name) <= height(rung)]
    print(table(lower), textwrap.fill(row["text"], 80), sep="\n\n")
    return row


def rungs(folder: Path | None = None) -> dict[str, dict]:
    """The rows of all rungs, the lowest first: yours, or else the course's.

    Raises:
        ValueError: if a file is damaged; the message names it.
    """
    folder = folder or cache_folder() / "ladder"
    rows = read_rows(STORED) if STORED.exists() else []
    for path in sorted(folder.glob("[!.]*.json")):
        rows += read_rows(path)
    return {
        row["rung"]: row for row in sorted(rows, key=lambda row: height(row["rung"]))
    }


def height(rung: str) -> tuple[bool, int, str]:
    """Where a rung is: by its chapter, and appendices after all chapters."""
    chapter = rung.split(",")[0]
    number = re.match(r"\d*", chapter)[0]
    return not number, int(number or 0), chapter[len(number) :]


def read_rows(path: Path) -> list[dict]:
    """The rows in a file: one, or a list of them.

    Raises:
        ValueError: if it is damaged; the message names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = found if isinstance(found, list) else [found]
        for row in rows:
            missing = {"rung", "nats", *KINDS, "tales", "text"} - row.keys()
            if missing:
                raise ValueError(f"no {', '.join(sorted(missing))} in a row")
            height(row["rung"]), table([row])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no row of the ladder ({error}); delete it and run the chapter "
            "again, or restore it"
        ) from error
    return rows


def table(rows: Iterable[dict]) -> str:
    """Rows of the ladder as text."""
    lines = [
        "                          nats a    named right, of 100    tales without",
        "rung                   character   who  what where whose   contradiction",
    ]
    for row in rows:
        shares = "".join(f"{percent(row[kind]):>6}" for kind in KINDS)
        lines.append(f"{row['rung']:<23}{row['nats']:>9.3f}{shares}{row['tales']:>15}")
    return "\n".join(lines)


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.0f}"
