"""The public names of the chapters, their parameters and defaults: a promise.

Copied code and the book's readers rely on them. `tests/public_calls.txt` has a line for
each; whoever changes one changes that line, and says so in CHANGELOG.md.
"""

import importlib
import inspect
from pathlib import Path

from tools.export import ROOT
from tools.mutants import modules_of

# not exported, but their chapters pass them on
PLAIN = ["ch02_text_data/bpe_fast.py", "ch03_attention/kv_cache.py"]
PROMISED = Path(__file__).with_name("public_calls.txt")
EMPTY = inspect.Parameter.empty


def plainly(parameter):
    """A parameter without its type; of a default that is a function only the name."""
    default = parameter.default
    if callable(default) and default is not EMPTY:
        default = getattr(default, "__name__", default)
    return parameter.replace(annotation=EMPTY, default=default)


def described(module):
    """A module's public names; functions and classes with their parameters."""
    for name in module.__all__:
        value = getattr(module, name)
        maker = value.__init__ if inspect.isclass(value) else value
        if inspect.isfunction(maker):
            signature = inspect.signature(maker)
            plain = [plainly(p) for p in signature.parameters.values()]
            name += str(signature.replace(parameters=plain, return_annotation=EMPTY))
        yield name


def test_public_names_and_defaults_are_those_promised():
    found = []
    for path in sorted([*modules_of("*"), *(ROOT / name for name in PLAIN)]):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names = [f"    {x}" for x in described(importlib.import_module(module))]
        found += [module, *sorted(names)]
    assert found == PROMISED.read_text(encoding="utf-8").splitlines()
