"""What the playground draws, as HTML: every text in it is escaped.

Colours are those of `shared.plots`, mixed with the page's background, so that they can
be read on light pages and on dark ones. `CSS` has to be given to each pane.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from matplotlib.image import imsave

from playground.compute import Step, Token, Verdict
from shared.plots import COLORS

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = COLORS[:6]
TOKEN_COLORS = 5  # neighbours never have the same

CSS = f"""
:host {{ color: var(--ink); font: 15px/1.5 Helvetica, Arial, sans-serif; }}
:host > div {{ visibility: inherit !important; }}  /* hidden with its tab */
p {{ margin: 0 0 0.5em; }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75; }}
.box {{ border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px;
    background: var(--card); min-height: 1.5em; }}
.story {{ max-height: 26em; overflow-y: auto; display: flex;
    flex-direction: column-reverse; }}  /* so that it shows its end */
.given {{ opacity: 0.72; }}
.new {{ background: color-mix(in srgb, {SKY} 35%, transparent); border-radius: 3px; }}
.token {{ border-radius: 3px; padding: 1px 0; }}
.t0 {{ background: color-mix(in srgb, {SKY} 38%, transparent); }}
.t1 {{ background: color-mix(in srgb, {ORANGE} 38%, transparent); }}
.t2 {{ background: color-mix(in srgb, {GREEN} 34%, transparent); }}
.t3 {{ background: color-mix(in srgb, {PURPLE} 36%, transparent); }}
.t4 {{ background: color-mix(in srgb, {VERMILLION} 30%, transparent); }}
.byte {{ font: 0.8em ui-monospace, monospace; }}
.mark {{ opacity: 0.45; }}
.note, .legend {{ color: var(--quiet); font-size: 13.5px; }}
.error {{ border-left: 4px solid {VERMILLION}; padding: 4px 10px; }}
h4 {{ margin: 0.9em 0 0.3em; font-size: 15px; }}
h4:first-child {{ margin-top: 0; }}
.bars {{ display: grid; grid-template-columns: minmax(4.5em, max-content) 1fr 3.2em;
    gap: 4px 8px; align-items: center; font-size: 14px; min-height: 15.2em; }}
.bars .name {{ text-align: right; white-space: pre; overflow: hidden;
    text-overflow: ellipsis; max-width: 9em; font-family: ui-monospace, monospace; }}
.bars .drawn {{ font-weight: 700; }}
.rail {{ position: relative; height: 20px; border-radius: 3px;
    background: var(--rail); }}
