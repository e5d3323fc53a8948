"""Chapter 7: loading, splitting, prompts, batches, finetuning and answers."""

import copy
import json
import re
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import nudged_gpt

from ch07_instructions import compare, instructions
from ch07_instructions.compare import (
    SETTINGS,
    by_family,
    copy_to_finetune,
    finetuned,
    first_short,
    scores_of,
)
from ch07_instructions.guards import fit_input
from shared import data
from shared.ch02 import get_tokenizer
from shared.ch05 import (
    calc_loss_batch,
    generate,
    load_base_tokenizer,
    save_checkpoint,
)
from shared.ch06 import let_rate_fall
from shared.ch07 import (
    InstructionDataset,
    answer_together,
    calc_response_loss,
    create_instruction_loader,
    custom_collate_fn,
    evaluate_responses,
    finetune,
    format_answer,
    format_input,
    format_prompt,
    generate_answers,
    load_instructed,
    load_instructions,
    split_entries,
    train_on_responses,
)
from shared.precision import mixed_precision
from tools.export import ROOT

PAD = 50256
ENTRY = {"instruction": "Name a fruit.", "input": "", "output": "A pear."}
STYLES = ("chat", "alpaca", "plain")
TINY = {
    "vocab_size": 50257,
    "context_length": 96,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer()


@pytest.fixture(scope="module")
def entries():
    return load_instructions()


def tiny_model(seed=1, **changes):
    """A small model over GPT-2's vocabulary whose numbers are random and not small."""
    return nudged_gpt({**TINY, **changes}, seed, by=0.1)


# Loading and splitting


def write(folder, content):
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"instruction": "Add."}], "entry 1 of mine.json has no 'output'"),
        ([ENTRY, {"output": "Yes."}], "entry 2 of mine.json has no 'instruction'"),
        ([{**ENTRY, "instruction": "  "}], "no text but '  ' as 'instruction'"),
        ([{**ENTRY, "output": 7}], "no text but 7 as 'output'"),
        ([{**ENTRY, "input": None}], "has None as 'input'"),
        (["Add."], "entry 1 of mine.json is 'Add.', not a dict"),
        ({"instruction": "Add."}, "no list of entries but a dict"),
        ("{", "no JSON file"),
    ],
)
def test_a_faulty_entry_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_instructions(write(tmp_path, content))


def test_repeats_and_empty_answers_are_left_out(tmp_path):
    again = {"instruction": "name  A fruit.", "output": "Plum."}
    empty = {"instruction": "Say nothing.", "input": "", "output": ""}
    other = {**ENTRY, "input": "red"}
    loaded = load_instructions(write(tmp_path, [ENTRY, again, empty, other]))
    assert loaded == [ENTRY, other]


def test_the_books_entries_lose_their_repeats():
    try:
        loaded = load_instructions("instructions-book")
    except data.DataUnavailable as error:
        pytest.skip(f"neither mirror nor network has it: {error}")
    assert len(loaded) <= 1100 - 25
    split_entries(loaded)


def test_a_seed_deals_the_same_parts_again(entries):
    parts, other = split_entries(entries, seed=1), split_entries(entries, seed=2)
    assert split_entries(entries, seed=1) == parts != other
    for kind, n in Counter(entry["kind"] for entry in entries).items():
        assert abs(sum(e["kind"] == kind for e in parts[2]) - 0.2 * n) < 4


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=40), seed=st.integers(0, 99)
)
def test_twins_stay_together(sizes, seed):
    made = [
        {
            "instruction": f"{g} {i}",
            "output": "-",
            "kind": f"k{g % 3}",
            "group": f"g{g}",
        }
        for g, size in enumerate(sizes)
        for i in range(size)
    ]
    parts = split_entries(made, (0.5, 0.25, 0.25), seed)
    groups = [{e["group"] for e in part} for part in parts]
    assert sum(map(len, groups)) == len(sizes) and sum(map(len, parts)) == len(made)
    for part, share in zip(parts, (0.5, 0.25, 0.25), strict=True):
        assert abs(len(part) - share * len(made)) <= 4  # the largest group


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="'name a fruit.' is asked 2 times"):
        split_entries([ENTRY, {**ENTRY, "output": "A plum."}])
    for fractions in ((0.5, 0.2), (1.2, -0.2)):
        with pytest.raises(ValueError, match="sum to 1"):
            split_entries([ENTRY], fractions)
    assert split_entries([ENTRY], (1.0, 0.0)) == [[ENTRY], []]
    assert split_entries([]) == [[], [], []]


