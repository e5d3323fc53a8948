"""The numbers that a notebook's text states can be found where they were measured.

A percentage or a decimal such as a loss ("83.7 %", "2.47") has to stand in the code or
the outputs of its notebook, in a record that its section names, or in a paragraph that
cites a paper. Formulas and code are left out, and so are the numbers of sections.
"""

import functools
import json
import re
from pathlib import Path

import nbformat
import pytest

from tools.export import ROOT, chapter_notebooks

# Notebooks whose texts pass. The list may only grow.
COVERED = """
ch02_text_data/text_data.ipynb
ch02_text_data/text_data_deeper.ipynb
ch02_text_data/bpe.ipynb
ch02_text_data/bpe_deeper.ipynb
ch03_attention/deeper.ipynb
ch04_gpt_model/deeper.ipynb
ch05_pretraining/pretraining.ipynb
ch05_pretraining/pretraining_deeper.ipynb
ch05_pretraining/weights.ipynb
ch06_classification/classification.ipynb
ch08_modern_models/modern_models_deeper.ipynb
ch08_modern_models/smollm2.ipynb
ch09_rewards/rewards.ipynb
ch09_rewards/deeper.ipynb
appendix_a_pytorch/pytorch.ipynb
appendix_a_pytorch/pytorch_deeper.ipynb
appendix_a_pytorch/readiness.ipynb
appendix_e_lora/lora.ipynb
appendix_e_lora/deeper.ipynb
appendix_f_speed/speed.ipynb
appendix_f_speed/speed_deeper.ipynb
appendix_f_speed/writing.ipynb
""".split()

# Numbers that stand nowhere, and why they may: (notebook, number) -> the reason.
ALLOWED = {
    ("appendix_a_pytorch/pytorch_deeper.ipynb", "0.2"): "a prediction; then measured",
    ("appendix_f_speed/speed_deeper.ipynb", "2.13"): "a version of PyTorch",
    (
        "appendix_f_speed/writing.ipynb",
        "75.5 MB",
    ): "the product that its sentence names",
    ("ch04_gpt_model/deeper.ipynb", "0.01"): "a number of OpenAI's published code",
}

UNITS = {"kB": 1e3, "thousand": 1e3, "MB": 1e6, "million": 1e6, "GB": 1e9}
NUMBER = re.compile(
    r"(?<![\w.:/])[-+]?(\d[\d,]*(?:\.\d+)?)"
    rf"(?:\s?(%|{'|'.join(UNITS)}))?(?!\w*\d)"
)
NOT_PROSE = [
    r"```.*?```",  # code, and diagrams
    r"\$\$.*?\$\$",
    r"\$[^$\n]+\$",
    r"`[^`\n]+`",
    r"\]\([^)]*\)",  # where a link leads
    r"https?://\S+",
    r"arXiv:\S+",
    r"(?m)^#[^\n]*$",  # headings
    r"(?<=\|) *[0-9A-F]b?\.\d+ *(?=\|)",  # a section, in a table of names
    r"(?i)\b(?:sections?|equations?|eqs?\.|exercises?|chapters?|appendix|figures?|tables?)"
    r"\s+[0-9A-Z][0-9a-z]*\.\d+(?:(?:,| and| or| to)+\s*[0-9A-Z][0-9a-z]*\.\d+)*",
    r"\b(?:Python|PyTorch|torch|Unicode|pandas|NumPy|version)\s+\d+(?:\.\d+)+",
]
# Thought experiments: questions at a chapter's end, with their answers.
QUESTIONS = re.compile(r"\*\*Check yourself.*|<summary>\d+\. .*?</details>", re.DOTALL)
CITED = re.compile(
    r"\b(?:19|20)\d\d\b.*(?:et al|\))|et al\.|arXiv|book reports", re.DOTALL
)
RECORD = re.compile(r"[\w./-]+\.(?:jsonl?|csv|md|txt)\b")


def stated(text: str) -> list[str]:
    """The percentages and the decimals of a text."""
    for pattern in NOT_PROSE:
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    found = []
    for number, unit in NUMBER.findall(text):
        if unit == "%" or "." in number:
            found.append(f"{number.replace(',', '')} {unit}".strip())
    return found


