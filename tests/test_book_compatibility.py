"""What docs/differences.md says: programs in the book's style, run against our names.

Each is written for this file. `Plain...` is the other side: a GPT as readers of the
book have it, with parameters of the same names, every step by hand, and a mask in its
files.
"""

import math
import re
from functools import partial

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from shared import data
from shared.ch02 import (
    GPTDatasetV1,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    create_dataloader_v1,
    get_tokenizer,
)
from shared.ch03 import CausalAttention, MultiHeadAttention, MultiHeadAttentionWrapper
from shared.ch04 import GPTModel, generate_text_simple
from shared.ch05 import (
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    generate,
    load_checkpoint,
    load_weights_into_gpt,
    model_from_checkpoint,
    read_gpt2_folder,
    save_checkpoint,
    save_gpt2_folder,
    text_to_token_ids,
    token_ids_to_text,
    train_model_simple,
)
from shared.ch06 import (
    SpamDataset,
    calc_accuracy_loader,
    calc_classification_loss,
    classify_review,
    create_balanced_dataset,
    evaluate_classifier,
    random_split,
    train_classifier_simple,
)
from shared.ch07 import (
    InstructionDataset,
    custom_collate_fn,
    format_input,
    generate_model_scores,
)

BOOK = {  # the book's seven keys, small
    "vocab_size": 50257,
    "context_length": 32,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
END = 50256
tokenizer = get_tokenizer()


class PlainAttention(nn.Module):
    def __init__(self, width, context, heads, bias=False):
        super().__init__()
        self.heads = heads
        self.W_query = nn.Linear(width, width, bias=bias)
        self.W_key = nn.Linear(width, width, bias=bias)
        self.W_value = nn.Linear(width, width, bias=bias)
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(context, context).triu(1))

    def forward(self, x):
        T = x.shape[1]
        Q, K, V = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.W_query, self.W_key, self.W_value)
        )
        scores = (Q @ K.mT).masked_fill(self.mask[:T, :T] > 0, -math.inf)
        weights = (scores / math.sqrt(Q.shape[-1])).softmax(-1)
        return self.out_proj((weights @ V).transpose(1, 2).flatten(2))


class PlainNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return self.scale * centred / (variance + 1e-5).sqrt() + self.shift


class PlainFeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        return self.layers(x)


class PlainBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C = cfg["emb_dim"]
        self.att = PlainAttention(
            C, cfg["context_length"], cfg["n_heads"], cfg["qkv_bias"]
        )
        self.ff, self.norm1, self.norm2 = (
            PlainFeedForward(C),
            PlainNorm(C),
            PlainNorm(C),
        )

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))


