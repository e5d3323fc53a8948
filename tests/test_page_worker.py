"""The page's worker, in V8, between stand-ins for what a browser gives it."""

import json
from types import SimpleNamespace

import pytest
import torch
from models import TINY, random_gpt
from py_mini_racer import MiniRacer
from test_page import SHOWN, in_int8

from shared.ch05 import (
    generate,
    load_storyteller,
)
from shared.ch06 import GPTClassifier, spam_probabilities
from shared.ch07 import generate_answers
from shared.page import build_page

# A browser's channel, decoder and timer; what is posted is kept.
BROWSER = """
const posted = [];
globalThis.postMessage = message => posted.push(JSON.parse(JSON.stringify(message)));
globalThis.setTimeout = resolve => Promise.resolve().then(resolve);
class MessageChannel {
    constructor() {
        this.port1 = {};
        const arrive = () => this.port1.onmessage();
        this.port2 = {postMessage: () => Promise.resolve().then(arrive)};
    }
}
class TextDecoder {
    constructor() { this.bytes = []; }
    decode(bytes) {
        this.bytes.push(...bytes);
        try {
            const text = decodeURIComponent(this.bytes.map(
                byte => "%" + byte.toString(16).padStart(2, "0")).join(""));
            this.bytes = [];
            return text;
        } catch { return ""; }
    }
}
var onmessage;
"""
GREEDY = {"temperature": 0, "top_k": 0, "top_p": 0, "seed": 1}
ZOE = "Once upon a time there was a fox named Zoe"


class Worker:
    """The worker of a page, to which one can send messages."""

    def __init__(self, page, cut=None):
        parts = dict(SHOWN.findall(page))
        self.v8 = MiniRacer()
        self.v8.eval(BROWSER + parts["engine"])
        weights = parts["weights"][:cut]
        self.loaded = self.send(
            do="load", info=json.loads(parts["info"]), weights=weights
        )

    def send(self, **message):
        """What the worker answers to a message."""
        self.v8.call(
            "(data => { posted.length = 0; onmessage({data}); return 1; })", message
        )
        return json.loads(self.v8.eval("JSON.stringify(posted)"))


@pytest.fixture(scope="module")
def teller():
    """The storyteller as its page has it, its tokenizer, and the worker."""
    model, tokenizer = load_storyteller()
    worker = Worker(build_page(model, tokenizer))
    yield SimpleNamespace(model=in_int8(model), tokenizer=tokenizer, worker=worker)
    worker.v8.close()


def tiny(**changes):
    return random_gpt({**TINY, "vocab_size": 1000, "context_length": 64, **changes})


def test_it_tells_the_text_that_python_tells(teller):
    found = teller.worker.send(do="tell", job=1, text=ZOE, settings=GREEDY, n=50)
    assert teller.worker.loaded == [{"is": "ready"}]
    begun = next(message for message in found if message["is"] == "begun")
    end = teller.tokenizer.eot_token
    ids = [end, *teller.tokenizer.encode_ordinary(ZOE)]
    assert begun["ids"] == ids and "".join(begun["pieces"]) == ZOE
    expected = generate(teller.model, torch.tensor([ids]), 50, 512)[0, len(ids) :]
    drawn = [message for message in found if message["is"] == "token"]
    assert [message["id"] for message in drawn] == expected.tolist()
    text = "".join(message["piece"] for message in drawn)
    assert text == teller.tokenizer.decode(expected.tolist())
    assert found[-1]["is"] == "done" and found[-1]["why"] == "length"
    for message in drawn:  # without a temperature, the longest bar is drawn
        shares = [bar["share"] for bar in message["bars"]]
        assert message["bars"][0]["id"] == message["id"] and len(shares) == 8
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1.0001


def test_it_ends_where_the_model_ends(teller):
    found = teller.worker.send(do="tell", job=2, text=ZOE, settings=GREEDY, n=600)
    done = found[-1]
    assert done["why"] == "end" and 20 < done["told"] < 500
    assert done["bars"][0]["text"] == "(the end)"


