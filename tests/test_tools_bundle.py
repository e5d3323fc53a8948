"""Every chapter, bundled into one file, runs alone in an empty folder."""

import ast
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from models import TINY, random_gpt

from shared.ch04 import GPTModel, generate_text_simple
from tools import bundle, export
from tools.plain import simplify

# What a stranger would try first with each file.
TRIALS = {
    "ch02": """
loader = create_dataloader_v1("in the beginning was the word " * 20, 2, 8, 8)
inputs, targets = next(iter(loader))
assert inputs.shape == (2, 8) and (inputs[:, 1:] == targets[:, :-1]).all()
tokenizer = BPETokenizer()
tokenizer.train("hug pug hugs" * 9, 262)
tokenizer.save("t.json")
tokenizer = BPETokenizer.load("t.json")
assert tokenizer.decode(tokenizer.encode("hugs \U0001f642")) == "hugs \U0001f642"
assert BPETokenizer.from_gpt2().encode("hugs") == get_tokenizer().encode("hugs")
""",
    "ch03": """
attention = MultiHeadAttention(8, 8, 4, 0.0, 2)
assert attention(torch.ones(1, 4, 8)).shape == (1, 4, 8)
""",
    "ch04": """
model = GPTModel({**GPT_CONFIG_124M, "vocab_size": 50, "emb_dim": 24, "n_layers": 2})
ids = torch.tensor([[1, 2, 3]])
assert generate_text_simple(model.eval(), ids, 4, 8).shape == (1, 7)
""",
    "ch05": """
model = GPTModel({**GPT_CONFIG_124M, "vocab_size": 50, "emb_dim": 24, "n_layers": 2})
ids = torch.tensor([[1, 2, 3]])
assert generate(model.eval(), ids, 4, 8, top_k=3, temperature=1.0).shape == (1, 7)
""",
    "ch06": """
cfg = dict(vocab_size=50, context_length=16, emb_dim=24, n_heads=2, n_layers=2)
gpt = GPTModel({**cfg, "drop_rate": 0.0, "qkv_bias": False})
net = GPTClassifier(gpt, pad_token_id=49)
assert net.eval()(torch.tensor([[1, 2, 49]])).shape == (1, 2)
""",
    "ch07": """
inputs, targets = custom_collate_fn([[1, 2], [3]])
assert targets.tolist() == [[2, 50256], [50256, -100]]
""",
    "ch08": """
cfg = dict(vocab_size=50, context_length=16, emb_dim=24, hidden_dim=64, n_layers=2)
cfg |= dict(n_heads=4, n_kv_heads=2, rope_base=1e4, norm_eps=1e-5)
assert LlamaModel(cfg)(torch.tensor([[1, 2, 3]])).shape == (1, 3, 50)
""",
    "ch09": """
assert group_advantages(torch.tensor([[1.0, 1.0], [0.5, 0.5]])).abs().sum() == 0
assert "words kite, brave and climb" in request(("kite", "brave", "climb"))
""",
    "appendix_a": """
a = Value(3)
(a * a).backward()
assert a.grad == 6
""",
    "appendix_e": """
linear = torch.nn.Linear(8, 6)
adapted = LinearWithLoRA(linear, rank=2, alpha=4)
assert torch.equal(adapted(torch.ones(3, 8)), linear(torch.ones(3, 8)))
""",
    "appendix_f": """
loss = chunked_cross_entropy(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
assert round(loss.item(), 4) == 0.3133
""",
}


def test_every_chapter_has_a_trial():
    assert list(TRIALS) == bundle.chapters()


NAMES = ["generate", "GPTModel", "GPT_CONFIG_124M"]
RUN = """
import json, sys, traceback
import torch
found = {}
for name in sys.argv[1:]:
    try:
        with open(f"trial_{name}.txt", encoding="utf-8") as file:
            exec(f"import torch\\nfrom lone_{name} import *\\n{file.read()}", {})
        found[name] = sorted({module.partition(".")[0] for module in sys.modules})
    except Exception:
        found[name] = traceback.format_exc()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The bundles, and what had been imported after the trial of each, or its error.

    They lie in a folder where nothing else is, and one process tries all of them.
    """
    folder = tmp_path_factory.mktemp("alone")
    texts = {name: bundle.bundle(name) for name in TRIALS}
    texts["few"] = bundle.bundle("ch05", NAMES)
    for name, text in texts.items():
        (folder / f"lone_{name}.py").write_text(text, encoding="utf-8")
        trial = TRIALS.get(name, TRIALS["ch05"])
        (folder / f"trial_{name}.txt").write_text(trial, encoding="utf-8")
    (folder / "run.py").write_text(RUN, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "run.py", *texts],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return texts, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [*bundle.chapters(), "few"])
def test_bundle_runs_alone(alone, name):
    text, imported = (part[name] for part in alone)
    assert "\n# MIT License\n" in text
    folders = {path.parent.name for path in bundle.ROOT.glob("*/__init__.py")}
    assert {"shared", "tools", "ch04_gpt_model"} <= folders
    assert isinstance(imported, list), imported
    assert not folders & set(imported)
    for folder in folders:
        assert f"from {folder}" not in text and f"import {folder}" not in text


