"""Write each chapter's module from its notebook, and the exercises from the solutions.

    python -m tools.export           write every module and every exercises notebook
    python -m tools.export --check   write nothing; name each file that is out of date

A code cell whose first line is `#| export` belongs to the module beside the notebook.
It may contain imports, definitions and constants, and nothing else. A class can grow
over several cells: a later `class Name(Name):` adds methods to `class Name` or writes
one again, and the module has one class with the last version of each method.

A second notebook that goes deeper exports into the module of the first. So
`bpe_deeper.ipynb` adds to `bpe.py`, and `deeper.ipynb` adds to the module of the only
other notebook in its folder.

In `solutions.ipynb`, the lines between `### BEGIN SOLUTION` and `### END SOLUTION`
become `...` in `exercises.ipynb`. A file in which a reader has answered or run
something is never overwritten.
"""

import argparse
import ast
import hashlib
import re
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from shared.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
MARK = "#| export"
LINE_LENGTH = 88
COURSE_FOLDERS = ["shared", "ch*_*", "appendix_*", "tools", "pretrain"]
SOLUTION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


class ExportError(ValueError):
    """A notebook cannot be exported; the message names notebook and cell."""


@dataclass
class Definition:
    """One exported function, class or constant, as text, and the cell it came from."""

    name: str
    source: str
    place: str
    methods: set[str] = field(default_factory=set)


@dataclass
class Module:
    """The parts of one module; two notebooks may add to it."""

    imports: list[str] = field(default_factory=list)
    definitions: dict[str, Definition] = field(default_factory=dict)
    notebooks: list[str] = field(default_factory=list)  # those that export something


def chapter_notebooks(root: Path = ROOT) -> list[Path]:
    """Every notebook that is written by hand, in the order of the course."""
    found = [*root.glob("ch*/*.ipynb"), *root.glob("appendix_*/*.ipynb")]
    return sorted(
        (path for path in found if path.name != "exercises.ipynb"), key=_place
    )


def _place(path: Path) -> tuple:
    """A key that sorts notebooks in the order of the course."""
    folder, stem = path.parent.name, path.stem.removesuffix("_deeper")
    last = ["deeper", "long_run", "solutions"]
    return (
        folder.startswith("appendix"),
        folder,
        last.index(stem) + 1 if stem in last else 0,
        # The chapter's main notebook has the folder's name and comes first.
        stem not in folder,
        stem,
        path.name,  # "bpe.ipynb" before "bpe_deeper.ipynb"
    )


def goes_deeper(path: Path) -> bool:
    """Whether a notebook belongs to another one of its folder, by its name."""
    return path.stem == "deeper" or path.stem.endswith("_deeper")


def main_notebook(path: Path) -> Path:
    """The notebook that a deeper one belongs to; any other notebook is its own.

    Raises:
        ExportError: if there is none, or if `deeper.ipynb` could belong to several.
    """
    if not goes_deeper(path):
        return path
    others = [
        other
        for other in sorted(path.parent.glob("*.ipynb"))
        if other.stem not in ("exercises", "solutions") and not goes_deeper(other)
    ]
    if path.stem != "deeper":
        main = path.with_stem(path.stem.removesuffix("_deeper"))
        if main not in others:
            raise ExportError(
                f"{path}: there is no {main.name} that it could belong to"
            )
        return main
    if len(others) != 1:
        names = " and ".join(other.name for other in others) or "no other notebook"
        raise ExportError(
            f"{path}: the folder has {names}, so it is not clear what it belongs to; "
            "name it after one of them, such as bpe_deeper.ipynb for bpe.ipynb"
        )
    return others[0]


def export_all(root: Path = ROOT) -> dict[Path, str]:
    """The text of every file that is made from a notebook, by its path.

    Raises:
        ExportError: if a cell breaks a rule, or two cells export the same name.
    """
    files: dict[Path, str] = {}
    modules: dict[Path, Module] = {}
    places: dict[str, str] = {}
    for path in chapter_notebooks(root):
        notebook = nbformat.read(path, as_version=4)
        if path.name == "solutions.ipynb":
            files[path.with_name("exercises.ipynb")] = exercises_from(notebook)
            continue
        main = main_notebook(path)
        module = modules.setdefault(main, Module())
        if collect(notebook, str(path.relative_to(root)), main, module):
            module.notebooks.append(path.name)
    for path, module in modules.items():
        for definition in module.definitions.values():
            if definition.name in places:
                raise ExportError(
                    f"{definition.place}: {definition.name!r} is exported already by "
                    f"{places[definition.name]}; the course exports each name only once"
                )
            places[definition.name] = definition.place
        if module.definitions:
            files[path.with_suffix(".py")] = module_text(module, path)
    return files


