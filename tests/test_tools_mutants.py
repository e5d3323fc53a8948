"""Mutants are small, the tests judge them, and the working tree is left alone."""

import ast
import multiprocessing

import pytest

from tools import mutants

SOURCE = '''"""A module. 1 + 1

Exported from toy.ipynb, which explains it.
"""


def share(part: int, whole: "1 + 1" = 100) -> float:
    """A share, or 0."""
    if not whole > 0 and part != 3:
        print("äöü", sep="", end=f"{1 + 1}")
        return 0.0
    return part / whole


def count(n):
    """How many steps there are."""
    steps = 0
    while n > 0:
        n, steps = n - 1, steps + 1
    return steps
'''
TESTS = """from toy import count, share


def test_share():
    assert share(1, 4) == 0.25 and share(1, 0) == 0


def test_count():
    assert count(3) == 3
"""


def test_each_mutant_is_one_change():
    found = mutants.mutants_of(SOURCE)
    said = {str(mutant) for mutant in found}
    assert {
        "line 7: 100  ->  (101)",
        "line 9: not whole > 0  ->  (whole > 0)",
        "line 9: whole > 0  ->  (whole >= 0)",
        "line 9: part != 3  ->  (part == 3)",
        "line 10: sep=''  ->  left out",
        "line 11: 0.0  ->  (1.0)",
        "line 12: part / whole  ->  (part * whole)",
        "line 19: n - 1  ->  (n + 1)",
    } <= said
    assert any("print" in words and words.endswith("pass") for words in said)
    assert not any("line 1:" in words or ": 1 + 1" in words for words in said)
    original = SOURCE.splitlines()
    for mutant in found:
        ast.parse(mutant.text)
        assert mutant.text.startswith('"""A module. 1 + 1\n')
        changed = mutant.text.splitlines()
        assert len(changed) == len(original)
        assert sum(a != b for a, b in zip(original, changed, strict=True)) == 1


def test_chapters_have_their_exported_modules():
    found = [path.stem for path in mutants.modules_of("ch05")]
    assert found == ["pretraining", "weights"]
    with pytest.raises(ValueError, match="no chapter 'ch99' exports a module"):
        mutants.modules_of("ch99")
    own = ["tests/test_ch02_bpe.py", mutants.PUBLIC]
    assert mutants.tests_of("ch02", "bpe") == own
    writing = mutants.tests_of("appendix_f", "writing")
    assert writing == ["tests/test_appendix_f_speed.py", mutants.PUBLIC]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A course of one module and its tests, which are run as on Windows.

    That is slower than a fork, but does not depend on what pytest is doing now.
    """
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    (tmp_path / "toy.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "test_toy.py").write_text(TESTS, encoding="utf-8")
    return tmp_path


def test_tests_kill_some_and_let_others_pass(toy, capsys):
    found = mutants.mutants_of(SOURCE)
    by_words = {str(mutant): mutant for mutant in found}
    some = [
        by_words["line 7: 100  ->  (101)"],  # no test leaves the argument out
        by_words["line 12: part / whole  ->  (part * whole)"],
    ]
    alive = mutants.try_mutants(toy, toy / "toy.py", some, ["test_toy.py"])
    assert alive == some[:1]
    out = capsys.readouterr().out
    assert "SURVIVES  toy.py line 7" in out and "failed    toy.py line 12" in out
    assert (toy / "toy.py").read_text(encoding="utf-8") == SOURCE
    assert not (toy / "__pycache__").exists()


def test_a_mutant_without_end_is_stopped_and_a_failing_start_is_refused(toy):
    sleep = "    import time\n\n    time.sleep(999)\n"
    endless = SOURCE.replace("    steps = 0\n", sleep)  # which costs no time of others
    (toy / "toy.py").write_text(endless, encoding="utf-8")
    assert mutants.verdict(toy, ["test_toy.py"], limit=3) == "too long"
    (toy / "toy.py").write_text(SOURCE.replace("/", "*"), encoding="utf-8")
    with pytest.raises(ValueError, match="without any mutant the tests fail"):
        mutants.try_mutants(toy, toy / "toy.py", [], ["test_toy.py"])


def test_a_seed_draws_the_same_sample_and_works_in_a_copy(monkeypatch, capsys):
    tried = []

    def let_the_first_live(root, path, drawn, tests):
        assert mutants.ROOT not in path.parents and path.is_file()
        assert (root / "data/README.md").is_file() and not (root / ".git").exists()
        tried.append((path.name, [str(mutant) for mutant in drawn], tests))
        return drawn[:1]

    monkeypatch.setattr(mutants, "try_mutants", let_the_first_live)
    for _ in range(2):
        assert mutants.main(["ch03", "--sample", "8", "--seed", "2"]) == 1
    name, drawn, tests = tried[0]
    assert name == "attention.py"
    assert tests == ["tests/test_ch03_attention.py", mutants.PUBLIC]
    assert len(drawn) == 8 and tried[0] == tried[1]
    out = capsys.readouterr().out
    assert "7 of 8 mutants killed (88%)" in out and f"survivor: {drawn[0]}" in out
