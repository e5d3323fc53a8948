"""Build the course as a web site, from what the notebooks store; nothing is run again.

    python -m tools.site             the site in build/site, and build/site.zip
    python -m tools.site --sources   only what Sphinx reads, in build/site-sources

`make site` calls this in an environment of its own. Sphinx gets a copy of the notebooks
and pages, so that each chapter can begin with how to run it and end with its list of
pages. MathJax and Mermaid are taken from npm's packages, by sha256, and served with the
site: whoever reads it asks no other machine for anything. At last every link inside the
site is followed.
"""

import argparse
import ast
import base64
import hashlib
import html
import re
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from nbformat.v4 import new_markdown_cell

from tools.export import ROOT, chapter_notebooks, goes_deeper, main_notebook

BUILD = ROOT / "build"
FIRST = [
    "docs/introduction.md",
    "docs/install.md",
    "appendix_a_pytorch/readiness.ipynb",
]
LAST = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
# npm's packages: what is taken of them, and the sha256 of the whole package
SCRIPTS = {
    "mathjax@3.2.2": (
        ["es5/tex-svg.js", "es5/input/tex/extensions/", "LICENSE"],
        "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09",
    ),
    "mermaid@11.17.2": (
        ["dist/mermaid.min.js", "LICENSE"],
        "6ad2f42c3fc26bbf9e45cbb6d11898972573ea52b33a5f4ff51952899f950ffd",
    ),
}
STILL = "A still: in the running notebook, this picture has controls to move."
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
TIME = re.compile(  # as notebooks say it: "runs in about 12 seconds on two CPU cores"
    r"\b(?:runs\W+in|takes)\s+((?:about|one|\w+\s+to)\s[^.,;]*?(?:second|minute)s?"
    r"(?:\s+and\s+a\s+half)?)\b",
    re.IGNORECASE,
)
NOTEBOOK = re.compile(r"\w+\.ipynb")


# Which pages there are, and in which order


def notebooks(root: Path = ROOT) -> list[Path]:
    """Every notebook of the course in its order; in each folder exercises come last."""
    found = []
    for path in chapter_notebooks(root):  # in each folder the solutions are last
        exercises = path.with_name("exercises.ipynb")
        if path.name == "solutions.ipynb" and exercises.is_file():
            found.append(exercises)
        found.append(path)
    return found


def belongs_to(root: Path = ROOT) -> dict[Path, list[Path]]:
    """Each main notebook with the pages below it: what goes deeper, and exercises.

    The exercises of a folder stand below its last main notebook.
    """
    pages: dict[Path, list[Path]] = {}
    for path in notebooks(root):
        if path.name == "exercises.ipynb":
            mains = [main for main in pages if main.parent == path.parent]
            first = [root / name for name in FIRST]
            pages[[main for main in mains if main not in first][-1]].append(path)
        elif goes_deeper(path):
            pages.setdefault(main_notebook(path), []).append(path)
        elif path.name != "solutions.ipynb":
            pages.setdefault(path, [])
    return pages


def documents(root: Path = ROOT) -> list[Path]:
    """The pages of text, in the order in which the front page names them."""
    front = (root / "README.md").read_text(encoding="utf-8")
    texts = [
        *root.glob("docs/*.md"),
        *root.glob("data/*.md"),
        *root.glob("data/base/*.md"),
    ]
    names = {path.relative_to(root).as_posix() for path in texts}

    def key(name: str) -> tuple:
        return name not in FIRST, (front.find(f"({name})") + 1) or len(front), name

    last = [name for name in LAST if (root / name).is_file()]
    return [root / name for name in [*sorted(names, key=key), *last]]