# Prompts and the data set


def test_prompts_have_the_form_of_their_style():
    bare, asked = {"instruction": "Add."}, {"instruction": "Add.", "input": "1, 2"}
    opening = (
        "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nAdd."
    )
    assert format_input({**bare, "input": ""}) == opening
    assert format_input(asked) == f"{opening}\n\n### Input:\n1, 2"
    assert format_prompt(bare, "alpaca") == f"{opening}\n\n### Response:\n"
    assert format_prompt(asked, "chat") == "User: Add. 1, 2\nAssistant:"
    assert format_prompt(asked, "plain") == "Add. 1, 2\n\n"
    assert [format_answer("2", style) for style in STYLES] == [" 2", "2", "2"]


def test_in_a_chat_a_word_taken_over_is_the_same_token(tokenizer):
    entry = {
        "instruction": "Repeat:",
        "input": "Plural nouns",
        "output": "Plural nouns",
    }
    ids, n = InstructionDataset([entry], tokenizer, True, "chat")[0]
    answer = ids[n:]
    assert any(ids[i : i + len(answer)] == answer for i in range(n - len(answer)))


def test_faulty_prompts_are_refused():
    for style in STYLES:
        with pytest.raises(ValueError, match="no 'instruction'"):
            format_prompt({"output": "Yes."}, style)
    with pytest.raises(ValueError, match="not 'llama'"):
        format_prompt(ENTRY, "llama")
    with pytest.raises(TypeError, match="style"):
        format_prompt(ENTRY)  # nothing is guessed


@settings(deadline=None, max_examples=30)
@given(
    output=st.text(min_size=1).filter(lambda t: t.strip() and not t[0].isspace()),
    style=st.sampled_from(STYLES),
)
def test_data_set_is_the_encoded_text(tokenizer, output, style):
    entry = {**ENTRY, "output": output}
    whole = format_prompt(entry, style) + format_answer(output, style)
    dataset = InstructionDataset([entry], tokenizer, True, style)
    ids, prompt_length = dataset[0]
    assert tokenizer.decode(ids[:prompt_length]) == format_prompt(entry, style)
    assert tokenizer.decode(ids) == whole
    said = format_answer(output, style)
    assert ids[prompt_length:] == tokenizer.encode_ordinary(said)
    if style != "plain":  # GPT-2's has a token for an empty line at a text's end
        assert ids == tokenizer.encode_ordinary(whole)
    assert InstructionDataset([entry], tokenizer, style=style)[0] == ids


def test_data_set_called_as_in_the_book_has_the_books_form(tokenizer):
    ids = InstructionDataset([ENTRY], tokenizer)[0]
    text = format_input(ENTRY) + "\n\n### Response:\nA pear."
    assert ids == tokenizer.encode(text)


def test_no_entry_can_end_its_own_text(tokenizer):
    entry = {"instruction": "Say <|endoftext|>.", "output": "<|endoftext|>"}
    assert PAD not in InstructionDataset([entry], tokenizer)[0]


@pytest.mark.parametrize("faulty", [{"instruction": "Add."}, {**ENTRY, "output": ""}])
def test_data_set_names_the_faulty_entry(tokenizer, faulty):
    with pytest.raises(ValueError, match="entry 2 has .* 'output'"):
        InstructionDataset([ENTRY, faulty], tokenizer)


# Batches


ids_lists = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5
)