class PlainGPT(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        V, C = cfg["vocab_size"], cfg["emb_dim"]
        self.tok_emb = nn.Embedding(V, C)
        self.pos_emb = nn.Embedding(cfg["context_length"], C)
        self.trf_blocks = nn.Sequential(
            *[PlainBlock(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = PlainNorm(C)
        self.out_head = nn.Linear(C, V, bias=False)

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb.weight[: ids.shape[1]]
        return self.out_head(self.final_norm(self.trf_blocks(x)))


def plain_generate(model, ids, n, context, temperature=0.0, top_k=None, eos_id=None):
    """One text, token by token, as in the book's sections 4.7 and 5.3."""
    for _ in range(n):
        logits = model(ids[:, -context:])[:, -1]
        if top_k is not None:
            lowest = logits.topk(top_k).values[:, -1:]
            logits = logits.masked_fill(logits < lowest, -math.inf)
        if temperature > 0:
            new = torch.multinomial((logits / temperature).softmax(-1), 1)
        else:
            new = logits.argmax(-1, keepdim=True)
        if new.item() == eos_id:
            break
        ids = torch.cat([ids, new], dim=1)
    return ids


def same_pair(seed=0, **changes):
    """The book's model and ours with the same numbers in them."""
    torch.manual_seed(seed)
    theirs = PlainGPT({**BOOK, **changes}).eval()
    ours = GPTModel({**BOOK, **changes}).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def some_ids(*shape, seed=1):
    return torch.randint(END, shape, generator=torch.Generator().manual_seed(seed))


# Chapter 2


def test_tokenizers_give_the_ids_of_a_vocabulary_made_by_hand():
    text = data.load_text("short-story")
    pieces = [p.strip() for p in re.split(r"""([,.:;?_!"()']|--|\s)""", text)]
    words = sorted({p for p in pieces if p})
    vocab = {word: number for number, word in enumerate(words)}
    ids = SimpleTokenizerV1(vocab).encode(text)
    assert ids == [vocab[p] for p in pieces if p]
    vocab |= {"<|endoftext|>": len(vocab), "<|unk|>": len(vocab) + 1}
    second = SimpleTokenizerV2(vocab)
    joined = " <|endoftext|> ".join(("Hello there", "It was oak."))
    assert second.decode(second.encode(joined)).startswith("<|unk|>")
    assert second.encode(joined).count(vocab["<|endoftext|>"]) == 1


def test_windows_are_inputs_and_targets_not_lists_of_tensors():
    text = data.load_text("short-story")[:400]
    ids = tokenizer.encode(text)
    windows = GPTDatasetV1(text, tokenizer, max_length=8, stride=4)
    for i, start in enumerate(range(0, len(ids) - 8, 4)):
        assert windows.inputs[i].tolist() == ids[start : start + 8]
        assert windows.targets[i].tolist() == ids[start + 1 : start + 9]
    assert len(windows) == i + 1 and not hasattr(windows, "input_ids")


def test_a_loader_without_batches_is_an_error():
    with pytest.raises(ValueError, match="batch_size 2 is larger than .* 1 windows"):
        create_dataloader_v1("It was oak. " * 3, batch_size=2, max_length=8, stride=8)


# Chapter 3


def test_attention_gives_the_same_numbers_from_the_same_seed():
    x = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(123)
    theirs = PlainAttention(4, context=6, heads=2)
    torch.manual_seed(123)
    ours = MultiHeadAttention(4, 4, 6, 0.0, num_heads=2)
    torch.testing.assert_close(ours(x), theirs(x))
    assert not hasattr(ours, "mask") and "mask" in theirs.state_dict()
    assert CausalAttention(4, 2, 6, 0.0).mask.shape == (6, 6)
    assert MultiHeadAttentionWrapper(4, 2, 6, 0.0, num_heads=2)(x).shape == (2, 6, 4)


# Chapter 4


def test_the_model_computes_the_same_and_starts_from_other_numbers():
    theirs, ours = same_pair()
    ids = some_ids(2, 20)
    torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-5, rtol=1e-5)
    torch.manual_seed(0)
    fresh = GPTModel(BOOK)
    assert fresh.tok_emb.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert theirs.tok_emb.weight.std().item() == pytest.approx(1.0, rel=0.01)


def test_simple_generation_is_the_same():
    theirs, ours = same_pair()
    ids = text_to_token_ids("It was oak", tokenizer)
    found = generate_text_simple(
        model=ours, idx=ids, max_new_tokens=40, context_size=BOOK["context_length"]
    )
    assert torch.equal(found, plain_generate(theirs, ids, 40, 32))
    with pytest.raises(ValueError, match="context"):
        generate_text_simple(ours, ids, 3, context_size=33)


# Chapter 5


def test_state_dicts_go_both_ways(tmp_path):
    theirs, ours = same_pair()
    ids, file = some_ids(1, 9), tmp_path / "model.pth"
    torch.save(theirs.state_dict(), file)  # the book's file in our model: as it is
    fresh = GPTModel(BOOK).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(ids), ours(ids))
    torch.manual_seed(5)
    tied = GPTModel({**BOOK, "tie_weights": True}).eval()
    torch.save(tied.state_dict(), file)  # ours in the book's: without its masks
    with pytest.raises(RuntimeError, match="Missing.*att.mask"):
        theirs.load_state_dict(torch.load(file, weights_only=True))
    missing, unknown = theirs.load_state_dict(torch.load(file), strict=False)
    assert not unknown and all(name.endswith("att.mask") for name in missing)
    torch.testing.assert_close(theirs(ids), tied(ids), atol=1e-5, rtol=1e-5)


def test_our_checkpoint_goes_to_the_book_by_way_of_a_state_dict(tmp_path):
    torch.manual_seed(5)
    ours = GPTModel({**BOOK, "tie_weights": True})
    path, ids = tmp_path / "run.safetensors", some_ids(1, 9)
    save_checkpoint(path, ours, torch.optim.AdamW(ours.parameters()))
    theirs = PlainGPT(BOOK).eval()
    state = model_from_checkpoint(path).state_dict()
    theirs.load_state_dict(state, strict=False)
    torch.testing.assert_close(theirs(ids), ours.eval()(ids), atol=1e-5, rtol=1e-5)
    raw = {  # the same where only PyTorch and safetensors are installed
        name.removeprefix("model."): tensor
        for name, tensor in load_file(path).items()
        if name.startswith("model.")
    }
    raw.setdefault("out_head.weight", raw["tok_emb.weight"])  # tied: stored once
    assert raw.keys() == state.keys()
    assert all(torch.equal(raw[name], state[name]) for name in raw)


def step(model, optimizer, ids):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    return loss.item()


def test_the_books_checkpoint_with_its_optimizer_goes_on_here(tmp_path):
    theirs, _ = same_pair()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.1)
    batches = [some_ids(4, 17, seed=seed) for seed in range(5)]
    for ids in batches[:2]:
        step(theirs, optimizer, ids)
    both = {
        "model_state_dict": theirs.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(both, tmp_path / "model_and_optimizer.pth")
    found = torch.load(tmp_path / "model_and_optimizer.pth", weights_only=True)
    ours = GPTModel(BOOK)
    ours.load_state_dict(found["model_state_dict"])
    continued = torch.optim.AdamW(ours.parameters(), lr=1e-3, weight_decay=0.1)
    continued.load_state_dict(found["optimizer_state_dict"])
    for ids in batches[2:]:
        expected = step(theirs, optimizer, ids)
        assert step(ours, continued, ids) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="no complete safetensors file"):
        load_checkpoint(tmp_path / "model_and_optimizer.pth", ours)


def test_loss_of_a_loader_is_per_token_and_ignores_minus_100():
    theirs, ours = same_pair()
    full, short = some_ids(2, 9, seed=3), some_ids(2, 9, seed=4)
    targets = short[:, 1:].clone()
    targets[:, 2:] = -100  # two of eight count
    batches = [(full[:, :-1], full[:, 1:]), (short[:, :-1], targets)]
    with torch.no_grad():
        losses = [
            F.cross_entropy(theirs(x).flatten(0, 1), y.flatten()).item()
            for x, y in batches
        ]
    found = [calc_loss_batch(*pair, ours, "cpu").item() for pair in batches]
    assert found == pytest.approx(losses, abs=1e-4)
    per_token, per_batch = (8 * losses[0] + 2 * losses[1]) / 10, sum(losses) / 2
    assert abs(per_token - per_batch) > 0.01
    assert calc_loss_loader(batches, ours, "cpu") == pytest.approx(per_token, abs=1e-4)
    with pytest.raises(ValueError, match="data_loader has no batches"):
        calc_loss_loader([], ours, "cpu")


def test_training_as_in_the_book_and_its_looks(capsys):
    text = data.load_text("short-story")[:12_000]
    cut = int(0.9 * len(text))  # the book's lines: a training and a validation part
    make = partial(create_dataloader_v1, batch_size=8, max_length=32, stride=32)
    train_loader = make(text[:cut], shuffle=True, drop_last=True, num_workers=0)
    val_loader = make(text[cut:], shuffle=False, drop_last=False, num_workers=0)
    assert sum(x.numel() for x, _ in val_loader) >= 256
    torch.manual_seed(123)
    model = GPTModel(BOOK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)
    train_losses, val_losses, tokens_seen = train_model_simple(
        *(model, train_loader, val_loader, optimizer, "cpu"),
        **{"num_epochs": 1, "eval_freq": 5, "eval_iter": 1},
        **{"start_context": "It was oak", "tokenizer": tokenizer},
    )
    steps = len(train_loader)
    assert tokens_seen == [*range(0, 256 * steps, 1280), 256 * steps]
    assert train_losses[0] == pytest.approx(math.log(50257), abs=0.1)  # before a step
    assert val_losses[-1] < val_losses[0] and "It was oak" in capsys.readouterr().out
    assert evaluate_model(model, train_loader, val_loader, "cpu", eval_iter=1)


def test_drawing_takes_the_books_arguments_in_its_order():
    theirs, ours = same_pair()
    ids = text_to_token_ids("It was oak", tokenizer)
    for arguments in ((1.4, 25, END), (0.7, None, None), (0.0, None, END)):
        torch.manual_seed(123)
        expected = plain_generate(theirs, ids, 15, 32, *arguments)
        torch.manual_seed(123)
        found = generate(ours, ids, 15, 32, *arguments)
        assert torch.equal(found, expected)
    named = {"model": ours, "idx": ids, "max_new_tokens": 15, "context_size": 32}
    found = generate(**named, temperature=0.0, top_k=None, eos_id=END)
    assert torch.equal(found, expected)


def test_the_end_token_is_kept_and_may_come_to_each_text_alone():
    theirs, ours = same_pair()
    ids = text_to_token_ids("It was oak", tokenizer)
    third = plain_generate(theirs, ids, 3, 32)[0, -1].item()
    expected = plain_generate(theirs, ids, 9, 32, eos_id=third)
    found = generate(ours, ids, 9, 32, eos_id=third)
    assert found[0].tolist() == [*expected[0].tolist(), third]
    assert torch.equal(found[:, :-1], expected)  # what to write instead
    two = torch.cat([ids, ids.flip(1)])
    assert generate(ours, two, 9, 32, eos_id=third).shape[0] == 2


def test_gpt2_weights_go_into_the_books_untied_config(tmp_path):
    published = {**BOOK, "qkv_bias": True, "tie_weights": True}
    torch.manual_seed(7)
    source = GPTModel(published).eval()
    save_gpt2_folder(source, tmp_path)
    settings, params = read_gpt2_folder(tmp_path)  # as download_and_load_gpt2 returns
    config = {**BOOK, "drop_rate": 0.1}
    config.update({"context_length": 32, "qkv_bias": True})
    gpt = GPTModel(config)
    load_weights_into_gpt(gpt, params)
    ids = some_ids(1, 9)
    torch.testing.assert_close(gpt.eval()(ids), source(ids))
    assert settings["emb_dim"] == 12 and "n_embd" not in settings
    assert params["transformer.wte.weight"].shape == (50257, 12)


# Chapter 6


def messages(n=30):
    labels = ["spam" if i % 3 == 0 else "ham" for i in range(n)]
    texts = [f"{'win cash' if i % 3 == 0 else 'see you'} {i} " * 2 for i in range(n)]
    return pd.DataFrame({"Label": labels, "Text": texts})


def test_balancing_and_splitting_draw_the_books_rows():
    df = messages()
    ham, spam = df[df["Label"] == "ham"], df[df["Label"] == "spam"]
    expected = pd.concat([ham.sample(len(spam), random_state=123), spam])
    balanced = create_balanced_dataset(df)
    pd.testing.assert_frame_equal(balanced, expected)
    balanced["Label"] = balanced["Label"].map({"ham": 0, "spam": 1})
    shuffled = balanced.sample(frac=1, random_state=123).reset_index(drop=True)
    for found, wanted in zip(
        random_split(balanced, 0.7, 0.1),
        (shuffled[:14], shuffled[14:16], shuffled[16:]),
        strict=True,
    ):
        pd.testing.assert_frame_equal(found, wanted.reset_index(drop=True))


def book_classifier():
    """The idiom: a GPT with another head, which learns with the last block and norm."""
    torch.manual_seed(123)
    model = GPTModel(BOOK)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.out_head = torch.nn.Linear(in_features=BOOK["emb_dim"], out_features=2)
    for part in (model.trf_blocks[-1], model.final_norm):
        for parameter in part.parameters():
            parameter.requires_grad = True
    return model


def test_the_exchanged_head_is_trained_measured_and_asked(tmp_path, capsys):
    messages().to_csv(tmp_path / "train.csv", index=None)
    dataset = SpamDataset(
        csv_file=tmp_path / "train.csv", max_length=None, tokenizer=tokenizer
    )
    loader = DataLoader(dataset, batch_size=8, shuffle=True, drop_last=True)
    model = book_classifier()
    accuracy = calc_accuracy_loader(loader, model, "cpu", num_batches=2)
    assert 0 <= accuracy <= 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    train_losses, val_losses, train_accs, val_accs, seen = train_classifier_simple(
        model, loader, loader, optimizer, "cpu", num_epochs=5, eval_freq=3, eval_iter=3
    )
    assert train_accs[-1] == 1.0 and seen == 5 * 24 and val_losses[-1] < val_losses[0]
    found = classify_review(
        "win cash 7 win cash 7", model, tokenizer, "cpu", max_length=dataset.max_length
    )
    assert found == "spam" and isinstance(found, str)
    found = classify_review("see you 8 see you 8 ", model, tokenizer, "cpu")
    assert found == "not spam"


def test_a_class_is_read_at_the_last_real_token_not_at_the_last():
    model = book_classifier().eval()
    nn.init.normal_(model.out_head.weight, std=3)
    alone = torch.tensor([tokenizer.encode("see you at the gate")])
    padded = F.pad(alone, (0, 12), value=END)
    labels = torch.tensor([1])
    with torch.no_grad():
        ours = calc_classification_loss(padded, labels, model, "cpu")
        without_padding = F.cross_entropy(model(alone)[:, -1], labels)
        the_books = F.cross_entropy(model(padded)[:, -1, :], labels)
    torch.testing.assert_close(ours, without_padding)
    assert abs(the_books - ours) > 1e-3


def test_losses_of_chapter_5_are_for_tokens_not_for_classes():
    model = book_classifier().eval()
    ids, labels = some_ids(2, 5), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="batch_size"):
        calc_loss_batch(ids, labels, model, "cpu")
    with torch.no_grad():
        loss = calc_classification_loss(ids, labels, model, "cpu").item()
    found = evaluate_classifier([(ids, labels)], model, "cpu")  # loss and accuracy
    assert found[0] == pytest.approx(loss)


