import pytest

from bluesky_denoise.support.whole_files import check_place, write_whole


def test_files_that_belong_together_are_replaced_together(tmp_path):
    one, other = tmp_path / "new" / "one", tmp_path / "other"
    other.write_text("before")
    write_whole({one: b"1", other: b"2"})
    assert (one.read_bytes(), other.read_bytes()) == (b"1", b"2")
    (tmp_path / "other.part").mkdir()  # nothing can be written there
    with pytest.raises(OSError, match="other"):
        write_whole({one: b"3", other: b"4"})
    assert (one.read_bytes(), other.read_bytes()) == (b"1", b"2")
    assert not one.with_name("one.part").exists()


def test_a_place_is_checked_without_a_trace(tmp_path):
    (tmp_path / "old").write_text("kept")
    check_place(tmp_path / "old", tmp_path / "sub" / "new")
    assert (tmp_path / "old").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["old", "sub"]
    with pytest.raises(IsADirectoryError, match="sub is a folder; expected the name of a file"):
        check_place(tmp_path / "sub")
    with pytest.raises(OSError, match="old"):
        check_place(tmp_path / "old" / "new")