def contents(root: Path = ROOT) -> dict[str, list[str]]:
    """The table of contents: captions, and below them entries of Sphinx's toctree."""
    mains = belongs_to(root)

    def entries(paths):
        return [f"{short_title(path)} <{docname(path, root)}>" for path in paths]

    chapters = [path for path in mains if path.parent.name.startswith("ch")]
    appendices = [path for path in mains if path not in chapters]
    first = [root / name for name in FIRST]
    return {
        "Begin": [docname(path, root) for path in first if path.suffix == ".md"]
        + entries(path for path in first if path.suffix == ".ipynb"),
        "Chapters": entries(chapters),
        "Appendices": entries(path for path in appendices if path not in first),
        "Look up": ["glossary", "api/index"],
        "More": [docname(path, root) for path in documents(root) if path not in first],
    }


def docname(path: Path, root: Path = ROOT) -> str:
    """Sphinx's name of a page: its path without the ending."""
    return path.relative_to(root).with_suffix("").as_posix()


def title(path: Path) -> str:
    """The heading of a notebook: "Chapter 2b: Byte-pair encoding from scratch"."""
    first = nbformat.read(path, as_version=4).cells[0].source
    return first.split("\n", 1)[0].removeprefix("# ")


def short_title(path: Path) -> str:
    """The heading as the table of contents has it: "2b Byte-pair encoding ..."."""
    named = re.fullmatch(
        r"(?:Chapter|Appendix) (\w+)(, deeper)?(?:: (.*))?", title(path)
    )
    if path.stem in ("exercises", "solutions"):
        return path.stem.capitalize()
    if named is None:
        return title(path)
    if goes_deeper(path):
        return f"Deeper: {named[3]}" if named[3] else "Deeper"
    return f"{named[1]} {named[3]}"


# Names to import


