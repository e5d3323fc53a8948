"""Write a chapter's exported code as one file that needs nothing else of the course.

    python -m tools.bundle ch04 > gpt.py

The file holds everything the chapter exports and, of earlier chapters and of `shared`,
just the definitions that this uses; it imports only published packages.
"""

import argparse
import ast
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.export import ROOT, defined_name, run_ruff, statements


@dataclass
class Module:
    """One source file: its imports and, by name, the text and names of definitions."""

    outside_imports: list[str]
    shared_imports: dict[str, tuple[str, str]]  # local name -> (shared module, name)
    definitions: dict[str, str]
    uses: dict[str, set[str]]


class Bundle:
    """Collects the definitions that a chapter needs, each after those it builds on."""

    def __init__(self) -> None:
        self.imports: dict[str, None] = {}
        self.sources: dict[str, str] = {}
        self.origins: dict[str, Path] = {}

    def add(self, path: Path, name: str) -> None:
        """Add one definition of one source file, and before it all that it uses."""
        if self.origins.get(name) == path:
            return
        if name in self.origins:
            raise ValueError(
                f"{name!r} is defined in {self.origins[name]} and in {path}; "
                "one file cannot hold both"
            )
        self.origins[name] = path
        module = read_module(path)
        self.imports.update(dict.fromkeys(module.outside_imports))
        for used in sorted(module.uses[name] - {name}):
            if used in module.definitions:
                self.add(path, used)
            elif used in module.shared_imports:
                self.add_shared(used, *module.shared_imports[used])
        self.sources[name] = module.definitions[name]

    def add_shared(self, local_name: str, module_name: str, name: str) -> None:
        """Add what `from shared.<module> import <name> as <local name>` refers to."""
        path = next(p for p in module_files(module_name) if name in exported(p))
        self.add(path, name)
        if local_name != name:
            self.sources[local_name] = f"{local_name} = {name}"


def chapters() -> list[str]:
    """What can be bundled: "ch02" and so on, then "appendix_e"."""
    folder = ROOT / "shared"
    found = [*folder.glob("ch[0-9][0-9].py"), *folder.glob("appendix_[a-z].py")]
    return sorted((p.stem for p in found), key=lambda name: (name[0] == "a", name))


def module_files(name: str) -> list[Path]:
    """The files behind `shared.<name>`: a chapter's exports, or the file itself.

    Raises:
        ValueError: if there is no such module.
    """
    path = ROOT / "shared" / f"{name}.py"
    if not path.is_file():
        raise ValueError(f"no chapter is called {name!r}; there are {chapters()}")
    chapter_modules = [
        ROOT / (node.module.replace(".", "/") + ".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]
    return chapter_modules or [path]


def exported(path: Path) -> list[str]:
    """The names that a file defines, in order."""
    return list(read_module(path).definitions)


@functools.cache
def read_module(path: Path) -> Module:
    """Take a source file apart."""
    module = Module([], {}, {}, {})
    for node, text in statements(path.read_text(encoding="utf-8"), str(path)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("shared."):
            for alias in node.names:
                origin = (node.module.removeprefix("shared."), alias.name)
                module.shared_imports[alias.asname or alias.name] = origin
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module.outside_imports.append(ast.unparse(node))
        elif (name := defined_name(node)) is not None:
            module.definitions[name] = text
            names = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            module.uses[name] = {n.id for n in names}
    return module


def bundle(chapter: str) -> str:
    """The text of one self-contained file with all that `chapter` exports.

    Args:
        chapter: such as "ch04".

    Raises:
        ValueError: if there is no such chapter.
    """
    collected = Bundle()
    for path in module_files(chapter):
        for name in exported(path):
            collected.add(path, name)
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8").strip()
    notice = "\n".join(f"# {line}".rstrip() for line in licence.split("\n"))
    if chapter.startswith("ch"):
        title = f"chapter {int(chapter.removeprefix('ch'))}"
    else:
        title = f"appendix {chapter.removeprefix('appendix_').upper()}"
    docstring = (
        f'"""All that {title} exports, with what it needs of earlier chapters.\n\n'
        f'Written by `python -m tools.bundle {chapter}`.\n"""'
    )
    parts = [notice + "\n\n" + docstring, "\n".join(collected.imports)]
    text = "\n\n\n".join([*parts, *collected.sources.values()]) + "\n"
    text = run_ruff(["check", "--select", "F401,I001", "--fix"], text, chapter)
    run_ruff(["check", "--select", "F821,F811"], text, chapter)
    return run_ruff(["format"], text, chapter)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.bundle")
    parser.add_argument("chapter", help="such as ch04")
    try:
        sys.stdout.write(bundle(parser.parse_args().chapter))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
