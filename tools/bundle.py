"""Write a chapter's exported code as one file that needs nothing else of the course.

    python -m tools.bundle ch04 -o gpt.py                all that chapter 4 exports
    python -m tools.bundle ch05 generate -o generate.py  only this function
    python -m tools.bundle ch04 --plain -o my_gpt.py     the model, to be read and owned

The file has what you asked for, and the definitions that it uses from earlier chapters,
from `shared` and from the plain modules beside the notebooks. It imports only published
packages, and its first lines name them. Without `-o` it is printed.

The plain file has only what the model is: nothing is checked, and nothing is cached.
`tools.plain` works it out from the same source.
"""

import argparse
import ast
import difflib
import functools
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from pathlib import Path

from shared.files import write_atomically
from tools.export import ROOT, defined_name, is_of_course, run_ruff, statements
from tools.plain import simplify

# The plain file of chapter 4, in the order in which one reads it.
PLAIN = {
    "Settings": ["GPT_CONFIG_124M"],
    "The parts of a block": ["LayerNorm", "MultiHeadAttention", "GELU", "FeedForward"],
    "The block": ["TransformerBlock"],
    "The model": ["GPTModel", "init_like_gpt2"],
    "Writing": ["next_token_logits", "generate_text_simple"],
}
PLAIN_HEAD = '''"""GPT-2 in one file that needs only PyTorch.

Shapes: B texts in a batch, T tokens in a text, C numbers in a token's vector, H heads
of D = C / H numbers, V tokens in the vocabulary.

    model = GPTModel(GPT_CONFIG_124M)
    logits = model(ids)  # (B, T) -> (B, T, V): row t scores what follows token t

Chapters 3 and 4 of the course explain every line. Written by

    python -m tools.bundle ch04 --plain
"""'''
PLAIN_END = """if __name__ == "__main__":
    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M).eval()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    ids = torch.tensor([[464, 4512, 373, 2739]])  # "The train was late", for GPT-2
    print(generate_text_simple(model, ids, max_new_tokens=8, context_size=1024))
"""


@dataclass
class Module:
    """One source file: its imports, and each definition's text and what it uses."""

    outside_imports: list[str] = field(default_factory=list)
    course_imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)  # modules imported with a `*`
    public: list[str] | None = None  # its `__all__`
    definitions: dict[str, str] = field(default_factory=dict)
    uses: dict[str, set[str]] = field(default_factory=dict)


class Bundle:
    """Collects definitions, each after those that it uses."""

    def __init__(self) -> None:
        self.imports: dict[str, None] = {}
        self.sources: dict[str, str] = {}
        self.origins: dict[str, str] = {}

    def add(self, module_name: str, name: str) -> None:
        """Add one definition of a module, after everything that it uses."""
        if self.origins.setdefault(name, module_name) != module_name:
            raise ValueError(
                f"{name!r} is defined in {self.origins[name]} and in {module_name}; "
                "one file cannot hold both"
            )
        if name in self.sources:
            return
        self.sources[name] = ""  # it is being added
        module = read_module(module_name)
        self.imports.update(dict.fromkeys(module.outside_imports))
        for used in sorted(module.uses[name] - {name}):
            found = find(module_name, used)
            if found is not None:
                self.add(*found)
                if found[1] != used:  # it is imported under another name
                    self.sources[used] = f"{used} = {found[1]}"
        del self.sources[name]  # so that it comes after all that it uses
        self.sources[name] = module.definitions[name]


def chapters() -> list[str]:
    """The chapters that can be bundled: "ch02" and so on, then "appendix_e"."""
    folder = ROOT / "shared"
    found = [*folder.glob("ch[0-9][0-9].py"), *folder.glob("appendix_[a-z].py")]
    return sorted((p.stem for p in found), key=lambda name: (name[0] == "a", name))


@functools.cache
def read_module(name: str) -> Module:
    """Read the source file of a module of the course into its parts."""
    path = ROOT / (name.replace(".", "/") + ".py")
    if not path.is_file():
        path = path.with_suffix("") / "__init__.py"
    module = Module()
    for node, text in statements(path.read_text(encoding="utf-8"), str(path)):
        if isinstance(node, ast.ImportFrom) and is_of_course(node.module):
            for alias in node.names:
                origin = (node.module, alias.name)
                module.course_imports[alias.asname or alias.name] = origin
                if alias.name == "*":
                    module.stars.append(node.module)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module.outside_imports.append(ast.unparse(node))
        elif (defined := defined_name(node)) is not None:
            module.definitions[defined] = text
            names = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            module.uses[defined] = {n.id for n in names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets) == "__all__":
            module.public = ast.literal_eval(node.value)
    return module


def find(module_name: str, name: str) -> tuple[str, str] | None:
    """Where a name of this module is defined: the module and the name there.

    Raises:
        ValueError: if the course has it, but not as a definition; a whole module, say.
    """
    module = read_module(module_name)
    if name in module.definitions:
        return module_name, name
    if name in module.course_imports:
        origin, original = module.course_imports[name]
        return find(origin, original) or refuse(origin, original)
    for star in module.stars:
        if name in exported(star):
            return find(star, name)
    return None


def refuse(module_name: str, name: str) -> None:
    """Raise ValueError for a name of the course that is not a definition."""
    raise ValueError(
        f"{name!r} of {module_name} is not a function, class or constant, so it cannot "
        "be copied"
    )


