"""The ladder: what its numbers mean, and a record that survives bad days."""

import json
import math

import pytest
import torch
from models import village_tokenizer
from torch import nn

from experiments import ladder as program
from shared import ladder
from shared.ch04 import GPTModel
from shared.village import tell


@pytest.fixture(scope="module")
def tokenizer():
    return village_tokenizer(600)


@pytest.fixture(scope="module")
def gpt(tokenizer):
    torch.manual_seed(0)
    cfg = {"vocab_size": tokenizer.n_vocab, "context_length": 512, "emb_dim": 16}
    cfg |= {"n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}
    return GPTModel(cfg).eval()


class Oracle(nn.Module):
    """Knows some texts by heart: after the beginning of one, its next token is sure."""

    def __init__(self, tokenizer, texts, instead=()):
        super().__init__()
        end = ladder.end_of(tokenizer)
        self.known = [[end, *tokenizer.encode(text), end] for text in texts]
        self.cfg = {"vocab_size": tokenizer.n_vocab, "context_length": 512}
        self.weight = nn.Parameter(torch.zeros(1))
        self.instead = dict(instead)  # what it says for some tokens

    def forward(self, ids):
        logits = torch.full((*ids.shape, self.cfg["vocab_size"]), -50.0)
        logits[..., self.known[0][0]] = -90.0  # it ends nothing that it does not know
        for row, read in enumerate(ids.tolist()):
            for t in range(len(read)):
                for known in self.known:
                    if known[: t + 1] == read[: t + 1] and t + 1 < len(known):
                        right = known[t + 1]
                        logits[row, t, self.instead.get(right, right)] = 50.0
        return logits


def test_who_knows_the_tales_names_everything_right(tokenizer):
    some = ladder.exam(4)
    row = ladder.examine(Oracle(tokenizer, [x.text for x in some]), tokenizer, some)
    assert row["nats"] < 0.01  # not 0: tales may begin alike
    assert all(row[kind] == 1 for kind in ladder.KINDS)


def test_a_name_that_is_wrong_everywhere_costs_its_share_of_who(tokenizer):
    tale = next(x for x in ladder.exam(20) if any(k == "who" for k, *_ in x.marks))
    name = next(tale.text[a:b] for kind, a, b in tale.marks if kind == "who")
    first = tokenizer.encode(f" {name}")[0]
    wrong = Oracle(tokenizer, [tale.text], {first: 65})
    row = ladder.examine(wrong, tokenizer, [tale])
    named = [tale.text[a:b] == name for kind, a, b in tale.marks if kind == "who"]
    assert row["who"] == pytest.approx(1 - sum(named) / len(named))
    assert row["what"] == ladder.examine(wrong, tokenizer, [tale])["what"]


def test_an_even_guess_costs_ln_v_a_token(tokenizer, gpt):
    class Even(Oracle):
        def forward(self, ids):
            return torch.zeros(*ids.shape, tokenizer.n_vocab)

    some = ladder.exam(7)
    tokens = sum(len(tokenizer.encode(x.text)) + 1 for x in some)
    characters = sum(len(x.text) for x in some)
    measured = ladder.examine(Even(tokenizer, [""]), tokenizer, some)["nats"]
    assert measured == pytest.approx(tokens * math.log(tokenizer.n_vocab) / characters)


def test_each_mark_is_found_at_its_first_token(tokenizer):
    for tale in ladder.exam(30):
        ids, marks = ladder.encode_tale(tokenizer, tale)
        assert ids == tokenizer.encode(tale.text)
        assert len(marks) == len(tale.marks)
        for (kind, n), (same, start, _) in zip(
            marks, sorted(tale.marks, key=by_start), strict=True
        ):
            assert kind == same
            assert len(tokenizer.decode(ids[:n])) in (start, start - 1)


def by_start(mark):
    return mark[1]


def test_the_order_of_tales_and_the_size_of_batches_change_nothing(tokenizer, gpt):
    some = ladder.exam(9)
    one = ladder.examine(gpt, tokenizer, some, batch_size=4)
    other = ladder.examine(gpt, tokenizer, some[::-1], batch_size=9)
    assert one == pytest.approx(other, rel=1e-4)


def test_a_model_that_reads_too_little_is_refused(tokenizer, gpt):
    short = GPTModel({**gpt.cfg, "context_length": 64})
    with pytest.raises(ValueError, match="reads at most 64; make one with a longer"):
        ladder.examine(short, tokenizer, ladder.exam(2))
    with pytest.raises(ValueError, match="there is no tale"):
        ladder.examine(gpt, tokenizer, [])


def test_exams_hold_out_what_was_trained_on_and_never_overlap():
    choosing, reporting = ladder.exam(100), ladder.exam(200, ladder.REPORTING)
    assert not {x.text for x in choosing} & {x.text for x in reporting}
    assert all(len(x.text) <= ladder.LONGEST_TALE for x in choosing + reporting)
    assert choosing[0].text == tell(ladder.CHOOSING, "held-out").text


def test_a_cache_changes_no_tale(tokenizer, gpt):
    beginnings = ["Tom was", "One day Mia the fox"]
    cfg = {**gpt.cfg, "context_length": 60}
    plain = type("Plain", (), {"__call__": lambda self, ids: gpt(ids)})()
    plain.cfg, plain.parameters = cfg, gpt.parameters
    cached = type("Cached", (), {"__call__": lambda self, ids, c: gpt(ids, c)})()
    cached.cfg, cached.parameters = cfg, gpt.parameters
    cached.new_cache = gpt.new_cache
    one, other = (
        ladder.continued(model, tokenizer, beginnings) for model in (plain, cached)
    )
    assert one == other
    assert all(t.startswith(b) for t, b in zip(one, beginnings, strict=True))


def test_a_tale_ends_with_its_end_token_or_with_dots(tokenizer):
    text = tell(5).text
    known = Oracle(tokenizer, [text])
    assert ladder.continued(known, tokenizer, [ladder.two_sentences(text)]) == [text]
    assert ladder.continued(known, tokenizer, ["Quite another"])[0].endswith(" ...")


def test_tales_of_the_village_have_no_contradiction_and_changed_ones_have(tokenizer):
    texts = [x.text for x in ladder.exam(6, ladder.REPORTING)]
    assert (
        ladder.tales_without_contradiction(Oracle(tokenizer, texts), tokenizer, 6) == 6
    )
    cut = [text.rsplit(". ", 3)[0] for text in texts]
    known = Oracle(tokenizer, cut)
    assert ladder.tales_without_contradiction(known, tokenizer, 6) < 6


ROW = dict(rung="5, x", nats=0.5, who=0.1, what=0.2, where=0.3, whose=0.4)
ROW |= dict(tales=7, text="Once.")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """`climb` without a model, and without the course's own rows."""
    row = {k: v for k, v in ROW.items() if k != "rung"}
    monkeypatch.setattr(ladder, "measure", lambda model, tokenizer: row)
    monkeypatch.setattr(ladder, "STORED", tmp_path / "none.json")
    return tmp_path / "ladder"


def test_climbing_prints_the_ladder_so_far(measured, capsys):
    ladder.climb("7, it answers", None, None, measured)
    ladder.climb("5, your storyteller", None, None, measured)
    capsys.readouterr()
    ladder.climb("5c, longer", None, None, measured)
    printed = capsys.readouterr().out
    assert "7, it answers" not in printed  # that is higher
    assert printed.index("5, your storyteller") < printed.index("5c, longer")
    assert printed.endswith("Once.\n")
    assert list(ladder.rungs(measured))[-1] == "7, it answers"


def test_rungs_are_in_the_order_of_chapters():
    names = ["F, fast", "5c, long", "D, recipe", "4, random", "5, yours", "10, far"]
    in_order = ["4, random", "5, yours", "5c, long", "10, far", "D, recipe", "F, fast"]
    assert sorted(names, key=ladder.height) == in_order


def test_yours_replaces_the_course_s_row(measured, monkeypatch):
    stored = measured.parent / "stored.json"
    stored.write_text(json.dumps([ROW, {**ROW, "rung": "4, y"}]), encoding="utf-8")
    monkeypatch.setattr(ladder, "STORED", stored)
    assert ladder.rungs(measured)["5, x"]["tales"] == 7
    mine = {**ROW, "tales": 70}
    measured.mkdir()
    (measured / "5-x.json").write_text(json.dumps(mine), encoding="utf-8")
    assert {k: row["tales"] for k, row in ladder.rungs(measured).items()} == {
        "4, y": 7,
        "5, x": 70,
    }


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[1]", '{"rung": "5, x"}', json.dumps({**ROW, "who": "much"}), "\x00"],
)
def test_a_damaged_row_is_named(measured, damage):
    measured.mkdir()
    path = measured / "5-x.json"
    path.write_text(damage, encoding="utf-8")
    with pytest.raises(ValueError, match=r"5-x\.json is no row of the ladder.*delete"):
        ladder.rungs(measured)


