"""Every public function of chapters 2 to 7, called with what it should not get.

Two tables say which values are right and wrong for an argument of some name, a third
what else there is to say of each function. A wrong value must raise an error that names
it. Anything else, whatever its type, may raise too, but what is returned must be right,
and must not take for ever.
"""

import contextlib
import inspect
import io
import math
import signal
import types
from collections import Counter
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
TRAINING = {"text": "hug pug hugs", "vocab_size": 260}


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
    tokenizer.train(**TRAINING)
    return tokenizer


@cache
def simple_bpe():
    tokenizer = ch02.BPETokenizerSimple()
    tokenizer.train(**TRAINING)
    return tokenizer


def windows():
    return DataLoader([(row[:-1], row[1:]) for row in IDS], batch_size=2)


def heads():
    return ch03.MultiHeadAttention(4, 6, 5, 0.0, 2)


def messages():
    return ch06.SpamDataset(TABLE, LETTERS, pad_token_id=0)


def spam_loader():
    return ch06.create_spam_loader(messages(), batch_size=4)


def answers_data():
    return ch07.InstructionDataset(ENTRIES[:2], LETTERS, True, "chat")


def loader_of(dataset):
    return ch07.create_instruction_loader(dataset, 2)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.0)


# --- What is true of results ----------------------------------------------------------


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


# --- The table ------------------------------------------------------------------------

# A right value for an argument of this name; a function makes one anew for each call.
VALID = {
    **{"text": TEXT, "txt": TEXT, "tokenizer": LETTERS, "ids": [0, 1], "path": ""},
    **{"d_in": 4, "d_out": 6, "context_length": 5, "num_heads": 2, "qkv_bias": True},
    **{"dropout": 0.0, "x": torch.ones(1, 2, 4), "emb_dim": 4, "cfg": CONFIG},
    **{"model": gpt, "gpt": fresh, "classifier": classifier, "device": "cpu"},
    **{"idx": IDS, "max_new_tokens": 2, "context_size": 8, "in_idx": IDS},
    **{"input_batch": IDS, "target_batch": IDS, "inputs": IDS, "token_ids": IDS[:1]},
    **{"data_loader": windows, "train_loader": windows, "val_loader": windows},
    **{"num_batches": 1, "num_epochs": 1, "eval_freq": 1, "eval_iter": 1},
    **{"optimizer": lambda: sgd(gpt()), "start_context": "a", "batch_size": 2},
    **{"logits": torch.eye(2, V), "temperature": 0.7, "top_k": 5, "top_p": 0.9},
    **{"params": {}, "settings": CONFIG, "folder": "", "max_length": 3, "stride": 3},
    **{"train_fraction": 0.8, "val_fraction": 0.1, "source_ids": [2, 3]},
    **{"train_frac": 0.6, "validation_frac": 0.2, "fractions": (0.5, 0.5), "seed": 1},
    **{"df": TABLE, "csv_file": TABLE, "pad_token_id": 0, "lengths": [3, 1, 2]},
    **{"pool": 8, "num_classes": 2, "part": "head", "num_steps": 3, "threshold": 0.5},
    **{"texts": ["a", "bc"], "parts": [TABLE] * 3, "shuffle": False},
    **{"entry": ENTRY, "entries": ENTRIES[:2], "style": "chat", "kind": ""},
    **{"data": ENTRIES, "output": "A pear.", "answer": "A b", "reference": "a"},
    **{"train_entries": ENTRIES[:2], "val_entries": ENTRIES[:2], "word": "kite"},
    **{"learning_rate": 1e-3, "batch": [[1, 2], [3]], "allowed_max_length": 2},
    **{"story": "Two kites flew a b c d and a b c d. The end.", "attempts": 1},
}
SHARES = ("dropout", "threshold", "train_fraction", "val_fraction", "train_frac")
COUNTS = ("batch_size", "stride", "max_length", "num_heads", "num_batches", "pool")
COUNTS += ("num_epochs", "eval_freq", "eval_iter", "num_steps", "allowed_max_length")
# Values that are wrong for an argument of this name.
WRONG = {
    **dict.fromkeys((*SHARES, "validation_frac"), NO_SHARE),
    **dict.fromkeys(COUNTS, BELOW_1),
    **dict.fromkeys(("path", "folder"), NO_FILE),
    **{"idx": NO_IDS | UNKNOWN_IDS, "input_batch": UNKNOWN_IDS},
    **{"max_new_tokens": NEGATIVE, "context_size": BELOW_1 | st.just(17)},
    "x": st.sampled_from([torch.ones(2, 4), torch.ones(1, 6, 4)]),
    "temperature": st.sampled_from([-1.0, INF, NAN]),
    "top_k": BELOW_1 | st.just(V + 1),
    "top_p": st.sampled_from([0.0, -0.1, 1.01, NAN]),
    "style": st.sampled_from(["", "Chat", "llama"]),
    "num_classes": st.integers(-3, 1),
    "part": st.sampled_from(["", "last", "HEAD"]),
}
# Arguments that only the caller's own program is to blame for.
FIXED = {"model", "tokenizer", "optimizer", "device", "gpt", "classifier", "logits"}
FIXED |= {"attention", "ask", "attempts", "models_dir", "dataset"}
NOT = st.nothing()  # no value of this argument is wrong


