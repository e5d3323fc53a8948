"""Chapter 7: scores by rule, what a model has to beat, and judges."""

import contextlib
import http.server
import json
import math
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ch07_instructions import judge, judging
from ch07_instructions.compare import FIRST_SEED, by_family
from ch07_instructions.judging import (
    JudgeUnavailable,
    judge_trials,
    parse_score,
    reworded_trials,
    small_judge,
)
from ch07_instructions.scoring import (
    bootstrap_interval,
    classifier_answers,
    constant_answers,
    echo_answers,
    form_of_answers,
    nearest_answers,
    question_of,
    rank_agreement,
    score_answers,
    words_from,
)
from ch07_instructions.words import words_of
from shared.ch07 import (
    exact_match,
    generate_model_scores,
    judge_prompt,
    load_instructions,
    normalise,
    query_model,
    split_entries,
    token_f1,
)

ENTRY = {"instruction": "Name a fruit.", "input": "", "output": "A pear."}


# Scores by rule


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The plural is MICE", "The plural is mice.", True, 1.0),
        ("6000 metres", "6,000 metres.", True, 1.0),
        ("2.5 metres", "25 metres", False, 0.5),
        ("The cat licked it's paw.", "The cat licked its paw.", False, 0.8),
        ("It\u2019s late", "It's late.", True, 1.0),
        ("", "Yes.", False, 0.0),
        ("...", "Yes.", False, 0.0),
        ("yes yes yes yes", "Yes.", False, 0.4),
        ("b a", "a b", False, 1.0),
    ],
)
def test_exact_match_and_f1(answer, reference, exact, f1):
    assert exact_match(answer, reference) == exact
    assert token_f1(answer, reference) == pytest.approx(f1)


def test_capitals_and_marks_count_where_they_are_the_task():
    kind = "punctuation_and_casing"
    assert not exact_match("we went home.", "We went home.", kind)
    assert exact_match(" We  went home.", "We went home.", kind)
    assert token_f1("we went home.", "We went home.", kind) == pytest.approx(2 / 3)
    assert exact_match("we went home", "We went home.")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pair.split(" | ")
        for pair in """\
-7 | 7
\u22127 | 7
5 - 3 | 5 + 3
x - y | x + y
2*3 | 2 3
2^3 | 2 3
5 < 6 | 5 > 6
C# | C++
C# | C
50% | 50
$5 | \u20ac5
1/2 | 1, 2
.5 | 5
\u00bd | \u00bc
\U0001f44d | \U0001f44e
Yes \U0001f44d | Yes \U0001f44e
. | ?
\u0915\u0940 | \u0915\u093e
resume | r\u00e9sum\u00e9""".splitlines()
    ],
)
def test_a_sign_a_symbol_and_a_vowel_sign_count(one, other):
    assert words_of(one) and words_of(one) != words_of(other)
    assert not exact_match(one, other) and not exact_match(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "CAFE\u0301"),
        ("\u22127", "-7"),
        (
            "A well-known, old \u2013 very old \u2013 town.",
            "a well known old very old town",
        ),
        ("- 7 apples", "7 apples"),
        ("-> **Mice**!", "mice"),
        ("6,000 metres", "6000 metres"),
        ("It\u2019s \u201clate\u201d", "It's late"),
        ("50 %", "50%"),
    ],
)
def test_punctuation_and_the_way_of_writing_do_not_count(one, other):
    assert words_of(one) == words_of(other) and exact_match(one, other)


def test_only_an_empty_text_has_no_words():
    assert words_of("?") == ["?"] and words_of(" \n") == []
    assert exact_match("", " \n") and not exact_match("", "?")


@settings(deadline=None)
@given(one=st.text(), other=st.text())
def test_f1_is_a_symmetric_share(one, other):
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, other) == pytest.approx(token_f1(other, one))
    if exact_match(one, other) and normalise(one):
        assert token_f1(one, other) == 1


def test_scores_have_a_row_per_entry():
    sample = load_instructions()[:30]
    table = score_answers(sample, [entry["output"] for entry in sample])
    assert (table["exact"] == 1).all() and (table["f1"] == 1).all()
    assert table["kind"].tolist() == [entry["kind"] for entry in sample]
    assert (score_answers(sample, [""] * 30)[["exact", "f1"]] == 0).all(axis=None)
    assert score_answers([ENTRY], ["A pear"])["exact"].tolist() == [1]
    with pytest.raises(ValueError, match="29 answers do not fit 30 entries"):
        score_answers(sample, [""] * 29)


def told(instruction, output, kind=""):
    return {"instruction": instruction, "output": output, "kind": kind}


