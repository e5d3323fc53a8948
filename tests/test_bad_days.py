"""Days on which everything goes wrong: `docs/reliability.md` has the table of them.

What is told to fail here fails really: processes are killed at random moments, files
may not grow, and a server on this machine sends what broken mirrors send.
"""

import hashlib
import http.server
import io
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exception_only
from types import SimpleNamespace

import models
import pytest
import torch
import torch.nn.functional as F
from models import Letters, nudged_gpt
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pretrain.checkpoints import Checkpoints
from pretrain.hardware import Workers
from shared import data
from shared.ch02 import BPETokenizer
from shared.ch05 import (
    TensorFile,
    load_checkpoint,
    model_from_checkpoint,
    read_gpt2_folder,
    save_checkpoint,
    save_gpt2_folder,
    train_model_simple,
)
from shared.ch06 import SpamDataset, load_classifier
from shared.ch07 import load_instructed, load_instructions
from shared.files import write_atomically

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system has no fork, which makes tries cheap"
)
TRIES = 20  # of each kill; there are ten
CONTENT = b"A page that was torn out of a diary.\n" * 2000
PAGE = b"<!doctype html><title>Please sign in</title>".ljust(len(CONTENT))
CONFIG = {**models.TINY, "n_layers": 1, "qkv_bias": True}
MODELS = [nudged_gpt(CONFIG, seed) for seed in (1, 2)]


def zipped(members):
    """A zip archive with the members given, as bytes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, content in members.items():
            writer.writestr(name, content)
    return archive.getvalue()


# --- Other processes ------------------------------------------------------------------


@contextmanager
def child(work, *arguments):
    """A copy of this process that does some work, and ends with 0 or, failing, 1.

    Gives its id, once the work begins, and a file with what `work` tells the function
    that it gets first. A fork has imported all already, so it costs milliseconds.
    """
    reading, writing = os.pipe()
    number = os.fork()
    if number == 0:
        status = 1
        try:
            os.close(reading)
            # tqdm's own is shared by forks, and one that is killed never gives it back
            tqdm.set_lock(threading.RLock())
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            sys.stdout = sys.stderr = open(os.devnull, "w")
            # what a shell starts in the background ignores Ctrl-C, as do its children
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(writing, b"!")
            work(lambda text: os.write(writing, text.encode()), *arguments)
            status = 0
        except BaseException as error:
            os.write(writing, "".join(format_exception_only(error)).encode())
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as said:
        said.read(1)
        try:
            yield number, said
        finally:
            if os.waitpid(number, os.WNOHANG) == (0, 0):
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)


def ended(number):
    """The exit status of a child that is left to end by itself."""
    status = os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
    return status.si_status


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as the address says: /whole, /half, /page, /silent, /zip, ..."""

    torn = 2  # the first requests of /soon that get half of it only

    def do_GET(self):
        kind = self.path[1:]
        if kind == "silent":
            time.sleep(60)
        body = {"page": PAGE, "zip": zipped({"diary": CONTENT})}.get(kind, CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = kind == "half" or (kind == "soon" and Server.torn > 0)
        Server.torn -= half
        for start in range(0, len(body) // (1 + half), 2**15):
            self.wfile.write(body[start : start + 2**15])
            time.sleep(0.0005)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """The address of a server, which runs in a process of its own."""
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    with child(lambda say: listening.serve_forever()):
        yield f"http://127.0.0.1:{listening.server_port}"
    listening.server_close()


@pytest.fixture
def diary(tmp_path, monkeypatch, server):
    """Put a file "diary" into the table, with the server's kind of answer as address.

    The cache is empty, and pooch does not wait before it tries again.
    """
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("LLM_COURSE_MIRROR", raising=False)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))

    def add(kind):
        file = data.DataFile(
            name="diary",
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            size=len(CONTENT),
            licence="CC0-1.0",
            mirror="diary",
            url=f"{server}/{kind}",
            member="diary" if kind == "zip" else None,
        )
        monkeypatch.setitem(data.FILES, "diary", file)
        return tmp_path / "cache"

    return add


# --- Bad downloads --------------------------------------------------------------------


@needs_fork
def test_half_a_download_is_fetched_again(diary):
    cache = diary("soon")
    assert data.get("diary").read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == ["diary"]


