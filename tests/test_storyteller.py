"""The reader's storyteller: its batches, its training, where it is kept."""

import json

import pytest
import torch
from models import village_tokenizer

from ch05_pretraining import storyteller
from ch05_pretraining.muon import orthogonal
from experiments import storyteller as program
from shared import data, ladder
from shared.ch05 import (
    STORYTELLER,
    Muon,
    calc_loss_batch,
    go_on,
    keep_storyteller,
    learn_to_tell,
    load_storyteller,
    new_storyteller,
    save_checkpoint,
    tale_batches,
)
from shared.precision import has_fast_bfloat16
from shared.village import tell

SMALL = {"emb_dim": 16, "n_heads": 2, "n_layers": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return village_tokenizer(300)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    return tmp_path / "storyteller"


def first(batches, n):
    return [next(batches) for _ in range(n)]


def test_a_row_is_a_tale_between_two_ends_and_the_rest_is_not_counted(tokenizer):
    end = ladder.end_of(tokenizer)
    found = set()
    for inputs, targets in first(tale_batches(tell, tokenizer, batch_size=3), 16):
        assert inputs.shape == targets.shape and inputs.shape[0] == 3
        for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            length = sum(target != -100 for target in wanted)
            assert row[0] == end and wanted[:length] == [*row[1:length], end]
            found.add(tokenizer.decode(row[1:length]))
    # 16 batches later every tale of the first ones has been read, each once
    whole = {tell(seed).text for seed in range(48)}
    assert {text for text in whole if len(tokenizer.encode(text)) < 512} <= found


def test_tales_of_a_batch_are_about_equally_long(tokenizer):
    batches = first(tale_batches(tell, tokenizer), 16)
    empty = sum((targets == -100).sum().item() for _, targets in batches)
    assert empty < 0.1 * sum(targets.numel() for _, targets in batches)


def test_a_run_that_goes_on_reads_what_it_would_have_read(tokenizer):
    whole = first(tale_batches(tell, tokenizer, batch_size=2), 40)
    for number in (1, 15, 16, 21, 37):
        inputs, targets = next(tale_batches(tell, tokenizer, number, 2))
        assert torch.equal(inputs, whole[number][0])
        assert torch.equal(targets, whole[number][1])


def test_a_tale_that_is_too_long_is_cut(tokenizer):
    class Long:
        text = "a kite " * 900

    inputs, targets = next(tale_batches(lambda seed: Long, tokenizer, batch_size=1))
    assert inputs.shape[1] == targets.shape[1] == STORYTELLER["context_length"]


def test_token_vectors_begin_larger_and_are_shared_with_the_head():
    torch.manual_seed(0)
    model = new_storyteller()
    assert model.tok_emb.weight.std().item() == pytest.approx(0.08, rel=0.02)
    assert model.out_head.weight is model.tok_emb.weight
    assert model.pos_emb.weight.std().item() == pytest.approx(0.02, rel=0.02)


class Stop:
    """A look that presses the stop button at a step, or kills the run."""

    def __init__(self, at, error=KeyboardInterrupt):
        self.at, self.error, self.seen = at, error, []

    def __call__(self, progress):
        self.seen.append(progress["step"])
        progress["looks"].append({"step": progress["step"]})
        if progress["step"] == self.at:
            raise self.error


def run(tokenizer, path, last, look):
    torch.manual_seed(1)
    model = new_storyteller(**SMALL)
    optimizer = Muon(model)
    progress = go_on(path, model, optimizer, last)
    batches = tale_batches(tell, tokenizer, progress["step"], 2)
    try:
        learn_to_tell(model, batches, optimizer, progress, look, path)
    except RuntimeError:
        pass
    return model, progress


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tokenizer, tmp_path, capsys):
    whole, _ = run(tokenizer, tmp_path / "a", 60, Stop(None))
    run(tokenizer, tmp_path / "b", 60, Stop(50))
    assert "stopped after step 50" in capsys.readouterr().out
    again = Stop(None)
    model, progress = run(tokenizer, tmp_path / "b", 60, again)
    assert progress["step"] == 60 and again.seen[-1] == 60
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_killed_run_goes_on_from_its_last_look(tokenizer, tmp_path):
    run(tokenizer, tmp_path / "a", 120, Stop(100, RuntimeError))
    again = Stop(None)
    _, progress = run(tokenizer, tmp_path / "a", 120, again)
    assert again.seen == [50, 100, 120] and progress["step"] == 120


def test_a_run_that_has_ended_begins_anew(tokenizer, tmp_path):
    for _ in range(2):
        look = Stop(None)
        run(tokenizer, tmp_path / "a", 2, look)
        assert look.seen == [0, 2]
    model = new_storyteller(**SMALL)
    kept = go_on(tmp_path / "a", model, Muon(model), 2, anew=False)
    assert kept["step"] == 2
    assert go_on(tmp_path / "a", model, Muon(model), 5)["step"] == 0  # another run


def test_a_damaged_run_is_named(tokenizer, tmp_path):
    path = tmp_path / "run.safetensors"
    run(tokenizer, path, 2, Stop(None))
    path.write_bytes(path.read_bytes()[:-100])
    model = new_storyteller(**SMALL)
    with pytest.raises(ValueError, match="run.safetensors"):
        go_on(path, model, Muon(model), 3)


