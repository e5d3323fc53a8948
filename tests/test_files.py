"""Files are replaced whole or not at all."""

import pytest

from shared.files import replacing, write_atomically


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
