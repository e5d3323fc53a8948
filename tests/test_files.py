"""Files are replaced whole or not at all."""

import contextlib
import json
import os
import stat

import pytest

from shared.files import copy_file, extend_record, replacing, write_atomically


def test_a_new_file_and_its_folder_are_made(tmp_path):
    write_atomically(tmp_path / "new/diary.txt", "äöü\n")
    assert (tmp_path / "new/diary.txt").read_bytes() == "äöü\n".encode()


def test_nothing_but_the_file_is_left(tmp_path):
    path = tmp_path / "diary.txt"
    path.write_text("old")
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_is_whole_and_a_failed_one_leaves_the_old_file(tmp_path):
    write_atomically(tmp_path / "diary.txt", "text")
    copy_file(tmp_path / "diary.txt", tmp_path / "new/copy.txt")
    assert (tmp_path / "new/copy.txt").read_text() == "text"
    with pytest.raises(OSError):
        copy_file(tmp_path / "none.txt", tmp_path / "new/copy.txt")
    assert (tmp_path / "new/copy.txt").read_text() == "text"
    copy_file(tmp_path / "diary.txt", tmp_path / "diary.txt")  # onto itself
    assert (tmp_path / "diary.txt").read_text() == "text"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "diary.txt"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as draft:
        draft.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_several_files_are_replaced_only_if_all_are_whole(tmp_path):
    paths = [tmp_path / "ids", tmp_path / "rules"]
    for path in paths:
        path.write_text("old")
    with pytest.raises(OSError), replacing(paths[0]) as ids, replacing(paths[1]) as _:
        ids.write_text("new")
        raise OSError("disk full")
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == paths


def test_through_a_link_the_target_is_replaced_and_the_link_stays(tmp_path):
    target, link, other = (tmp_path / name for name in ("real/diary.txt", "a", "b"))
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    other.symlink_to("a")  # a link to a link, relative
    for path in (link, other):
        write_atomically(path, path.name)
        assert link.is_symlink() and other.is_symlink()
        assert not target.is_symlink() and target.read_text() == path.name
    assert list(target.parent.iterdir()) == [target]


def test_a_link_to_nothing_yet_stays_and_its_target_is_made(tmp_path):
    link = tmp_path / "diary.txt"
    link.symlink_to(tmp_path / "new/diary.txt")
    write_atomically(link, "text")
    assert link.is_symlink() and (tmp_path / "new/diary.txt").read_text() == "text"
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new/diary.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_what_is_no_file_is_refused_and_left_alone(tmp_path):
    pipe, device, folder, itself, link = (tmp_path / name for name in "pdfil")
    os.mkfifo(pipe)
    with contextlib.suppress(PermissionError):  # only root may make one
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    folder.mkdir()
    (folder / "mine").write_text("old")
    itself.symlink_to(itself)
    link.symlink_to(pipe)
    before = {path: path.lstat()[:2] for path in tmp_path.iterdir()}
    for path in before:
        with pytest.raises(OSError, match="not an ordinary file .* name another path"):
            write_atomically(path, "text")
    assert before == {path: path.lstat()[:2] for path in tmp_path.iterdir()}
    assert (folder / "mine").read_text() == "old"


def test_a_record_keeps_its_runs_and_gets_those_that_are_missing(tmp_path):
    path, asked = tmp_path / "record.json", []

    def run(seed):
        asked.append(seed)
        if seed == 3:
            raise KeyboardInterrupt
        return {"seed": seed, "score": 10 * seed}

    with contextlib.suppress(KeyboardInterrupt):
        extend_record(path, {"made_of": "salt"}, [1, 2, 3], run)
    record = extend_record(path, {"made_of": "salt"}, [2, 4], run)
    assert asked == [1, 2, 3, 4]  # what was finished before Ctrl-C is not run again
    assert [kept["score"] for kept in record["runs"]] == [10, 20, 40]
    assert json.loads(path.read_text()) == record
    fresh = extend_record(path, {"made_of": "sugar"}, [2], run)
    assert fresh == {"made_of": "sugar", "runs": [{"seed": 2, "score": 20}]}