def test_names_come_with_just_what_they_need(alone):
    text = alone[0]["few"]
    assert alone[0]["ch05"].startswith('"""All that ')
    assert text.startswith('"""generate, GPTModel, GPT_CONFIG_124M, with all that')
    assert "\nNeeds torch.\n" in text
    assert f"\n    python -m tools.bundle ch05 {' '.join(NAMES)}\n" in text
    assert len(text.splitlines()) < 750
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or node.names[0].name
            assert module.split(".")[0] in {"torch", *sys.stdlib_module_names}


def test_a_name_alone_leaves_the_others_out():
    text = bundle.bundle("ch04", ["LayerNorm"])
    found = {node.name for node in ast.parse(text).body if hasattr(node, "name")}
    assert "LayerNorm" in found and not found & {"GPTModel", "FeedForward"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ch4"], "no chapter that exports is called 'ch4'; did you mean 'ch04'?"),
        (["data"], "no chapter that exports is called 'data'; there are ch02, ch03, "),
        (["../tools/export"], " is called '../tools/export'; "),
        (["appendix_d"], "is called 'appendix_d'; there are ch02, ch03, "),
        (["ch04", "generate"], "ch04 exports nothing called 'generate'; ch05 does"),
        (
            ["ch05", "genrate"],
            "ch05 exports nothing called 'genrate'; did you mean 'ge",
        ),
        (["ch05", "gptmodel"], "called 'gptmodel'; did you mean 'GPTModel'?"),
        (["ch03", "xyz"], "called 'xyz'; there are SelfAttention_v1, "),
        (["ch03", "torch"], "called 'torch'; "),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(arguments, message, capsys):
    assert bundle.main(arguments) == 1
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def test_eight_names_asked_for_twice_are_one_file_in_order(tmp_path):
    names = bundle.exported("shared.ch03")[:8]
    file = tmp_path / "parts.py"
    assert bundle.main(["ch03", *names, *names, "-o", str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    assert text == bundle.bundle("ch03", names)
    assert max(map(len, text.splitlines())) <= 88


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no C locale")
def test_a_terminal_that_knows_no_unicode_gets_the_same_bytes():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "tools.bundle", "ch08", "SmolLM2Tokenizer"]
    done = subprocess.run(
        command, cwd=export.ROOT, env={**os.environ, **plain}, stdout=subprocess.PIPE
    )
    assert done.returncode == 0 and not done.stdout.isascii()
    text = bundle.bundle("ch08", ["SmolLM2Tokenizer"])
    assert done.stdout.decode("utf-8") == text


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The plain file of chapter 4, its text and the module that it is."""
    file = tmp_path_factory.mktemp("plain") / "my_gpt.py"
    assert bundle.main(["ch04", "--plain", "-o", str(file)]) == 0
    spec = importlib.util.spec_from_file_location("my_gpt", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return file, file.read_text(encoding="utf-8"), module


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_plain_file_is_the_same_model(plain, bias, tied):
    cfg = {**TINY, "qkv_bias": bias, "tie_weights": tied}
    ours, mine = random_gpt(cfg), plain[2].GPTModel(cfg).eval()
    assert list(mine.state_dict()) == list(ours.state_dict())
    mine.load_state_dict(ours.state_dict())
    ids = torch.arange(24).view(2, 12)
    assert torch.equal(mine(ids), ours(ids))
    written = plain[2].generate_text_simple(mine, ids, 9, 16)
    assert torch.equal(written, generate_text_simple(ours, ids, 9, 16))
    torch.manual_seed(5)
    ours.init_weights()
    torch.manual_seed(5)
    mine.init_weights()
    assert torch.equal(mine(ids), ours(ids))  # and it begins with the same numbers


def test_the_plain_file_trains_as_the_course_does(plain):
    losses = []
    for made in (GPTModel, plain[2].GPTModel):
        torch.manual_seed(2)
        model = made({**TINY, "drop_rate": 0.2}).train()
        loss = model(torch.arange(16).view(1, 16)).logsumexp(-1).sum()
        loss.backward()
        losses.append([loss, model.tok_emb.weight.grad])
    assert all(map(torch.equal, *losses))


def test_the_plain_file_is_short_and_has_nothing_but_the_model(plain):
    file, text, _ = plain
    assert len(text.splitlines()) < 300
    for word in ("cache", "check", "guard", "past", "__all__", "mask", "eq.", "shared"):
        assert word not in text, word
    assert text.count("is_causal=True") == 1
    tree = ast.parse(text)
    imported = {ast.unparse(x) for x in tree.body if isinstance(x, ast.ImportFrom)}
    imported |= {ast.unparse(x) for x in tree.body if isinstance(x, ast.Import)}
    assert imported == {
        *("import math", "import torch", "import torch.nn.functional as F"),
        "from torch import Tensor, nn",
    }
    titles = ("# Settings", "# The parts", "# The block", "# The model", "# Writing")
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    comments = ("# V: how many tokens the tokenizer knows", "# one matrix at both ends")
    assert all(comment in text for comment in comments)  # comments survive
    assert "\n# MIT License\n" in text and max(map(len, text.splitlines())) <= 88


def test_the_plain_file_runs_alone(plain):
    command = [sys.executable, "-I", plain[0].name]
    done = subprocess.run(command, cwd=plain[0].parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("163,009,536 parameters\ntensor([[  464,  4512")


@pytest.mark.parametrize("arguments", [["ch05"], ["ch04", "GPTModel"]])
def test_only_the_whole_of_chapter_4_has_a_plain_form(arguments, capsys):
    assert bundle.main([*arguments, "--plain"]) == 1
    assert "only ch04 has a plain form" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    check(x)\n    return x", "    return x"),
        (
            "    past = 0 if cache is None else cache.n\n    return past + x",
            "    return x",
        ),
        (
            "    if cache is not None:\n        x = cache(x)\n    return g(x, cache)",
            "    return g(x)",
        ),
        (
            "    if cache is None or x > 3:\n        # why\n        y = x  # so\n"
            "    else:\n        y = cache.read(x)\n    return y",
            "    # why\n    y = x  # so\n    return y",
        ),
        (
            "    begins = cache is None or cache.n == 0  # gone\n"
            "    return f(x, cache, 2, causal=begins)",
            "    return f(x, None, 2, causal=True)",
        ),
        (
            "    for i, part in enumerate(x):\n"
            "        part(None if cache is None else cache[i])  # é, eq. 4.4, left\n",
            "    for part in x:\n        part()  # é",
        ),
        (
            '    """Twice x. With a cache, sooner."""\n    return x',
            '    """Twice x."""\n',
        ),
        ('    """With a cache."""\n    return x', "    return x"),
        (
            "    return arange(0, x, device=d)  # eq. 3.4",
            "    return arange(x, device=d)",
        ),
        ("    zero = 0\n    zero = x\n    return zero", "    zero = 0\n    zero = x"),
    ],
)
def test_what_a_reader_can_do_without_is_worked_out(before, after):
    start = "def f(x: GPTConfig, cache: Cache | None = None):\n"
    found = simplify(f"{start}{before}", {"check"})
    assert found.startswith(f"def f(x: dict):\n{after}"), found


def test_a_method_for_caches_goes_with_its_decorator():
    text = "class A:\n    b = 1\n\n    @c\n    def new_cache(self):\n        return 1\n"
    assert simplify(f"{text}\n    def d(self):\n        return 2", set()).split() == (
        "class A: b = 1 def d(self): return 2".split()
    )


@pytest.fixture
def small_course(tmp_path, monkeypatch):
    """A course of one chapter, of which a test writes the files."""
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    monkeypatch.setattr(export, "ROOT", tmp_path)
    bundle.read_module.cache_clear()
    (tmp_path / "LICENSE").write_text("MIT License\n")
    for folder in ("shared", "ch09_testing"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()

    def write(**modules):
        for name, text in {"shared": "from ch09_testing.testing import *"}.items():
            (tmp_path / name / "ch09.py").write_text(text)
        for name, text in modules.items():
            (tmp_path / "ch09_testing" / f"{name}.py").write_text(text)

    yield write
    bundle.read_module.cache_clear()


DOUBLE = 'def double(x):\n    """Twice x."""\n    check(x)\n    return 2 * x\n'


def test_plain_modules_beside_a_chapter_are_taken_along(small_course):
    small_course(
        testing=f"from ch09_testing.guards import check_it as check\n\n\n{DOUBLE}",
        guards="from ch09_testing.limits import *\n\n\n"
        "def check_it(x):\n    if x > LIMIT:\n        raise ValueError(x)\n\n\n"
        "def check_nothing(x):\n    pass\n",
        limits="import math\n\nLIMIT = round(math.pi)\n",
    )
    text = bundle.bundle("ch09", ["double"])
    namespace = {}
    exec(text, namespace)
    assert namespace["double"](3) == 6 and "check_nothing" not in text
    with pytest.raises(ValueError, match="4"):
        namespace["double"](4)


@pytest.mark.parametrize(
    ("testing", "guards", "message"),
    [
        (
            f"from ch09_testing import guards as check\n\n\n{DOUBLE}",
            "",
            "'guards' of ch09_testing is not a function, class or constant",
        ),
        (
            '__all__ = ["double"]\n\ndouble = (2).__mul__\n',
            "",
            "'double' of ch09_testing.testing is not a function, class or constant",
        ),
        (
            "from ch09_testing.guards import check\n\n\nLIMIT = 3\n\n\n"
            + DOUBLE.replace("2 *", "LIMIT *"),
            "LIMIT = 2\n\n\ndef check(x):\n    return x < LIMIT\n",
            "'LIMIT' is defined in ch09_testing.* and in ch09_testing.*; one file",
        ),
    ],
    ids=["module", "value", "name"],
)
def test_what_cannot_be_one_file_is_refused(small_course, testing, guards, message):
    small_course(testing=testing, guards=guards)
    with pytest.raises(ValueError, match=message):
        bundle.bundle("ch09")
