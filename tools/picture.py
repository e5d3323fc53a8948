"""Draw the picture of the front page: the course's own model at work.

    python -m tools.picture docs/pictures/what-you-build.svg

Everything in it is computed when it is drawn: the tokens, what one attention head looks
at, the probabilities of the next token, and the story. Its random seed was chosen among
1, 2, 3 and 123, for a story with an end; chapters 5 and 7 show unselected ones.
"""

import argparse
import textwrap
from pathlib import Path

import torch

from ch05_pretraining.copying import attention_inputs
from shared.ch03 import attention_weights
from shared.ch05 import (
    generate,
    load_base,
    load_base_tokenizer,
    text_to_token_ids,
    token_ids_to_text,
)
from shared.drawings import Drawing
from shared.files import write_atomically
from shared.svg import Box, color_of

BEGINNING = "Once upon a time, a fox named Otto had a red kite. Otto lost his red"
TEMPERATURE, TOP_P, SEED, NEW_TOKENS = 0.6, 0.9, 2, 150
LIKELIEST = 5
LINE = 92  # characters


def tell(model, tokenizer, beginning: str) -> str:
    """The story that the model tells, to its end or to `NEW_TOKENS` tokens."""
    ids = generate(
        model,
        text_to_token_ids(beginning, tokenizer),
        NEW_TOKENS,
        model.cfg["context_length"],
        temperature=TEMPERATURE,
        eos_id=tokenizer.eot_token,
        top_p=TOP_P,
        generator=torch.Generator().manual_seed(SEED),
    )
    return token_ids_to_text(ids, tokenizer).partition("<|endoftext|>")[0].strip()


@torch.no_grad()
def look_back(model, ids: torch.Tensor) -> torch.Tensor:
    """What the induction head gives to each token, at the last one: (T,).

    It is the head that looks most at what came after the last token before.
    """
    after = (ids[0, :-1] == ids[0, -1]).nonzero()[:, 0] + 1
    rows = [
        attention_weights(block.att, x)[0, :, -1]
        for block, x in zip(model.trf_blocks, attention_inputs(model, ids), strict=True)
    ]
    heads = torch.cat(rows)  # (n_layers * H, T)
    return heads[heads[:, after].sum(dim=1).argmax()]


def draw(model, tokenizer, beginning: str = BEGINNING) -> Drawing:
    """The beginning in tokens, a look back, the next token, and the story."""
    ids = text_to_token_ids(beginning, tokenizer)
    tokens = [tokenizer.decode([i]) for i in ids[0].tolist()]
    with torch.no_grad():
        chances = torch.softmax(model(ids)[0, -1], dim=-1)
    story = tell(model, tokenizer, beginning)
    lines = [
        line
        for paragraph in story.split("\n")
        for line in textwrap.wrap(paragraph, LINE)
    ]
    d = Drawing(
        720,
        315 + 20 * len(lines),
        f"A text of {len(tokens)} tokens, what an attention head looks at, the "
        f"probabilities of the next token, and the story that the model tells: {story}",
    )
    d.text(
        20, 24, "You write a beginning. It becomes tokens.", bold=True, anchor="start"
    )
    boxes, x, y = [], 20, 88
    for token in tokens:
        (box,) = d.tokens(x, y, [token.strip()])
        boxes.append(box)
        x = box.right[0] + 3
    x, y = boxes[-1].top
    given = look_back(model, ids)[:-1].tolist()
    for box, weight in zip(boxes[:-1], given, strict=True):
        if weight > 0.05:
            corners = [(x, y), (x - 8, 62), (box.top[0] + 8, 62), (box.top[0], 86)]
            d._path(corners, color_of("vermillion"), thick=1 + 4 * weight)
    words = "one attention head looks back: what came after this word before?"
    d.text(boxes[-1].right[0], 50, words, anchor="end", color=color_of("vermillion"))
    d.text(
        20, 150, "It says how likely each next token is ...", bold=True, anchor="start"
    )
    best = chances.topk(LIKELIEST)
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    for row, (chance, i) in enumerate(pairs):
        y, long = 176 + 20 * row, 400 * chance
        d.text(130, y, tokenizer.decode([i]).strip(), anchor="end")
        d._rectangle(Box(140, y - 7, long, 14), color_of("blue"), None, corner=2)
        d.text(148 + long, y, f"{chance:.0%}", anchor="start")
    y = 296
    d.text(
        20, y, "... draws one, appends it, and asks again:", bold=True, anchor="start"
    )
    for line in lines:
        y += 20
        d.text(20, y, line, anchor="start")
    return d


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.picture",
        description="Draw the picture of the front page.",
    )
    parser.add_argument("path", type=Path, help="the file, NAME.svg")
    path = parser.parse_args(arguments).path
    write_atomically(path, draw(load_base(), load_base_tokenizer()).svg + "\n")


if __name__ == "__main__":
    main()
