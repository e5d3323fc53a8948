"""Write a model as one HTML file that you can send to somebody: it needs no network.

    python -m tools.page storyteller --out mine.html   your storyteller of chapter 5
    python -m tools.page base --out base.html          the course's base model
    python -m tools.page FOLDER --out mine.html        a folder that pretrain.own or
                                                       save_gpt2_folder has written
    python -m tools.page FILE --out mine.html          a file that save_checkpoint has
                                                       written, in chapters 5, 6 and 7
    python -m tools.page all --open                    the stored models and yours, and
                                                       a list of them: `make play`

Until you have trained a storyteller, the course's copy stands in for yours.
"""

import argparse
import html
import sys
import textwrap
import webbrowser
from pathlib import Path

import regex

from ch02_text_data.bpe import _LETTER, _NUMBER
from ch05_pretraining.storyteller import STORYTELLER_FILES, stored_storyteller
from shared.ch02 import BPETokenizer
from shared.ch04 import GPTModel
from shared.ch05 import (
    build_pretrained,
    load_base,
    load_base_tokenizer,
    load_storyteller,
    model_from_checkpoint,
    read_checkpoint,
    read_gpt2_folder,
    storyteller_folder,
)
from shared.ch06 import LABELS, load_classifier
from shared.data import cache_folder
from shared.files import write_atomically
from shared.page import save_page

BASE_ABOUT = (
    "A small GPT, built and trained from scratch. It has read Wikipedia, news, "
    "dialogues and stories for children, and tells such stories. It knows little, and "
    "nobody has checked what it says. Licence of the weights: CC BY-SA 4.0."
)
STORYTELLER_ABOUT = (
    "A small GPT, built and trained from scratch in chapter 5 of the course. It has "
    "read nothing but tales of one small village, which a program makes up. Licence of "
    "the weights: CC0 1.0."
)
MINE_ABOUT = (
    "A small GPT, built and trained from scratch. Ask whoever made it what it has read."
)
BASE_BORN = (
    "A small GPT, built from scratch. It went on from the base model of the course, "
    "which has read Wikipedia, news, dialogues and stories for children. Licence of "
    "the weights: CC BY-SA 4.0."
)
TELLER = {
    "title": "My storyteller",
    "about": STORYTELLER_ABOUT,
    "beginning": "Once upon a time there was a fox named Zoe",
}
LARGEST = 200_000_000  # bytes of a model's file that `all` makes a page of
INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Models to play with</title>
<style>body {{ margin: 2rem auto; padding: 0 1rem; max-width: 40rem;
font: 1.1rem/1.6 system-ui, sans-serif; }} li {{ margin: 0.8rem 0; }}</style></head>
<body><h1>Models to play with</h1>
<ul>
{links}
</ul>
<p>Each is one file of this folder, which needs nothing else: send one to somebody.</p>
</body></html>
"""


def character_classes() -> str:
    """`shared/page_parts/unicode.js`: what chapter 2b calls letters, digits and spaces.

    Written out, because each version of each browser knows another Unicode.
    """
    text = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    lines = [
        "// Which characters are letters, digits and spaces when a text is cut into",
        "// words: chapter 2b's, as a regular expression. Written by tools/page.py.",
        '"use strict";',
    ]
    for name, members in (("LETTER", _LETTER), ("NUMBER", _NUMBER), ("SPACE", r"\s")):
        runs = [match[0] for match in regex.finditer(rf"(?V1)[{members}]+", text)]
        ends = [dict.fromkeys([ord(run[0]), ord(run[-1])]) for run in runs]
        ranges = ["-".join(rf"\u{{{code:x}}}" for code in pair) for pair in ends]
        wrapped = textwrap.wrap(" ".join(ranges), 88)
        lines += ["", f"const {name} = String.raw`", *wrapped, '`.replace(/\\s/g, "");']
    return "\n".join(lines) + "\n"


def load(name: str, labels: list[str] | None = None) -> tuple:
    """A model, its tokenizer, and how its page is to be made.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if its files are damaged, or no tokenizer fits it.
    """
    if name == "base":
        settings = {"title": "The base model", "about": BASE_ABOUT}
        return load_base(), load_base_tokenizer(), settings
    if name == "storyteller":
        return *load_storyteller(), dict(TELLER)
    path = Path(name)
    title = path.resolve().stem.replace("_", " ").replace("-", " ")
    settings = {"title": title}
    if path.is_file() and path.suffix == ".safetensors":
        model = load_file(path)
        if "num_classes" in model.cfg:
            settings["labels"] = labels or list(LABELS)
        tokenizer = tokenizer_for(model)
        return model, tokenizer, settings | {"about": born(tokenizer)}
    if not (path / "config.json").is_file() and (path / "model/config.json").is_file():
        path /= "model"  # pretrain.own puts its model there, beside the report
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{name} is neither base nor storyteller, nor a folder with "
            "config.json, nor a file of save_checkpoint that ends in .safetensors"
        )
    model = build_pretrained(*read_gpt2_folder(path))
    if (path / "tokenizer.json").is_file():
        tokenizer = BPETokenizer.load(path / "tokenizer.json")
    else:
        tokenizer = tokenizer_for(model)
    return model, tokenizer, settings | {"about": born(tokenizer)}


def born(tokenizer: BPETokenizer) -> str:
    """What a page says of a model, as far as its tokenizer tells where it is from."""
    from_base = tokenizer.merges == load_base_tokenizer().merges
    return BASE_BORN if from_base else MINE_ABOUT


def load_file(path: Path) -> GPTModel:
    """The model in a file of `save_checkpoint`: chapter 5's, 6's or 7's."""
    config = read_checkpoint(path)[0]["config"] or {}
    if "num_classes" in config:
        return load_classifier(path)
    if "vocab_size" not in config:
        raise ValueError(
            f"{path} does not say how its model is built, as a part of a LoRA model "
            "does not; load and merge it, and call shared.page.save_page"
        )
    return model_from_checkpoint(path, with_its_style)


