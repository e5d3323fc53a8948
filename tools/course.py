"""Run the course's notebooks from the command line.

    python -m tools.course run              run every chapter; print a table of results
    python -m tools.course results          write what is stored into docs/results.md
    python -m tools.course run --write      also the solutions; store what they print

All outputs that a notebook stores come from one run. If a new run shows the same, all
stored outputs stay, also those that differ in every run. Otherwise the new run replaces
all of them. `run_sha256` in the metadata is computed from code and outputs, so a test
notices if someone changes one of them alone. If somebody reads a notebook in
JupyterLab, runs it and saves it, the stored run is still the committed one.

The table shows the `name: value` lines that the cell tagged `results` prints. If a
notebook fails, the others still run, and the exit status is 1. Several notebooks run at
the same time, each with its share of the processors: two side by side take less time
than one after the other with twice the threads. With `--write` one runs at a time,
because some outputs are timings.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from shared.files import write_atomically
from tools.export import ROOT, chapter_notebooks

CELL_TIMEOUT = 1800  # seconds
RESULTS = ROOT / "docs" / "results.md"
MOST_JOBS = 4  # notebooks at a time; each needs up to three gigabytes
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


@dataclass
class Outcome:
    """The outcome of running one notebook."""

    path: Path
    seconds: float
    results: list[str] = field(default_factory=list)
    error: str | None = None


def run(path: Path, write: bool = False) -> Outcome:
    """Run one notebook from top to bottom in a kernel of its own.

    Args:
        path: the notebook.
        write: store the outputs in the file, if every cell succeeded.
    """
    notebook = nbformat.read(path, as_version=4)
    stored = nbformat.from_dict(notebook)
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    start = time.perf_counter()
    with tqdm(total=total, desc=name_of(path), unit="cell", leave=False) as progress:
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            on_cell_executed=lambda **_: progress.update(),
        )
        try:
            client.execute()
        except CellExecutionError as error:
            return Outcome(path, time.perf_counter() - start, error=describe(error))
        except Exception as error:  # a dead kernel, a cell out of time
            problem = f"{type(error).__name__}: {error}"
            return Outcome(path, time.perf_counter() - start, error=problem)
    seconds = time.perf_counter() - start
    if write:
        write_atomically(path, nbformat.writes(tidy(notebook, stored)) + "\n")
    return Outcome(path, seconds, results_of(notebook))


def name_of(path: Path) -> str:
    """A notebook's path in the course."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def describe(error: CellExecutionError) -> str:
    """The failing cell and its exception, without the traceback's colours."""
    return f"{error.ename}: {error.evalue}\n{error.traceback}"


def results_of(notebook: nbformat.NotebookNode) -> list[str]:
    """The lines that the cell tagged `results` printed."""
    return [
        line
        for cell in notebook.cells
        if "results" in cell.metadata.get("tags", [])
        for output in cell.outputs
        for line in output.get("text", "").splitlines()
    ]


def tidy(
    notebook: nbformat.NotebookNode, stored: nbformat.NotebookNode
) -> nbformat.NotebookNode:
    """The notebook as it is stored: no progress bars, no stderr, the same metadata.

    If this run shows the same as the stored one, the stored outputs stay, also those
    that differ in every run (tagged `nbval-ignore-output`, such as timings). Otherwise
    this run replaces all of them, because a picture may show what an ignored cell has
    measured.
    """
    for cell in code_cells(notebook):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.outputs = [output for output in cell.outputs if keeps(output)]
    pairs = list(zip(code_cells(notebook), code_cells(stored), strict=True))
    if is_one_run(stored) and all(
        as_text(cell.outputs, number) == as_text(old.outputs, number)
        for number, (cell, old) in enumerate(pairs, start=1)
        if "nbval-ignore-output" not in cell.metadata.get("tags", [])
    ):
        for cell, old in pairs:
            cell.outputs = [output for output in old.outputs if keeps(output)]
    notebook.metadata = nbformat.from_dict({"run_sha256": run_id(notebook), **METADATA})
    return notebook


def run_id(notebook: nbformat.NotebookNode) -> str:
    """The id of a run: the sha256 of all its code and outputs."""
    cells = enumerate(code_cells(notebook), start=1)
    run = [[cell.source, as_text(cell.outputs, number)] for number, cell in cells]
    return hashlib.sha256(json.dumps(run).encode()).hexdigest()


def is_one_run(notebook: nbformat.NotebookNode) -> bool:
    """Whether the code and the outputs are still those that were stored together."""
    return notebook.metadata.get("run_sha256") == run_id(notebook)