def test_constant_is_the_answer_most_like_the_others():
    train = [
        told("a", "It is red.", "colour"),
        told("b", "It is dark red.", "colour"),
        told("c", "Seven.", "colour"),
        told("d", "Hello!", "greeting"),
    ]
    asked = [told("e", "", "greeting"), told("f", "", "colour"), told("g", "", "new")]
    assert constant_answers(train, asked) == ["Hello!", "It is red.", ""]
    assert constant_answers([{"instruction": "a", "output": "Yes."}], [ENTRY]) == [
        "Yes."
    ]


def test_the_constant_answer_is_that_of_exact_sums():
    """`sum` rounds otherwise since Python 3.12; with it another answer could win."""
    half = ["w x w w z", "v x v z v z", "w z y y x"]
    mirror = str.maketrans("vwxyz", "abcde")
    other = [answer.translate(mirror) for answer in half]  # as alike as the first half
    mixed = [half[1], other[2], half[0], other[1], half[2], other[0]]
    known = [told("a", answer) for answer in mixed]
    best = constant_answers(known, [told("b", "")])
    assert best == [other[2]]  # exactly as good as half[2], which comes later


def test_nearest_is_the_answer_to_the_question_with_the_same_rare_words():
    train = [
        told("What is the plural of goose?", "Geese."),
        told("What is the plural of ox?", "Oxen."),
        told("Name a metal.", "Iron."),
    ]
    asked = [
        told("Say what the plural of ox? is", ""),
        {"instruction": "Which metal. Name", "input": "a", "output": ""},
        told("goose?", ""),
    ]
    assert nearest_answers(train, asked) == ["Oxen.", "Iron.", "Geese."]


def test_echo_gives_back_what_the_question_is_about():
    asked = [
        told("Repeat this sentence.", "") | {"input": "It rains."},
        told("What kind is this? Come in.", ""),
        told("Count: one, two", ""),
        told("Sing.", ""),
    ]
    assert echo_answers([], asked) == ["It rains.", "Come in.", "one, two", "Sing."]


def test_form_is_a_sentence_and_for_closed_kinds_a_label():
    closed = {"kind": "mood", "family": "closed"}
    train = [told("a", "Good.") | closed, told("b", "Bad.") | closed, told("c", "No.")]
    asked = [told("d", "Good.") | closed] * 4 + [told("e", "Yes.")]
    answers = ["bad", "Good.", "No.", "Good.\nGood.", "..."]
    form = form_of_answers(train, asked, answers)
    assert form["sentence"].tolist() == [0, 1, 1, 0, 0]
    assert form["label"][:4].tolist() == [1, 1, 0, 0] and form["label"].isna()[4]


def test_words_of_a_reference_are_told_apart_by_the_question():
    entry = told("Change cat to dog.", "The dog sleeps.") | {"input": "The cat sleeps."}
    assert words_from(entry, "A dog barks.", copied=True) == pytest.approx(1 / 3)
    assert words_from(entry, "A dog barks.", copied=False) is None
    entry = told("Name a fruit.", "A pear.")
    assert words_from(entry, "A plum.", copied=True) == 1
    assert words_from(entry, "A plum.", copied=False) == 0


def test_classifier_chooses_by_words_among_repeated_answers():
    train = [told(f"Is the {n} warm?", "Yes.") for n in ("sun", "oven", "soup")]
    train += [told(f"Who is the {n} man?", "A person.") for n in ("old", "tall", "odd")]
    train.append(told("Name a metal.", "Iron."))
    asked = [
        told("Who was it?", ""),
        told("Is it warm?", ""),
        told("Name a metal.", ""),
    ]
    assert classifier_answers(train, asked)[:2] == ["A person.", "Yes."]
    assert "Iron." not in classifier_answers(train, asked)
    with pytest.raises(ValueError, match="twice or more"):
        classifier_answers(train[:4], asked)


def test_bootstrap_agrees_with_the_formula():
    for n, p in ((100, 0.5), (400, 0.2)):
        values = [1.0] * round(n * p) + [0.0] * round(n * (1 - p))
        half = 1.96 * math.sqrt(p * (1 - p) / n)
        low, high = bootstrap_interval(values)
        assert low == pytest.approx(p - half, abs=0.02)
        assert high == pytest.approx(p + half, abs=0.02)
    assert bootstrap_interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    assert bootstrap_interval([0, 1]) == bootstrap_interval([0, 1])
    narrow = bootstrap_interval([0.0, 1.0] * 50, confidence=0.5)
    assert narrow[1] - narrow[0] < 0.1
    for values, confidence in (([], 0.95), ([1.0], 1.0), ([1.0], 0.0)):
        with pytest.raises(ValueError, match="give no interval"):
            bootstrap_interval(values, confidence)


