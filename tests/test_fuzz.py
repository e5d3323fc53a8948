"""Every public function of chapters 2 to 7, called with what it should not get.

A row of the table below has valid arguments, values that are wrong, and what is true of
any result. A wrong value must raise an error that names it. Anything else, whatever its
type, may raise too, but what is returned must be right, and must not take for ever.
"""

import contextlib
import io
import math
import signal
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import models
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import Letters, random_gpt
from torch.utils.data import DataLoader

from shared import ch02, ch03, ch04, ch05, ch06, ch07

CHAPTERS = [ch02, ch03, ch04, ch05, ch06, ch07]
V, C = models.TINY["vocab_size"], models.TINY["emb_dim"]
NAN, INF = math.nan, math.inf
FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=12,
    database=None,
    suppress_health_check=list(HealthCheck),
)
calls: Counter[str] = Counter()


# --- Values ---------------------------------------------------------------------------

BELOW_1 = st.integers(-5, 0)
NEGATIVE = st.integers(-5, -1)
NO_SHARE = st.sampled_from([-0.1, 1.5, INF, -INF, NAN])
NO_IDS = st.sampled_from(
    [torch.zeros(3).long(), torch.zeros(1, 2, 3).long(), torch.zeros(2, 0).long()]
)
UNKNOWN_IDS = st.sampled_from([V, V + 7, -1]).map(lambda i: torch.tensor([[1, i]]))
NO_FILE = st.sampled_from(["no/such/file.safetensors", "no/such/folder"])
ANYTHING = st.sampled_from(
    [
        *(None, True, -7, -1, 0, 1, 3, -0.5, 0.5, NAN, INF, -INF, 2.5),
        *("", "x", "\ud800", "\0", "<|endoftext|>", b"x", object()),
        *((), [], [0], [-1], ["x"], [[1], []], {}, {"x": 1}, {1}, [None]),
        *(torch.zeros(0), torch.zeros(2, 3), torch.full((1, 2), NAN)),
        *(torch.tensor([[1, 2]]), torch.tensor([[-1, 99]]), torch.tensor(3)),
    ]
)


# --- What the functions work on -------------------------------------------------------

TEXT = "It was a dark night, and the lamp -- the last one -- went out. " * 4


LETTERS = Letters()
VOCAB = ch02.build_vocabulary(ch02.split_text(TEXT), ["<|endoftext|>", "<|unk|>"])
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
ENTRY = {"instruction": "Name a fruit.", "input": "", "output": "A pear."}
ENTRIES = [{**ENTRY, "instruction": f"Name fruit {n}."} for n in range(9)]
TABLE = pd.DataFrame(
    {
        "Label": ["ham", "spam", "ham"] * 4,
        "Text": [f"message {'ab' * n}" for n in range(12)],
    }
)
CONFIG = {**models.TINY, "n_layers": 1, "qkv_bias": True}


@cache
def gpt(context_length=16):
    return random_gpt({**CONFIG, "context_length": context_length})


def fresh(context_length=16):
    """A model that may be changed."""
    return random_gpt({**CONFIG, "context_length": context_length})


@cache
def speaker():
    """A model that knows all of GPT-2's ids, its end among them."""
    changes = {"vocab_size": 50257, "context_length": 64, "emb_dim": 3}
    return random_gpt({**CONFIG, **changes})


@cache
def classifier():
    return ch06.GPTClassifier(fresh(40), pad_token_id=0).eval()


@cache
def trained_bpe():
    tokenizer = ch02.BPETokenizer()
    tokenizer.train("hug pug hugs", 260)
    return tokenizer


@cache
def simple_bpe():
    tokenizer = ch02.BPETokenizerSimple()
    tokenizer.train("hug pug hugs", 260)
    return tokenizer


def windows():
    return DataLoader([(row[:-1], row[1:]) for row in IDS], batch_size=2)


def spam_loader():
    return ch06.create_spam_loader(
        ch06.SpamDataset(TABLE, LETTERS, pad_token_id=0), batch_size=4
    )


def answers_data():
    return ch07.InstructionDataset(ENTRIES[:2], LETTERS, True, "chat")


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.0)


# --- What is true of results ----------------------------------------------------------


def anything(result, arguments):
    return True


