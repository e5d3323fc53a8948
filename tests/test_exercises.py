"""The checks of the exercises: what they accept, what they refuse, and in which words.

`wrong_answers.txt` has right and wrong answers to try, as changes of the solutions.
Each check also gets blanks, and values that no check expects.
"""

import itertools
import linecache
import math
import random
import re
from functools import cache
from importlib import import_module

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn

import shared.exercises
from shared.ch02 import merge_by_rank, split_text
from shared.ch04 import GPTModel, generate_text_simple
from shared.exercises import NotYet, checked, close, number, tensor, yes_or_no
from tools.export import ROOT

TABLE = (ROOT / "tests/wrong_answers.txt").read_text(encoding="utf-8")
# What answers may use beyond the names of their notebook; `yielded` makes a generator.
OFTEN = {"F": F, "itertools": itertools, "math": math, "nn": nn, "np": np, "re": re}
OFTEN |= {"random": random, "torch": torch, "yielded": lambda xs: (x for x in xs)}
OFTEN |= {f.__name__: f for f in (merge_by_rank, split_text, generate_text_simple)}
OFTEN["GPTModel"] = GPTModel


def read_table():
    """For each check, as (folder, name), pairs of an answer and what is said of it."""
    found = {}
    for section in TABLE.split("\n== ")[1:]:
        heading, *lines = filter(None, section.split("\n"))
        start, check = heading.split()
        (folder,) = (
            path.parent.name for path in ROOT.glob(f"{start}_*/solutions.ipynb")
        )
        found[folder, check] = [line.split(" :: ", 1) for line in lines]
    return found


CASES = read_table()
FOLDERS = list(dict.fromkeys(folder for folder, _ in CASES))
each_folder = pytest.mark.parametrize("folder", FOLDERS)
each_check = pytest.mark.parametrize("key", CASES, ids="-".join)


@cache
def notebook(folder, stem):
    return nbformat.read(ROOT / folder / f"{stem}.ipynb", as_version=4)


class Answers:
    """The answers of a notebook: `names` that are defined, `sources` of those to find.

    `calls` has, for each check, the names of the answers that it is called with.
    """

    def __init__(self, folder, stem):
        self.names, self.sources, self.calls = dict(OFTEN), {}, {}
        code = [c.source for c in notebook(folder, stem).cells if c.cell_type == "code"]
        solutions = [c.source for c in notebook(folder, "solutions").cells]
        marked = "\n".join(source for source in solutions if "BEGIN SOL" in source)
        wanted = set(re.findall(r"^def (\w+)", marked, re.M))
        exec(code[0], self.names)
        for source in code[1:]:
            if defined := wanted & set(re.findall(r"^def (\w+)", source, re.M)):
                exec(source, self.names)
                self.sources |= dict.fromkeys(defined, bare(source))
            elif call := re.match(r"checks\.(\w+)\((.*)\)", source):
                self.calls[call[1]] = [name.strip() for name in call[2].split(",")]

    def of(self, check):
        return [self.names[name] for name in self.calls[check]]

    def changed(self, check, change):
        """The answers to a check after a change, in the words of the table."""
        arguments, names = self.calls[check], dict(self.names)
        source = "\n".join(dict.fromkeys(self.sources[name] for name in arguments))
        if "→" in change:
            for part in change.replace("¶", "\n").split(" && "):
                old, new = (side.strip(" ") for side in part.split("→"))
                assert old in source, f"{check}: no {old!r} in\n{source}"
                source = source.replace(old, new, 1)
        elif value := re.match(r"(?:(\w+) )?(return .*)", change):
            head = rf"(def {value[1] or arguments[0]}\((?:.|\n)*?\):\n)"
            source = re.sub(
                head + r"(?: .*\n|\n)*", lambda m: f"{m[1]}    {value[2]}\n", source
            )
        file = f"<{check}: {change}>"
        linecache.cache[file] = len(source), None, source.splitlines(True), file
        exec(compile(source, file, "exec"), names)
        first, *others = (names[name] for name in arguments)
        if change.startswith("as "):
            for convert in eval(f"({change[3:]},)", names):
                yield through(convert, first), *others
        else:
            yield first, *others


def bare(source):
    """Code without its docstrings and the lines that are comments."""
    source = re.sub(r'^    """.*?"""\n', "", source, flags=re.M | re.S)
    return re.sub(r"^ *#.*\n", "", source + "\n", flags=re.M)


