"""What stands between a judge and a list of scores: a server, prose, accidents.

The notebook's section on judges shows what is asked and what comes of it.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from ch07_instructions.guards import check_entries

__all__ = ["judge_prompt", "query_model", "generate_model_scores", "parse_score"]
__all__ += ["JudgeUnavailable", "KeptScores", "small_judge", "judge_trials"]
__all__ += ["REWORDED", "reworded_trials"]

OLLAMA_URL = "http://localhost:11434"
MOST_BYTES = 100_000  # of a reply


class JudgeUnavailable(ConnectionError):
    """The judge cannot be asked; `scores` holds what it said before."""

    scores: list = []


# --- A server -------------------------------------------------------------------------


def _hang_up(
    connection: http.client.HTTPConnection, opened: list[socket.socket]
) -> None:
    for sock in (connection.sock, *opened):
        with contextlib.suppress(OSError, AttributeError):  # none, or closed already
            sock.shutdown(socket.SHUT_RDWR)


def _post(url: str, request: Mapping, timeout: float) -> tuple[int, bytes]:
    """Status and body of a reply that is whole after `timeout` seconds, or an error.

    A socket's own time limit begins anew with each byte, so a server that sends one
    byte a second would never end. A timer hangs up on it.
    """
    where = urlsplit(url if "://" in url else f"http://{url}")
    secure = where.scheme == "https"
    make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = make(where.hostname, where.port, timeout=timeout)
    opened: list[socket.socket] = []
    end = time.monotonic() + timeout
    timer = threading.Timer(timeout, _hang_up, [connection, opened])
    timer.daemon = True
    timer.start()
    path = where.path.removesuffix("/api/chat").rstrip("/") + "/api/chat"
    try:
        connection.request("POST", path, json.dumps(request))
        opened.append(connection.sock)  # which the connection soon forgets
        response = connection.getresponse()
        body = response.read(MOST_BYTES + 1)
        missing = response.length
    except (OSError, http.client.HTTPException) as error:
        body, missing = b"", error
    finally:
        timer.cancel()
        connection.close()
    if time.monotonic() >= end:
        raise TimeoutError(f"no whole reply within {timeout} s")
    if isinstance(missing, Exception):
        raise ConnectionError(f"{type(missing).__name__}: {missing}")
    if len(body) > MOST_BYTES:
        raise ValueError(f"a reply of more than {MOST_BYTES:,} bytes")
    if missing:
        raise ValueError(f"the last {missing} bytes of the reply are missing")
    return response.status, body


def _content(status: int, body: bytes) -> str:
    """What the model said, or a ValueError."""
    try:
        reply = json.loads(body)
        if status >= 400:
            raise ValueError(f"status {status}: {reply.get('error')}")
        if reply.get("error"):
            raise ValueError(reply["error"])
        if reply.get("done") is not True:
            raise ValueError("the reply is not complete")
        return str(reply["message"]["content"] or "")
    except (AttributeError, KeyError, TypeError, RecursionError):
        raise ValueError(f"status {status}, and no reply but {body[:60]!r}") from None


def query_model(
    prompt: str,
    model: str = "llama3",
    url: str = OLLAMA_URL,
    timeout: float = 120.0,
    attempts: int = 3,
) -> str:
    """Ask a model of an Ollama server, always in the same way; return its reply.

    What may pass by itself is tried again.

    Raises:
        JudgeUnavailable: if there is no such server or model, or no whole reply within
            `timeout` seconds in any of the attempts.

    Source: Build a Large Language Model (From Scratch), section 7.8.
    """
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": False,
        "options": {"temperature": 0, "seed": 123, "num_ctx": 2048, "num_predict": 256},
    }
    problem: Exception | None = None
    for attempt in range(attempts):
        if attempt > 0:
            time.sleep(0.5 * 2**attempt)
        try:
            status, body = _post(url, request, timeout)
            if status == 404:
                raise JudgeUnavailable(
                    f"the server at {url} has no model {model!r}; get it with `ollama "
                    f"pull {model}`, or name one that `ollama list` shows"
                )
            return _content(status, body)
        except JudgeUnavailable:
            raise
        except (OSError, ValueError) as error:
            problem = error
    raise JudgeUnavailable(
        f"{model} at {url} gave no complete reply in {attempts} attempts; the last: "
        f"{type(problem).__name__}: {problem}. Is the server running (`ollama serve`)?"
    ) from problem


# --- Prose ----------------------------------------------------------------------------


def judge_prompt(entry: Mapping[str, str], answer: str) -> str:
    """What a judge is asked: rate this answer from 0 to 100."""
    task = "\n".join(filter(None, [entry["instruction"], entry.get("input")]))
    return (
        "Compare an answer with the reference answer, and rate it.\n\n"
        f"Task: {task}\nReference answer: {entry['output']}\nAnswer: {answer}\n\n"
        "A wrong answer gets 0, one as good as the reference 100. "
        "Reply with one whole number from 0 to 100 and nothing else."
    )


def parse_score(reply: str) -> int | None:
    """The score from 0 to 100 that a judge's reply gives; None if it is not clear.

    A single number counts, or the number behind "score" or "rating" if it is the only
    one there. Numbers out of range, ranges such as 80-90, and other scales such as 8/10
    do not.
    """
    text = reply.casefold().replace("*", " ").replace('"', " ")
    # "85/100", "85 out of 100", "from 0 to 100": the scale we asked for says nothing
    text = re.sub(r"(?:/|\bout of)\s*100\b|\b0\s*(?:-|to)\s*100\b", " ", text)
    if re.search(r"\d\s*(?:/|out of)\s*\d", text):  # another scale, such as 8/10
        return None
    # a number that is no part of a word, a longer number, or a range such as 80-90
    number = r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w)"
    found = re.findall(number, text)
    if len(found) != 1:
        found = re.findall(rf"\b(?:score|rating)\b[^\d-]{{0,12}}({number})", text)
    if len(set(found)) != 1 or not 0 <= float(found[0]) <= 100:
        return None
    return round(float(found[0]))


def _ask_for_score(ask: Callable[[str], str], prompt: str) -> int | None:
    """The judge's score; if its reply is none, ask once more, with emphasis."""
    score = parse_score(ask(prompt))
    if score is None:
        score = parse_score(ask(f"{prompt}\nOnly the number, no other word."))
    return score