def sums_to_1(probs, arguments):
    return torch.allclose(probs.sum(-1), torch.ones(len(probs)), atol=1e-4)


def continues(ids, arguments):
    start = arguments["idx"]
    return torch.equal(ids[:, : start.shape[1]], start) and (ids < V).all()


def finite(result, arguments):
    return math.isfinite(float(result))


def a_share(result, arguments):
    return 0 <= float(result) <= 1


def curves(result, arguments):
    return len({len(curve) for curve in result[:2]}) == 1 and len(result[0]) > 0


def batches(loader, arguments):
    return len(loader) > 0


def parts_of(name):
    return lambda parts, arguments: sum(map(len, parts)) == len(arguments[name])


def answers(result, arguments):
    """An answer for each entry; of this model, none is empty."""
    return len(result) == len(arguments["entries"]) and all(result)


@dataclass
class Case:
    """A public function, how to call it rightly, and how wrongly.

    Attributes:
        name: of the function, or of a class and its method.
        valid: makes arguments that are right, by name.
        wrong: strategies of wrong values, by argument.
        check: what is true of a result, given it and the arguments.
        fixed: arguments that only the caller's own program is to blame for.
        receiver: makes the object whose method it is.
    """

    name: str
    valid: object
    wrong: dict = field(default_factory=dict)
    check: object = anything
    fixed: tuple = ()
    receiver: object = None

    def call(self, arguments):
        if self.receiver is not None:
            target = getattr(self.receiver(), self.name.split(".")[1])
        else:
            target = next(
                getattr(c, self.name) for c in CHAPTERS if hasattr(c, self.name)
            )
        return target(**arguments)


def attention(**changes):
    return {"d_in": 4, "d_out": 6, "context_length": 5, "dropout": 0.0, **changes}


def loss_arguments():
    return {
        "input_batch": IDS,
        "target_batch": IDS,
        "model": gpt(),
        "device": "cpu",
    }


def generation(**more):
    return {
        **{"model": gpt(), "idx": IDS, "max_new_tokens": 2, "context_size": 8},
        **more,
    }


GENERATION_WRONG = {
    "idx": NO_IDS | UNKNOWN_IDS,
    "max_new_tokens": NEGATIVE,
    "context_size": BELOW_1 | st.just(17),
}
SAMPLING_WRONG = {
    "temperature": st.sampled_from([-1.0, INF, NAN]),
    "top_k": BELOW_1 | st.just(V + 1),
    "top_p": st.sampled_from([0.0, -0.1, 1.01, NAN]),
}
MODEL_ONLY = ("model", "tokenizer", "optimizer", "generator", "device")
LOADERS = ("data_loader", "train_loader", "val_loader", "loader", "dataset")


def changed(key, *values):
    """Settings of a model, one of them wrong."""
    return st.sampled_from([{**CONFIG, key: value} for value in values])


WRONG_CONFIG = (
    changed("n_heads", 0, 5, -1)
    | changed("drop_rate", 1.0, -0.1, NAN)
    | changed("emb_dim", 0, -24)
    | changed("n_layers", 0)
)

