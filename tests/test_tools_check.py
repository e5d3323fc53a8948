"""`make check`: which tests belong to a file, what has changed, and what is run."""

import subprocess

import pytest

from tools import check

TESTS = sorted(f"tests/{path.name}" for path in (check.ROOT / "tests").glob("test_*"))


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("ch02_text_data/bpe_files.py", "ch02_bpe"),
        ("ch02_text_data/text_data.py", "ch02_text_data"),
        ("ch02_text_data/guards.py", "ch02_bpe ch02_text_data"),
        ("ch04_gpt_model/missing_parts.py", "ch04_gpt_model"),
        ("shared/ch03.py", "ch03_attention"),
        ("shared/appendix_f.py", "appendix_f_speed"),
        ("shared/widgets.py", "widgets"),
        ("tools/bundle.py", "tools_bundle"),
        ("pretrain/prepare.py", "pretrain_prepare"),
        ("benchmarks/scaling.py", "benchmarks_scaling"),
        ("tests/test_files.py", "files"),
        ("tests/wrong_answers.txt", "exercises tools_check"),
        ("conftest.py", "mutants_killed nbval_rules tools_check"),
        ("README.md", ""),
    ],
)
def test_a_file_s_tests_have_its_name_or_its_folder_s(path, names):
    found = check.tests_of(path, TESTS)
    assert found == [(f"tests/test_{name}.py", "") for name in names.split()]


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        (
            "ch03_attention/deeper.ipynb",
            {
                **dict.fromkeys(check.OF_NOTEBOOKS, "ch03_attention/deeper.ipynb"),
                "tests/test_ch03_attention.py": "",
            },
        ),
        (
            "ch04_gpt_model/exercise_checks.py",
            {check.EXERCISES: "ch04_gpt_model"},
        ),
        (
            "appendix_e_lora/solutions.ipynb",
            {
                **dict.fromkeys(check.OF_NOTEBOOKS, "appendix_e_lora/solutions.ipynb"),
                check.EXERCISES: "appendix_e_lora",
            },
        ),
    ],
)
def test_of_some_tests_only_a_part_is_chosen(path, chosen):
    assert dict(check.tests_of(path, TESTS)) == chosen


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one test in a repository; a function that runs git there."""

    def git(*arguments):
        own = [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "-c",
            "init.defaultBranch=main",
        ]
        subprocess.run(["git", *own, *arguments], cwd=tmp_path, check=True)

    monkeypatch.setattr(check, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_tools_bundle.py").touch()
    (tmp_path / "old.md").touch()
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        git(*arguments)
    return tmp_path, git


def test_what_has_changed_since_the_last_commit_and_on_a_branch_since_main(course):
    folder, git = course
    assert check.changed() == []
    (folder / "old.md").write_text("new")
    (folder / "more.md").touch()
    assert check.changed() == ["more.md", "old.md"]
    for arguments in (["checkout", "-qb", "b"], ["add", "."], ["commit", "-qm", "two"]):
        git(*arguments)
    assert check.changed() == ["more.md", "old.md"]
    assert check.changed("HEAD") == []
    with pytest.raises(SystemExit, match="git diff .*nowhere"):
        check.changed("nowhere")


@pytest.mark.parametrize("status", [0, 1])
def test_all_steps_run_and_one_that_fails_is_told(course, monkeypatch, capsys, status):
    folder, _ = course
    for name in ("tools/bundle.py", "ch03_x/a.ipynb", "ch03_x/exercises.ipynb"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    monkeypatch.setattr(check, "ALWAYS", [])
    usual, ran = subprocess.run, []

    def run(command, **options):
        if command[0] == "git":
            return usual(command, **options)
        ran.append(command[2:])
        failed = status * ("ruff" in command or "tools.export" in command)
        stale = "stale: ch03_x/a.py\n" if "tools.export" in command else None
        return subprocess.CompletedProcess(command, failed, stale)

    monkeypatch.setattr(subprocess, "run", run)
    assert check.main(["--list"]) == 0 and ran == []
    assert check.main([]) == status
    assert [command[0] for command in ran] == [
        "ruff",
        "ruff",
        "tools.export",
        *["pytest"] * 2,
    ]
    assert ran[3][-1] == "tests/test_tools_bundle.py"
    assert ran[4][-2:] == ["-k", "ch03_x or ch03_x/a.ipynb or ch03_x/exercises.ipynb"]
    printed = capsys.readouterr().out
    if status:
        end = printed[printed.index("failed: ") :]
        assert "ruff check . -> " in end and "-> python -m ruff format .\n" in end
        assert "\nstale: ch03_x/a.py\nfailed: python -m tools.export" in end
        assert "make export" in end and end.endswith("something failed, after 0 s\n")
    else:
        assert "failed" not in printed and printed.endswith("all is well, after 0 s\n")
    assert (
        "not run again, which takes longer: pytest --nbval ch03_x/a.ipynb\n" in printed
    )