@settings(deadline=None)
@given(batch=ids_lists, share=st.floats(0, 1), pad=st.integers(0, 99))
def test_collate_pads_shifts_and_ignores(batch, share, pad):
    """Also where the number of the padding, or of what is ignored, is in the texts."""
    pairs = [(ids, int(share * len(ids))) for ids in batch]
    inputs, targets = custom_collate_fn(pairs, pad, -1)
    T = max(map(len, batch))
    assert inputs.shape == targets.shape == (len(batch), T)
    assert inputs.dtype == targets.dtype == torch.int64
    for (ids, n_prompt), row, row_targets in zip(pairs, inputs, targets, strict=True):
        assert row.tolist() == ids + [pad] * (T - len(ids))
        for t, target in enumerate(row_targets.tolist()):
            following = [*ids[1:], pad]
            counts = n_prompt - 1 <= t < len(ids)
            assert target == (following[t] if counts else -1)


def test_collate_as_in_the_book():
    inputs, targets = custom_collate_fn([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]])
    P, I = PAD, -100  # noqa: E741
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, P, P, P], [7, 8, 9, P, P]]
    assert targets.tolist() == [[1, 2, 3, 4, P], [6, P, I, I, I], [8, 9, P, I, I]]


def test_padding_changes_no_output_and_no_loss():
    model = tiny_model().eval()
    short, long = [5, 6, 7], list(range(30))
    alone = calc_loss_batch(*custom_collate_fn([short]), model, "cpu")
    inputs, targets = custom_collate_fn([short, long])
    with torch.no_grad():
        logits = model(inputs)[0, :3]
        assert torch.allclose(logits, model(torch.tensor([short]))[0], atol=1e-5)
    padded = calc_loss_batch(inputs[:1], targets[:1], model, "cpu")
    assert torch.allclose(alone, padded, atol=1e-5)


def test_cutting_warns_and_says_how_much():
    with pytest.warns(UserWarning, match="5 tokens .* cut to .* 3: its last 2"):
        inputs, targets = custom_collate_fn(
            [[1, 2, 3, 4, 5], [6]], allowed_max_length=3
        )
    assert inputs.tolist() == [[1, 2, 3], [6, PAD, PAD]]
    assert targets.tolist() == [[2, 3, 4], [PAD, -100, -100]]  # no end after a cut
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        custom_collate_fn([[1, 2, 3]], allowed_max_length=3)


def test_batches_without_anything_to_learn_are_refused():
    for batch in ([], [[]], [([], 0), ([], 0)]):
        with pytest.raises(ValueError, match="at least one text"):
            custom_collate_fn(batch)
    with pytest.raises(ValueError, match="all 3 targets of the batch are masked"):
        custom_collate_fn([([1, 2, 3], 4)])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="all 4 targets"):
        custom_collate_fn([([1, 2, 3], 3), ([4, 5, 6], 3)], allowed_max_length=2)
    with pytest.raises(ValueError, match="allowed_max_length must be 1 or more, not 0"):
        custom_collate_fn([[1]], allowed_max_length=0)
    inputs, targets = custom_collate_fn([([1, 2, 3], 3), ([4], 1)])  # empty answers
    assert targets.tolist() == [[-100, -100, PAD], [PAD, -100, -100]]