.rail div {{ position: absolute; left: 0; border-radius: 3px; }}
.rail .model {{ top: 0; height: 8px; background: {SKY}; }}
.rail .after {{ bottom: 0; height: 11px; background: {ORANGE}; }}
.value {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.key {{ display: inline-block; width: 0.9em; height: 0.9em; border-radius: 2px;
    vertical-align: -0.1em; margin-right: 0.3em; }}
.heads {{ display: grid; gap: 4px; }}
.heads img {{ width: 100%; aspect-ratio: 1; image-rendering: pixelated; display: block;
    background: var(--rail); }}
.heads .chosen {{ outline: 2px solid {ORANGE}; }}
.wide {{ overflow-x: auto; }}
svg {{ display: block; }}
svg text {{ fill: var(--ink); font: 12px ui-monospace, monospace; }}
.verdict {{ font-size: 20px; font-weight: 700; }}
.said {{ max-width: 85%; border-radius: 12px; padding: 8px 12px; margin: 6px 0;
    width: fit-content; white-space: pre-wrap; overflow-wrap: anywhere;
    background: var(--rail); }}
.said.user {{ margin-left: auto;
    background: color-mix(in srgb, {SKY} 32%, transparent); }}
"""

SPACE, LINE_END, TAB = "\u00b7", "\u21b5", "\u21e5"


def error(message: str) -> str:
    """A sentence about what went wrong."""
    return f'<div class="error" role="alert">{escape(message)}</div>'


def note(message: str) -> str:
    """A sentence beside the matter."""
    return f'<p class="note">{escape(message)}</p>'


def label(token: Token) -> str:
    """A token as plain text, with its spaces visible, for pictures and lists."""
    text = token.text
    if text is None:
        return " ".join(f"{byte:02X}" for byte in token.data)
    marks = {" ": SPACE, "\n": LINE_END, "\t": TAB, "\r": LINE_END}
    shown = "".join(marks.get(c, c) for c in text)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def _inside(token: Token) -> str:
    """A token as HTML within a text: what it says, with spaces as small points."""
    if token.text is None:
        return f'<span class="byte">{escape(label(token))}</span>'
    marks = {" ": SPACE, "\n": f"{LINE_END}</span>\n", "\t": f"{TAB}</span>\t"}
    parts = []
    for character in token.text:
        if character in marks:
            mark = marks[character]
            close = "" if mark.endswith(("\n", "\t")) else "</span>"
            parts.append(f'<span class="mark">{mark}{close}')
        elif character.isprintable():
            parts.append(escape(character))
        else:
            parts.append(f'<span class="byte">\\x{ord(character):02x}</span>')
    return "".join(parts)


def tokens(found: Sequence[Token], heading: str) -> str:
    """A text in tokens, one colour after the other; pointing at one shows its id."""
    spans = "".join(
        f'<span class="token t{i % TOKEN_COLORS}" title="id {token.id}">'
        f"{_inside(token)}</span><wbr>"
        for i, token in enumerate(found)
    )
    return f'<h4>{escape(heading)}</h4><div class="text box">{spans}</div>'


def story(given: str, written: str, newest: str = "") -> str:
    """What was given, what the model wrote after it, and its last token."""
    return (
        f'<div class="box story"><div class="text"><span class="given">{escape(given)}'
        f'</span>{escape(written)}<span class="new">{escape(newest)}</span></div></div>'
    )


def empty(words: str) -> str:
    """A box in which nothing stands yet."""
    return f'<div class="text box note">{escape(words)}</div>'


def percent(share: float) -> str:
    """A probability as one reads it: 7.3 %, 45 %, under 0.1 %."""
    if share >= 0.0995:
        return f"{share:.0%}".replace("%", " %")
    return f"{share:.1%}".replace("%", " %") if share >= 0.001 else "0 %"


def duration(seconds: float) -> str:
    """A time as one says it: 40 seconds, about 3 minutes."""
    if seconds < 55:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"about {minutes} minute{'s' if minutes > 1 else ''}"


def next_token(step: Step | None) -> str:
    """The likeliest tokens at one place: as the model sees them, and as drawn."""
    legend = (
        '<p class="legend"><span class="key" style="background:'
        f'{SKY}"></span>as the model has it &emsp;<span class="key" style='
        f'"background:{ORANGE}"></span>after temperature, top-k and top-p</p>'
    )
    rows = []
    for chance in step.likeliest if step else []:
        here = " drawn" if chance.token.id == step.token.id else ""
        rows.append(
            f'<div class="name{here}">{"&#9656; " if here else ""}'
            f"{escape(label(chance.token))}</div>"
            '<div class="rail">'
            f'<div class="model" style="width:{chance.model:.2%}"></div>'
            f'<div class="after" style="width:{chance.drawn:.2%}"></div></div>'
            f'<div class="value{here}">{percent(chance.drawn)}</div>'
        )
    return f'<h4>The next token</h4>{legend}<div class="bars">{"".join(rows)}</div>'


def _shade(weight: float) -> float:
    """How opaque the colour of a weight is; the root lets small weights be seen."""
    return 0.04 + 0.96 * weight**0.5


def looks(found: Sequence[Token], weights: torch.Tensor, t: int) -> str:
    """A sentence, each token as blue as the weight that token t gives to it: (T, T)."""
    spans = []
    for i, token in enumerate(found):
        weight = weights[t, i].item() if i <= t else 0.0
        style = (
            f"background: color-mix(in srgb, {BLUE} {_shade(weight):.0%}, transparent)"
        )
        if weight > 0.4:
            style += "; color: white"
        if i == t:
            style += f"; outline: 2px solid {ORANGE}"
        elif i > t:
            style += "; opacity: 0.45"
        says = percent(weight) if i <= t else "later: hidden by the mask"
        spans.append(
            f'<span class="token" title="{escape(says)}" style="{style}">'
            f"{_inside(token)}</span><wbr>"
        )
    return f'<div class="text box">{"".join(spans)}</div>'


def heat_map(found: Sequence[Token], weights: torch.Tensor, t: int) -> str:
    """All weights of a head, (T, T): each row is a token that looks back."""
    cell, names = 17, [label(token) for token in found]
    names = [name if len(name) <= 12 else name[:11] + "\u2026" for name in names]
    left = 12 + max(8 * len(name) for name in names)
    size = cell * len(names)
    drawn = []
    for i, name in enumerate(names):
        y = left + cell * i
        bold = ' font-weight="bold"' if i == t else ""
        drawn.append(
            f'<text x="{left - 6}" y="{y + 12}" text-anchor="end"{bold}>'
            f"{escape(name)}</text>"
            f'<text transform="translate({y + 12} {left - 6}) rotate(-90)">'
            f"{escape(name)}</text>"
        )
        for j in range(i + 1):
            weight = weights[i, j].item()
            drawn.append(
                f'<rect x="{left + cell * j}" y="{y}" width="{cell - 1}" height='
                f'"{cell - 1}" fill="{BLUE}" fill-opacity="{_shade(weight):.2f}">'
                f"<title>{escape(name)} gives {escape(names[j])} {percent(weight)}"
                "</title></rect>"
            )
    drawn.append(
        f'<rect x="{left - 1}" y="{left + cell * t - 1}" width="{cell * (t + 1) + 1}" '
        f'height="{cell + 1}" fill="none" stroke="{ORANGE}" stroke-width="2"/>'
    )
    side = left + size + 4
    return (
        f'<div class="wide"><svg width="{side}" height="{side}" role="img" aria-label='
        f'"Attention weights of {len(names)} tokens">{"".join(drawn)}</svg></div>'
    )


def all_heads(weights: torch.Tensor, block: int, head: int) -> str:
    """A small picture of each head's weights (n_layers, H, T, T); one is chosen."""
    n_layers, n_heads, T, _ = weights.shape
    pixels = np.empty((n_layers, n_heads, T, T, 4), dtype=np.uint8)
    pixels[..., :3] = [int(BLUE[i : i + 2], 16) for i in (1, 3, 5)]
    pixels[..., 3] = (255 * weights.sqrt()).round().numpy()
    pictures = []
    for h in range(n_heads):
        for n in range(n_layers):
            file = io.BytesIO()
            imsave(file, pixels[n, h], format="png")
            source = base64.b64encode(file.getvalue()).decode()
            name = f"block {n + 1}, head {h + 1}"
            chosen = ' class="chosen"' if (n, h) == (block, head) else ""
            pictures.append(
                f'<img src="data:image/png;base64,{source}" alt="{name}" '
                f'title="{name}"{chosen}>'
            )
    columns = f"grid-template-columns: repeat({n_layers}, minmax(0, 52px))"
    return (
        "<h4>All heads</h4>"
        '<p class="legend">From left to right the blocks, from top to bottom their '
        "heads.</p>"
        f'<div class="heads" style="{columns}">{"".join(pictures)}</div>'
    )


def verdict(found: Verdict) -> str:
    """The filter's word, and the message in the colours of what moved it."""
    word = "spam" if found.log_odds > 0 else "not spam"
    largest = max([abs(change) for change in found.moved] + [0.5])
    spans = []
    for piece, change in zip(found.pieces, found.moved, strict=True):
        color = VERMILLION if change > 0 else BLUE
        strength = 60 * min(1.0, abs(change) / largest)
        spans.append(
            f'<span class="token" title="{change:+.2f}" style="background: color-mix('
            f'in srgb, {color} {strength:.0f}%, transparent)">{escape(piece)}</span>'
        )
    return (
        f'<p class="verdict">{word}</p>'
        "<p>The filter says that it is spam with a probability of "
        f"{found.probability * 100:.1f} % (log-odds {found.log_odds:+.1f}).</p>"
        f'<div class="text box">{"".join(spans)}</div>'
        f'<p class="legend"><span class="key" style="background:{VERMILLION}"></span>'
        'speaks for spam &emsp;<span class="key" style='
        f'"background:{BLUE}"></span>speaks against it. Each part of the message was '
        "left out once; its colour says how far that moved the log-odds.</p>"
    )


def conversation(messages: Sequence[dict[str, str]]) -> str:
    """What was said so far, the user at the right."""
    if not messages:
        return empty("The conversation will stand here.")
    said = "".join(
        f'<div class="said {message["role"]}">{escape(message["content"])}</div>'
        for message in messages
    )
    return f'<div class="box story"><div>{said}</div></div>'