CASES = [
    # Chapter 2
    Case("split_text", lambda: {"text": TEXT}),
    Case("build_vocabulary", lambda: {"tokens": ["a", "b"], "special_tokens": ["c"]}),
    Case(
        "SimpleTokenizerV1.encode",
        lambda: {"text": "It was"},
        {"text": st.sampled_from(["It rained", "zebra"])},
        receiver=lambda: ch02.SimpleTokenizerV1(VOCAB),
    ),
    Case(
        "SimpleTokenizerV1.decode",
        lambda: {"ids": [0, 1]},
        {"ids": st.lists(NEGATIVE | st.just(999), min_size=1, max_size=3)},
        receiver=lambda: ch02.SimpleTokenizerV1(VOCAB),
    ),
    Case(
        "SimpleTokenizerV2",
        lambda: {"vocab": VOCAB},
        {"vocab": st.sampled_from([{}, {"a": 0}])},
    ),
    Case(
        "SimpleTokenizerV2.encode",
        lambda: {"text": "It rained"},
        receiver=lambda: ch02.SimpleTokenizerV2(VOCAB),
        check=lambda ids, _: all(0 <= i < len(VOCAB) for i in ids),
    ),
    Case(
        "GPTDatasetV1",
        lambda: {"txt": TEXT, "tokenizer": LETTERS, "max_length": 4, "stride": 3},
        {"max_length": BELOW_1 | st.just(len(TEXT)), "stride": BELOW_1},
        lambda d, a: all(
            torch.equal(x[1:], y[:-1]) and len(x) == a["max_length"] for x, y in d
        ),
        ("tokenizer",),
    ),
    Case(
        "create_dataloader_v1",
        lambda: {"txt": TEXT, "batch_size": 2, "max_length": 4, "stride": 3},
        {
            "batch_size": BELOW_1 | st.just(999),
            "max_length": BELOW_1 | st.just(999),
            "stride": BELOW_1,
        },
        batches,
    ),
    Case(
        "BPETokenizerSimple.train",
        lambda: {"text": "hug pug hugs", "vocab_size": 260},
        receiver=ch02.BPETokenizerSimple,
    ),
    Case(
        "BPETokenizerSimple.encode",
        lambda: {"text": "a hug"},
        check=lambda ids, a: simple_bpe().decode(ids) == a["text"],
        receiver=simple_bpe,
    ),
    Case("BPETokenizerSimple.decode", lambda: {"ids": [1, 2]}, receiver=simple_bpe),
    Case(
        "BPETokenizer.train",
        lambda: {"text": "hug pug hugs", "vocab_size": 260},
        {"vocab_size": st.integers(-3, 256) | st.just(9999), "text": st.just("")},
        receiver=ch02.BPETokenizer,
    ),
    Case(
        "BPETokenizer.encode",
        lambda: {"text": "a hug", "allowed_special": set()},
        {"text": st.sampled_from(["a<|endoftext|>b", "a\ud800"])},
        lambda ids, a: trained_bpe().decode(ids) == a["text"],
        receiver=trained_bpe,
    ),
    Case(
        "BPETokenizer.decode",
        lambda: {"ids": [1, 2]},
        {"ids": st.lists(NEGATIVE | st.just(999), min_size=1, max_size=3)},
        receiver=trained_bpe,
    ),
    Case(
        "BPETokenizer.load",
        lambda: {"path": ""},
        {"path": NO_FILE},
        receiver=trained_bpe,
    ),
    # Chapter 3
    Case("SelfAttention_v1", lambda: {"d_in": 3, "d_out": 2}),
    Case("SelfAttention_v2", lambda: {"d_in": 3, "d_out": 2, "qkv_bias": True}),
    Case("CausalAttention", attention, {"dropout": NO_SHARE | st.just(1.0)}),
    Case(
        "MultiHeadAttentionWrapper",
        lambda: attention(num_heads=2),
        {"dropout": NO_SHARE, "num_heads": BELOW_1},
    ),
    Case(
        "MultiHeadAttention",
        lambda: attention(num_heads=2),
        {"dropout": NO_SHARE, "num_heads": BELOW_1 | st.sampled_from([4, 5, 7])},
        lambda layer, _: layer.num_heads * layer.head_dim == layer.d_out,
    ),
    Case(
        "MultiHeadAttention.forward",
        lambda: {"x": torch.ones(1, 2, 4)},
        {
            "x": st.sampled_from(
                [torch.ones(2, 4), torch.ones(1, 2, 3), torch.ones(1, 6, 4)]
            )
        },
        receiver=lambda: ch03.MultiHeadAttention(**attention(num_heads=2)),
    ),
    Case("KVCache", lambda: {"max_length": 3}, {"max_length": BELOW_1}),
    Case(
        "attention_weights",
        lambda: {
            "attention": ch03.MultiHeadAttention(**attention(num_heads=2)),
            "x": torch.ones(1, 2, 4),
        },
        {"x": st.sampled_from([torch.ones(2, 4), torch.ones(1, 6, 4)])},
        fixed=("attention",),
    ),
    # Chapter 4
    Case("LayerNorm", lambda: {"emb_dim": 4}),
    Case("GELU", dict),
    Case("FeedForward", lambda: {"cfg": CONFIG}),
    Case(
        "TransformerBlock",
        lambda: {"cfg": CONFIG},
        {"cfg": changed("n_heads", 0, 5) | changed("drop_rate", 1.0, NAN)},
    ),
    Case("GPTModel", lambda: {"cfg": CONFIG}, {"cfg": WRONG_CONFIG}),
    Case("check_config", lambda: {"cfg": CONFIG}, {"cfg": WRONG_CONFIG}),
    Case(
        "check_prompt",
        generation,
        {**GENERATION_WRONG, "idx": NO_IDS},
        fixed=MODEL_ONLY,
    ),
    Case(
        "GPTModel.forward",
        lambda: {"in_idx": IDS},
        {"in_idx": NO_IDS | UNKNOWN_IDS | st.just(torch.ones(1, 17).long())},
        receiver=gpt,
    ),
    Case(
        "GPTModel.new_cache",
        lambda: {"max_length": 3},
        {"max_length": BELOW_1 | st.just(17)},
        receiver=gpt,
    ),
    Case(
        "next_token_logits",
        lambda: {"model": gpt(), "idx": IDS, "context_size": 8},
        {key: GENERATION_WRONG[key] for key in ("idx", "context_size")},
        fixed=MODEL_ONLY,
    ),
    Case("generate_text_simple", generation, GENERATION_WRONG, continues, MODEL_ONLY),
    # Chapter 5
    Case(
        "text_to_token_ids", lambda: {"text": TEXT, "tokenizer": ch02.get_tokenizer()}
    ),
    Case(
        "token_ids_to_text",
        lambda: {"token_ids": IDS[:1], "tokenizer": ch02.get_tokenizer()},
        {"token_ids": st.just(IDS)},
        fixed=("tokenizer",),
    ),
    Case(
        "calc_loss_batch",
        loss_arguments,
        {"input_batch": NO_IDS | UNKNOWN_IDS, "target_batch": UNKNOWN_IDS},
        finite,
        MODEL_ONLY,
    ),
    Case(
        "train_val_test_split",
        lambda: {"text": TEXT, "train_fraction": 0.8, "val_fraction": 0.1},
        {"train_fraction": NO_SHARE, "val_fraction": NO_SHARE},
        lambda parts, a: "".join(parts) == a["text"],
    ),
    Case("evaluating", lambda: {"model": gpt()}),
    Case("in_order", lambda: {"loader": windows()}),
    Case(
        "calc_loss_loader",
        lambda: {
            **{"data_loader": windows(), "model": gpt(), "device": "cpu"},
            "num_batches": 1,
        },
        {"num_batches": BELOW_1, "data_loader": st.just([])},
        finite,
        MODEL_ONLY,
    ),
    Case(
        "evaluate_model",
        lambda: {
            **{"model": gpt(), "train_loader": windows(), "val_loader": windows()},
            **{"device": "cpu", "eval_iter": 1},
        },
        {"eval_iter": BELOW_1, "val_loader": st.just([])},
        lambda found, _: all(map(math.isfinite, found)),
        MODEL_ONLY,
    ),
    Case(
        "generate_and_print_sample",
        lambda: {
            **{"model": gpt(), "tokenizer": LETTERS, "device": "cpu"},
            "start_context": "a lamp",
        },
        fixed=MODEL_ONLY,
    ),
    Case(
        "train_model_simple",
        lambda: {
            **{"model": gpt(), "train_loader": windows(), "val_loader": windows()},
            **{"optimizer": sgd(gpt()), "device": "cpu", "num_epochs": 1},
            **{"eval_freq": 1, "eval_iter": 1, "start_context": "a"},
            "tokenizer": LETTERS,
        },
        {"num_epochs": BELOW_1, "eval_freq": BELOW_1, "eval_iter": BELOW_1},
        curves,
        MODEL_ONLY + LOADERS,
    ),
    Case("longest_verbatim_run", lambda: {"ids": [1, 2], "source_ids": [2, 3]}),
    Case(
        "next_token_probabilities",
        lambda: {
            "logits": torch.eye(2, V),
            "temperature": 0.7,
            "top_k": 5,
            "top_p": 0.9,
        },
        SAMPLING_WRONG,
        sums_to_1,
        ("logits",),
    ),
    Case(
        "generate",
        lambda: generation(temperature=0.7, top_k=5, top_p=0.9, eos_id=None),
        GENERATION_WRONG | SAMPLING_WRONG,
        continues,
        MODEL_ONLY,
    ),
    Case("TensorFile", lambda: {"path": ""}, {"path": NO_FILE}),
    Case("read_checkpoint", lambda: {"path": ""}, {"path": NO_FILE}),
    Case("load_checkpoint", lambda: {"path": "", "model": gpt()}, {"path": NO_FILE}),
    Case("model_from_checkpoint", lambda: {"path": ""}, {"path": NO_FILE}),
    Case("read_gpt2_folder", lambda: {"folder": ""}, {"folder": NO_FILE}),
    Case(
        "load_weights_into_gpt",
        lambda: {"gpt": fresh(), "params": {}},
        {"params": st.sampled_from([{}, {"wte.weight": torch.ones(2, 2)}])},
        fixed=("gpt",),
    ),
    Case(
        "build_pretrained",
        lambda: {"settings": CONFIG, "params": {}},
        {"settings": WRONG_CONFIG},
    ),
    Case(
        "download_and_load_gpt2",
        lambda: {"model_size": "125M", "models_dir": "no/such/folder"},
        {"model_size": st.sampled_from(["125M", "", "gpt2"])},
        fixed=("models_dir",),
    ),
    # Chapter 6
    Case("message_key", lambda: {"text": "Call me 4 now!"}),
    Case(
        "remove_duplicates",
        lambda: {"df": TABLE},
        {"df": st.sampled_from([TABLE[["Text"]], TABLE[:0]])},
    ),
    Case(
        "create_balanced_dataset",
        lambda: {"df": TABLE, "seed": 1},
        {"df": st.sampled_from([TABLE[:1], TABLE[:0]]), "seed": NEGATIVE},
        lambda df, _: df["Label"].value_counts().nunique() == 1,
    ),
    Case(
        "random_split",
        lambda: {"df": TABLE, "train_frac": 0.6, "validation_frac": 0.2, "seed": 1},
        {"train_frac": NO_SHARE, "validation_frac": NO_SHARE},
        parts_of("df"),
    ),
    Case(
        "encode_message",
        lambda: {"text": "a", "tokenizer": LETTERS, "max_length": 3, "pad_token_id": 0},
        {"max_length": BELOW_1},
        lambda ids, _: len(ids) > 0,
        ("tokenizer",),
    ),
    Case(
        "SpamDataset",
        lambda: {"csv_file": TABLE, "tokenizer": LETTERS, "max_length": 3},
        {"csv_file": NO_FILE | st.just(TABLE[:1]), "max_length": BELOW_1},
        lambda d, _: len(d) == len(d.labels) > 0,
        ("tokenizer",),
    ),
    Case(
        "LengthGroupedSampler",
        lambda: {"lengths": [3, 1, 2], "batch_size": 2, "pool": 8},
        {"batch_size": BELOW_1, "pool": BELOW_1},
        lambda s, a: sorted(sum(s, [])) == list(range(len(a["lengths"]))),
    ),
    Case("last_real_position", lambda: {"ids": IDS, "pad_token_id": 0}),
    Case(
        "create_spam_loader",
        lambda: {
            "dataset": ch06.SpamDataset(TABLE, LETTERS, pad_token_id=0),
            **{"batch_size": 4, "shuffle": False},
        },
        {"batch_size": BELOW_1},
        batches,
        LOADERS,
    ),
    Case(
        "GPTClassifier",
        lambda: {"gpt": fresh(), "num_classes": 2, "pad_token_id": 0},
        {"num_classes": st.integers(-3, 1)},
        fixed=("gpt",),
    ),
    Case(
        "class_logits",
        lambda: {"model": classifier(), "inputs": IDS, "device": "cpu"},
        {"inputs": UNKNOWN_IDS | st.just(IDS[0])},
        fixed=MODEL_ONLY,
    ),
    Case(
        "calc_classification_loss",
        lambda: {
            **{"input_batch": IDS, "target_batch": torch.tensor([0, 1])},
            **{"model": classifier(), "device": "cpu"},
        },
        {"input_batch": UNKNOWN_IDS},
        finite,
        MODEL_ONLY,
    ),
    *(
        Case(
            name,
            lambda: {
                **{"data_loader": spam_loader(), "model": classifier()},
                **{"device": "cpu", "num_batches": 1},
            },
            {"num_batches": BELOW_1, "data_loader": st.just([])},
            check,
            MODEL_ONLY,
        )
        for name, check in (
            ("evaluate_classifier", lambda found, _: a_share(found[1], None)),
            ("calc_accuracy_loader", a_share),
        )
    ),
    Case(
        "frozen_features",
        lambda: {
            "classifier": classifier(),
            **{"data_loader": spam_loader(), "device": "cpu"},
        },
        fixed=("classifier", "device"),
    ),
    Case(
        "train_classifier_simple",
        lambda: {
            **{"model": classifier(), "train_loader": spam_loader()},
            **{"val_loader": spam_loader(), "optimizer": sgd(classifier())},
            **{"device": "cpu", "num_epochs": 1, "eval_freq": 1, "eval_iter": 1},
        },
        {"num_epochs": BELOW_1, "eval_freq": BELOW_1, "eval_iter": BELOW_1},
        curves,
        MODEL_ONLY + LOADERS,
    ),
    Case(
        "set_trainable",
        lambda: {"classifier": classifier(), "part": "head"},
        {"part": st.sampled_from(["", "last", "HEAD"])},
        lambda n, _: n > 0,
        ("classifier",),
    ),
    Case(
        "let_rate_fall",
        lambda: {"optimizer": sgd(fresh()), "num_steps": 3},
        {"num_steps": BELOW_1},
        fixed=("optimizer",),
    ),
    Case(
        "spam_probabilities",
        lambda: {
            **{"texts": ["a", "bc"], "model": classifier(), "tokenizer": LETTERS},
            **{"device": "cpu", "max_length": 3, "pad_token_id": 0, "batch_size": 2},
        },
        {"max_length": BELOW_1, "batch_size": BELOW_1},
        lambda p, a: len(p) == len(a["texts"]) and all(0 <= x <= 1 for x in p),
        MODEL_ONLY,
    ),
    Case(
        "classify_review",
        lambda: {
            **{"text": "a", "model": classifier(), "tokenizer": LETTERS},
            **{"device": "cpu", "max_length": 3, "pad_token_id": 0, "threshold": 0.5},
        },
        {"max_length": BELOW_1, "threshold": NO_SHARE},
        lambda found, _: found in ("spam", "not spam"),
        MODEL_ONLY,
    ),
    Case("load_classifier", lambda: {"path": ""}, {"path": NO_FILE}),
    Case(
        "load_sms", lambda: {"name": "sms-spam"}, {"name": st.sampled_from(["", "sms"])}
    ),
    Case(
        "create_loaders",
        lambda: {"parts": [TABLE] * 3, "batch_size": 4, "tokenizer": LETTERS},
        {"batch_size": BELOW_1},
        lambda loaders, a: len(loaders) == len(a["parts"]),
        ("tokenizer",),
    ),
    # Chapter 7
    Case(
        "load_instructions",
        lambda: {"name": "instructions"},
        {"name": st.sampled_from(["", "instruction"])},
    ),
    Case(
        "split_entries",
        lambda: {"entries": ENTRIES, "fractions": (0.5, 0.5), "seed": 1},
        {
            "fractions": st.sampled_from([(0.5, 0.6), (1.5, -0.5), (NAN, 0.5), (0.5,)]),
            "entries": st.just([ENTRY, ENTRY]),
        },
        parts_of("entries"),
    ),
    Case(
        "format_input",
        lambda: {"entry": ENTRY},
        {"entry": st.sampled_from([{}, {"instruction": " "}])},
    ),
    Case(
        "format_prompt",
        lambda: {"entry": ENTRY, "style": "chat"},
        {
            "entry": st.sampled_from([{}, {"instruction": " "}]),
            "style": st.sampled_from(["", "Chat", "llama"]),
        },
    ),
    Case("format_answer", lambda: {"output": "A pear.", "style": "chat"}),
    Case(
        "InstructionDataset",
        lambda: {"data": ENTRIES, "tokenizer": LETTERS, "style": "chat"},
        {
            "data": st.sampled_from([[{}], [ENTRY, {**ENTRY, "output": ""}]]),
            "style": st.sampled_from(["", "llama"]),
        },
        lambda d, a: len(d) == len(a["data"]),
        ("tokenizer",),
    ),
    Case(
        "custom_collate_fn",
        lambda: {"batch": [[1, 2], [3]], "allowed_max_length": 2, "device": "cpu"},
        {"batch": st.sampled_from([[], [[]]]), "allowed_max_length": BELOW_1},
        lambda pair, _: pair[0].shape == pair[1].shape,
    ),
    Case(
        "calc_response_loss",
        loss_arguments,
        {
            "input_batch": UNKNOWN_IDS,
            "target_batch": st.just(torch.full((2, 3), -100)),
        },
        finite,
        MODEL_ONLY,
    ),
    Case(
        "create_instruction_loader",
        lambda: {"dataset": answers_data(), "batch_size": 2, "shuffle": True},
        {"batch_size": BELOW_1},
        batches,
        LOADERS,
    ),
    Case(
        "evaluate_responses",
        lambda: {
            "model": speaker(),
            "loader": ch07.create_instruction_loader(answers_data(), 2),
            "device": "cpu",
        },
        {},
        finite,
        MODEL_ONLY + LOADERS,
    ),
    Case(
        "finetune",
        lambda: {
            **{"model": speaker(), "train_entries": ENTRIES[:2], "tokenizer": LETTERS},
            **{"val_entries": ENTRIES[:2], "style": "chat", "learning_rate": 1e-3},
            **{"batch_size": 2, "num_epochs": 1, "seed": 1},
        },
        {
            "train_entries": st.sampled_from([[], [{}]]),
            "val_entries": st.just([]),
            "style": st.sampled_from(["", "llama"]),
            "learning_rate": st.sampled_from([-1.0, NAN]),
            "batch_size": BELOW_1,
            "num_epochs": BELOW_1,
        },
        lambda found, _: len(found[1]) > 1,
        MODEL_ONLY,
    ),
    Case(
        "generate_answers",
        lambda: {
            **{"model": gpt(64), "entries": ENTRIES[:2], "tokenizer": LETTERS},
            **{"max_new_tokens": 2, "style": "chat", "batch_size": 2},
        },
        {
            "max_new_tokens": BELOW_1 | st.just(64),
            "style": st.sampled_from(["", "llama"]),
            "batch_size": BELOW_1,
        },
        answers,
        MODEL_ONLY,
    ),
    Case("normalise", lambda: {"text": "It's 6,000.", "kind": ""}),
    Case("exact_match", lambda: {"answer": "A.", "reference": "a", "kind": ""}),
    Case("token_f1", lambda: {"answer": "A b", "reference": "a"}, {}, a_share),
    Case(
        "load_instructed",
        lambda: {"path": "", "model": gpt()},
        {"path": NO_FILE},
        fixed=("model",),
    ),
    Case("fours_in", lambda: {"text": "a b c d e"}),
    Case("repeated_fours", lambda: {"story": "a b c d a b c d"}),
    Case("has_ending", lambda: {"story": "The end."}),
    Case("uses_word", lambda: {"word": "kite", "story": "Two kites."}),
    Case("judge_prompt", lambda: {"entry": ENTRY, "answer": "A pear."}),
    Case(
        "query_model",
        lambda: {"prompt": "a", "url": "http://127.0.0.1:9", "attempts": 1},
        {"url": st.sampled_from(["http://127.0.0.1:9", "127.0.0.1:9/x"])},
        fixed=("attempts",),
    ),
    Case(
        "generate_model_scores",
        lambda: {
            "json_data": [{**ENTRY, "model_response": "A pear."}],
            **{"json_key": "model_response", "ask": lambda prompt: "70"},
        },
        {
            "json_data": st.just([{"instruction": "a"}]),
            "json_key": st.sampled_from(["", "answer"]),
        },
        lambda scores, a: len(scores) == len(a["json_data"]),
        ("ask",),
    ),
]
NOT_CALLED = {
    # constants, and types of settings
    *("END_OF_TEXT", "END_OF_TEXT_ID", "UNKNOWN", "GPTConfig", "GPT_CONFIG_124M"),
    *("GPT2_CONFIGS", "GPT2_REPOSITORIES", "LABELS", "Verdict"),
    # nothing to give, or a device only
    *("get_tokenizer", "load_base", "load_base_tokenizer"),
    # that draws, writes, or passes the same arguments on
    *("plot_losses", "save_checkpoint", "save_gpt2_folder", "create_spam_loaders"),
    # a part of `finetune`; a part of `generate_answers`
    *("train_on_responses", "answer_together"),
}