def as_text(outputs: list[nbformat.NotebookNode], number: int) -> str:
    """The outputs of a cell as text, to compare them: pictures too, to the last byte.

    What an editor adds is left out: live widgets, stderr, where one text was cut into
    several, and which number the cell had in its session; `number` stands for that.
    """
    kept = []
    for output in filter(keeps, outputs):
        if kept and output.get("name") == kept[-1].get("name") == "stdout":
            kept[-1] = {**kept[-1], "text": kept[-1]["text"] + output["text"]}
        elif "execution_count" in output:
            kept.append({**output, "execution_count": number})
        else:
            kept.append(output)
    return json.dumps(kept, sort_keys=True)


def stored_run(path: Path) -> nbformat.NotebookNode | None:
    """The notebook whose outputs are the course's: the file, or what git has of it.

    JupyterLab and other editors write the version of Python into a notebook, which
    `tidy` never leaves there. Such a notebook with the committed code was only read:
    what counts is the committed one. None where there is no git to ask.
    """
    notebook = nbformat.read(path, as_version=4)
    if "version" not in notebook.metadata.get("language_info", {}):
        return notebook
    done = subprocess.run(
        ["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True
    )
    if done.returncode:
        return None
    committed = nbformat.reads(done.stdout.decode(), as_version=4)
    same = [c.source for c in code_cells(notebook)] == [
        c.source for c in code_cells(committed)
    ]
    return committed if same else notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def keeps(output: nbformat.NotebookNode) -> bool:
    """Whether to store an output: not if it is a live widget or stderr."""
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})


def wrapped(lines: list[str], width: int) -> Iterator[str]:
    """Lines of at most this width; what goes on is indented."""
    for line in lines:
        yield from textwrap.wrap(line, width, subsequent_indent="  ")


def results_page() -> str:
    """The page docs/results.md: what the notebooks' stored outputs say."""
    stored = {path: nbformat.read(path, 4) for path in chapter_notebooks()}
    found = {name_of(path): results_of(notebook) for path, notebook in stored.items()}
    found = {name: lines for name, lines in found.items() if lines}
    width = max(map(len, found))
    table = [f"{'notebook':{width}}  results", "-" * (width + 60)]
    for name, lines in found.items():
        for line in wrapped(lines, 58):
            table.append(f"{name:{width}}  {line}".rstrip())
            name = ""
    page = RESULTS.read_text(encoding="utf-8")
    before, fence, _ = page.partition("```text\n")
    return before + fence + "\n".join([*table, "```"]) + "\n"


def table(outcomes: list[Outcome], seconds: float) -> str:
    """The outcomes as text: notebooks, times, results, and the time of all together."""
    width = max(len(name_of(outcome.path)) for outcome in outcomes)
    lines = [f"{'notebook':{width}}  {'time':>7}  results", "-" * (width + 50)]
    for outcome in outcomes:
        results = outcome.results or ["ran without error"]
        if outcome.error is not None:
            results = ["FAILED: " + outcome.error.split("\n", 1)[0]]
        name, clock = name_of(outcome.path), f"{outcome.seconds:.0f} s"
        for line in wrapped(results, 54):
            lines.append(f"{name:{width}}  {clock:>7}  {line}")
            name, clock = "", ""
    lines.append("-" * (width + 50))
    lines.append(f"{'all':{width}}  {f'{seconds:.0f} s':>7}")
    return "\n".join(lines)


def run_all(paths: list[Path], write: bool, jobs: int) -> list[Outcome]:
    """Run `jobs` notebooks at a time and return the outcomes in the order of the paths.

    The last notebooks start first, because later chapters take longest.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run, path, write) for path in reversed(paths)]
        return [future.result() for future in reversed(running)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.course")
    commands = parser.add_subparsers(required=True, dest="command", metavar="run")
    command = commands.add_parser("run", help="run notebooks top to bottom")
    command.add_argument(
        "--write", action="store_true", help="store the outputs in the notebooks"
    )
    command.add_argument(
        "notebooks", nargs="*", type=Path, help="which ones (default: all)"
    )
    command.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=f"how many at a time (default: one per processor, at most {MOST_JOBS}; "
        "with --write one)",
    )
    commands.add_parser("results", help="write the stored results into a page")
    options = parser.parse_args(arguments)
    if options.command == "results":
        write_atomically(RESULTS, results_page())
        return 0
    jobs = options.jobs
    if jobs is None:
        jobs = 1 if options.write else min(MOST_JOBS, os.cpu_count() or 1)
    if jobs < 1:
        parser.error(f"--jobs must be 1 or more, not {jobs}")
    paths = [path.resolve() for path in options.notebooks] or [
        path
        for path in chapter_notebooks()
        if options.write or path.name != "solutions.ipynb"
    ]
    for path in paths:
        if not path.is_file():
            parser.error(f"there is no notebook {path}")
    start = time.perf_counter()
    outcomes = run_all(paths, options.write, jobs)
    seconds = time.perf_counter() - start
    failures = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failures:
        print(f"\n{name_of(outcome.path)} failed:\n{outcome.error}")
    print("\n" + table(outcomes, seconds))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