def exported(module_name: str) -> list[str]:
    """The names that `from <module> import *` imports, in order."""
    module = read_module(module_name)
    if module.public is not None:
        return module.public
    names = [name for star in module.stars for name in exported(star)]
    names += [*module.course_imports, *module.definitions]
    return [name for name in names if name[0] not in "_*"]


def bundle(chapter: str, names: Sequence[str] = ()) -> str:
    """The text of one self-contained file.

    Args:
        chapter: such as "ch04".
        names: names of this chapter or an earlier one; by default all that the chapter
            exports.

    Raises:
        ValueError: if there is no such chapter or name; it suggests the nearest one.
    """
    known = chapters()
    if chapter not in known:
        well_formed = re.fullmatch(r"ch\d\d|appendix_[a-z]", chapter)
        hint = nearest(chapter, [] if well_formed else known, known)
        raise ValueError(f"no chapter that exports is called {chapter!r}{hint}")
    names = list(dict.fromkeys(names))
    collected = Bundle()
    earlier = known[: known.index(chapter) + 1][::-1]
    for name in names or exported(f"shared.{chapter}"):
        collected.add(*find_in_chapters(earlier, name))
    if chapter.startswith("ch"):
        title = f"chapter {int(chapter.removeprefix('ch'))}"
    else:
        title = f"appendix {chapter.removeprefix('appendix_').upper()}"
    text = "\n\n\n".join(["\n".join(collected.imports), *collected.sources.values()])
    text = run_ruff(["check", "--select", "F401,I001", "--fix"], text + "\n", chapter)
    what = ", ".join(names) if names else f"All that {title} exports"
    command = " ".join(["python -m tools.bundle", chapter, *names])
    head = textwrap.fill(f"{what}, with all that is used in it.", 84)
    call = textwrap.indent(textwrap.fill(command, 84), "    ")
    head += f"\n\nNeeds {needs(text)}.\n\nWritten by\n\n{call}\n"
    text = "\n\n".join([f'"""{head}"""', licence_notice(), text])
    run_ruff(["check", "--select", "F821,F811"], text, chapter)
    return run_ruff(["format"], text, chapter)


def plain_bundle() -> str:
    """The text of chapter 4's plain file."""
    known = chapters()
    earlier, imports, parts = known[: known.index("ch04") + 1][::-1], {}, []
    for title, names in PLAIN.items():
        parts.append(f"# {title} {'-' * (85 - len(title))}")
        for name in names:
            module_name, original = find_in_chapters(earlier, name)
            module = read_module(module_name)
            imports.update(dict.fromkeys(module.outside_imports))
            guards = {
                imported
                for imported, (origin, _) in module.course_imports.items()
                if origin.endswith("guards")
            }
            parts.append(simplify(module.definitions[original], guards))
    text = "\n\n\n".join(["\n".join(imports), *parts, PLAIN_END])
    text = run_ruff(["check", "--select", "F401,I001", "--fix"], text, "ch04")
    run_ruff(["check", "--select", "F821,F811"], text, "ch04")
    text = run_ruff(["format"], f"{PLAIN_HEAD}\n\n{text}", "ch04")
    return f"{text}\n\n{licence_notice()}\n"


def licence_notice() -> str:
    """The course's licence as a comment."""
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8").strip()
    return "\n".join(f"# {line}".rstrip() for line in licence.split("\n"))


def needs(text: str) -> str:
    """The packages that a program imports, by their names for pip."""
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
    known = packages_distributions()
    found = {known.get(n, [n])[0] for n in imported - sys.stdlib_module_names}
    return ", ".join(sorted(found)) or "Python alone"


def find_in_chapters(known: list[str], name: str) -> tuple[str, str]:
    """Where a name that one of these chapters exports is defined."""
    public = {}
    for chapter in reversed(known):
        module = read_module(f"shared.{chapter}")
        for source in [f"shared.{chapter}", *module.stars]:
            public.update(dict.fromkeys(exported(source), source))
    if name not in public:
        later = [c for c in chapters() if name in exported(f"shared.{c}")]
        own = exported(f"shared.{known[0]}")
        hint = f"; {later[0]} does" if later else nearest(name, public, own)
        raise ValueError(f"{known[0]} exports nothing called {name!r}{hint}")
    return find(public[name], name) or refuse(public[name], name)


def nearest(word: str, known: Iterable[str], listed: Iterable[str]) -> str:
    """The end of an error message: the nearest name, or all names."""
    spelled = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), spelled, n=1)
    if close:
        return f"; did you mean {spelled[close[0]]!r}?"
    return f"; there are {', '.join(listed)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.bundle")
    parser.add_argument("chapter", help="such as ch04")
    parser.add_argument(
        "names", nargs="*", default=[], help="such as generate (default: all)"
    )
    parser.add_argument(
        "--plain", action="store_true", help="chapter 4's model without checks, caches"
    )
    parser.add_argument("-o", "--out", type=Path, help="the file to write")
    options = parser.parse_args(arguments)
    try:
        if options.plain and (options.chapter != "ch04" or options.names):
            raise ValueError("only ch04 has a plain form, and only as a whole")
        if options.plain:
            text = plain_bundle()
        else:
            text = bundle(options.chapter, options.names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if options.out is not None:
        write_atomically(options.out, text)
    else:
        sys.stdout.buffer.write(text.encode("utf-8"))  # whatever the terminal expects
    return 0


if __name__ == "__main__":
    sys.exit(main())
