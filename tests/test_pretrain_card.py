"""The model card: its measured part comes from the run and from nothing else."""

import json
import math
import re
import shutil

import pytest
import torch

from pretrain import card
from pretrain.prepare import TOKENIZER
from shared import data
from shared.ch02 import BPETokenizer, get_tokenizer
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


def write_log(folder, log):
    lines = "".join(json.dumps(line) + "\n" for line in log)
    (folder / "log.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(card, "NEW_TOKENS", 3)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(123)
    save_gpt2_folder(GPTModel(CFG), folder / "model", dtype=torch.bfloat16)
    write_log(folder, LOG)
    return folder


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    text = f"# A model\n\n{card.BEGIN}\nold numbers\n{card.END}\n\nMore.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def test_card_is_filled_in_and_the_rest_of_it_kept(run, base):
    card.main([str(run), str(base)])
    text = (base / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# A model\n\n{card.BEGIN}\n")
    assert text.endswith(f"{card.END}\n\nMore.\n")
    assert "old numbers" not in text
    assert "| tokens seen | 640 |" in text
    assert "| run 1 | 20 steps in 2 minutes, up to token 640; cpu, 2 threads" in text
    assert f"| talk | 8.000 | {math.exp(8):.1f} |" in text
    assert f"| **the mixture** | 7.500 | {math.exp(7.5):.1f} |" in text
    for prompt in card.PROMPTS:
        assert f"```\n{prompt}" in text
    for name in ("config.json", "model.safetensors"):
        assert (base / name).read_bytes() == (run / "model" / name).read_bytes()
    assert (base / "log-1.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()
    assert (base / "loss.png").stat().st_size > 1000


PROMPTS = ["A fox", "User: Hello\nAssistant:"]


@pytest.fixture
def writer(run):
    """A run with a tokenizer of its own and with samples in its log."""
    tokenizer = BPETokenizer()
    tokenizer.train("a fox and a box and a fox", 260)
    tokenizer.save(run / "model" / TOKENIZER)
    save_gpt2_folder(GPTModel({**CFG, "vocab_size": 260}), run / "model")
    log = json.loads(json.dumps(LOG))
    log[0]["settings"] = {"shards": "shards", "prompts": PROMPTS}
    for step in (0, 1, 2, 4):
        texts = [f"A fox {'ran ' * step}```", f"{PROMPTS[1]}{' *hi*' * 30 * step}"]
        line = {"event": "sample", "step": step, "tokens": 32 * step, "texts": texts}
        log.insert(-1, line)
    write_log(run, log)
    return run


def test_a_model_is_described_with_its_own_tokenizer(writer, base):
    card.main([str(writer), str(base)])
    text = (base / "README.md").read_text(encoding="utf-8")
    own = BPETokenizer.load(writer / "model" / TOKENIZER)
    assert (base / TOKENIZER).read_bytes() == (
        writer / "model" / TOKENIZER
    ).read_bytes()
    assert "| vocabulary | 260 tokens, its own (`tokenizer.json`) |" in text
    story = data.load_text("short-story")
    tokens = len(own.encode(story)) - 1
    row = r"`short-story`, .* \((.*) tokens; (.*) nats a character\) \| (.*?) \|"
    found = re.search(row, text)
    assert found[1] == f"{tokens:,}"
    per_character = float(found[3]) * tokens / len(story)
    assert float(found[2]) == pytest.approx(per_character, abs=0.002)
    for prompt in PROMPTS:
        assert f"```\n{prompt}" in text
    assert card.PROMPTS[0] not in text


def test_samples_become_a_page(writer, base):
    card.main([str(writer), str(base)])
    text = (base / "README.md").read_text(encoding="utf-8")
    assert "while it learned: [growing_up.md](growing_up.md).\n\n" + card.END in text
    page = (base / "growing_up.md").read_text(encoding="utf-8")
    assert page.startswith("# How it learned to write\n")
    fox, talk = page.split("\n## ")[1:]
    assert fox.startswith("A fox\n\n```\nA fox\n```\n\n**0 tokens** (0 steps)\n")
    assert re.findall(r"\*\*(.*?) tokens\*\* \((\d) steps\)", fox) == [
        *(("0", "0"), ("32", "1"), ("64", "2"), ("128", "4"))
    ]
    assert "\n````\nran ran ```\n````\n" in fox  # a longer fence than in the text
    assert talk.startswith(
        "User: Hello Assistant:\n\n```\nUser: Hello\nAssistant:\n```"
    )
    assert talk.count("*hi*") == 30 * (1 + 2 + 4)
    assert max(map(len, page.splitlines())) < 300  # what the model wrote is wrapped
    assert max(len(x) for x in page.splitlines() if "*hi*" in x) <= 88


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 seconds"), (59, "59 seconds"), (60, "1 minute"), (89, "1 minute")]
    + [(91, "2 minutes"), (3000, "50 minutes")],
)
def test_a_time_has_its_unit(seconds, words):
    assert card.duration(seconds) == words


def test_a_source_whose_name_is_no_utf8_is_drawn_and_named(run, base):
    log = json.loads(json.dumps(LOG).replace("news", "M\\udce4rchen"))
    write_log(run, log)
    card.main([str(run), str(base)])
    text = (base / "README.md").read_text(encoding="utf-8")
    assert "| M\ufffdrchen | 7.000 |" in text


def test_without_samples_there_is_no_page(run, base):
    card.main([str(run), str(base)])
    assert not (base / "growing_up.md").exists()
    text = (base / "README.md").read_text(encoding="utf-8")
    assert (
        "growing_up" not in text and "| vocabulary | 50,257 tokens, GPT-2's |" in text
    )


def test_samples_of_prompts_that_changed_are_left_out():
    start = {"event": "start", "step": 0, "settings": {"prompts": PROMPTS}}
    old = {"event": "sample", "step": 1, "tokens": 9, "texts": ["A fox ran", "None"]}
    page = card.growing_up([[start, old]])
    assert "ran" in page and "None" not in page and "Hello" not in page
    assert card.growing_up([[start]]) == ""


def test_what_an_earlier_model_left_goes(writer, base):
    card.main([str(writer), str(writer), str(base)])
    save_gpt2_folder(GPTModel(CFG), writer / "model")
    (writer / "model" / TOKENIZER).unlink()
    write_log(writer, LOG)
    card.main([str(writer), str(base)])
    names = {"README.md", "config.json", "log-1.jsonl", "loss.png", "model.safetensors"}
    assert {path.name for path in base.iterdir()} == names
    text = (base / "README.md").read_text(encoding="utf-8")
    assert "| vocabulary | 50,257 tokens, GPT-2's |" in text


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
    write_log(run, LOG[:-1])
    with pytest.raises(SystemExit, match="is not finished"):
        card.main([str(run), str(base)])


def test_card_without_marks_is_refused_and_kept(run, base):
    (base / "README.md").write_text("# A model\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the marks"):
        card.main([str(run), str(base)])
    assert (base / "README.md").read_text(encoding="utf-8") == "# A model\n"
    assert not (base / "model.safetensors").exists()


def test_runs_that_go_on_from_each_other_are_counted_on(run, base):
    stages = [{"steps": 10, "vocabulary": 9}, {"steps": 10, "vocabulary": None}]
    settings = {"shards": "/some/where/shards", "initial": None, "stages": stages}
    log = json.loads(json.dumps(LOG))
    log[0]["settings"] = settings
    log[2]["repeat"], log[4]["repeat"] = [10.0, 10.0], [10.0, 4.0]
    second = run.with_name("second")
    shutil.copytree(run, second)
    write_log(second, log)
    card.main([str(run), str(second), str(base)])
    text = (base / "README.md").read_text(encoding="utf-8")
    assert "| tokens seen | 1,280 |" in text and "| training time | 4 minutes |" in text
    assert "| run 2 | 20 steps in 2 minutes, up to token 1,280;" in text
    kept = (base / "log-2.jsonl").read_text(encoding="utf-8")
    assert "/some" not in kept and '"shards": "shards"' in kept
    assert [json.loads(line) for line in kept.splitlines()][1:] == log[1:]
    tokens = [line["tokens"] for line in card.count_on([log, log])[1][1:]]
    assert tokens == [960, 960, 1280, 1280, 1280]
    compared = [card.compares_all_tokens(settings, step) for step in (1, 10, 11, 20)]
    assert compared == [False, False, True, True]
    assert card.compares_all_tokens({}, 5) and not card.compares_all_tokens(
        {"stages": [], "vocabulary": 9}, 5
    )


def test_utilisation_is_of_the_highest_peak(run):
    log = json.loads(json.dumps(LOG))
    log[0]["peak_flops"], log[1]["utilisation"] = 200.0, 0.3
    log.insert(2, {"event": "resume", "step": 10, "peak_flops": 50.0})
    log[4]["utilisation"] = 1.2
    write_log(run, log)
    read = card.read_log(run)
    assert (read[1]["utilisation"], read[4]["utilisation"]) == (0.3, 0.3)
    write_log(run, read)
    assert card.read_log(run) == read  # a log that was kept is not changed again
