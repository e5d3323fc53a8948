"""Generated text to copy from: the same everywhere, and full of copies."""

import hashlib
import re

import pytest

from pretrain.prepare import read_documents
from pretrain.tasks import KINDS, Words, main, write_tasks
from shared.ch02 import get_tokenizer

SHA256 = "72dbf5dca0d9b8518435f440ccfa220c33185d0fb458b2d2c4029fef7210fd69"


@pytest.fixture(scope="module")
def words():
    return Words(5)


def test_a_seed_gives_the_same_bytes_everywhere(tmp_path):
    for seed in (123, 123, 124):
        write_tasks(tmp_path / f"{seed}.txt", 300, seed)
    text = (tmp_path / "123.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == SHA256
    assert text != (tmp_path / "124.txt").read_bytes()
    assert len(list(read_documents(tmp_path / "123.txt"))) == 300


@pytest.mark.parametrize("kind", sorted(set(KINDS), key=lambda x: x.__name__))
def test_what_is_asked_for_stands_before(kind, words):
    """Rare words come more than once, in all but a few documents of each kind."""
    repeated = 0
    for _ in range(100):
        found = re.findall(r"[A-Za-z]{3,}", kind(words))
        repeated += any(found.count(word) > 1 for word in found[-4:])
    assert repeated >= 90


def test_words_come_from_the_whole_vocabulary(words):
    tokenizer = get_tokenizer()
    ids = {i for _ in range(40_000) for i in tokenizer.encode(" " + words.word())}
    assert len(words.whole) > 25_000
    assert len(ids & set(range(20_000, 50_257))) > 10_000


def test_impossible_orders_are_refused(tmp_path, capsys):
    path = tmp_path / "tasks.txt"
    main([str(path), "--documents", "3", "--seed", "1"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="documents must be 1 or more, not 0"):
        write_tasks(path, 0)
    with pytest.raises(SystemExit, match="error: documents must be 1 or more, not -1"):
        main([str(path), "--documents", "-1"])
    assert path.read_bytes() == before