def test_it_goes_on_from_another_token(teller):
    ids = [teller.tokenizer.eot_token, *teller.tokenizer.encode_ordinary(ZOE + " was")]
    found = teller.worker.send(do="tell", job=3, ids=ids, settings=GREEDY, n=5)
    expected = generate(teller.model, torch.tensor([ids]), 5, 512)[0, len(ids) :]
    assert [m["id"] for m in found if m["is"] == "token"] == expected.tolist()


def test_the_same_seed_tells_the_same(teller):
    def told(seed):
        settings = {"temperature": 1, "top_k": 20, "top_p": 0.95, "seed": seed}
        found = teller.worker.send(do="tell", job=4, text=ZOE, settings=settings, n=15)
        return [message["id"] for message in found if message["is"] == "token"]

    assert told(1) == told(1) != told(2)


def test_stop_and_another_job_end_a_job(teller):
    message = {"do": "tell", "job": 5, "text": ZOE, "settings": GREEDY, "n": 300}
    # V8 without a browser does all waiting work at once, so `stop` comes first here
    teller.worker.v8.eval(
        "const usual = model.read.bind(model); let reads = 0;"
        "model.read = id => { if (++reads === 20) current = 99; usual(id); };"
    )
    found = teller.worker.send(**message)
    teller.worker.v8.eval("delete model.read;")
    assert found[-1]["why"] == "stop" and found[-1]["told"] <= 20


def test_looks_at_a_token_that_was_chosen(teller):
    teller.worker.send(do="tell", job=6, text=ZOE, settings=GREEDY, n=10)
    (found,) = teller.worker.send(do="bars", position=5, skipped=0)
    ids = teller.worker.v8.eval("JSON.stringify(model.ids)")
    with torch.no_grad():
        probs = teller.model(torch.tensor([json.loads(ids)]))[0, 4].softmax(-1)
    best = probs.topk(8)
    assert [bar["id"] for bar in found["bars"]] == best.indices.tolist()
    shares = [bar["share"] for bar in found["bars"]]
    assert shares == pytest.approx(best.values.tolist(), abs=1e-4)
    (first,) = teller.worker.send(do="bars", position=0, skipped=0)
    assert first["bars"] == []
    look = {"do": "attention", "position": 9, "skipped": 0, "block": 1, "head": 2}
    (seen,) = teller.worker.send(**look)
    att = teller.model.trf_blocks[1].att
    with torch.no_grad():
        x = teller.model.tok_emb(torch.tensor([json.loads(ids)[:10]]))
        x = x + teller.model.pos_emb(torch.arange(10))
        x = teller.model.trf_blocks[1].norm1(teller.model.trf_blocks[0](x))
        D = x.shape[-1] // teller.model.cfg["n_heads"]
        queries, keys = (
            part(x)[0, :, 2 * D : 3 * D] for part in (att.W_query, att.W_key)
        )
        expected = (queries[-1] @ keys.T / D**0.5).softmax(-1)
    assert seen["weights"] == pytest.approx(expected.tolist(), abs=1e-4)
    (none,) = teller.worker.send(**look | {"position": 600})
    assert none["weights"] == []


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "\x00", "日本", "<|endoftext|>", "\U0001f600"]
)
def test_odd_beginnings(teller, text):
    found = teller.worker.send(do="tell", job=7, text=text, settings=GREEDY, n=3)
    begun = next(message for message in found if message["is"] == "begun")
    assert "".join(begun["pieces"]) == text
    assert found[-1]["is"] == "done"


def test_a_story_longer_than_the_context_goes_on_with_its_later_half():
    model, tokenizer = tiny(context_length=16), load_storyteller()[1]
    worker = Worker(build_page(model, tokenizer))
    found = worker.send(do="tell", job=1, text="one two " * 20, settings=GREEDY, n=30)
    begun = next(message for message in found if message["is"] == "begun")
    tokens = [message for message in found if message["is"] == "token"]
    assert begun["skipped"] == len(begun["ids"]) - 8
    assert len(tokens) == 30 and found[-1]["why"] in ("length", "end")
    ids, net = list(begun["ids"]), in_int8(model)
    for message in tokens:
        with torch.no_grad():
            logits = net(torch.tensor([ids[message["skipped"] :]]))[0, -1]
        assert message["id"] == logits.argmax()
        ids.append(message["id"])
    worker.v8.close()