def test_what_a_killed_run_left_behind_does_no_harm(measured):
    ladder.climb("4, y", None, None, measured)
    (measured / ".5-x.json.123.tmp").write_text("{", encoding="utf-8")
    assert list(ladder.rungs(measured)) == ["4, y"]


def test_a_model_is_measured_as_it_is_used_and_left_as_it_was(tokenizer, monkeypatch):
    monkeypatch.setattr(ladder, "examine", lambda model, *_: {"nats": model.training})
    monkeypatch.setattr(ladder, "tales_without_contradiction", lambda *_: 0)
    monkeypatch.setattr(ladder, "continued", lambda *_: ["Once."])
    model = nn.Dropout(0.5)
    assert ladder.measure(model, tokenizer)["nats"] is False
    assert model.training


def test_rows_that_were_measured_here_become_the_course_s(
    measured, monkeypatch, capsys
):
    monkeypatch.setenv("LLM_COURSE_DATA", str(measured.parent))
    ladder.climb("5, yours", None, None)
    stored = measured.parent / "course.json"
    monkeypatch.setattr(program, "STORED", stored)
    monkeypatch.setattr("sys.argv", ["ladder"])
    program.main()
    assert not stored.exists() and "5, yours" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["ladder", "--store"])
    program.main()
    assert [row["rung"] for row in ladder.read_rows(stored)] == ["5, yours"]