class Case:
    """A public function, how to call it rightly, and how wrongly.

    Args:
        name: of the function, or of a class and its method.
        check: what is true of a result, given it and the arguments.
        wrong: strategies of wrong values, by argument, besides those of `WRONG`.
        fixed: arguments that get no other values, besides those of `FIXED`.
        of: makes the object whose method it is.
        values: right values, besides those of `VALID`; `...` leaves an argument out.
    """

    def __init__(self, name, check=None, /, wrong=(), fixed=(), of=None, **values):
        self.name, self.check = name, check or (lambda result, arguments: True)
        owner, _, method = name.partition(".")
        self.function = next(getattr(c, owner) for c in CHAPTERS if hasattr(c, owner))
        described = getattr(self.function, method) if method else self.function
        self.of, self.method = of, method
        known = {**VALID, **values}
        names = [n for n in inspect.signature(described).parameters if n in known]
        self.values = {n: known[n] for n in names if known[n] is not ...}
        wrong = {**WRONG, **dict(wrong)}
        self.wrong = {n: wrong[n] for n in self.values if wrong.get(n, NOT) is not NOT}
        self.fixed = {*FIXED, *fixed}

    def valid(self):
        """Arguments that are right, by name."""
        makers = types.FunctionType | type(gpt)
        return {n: v() if isinstance(v, makers) else v for n, v in self.values.items()}

    def call(self, arguments):
        function = getattr(self.of(), self.method) if self.of else self.function
        return function(**arguments)


def changed(key, *values):
    """Settings of a model, one of them wrong."""
    return st.sampled_from([{**CONFIG, key: value} for value in values])


WRONG_BLOCK = changed("n_heads", 0, 5) | changed("drop_rate", 1.0, -0.1, NAN)
WRONG_CONFIG = WRONG_BLOCK | changed("emb_dim", 0, -24) | changed("n_layers", 0)
LOADERS = ("data_loader", "train_loader", "val_loader", "loader")
NO_TOKENS = st.lists(NEGATIVE | st.just(999), min_size=1, max_size=3)
SPAM = {
    **{"model": classifier, "optimizer": lambda: sgd(classifier())},
    **dict.fromkeys(("train_loader", "val_loader", "data_loader"), spam_loader),
    **{"pad_token_id": 0, "target_batch": torch.tensor([0, 1])},
}
EMPTY = {"data_loader": st.just([])}
NO_LIMIT = {"allowed_max_length": None, "wrong": {"allowed_max_length": NOT}}
NO_ENTRY = st.sampled_from([{}, {"instruction": " "}])