def test_a_run_of_another_model_is_refused(tmp_path):
    model = new_storyteller(**SMALL)
    progress = {"step": 3, "last": 9, "tokens": 0, "looks": []}
    save_checkpoint(tmp_path / "run", model, Muon(model), progress)
    other = new_storyteller(**{**SMALL, "n_layers": 2})
    with pytest.raises(ValueError, match="run"):
        go_on(tmp_path / "run", other, Muon(other), 9)


def test_yours_is_found_before_the_course_s(tokenizer, cache):
    assert load_storyteller()[0].cfg["emb_dim"] == STORYTELLER["emb_dim"]
    torch.manual_seed(0)
    mine = new_storyteller(**SMALL)
    keep_storyteller(mine, tokenizer)
    model, its_tokenizer = load_storyteller()
    assert model.cfg["emb_dim"] == SMALL["emb_dim"] and not model.training
    assert torch.equal(model.tok_emb.weight, mine.tok_emb.weight)
    assert its_tokenizer.encode("Tom was a mole.") == tokenizer.encode(
        "Tom was a mole."
    )


def test_what_was_only_half_kept_is_not_taken(tokenizer, cache, monkeypatch):
    keep_storyteller(new_storyteller(**SMALL), tokenizer)

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(storyteller, "save_gpt2_folder", full)
    with pytest.raises(OSError):
        keep_storyteller(new_storyteller(**SMALL), tokenizer)
    assert load_storyteller()[0].cfg["emb_dim"] == STORYTELLER["emb_dim"]


@pytest.mark.parametrize("name", storyteller.STORYTELLER_FILES)
def test_a_damaged_file_of_yours_is_named(tokenizer, cache, name):
    keep_storyteller(new_storyteller(**SMALL), tokenizer)
    path = cache / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=name):
        load_storyteller()


def test_a_tokenizer_that_does_not_fit_is_named(tokenizer, cache):
    keep_storyteller(new_storyteller(**SMALL, vocab_size=1001), tokenizer)
    with pytest.raises(ValueError, match="1000 tokens and the model 1001"):
        load_storyteller()


def test_the_course_s_copy_tells_whole_tales(cache):
    model, tokenizer = load_storyteller()
    row = ladder.examine(model, tokenizer, ladder.exam(20, ladder.REPORTING))
    assert row["nats"] < 0.3 and row["what"] > 0.7
    assert tokenizer.n_vocab == model.cfg["vocab_size"]
    files = [data.get(f"storyteller/{name}") for name in storyteller.STORYTELLER_FILES]
    assert 1e6 < sum(path.stat().st_size for path in files) < 4e6


def test_the_course_s_tokenizer_is_learned_from_the_first_tales(cache):
    _, kept = load_storyteller()
    learned = program.storyteller_tokenizer()
    assert learned.vocab == kept.vocab and learned.merges == kept.merges


# Muon


def test_muon_s_step_is_orthogonal_and_adamw_moves_the_rest():
    torch.manual_seed(0)
    model = new_storyteller(**SMALL)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.randint(1000, (2, 20))
    calc_loss_batch(ids, ids, model, "cpu").backward()
    gradient = model.trf_blocks[0].att.W_value.weight.grad.clone()
    Muon(model, lr=0.01, adam_lr=0.02).step()
    moved = {name: before[name] - p for name, p in model.named_parameters()}
    step = moved["trf_blocks.0.att.W_value.weight"] / (0.01 * 4)  # 4: the root of 16
    ahead = gradient * (0.05 + 0.95 * 0.05)
    expected = orthogonal(ahead.bfloat16() if has_fast_bfloat16() else ahead)
    assert torch.allclose(step, expected.float(), atol=0.001)
    size = moved["final_norm.shift"].abs()
    assert torch.allclose(size, torch.full_like(size, 0.02), rtol=0.01)


@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
def test_orthogonal_makes_all_directions_about_equal(shape):
    torch.manual_seed(0)
    sizes = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert 0.5 < sizes.min() and sizes.max() < 1.3


def test_muon_slows_down_both_rates():
    optimizer = Muon(new_storyteller(**SMALL), lr=0.4, adam_lr=0.2)
    optimizer.slow_down(0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    optimizer.slow_down(1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.2]


# The program and its records


def test_a_share_of_the_tales_is_simple():
    for share in (0.0, 0.3, 1.0):
        made = program.teller(share)
        simple = [made(k).text == tell(k, simple=True).text for k in range(100)]
        assert sum(simple) == 100 * share


def test_windows_are_one_text_cut_anywhere(tokenizer):
    (inputs, targets), (more, _) = first(program.windows(tokenizer, 2, 0, 30), 2)
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    assert targets.flatten()[-1] == more.flatten()[0]


def test_the_record_is_of_the_whole_run():
    text = (program.RECORDS / "storyteller.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["first"][-1]["step"] == program.FIRST_STEPS
    assert record["second"][-1]["step"] == program.STEPS
    assert record["second"][-1]["simple"]["whose"] > 0.9