def with_its_style(config: dict) -> GPTModel:
    """A model of these settings, which may name chapter 7's prompt style."""
    model = GPTModel({k: v for k, v in config.items() if k != "prompt_style"})
    model.cfg = dict(config)
    return model


def tokenizer_for(model: GPTModel) -> BPETokenizer:
    """The course's tokenizer with as many tokens as the model knows."""
    n_vocab = model.cfg["vocab_size"]
    for tokenizer in (load_storyteller()[1], load_base_tokenizer()):
        if tokenizer.n_vocab == n_vocab:
            return tokenizer
    if n_vocab == 50257:
        return BPETokenizer.from_gpt2()
    raise ValueError(
        f"the model knows {n_vocab:,} tokens, and no tokenizer of the course has as "
        "many; put its tokenizer.json beside its config.json, or call "
        "shared.page.save_page"
    )


def stored_and_own() -> dict[str, str]:
    """The models of which `all` writes pages: a file's name, and where the model is.

    Those in your cache that are as large as GPT-2 are left out.
    """
    found = {"storyteller": str(stored_storyteller()), "base": "base"}
    if (storyteller_folder() / STORYTELLER_FILES[0]).is_file():
        found["my_storyteller"] = "storyteller"
    cache, named = cache_folder(), (storyteller_folder(),)
    for path in sorted(cache.rglob("*.safetensors")):
        if path.parent in named or path.stat().st_size > LARGEST:
            continue
        place = path.parent if path.name == "model.safetensors" else path
        found["_".join(place.relative_to(cache).with_suffix("").parts)] = str(place)
    return found


def write_all(folder: Path, large: bool = False) -> Path:
    """Write the pages of all models that there are, and one that lists them."""
    for name, place in stored_and_own().items():
        try:
            model, tokenizer, settings = load(place)
            if name == "storyteller":
                settings = TELLER | {"title": "The course's storyteller"}
            options = {"overwrite": True, "large": large}
            page = save_page(
                model, tokenizer, folder / f"{name}.html", **settings, **options
            )
            print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
        except (OSError, TypeError, ValueError) as error:
            print(f"no page of {place}: {error}", file=sys.stderr)
    pages = sorted(p for p in folder.glob("*.html") if p.name != "index.html")
    links = [
        f'<li><a href="{html.escape(page.name)}">{html.escape(page.stem)}</a>, '
        f"{page.stat().st_size / 1e6:.1f} MB</li>"
        for page in pages
    ]
    write_atomically(folder / "index.html", INDEX.format(links="\n".join(links)))
    return folder / "index.html"


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.page",
        description="Write a model as one HTML file that needs no network.",
    )
    add = parser.add_argument
    add(
        "model",
        help="base, storyteller, all, a folder or a file of a saved model",
    )
    add("--out", type=Path, help="the file, NAME.html; of all, the folder")
    add("--title", help="what the page is called")
    add("--about", help="what the model has read, and its licence")
    add("--beginning", help="what stands in the text field at first")
    add("--labels", help="a classifier's classes, as in: 'not spam,spam'")
    add("--overwrite", action="store_true", help="replace the file")
    add("--large", action="store_true", help="allow more than 50 MB")
    add("--open", action="store_true", help="open the page in your browser")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.model == "all":
            path = write_all(chosen.out or cache_folder() / "pages", chosen.large)
        else:
            path = write_one(chosen)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    size = "" if chosen.model == "all" else f": {path.stat().st_size / 1e6:.1f} MB"
    print(f"{path}{size}. Open it in a browser.")
    if chosen.open and not webbrowser.open(path.resolve().as_uri()):
        print("This machine opens no browser by itself: open the file in one.")


def write_one(chosen: argparse.Namespace) -> Path:
    """The page of one model, as the command's options say."""
    if chosen.out is None:
        raise ValueError("name the file, as in --out my_model.html")
    if chosen.out.exists() and not chosen.overwrite:  # before a model is loaded
        raise FileExistsError(f"{chosen.out} exists already; add --overwrite")
    labels = chosen.labels and [label.strip() for label in chosen.labels.split(",")]
    model, tokenizer, settings = load(chosen.model, labels)
    if labels:
        settings["labels"] = labels
    for name in ("title", "about", "beginning"):
        if getattr(chosen, name) is not None:
            settings[name] = getattr(chosen, name)
    options = {"overwrite": chosen.overwrite, "large": chosen.large}
    return save_page(model, tokenizer, chosen.out, **settings, **options)


if __name__ == "__main__":
    main()