CASES = [
    # Chapter 2
    Case("split_text"),
    Case("build_vocabulary", tokens=["a", "b"], special_tokens=["c"]),
    Case(
        "SimpleTokenizerV1.encode",
        wrong={"text": st.sampled_from(["It rained", "zebra"])},
        of=lambda: ch02.SimpleTokenizerV1(VOCAB),
    ),
    Case(
        "SimpleTokenizerV1.decode",
        wrong={"ids": NO_TOKENS},
        of=lambda: ch02.SimpleTokenizerV1(VOCAB),
    ),
    Case(
        "SimpleTokenizerV2",
        wrong={"vocab": st.sampled_from([{}, {"a": 0}])},
        vocab=VOCAB,
    ),
    Case(
        "SimpleTokenizerV2.encode",
        lambda ids, _: all(0 <= i < len(VOCAB) for i in ids),
        of=lambda: ch02.SimpleTokenizerV2(VOCAB),
        text="It rained",
    ),
    Case(
        "GPTDatasetV1",
        lambda d, a: all(
            torch.equal(x[1:], y[:-1]) and len(x) == a["max_length"] for x, y in d
        ),
        {"max_length": BELOW_1 | st.just(len(TEXT))},
    ),
    Case(
        "create_dataloader_v1",
        batches,
        dict.fromkeys(("batch_size", "max_length"), BELOW_1 | st.just(999)),
        shuffle=...,
    ),
    Case("BPETokenizerSimple.train", of=ch02.BPETokenizerSimple, **TRAINING),
    Case(
        "BPETokenizerSimple.encode",
        lambda ids, a: simple_bpe().decode(ids) == a["text"],
        of=simple_bpe,
    ),
    Case("BPETokenizerSimple.decode", of=simple_bpe),
    Case(
        "BPETokenizer.train",
        wrong={
            "vocab_size": st.integers(-3, 256) | st.just(9999),
            "text": st.just(""),
        },
        of=ch02.BPETokenizer,
        **TRAINING,
    ),
    Case(
        "BPETokenizer.encode",
        lambda ids, a: trained_bpe().decode(ids) == a["text"],
        {"text": st.sampled_from(["a<|endoftext|>b", "a\ud800"])},
        of=trained_bpe,
        allowed_special=set(),
    ),
    Case("BPETokenizer.decode", wrong={"ids": NO_TOKENS}, of=trained_bpe),
    Case("BPETokenizer.load", of=trained_bpe),
    # Chapter 3
    Case("SelfAttention_v1"),
    Case("SelfAttention_v2"),
    Case("CausalAttention", wrong={"dropout": NO_SHARE | st.just(1.0)}),
    Case("MultiHeadAttentionWrapper"),
    Case(
        "MultiHeadAttention",
        lambda layer, _: layer.num_heads * layer.head_dim == layer.d_out,
        {"num_heads": BELOW_1 | st.sampled_from([4, 5, 7])},
    ),
    Case("MultiHeadAttention.forward", of=heads),
    Case("KVCache"),
    Case("attention_weights", attention=heads),
    # Chapter 4
    Case("LayerNorm"),
    Case("GELU"),
    Case("FeedForward"),
    Case("TransformerBlock", wrong={"cfg": WRONG_BLOCK}),
    Case("GPTModel", wrong={"cfg": WRONG_CONFIG}),
    Case("check_config", wrong={"cfg": WRONG_CONFIG}),
    Case("check_prompt", wrong={"idx": NO_IDS}),
    Case(
        "GPTModel.forward",
        wrong={"in_idx": NO_IDS | UNKNOWN_IDS | st.just(torch.ones(1, 17).long())},
        of=gpt,
    ),
    Case("GPTModel.new_cache", wrong={"max_length": BELOW_1 | st.just(17)}, of=gpt),
    Case("next_token_logits"),
    Case("generate_text_simple", continues),
    # Chapter 5
    Case("text_to_token_ids", tokenizer=ch02.get_tokenizer),
    Case(
        "token_ids_to_text",
        wrong={"token_ids": st.just(IDS)},
        tokenizer=ch02.get_tokenizer,
    ),
    Case(
        "calc_loss_batch",
        finite,
        {"input_batch": NO_IDS | UNKNOWN_IDS, "target_batch": UNKNOWN_IDS},
    ),
    Case("train_val_test_split", lambda parts, a: "".join(parts) == a["text"]),
    Case("evaluating"),
    Case("in_order", loader=windows),
    Case("calc_loss_loader", finite, EMPTY),
    Case(
        "evaluate_model",
        lambda found, _: all(map(math.isfinite, found)),
        {"val_loader": st.just([])},
    ),
    Case("generate_and_print_sample"),
    Case("train_model_simple", curves, fixed=LOADERS),
    Case("longest_verbatim_run"),
    Case("next_token_probabilities", sums_to_1),
    Case("generate", continues, eos_id=None),
    Case("TensorFile"),
    Case("read_checkpoint"),
    Case("load_checkpoint", optimizer=...),
    Case("model_from_checkpoint"),
    Case("read_gpt2_folder"),
    Case(
        "load_weights_into_gpt",
        wrong={"params": st.sampled_from([{}, {"wte.weight": torch.ones(2, 2)}])},
    ),
    Case("build_pretrained", wrong={"settings": WRONG_CONFIG}),
    Case(
        "download_and_load_gpt2",
        wrong={"model_size": st.sampled_from(["125M", "", "gpt2"])},
        model_size="125M",
        models_dir="no/such/folder",
    ),
    # Chapter 6
    Case("message_key"),
    Case(
        "remove_duplicates",
        wrong={"df": st.sampled_from([TABLE[["Text"]], TABLE[:0]])},
    ),
    Case(
        "create_balanced_dataset",
        lambda df, _: df["Label"].value_counts().nunique() == 1,
        {"df": st.sampled_from([TABLE[:1], TABLE[:0]]), "seed": NEGATIVE},
    ),
    Case("random_split", parts_of("df")),
    Case("encode_message", lambda ids, _: len(ids) > 0, text="a"),
    Case(
        "SpamDataset",
        lambda d, _: len(d) == len(d.labels) > 0,
        {"csv_file": NO_FILE | st.just(TABLE[:1])},
    ),
    Case(
        "LengthGroupedSampler",
        lambda s, a: sorted(sum(s, [])) == list(range(len(a["lengths"]))),
    ),
    Case("last_real_position", ids=IDS),
    Case("create_spam_loader", batches, dataset=messages),
    Case("GPTClassifier"),
    Case("class_logits", wrong={"inputs": UNKNOWN_IDS | st.just(IDS[0])}, **SPAM),
    Case("calc_classification_loss", finite, **SPAM),
    Case("evaluate_classifier", lambda r, a: a_share(r[1], a), EMPTY, **SPAM),
    Case("calc_accuracy_loader", a_share, EMPTY, **SPAM),
    Case("frozen_features", **SPAM),
    Case("train_classifier_simple", curves, fixed=LOADERS, **SPAM),
    Case("set_trainable", lambda n, _: n > 0),
    Case("let_rate_fall", optimizer=lambda: sgd(fresh())),
    Case(
        "spam_probabilities",
        lambda p, a: len(p) == len(a["texts"]) and all(0 <= x <= 1 for x in p),
        **SPAM,
    ),
    Case("classify_review", lambda r, _: r in ("spam", "not spam"), **SPAM, text="a"),
    Case("load_classifier"),
    Case("load_sms", wrong={"name": st.sampled_from(["", "sms"])}, name="sms-spam"),
    Case("create_loaders", lambda loaders, a: len(loaders) == len(a["parts"])),
    # Chapter 7
    Case(
        "load_instructions",
        wrong={"name": st.sampled_from(["", "instruction"])},
        name="instructions",
    ),
    Case(
        "split_entries",
        parts_of("entries"),
        {
            "fractions": st.sampled_from([(0.5, 0.6), (1.5, -0.5), (NAN, 0.5), (0.5,)]),
            "entries": st.just([ENTRY, ENTRY]),
        },
        entries=ENTRIES,
    ),
    Case("format_input", wrong={"entry": NO_ENTRY}),
    Case("format_prompt", wrong={"entry": NO_ENTRY}),
    Case("format_answer", wrong={"style": NOT}),
    Case(
        "InstructionDataset",
        lambda d, a: len(d) == len(a["data"]),
        {"data": st.sampled_from([[{}], [ENTRY, {**ENTRY, "output": ""}]])},
    ),
    Case(
        "custom_collate_fn",
        lambda pair, _: pair[0].shape == pair[1].shape,
        {"batch": st.sampled_from([[], [[]]])},
        fixed=("pad_token_id",),
    ),
    Case(
        "calc_response_loss",
        finite,
        {"target_batch": st.just(torch.full((2, 3), -100))},
    ),
    Case("create_instruction_loader", batches, dataset=answers_data, **NO_LIMIT),
    Case(
        "evaluate_responses",
        finite,
        fixed=LOADERS,
        model=speaker,
        loader=lambda: loader_of(answers_data()),
    ),
    Case(
        "finetune",
        lambda found, _: len(found[1]) > 1,
        {
            "train_entries": st.sampled_from([[], [{}]]),
            "val_entries": st.just([]),
            "learning_rate": st.sampled_from([-1.0, NAN]),
        },
        model=speaker,
    ),
    Case(
        "generate_answers",
        lambda found, a: len(found) == len(a["entries"]) and all(found),
        {"max_new_tokens": BELOW_1 | st.just(64)},
        model=lambda: gpt(64),
    ),
    Case("normalise", text="It's 6,000."),
    Case("exact_match"),
    Case("token_f1", a_share),
    Case("load_instructed"),
    Case("fours_in"),
    Case("repeated_fours"),
    Case("has_ending"),
    Case("uses_word"),
    Case("judge_prompt"),
    Case(
        "query_model",
        wrong={"url": st.sampled_from(["http://127.0.0.1:9", "127.0.0.1:9/x"])},
        model=...,
        prompt="a",
        url="http://127.0.0.1:9",
    ),
    Case(
        "generate_model_scores",
        lambda scores, a: len(scores) == len(a["json_data"]),
        {
            "json_data": st.just([{"instruction": "a"}]),
            "json_key": st.sampled_from(["", "answer"]),
        },
        model=...,
        path=...,
        json_data=[{**ENTRY, "model_response": "A pear."}],
        json_key="model_response",
        ask=lambda: lambda prompt: "70",
    ),
]
NOT_CALLED = {
    # constants, and types of settings
    *("END_OF_TEXT", "END_OF_TEXT_ID", "UNKNOWN", "GPTConfig", "GPT_CONFIG_124M"),
    *("GPT2_CONFIGS", "GPT2_REPOSITORIES", "LABELS", "Verdict"),
    # nothing to give, or a device only
    *("get_tokenizer", "load_base", "load_base_tokenizer", "load_storyteller"),
    *("storyteller_folder", "STORYTELLER"),
    # the storyteller's training, called with the course's own world: test_storyteller
    *("tale_batches", "learn_to_tell", "new_storyteller", "keep_storyteller"),
    *("go_on", "Muon"),
    # chapter 4: as a new model begins; test_ch04_gpt_model
    "init_like_gpt2",
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