def through(convert, answer):
    def answer_in_another_form(*arguments, **settings):
        return convert(answer(*arguments, **settings))

    return answer_in_another_form


def says(value):
    """An answer that always returns the same."""
    return lambda *arguments, **settings: value


answers_of = cache(Answers)


def check_of(key):
    return getattr(import_module(f"{key[0]}.exercise_checks"), key[1])


def sentence_of(check, answers):
    """What a check says; it raises nothing else, and prints nothing."""
    with pytest.raises(NotYet) as refusal:
        check(*answers)
    sentence = str(refusal.value)
    assert re.match(r"Exercise (2b|\d|[AEF])\.\d+: ", sentence), sentence
    lines = refusal.value._render_traceback_()
    assert "\n" not in sentence and " ".join(lines).split() == sentence.split()
    assert all(len(line) <= 88 or " " not in line for line in lines), lines
    return sentence


def test_every_check_has_answers_to_judge():
    calls = {folder: answers_of(folder, "solutions").calls for folder in FOLDERS}
    assert {(folder, name) for folder in FOLDERS for name in calls[folder]} == set(
        CASES
    )
    for key, cases in CASES.items():
        wrong = [said for _, said in cases if said != "Right"]
        assert len(wrong) >= 4 and len(cases) > len(wrong), key


@each_check
def test_an_answer_is_judged_in_the_words_of_the_table(key, capsys):
    check, solutions = check_of(key), answers_of(key[0], "solutions")
    right = []  # the solutions themselves are judged as solutions.ipynb runs
    for change, said in CASES[key]:
        answers = list(solutions.changed(key[1], change))
        if said == "Right":
            right += answers
            continue
        for answer in answers:
            sentence = sentence_of(check, answer)
            assert re.search(said, sentence), f"{change}: {sentence!r} lacks {said!r}"
    assert capsys.readouterr().out == ""
    for answers in right:
        check(*answers)
        assert capsys.readouterr().out.splitlines()[-1].startswith("Right")


WEIRD = [3, "x", [], {}, (1, 2), [None], torch.zeros(2, 3), math.nan, object(), True]


@each_check
def test_no_answer_makes_a_check_crash(key):
    check, solved = check_of(key), answers_of(key[0], "solutions").of(key[1])
    for i, value in itertools.product(range(len(solved)), WEIRD):
        answers = [*solved[:i], says(value), *solved[i + 1 :]]
        if i == 0:
            sentence_of(check, answers)
            continue
        try:  # a strange prediction may be a good one
            check(*answers)
        except NotYet:
            pass
    for answer in (3, None, ...):
        assert "pass a function" in sentence_of(check, [answer, *solved[1:]])
    returns_nothing = {"accumulate_gradients", "adamw_step", "set_strength"}
    for value in (None, ...):
        sentence = sentence_of(check, [says(value)] * len(solved))
        named = "..." if key[1] == "set_strength" else "still unanswered"
        assert named in sentence or value is ... and key[1] in returns_nothing


@each_folder
def test_the_blanks_of_the_exercises_are_unanswered(folder):
    exercises = answers_of(folder, "exercises")
    assert exercises.calls
    for check in exercises.calls:
        sentence = sentence_of(check_of((folder, check)), exercises.of(check))
        assert "unanswered" in sentence or "replace the `...`" in sentence


@each_folder
def test_every_chapter_has_an_experiment_and_reasons(folder):
    sources = [cell.source for cell in notebook(folder, "solutions").cells]
    assert any(re.match("#+ .*xperiment", source) for source in sources)
    if folder != "appendix_a_pytorch":
        assert all("# Why" in x for x in sources if "BEGIN SOLUTION" in x)