def test_loader_groups_by_length(entries, tokenizer):
    dataset = InstructionDataset(entries, tokenizer)
    chance = torch.Generator().manual_seed(1)
    loader = create_instruction_loader(dataset, generator=chance)  # eight at a time
    first, second = [[inputs.shape for inputs, _ in loader] for _ in range(2)]
    assert first != second
    assert len(first) == len(loader) == -(-len(entries) // 8)
    slots = sum(shape.numel() for shape in first)
    assert 1 - sum(map(len, dataset.encoded_texts)) / slots < 0.05


def test_loader_without_shuffling_keeps_the_order(tokenizer):
    dataset = InstructionDataset(
        [ENTRY, {**ENTRY, "output": "A plum, red."}], tokenizer
    )
    ((inputs, _),) = create_instruction_loader(dataset, 2, shuffle=False)
    assert inputs[0, : len(dataset[0])].tolist() == dataset[0]
    with pytest.warns(UserWarning, match="cut to allowed_max_length 20"):
        ((inputs, _),) = create_instruction_loader(dataset, 2, allowed_max_length=20)
    assert inputs.shape == (2, 20)


@pytest.mark.parametrize("shuffle", [True, False])
def test_texts_end_with_the_end_token_of_their_own_tokenizer(shuffle):
    tokenizer = load_base_tokenizer()
    end = tokenizer.eot_token
    assert end != PAD
    two = [ENTRY, {**ENTRY, "output": "A plum, red and ripe."}]
    dataset = InstructionDataset(two, tokenizer, True, "plain")
    ((inputs, targets),) = create_instruction_loader(dataset, 2, shuffle)
    assert (targets == end).sum() == 2
    assert inputs.max() == end  # the padding


# Loss and finetuning

SMALL = 1000  # a vocabulary for tests that need no tokenizer


def response_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(999, (n,), generator=generator).tolist() for n in (9, 5, 7)]
    return custom_collate_fn([(ids, 4) for ids in texts], SMALL - 1)


def test_every_target_masked_is_an_error_not_nan():
    model, (inputs, targets) = tiny_model(vocab_size=SMALL), response_batch()
    masked = torch.full_like(targets, -100)
    assert calc_loss_batch(inputs, masked, model, "cpu").isnan()
    with pytest.raises(ValueError, match=f"all {masked.numel()} targets .* masked"):
        calc_response_loss(inputs, masked, model, "cpu")


def test_loss_of_a_loader_is_the_mean_over_targets():
    model = tiny_model(vocab_size=SMALL, drop_rate=0.5).train()
    batches = [response_batch(seed) for seed in range(2)]
    batches.append(custom_collate_fn([([1, 2, 3], 3)], 9))  # one target only
    total, n = 0.0, 0
    for inputs, targets in batches:
        count = (targets != -100).sum().item()
        total += count * calc_loss_batch(inputs, targets, model.eval(), "cpu").item()
        n += count
    model.train()
    assert evaluate_responses(model, batches, "cpu") == pytest.approx(total / n)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_training_makes_the_steps_of_a_plain_loop():
    batches = [response_batch(seed) for seed in range(3)]
    plain, ours = (tiny_model(vocab_size=SMALL) for _ in range(2))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, ours)]
    losses = []
    for batch in batches * 2:
        optimizers[0].zero_grad()
        loss = calc_loss_batch(*batch, plain, "cpu")  # over all places
        loss.backward()
        optimizers[0].step()
        losses.append(loss.item())
    ours_losses = []
    for _ in range(2):
        ours_losses += train_on_responses(ours.eval(), batches, optimizers[1], "cpu")
        assert ours.training
    assert ours_losses == pytest.approx(losses, abs=1e-5)
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_finetune_is_this_loop_to_the_last_bit(tokenizer, entries):
    """No bar, look or loss of other entries disturbs the order of the batches."""
    plain, ours, some = tiny_model(), tiny_model(), by_family(entries)[0][:20]
    dataset = InstructionDataset(some, tokenizer, True, "chat")
    chance = torch.Generator().manual_seed(7)
    loader = create_instruction_loader(dataset, 8, generator=chance)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, fused=True)
    let_rate_fall(optimizer, 2 * len(loader))
    losses = []
    for _ in range(2):
        for batch in loader:
            optimizer.zero_grad()
            loss = calc_response_loss(*batch, plain, "cpu")
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    settings = {"style": "chat", "learning_rate": 1e-2, "seed": 7}
    assert finetune(ours, some, some[:9], tokenizer, **settings)[0] == losses
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("part", ["train_entries", "val_entries"])
def test_a_prompt_that_fills_the_context_is_found_before_the_first_step(
    tokenizer, batch_size, part
):
    model = tiny_model()
    fits = {"instruction": " yes" * 94, "output": "No."}  # 96 tokens with the prompt's
    parts = {"train_entries": [fits] * 5, "val_entries": [fits] * 5}
    settings = {"style": "plain", "learning_rate": 1e-2, "batch_size": batch_size}
    with pytest.warns(UserWarning, match="was cut to"):
        finetune(tiny_model(), tokenizer=tokenizer, **parts, num_epochs=1, **settings)
    parts[part] = [*parts[part], {"instruction": " no" * 99, "output": "No."}, ENTRY]
    before = copy.deepcopy(model.state_dict())
    message = (
        f"1 of the 7 {part} .* context of 96 tokens.* entry 6, .*no no.* .100 tokens."
    )
    with pytest.raises(ValueError, match=message):
        finetune(model, tokenizer=tokenizer, **parts, **settings)
    assert "prompt_style" not in model.cfg
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("step", [1, 3])  # after an epoch, and within the second
def test_ctrl_c_ends_training_and_keeps_what_was_learned(tokenizer, monkeypatch, step):
    losses = []

    def calculate(*arguments):
        losses.append(calc_response_loss(*arguments))
        if model.training and sum(loss.requires_grad for loss in losses) == step + 1:
            raise KeyboardInterrupt
        return losses[-1]

    monkeypatch.setattr(instructions, "calc_response_loss", calculate)
    model, some, looks = tiny_model(), [ENTRY, {**ENTRY, "output": "A plum."}], []
    before = model.pos_emb.weight.clone()
    train_losses, val_losses = finetune(
        *(model, some, some, tokenizer),
        style="chat",
        learning_rate=1e-2,
        batch_size=1,
        after_epoch=lambda: looks.append(1),
    )
    assert len(train_losses) == step
    assert len(val_losses) == 1 + len(looks) == 1 + step // 2
    assert not torch.equal(before, model.pos_emb.weight)