def collect(
    notebook: nbformat.NotebookNode, name: str, main: Path, module: Module
) -> bool:
    """Add a notebook's imports and definitions to a module.

    Args:
        notebook: its export cells are read in order.
        name: the notebook's name, for messages.
        main: the notebook that the module is named after.
        module: where the parts are added.

    Returns:
        Whether the notebook has definitions.
    """
    exports = False
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code_cells, start=1):
        mark, _, source = cell.source.partition("\n")
        if mark.strip() != MARK:
            continue
        place = f"{name}, code cell {number}"
        for node, text in statements(source, place):
            if isinstance(node, ast.Import | ast.ImportFrom):
                refuse_whole_modules(node, place)
                refuse_own_module(node, main, place)
                module.imports.append(ast.unparse(node))
            else:
                add_definition(node, text, place, module.definitions)
                exports = True
    return exports


def statements(source: str, place: str) -> list[tuple[ast.stmt, str]]:
    """The top-level statements of a source, each with its text and comments above."""
    lines = source.split("\n")
    for line in lines:
        if re.match(r"\s*[%!]", line) or "get_ipython" in line:
            raise ExportError(
                f"{place}: the magic {line.strip()!r} is not Python; "
                "move it to a cell without the export mark"
            )
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ExportError(f"{place}: {error.msg} (line {error.lineno})") from None
    found = []
    start = 0
    for node in tree.body:
        found.append((node, "\n".join(lines[start : node.end_lineno]).strip("\n")))
        start = node.end_lineno
    rest = "\n".join(lines[start:]).strip()
    if rest and found:
        found[-1] = (found[-1][0], found[-1][1] + "\n" + rest)
    return found


def is_of_course(module: str | None) -> bool:
    """Whether a module is in one of the course's folders."""
    top = (module or ".").split(".")[0]
    return (ROOT / top / "__init__.py").is_file()


def refuse_whole_modules(node: ast.Import | ast.ImportFrom, place: str) -> None:
    """Raise ExportError if a whole module of the course is imported, not its names.

    `tools.bundle` copies names; it could not tell what a whole module is used for.
    """
    if isinstance(node, ast.Import):
        whole = any(is_of_course(alias.name) for alias in node.names)
    else:
        one_by_one = "." in (node.module or "") and node.names[0].name != "*"
        whole = is_of_course(node.module) and not one_by_one
    if whole:
        raise ExportError(
            f"{place}: {ast.unparse(node)!r} imports a whole module; write "
            "`from <folder>.<module> import <names>`"
        )


def refuse_own_module(
    node: ast.Import | ast.ImportFrom, main: Path, place: str
) -> None:
    """Raise ExportError if a module would import itself; a deeper notebook might."""
    folder, imported = main.parent.name, getattr(node, "module", None) or ""
    top, _, name = imported.partition(".")
    passed_on = top == "shared" and folder.startswith(f"{name}_")
    if passed_on or imported == f"{folder}.{main.stem}":
        raise ExportError(
            f"{place}: {ast.unparse(node)!r} imports from the same module; "
            "move it to a cell without the export mark"
        )


def add_definition(
    node: ast.stmt, text: str, place: str, definitions: dict[str, Definition]
) -> None:
    """Add one statement to the definitions, or raise ExportError and say why not."""
    name = defined_name(node)
    if name is None:
        first_line = ast.unparse(node).split("\n", 1)[0]
        raise ExportError(
            f"{place}: {first_line!r} is neither an import nor a definition nor a "
            "constant (NAME = ...); move it to a cell without the export mark"
        )
    if reopens(node):
        if name not in definitions:
            raise ExportError(
                f"{place}: class {name}({name}) adds to a class that no earlier cell "
                "of this module exports"
            )
        merge(definitions[name], node, text, place)
        return
    if name in definitions:
        raise ExportError(
            f"{place}: {name!r} is exported already by {definitions[name].place}; "
            f"write `class {name}({name}):` to add methods to it"
        )
    if not name.startswith("_"):
        require_docstrings(node, place)
    definitions[name] = Definition(name, text, place, method_names(node))