def test_a_notebook_shows_one_sentence_and_the_solver_s_own_line(tmp_path):
    stub = "def context_sizes(n, max_length, stride):\n    {}"
    check = "checks.context_sizes(context_sizes)"
    answers = [
        "...",
        "return [0] * n",
        "return range(n)[\n        n + 1]",
        "starts = range(0, n - max_length, stride)\n    return [max((t - s for s in "
        "starts if s < t <= s + max_length), default=0) for t in range(n)]",
    ]
    cells = ["from ch02_text_data import exercise_checks as checks"]
    for answer in answers:
        cells += [stub.format(answer), check]
    book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    NotebookClient(book, timeout=120, allow_errors=True).execute(cwd=str(tmp_path))
    unanswered, short, failing = (c.outputs[0] for c in book.cells[2:8:2])
    for output in (unanswered, short, failing):
        assert output.output_type == "error" and output.ename == "NotYet"
        sentence = output.evalue
        assert sentence.startswith("Exercise 2.2: ")
        assert " ".join(output.traceback) == sentence
        assert "\n" not in sentence and "\x1b" not in sentence
    assert "still unanswered" in unanswered.evalue
    assert "you say 0 for token 1" in short.evalue
    assert "IndexError" in failing.evalue and "your line 2, `return" in failing.evalue
    printed = "".join(output.text for output in book.cells[-1].outputs)
    assert printed.splitlines()[-1].startswith("Right")


# What all checks share


def test_the_innermost_line_of_the_solver_is_quoted():
    def helper(x):
        return x.no_such_attribute

    def answer(x):
        return helper(x)

    @checked("2.9", wants="anything")
    def check(answer):
        answer(torch.zeros(2, 3))

    sentence = sentence_of(check, [answer])
    assert "answer(a tensor (2, 3)) raises AttributeError" in sentence
    assert "`return x.no_such_attribute`" in sentence
    assert sentence.endswith("; it should return anything")


def test_answers_get_copies_unless_they_need_the_thing_itself():
    def spoil(numbers, x, weight):
        numbers.append(1)
        x.add_(1)
        weight.data.add_(1)

    numbers, x, weight = [0], torch.zeros(2), nn.Parameter(torch.zeros(2))

    @checked("2.9", wants=None)
    def check(answer):
        answer(numbers, x, weight)

    check(spoil)
    assert numbers == [0] and x.sum() == 0 and weight.sum() == 2
    with pytest.raises(NotYet, match="changed its argument `numbers`"):
        checked("2.9", wants=None, keeps=True)(check.__wrapped__)(spoil)


def test_a_check_that_fails_itself_names_what_was_returned():
    @checked("2.9", wants=None)
    def check(answer):
        answer()
        raise RuntimeError("no such thing\nand more")

    with pytest.raises(
        NotYet, match=r"the check fails with RuntimeError \(no such thing\)"
    ):
        check(lambda: 3)


def test_a_check_that_fails_before_it_calls_an_answer_blames_nobody():
    @checked("2.9", wants="one number")
    def check(answer):
        raise FileNotFoundError("no encoder.json\nanywhere")

    with pytest.raises(NotYet) as refusal:
        check(lambda: 3)
    sentence = str(refusal.value)
    assert "the check itself fails with FileNotFoundError (no encoder.json)" in sentence
    assert "should return" not in sentence and refusal.value.error is None
    assert isinstance(refusal.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize(
    "value",
    [3, 3.0, torch.tensor(3), torch.tensor([[3.0]]), np.int64(3)],
)
def test_numbers_of_every_kind(value):
    assert number(value) == 3 and type(number(value)) in (int, float)


@pytest.mark.parametrize("value", ["3", [3], True, None, torch.ones(2), 1j])
def test_what_is_no_number(value):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        number(value)


def test_verdicts_tensors_and_closeness():
    assert yes_or_no(torch.tensor([True])) and not yes_or_no(np.bool_(False))
    with pytest.raises(AssertionError, match="not 2 of them"):
        yes_or_no(torch.ones(2))
    with pytest.raises(TypeError):
        yes_or_no("no")
    with pytest.raises(TypeError):
        tensor([1.0], 1)
    assert close(torch.ones(2), torch.ones(2, dtype=torch.float64) + 1e-7)


@pytest.mark.parametrize("T", [1, 2, 3, 6])
@pytest.mark.parametrize("does", shared.exercises.LEAKS)
def test_leaks_are_where_they_say_and_short_texts_can_be_read(does, T):
    x = torch.randn(1, T, 8, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    leak = shared.exercises.LEAKS[does](x)
    assert leak.shape == x.shape
    seen = (
        torch.stack(
            [
                torch.autograd.grad(leak[0, t].sum(), x, retain_graph=True)[0][0]
                for t in range(T)
            ]
        )
        if leak.requires_grad
        else torch.zeros(T, T, 1)
    )
    assert (seen.abs().sum(2).triu(1) > 0).any() == (
        T > (3 if "token 2" in does else 1)
    )