def passed_on(root: Path = ROOT) -> dict[str, dict[str, list[str]]]:
    """Of each chapter's module in `shared`: modules that it passes on, and names."""
    order = [".".join(Path(docname(path, root)).parts) for path in notebooks(root)]

    def key(item: tuple[str, list[str]]) -> int:
        return order.index(item[0]) if item[0] in order else len(order)

    found = {}
    for path in sorted(root.glob("shared/*.py"), key=_chapters_first):
        defined = {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                source = root / (node.module.replace(".", "/") + ".py")
                if not re.match(r"(ch\d\d|appendix)_", node.module):
                    continue
                names = [alias.name for alias in node.names]
                if names == ["*"]:
                    names = exported_names(source)
                defined.setdefault(node.module, []).extend(names)
        if re.fullmatch(r"ch\d\d|appendix_\w", path.stem):
            found[f"shared.{path.stem}"] = dict(sorted(defined.items(), key=key))
    return found


def _chapters_first(path: Path) -> tuple:
    return path.stem.startswith("appendix"), path.stem


def exported_names(module: Path) -> list[str]:
    """The `__all__` of a module, read without importing it."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def kinds(module: Path) -> dict[str, str]:
    """Of each name that a module defines: the directive that documents it."""
    found = {}
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = "autoclass"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = "autofunction"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = "autodata"
    return found


def api_page(shared: str, defined: dict[str, list[str]], root: Path = ROOT) -> str:
    """The page of one module of `shared`: every name, in the order of teaching."""
    files = {module: root / (module.replace(".", "/") + ".py") for module in defined}
    first = next(
        name
        for module, names in defined.items()
        for name in names
        if kinds(files[module]).get(name) in ("autoclass", "autofunction")
    )
    lines = [
        f"# {shared}",
        "",
        f"```python\nfrom {shared} import {first}  # for example\n```",
    ]
    for module, names in defined.items():
        source = files[module]
        lines += ["", f"## From {module}", "", explained(source, root)]
        directives = kinds(source)
        for name in names:
            directive = directives.get(name)
            if directive is None:
                continue  # itself imported from an earlier chapter
            lines += ["", "```{eval-rst}", f".. {directive}:: {module}.{name}"]
            if directive == "autoclass":
                lines += ["   :members:", "   :undoc-members:"]
            elif directive == "autodata":
                lines += ["   :no-value:", "", *in_source(source, name)]
            lines += ["```"]
    return "\n".join(lines) + "\n"


def in_source(module: Path, name: str) -> list[str]:
    """How a module defines a constant, as a block of code inside its description."""
    text = module.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            code = text.split("\n")[node.lineno - 1 : node.end_lineno]
            return ["   .. code-block:: python", "", *(f"      {x}" for x in code)]
    return []


def explained(module: Path, root: Path = ROOT) -> str:
    """Which notebooks explain a module; of a plain module, what it is for."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    if "Exported from " not in text:
        return text.split("\n", 1)[0]
    names = NOTEBOOK.findall(text.split("Exported from ")[1])
    paths = [module.with_name(name) for name in names]
    links = [f"[{title(x)}](../{x.relative_to(root).as_posix()})" for x in paths]
    verb = "explains" if len(links) == 1 else "explain"
    return f"{' and '.join(links)} {verb} every line."


def api_index(root: Path = ROOT) -> str:
    """The page that lists all names of all modules of `shared`."""
    lines = [
        "# Names to import",
        "",
        "Every class and function that chapters export, by chapter. Later chapters and",
        "your own programs import it from `shared`, as in `from shared.ch04 import",
        "GPTModel`. Letters in shapes are those of the [glossary](../glossary.md).",
        "",
        "| import from | names |",
        "|---|---|",
    ]
    modules = passed_on(root)
    for shared, defined in modules.items():
        names = [
            f"{{py:obj}}`~{module}.{name}`"
            for module, names in defined.items()
            for name in names
            if name in kinds(root / (module.replace(".", "/") + ".py"))
        ]
        lines.append(f"| [{shared}]({shared}.md) | {', '.join(names)} |")
    lines += ["", "```{toctree}", ":hidden:", "", *modules, "```"]
    return "\n".join(lines) + "\n"


# What Sphinx reads


def sources(root: Path = ROOT) -> dict[str, str | bytes]:
    """Every file that Sphinx reads or copies, by its path; nothing is written yet."""
    below, names = belongs_to(root), passed_on(root)
    files: dict[str, str | bytes] = {}
    for path in notebooks(root):
        notebook = nbformat.read(path, as_version=4)
        place = path.relative_to(root).as_posix()
        show_figures(notebook, files)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = repoint(cell.source, path, root, files)
        module = ".".join(main_notebook(path).relative_to(root).with_suffix("").parts)
        shared = next((x for x, defined in names.items() if module in defined), None)
        deeper = [x.name for x in below.get(path, []) if goes_deeper(x)]
        first = notebook.cells[0].source
        hint = how_to_run(path, place, run_time(first), deeper, shared)
        notebook.cells[0].source = with_hint(first, hint)
        if entries := [f"{short_title(x)} <{x.stem}>" for x in below.get(path, [])]:
            notebook.cells.append(new_markdown_cell(toctree(entries), id="pages"))
        if path.name == "solutions.ipynb":
            notebook.metadata["orphan"] = True  # linked, but on no way to anywhere
        files[place] = nbformat.writes(notebook)
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        files[path.relative_to(root).as_posix()] = repoint(text, path, root, files)
    for picture in sorted(root.glob("docs/pictures/*")):
        place = picture.relative_to(root).as_posix()
        files[place] = files[f"beside/{place}"] = picture.read_bytes()
    files["index.md"] = front_page(root, files)
    files["glossary.md"] = (root / "site/glossary.md").read_text(encoding="utf-8")
    files["api/index.md"] = api_index(root)
    for shared, defined in names.items():
        files[f"api/{shared}.md"] = api_page(shared, defined, root)
    return files


def write(files: dict[str, str | bytes], target: Path) -> None:
    """Make a folder hold these files and no others.

    A file that is the same already is left alone: Sphinx reads again what has changed.
    """
    stale = {path for path in target.rglob("*") if path.is_file()}
    for name, content in files.items():
        path = target / name
        content = content.encode() if isinstance(content, str) else content
        if path not in stale or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        stale.discard(path)
    for path in stale:
        path.unlink()


def run_time(first: str) -> str | None:
    """How long a notebook runs, if its first cell says so: "about 12 seconds"."""
    said = TIME.search(first)
    return " ".join(said[1].split()) if said else None


def how_to_run(
    path: Path, place: str, time: str | None, deeper: list[str], shared: str | None
) -> str:
    """The box below a notebook's heading: how to run it, and what lies beside it.

    Args:
        path: the notebook, `place` in the course.
        time: how long it runs, if that is known.
        deeper: names of the notebooks that go deeper.
        shared: where to import from what it exports, if it exports anything.
    """
    says = (
        "This page shows what the notebook stores. To run it and change it, [get the "
        "course](../docs/install.md), type `make lab` in its folder, and open "
        f"`{place}`."
    )
    exercises = ["[Exercises](exercises.ipynb)", "[Solutions](solutions.ipynb)"]
    if time:
        says += f" It runs for {time}."
    if path.name == "exercises.ipynb":
        says += " Answer there: the cell after each answer says what is wrong."
        links = exercises[1:]
    elif path.name == "solutions.ipynb":
        links = exercises[:1]
    else:
        links = [f"[Deeper]({name})" for name in deeper]
        if goes_deeper(path):
            links = [f"[The main notebook]({main_notebook(path).name})"]
        links += exercises if path.with_name("exercises.ipynb").is_file() else []
        links += [f"[What it exports](../api/{shared}.md)"] if shared else []
    box = [":::{admonition} Run this notebook", ":class: run-it", "", says, ""]
    return "\n".join([*box, " · ".join(links), ":::"])


def with_hint(source: str, hint: str) -> str:
    """A notebook's first cell, with the hint below its heading and first paragraph."""
    heading, _, rest = source.partition("\n\n")
    promise, _, rest = rest.partition("\n\n")
    return "\n\n".join([heading, promise, hint, rest])


def toctree(entries: list[str], *options: str) -> str:
    return "\n".join(["```{toctree}", ":hidden:", *options, "", *entries, "```"])


def show_figures(notebook: nbformat.NotebookNode, files: dict) -> None:
    """Move pictures into files, and show each by an image that has its alt text."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" not in data:
                continue
            picture = base64.b64decode(data.pop("image/png"))
            name = hashlib.sha256(picture).hexdigest()[:16] + ".png"
            files[f"beside/figures/{name}"] = picture
            alt = output.metadata.get("image/png", {}).get("alt", "")
            width = int.from_bytes(picture[16:20], "big")  # PNG's header says it
            data["text/html"] = (
                f'<img class="figure" src="../figures/{name}" width="{width}" '
                f'loading="lazy" alt="{html.escape(alt)}">'
            )
            if "widgets." in cell.source:
                data["text/html"] += f'<p class="still">{STILL}</p>'


def repoint(text: str, path: Path, root: Path, files: dict) -> str:
    """A page's text whose links lead to pages of the site or to files beside them."""

    def replace(match: re.Match) -> str:
        linked = (path.parent / match[1]).resolve()
        if not linked.is_relative_to(root) or not linked.is_file():
            return match[1]  # Sphinx will complain
        if linked == root / "README.md":
            up = "../" * (len(path.relative_to(root).parts) - 1)
            return f"{up}index.md"
        if linked.suffix not in (".ipynb", ".md"):
            files[linked.relative_to(root).as_posix()] = linked.read_bytes()
        return match[1]

    return LINK.sub(replace, text)


def front_page(root: Path, files: dict) -> str:
    """The README with the table of contents, and the buttons of site/index.md."""
    readme = root / "README.md"
    text = repoint(readme.read_text(encoding="utf-8"), readme, root, files)
    heading, picture, promise, rest = text.split("\n\n", 3)
    buttons = (root / "site/index.md").read_text(encoding="utf-8")
    trees = [
        toctree(entries, f":caption: {caption}")
        for caption, entries in contents(root).items()
    ]
    return "\n\n".join([heading, promise, buttons, picture, rest, *trees]) + "\n"


# The site itself


def scripts() -> dict[str, bytes]:
    """MathJax's and Mermaid's files, from npm's packages, which stay in build/npm."""
    packages, files = BUILD / "npm", {}
    packages.mkdir(parents=True, exist_ok=True)
    for package, (parts, sha256) in SCRIPTS.items():
        archive = packages / (package.replace("@", "-") + ".tgz")
        if not archive.is_file():
            npm = shutil.which("npm")
            if npm is None:
                sys.exit(f"make site needs npm, to get {package} once: install Node.js")
            command = [npm, "pack", "--silent", "--pack-destination", str(packages)]
            subprocess.run([*command, package], check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sha256:
            archive.unlink()
            sys.exit(f"{package} has sha256 {found}, not {sha256}; it was removed")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                name = member.name.removeprefix("package/")
                if name.startswith(tuple(parts)) and not name.endswith(".map"):
                    place = f"beside/scripts/{package.partition('@')[0]}/{name}"
                    files[place] = tar.extractfile(member).read()
    return files


class Page(HTMLParser):
    """What a page links to, what it loads, and which places on it have a name."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.names, self.no_alt = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.names.update(filter(None, (found.get("id"), found.get("name"))))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(found.get("href") or "")
        elif found.get("src"):
            self.loads.append(found["src"])
        if tag == "img" and not (found.get("alt") or "").strip():
            self.no_alt.append(found.get("src", "")[:80])


def faults(folder: Path) -> list[str]:
    """Broken links, things loaded from other machines, and images without alt text."""
    pages = {
        path: Page(path.read_text("utf-8"))
        for path in sorted(folder.rglob("*.html"))
        if "_static" not in path.parts  # the theme's templates
    }
    found = []
    for path, page in pages.items():
        place = path.relative_to(folder).as_posix()
        found += [f"{place}: no alt text for {image}" for image in page.no_alt]
        for address in dict.fromkeys([*page.loads, *page.links]):
            parts = urlsplit(address)
            if parts.scheme == "data" or (parts.scheme and address in page.links):
                continue
            if parts.scheme or parts.netloc:
                found.append(f"{place}: loads {address}")
                continue
            linked = path
            if parts.path:
                linked = (path.parent / unquote(parts.path)).resolve()
            name = unquote(parts.fragment)
            if not linked.is_file():
                found.append(f"{place}: {address} is not there")
            elif name and linked in pages and name not in pages[linked].names:
                found.append(f"{place}: {address} is nowhere on its page")
    return found


def build(read: Path, site: Path) -> None:
    """Run Sphinx; a warning is an error."""
    command = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(ROOT / "site")]
    caches = ["-d", str(BUILD / "site-doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *command, *caches, str(read), str(site)],
        cwd=ROOT,
    )
    if done.returncode:
        sys.exit("the site was not built without a warning")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.site")
    parser.add_argument("--sources", action="store_true", help="do not run Sphinx")
    options = parser.parse_args(arguments)
    read, site = BUILD / "site-sources", BUILD / "site"
    files = sources()
    if not options.sources:
        files |= scripts()
    write(files, read)
    if options.sources:
        return 0
    if site.exists():
        shutil.rmtree(site)
    build(read, site)
    for path in site.rglob("*.map"):  # for those who mend the theme
        path.unlink()
    found = faults(site)
    print(*found, sep="\n", end="\n" if found else "")
    archive = shutil.make_archive(str(site), "zip", site.parent, site.name)
    size = Path(archive).stat().st_size / 1e6
    pages = len(list(site.rglob("*.html")))
    print(f"{pages} pages in build/site, {size:.1f} MB as build/site.zip")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