@needs_fork
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("half", "IncompleteRead|Connection broken"),
        ("page", "hash"),  # of the right length, and with status 200
        ("silent", "timed out"),
    ],
)
def test_what_a_bad_mirror_sends_is_refused(diary, monkeypatch, kind, problem):
    monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT", 0.2)
    cache = diary(kind)
    with pytest.raises(data.DataUnavailable, match=problem) as caught:
        data.get("diary")
    assert "set LLM_COURSE_MIRROR to a folder" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_page_in_the_mirror_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_COURSE_MIRROR", str(tmp_path))
    (tmp_path / "sms_spam").mkdir()
    (tmp_path / "sms_spam/spam_collection.csv").write_bytes(PAGE)
    file = data.FILES["sms-spam"]
    monkeypatch.setitem(
        data.FILES, "sms-spam", file.__class__(**{**file.__dict__, "package": None})
    )
    with pytest.raises(data.DataUnavailable, match="bytes instead of 414431"):
        data.get("sms-spam")


def test_without_network_the_default_data_are_there_and_others_say_what_to_do(
    tmp_path, monkeypatch
):
    def no_such_host(*arguments, **others):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    monkeypatch.delenv("LLM_COURSE_MIRROR", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    optional = []
    for name, file in data.FILES.items():
        if file.repository or file.package:
            assert data.get(name).is_file()
        else:
            optional.append(name)
            with pytest.raises(data.DataUnavailable) as caught:
                data.get(name)
            for words in ("name resolution", "connect to the network", "_MIRROR to a"):
                assert words in str(caught.value), name
    assert "the-verdict" in optional and list(tmp_path.iterdir()) == []


def test_a_zip_with_paths_that_lead_outside_writes_nothing_there(tmp_path, monkeypatch):
    members = {"../evil": b"x", "/evil": b"x", "..\\evil": b"x", "a/../../evil": b"x"}
    (tmp_path / "sub").mkdir()
    archive = tmp_path / "sub/diary.zip"
    archive.write_bytes(zipped({**members, "diary": CONTENT}))
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "sub"))
    digest = hashlib.sha256(CONTENT).hexdigest()
    for member in ("diary", *members):
        file = data.DataFile("diary", digest, len(CONTENT), "CC0-1.0", member=member)
        if member == "diary":
            assert data._unpack(archive, file) == tmp_path / "sub/diary"
        else:
            with pytest.raises(ValueError, match="in the archive: 1 bytes instead"):
                data._unpack(archive, file)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"sub/diary", "sub/diary.zip"}
    assert not Path("/evil").exists()


@needs_fork
@pytest.mark.parametrize("kind", ["whole", "zip"])
def test_processes_that_fetch_at_once_all_get_the_file(diary, kind):
    cache = diary(kind)
    for _ in range(5):
        go, gate = os.pipe()

        def fetch(say, go=go, gate=gate):
            os.close(gate)
            os.read(go, 1)  # until the gate is closed, for all at the same moment
            assert data.get("diary").read_bytes() == CONTENT

        with child(fetch) as (a, said_a), child(fetch) as (b, said_b):
            with child(fetch) as (c, said_c):
                os.close(gate)
                states = [ended(number) for number in (a, b, c)]
                words = [said.read().decode() for said in (said_a, said_b, said_c)]
        os.close(go)
        assert states == [0, 0, 0], words
        assert [path.name for path in cache.iterdir()] == ["diary"]
        (cache / "diary").unlink()


# --- Writing --------------------------------------------------------------------------


def small_tokenizer(text):
    tokenizer = BPETokenizer()
    tokenizer.train(text, 260)
    return tokenizer


TOKENIZERS = [small_tokenizer("hug pug hugs"), small_tokenizer("a nut, nuts")]
# Each writes the first or the second version of something.
WRITERS = {
    "text": lambda path, n: write_atomically(path, f"{n}" * 10**5),
    "checkpoint": lambda path, n: save_checkpoint(path, MODELS[n]),
    "weights": lambda path, n: save_gpt2_folder(MODELS[n], path),
    **dict.fromkeys(
        ("tokenizer.json", "tokenizer.tiktoken", "tokenizer"),
        lambda path, n: TOKENIZERS[n].save(path),
    ),
}


def contents(path):
    """What is there, by name, but for drafts, whose names begin with a point."""
    files = [path] if path.is_file() else sorted(path.glob("[!.]*"))
    return {p.name: p.read_bytes() for p in files}


def drafts(folder):
    """What a writer that died has left: files that nothing will read."""
    return list(folder.rglob(".*"))


def versions(write, path):
    """What the two versions look like; the first one stays."""
    found = []
    for n in (1, 0):
        write(path, n)
        found.append(contents(path))
    assert found[0] != found[1] and found[0].keys() == found[1].keys()
    return found


def require_whole(path, both):
    """Refuse any file that is in neither version."""
    for name, content in contents(path).items():
        assert any(content == one[name] for one in both), f"{name} is torn"
    assert contents(path).keys() == both[0].keys()