def defined_name(node: ast.stmt) -> str | None:
    """The name that a definition or a constant binds; None for any other statement."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.AnnAssign):
        target = node.target
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    else:
        return None
    is_constant = isinstance(target, ast.Name) and target.id.isupper()
    return target.id if is_constant else None


def reopens(node: ast.stmt) -> bool:
    """Whether the statement is `class Name(Name):`."""
    return (
        isinstance(node, ast.ClassDef)
        and len(node.bases) == 1
        and isinstance(node.bases[0], ast.Name)
        and node.bases[0].id == node.name
    )


def method_names(node: ast.stmt) -> set[str]:
    """The names that a class body binds; empty for anything else."""
    if not isinstance(node, ast.ClassDef):
        return set()
    return {
        item.name
        for item in node.body
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def merge(whole: Definition, node: ast.ClassDef, text: str, place: str) -> None:
    """Append the body of a reopened class to the class of an earlier cell."""
    if ast.get_docstring(node) is not None:
        raise ExportError(
            f"{place}: class {whole.name} has its docstring in {whole.place}; "
            "a part that adds to it has none"
        )
    for name in sorted(whole.methods & method_names(node)):
        if re.search(rf"super\(\)\.{name}\b", text):
            raise ExportError(
                f"{place}: {whole.name}.{name} calls the version that it replaces, "
                "which the module does not contain; write the whole method again"
            )
        whole.source = without_method(whole.source, name)
    require_docstrings(node, place, needs_own=False)
    lines = text.split("\n")
    header = next(
        i for i, line in enumerate(lines) if re.match(rf"class {whole.name}\b", line)
    )
    whole.source += "\n\n" + "\n".join(lines[header + 1 :])
    whole.methods |= method_names(node)


def without_method(source: str, name: str) -> str:
    """The source of a class without its method `name`, which a later part replaces."""
    [whole] = ast.parse(source).body
    node = next(x for x in whole.body if getattr(x, "name", None) == name)
    start = min([node.lineno, *(x.lineno for x in node.decorator_list)])
    lines = source.split("\n")
    return "\n".join(lines[: start - 1] + lines[node.end_lineno :])


def require_docstrings(node: ast.stmt, place: str, needs_own: bool = True) -> None:
    """Raise ExportError for a public function, class or method without docstring.

    `forward` needs none, because the class says what the layer does.
    """
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    if needs_own and ast.get_docstring(node) is None:
        raise ExportError(f"{place}: {node.name!r} has no docstring")
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if (
                isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                and not item.name.startswith("_")
                and item.name != "forward"
                and ast.get_docstring(item) is None
            ):
                raise ExportError(f"{place}: {node.name}.{item.name} has no docstring")


def docstring_of(path: Path, notebooks: list[str]) -> str:
    """The module's docstring: title and first sentence of the main notebook."""
    cells = nbformat.read(path, as_version=4).cells
    match = cells and re.match(r"# (.+)\n\s*\n(.+)", cells[0].source)
    if not match or cells[0].cell_type != "markdown":
        raise ExportError(
            f"{path}: the first cell must be `# Title`, an empty line, and one "
            "sentence that says what the reader will be able to do"
        )
    title, promise = match[1].strip().rstrip("."), match[2].strip()
    body = textwrap.fill(promise.replace("`", ""), LINE_LENGTH)
    explain = "explains" if len(notebooks) == 1 else "explain"
    origin = textwrap.fill(
        f"Exported from {' and '.join(notebooks)}, which {explain} every line: change "
        "it there, then run `python -m tools.export`.",
        LINE_LENGTH,
    )
    return f'"""{title}.\n\n{body}\n\n{origin}\n"""'


