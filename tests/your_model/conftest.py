"""`python -m pytest tests/your_model --model my_gpt.py`; see docs/your-model.md."""

from pathlib import Path

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("your model")
    group.addoption("--model", help="your file, such as my_gpt.py")
    group.addoption("--adapters", help="your adapters, where your names differ")


def pytest_collect_file(file_path, parent):
    """Collect the promises if there is a model to check; `make test` has none."""
    if file_path.name == "run_promises.py" and parent.config.getoption("--model", None):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_terminal_summary(terminalreporter, config):
    model = config.getoption("--model", None)
    if not model:
        return
    count = {k: len(terminalreporter.stats.get(k, [])) for k in ("passed", "failed")}
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.section(f"the promises of {Path(model).name}")
    for report in skipped:
        name = report.nodeid.split("[")[-1].rstrip("]")
        reason = report.longrepr[2].removeprefix("Skipped: ")
        terminalreporter.line(f"not checked: {name}: {reason}")
    terminalreporter.line(
        f"{count['passed']} kept, {count['failed']} broken, {len(skipped)} not checked"
    )
