"""The model card: its measured part comes from the run and from nothing else."""

import json
import math

import pytest
import torch

from pretrain import card
from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel
from shared.ch05 import calc_loss_batch, save_gpt2_folder, text_to_token_ids

CFG = {
    "vocab_size": 50257,
    "context_length": 16,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.0,
    "qkv_bias": True,
    "tie_weights": True,
}
LOG = [
    {
        **{"event": "start", "step": 0, "parameters": 402_000, "device": "cpu"},
        **{"threads": 2, "precision": "fp32", "torch": "2", "flops_per_token": 1000.0},
    },
    {"event": "train", "step": 10, "tokens": 320, "loss": 10.0},
    {
        **{"event": "eval", "step": 10, "tokens": 320, "loss": 9.5},
        **{"losses": {"news": 9.0, "talk": 10.0}},
    },
    {"event": "train", "step": 20, "tokens": 640, "loss": 8.0},
    {
        **{"event": "eval", "step": 20, "tokens": 640, "loss": 7.5},
        **{"losses": {"news": 7.0, "talk": 8.0}},
    },
    {"event": "end", "step": 20, "tokens": 640, "seconds": 120.0},
]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(123)
    save_gpt2_folder(GPTModel(CFG), folder / "model", dtype=torch.bfloat16)
    lines = "".join(json.dumps(line) + "\n" for line in LOG)
    (folder / "log.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    text = f"# A model\n\n{card.BEGIN}\nold numbers\n{card.END}\n\nMore.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def test_card_is_filled_in_and_the_rest_of_it_kept(run, base, monkeypatch):
    monkeypatch.setattr(card, "NEW_TOKENS", 3)
    card.main([str(run), str(base)])
    text = (base / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# A model\n\n{card.BEGIN}\n")
    assert text.endswith(f"{card.END}\n\nMore.\n")
    assert "old numbers" not in text
    assert "| tokens seen | 640 in 20 steps |" in text
    assert "2 minutes, 5 tokens/s" in text
    assert f"| talk | 8.000 | {math.exp(8):.1f} |" in text
    assert f"| **the mixture** | 7.500 | {math.exp(7.5):.1f} |" in text
    for prompt in card.PROMPTS:
        assert f"```\n{prompt}" in text
    for name in ("config.json", "model.safetensors"):
        assert (base / name).read_bytes() == (run / "model" / name).read_bytes()
    assert (base / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()
    assert (base / "loss.png").stat().st_size > 1000


def test_perplexity_counts_every_token_once():
    torch.manual_seed(123)
    model, tokenizer = GPTModel(CFG).eval(), get_tokenizer()
    text = "one two three four five six seven eight nine ten " * 4  # 41 tokens
    ids = text_to_token_ids(text, tokenizer)
    parts = [ids[:, 0:17], ids[:, 16:33], ids[:, 32:]]
    with torch.no_grad():
        losses = [
            calc_loss_batch(part[:, :-1], part[:, 1:], model, "cpu").item()
            * (part.shape[1] - 1)
            for part in parts
        ]
    tokens, value = card.perplexity(model, text, tokenizer)
    assert tokens == ids.shape[1] - 1
    assert value == pytest.approx(math.exp(sum(losses) / tokens))


def test_samples_depend_on_their_seed_alone():
    torch.manual_seed(123)
    model, tokenizer = GPTModel(CFG).eval(), get_tokenizer()
    first, again, other = (card.sample(model, "A", s, tokenizer) for s in (1, 1, 2))
    assert first == again != other


def test_unfinished_run_is_refused(run, base):
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(SystemExit, match="is not finished"):
        card.main([str(run), str(base)])


def test_card_without_marks_is_refused_and_kept(run, base):
    (base / "README.md").write_text("# A model\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the marks"):
        card.main([str(run), str(base)])
    assert (base / "README.md").read_text(encoding="utf-8") == "# A model\n"
    assert not (base / "model.safetensors").exists()