def kill_while(work, check, enough=lambda: True):
    """Let a process work, kill it at a random moment, then check; many times.

    It goes on until it was `enough`, too, for a kill may fall between two writes.

    At the beginning of each write it says so; so long as some writes last, the next
    is killed somewhere between its beginning and half its length beyond its end.
    """
    chance, usual = random.Random(0), 0.002
    for count in range(20 * TRIES):
        if count >= TRIES and enough():
            return
        with child(work) as (number, said):
            said.read(2)
            start = time.perf_counter()
            said.read(1)
            usual = 0.9 * usual + 0.1 * min(0.02, time.perf_counter() - start)
            time.sleep(chance.uniform(0, 1.5 * usual))
            os.kill(number, signal.SIGKILL)
            assert ended(number) == signal.SIGKILL, said.read().decode()
        check()


def forever(say, write, path):
    """Write one version after the other."""
    n = 0
    while True:
        n = 1 - n
        say(".")
        write(path, n)


@needs_fork
@pytest.mark.parametrize("kind", WRITERS)
def test_kill_9_at_any_moment_leaves_the_old_file_or_the_new(tmp_path, kind):
    path, write = tmp_path / kind, WRITERS[kind]
    both = versions(write, path)
    kill_while(
        lambda say: forever(say, write, path),
        lambda: require_whole(path, both),
        enough=lambda: drafts(tmp_path),
    )
    assert drafts(tmp_path), "no kill fell into a write"
    write(path, 0)
    assert contents(path) == both[1]


@needs_fork
def test_the_same_kills_do_tear_a_file_that_is_written_plainly(tmp_path):
    path, torn = tmp_path / "plain", []

    def write(path, n):
        path.write_text(f"{n}" * 10**5)

    both = versions(write, path)
    check = {tuple(one.values()) for one in both}
    kill_while(
        lambda say: forever(say, write, path),
        lambda: torn.append(tuple(contents(path).values()) not in check),
        enough=lambda: any(torn),
    )
    assert any(torn)


@needs_fork
@pytest.mark.parametrize("kind", ["whole", "zip"])
def test_kill_9_during_a_download_leaves_nothing_or_all_of_it(diary, kind):
    cache = diary(kind)

    def fetch(say):
        while True:
            (cache / "diary").unlink(missing_ok=True)
            say(".")
            data.get("diary")

    def check():
        if (cache / "diary").exists():
            assert (cache / "diary").read_bytes() == CONTENT

    kill_while(fetch, check)
    assert data.get("diary").read_bytes() == CONTENT


@needs_fork
def test_kill_9_during_a_save_of_pretraining_leaves_a_state_to_go_on_from(tmp_path):
    alone = Workers(0, 1, torch.device("cpu"))
    saving = Checkpoints(tmp_path, 2, alone)
    saving.save(1, {"weight": torch.full((999,), 1.0)}, {})
    seen = [1]

    def save(say):
        for step in range(seen[-1] + 1, 10**6):
            say(".")
            saving.save(step, {"weight": torch.full((999,), float(step))}, {})

    def check():
        checkpoints = Checkpoints(tmp_path, 2, alone)
        last = checkpoints.complete()[-1]
        step, state = checkpoints.facts(last)["step"], {"weight": torch.zeros(999)}
        checkpoints.load(last, state)
        assert (state["weight"] == step).all() and step >= seen[-1]
        seen.append(step)

    kill_while(save, check)
    assert seen[-1] > 1


