"""Each promise of a GPT, checked on your file. Not part of `make test`."""

from pathlib import Path

import promises
import pytest


@pytest.fixture(scope="module")
def yours(request):
    """Your file, through the adapters."""
    paths = {}
    for option in ("--model", "--adapters"):
        given = request.config.getoption(option)
        paths[option] = given and Path(request.config.invocation_params.dir, given)
        if given and not paths[option].is_file():
            pytest.exit(f"{option}: there is no file {paths[option]}", returncode=4)
    mine = promises.module_from(paths["--model"], "_your_model")
    return promises.Yours(mine, promises.adapters_from(paths["--adapters"]))


@pytest.mark.parametrize("name", promises.PROMISES)
def test_promise(name, yours):
    try:
        told = promises.broken(name, yours)
    except promises.Missing as missing:
        pytest.skip(str(missing))
    if told:
        pytest.fail(told, pytrace=False)