def test_finetune_learns_the_answers_of_its_entries(tokenizer):
    pairs = [("Name a fruit.", "A pear."), ("Is ice cold?", "Yes.")]
    some, model = [{"instruction": a, "output": b} for a, b in pairs], tiny_model()
    settings = {"style": "chat", "learning_rate": 5e-2, "batch_size": 1}
    losses, val_losses = finetune(
        *(model, some, some, tokenizer), num_epochs=30, **settings
    )
    assert len(losses) == 60 and len(val_losses) == 31
    # the rate has fallen to zero: the last steps change next to nothing
    assert val_losses[-1] == pytest.approx(val_losses[-2], abs=0.01)
    answers = generate_answers(model, some, tokenizer, 8)
    assert answers == [said for _, said in pairs]


def test_a_copy_is_finetuned_with_dropout_and_what_is_frozen_stays(tokenizer):
    model = tiny_model()
    copy = copy_to_finetune(model, 0.5)
    ids = torch.arange(20).unsqueeze(0)
    assert torch.equal(copy.eval()(ids), model.eval()(ids))
    torch.manual_seed(1)
    assert not torch.allclose(copy.train()(ids), model(ids), atol=1e-3)
    assert torch.equal(model.train()(ids), model.eval()(ids))
    finetune(*(copy, [ENTRY], [ENTRY], tokenizer), style="chat", learning_rate=1e-2)
    assert not torch.equal(copy.tok_emb.weight, model.tok_emb.weight)
    again = copy_to_finetune(copy, 0.1, freeze_tokens=True)  # to be taught anew
    assert again.cfg["drop_rate"] == 0.1 and "prompt_style" not in again.cfg
    finetune(*(again, [ENTRY], [ENTRY], tokenizer), style="chat", learning_rate=1e-2)
    assert torch.equal(copy.tok_emb.weight, again.tok_emb.weight)
    assert not torch.equal(copy.pos_emb.weight, again.pos_emb.weight)
    with pytest.raises(ValueError, match="drop_rate"):
        copy_to_finetune(model, 1.5)