def module_text(module: Module, path: Path) -> str:
    """A formatted module: docstring, imports, `__all__`, definitions."""
    definitions, name = list(module.definitions.values()), str(path)
    public = [d.name for d in definitions if not d.name.startswith("_")]
    names = ", ".join(f'"{name}"' for name in public)
    parts = [docstring_of(path, module.notebooks)]
    parts += ["\n".join(dict.fromkeys(module.imports)), f"__all__ = [{names},]"]
    parts += [definition.source for definition in definitions]
    text = "\n\n\n".join(parts) + "\n"
    text = run_ruff(["check", "--select", "F401,I001", "--fix"], text, name)
    run_ruff(["check", "--select", "F821,F811"], text, name)
    return run_ruff(["format"], text, name)


def run_ruff(arguments: list[str], text: str, name: str) -> str:
    """Send the text through ruff and return what comes back."""
    command = [sys.executable, "-m", "ruff", *arguments, "--quiet"]
    command += ["--config", f"line-length = {LINE_LENGTH}"]
    command += ["--config", "target-version = 'py311'", "--isolated"]
    known = f"lint.isort.known-first-party = {COURSE_FOLDERS}"
    command += ["--config", known, "--stdin-filename", "module.py", "-"]
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        raise ExportError(f"{name}: {done.stdout}{done.stderr}".strip())
    return done.stdout


def exercises_from(solutions: nbformat.NotebookNode) -> str:
    """The exercises notebook: the solutions with blank answers and no outputs.

    The metadata of a cell with a blank answer has the sha256 of its text. There is none
    of an editor, so the solutions can be read in one.
    """
    exercises = nbformat.from_dict(solutions)
    for name in ("run_sha256", "code_sha256", "widgets"):  # of a run
        exercises.metadata.pop(name, None)
    if "language_info" in exercises.metadata:
        exercises.metadata.language_info = nbformat.from_dict({"name": "python"})
    for cell in exercises.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            blank = SOLUTION.sub(r"\g<indent>...", cell.source)
            if blank != cell.source:
                cell.metadata["blank"] = _sha256(blank)
            cell.source = blank
            cell.outputs = []
            cell.execution_count = None
    return nbformat.writes(exercises) + "\n"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_in_use(exercises: nbformat.NotebookNode) -> bool:
    """Whether a reader has answered or run something in an exercises notebook."""
    return any(
        cell.execution_count is not None
        or cell.metadata.get("blank") not in (None, _sha256(cell.source))
        for cell in exercises.cells
        if cell.cell_type == "code"
    )


def asks_the_same(
    exercises: nbformat.NotebookNode, made: nbformat.NotebookNode
) -> bool:
    """Whether an exercises notebook has every cell of the newly made one.

    Answers may be anything, and there may be outputs, metadata and more cells.
    """

    def questions(notebook: nbformat.NotebookNode) -> Counter:
        # not by their ids: older formats of notebooks have none
        return Counter(x.metadata.get("blank", x.source) for x in notebook.cells)

    return questions(made) <= questions(exercises)


def state_of(path: Path, text: str) -> str:
    """Whether a file that should have this text is "fresh", "stale", or "in use"."""
    if not path.is_file():
        return "stale"
    found = path.read_text(encoding="utf-8-sig")  # some editors begin it with a BOM
    if found == text:
        return "fresh"
    if path.name != "exercises.ipynb":
        return "stale"
    try:
        with warnings.catch_warnings(action="ignore"):  # of cells without ids
            exercises = nbformat.reads(found, as_version=4)
    except Exception:  # no notebook any more; what is in it may still be answers
        return "in use"
    made = nbformat.reads(text, as_version=4)
    if asks_the_same(exercises, made):
        return "fresh"
    marks = [{"blank" in cell.metadata for cell in x.cells} for x in (exercises, made)]
    lost = marks == [{False}, {False, True}]  # an editor dropped them: nobody can tell
    return "in use" if lost or is_in_use(exercises) else "stale"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.export")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 if a file is stale"
    )
    options = parser.parse_args(arguments)
    try:
        files = export_all(root)
    except ExportError as error:
        print(error, file=sys.stderr)
        return 1
    states = {path: state_of(path, text) for path, text in files.items()}
    old = [path for path, state in states.items() if state != "fresh"]
    for path in old:
        name = path.relative_to(root)
        if states[path] == "in use":
            print(f"stale: {name}; it has answers, so move it away to get a new one")
        elif options.check:
            print(f"stale: {name}")
        else:
            write_atomically(path, files[path])
            print(f"wrote: {name}")
    if not old:
        print(f"{len(files)} files are up to date")
    return 1 if options.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