def test_rank_agreement():
    assert rank_agreement([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_agreement([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0)
    # by hand: ranks 1 2 3 4 and 2 1 4 3, so 1 - 6 * 4 / (4 * 15)
    assert rank_agreement([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    for one, other in (([1, 2], [1, 2, 3]), ([1], [1]), ([5, 5], [1, 2])):
        with pytest.raises(ValueError, match="scores"):
            rank_agreement(one, other)


# Judges


REPLIES = {
    85: ["85", " 85.\n", "**85**", "85/100", "Score: 85", '{"score": 85}', "score-85"],
    40: ["On a scale of 0-100, I give it a 40."],
    70: ["It has 2 faults. Score: 70.", "Score: 70. I say it again: score: 70"],
    88: ["87.6"],
    0: ["0"],
    100: ["100", "100/100"],
    None: ["The answer is good.", "", "150", "-5", "Score: -5", "80-90", "8/10"],
}
REPLIES[85] += ["I would rate this 85 out of 100.", "On a scale from 0 to 100: 85"]
REPLIES[None] += ["4 out of 5", "Score: 70, or rather score: 80", "GPT4 would like it"]
REPLIES[None] += ["1. It is right. 2. It is short.", "1e400", "9" * 400]


@pytest.mark.parametrize(
    ("reply", "score"), [(text, n) for n, texts in REPLIES.items() for text in texts]
)
def test_score_is_read_only_if_it_is_clear(reply, score):
    assert parse_score(reply) == score


@settings(deadline=None)
@given(st.text())
def test_no_reply_breaks_the_parser(reply):
    score = parse_score(reply)
    assert score is None or 0 <= score <= 100


def test_judge_is_told_task_reference_and_answer():
    prompt = judge_prompt({**ENTRY, "input": "red"}, "An apple.")
    for part in ("Name a fruit.\nred", "A pear.", "An apple.", "0 to 100"):
        assert part in prompt
    with pytest.raises(ValueError, match="entry 1 has no 'output'"):
        generate_model_scores([{"instruction": "Name.", "model_response": "A."}])


def test_trials_of_a_judge_ask_what_they_say():
    entries = [{**ENTRY, "output": text} for text in ("A pear.", "A plum.", "A fig.")]
    trials = judge_trials(entries, ["Pear.", " ", "Fig."])
    assert list(trials) == ["answer", "reference", "another", "longer", "swapped"]
    pairs = {
        name: [(e["output"], e["model_response"]) for e in asked]
        for name, asked in trials.items()
    }
    assert pairs["answer"] == [("A pear.", "Pear."), ("A fig.", "Fig.")]
    assert pairs["reference"] == [("A pear.", "A pear."), ("A fig.", "A fig.")]
    assert pairs["another"] == [("A pear.", "A fig."), ("A fig.", "A pear.")]
    assert pairs["swapped"] == [("Pear.", "A pear."), ("Fig.", "A fig.")]
    for (_, answer), (_, longer) in zip(pairs["answer"], pairs["longer"], strict=True):
        assert longer.startswith(answer) and len(longer) > len(answer) + 20
    kinds = [told("a", "Red.", "x"), told("b", "Red.", "x"), told("c", "One.", "y")]
    kinds.append(told("d", "Blue.", "x"))
    another = judge_trials(kinds, ["?"] * 4)["another"]
    assert [e["model_response"] for e in another] == ["Blue.", "Blue.", "Blue.", "Red."]
    with pytest.raises(ValueError):
        judge_trials(entries, ["Pear."])


def test_reworded_answers_fool_the_words():
    """F1 puts every wrong one above the right one; that is what they are for."""
    trials = reworded_trials()
    assert list(trials) == ["right", "wrong"]
    for right, wrong in zip(*trials.values(), strict=True):
        assert right["output"] == wrong["output"]
        f1 = [token_f1(e["model_response"], e["output"]) for e in (right, wrong)]
        assert f1[0] < f1[1], right


@pytest.fixture
def server(monkeypatch):
    """A server that speaks Ollama's protocol.

    `server.script` holds what it does next: a str is a reply, an int an HTTP status,
    and words in brackets are accidents. Without a script it replies `server.reply`.
    `server.seen` are the requests.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def head(self, length=None):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()

        def drip(self, text):
            """Send a letter now and then, until the other side hangs up."""
            with contextlib.suppress(OSError):
                while not server.stopped.wait(0.03):
                    self.wfile.write(text)
                    self.wfile.flush()
                return
            server.hung_up.set()

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            server.seen.append((self.path, json.loads(self.rfile.read(length))))
            action = server.script.pop(0) if server.script else server.reply
            said = {"role": "assistant", "content": action}
            body = json.dumps({"model": "m", "message": said, "done": True}).encode()
            bodies = {
                "[junk]": b"[1, 2]",
                "[words]": b"so sorry",
                "[deep]": b"[" * 50_000,
                "[error]": b'{"error": "out of memory"}',
                "[undone]": b'{"message": {"content": "8"}, "done": false}',
                "[empty]": b"",
            }
            if isinstance(action, int):
                body = json.dumps({"error": f"status {action}"}).encode()
                self.send_response(action)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            elif action == "[close]":
                return
            elif action == "[torn]":
                self.head(len(body))
                self.wfile.write(body[:20])
            elif action == "[hang]":
                server.stopped.wait(3)
            elif action == "[endless head]":
                self.drip(b"X")
            elif action == "[endless body]":
                self.head()
                self.drip(b" ")
            elif action == "[flood]":
                self.head()
                with contextlib.suppress(OSError):
                    while not server.stopped.is_set():
                        self.wfile.write(b" " * 50_000)
            else:
                body = bodies.get(action, body)
                self.head(len(body))
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.script, server.reply, server.seen = [], "80", []
    server.stopped, server.hung_up = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.pauses = []
    monkeypatch.setattr(judging.time, "sleep", server.pauses.append)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()


def test_query_speaks_to_the_chat_address(server):
    server.script = ["Good day."]
    assert query_model("Hello", "m", server.url) == "Good day."
    path, request = server.seen[0]
    assert path == "/api/chat"
    assert request["model"] == "m" and request["stream"] is False
    assert request["messages"][0]["content"] == "Hello"
    assert request["options"]["temperature"] == 0
    assert request["options"]["num_predict"] <= 1000  # the model may not write for ever
    assert query_model("Hello", "m", f"{server.url}/api/chat") == "80"
    assert query_model("Hello", "m", server.url.removeprefix("http://")) == "80"


ACCIDENTS = ["[torn]", "[junk]", "[words]", "[deep]", "[undone]", "[error]", "[close]"]


@pytest.mark.parametrize("accident", [*ACCIDENTS, "[empty]", "[flood]", 500, 503])
def test_accidents_are_tried_again(server, accident):
    server.script = [accident, accident]
    assert query_model("Hello", "m", server.url) == "80"
    assert len(server.seen) == 3
    assert server.pauses == [1, 2]  # growing


def test_lasting_accidents_are_reported(server):
    server.reply = "[torn]"
    with pytest.raises(JudgeUnavailable, match="in 2 attempts.*ollama serve"):
        query_model("Hello", "m", server.url, attempts=2)
    assert len(server.seen) == 2


@pytest.mark.parametrize("accident", ["[hang]", "[endless head]", "[endless body]"])
def test_a_judge_that_never_ends_is_left_in_time(server, accident):
    server.script = [accident]
    start = time.monotonic()
    with pytest.raises(JudgeUnavailable, match="TimeoutError: no whole reply within"):
        query_model("Hello", "m", server.url, timeout=0.4, attempts=1)
    assert time.monotonic() - start < 2.5
    if accident != "[hang]":
        assert server.hung_up.wait(2)  # and nothing goes on behind our back
    assert query_model("Hello", "m", server.url, timeout=5) == "80"


def test_a_reply_without_end_is_cut_off_by_its_length(server):
    server.reply = "[flood]"
    with pytest.raises(JudgeUnavailable, match="more than 100,000 bytes"):
        query_model("Hello", "m", server.url, attempts=1)


def test_missing_model_is_named_at_once(server):
    server.reply = 404
    with pytest.raises(JudgeUnavailable, match="no model 'm'.*`ollama pull m`"):
        query_model("Hello", "m", server.url)
    assert len(server.seen) == 1


def test_missing_server_is_named(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=f"{server.url}.*ollama serve"):
        query_model("Hello", "m", server.url, attempts=1)


def answered(n):
    return [{**ENTRY, "model_response": f"Answer {i}."} for i in range(n)]


def test_scores_come_in_order_and_prose_is_asked_again(server):
    server.script = ["10", "I like it.", "Score: 20", "It is fine.", "999", "30"]
    scores = generate_model_scores(answered(4), model="m", url=server.url)
    assert scores == [10, 20, None, 30]
    assert len(server.seen) == 6


def test_server_down_in_the_middle_loses_nothing(server, tmp_path):
    path, items = tmp_path / "scores" / "kept.jsonl", answered(100)
    server.script = [str(i) for i in range(50)] + [404]
    with pytest.raises(
        JudgeUnavailable, match="50 scores are kept in .*kept.jsonl"
    ) as e:
        generate_model_scores(items, model="m", url=server.url, path=path)
    assert e.value.scores == list(range(50))
    assert len(path.read_text().splitlines()) == 50

    server.seen.clear()
    server.script = [str(i) for i in range(50, 100)]
    scores = generate_model_scores(items, model="m", url=server.url, path=path)
    assert scores == list(range(100))
    assert len(server.seen) == 50

    server.seen.clear()  # another order, and nothing new
    again = generate_model_scores(items[::-1], model="m", url=server.url, path=path)
    assert again == scores[::-1] and server.seen == []


def test_torn_line_is_asked_for_again_and_does_not_spoil_the_next(tmp_path):
    path, items = tmp_path / "kept.jsonl", answered(3)
    replies = iter(["1", "2", "3", "4"])
    judge = {"model": "m", "ask": lambda prompt: next(replies), "path": path}
    generate_model_scores(items[:2], **judge)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert generate_model_scores(items, **judge) == [1, 3, 4]
    assert generate_model_scores(items, **judge) == [1, 3, 4]


def test_another_judge_or_answer_has_scores_of_its_own(tmp_path):
    path, items = tmp_path / "kept.jsonl", answered(1)
    assert generate_model_scores(items, model="a", ask=lambda p: "1", path=path) == [1]
    assert generate_model_scores(items, model="b", ask=lambda p: "2", path=path) == [2]
    changed = [{**items[0], "model_response": "Other."}]
    assert generate_model_scores(changed, model="a", ask=lambda p: "3", path=path) == [
        3
    ]
    assert generate_model_scores(items, model="a", ask=lambda p: "4", path=path) == [1]


def test_empty_answers_get_nothing_unasked():
    def ask(prompt):
        raise AssertionError("asked about nothing")

    empty = [{**ENTRY, "model_response": text} for text in ("", " \n")]
    assert generate_model_scores(empty, ask=ask) == [0, 0]


def test_faulty_entries_are_named():
    with pytest.raises(
        ValueError, match="entry 2 has no answer under 'model_response'"
    ):
        generate_model_scores([*answered(1), ENTRY], ask=lambda prompt: "1")
    own = [{**ENTRY, "mine": "A plum."}]
    assert generate_model_scores(own, "mine", ask=lambda prompt: "1") == [1]


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError, JudgeUnavailable])
def test_scores_without_a_file_are_in_the_error(error):
    replies = iter(["1", "2"])

    def ask(prompt):
        reply = next(replies, None)
        if reply is None:
            raise error("gone")
        return reply

    with pytest.raises(JudgeUnavailable, match="gone\n2 scores are kept") as caught:
        generate_model_scores(answered(4), ask=ask)
    assert caught.value.scores == [1, 2]


def test_small_judge_is_shown_both_answers_and_not_the_task():
    asked = []

    def share_of_yes(question):
        asked.append(question)
        return 0.704

    assert small_judge(share_of_yes)(judge_prompt(ENTRY, "A plum.\nOr two.")) == "70"
    assert asked == [
        "Do these two sentences mean the same?\n1. A pear.\n2. A plum.\nOr two.\n"
        "Reply with Yes or No."
    ]


def test_what_the_stored_judge_has_said_needs_no_model(tmp_path, monkeypatch):
    def load():
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(judge, "load_small_judge", load)
    for asked in reworded_trials().values():
        scores = generate_model_scores(asked, **judge.stored_judge(tmp_path))
        assert len(scores) == 8 and all(0 <= score <= 100 for score in scores)
    with pytest.raises(AssertionError, match="loaded"):
        generate_model_scores(answered(1), **judge.stored_judge(tmp_path))
    assert judge.SCORES.read_bytes()  # the file itself stays as it is


def test_smollm2_has_answered_the_first_test_questions():
    answers = json.loads(judge.SMOLLM2_ANSWERS.read_text(encoding="utf-8"))
    entries = split_entries(load_instructions(), seed=FIRST_SEED)[2]
    short, ordered = by_family(entries)
    asked = short[: judge.N_SHORT] + ordered[: judge.N_STORIES]
    assert list(answers) == [question_of(entry) for entry in asked]


def test_a_prompt_needs_no_package_of_judges_or_baselines():
    """Blocked packages are as good as not installed."""
    program = (
        "import sys\n"
        "for name in ('ollama', 'httpx', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from shared.ch07 import format_prompt\n"
        "print(format_prompt({'instruction': 'Add.'}, 'chat'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout == "User: Add.\nAssistant:\n", done.stderr