def test_what_the_loss_is_measured_on_changes_no_weight(tokenizer, monkeypatch):
    """So a comparison, which needs no such loss, may measure it on one entry."""
    settings = {"style": "chat", "learning_rate": 1e-2, "batch_size": 2}
    some = [{**ENTRY, "output": text} for text in ("A pear.", "A plum.", "A red fig.")]
    monkeypatch.setattr("ch07_instructions.compare.load_base", lambda _: tiny_model())
    monkeypatch.setattr("ch07_instructions.compare.load_base_tokenizer", get_tokenizer)
    one, _ = finetuned(7, some, "cpu", 0.5, **settings)
    torch.manual_seed(7)
    other = copy_to_finetune(tiny_model(), 0.5)
    with mixed_precision():
        finetune(other, some, some * 5, tokenizer, seed=7, **settings)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_record_depends_on_the_kind_of_device_and_not_on_threads(
    tmp_path, monkeypatch
):
    asked, path = [], tmp_path / "record.json"

    def run(seed, device):
        asked.append(seed)
        return {"seed": seed, "seconds": 1.0, "finetuned": [], "reworded": []}

    monkeypatch.setattr(compare, "run", run)
    monkeypatch.setattr(compare, "scores_of", lambda *_: {})
    monkeypatch.setattr("sys.argv", ["compare", "--seeds", "1", "--out", str(path)])
    threads = torch.get_num_threads()
    monkeypatch.setattr(compare, "has_fast_bfloat16", lambda _: True)
    compare.main()
    torch.set_num_threads(threads + 1)
    try:
        compare.main()
    finally:
        torch.set_num_threads(threads)
    assert asked == [compare.FIRST_SEED]
    monkeypatch.setattr(compare, "has_fast_bfloat16", lambda _: False)
    compare.main()  # products in float32 are another record
    assert asked == [compare.FIRST_SEED] * 2
    made_of = json.loads(path.read_text())["made_of"]
    assert made_of["device"].endswith("products in float32")


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([{"instruction": "Add."}], [ENTRY], "entry 1 has no 'output'"),
        ([ENTRY], [], "val_entries is empty"),
        ([], [ENTRY], "train_entries is empty"),
    ],
)
def test_finetune_names_what_is_missing(tokenizer, train, val, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        finetune(model, train, val, tokenizer, style="chat", learning_rate=1e-3)
    assert "prompt_style" not in model.cfg
    settings = {"style": "chat", "learning_rate": 1e-3, "num_epochs": 0}
    with pytest.raises(ValueError, match="num_epochs must be 1 or more, not 0"):
        finetune(model, [ENTRY], [ENTRY], tokenizer, **settings)
    with pytest.raises(TypeError, match="style"):
        finetune(model, [ENTRY], [ENTRY], tokenizer, learning_rate=1e-3)


# The style that a model carries


def taught(tokenizer, style):
    model = tiny_model()
    finetune(model, [ENTRY], [ENTRY], tokenizer, style=style, learning_rate=1e-3)
    return model.eval()


@pytest.mark.parametrize("style", STYLES)
def test_a_finetuned_model_is_asked_in_its_own_style(tokenizer, style, monkeypatch):
    model = taught(tokenizer, style)
    prompts = []

    def write(model, texts, max_new_tokens, eos_id, **_):
        assert eos_id == PAD
        prompts.extend(map(tokenizer.decode, texts))
        return [[] for _ in texts]

    monkeypatch.setattr(instructions, "answer_together", write)
    generate_answers(model, [ENTRY], tokenizer)
    assert prompts == [format_prompt(ENTRY, style)]
    other = STYLES[(STYLES.index(style) + 1) % 3]
    with pytest.raises(ValueError, match=f"taught the style '{style}', not '{other}'"):
        generate_answers(model, [ENTRY], tokenizer, style=other)


def test_a_model_without_a_style_has_to_be_told(tokenizer):
    with pytest.raises(ValueError, match="no prompt style .*; name one, such as"):
        generate_answers(tiny_model(), [ENTRY], tokenizer)
    with pytest.raises(ValueError, match="not 'llama'"):
        generate_answers(tiny_model(), [ENTRY], tokenizer, style="llama")


def test_the_checkpoint_carries_the_style(tokenizer, tmp_path):
    model, path = taught(tokenizer, "chat"), tmp_path / "model.safetensors"
    save_checkpoint(path, model)
    again = load_instructed(path, tiny_model(seed=2, drop_rate=0.5))
    assert again.cfg["prompt_style"] == "chat" and not again.training
    assert torch.equal(again.tok_emb.weight, model.tok_emb.weight)
    assert generate_answers(again, [ENTRY], tokenizer, 4) == generate_answers(
        model, [ENTRY], tokenizer, 4
    )


def test_what_does_not_fit_changes_nothing(tokenizer, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny_model())
    with pytest.raises(ValueError, match="no prompt style"):
        load_instructed(path, tiny_model())
    save_checkpoint(path, taught(tokenizer, "chat"))
    other = tiny_model(n_layers=1)
    before = other.tok_emb.weight.clone()
    with pytest.raises(ValueError, match="n_layers"):
        load_instructed(path, other)
    assert "prompt_style" not in other.cfg
    assert torch.equal(before, other.tok_emb.weight)


# Answers


def test_an_answer_ends_at_the_end_token_of_the_tokenizer(monkeypatch):
    tokenizer = load_base_tokenizer()
    model = nudged_gpt({**TINY, "vocab_size": tokenizer.n_vocab})
    said = tokenizer.encode_ordinary("Red.") + [tokenizer.eot_token, 7]
    start = len(tokenizer.encode_ordinary(format_prompt(ENTRY, "plain")))

    def scripted(model, idx, context_size, cache):
        logits = torch.zeros(1, tokenizer.n_vocab)
        logits[0, said[idx.shape[1] - start]] = 1
        return logits

    monkeypatch.setattr(instructions, "next_token_logits", scripted)
    assert generate_answers(model, [ENTRY], tokenizer, 4, "plain") == ["Red."]


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_answers_equal_those_one_by_one(tokenizer, entries, batch_size):
    """Whatever the lengths of the prompts that are answered together."""
    model = tiny_model(context_length=128).eval()
    some = by_family(entries)[0][:7]
    together = generate_answers(model, some, tokenizer, 6, "alpaca", batch_size)
    lengths = set()
    for entry, answer in zip(some, together, strict=True):
        prompt = tokenizer.encode(format_prompt(entry, "alpaca"))
        ids = generate(model, torch.tensor([prompt]), 6, 128, eos_id=PAD)
        new = ids[0, len(prompt) :].tolist()
        new = new[: new.index(PAD)] if PAD in new else new
        assert answer == tokenizer.decode(new).strip()
        lengths.add(len(prompt))
    assert len(lengths) > 3
    assert generate_answers(model, [], tokenizer, style="chat") == []


def test_each_answer_ends_by_itself(monkeypatch):
    """At its end token or after so many tokens, counted from the end of its prompt."""
    said = {1: [7, PAD], 2: [PAD], 3: [4, 5, 6, 9]}  # by the first token of the prompt
    prompts = [[1, 1, 1], [2], [3, 3]]

    def scripted(model, idx, context_size, cache):
        logits = torch.zeros(len(idx), TINY["vocab_size"])
        for row, logit in zip(idx.tolist(), logits, strict=True):
            count = len(row) - len(prompts[row[0] - 1])
            told = said[row[0]] + [8] * 9
            logit[told[count] if count >= 0 else 9] = 1
        return logits

    monkeypatch.setattr(instructions, "next_token_logits", scripted)
    model = tiny_model().train()
    assert answer_together(model, prompts, 3) == [[7], [], [4, 5, 6]]
    assert answer_together(model, prompts, 1) == [[7], [], [4]]
    assert answer_together(model, prompts, 4, eos_id=5) == [
        [7, PAD, 8, 8],
        [PAD, 8, 8, 8],
        [4],
    ]
    assert model.training


def test_answers_can_be_drawn(tokenizer):
    model, entries = taught(tokenizer, "chat"), [ENTRY, {"instruction": "Say hello."}]

    def drawn(seed, **settings):
        chance = torch.Generator().manual_seed(seed)
        return generate_answers(
            model, entries, tokenizer, 12, generator=chance, **settings
        )

    assert drawn(1, temperature=1.0) == drawn(1, temperature=1.0)
    assert drawn(1, temperature=1.0) != drawn(2, temperature=1.0)
    greedy = generate_answers(model, entries, tokenizer, 12)
    assert drawn(1) == drawn(1, temperature=1.0, top_p=1e-6) == greedy
    with pytest.raises(ValueError, match="top_p must be above 0"):
        drawn(1, temperature=1.0, top_p=0)


def fitted(entry, tokenizer, room, style="alpaca"):
    def encode(entry):
        return tokenizer.encode(format_prompt(entry, style), disallowed_special=())

    return fit_input(entry, encode, tokenizer, room)


@pytest.mark.parametrize("style", STYLES)
def test_long_input_is_cut_with_a_warning(tokenizer, style):
    entry = {"instruction": "Sum up.", "input": "It rains. " * 60}
    whole = tokenizer.encode(format_prompt(entry, style))
    with pytest.warns(
        UserWarning, match=rf"a prompt of {len(whole)} tokens was cut to"
    ):
        ids = fitted(entry, tokenizer, 60, style)
    text = tokenizer.decode(ids)
    start, end = format_prompt({**entry, "input": "@"}, style).split("@")
    assert 58 <= len(ids) <= 60  # no more is lost than must be
    assert text.startswith(start + "It rains.") and text.endswith(end)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted(entry, tokenizer, len(whole), style) == whole


@settings(deadline=None, max_examples=40)
@given(text=st.text(min_size=50, max_size=200), room=st.integers(45, 80))
def test_cut_prompt_fits_whatever_its_letters_are(tokenizer, text, room):
    entry = {"instruction": "Sum up.", "input": text}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(fitted(entry, tokenizer, room)) <= room


def test_long_instruction_is_refused(tokenizer):
    model = tiny_model()
    entry = {"instruction": "Explain this. " * 40, "input": "It rains."}
    with pytest.raises(ValueError, match="there is room for 56; shorten it"):
        generate_answers(model, [entry], tokenizer, 40, "chat")
    length = len(tokenizer.encode(format_prompt(ENTRY, "alpaca")))
    assert len(fitted(ENTRY, tokenizer, length)) == length
    with pytest.raises(ValueError, match=f"{length} tokens, but .* {length - 1};"):
        fitted(ENTRY, tokenizer, length - 1)
    for count in (0, 96):
        with pytest.raises(ValueError, match="between 1 and 95, not"):
            generate_answers(model, [ENTRY], tokenizer, count, "chat")


# The comparison


def of(kind, family, **changes):
    return {**ENTRY, "kind": kind, "family": family, **changes}


def test_stories_are_scored_apart():
    words = {"instruction": "Write a story with the words sun, sea and dog."}
    some = [
        of("repeat", "copy"),
        of("words", "story", **words),
        of("tense", "closed", output="Past."),
    ]
    assert [len(part) for part in by_family(some)] == [2, 1]
    answers = ["A plum.", "The dog saw the sun. It saw the sea.", "past"]
    assert first_short(some, answers, 1) == ([some[0]], ["A plum."])
    assert first_short(some, answers)[1] == ["A plum.", "past"]
    found = scores_of(some, answers, ["A pear.", "Present."])
    wanted = {"copy": 0, "closed": 100, "copy, reworded": 100, "closed, reworded": 0}
    wanted |= {"words": 100, "all_words": 100, "ended": 100, "no_repeats": 100}
    assert wanted.items() <= found.items()


def test_the_notebook_trains_with_the_settings_of_the_comparison():
    path = ROOT / "ch07_instructions" / "instructions.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "".join(line for cell in cells for line in [*cell["source"], "\n"])
    names = {"style": "STYLE", "learning_rate": "LEARNING_RATE"}
    names |= {"batch_size": "BATCH_SIZE", "num_epochs": "EPOCHS"}
    for key, name in names.items():
        (value,) = re.findall(rf"^{name} = (\S+)", text, re.MULTILINE)
        assert float(value) == SETTINGS[key] if key != "style" else value == '"plain"'
