"""Words that a request asks for count more often where the story first has them."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.asked import AskedWords
from pretrain.hardware import Workers
from pretrain.objective import Objective
from pretrain.prepare import prepare_source
from pretrain.run import Pretraining
from pretrain.settings import ModelSettings, Settings
from pretrain.stories import Chance, Requests
from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel
from shared.ch05 import load_base_tokenizer
from shared.ch09 import request
from tests.models import TINY


@pytest.fixture(scope="module", params=["own tokens", "GPT-2's"])
def tokenizer(request):
    return load_base_tokenizer() if request.param == "own tokens" else get_tokenizer()


def heavier(tokenizer, text: str) -> list[str]:
    """The parts of a text whose tokens count more, as text."""
    ids = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    weights = AskedWords(tokenizer, 4.0).weights(np.array(ids))
    assert weights.shape == (len(ids) - 1,) and set(weights) <= {1.0, 4.0}
    pieces, before = [], 1.0
    for token, weight in zip(ids[1:], weights, strict=True):
        if weight == 4:
            piece = tokenizer.decode([token])
            if before == 4 and not piece.startswith(" "):
                pieces[-1] += piece
            else:
                pieces.append(piece)
        before = weight
    return [piece.strip() for piece in pieces]


ASK = "Write a story with the words kite, brave and climb.\n\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (ASK + "Tim climbed up. The kite, the kite! Climb!", ["climbed", "kite"]),
        (ASK + "A bravely hidden kitten.", []),
        ("Tim had a kite.", []),
        (ASK + "A kite.<|endoftext|>Brave Ann can climb.", ["kite"]),
        ("with the words kite and brave.\n\nA brave kite.", []),
        (
            "Tell a story about a little fox named Ben.\n\nBen, a fox, ran.",
            ["Ben", "fox"],
        ),
        (ASK + "One kite.<|endoftext|>" + ASK + "Two kites.", ["kite", "kites"]),
        (ASK, []),
        (ASK + "A naïve 🐸 saw a kite", ["kite"]),
        ("Write a story with the words run, run and run.\n\nHe ran.", ["ran"]),
    ],
)
def test_the_first_time_of_each_word_counts_more(tokenizer, text, wanted):
    assert heavier(tokenizer, text) == wanted


def test_the_wording_is_that_of_the_stories_and_of_chapter_9(tokenizer):
    """Another wording would silently make no word count more."""
    assert request(("kite", "brave", "climb")) == ASK
    common = " ".join(map("".join, product("bdfgklmp", "aeiou", "nrstx", "aeiou")))
    story = "Once, a fox named Ben saw a kite, a ladder and a puddle."
    requests = Requests([*[f"{common} {common}"] * 5, *[story] * 6])
    for line in (requests.words(story, Chance(1)), requests.hero(story, Chance(1))):
        assert heavier(tokenizer, f"{line}\n\n{story}"), line


def test_weights_are_how_often_a_token_counts():
    """A token of weight 3 changes the loss as three tokens would, by their number."""
    torch.manual_seed(0)
    objective = Objective(GPTModel(TINY))
    ids = torch.randint(0, TINY["vocab_size"], (2, 7))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    weights = torch.ones(2, 6)
    plain = objective(inputs, targets)
    torch.testing.assert_close(objective(inputs, targets, weights=weights), plain)
    weights[1, 2] = 3.0
    logits = objective.gpt(inputs)[1, 2].double()
    one = logits.logsumexp(0) - logits[targets[1, 2]]
    heavier = objective(inputs, targets, weights=weights)
    torch.testing.assert_close(heavier.double(), plain.double() + 2 * one / 12)


def test_a_run_counts_the_words_of_its_own_texts(tmp_path):
    """The weights of a batch fit its targets, and the loss of a step is by them."""
    text = ASK + "Tim saw a kite. It was brave. It could climb and fly far away.\n"
    source = tmp_path / "stories.txt"
    source.write_text((text + "<|endoftext|>\n") * 20)
    prepare_source(source, tmp_path / "shards", held_out=0)
    model = {"vocab_size": 50257, "context_length": 32, "emb_dim": 8, "n_heads": 2}
    usual = {"max_steps": 1, "batch_size": 4, "warmup_steps": 0, "device": "cpu"}
    runs = [
        Pretraining(
            Settings(
                **{"shards": tmp_path / "shards", "run_folder": tmp_path / "run"},
                **{**usual, "asked_weight": weight, "precision": "fp32"},
                model=ModelSettings(**model, n_layers=1),
            ),
            Workers(0, 1, torch.device("cpu")),
        )
        for weight in (1.0, 5.0)
    ]
    assert len(runs[0].micro_batches()[0]) == 2
    ((inputs, targets, weights),) = runs[1].micro_batches()
    heavy = {runs[1].asked.pieces[i] for i in targets[weights == 5]}
    assert heavy == {" k", "ite", " brave", " climb"}
    with torch.no_grad():
        logits = runs[1].gpt(inputs)
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    plain, heavier = (float(run.train_step()[0]) for run in runs)
    assert plain == pytest.approx(float(each.mean()), rel=1e-5)
    assert heavier == pytest.approx(float((each * weights.flatten()).mean()), rel=1e-5)
    assert heavier > plain


def test_a_run_can_begin_each_sequence_with_a_document(tmp_path):
    source = tmp_path / "texts.txt"
    texts = [f"Text number {n} is about kites." for n in range(60)]
    source.write_text("".join(f"{text}\n<|endoftext|>\n" for text in texts))
    prepare_source(source, tmp_path / "shards", held_out=0)
    model = {"vocab_size": 50257, "context_length": 12, "emb_dim": 8, "n_heads": 2}
    run = Pretraining(
        Settings(
            **{"shards": tmp_path / "shards", "run_folder": tmp_path / "run"},
            **{"max_steps": 1, "batch_size": 16, "warmup_steps": 0, "device": "cpu"},
            **{"precision": "fp32", "from_beginnings": True},
            model=ModelSettings(**model, n_layers=1),
        ),
        Workers(0, 1, torch.device("cpu")),
    )
    ((inputs, _),) = run.micro_batches()
    starts = [get_tokenizer().decode(row.tolist()) for row in inputs]
    after_an_end = [start.startswith("<|endoftext|>") for start in starts]
    assert 4 <= sum(after_an_end) <= 12  # about every second one shows where it begins
    starts = [start.removeprefix("<|endoftext|>") for start in starts]
    assert all(start.startswith("Text number") for start in starts)
    assert len(set(starts)) == 16