@functools.cache
def numbers_in(text: str) -> frozenset[float]:
    """All numbers of an output, or of a record."""
    found = re.findall(r"\d[\d,_]*\.?\d*(?:e[-+]?\d+)?", re.sub("<[^>]*>", " ", text))
    return frozenset(
        float(x.replace(",", "").replace("_", "").rstrip(".") or 0) for x in found
    )


def is_there(number: str, measured: frozenset[float]) -> bool:
    """Whether a number is one of those that were measured, rounded as it is."""
    digits, _, unit = number.partition(" ")
    value, half = float(digits), 0.5000001 * 10.0 ** -len(digits.partition(".")[2])
    sizes = {1.0, 0.01 if unit == "%" else UNITS.get(unit, 1.0)}
    return any(abs(value - m / size) <= half for m in measured for size in sizes)


def shown_by(cell) -> str:
    """Everything that a code cell says and shows."""
    parts = [cell.source]
    for output in cell.get("outputs", []):
        parts.append(output.get("text", ""))
        for kind, data in output.get("data", {}).items():
            if kind == "text/html":  # also the words of a drawing; not its strokes
                parts.append(re.sub(r'src="[^"]*"', "", data).replace('alt="', "> "))
            elif kind == "text/plain":
                parts.append(data)
    return "\n".join(parts)


def records(section: str, folder: Path) -> str:
    """The text of all records that a section names."""
    texts = []
    for name in RECORD.findall(section):
        places = [folder, ROOT, ROOT / "data", ROOT / "data/base"]
        places += [ROOT / "experiments/records", ROOT / "docs"]
        files = [place / name for place in places]
        texts += [x.read_text(encoding="utf-8") for x in files if x.is_file()][:1]
    return "\n".join(texts)


@functools.cache
def cells_of(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def all_shown(path: Path) -> str:
    """What all code cells of a notebook say and show."""
    return "\n".join(shown_by(c) for c in cells_of(path) if c.cell_type == "code")


@functools.cache
def notebook_with(number: str) -> Path | None:
    """The notebook that has a section of this number."""
    for path in NOTEBOOKS:
        if any(f"## {number} " in c.source for c in cells_of(path)):
            return path
    return None


def named_notebooks(paragraph: str, path: Path) -> str:
    """What the notebooks show that a paragraph links to, or names by a section."""
    links = [path.parent / x for x in re.findall(r"\]\((\S+\.ipynb)\)", paragraph)]
    numbers = re.findall(r"\b(?:\d[b-c]?|[A-F]b?)\.\d+\b", paragraph)
    others = [*links, *filter(None, map(notebook_with, numbers))]
    return "\n".join(all_shown(x.resolve()) for x in others if x.is_file())


def sections_of(path: Path) -> list[list[tuple[int, object]]]:
    """The cells of each section, each with its number in the notebook."""
    sections = [[]]
    for n, cell in enumerate(cells_of(path)):
        if cell.cell_type == "markdown" and re.search("(?m)^## ", cell.source):
            sections.append([])
        sections[-1].append((n, cell))
    return sections


def homeless(path: Path) -> list[tuple[int, str, str]]:
    """The cell, the number and the paragraph of each number that stands nowhere else.

    A number with three digits or more may stand anywhere in the notebook. A shorter one
    would be found anywhere by chance, so it has to stand in its section or the last.
    """
    found, everywhere = [], numbers_in(all_shown(path))
    before = ""
    for section in sections_of(path):
        here = "\n".join(shown_by(c) for _, c in section if c.cell_type == "code")
        text = "\n".join(c.source for _, c in section)
        near = numbers_in(f"{before}\n{here}\n{records(text, path.parent)}")
        before = here
        for n, cell in section:
            if cell.cell_type != "markdown":
                continue
            for paragraph in re.sub(QUESTIONS, "", cell.source).split("\n\n"):
                if CITED.search(paragraph):
                    continue
                other = numbers_in(named_notebooks(paragraph, path))
                for number in stated(paragraph):
                    long = len(re.sub(r"\D", "", number).lstrip("0")) >= 3
                    known = near | other | (everywhere if long else frozenset())
                    allowed = (name_of(path), number) in ALLOWED
                    allowed |= notebook_with(number) == path  # "in 4.12", a section
                    if not allowed and not is_there(number, known):
                        found.append((n, number, " ".join(paragraph.split())))
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


NOTEBOOKS = [path for path in chapter_notebooks() if path.name != "solutions.ipynb"]


@pytest.mark.parametrize("name", COVERED)
def test_each_number_in_a_text_stands_where_it_was_measured(name):
    found = [
        f"cell {n}: {number} in: {paragraph}"
        for n, number, paragraph in homeless(ROOT / name)
    ]
    assert not found, (
        "show the number in an output, name its record (a file) in the section, name "
        "the section that measured it, or leave it out:\n" + "\n".join(found)
    )


def test_nearly_all_notebooks_are_covered(capsys):
    names = set(map(name_of, NOTEBOOKS))
    assert set(COVERED) <= names and len(COVERED) == len(set(COVERED)) >= 22
    with capsys.disabled():
        print(
            f"\nnumbers: {len(COVERED)} of {len(names)} notebooks are covered;", end=""
        )
        print(f" {len(ALLOWED)} numbers may stand nowhere", end=" ")
    assert len(ALLOWED) < 10


def test_an_allowed_number_is_still_stated():
    for name, number in ALLOWED:
        cells = cells_of(ROOT / name)
        assert any(number in stated(c.source) for c in cells), (name, number)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It is 83.7 % now, from 8%.", ["83.7 %", "8 %"]),
        ("The loss falls to 2.47, by 1,234.5 steps.", ["2.47", "1234.5"]),
        ("See section 3.7, sections 5.1 to 5.3 and [this](x_2.5.ipynb).", []),
        ("With $x = 2.5$ and `rate=0.1`, in Python 3.11: arXiv:1412.6980", []),
        ("```\n2.47\n```", []),
        ("## 2.3 A heading\n\nThree of 17.", []),
        ("It has 134.5 million of them, in 0.5 GB.", ["134.5 million", "0.5 GB"]),
    ],
)
def test_what_counts_as_a_number(text, numbers):
    assert stated(text) == numbers


