"""Who may import whom: the picture in docs/structure.md, held to."""

import ast
import tomllib
from pathlib import Path

import pytest

from tools.export import ROOT, chapter_notebooks, is_of_course

CHAPTERS = list(dict.fromkeys(path.parent.name for path in chapter_notebooks()))
PROGRAMS = ("pretrain", "tools", "experiments")
# Programs that compare may look further: chapter 6's tries appendix E's method too, and
# chapter 7's judge is a model that chapter 8 reads. Chapter 8 finetunes it by appendix
# E, on chapter 7's splits and scored as there. Chapter 9's looks at what a model of
# chapter 7 forgets while it learns from rewards.
EXCEPTIONS = {
    ("ch04_gpt_model.exercise_checks", "shared.ch05"),  # for the base's numbers
    ("ch06_classification.compare", "shared.appendix_e"),
    ("ch07_instructions.judge", "shared.ch08"),
    ("ch08_modern_models.finetune", "shared.appendix_e"),
    ("ch08_modern_models.finetune", "ch07_instructions.compare"),
    ("ch08_modern_models.finetune", "ch07_instructions.scoring"),
    ("ch09_rewards.compare", "ch07_instructions.compare"),
}
MODULES = {
    f"{folder}.{path.stem}": path
    for folder in [*CHAPTERS, *PROGRAMS, "corpus", "shared"]
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name != "__init__.py"
}


def imports(path: Path) -> list[str]:
    """The modules of the course that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and "." not in (node.module or ""):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module)
    return [module for module in found if is_of_course(module)]


def place(module: str) -> int | None:
    """When its chapter is read: `shared.ch04` and `ch04_gpt_model.guards` alike."""
    name = module.removeprefix("shared.").split(".")[0]
    return next(
        (i for i, folder in enumerate(CHAPTERS) if folder.startswith(name)), None
    )


def refusal(module: str, imported: str) -> str | None:
    """Why a module may not import another one, or None if it may."""
    here, there = place(module), place(imported)
    folder = imported.split(".")[0]
    if module.startswith(PROGRAMS):
        mixed = folder in PROGRAMS and not module.startswith(folder)
        return "the programs know nothing of each other" if mixed else None
    if folder in PROGRAMS:
        return "programs import chapters, never the reverse"
    if here is None:
        return (
            "what all chapters share knows none of them" if there is not None else None
        )
    if "guards" in module:
        earlier = "guards" in imported and there is not None and there < here
        return (
            None if earlier else "guards import nothing but guards of earlier chapters"
        )
    if there is not None and there > here:
        return "a chapter imports no later one"
    if there is not None and there < here and folder != "shared":
        return "an earlier chapter is imported through shared"
    return None


def test_imports_run_one_way():
    refused = [
        f"{module} imports {imported}: {reason}"
        for module, path in MODULES.items()
        for imported in imports(path)
        if (reason := refusal(module, imported))
        and (module, imported) not in EXCEPTIONS
    ]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize(
    ("module", "imported", "reason"),
    [
        ("shared.data", "shared.files", None),
        ("shared.data", "shared.ch02", "what all chapters share"),
        ("shared.plots", "ch03_attention.attention", "what all chapters share"),
        ("shared.ch03", "ch03_attention.attention", None),
        ("shared.ch03", "ch04_gpt_model.gpt_model", "no later one"),
        ("ch03_attention.attention", "ch03_attention.guards", None),
        ("ch04_gpt_model.gpt_model", "shared.ch03", None),
        ("ch04_gpt_model.gpt_model", "ch03_attention.attention", "through shared"),
        ("ch04_gpt_model.gpt_model", "shared.ch05", "no later one"),
        ("ch07_instructions.instructions", "shared.appendix_e", "no later one"),
        ("ch04_gpt_model.guards", "ch03_attention.guards", None),
        ("ch04_gpt_model.guards", "shared.ch03", "guards import nothing"),
        ("ch03_attention.guards", "shared.files", "guards import nothing"),
        ("ch03_attention.guards", "ch04_gpt_model.guards", "guards import nothing"),
        ("ch05_pretraining.pretraining", "pretrain.prepare", "never the reverse"),
        ("shared.files", "tools.export", "never the reverse"),
        ("pretrain.run", "ch05_pretraining.pretraining", None),
        ("pretrain.run", "pretrain.prepare", None),
        ("pretrain.run", "tools.export", "nothing of each other"),
    ],
)
def test_what_may_be_imported(module, imported, reason):
    found = refusal(module, imported)
    assert found is None if reason is None else reason in found


def test_imports_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "module.py").write_text(
        "import shared.ch02\nfrom shared import data, plots\n"
        "def f():\n    from tools.export import main\n    import torch, json\n"
    )
    found = imports(tmp_path / "module.py")
    assert found == ["shared.ch02", "shared.data", "shared.plots", "tools.export"]


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("shared.")])
def test_a_chapter_s_module_in_shared_only_passes_on(module):
    if place(module) is None:
        return
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        listed = isinstance(node, ast.Assign) and ast.unparse(node.targets) == "__all__"
        docstring = isinstance(node, ast.Expr)
        assert isinstance(node, ast.ImportFrom) or listed or docstring


def test_the_page_about_it_names_every_folder_and_program():
    page = (ROOT / "docs/structure.md").read_text(encoding="utf-8")
    ours = ["corpus", "shared", "data", "tests", "benchmarks"]
    for folder in [*CHAPTERS, *PROGRAMS, *ours]:
        assert f"{folder}/" in page, folder
    for module, path in MODULES.items():
        if place(module) is None and path.stem != "__main__":
            assert f"  {path.name} " in page, module


def test_a_wheel_holds_every_folder_that_notebooks_need():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = settings["tool"]["setuptools"]["packages"]
    needed = [*CHAPTERS, *PROGRAMS, "corpus", "shared", "data"]
    inside = (path for name in needed for path in (ROOT / name).rglob("*"))
    folders = {path.parent.relative_to(ROOT) for path in inside if path.is_file()}
    passing = {"__pycache__", ".ipynb_checkpoints"}
    names = {".".join(x.parts) for x in folders if not passing & set(x.parts)}
    assert names == set(packages)
    assert settings["tool"]["setuptools"]["package-data"] == {"*": ["*"]}
