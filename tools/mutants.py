"""Break a chapter's code in small ways, one at a time, and see whether a test notices.

    python -m tools.mutants ch03                        every mutant of chapter 3
    python -m tools.mutants ch05 --sample 40 --seed 1   forty of them, drawn at random
    python -m tools.mutants ch05 --module weights       of one module only

A mutant is a module with one change: `<` to `<=`, a constant off by one, + to -, or a
`not`, an argument or a statement such as `model.train()` left out. The tests of the
chapter should fail for each mutant. If they pass, it survives: either no test checks
this code, or the change makes no difference. All this happens in a copy of the course,
which is deleted afterwards; nothing changes here.
"""

import argparse
import ast
import contextlib
import copy
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # not imported: see `_tests_pass`
EXPORTED = "Exported from "  # in the docstring of each exported module
PUBLIC = "tests/test_public_calls.py"  # names, parameters and defaults of every chapter
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """The text of a module with one change: its line, and the code before and after."""

    line: int
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.before}  ->  {self.after}"


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    whole, found = b"".join(lines), []
    original = ast.dump(ast.parse(source))
    for node in _code_of(ast.parse(source)):
        for other, words in _changes_of(node):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            old, new = whole[begin:end].decode(), ast.unparse(other)
            if isinstance(other, ast.expr):
                new = f"({new})"  # it may be to the left of a `*`
            text = (whole[:begin] + new.encode() + whole[end:]).decode()
            with contextlib.suppress(SyntaxError):
                if ast.dump(ast.parse(text)) != original:
                    short = (
                        " ".join(part.split())[:60] for part in words or (old, new)
                    )
                    found.append(Mutant(node.lineno, *short, text))
    return sorted(found, key=lambda mutant: mutant.line)


def _code_of(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below a node that can be changed: no texts, no types of arguments."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if (
                isinstance(child, ast.AST)
                and name not in ("annotation", "returns")
                and not isinstance(child, ast.JoinedStr)
            ):
                yield child
                yield from _code_of(child)


def _changes_of(node: ast.AST) -> Iterator[tuple[ast.AST, tuple[str, str] | None]]:
    """What may replace a node, and words for it if its text is too long."""
    other = copy.deepcopy(node)
    match other:
        case ast.Compare(ops=[first, *rest]):
            other.ops = [COMPARISONS[type(first)](), *rest]
            yield other, None
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            if type(op) in OPERATORS:
                other.op = OPERATORS[type(op)]()
                yield other, None
        case ast.UnaryOp(op=ast.Not()):
            yield other.operand, None
        case ast.Constant(value=bool()):
            yield ast.Constant(not other.value), None
        case ast.Constant(value=int()):
            yield ast.Constant(other.value + 1), None
        case ast.Constant(value=float()):
            yield ast.Constant(2 * other.value or 1.0), None
        case ast.Expr(value=ast.Call()):
            yield ast.Pass(), None
        case ast.Call(keywords=[*keywords]):
            for number, keyword in enumerate(keywords):
                if keyword.arg is not None:
                    fewer = copy.deepcopy(node)
                    del fewer.keywords[number]
                    yield fewer, (ast.unparse(keyword), "left out")


def modules_of(chapter: str, root: Path = ROOT) -> list[Path]:
    """The exported modules of a chapter, such as "ch03" or "appendix_e"."""
    paths = sorted(root.glob(f"{chapter}_*/*.py"))
    found = [path for path in paths if EXPORTED in path.read_text(encoding="utf-8")]
    if not found:
        raise ValueError(f"no chapter {chapter!r} exports a module; try ch03")
    return found


def tests_of(chapter: str, module: str, root: Path = ROOT) -> list[str]:
    """The tests that bear a module's name, or all of its chapter's; and PUBLIC."""
    own = root / f"tests/test_{chapter}_{module}.py"
    every = sorted(root.glob(f"tests/test_{chapter}_*.py"))
    found = [own] if own.exists() else every
    found = [*found, *root.glob(PUBLIC)]
    return [path.relative_to(root).as_posix() for path in found]


def copy_of_course(folder: Path) -> Path:
    """Copy the course into a folder as it is now, with a link to its data."""
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "data")
    shutil.copytree(ROOT, folder / "course", ignore=leave_out, symlinks=True)
    os.symlink(ROOT / "data", folder / "course/data", target_is_directory=True)
    return folder / "course"


def _tests_pass(root: Path, tests: list[str]) -> None:
    """Run tests in a copy of the course; the process exits with pytest's status."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    os.chdir(root)
    sys.path[0] = os.environ["PYTHONPATH"] = str(root)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # or a mutant's would stay behind
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
        del sys.modules[name]  # the tests must import the copy's
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:nbval"]
    options.append("--hypothesis-seed=0")
    os._exit(int(pytest.main([*options, *tests])))


def verdict(root: Path, tests: list[str], limit: float) -> str:
    """What the tests say in a copy: "passed", "failed" or "too long"."""
    kinds = multiprocessing.get_all_start_methods()
    start = multiprocessing.get_context("fork" if "fork" in kinds else "spawn")
    running = start.Process(target=_tests_pass, args=(root, tests))
    running.start()
    running.join(limit)
    if running.is_alive():
        running.kill()
        running.join()
        return "too long"
    return "passed" if running.exitcode == 0 else "failed"


def try_mutants(
    root: Path, path: Path, mutants: list[Mutant], tests: list[str]
) -> list[Mutant]:
    """The mutants of a module that survive its tests, tried in a copy."""
    original, begin = path.read_text(encoding="utf-8"), time.monotonic()
    if verdict(root, tests, limit=3600) != "passed":
        raise ValueError(f"without any mutant the tests fail: {' '.join(tests)}")
    limit, alive = 30 + 3 * (time.monotonic() - begin), []
    try:
        for number, mutant in enumerate(mutants, start=1):
            path.write_text(mutant.text, encoding="utf-8")
            found = verdict(root, tests, limit)
            if found == "passed":
                alive.append(mutant)
            fate = "SURVIVES" if found == "passed" else found
            print(f"{number:4} {fate:9} {path.name} {mutant}", flush=True)
    finally:
        path.write_text(original, encoding="utf-8")
    return alive


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 1 if a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("chapter", help="such as ch03 or appendix_e")
    parser.add_argument("--module", help="only this module, such as weights")
    parser.add_argument("--sample", type=int, help="how many mutants of each module")
    parser.add_argument("--seed", type=int, default=1, help="draws the sample")
    parser.add_argument("--tests", nargs="+", help="instead of the chapter's own")
    options = parser.parse_args(arguments)
    with contextlib.suppress(ImportError):
        # once, for all processes that are forked from here
        import hypothesis  # noqa: F401
        import nbval.plugin  # noqa: F401
        import pytest  # noqa: F401
        import torch  # noqa: F401
    survivors, tried = [], 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        root = copy_of_course(Path(folder))
        for path in modules_of(options.chapter, root):
            if options.module not in (None, path.stem):
                continue
            mutants = mutants_of(path.read_text(encoding="utf-8"))
            if options.sample is not None and options.sample < len(mutants):
                drawn = random.Random(options.seed).sample(mutants, options.sample)
                mutants = sorted(drawn, key=lambda mutant: mutant.line)
            tests = options.tests or tests_of(options.chapter, path.stem, root)
            survivors += try_mutants(root, path, mutants, tests)
            tried += len(mutants)
    killed = tried - len(survivors)
    print(f"{killed} of {tried} mutants killed ({killed / max(tried, 1):.0%})")
    for mutant in survivors:
        print(f"survivor: {mutant}")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
