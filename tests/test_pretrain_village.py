"""Tales of the village as a source: the same everywhere, asked for, and apart."""

import pytest

from pretrain.prepare import read_documents
from pretrain.village import HELD_OUT, SIMPLE, main, write_village
from shared.village import tell


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    out = tmp_path_factory.mktemp("texts")
    return [list(read_documents(path)) for path in write_village(out, 60)]


def test_half_of_the_tales_follow_a_request_for_them(texts):
    asked = 0
    for seed, text in enumerate(texts[0]):
        tale = tell(seed, simple=seed % SIMPLE == 0)
        assert text.endswith(tale.text)
        request = text.removesuffix(tale.text).strip()
        assert not request or request in tale.requests
        asked += bool(request)
    assert 20 <= asked <= 40 and len(texts[0]) == 60


def test_tales_that_nobody_trains_on_have_a_file_of_their_own(texts):
    assert texts[1] == [tell(seed, "held-out").text for seed in range(HELD_OUT)]


def test_the_share_of_requests_can_be_chosen(tmp_path):
    for asked, wanted in ((0, 0), (1, 20)):
        path, _ = write_village(tmp_path, 20, asked)
        told = [tell(n, simple=n % SIMPLE == 0).text for n in range(20)]
        found = [a != b for a, b in zip(read_documents(path), told, strict=True)]
        assert sum(found) == wanted


def test_impossible_orders_are_refused(tmp_path):
    main(["--out", str(tmp_path), "--tales", "3"])
    before = (tmp_path / "village.txt").read_bytes()
    with pytest.raises(ValueError, match="asked must be a share from 0 to 1, not 2"):
        write_village(tmp_path, 3, 2)
    with pytest.raises(SystemExit, match="error: tales must be 1 or more, not 0"):
        main(["--out", str(tmp_path), "--tales", "0"])
    assert (tmp_path / "village.txt").read_bytes() == before
