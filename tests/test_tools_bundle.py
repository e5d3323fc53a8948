"""Every chapter, bundled into one file, runs alone in an empty folder."""

import os
import subprocess
import sys

import pytest

from tools import bundle

# What a stranger would try first with each file: must print the line "works".
TRIALS = {
    "ch02": """
loader = create_dataloader_v1("in the beginning was the word " * 20, 2, 8, 8)
inputs, targets = next(iter(loader))
assert inputs.shape == (2, 8) and (inputs[:, 1:] == targets[:, :-1]).all()
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
gpt = GPTModel({**GPT_CONFIG_124M, "vocab_size": 50, "emb_dim": 24, "n_layers": 2})
net = GPTClassifier(gpt, pad_token_id=49)
assert net.eval()(torch.tensor([[1, 2, 49]])).shape == (1, 2)
""",
    "ch07": """
inputs, targets = custom_collate_fn([[1, 2], [3]])
assert targets.tolist() == [[2, 50256], [50256, -100]]
""",
    "appendix_e": """
linear = torch.nn.Linear(8, 6)
adapted = LinearWithLoRA(linear, rank=2, alpha=4)
assert torch.equal(adapted(torch.ones(3, 8)), linear(torch.ones(3, 8)))
""",
}


def test_every_chapter_has_a_trial():
    assert list(TRIALS) == bundle.chapters()


@pytest.mark.parametrize("chapter", bundle.chapters())
def test_bundle_runs_alone(chapter, tmp_path):
    text = bundle.bundle(chapter)
    assert "import shared" not in text
    assert "from shared" not in text
    assert text.startswith("# MIT License")
    (tmp_path / "lone.py").write_text(text, encoding="utf-8")
    (tmp_path / "trial.py").write_text(
        "import sys\nimport torch\nfrom lone import *\n"
        "assert not any(m == 'shared' or m.startswith('shared.') for m in sys.modules)"
        f"\n{TRIALS[chapter]}\nprint('works')\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "trial.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.stdout == "works\n", done.stderr


def test_unknown_chapter_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'ch99'.*ch02"):
        bundle.bundle("ch99")