# Chapter 7

ENTRY = {"instruction": "Name a tree.", "input": "", "output": "An oak."}
OTHER = {"instruction": "Add them.", "input": "2 and 3", "output": "5"}


def test_prompts_and_data_set_have_the_books_form():
    assert format_input(OTHER) == (
        "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nAdd them."
        "\n\n### Input:\n2 and 3"
    )
    assert "### Input" not in format_input(ENTRY)
    for entry, ids in zip(
        (ENTRY, OTHER), InstructionDataset([ENTRY, OTHER], tokenizer), strict=True
    ):
        text = f"{format_input(entry)}\n\n### Response:\n{entry['output']}"
        assert ids == tokenizer.encode(text)


def test_instructions_are_trained_with_chapter_5s_loop(capsys):
    collate = partial(custom_collate_fn, device="cpu", allowed_max_length=64)
    dataset = InstructionDataset([ENTRY, OTHER] * 4, tokenizer)
    loader = DataLoader(dataset, 4, shuffle=True, collate_fn=collate, drop_last=True)
    inputs, targets = next(iter(loader))
    ends = (inputs == END).sum(dim=1)  # padding after a text: one end is a target
    assert torch.equal((targets == -100).sum(dim=1), ends)
    assert ((targets == END).sum(dim=1) == 1).all()
    torch.manual_seed(123)
    model = GPTModel({**BOOK, "context_length": 64})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    losses, *_ = train_model_simple(
        model, loader, loader, optimizer, "cpu", 3, 5, 1, format_input(OTHER), tokenizer
    )
    assert losses[-1] < losses[0] - 0.3


