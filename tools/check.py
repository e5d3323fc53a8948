"""Run the tests of what has changed: `make check`.

    python -m tools.check                 what is not committed; on a branch, since main
    python -m tools.check --since HEAD~3  what has changed since some commit
    python -m tools.check --list          only say what would run

A file's tests are found by its name. `ch02_text_data/bpe_files.py` is a part of
`bpe.ipynb`, so `tests/test_ch02_bpe.py` tests it; where no test has a file's name, all
tests of its folder run. Style and stale exports are always looked at. Notebooks are not
run again, because that takes minutes: `make test` does it.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import PurePosixPath

from tools.export import ROOT

ALWAYS = ["tests/test_structure.py", "tests/test_style.py"]
OF_NOTEBOOKS = ["tests/test_notebooks.py", "tests/test_plots.py"]
EXERCISES = "tests/test_exercises.py"
REMEDIES = {
    "ruff check": "see above; python -m ruff check --fix . mends some",
    "ruff format": "python -m ruff format .",
    "tools.export": "make export; what has answers is moved away first",
    "pytest": "see the failures above",
}


def git(*arguments: str) -> list[str]:
    """The lines that a command of git prints."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def changed(since: str | None = None) -> list[str]:
    """The files that differ from a commit, or else from where the branch left main."""
    if since is None:
        main = git("for-each-ref", "--format=%(refname:short)", "refs/heads/main")
        since = git("merge-base", "HEAD", "main")[0] if main else "HEAD"
    new = git("ls-files", "--others", "--exclude-standard")
    return sorted({*git("diff", "--name-only", "--no-renames", since, "--"), *new})


def tests_of(path: str, tests: list[str]) -> list[tuple[str, str]]:
    """The tests of a file, each with the words that choose some of it, or none.

    Args:
        path: of the file, within the course.
        tests: the paths of all tests.
    """
    file = PurePosixPath(path)
    folder, stem = file.parts[0], file.stem
    if path in tests:
        return [(path, "")]
    if folder in ("tests", file.name):  # what tests share; or no folder at all
        use = rf"(from|import) (tests[.])?{stem}\b|{re.escape(file.name)}"
        texts = {test: (ROOT / test).read_text(encoding="utf-8") for test in tests}
        named = [test for test, text in texts.items() if re.search(use, text)]
        return [(test, "") for test in named if file.suffix in (".py", ".txt")]
    group = re.match(r"ch\d+|appendix_.|[a-z]+", folder)[0]
    found = []
    if file.suffix == ".ipynb":
        found += [(test, f"{folder}/{file.name}") for test in OF_NOTEBOOKS]
    if stem in ("solutions", "exercises", "exercise_checks"):
        return [*found, (EXERCISES, folder)]
    if folder == "shared":  # a module of its own, or one that passes a chapter on
        chapter = re.fullmatch(r"ch\d+|appendix_.", stem)
        group, stem = (stem, "") if chapter else ("", stem)
    start = f"tests/test_{group}"
    names = {t: t.removeprefix(start).strip("_").removesuffix(".py") for t in tests}
    own = {t: name for t, name in names.items() if t.startswith(start)}
    fitting = [t for t, name in own.items() if name and stem.startswith(name)]
    return found + [(test, "") for test in fitting or (own if group else [])]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is not 0 if a step fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--since", metavar="COMMIT", help="instead of HEAD or main")
    parser.add_argument("--list", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    tests = sorted(f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py"))
    paths = changed(options.since)
    chosen = {pair: None for path in paths for pair in tests_of(path, tests)}
    whole = [*dict.fromkeys([*ALWAYS, *(test for test, word in chosen if not word)])]
    parts = {test: word for test, word in chosen if word and test not in whole}
    words = " or ".join(sorted({word for test, word in chosen if test in parts}))
    run = [sys.executable, "-m"]
    pytest = [*run, "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    steps = [
        [*run, "ruff", "check", "."],
        [*run, "ruff", "format", "--check", "."],
        [*run, "tools.export", "--check"],
        [*pytest, *(test for test in whole if (ROOT / test).exists())],
        *([[*pytest, *parts, "-k", words]] if parts else []),
    ]
    print(f"changed: {', '.join(paths) or 'nothing'}", flush=True)
    start, worst, told = time.perf_counter(), 0, []
    for step in steps:
        command = shlex.join(["python", *step[1:]])
        print("$ " + command, flush=True)
        if options.list:
            continue
        quiet = {"stdout": subprocess.PIPE, "text": True} if step == steps[2] else {}
        done = subprocess.run(step, cwd=ROOT, **quiet)
        if quiet:
            print(done.stdout or "", end="", flush=True)
        if done.returncode:
            worst = done.returncode
            told += [x for x in (done.stdout or "").splitlines() if "stale" in x]
            name = next(name for name in REMEDIES if name in command)
            told.append(f"failed: {command[:70]} -> {REMEDIES[name]}")
    notebooks = [p for p in paths if p.endswith(".ipynb") and "exercises" not in p]
    if notebooks:
        print("not run again, which takes longer: pytest --nbval", *notebooks)
    print(*told, sep="\n", end="\n" * bool(told))
    if not options.list:
        verdict = "something failed" if worst else "all is well"
        print(f"{verdict}, after {time.perf_counter() - start:.0f} s")
    return worst


if __name__ == "__main__":
    sys.exit(main())