def public_names():
    """What chapters 2 to 7 offer."""
    found = set()
    for chapter in CHAPTERS:
        names = getattr(chapter, "__all__", vars(chapter))
        found.update(name for name in names if not name.startswith("_"))
    return found


def test_every_public_function_is_in_the_table():
    named = {case.name.split(".")[0] for case in CASES}
    assert public_names() - named - NOT_CALLED == set()
    assert named | NOT_CALLED <= public_names()


class Hang(BaseException):
    """A call has not come back."""


@contextlib.contextmanager
def within(seconds):
    """Break off what takes longer, where the system can."""

    def stop(*details):
        raise Hang(f"no result after {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def outcome(case, arguments):
    """The result of a call, or its error, and nothing printed."""
    with within(60), contextlib.redirect_stdout(io.StringIO()):
        try:
            result = case.call(arguments)
            right = case.check(result, arguments)
        except Exception as error:
            return None, error
    assert right, f"{arguments} gave {result!r}"
    return result, None


def words_of(value):
    """By which words a message may name a value."""
    if isinstance(value, torch.Tensor):
        numbers = {str(i) for i in value.flatten().tolist()}
        return {str(tuple(value.shape)), str(value.shape[-1]), *numbers}
    if isinstance(value, dict | list | tuple):
        inner = value.values() if isinstance(value, dict) else value
        found = {str(value)} | ({str(len(value))} if value == [] else set())
        return found.union(*map(words_of, inner))
    return {str(value), repr(value)}


OTHER_WORDS = {  # what a message may call an argument
    "df": ["table", "messages"],
    "csv_file": ["table", "messages"],
    "data_loader": ["loader"],
    "params": ["weights"],
    "data": ["entry"],
    "train_entries": ["entry"],
}


def rightly_named(error, argument, value):
    text = str(error).casefold().replace("_", " ")
    names = {argument, argument.removesuffix("_batch"), argument.rstrip("s")}
    words = {*names, *OTHER_WORDS.get(argument, ()), *words_of(value)} - {""}
    return any(word.casefold().replace("_", " ") in text for word in words)


NAMED = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.wrong],
    ids=lambda case: case.name,
)
def test_a_wrong_value_is_an_error_that_names_it(case):
    @FUZZ
    @given(st.data())
    def fuzz(data):
        argument = data.draw(st.sampled_from(sorted(case.wrong)))
        value = data.draw(case.wrong[argument])
        found, error = outcome(case, {**case.valid(), argument: value})
        calls["wrong values"] += 1
        assert error is not None, f"{argument}={value!r} gave {found!r}"
        kinds = ValueError | KeyError | IndexError | OSError
        assert isinstance(error, kinds), f"{argument}={value!r}: {error!r}"
        assert rightly_named(error, argument, value), f"{argument}={value!r}: {error!r}"

    fuzz()


@pytest.mark.filterwarnings("ignore")
@NAMED
def test_anything_at_all_gives_no_wrong_result_and_no_hang(case):
    arguments = case.valid()
    open_to = sorted(set(arguments) - set(case.fixed))
    _, error = outcome(case, arguments)
    if error is not None:
        assert isinstance(error, OSError | ValueError), repr(error)  # there is no file
    if not open_to:
        return

    @FUZZ
    @given(st.data())
    def fuzz(data):
        argument = data.draw(st.sampled_from(open_to))
        value = data.draw(ANYTHING)
        _, error = outcome(case, {**case.valid(), argument: value})
        what = f"{argument}={value!r}"
        assert not isinstance(error, MemoryError | RecursionError | SystemError), what
        calls["results" if error is None else type(error).__name__] += 1

    fuzz()


def test_what_it_came_to():
    """Printed with `pytest -s`; the table of docs/reliability.md has the numbers."""
    print(f"\n{calls.total()} calls: {dict(calls.most_common())}")