def test_an_answer_is_cut_from_the_text_and_its_end_token_off():
    _, model = same_pair(context_length=64)
    prompt = format_input(ENTRY)
    ids = text_to_token_ids(prompt, tokenizer)
    with torch.no_grad():  # a model that says one token, then the end
        model.out_head.weight.zero_()
        model.final_norm.scale.zero_()
        model.final_norm.shift.fill_(1.0)
        model.out_head.weight[END] = 1.0
    token_ids = generate(model, ids, 20, context_size=64, eos_id=END)
    text = token_ids_to_text(token_ids, tokenizer)
    answer = text[len(prompt) :].replace("### Response:", "").strip()
    assert answer == "<|endoftext|>"  # the book's lines leave it there
    assert answer.removesuffix("<|endoftext|>").strip() == ""


def test_scores_may_lack_and_the_judge_is_asked_in_other_words():
    entries = [{**ENTRY, "model_response": r} for r in ("An oak.", "Perhaps.", "")]
    asked = []

    def judge(prompt):
        asked.append(prompt)
        return "90" if "Answer: An oak." in prompt else "I cannot say."

    scores = generate_model_scores(entries, "model_response", ask=judge)
    assert scores == [90, None, 0] and "Reference answer: An oak." in asked[0]
    assert [score for score in scores if score is not None] == [90, 0]