@pytest.mark.parametrize("cut", [0, 1000, -4])
def test_a_page_that_was_cut_says_so(cut):
    tokenizer = load_storyteller()[1]
    worker = Worker(build_page(tiny(), tokenizer), cut)
    (error,) = worker.loaded
    assert error["is"] == "error" and "This file is damaged" in error["text"]
    worker.v8.close()


def test_a_page_with_changed_weights_says_so():
    page = build_page(tiny(), load_storyteller()[1])
    i = page.index('id="weights">') + 500
    other = "A" if page[i] != "A" else "B"
    (error,) = Worker(page[:i] + other + page[i + 1 :]).loaded
    assert "but some have changed" in error["text"]


@pytest.mark.parametrize("style", ["alpaca", "chat", "plain"])
def test_answers_are_those_of_chapter_7(style):
    model, tokenizer = tiny(context_length=160), load_storyteller()[1]
    model.cfg = {**model.cfg, "prompt_style": style}
    worker = Worker(build_page(model, tokenizer))
    for entry in (
        {"instruction": "Where is the kite?", "input": "The kite is in the barn."},
        {"instruction": "Tell a story.", "input": ""},
    ):
        (expected,) = generate_answers(in_int8(model), [entry], tokenizer, 20)
        ask = {"text": entry["instruction"], "about": entry["input"]}
        found = worker.send(do="tell", job=1, settings=GREEDY, n=20, **ask)
        answer = "".join(m["piece"] for m in found if m["is"] == "token")
        begun = next(message for message in found if message["is"] == "begun")
        assert begun["ids"][0] != tokenizer.eot_token
        new = [message["id"] for message in found if message["is"] == "token"]
        assert tokenizer.decode(new).strip() == expected and answer
    found = worker.send(do="tell", job=2, settings=GREEDY, n=9, text="why " * 99)
    assert found[-1]["is"] == "error" and "Shorten it" in found[-1]["text"]
    found = worker.send(do="tell", job=3, settings=GREEDY, n=500, text="Why?")
    assert found[-1]["why"] in ("room", "end")
    worker.v8.close()


def test_verdicts_are_those_of_chapter_6_and_words_are_left_out():
    tokenizer = load_storyteller()[1]
    classifier = GPTClassifier(tiny(), 3, tokenizer.eot_token).eval()
    torch.nn.init.normal_(classifier.gpt.out_head.bias)
    labels = ["ham", "spam", "<b>other</b>"]
    worker = Worker(build_page(classifier, tokenizer, labels=labels))
    exact = in_int8(classifier)
    text = "The fox went to the mill and found a red kite. " * 5  # too long to be read
    found = worker.send(do="judge", job=1, text=text)
    verdict, *moved, done = [m for m in found if m["is"] != "reading"]

    def odds(text):
        ids = torch.tensor([tokenizer.encode_ordinary(text)[:64]])
        with torch.no_grad():
            logits = exact(ids)[0].double()
        others = [i for i in range(3) if i != verdict["label"]]
        return (logits[verdict["label"]] - logits[others].logsumexp(0)).item()

    assert done == {"is": "done", "job": 1, "why": "judged"}
    assert verdict["read"] == 64 < verdict["tokens"]
    with pytest.warns(UserWarning, match="not read"):
        expected = spam_probabilities([text], exact, tokenizer, "cpu").item()
    assert verdict["probs"][1] == pytest.approx(expected, abs=1e-4)
    assert verdict["label"] == max(range(3), key=lambda i: verdict["probs"][i])
    runs = verdict["runs"]
    assert "".join(runs) == text and len(runs) == len(moved) <= 40
    for message in moved:
        i = message["i"]
        without = "".join(runs[:i] + runs[i + 1 :])
        assert message["by"] == pytest.approx(odds(text) - odds(without), abs=1e-3)
    assert any(abs(message["by"]) > 0.01 for message in moved)
    one = worker.send(do="judge", job=2, text="kite")
    assert [m["is"] for m in one][-1] == "done"  # without its word nothing is left
    worker.v8.close()
