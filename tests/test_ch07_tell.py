"""Stories that the base tells to order: which one is kept, and the file of them."""

import json

import pytest

from ch07_instructions import tell as module
from ch07_instructions.stories import retold, score_stories
from ch07_instructions.tell import is_tidy, orders, tell, worth
from shared.ch05 import load_base, load_base_tokenizer
from shared.ch07 import load_instructions
from shared.data import FILES, load_text

TOLD = json.loads(load_text("told"))
KITE = {
    "instruction": "Write a story with the words kite, brave and climb.",
    "input": "",
    "output": "",
    "kind": "words",
    "family": "story",
    "group": "tale-1",
}
GOOD = (
    "Once there was a boy named Tim. Tim had a red kite. One day the wind took it into "
    "a tall tree. Tim looked up and was afraid. His sister held his hand and told him "
    "to try. So Tim was brave and began to climb. He went up, branch by branch, and "
    "took the kite down again. Then Tim laughed, and they ran home to eat some cake."
)


@pytest.fixture(scope="module")
def base():
    return load_base(), load_base_tokenizer()


def test_every_order_of_the_entries_has_a_story_of_the_present_base():
    assert TOLD["base"] == FILES["base/model.safetensors"].sha256
    groups = {e["group"] for e in load_instructions() if e["family"] == "story"}
    assert set(TOLD["stories"]) == groups and len(groups) == 260
    assert all(is_tidy(text) for text in TOLD["stories"].values())


def test_orders_are_in_the_wording_that_the_base_knows():
    heads = {
        "words": "Write a story with the words ",
        "about": "Tell a story about ",
        "finish": "Finish this story: ",
    }
    found = orders()
    assert [e["group"] for e in found] == [f"tale-{i}" for i in range(1, 261)]
    assert all(e["instruction"].startswith(heads[e["kind"]]) for e in found)
    kinds = {e["group"]: e["kind"] for e in load_instructions()}
    assert all(kinds[e["group"]] == e["kind"] for e in found)


def test_the_stories_have_more_of_what_was_ordered_than_other_stories_of_the_base():
    asked = [entry for entry in orders() if entry["kind"] == "words"]
    own = [TOLD["stories"][entry["group"]] for entry in asked]
    scores = [score_stories(asked, texts) for texts in (own, own[1:] + own[:1])]
    mine, others = (found["words"].mean() for found in scores)
    assert mine > others + 0.3


def test_what_a_story_lacks_costs_it():
    texts = [
        GOOD,
        GOOD.replace("kite", "ball"),
        GOOD.replace("Tim laughed", "Ann and Ann and Ann and Ann and Ann laughed"),
        GOOD.removesuffix("eat some cake."),
        GOOD + " So Tim was brave and began to climb.",
        "Tim was brave. Tim began to climb after his kite.",
        GOOD + ' "Yes!',
    ]
    best, *others = worth(KITE, texts, [False] * len(texts))
    assert best == 1 and all(0 <= other < best for other in others)
    assert worth(KITE, [GOOD], [True])[0] < best  # cut off
    assert others[0] == pytest.approx(0.8)  # a third of the words
    assert others[-1] == 0  # untidy


def test_a_seed_gives_the_same_stories(base, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 12)
    asked = [KITE, {**KITE, "instruction": "Tell a story about a fox."}]
    found = tell(*base, asked, 3, 1)
    assert tell(*base, asked, 3, 1) == found != tell(*base, asked, 3, 2)
    assert len(found) == 2 and found[0] != found[1]
    for texts, cut in found:
        assert len(texts) == len(cut) == 3 and all(cut)  # no story ends so soon
        assert len(set(texts)) > 1
        assert not any("Write a story" in text for text in texts)


def test_only_orders_get_other_answers():
    entries = load_instructions()
    changed = retold(entries)
    for old, new in zip(entries, changed, strict=True):
        if old["family"] == "story":
            assert new == {**old, "output": TOLD["stories"][old["group"]]}
        else:
            assert new == old
    assert changed is not entries and retold([]) == []


def test_the_command_goes_on_and_a_new_base_begins_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "REPOSITORY_DATA", tmp_path)
    monkeypatch.setattr(module, "orders", lambda: [KITE, {**KITE, "group": "tale-2"}])
    monkeypatch.setattr(module, "TOGETHER", 1)
    monkeypatch.setattr(module, "tell", lambda *_, **__: [([GOOD], [False])])
    with pytest.raises(SystemExit, match="--tries must be 1 or more, not 0"):
        module.main(["--tries", "0"])
    path = tmp_path / "told.json"
    assert not path.exists()
    module.main(["--tries", "1"])
    assert "2 stories" in capsys.readouterr().out
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["stories"] == {"tale-1": GOOD, "tale-2": GOOD}
    del kept["stories"]["tale-2"]
    kept["stories"]["tale-1"] = "Already told."
    path.write_text(json.dumps(kept), encoding="utf-8")
    module.main(["--tries", "1"])  # goes on
    again = json.loads(path.read_text(encoding="utf-8"))["stories"]
    assert again == {"tale-1": "Already told.", "tale-2": GOOD}
    module.main(["--tries", "1"])  # nothing is left to tell
    path.write_text(json.dumps({**kept, "base": "another"}), encoding="utf-8")
    module.main(["--tries", "1"])
    assert json.loads(path.read_text(encoding="utf-8"))["stories"]["tale-1"] == GOOD