def limited(say, most, write, *arguments):
    """Write where no file may become longer than `most` bytes, as on a full disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    write(*arguments)


@needs_fork
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_is_full_after_n_bytes_costs_nothing_old(tmp_path, kind):
    path, write = tmp_path / kind, WRITERS[kind]
    both = versions(write, path)
    longest = max(map(len, both[0].values()))
    for most in (0, 1, 4096, longest // 2, longest - 1):
        if most < longest:
            with child(limited, most, write, path, 1) as (number, said):
                assert ended(number) == 1
                words = said.read()
                assert b"Error" in words and b"File too large" in words, (most, words)
                assert b"was not written" in words, (most, words)
            require_whole(path, both)
            assert not drafts(tmp_path)
    with child(limited, longest, write, path, 1) as (number, said):
        assert ended(number) == 0, said.read().decode()
    assert contents(path) == both[0]


@needs_fork
@pytest.mark.parametrize("kind", ["whole", "zip"])
def test_a_download_to_a_full_disk_says_so_and_leaves_nothing(diary, kind):
    cache = diary(kind)
    for most in (0, 4096, len(CONTENT) - 1):
        with child(limited, most, data.get, "diary") as (number, said):
            assert ended(number) == 1
            assert "DataUnavailable" in (words := said.read().decode())
            assert "File too large" in words
        assert list(cache.iterdir()) == []
    assert data.get("diary").read_bytes() == CONTENT


@needs_fork
@pytest.mark.parametrize("kind", WRITERS)
def test_two_processes_that_write_the_same_file_leave_one_of_the_two(tmp_path, kind):
    path, write = tmp_path / kind, WRITERS[kind]
    both = versions(write, path)

    def work(say, first):
        for n in range(20):
            write(path, (n + first) % 2)

    with child(work, 0) as (a, said_a), child(work, 1) as (b, said_b):
        states = [ended(a), ended(b)]
        assert states == [0, 0], (said_a.read(), said_b.read())
    require_whole(path, both)
    assert not drafts(tmp_path)


# --- Programs in the place of data ----------------------------------------------------


class Bait:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# By the name of the file that holds a pickle: what might load it.
READERS = {
    "a.safetensors": [
        *(TensorFile, model_from_checkpoint, load_classifier),
        lambda path: load_checkpoint(path, nudged_gpt(CONFIG)),
        lambda path: load_instructed(path, nudged_gpt(CONFIG)),
    ],
    "model.safetensors": [lambda path: read_gpt2_folder(path.parent)],
    "config.json": [lambda path: read_gpt2_folder(path.parent)],
    "tokenizer.json": [BPETokenizer.load],
    "tokenizer.tiktoken": [BPETokenizer.load],
    "encoder.json": [lambda path: BPETokenizer.load(path.parent)],
    "vocab.bpe": [lambda path: BPETokenizer.load(path.parent)],
    "instructions.json": [load_instructions],
    "spam.csv": [lambda path: SpamDataset(path, TOKENIZERS[0])],
}


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_the_place_of_a_file_is_refused_and_never_executed(
    tmp_path, name, form
):
    folder, eaten = tmp_path / "folder", tmp_path / "eaten"
    save_gpt2_folder(MODELS[0], folder)
    with zipfile.ZipFile(folder / "unused", "w"):
        pass
    for file, content in {"encoder.json": "{}", "vocab.bpe": "#version: 0.2\n"}.items():
        (folder / file).write_text(content)
    path = folder / name
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bait(eaten)))
    else:
        torch.save({"model": Bait(eaten)}, path)
    for read in READERS[name]:
        with pytest.raises(ValueError, match=name):
            read(path)
    assert not eaten.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert eaten.is_dir()  # so the bait was good


# --- Ctrl-C ---------------------------------------------------------------------------


def batches():
    """Six batches of windows, always in the same order."""
    ids = torch.randint(61, (12, 9), generator=torch.Generator().manual_seed(3))
    pairs = [(row[:-1], row[1:]) for row in ids]
    return DataLoader(pairs, batch_size=2)


def begin():
    """A model and its optimizer before the first step."""
    model = nudged_gpt({**CONFIG, "emb_dim": 12}, seed=4)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model, optimizer, num_epochs):
    loader = batches()
    return train_model_simple(
        *(model, loader, loader, optimizer, "cpu", num_epochs, 5, 1, "ab", Letters())
    )


def fingerprint(model):
    parts = [parameter.detach().numpy().tobytes() for parameter in model.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@needs_fork
def test_ctrl_c_at_any_moment_leaves_a_whole_number_of_steps_to_go_on_from(tmp_path):
    """And a run that goes on from there is the run that nobody has interrupted."""
    model, optimizer = begin()
    calm = [fingerprint(model)]
    hook = optimizer.register_step_post_hook(lambda *_: calm.append(fingerprint(model)))
    train(model, optimizer, 15)
    hook.remove()
    path, chance, stops = tmp_path / "run.safetensors", random.Random(0), set()

    def interrupted(say):
        model, optimizer = begin()
        steps = iter("." * 20)  # more than that nobody reads
        optimizer.register_step_post_hook(lambda *_: say(next(steps, "")))
        looks = train(model, optimizer, 10**6)
        assert len({len(curve) for curve in looks}) == 1
        steps = {int(state["step"]) for state in optimizer.state.values()} or {0}
        assert len(steps) == 1, f"torn: {steps}"
        save_checkpoint(path, model, optimizer, {"step": steps.pop()})

    for _ in range(20):
        with child(interrupted) as (number, said):
            said.read(chance.randrange(1, 20))  # so many steps, however slow
            time.sleep(chance.uniform(0, 0.01))
            os.kill(number, signal.SIGINT)
            assert ended(number) == 0, said.read().decode()
        model, optimizer = begin()
        step = load_checkpoint(path, model, optimizer)["step"]
        if step < len(calm) - 6:
            assert fingerprint(model) == calm[step]
            for inputs, targets in list(batches())[step % 6 :]:
                optimizer.zero_grad()
                logits = model.train()(inputs)
                F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
                optimizer.step()
            assert fingerprint(model) == calm[step // 6 * 6 + 6]
            stops.add(step)
    assert len(stops) > 3