@pytest.mark.parametrize(
    ("number", "output", "found"),
    [
        ("2.47", "loss 2.4689", True),
        ("2.47", "loss 2.4650", True),
        ("2.47", "loss 2.4649", False),
        ("83.7 %", "accuracy 0.8371", True),
        ("83.7 %", "83.74%", True),
        ("83.7 %", "0.8377 of them", False),
        ("1.2 million", "1,234,567 parameters", True),
        ("0.5 GB", "497,759,232 bytes", True),
        ("2.47", "<td>2.47</td>", True),
    ],
)
def test_a_number_is_found_if_it_is_rounded_right(number, output, found):
    assert is_there(number, numbers_in(output)) == found


def notebook(folder, text):
    """A notebook with one output, and this text below it."""
    code = nbformat.v4.new_code_cell("loss = measure()")
    code.outputs = [nbformat.v4.new_output("stream", text="loss 2.4689\n")]
    texts = [nbformat.v4.new_markdown_cell(x) for x in ("## 9.1 A section", text)]
    path = folder / "some.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[texts[0], code, texts[1]]), path)
    return path


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The loss is 2.47.", []),
        ("The loss is 2.57.", ["2.57"]),
        ("The loss is 2.57 (`five_seeds.json`).", []),
        ("Hu et al. (2021) report 2.57.", []),
    ],
)
def test_a_number_that_stands_nowhere_is_found(tmp_path, monkeypatch, text, left):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "five_seeds.json").write_text('{"loss": 2.5701}')
    assert [number for _, number, _ in homeless(notebook(tmp_path, text))] == left


def test_the_introduction_describes_the_model_that_comes_with_the_course():
    page = " ".join((ROOT / "docs/introduction.md").read_text("utf-8").split())
    config = json.loads((ROOT / "data/base/config.json").read_text("utf-8"))
    assert f"{config['vocab_size']:,} in the model that comes with" in page
    assert f"{config['n_layer']} times in the course's model" in page


if __name__ == "__main__":
    for path in NOTEBOOKS:
        findings = homeless(path)
        print(f"{name_of(path)}: {len(findings)}")
        for n, number, paragraph in findings:
            at = paragraph.find(number.split()[0])
            print(f"    [{n}] {number}: ... {paragraph[max(0, at - 60) : at + 40]}")