# --- Accidents ------------------------------------------------------------------------


class KeptScores(dict):
    """Scores by prompt; with a path, each is on the disk once it is known.

    A line of the file bears a fingerprint of judge and prompt, so that neither another
    order nor another answer mixes things up.
    """

    def __init__(self, path: str | Path | None, judge: str):
        super().__init__()
        self.path, self.judge = None if path is None else Path(path), judge
        if self.path is None or not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                super().__setitem__(record["key"], record["score"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut off: it is asked for again

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(f"{self.judge}\n{prompt}".encode()).hexdigest()

    def __contains__(self, prompt: str) -> bool:
        return super().__contains__(self._key(prompt))

    def __getitem__(self, prompt: str) -> int | None:
        return super().__getitem__(self._key(prompt))

    def __setitem__(self, prompt: str, score: int | None) -> None:
        key = self._key(prompt)
        super().__setitem__(key, score)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            start = b"" if file.read() in (b"", b"\n") else b"\n"
            record = json.dumps({"key": key, "score": score}).encode()
            file.write(start + record + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def lost(self, error: Exception, scores: list) -> JudgeUnavailable:
        """The error that says where the scores so far are."""
        kept = f"in {self.path}: call again to go on"
        place = "in this error's `scores`" if self.path is None else kept
        lost = JudgeUnavailable(f"{error}\n{len(scores)} scores are kept {place}.")
        lost.scores = scores
        return lost


def generate_model_scores(
    json_data: Sequence[Mapping[str, str]],
    json_key: str = "model_response",
    model: str = "llama3",
    *,
    url: str = OLLAMA_URL,
    ask: Callable[[str], str] | None = None,
    path: str | Path | None = None,
) -> list[int | None]:
    """What a judge says about each answer: 0 to 100, None if its reply is no score.

    The judge is `model` at `url`, or `ask`, a function from prompt to reply; then
    `model` is its name. An empty answer gets 0 unasked. `path` is the file to keep
    scores in.

    Raises:
        ValueError: for an entry that lacks something.
        JudgeUnavailable: if the judge stays away; its `scores` are those so far.

    Source: Build a Large Language Model (From Scratch), section 7.8.
    """
    check_entries(json_data, json_key)
    ask = ask or partial(query_model, model=model, url=url)
    known, scores = KeptScores(path, model), []
    try:
        for entry in tqdm(json_data, unit="answer", leave=False):
            prompt = judge_prompt(entry, entry[json_key])
            if prompt not in known:
                empty = not entry[json_key].strip()
                known[prompt] = 0 if empty else _ask_for_score(ask, prompt)
            scores.append(known[prompt])
    except (ConnectionError, TimeoutError) as error:
        raise known.lost(error, scores) from error
    return scores


# --- A small judge --------------------------------------------------------------------


def small_judge(share_of_yes: Callable[[str], float]) -> Callable[[str], str]:
    """A judge for `ask` that need not write: its share of "Yes", in percent.

    `share_of_yes` is how likely a model finds "Yes", against "No", as the answer to a
    question. Of a prompt of `judge_prompt` it is shown the two answers, but not the
    task.
    """

    def ask(prompt: str) -> str:
        """The score, as text."""
        pair = prompt.partition("\nReference answer: ")[2].rpartition("\n\n")[0]
        reference, _, answer = pair.partition("\nAnswer: ")
        question = (
            f"Do these two sentences mean the same?\n1. {reference}\n2. {answer}\n"
            "Reply with Yes or No."
        )
        return str(round(100 * share_of_yes(question)))

    return ask


# --- Judging the judge ----------------------------------------------------------------


def judge_trials(
    entries: Sequence[Mapping[str, str]], answers: Sequence[str]
) -> dict[str, list[dict[str, str]]]:
    """What to ask a judge in order to judge it: lists for `generate_model_scores`.

    Args:
        entries: at least two, each with its reference in `output`.
        answers: a model's answers; entries whose answer is empty are left out.

    Returns: per trial the entries with a `model_response`: the "answer"; the
        "reference" itself; the reference of "another" entry, of the same kind if there
        is one, and not the same text; the answer made "longer" by words that say
        nothing; "swapped", where answer and reference changed places.
    """
    pairs = zip(entries, answers, strict=True)
    pairs = [({**entry}, answer) for entry, answer in pairs if answer.strip()]
    trials: dict[str, list[dict[str, str]]] = {}
    for i, (entry, answer) in enumerate(pairs):
        reference = entry["output"]
        others = [e for e, _ in pairs[i + 1 :] + pairs[:i] if e["output"] != reference]
        related = [e for e in others if e.get("kind") == entry.get("kind")]
        another = (related or others)[0]["output"]
        for name, response in (
            ("answer", answer),
            ("reference", reference),
            ("another", another),
            ("longer", f"{answer} I hope that this helps you with your task."),
        ):
            asked = {**entry, "model_response": response}
            trials.setdefault(name, []).append(asked)
        swapped = {**entry, "output": answer, "model_response": reference}
        trials.setdefault("swapped", []).append(swapped)
    return trials


REWORDED = (  # reference, right in other words, wrong in nearly the same
    ('The opposite of "hot" is "cold".', "Cold.", 'The opposite of "hot" is "warm".'),
    (
        "The sentiment is negative.",
        "It is a negative sentence.",
        "The sentiment is positive.",
    ),
    ("3 metres is 300 centimetres.", "300 cm.", "3 metres is 30 centimetres."),
    ("It is in the past tense.", "Past.", "It is in the future tense."),
    ("A carrot is a vegetable.", "It's a vegetable.", "A carrot is a fruit."),
    ("She enjoys painting.", "She likes to paint.", "She enjoys sleeping."),
    ("Yes, the Sun is a star.", "Yes.", "No, the Sun is not a star."),
    (
        "The museum opens at ten every day except Monday.",
        "On Mondays the museum is closed; otherwise it opens at ten.",
        "The museum closes at ten every day except Monday.",
    ),
)


def reworded_trials() -> dict[str, list[dict[str, str]]]:
    """What to ask a judge about `REWORDED`: the "right" answers, and the "wrong"."""
    return {
        name: [
            {"instruction": "Answer.", "output": case[0], "model_response": case[place]}
            for case in REWORDED
        ]
        for name, place in (("right", 1), ("wrong", 2))
    }
