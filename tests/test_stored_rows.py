from contextlib import contextmanager

import h5py
import numpy as np
import pytest
from h5py.h5s import UNLIMITED

from bluesky_denoise.sources.stored_rows import are_stored

SHAPE = (8, 10)


def stored(path):
    """Return which rows are stored, and which are read as something other than zeros."""
    with h5py.File(path, "r", swmr=True, libver="latest") as file:
        data = file["data"]
        found = [are_stored(data, slice(i, i + 1)) for i in range(len(data))]
        return found, [bool(row.any()) for row in data]


def virtual(path, layout):
    with h5py.File(path, "w", libver="latest") as file:
        file.create_virtual_dataset("data", layout)


@contextmanager
def writer(path):
    """Yield a function that appends frames of ones, as a writer that others read from."""
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset(
            "data", (0, *SHAPE), "u2", maxshape=(None, *SHAPE), chunks=(1, *SHAPE)
        )
        file.swmr_mode = True

        def append(number):
            first = len(data)
            data.resize(first + number, axis=0)
            data[first:] = 1
            data.flush()

        yield append


@pytest.mark.parametrize("block", [1, 2])
def test_frames_that_one_of_several_writers_lacks_are_not_stored(tmp_path, block):
    layout = h5py.VirtualLayout((8, *SHAPE), "u2")
    for part in range(2):
        source = h5py.VirtualSource(f"{part}.h5", "data", (4, *SHAPE))
        for first in range(0, 4, block):
            start = 2 * first + part * block
            layout[start : start + block] = source[first : first + block]
    virtual(tmp_path / "all.h5", layout)
    with writer(tmp_path / "0.h5") as one:
        one(3)  # the file of the other is not there
        found, filled = stored(tmp_path / "all.h5")
        assert found == filled
        assert sum(found) == 3
        with writer(tmp_path / "1.h5") as other:
            other(1)
            found, filled = stored(tmp_path / "all.h5")
            assert found == filled
            assert sum(found) == 4
            one(1)
            other(3)
            assert stored(tmp_path / "all.h5") == ([True] * 8, [True] * 8)


def test_writers_may_take_blocks_of_frames_in_turn(tmp_path):
    layout = h5py.VirtualLayout((8, *SHAPE), "u2")
    for part in range(2):
        blocks = h5py.MultiBlockSlice(start=2 * part, stride=4, count=2, block=2)
        layout[blocks] = h5py.VirtualSource(f"{part}.h5", "data", (4, *SHAPE))
    virtual(tmp_path / "all.h5", layout)
    with writer(tmp_path / "0.h5") as one, writer(tmp_path / "1.h5") as other:
        one(3)
        other(1)
        with h5py.File(tmp_path / "all.h5", "r", swmr=True, libver="latest") as file:
            found = [are_stored(file["data"], slice(i, i + 1)) for i in range(8)]
            assert found == [True, True, True, False, True, False, False, False]
            assert are_stored(file["data"], slice(0, 3))
            assert not are_stored(file["data"], slice(0, 4))


def test_a_virtual_dataset_that_grows_has_rows_that_are_not_stored(tmp_path):
    layout = h5py.VirtualLayout((2, *SHAPE), "u2", maxshape=(None, *SHAPE))
    for part in range(2):
        source = h5py.VirtualSource(f"{part}.h5", "data", (1, *SHAPE), maxshape=(None, *SHAPE))
        layout[part:UNLIMITED:2] = source[:UNLIMITED]
    virtual(tmp_path / "all.h5", layout)
    with writer(tmp_path / "0.h5") as one, writer(tmp_path / "1.h5") as other:
        one(3)
        other(1)
        found, filled = stored(tmp_path / "all.h5")
        assert found == filled == [True, True, True, False, True]


def test_each_module_of_a_frame_must_be_stored(tmp_path):
    layout = h5py.VirtualLayout((2, SHAPE[0], 2 * SHAPE[1]), "u2")
    for part in range(2):
        columns = slice(part * SHAPE[1], (part + 1) * SHAPE[1])
        layout[:, :, columns] = h5py.VirtualSource(f"{part}.h5", "data", (2, *SHAPE))
    virtual(tmp_path / "all.h5", layout)
    for part in range(2):
        with h5py.File(tmp_path / f"{part}.h5", "w") as file:
            data = file.create_dataset("data", (2, *SHAPE), "u2", chunks=(1, *SHAPE))
            data[: part + 1] = 1
    assert stored(tmp_path / "all.h5") == ([True, False], [True, True])


def test_a_file_for_each_frame_may_be_missing(tmp_path):
    layout = h5py.VirtualLayout((2, *SHAPE), "u2")
    for part in range(2):
        layout[part] = h5py.VirtualSource(f"{part}.h5", "data", SHAPE)
    virtual(tmp_path / "all.h5", layout)
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["elsewhere"] = 1
        assert stored(tmp_path / "all.h5")[0] == [False, False]
        file["data"] = np.ones(SHAPE, "u2")
    assert stored(tmp_path / "all.h5") == ([False, True], [False, True])


def test_rows_that_no_source_brings_are_not_stored(tmp_path):
    layout = h5py.VirtualLayout((3, *SHAPE), "u2")
    layout[1:2] = h5py.VirtualSource("part.h5", "data", (1, *SHAPE))
    virtual(tmp_path / "all.h5", layout)
    with writer(tmp_path / "part.h5") as append:
        append(1)
        assert stored(tmp_path / "all.h5") == ([False, True, False], [False, True, False])


def test_rows_after_the_last_one_that_a_source_brings_are_not_stored(tmp_path):
    layout = h5py.VirtualLayout((6, *SHAPE), "u2")
    layout[0:4:2] = h5py.VirtualSource("part.h5", "data", (3, *SHAPE))[:2]
    virtual(tmp_path / "all.h5", layout)
    with writer(tmp_path / "part.h5") as append:
        append(3)  # one more than is shown
        only_two = [True, False, True, False, False, False]
        assert stored(tmp_path / "all.h5") == (only_two, only_two)


def test_a_file_of_one_frame_may_be_half_written(tmp_path):
    layout = h5py.VirtualLayout((1, *SHAPE), "u2")
    layout[0] = h5py.VirtualSource("part.h5", "data", SHAPE)
    virtual(tmp_path / "all.h5", layout)
    with h5py.File(tmp_path / "part.h5", "w") as file:
        data = file.create_dataset("data", SHAPE, "u2", chunks=(4, 10))
        data[:4] = 1
    assert stored(tmp_path / "all.h5") == ([False], [True])


def test_a_virtual_file_that_is_written_anew_is_looked_at_anew(tmp_path):
    with writer(tmp_path / "part.h5") as append:
        append(1)
        for source, found in ((0, True), (1, False)):
            layout = h5py.VirtualLayout((1, *SHAPE), "u2")
            layout[0] = h5py.VirtualSource("part.h5", "data", (2, *SHAPE))[source]
            virtual(tmp_path / "all.h5", layout)
            assert stored(tmp_path / "all.h5") == ([found], [found])


def test_sources_may_be_in_the_same_file_and_reordered(tmp_path):
    path = tmp_path / "all.h5"
    layout = h5py.VirtualLayout((3, *SHAPE), "u2")
    layout[:] = h5py.VirtualSource(".", "raw", (10, *SHAPE))[1:10:3]
    with h5py.File(path, "w", libver="latest") as file:
        raw = file.create_dataset("raw", (10, *SHAPE), "u2", chunks=(1, *SHAPE))
        raw[1] = raw[7] = 1
        file.create_virtual_dataset("data", layout)
    assert stored(path) == ([True, False, True], [True, False, True])


def test_what_cannot_be_known_counts_as_stored(tmp_path, monkeypatch):
    numbered = h5py.VirtualLayout((1, *SHAPE), "u2", maxshape=(None, *SHAPE))
    numbered[0:UNLIMITED:1] = h5py.VirtualSource("part_%b.h5", "data", (1, *SHAPE))
    virtual(tmp_path / "numbered.h5", numbered)
    with writer(tmp_path / "part_0.h5") as first:
        first(1)
        assert stored(tmp_path / "numbered.h5")[0] == [True]
    uneven = h5py.VirtualLayout((4, *SHAPE), "u2")
    uneven[[0, 1, 3]] = h5py.VirtualSource("nowhere.h5", "data", (3, *SHAPE))
    virtual(tmp_path / "uneven.h5", uneven)
    assert stored(tmp_path / "uneven.h5")[0] == [True] * 4
    layout = h5py.VirtualLayout((2, *SHAPE), "u2")
    layout[:] = h5py.VirtualSource("part.h5", "data", (2, *SHAPE))
    virtual(tmp_path / "all.h5", layout)
    assert stored(tmp_path / "all.h5")[0] == [False, False]
    monkeypatch.setenv("HDF5_VDS_PREFIX", "/data")
    assert stored(tmp_path / "all.h5")[0] == [True, True]


def test_contiguous_rows_count_as_stored(tmp_path):
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_dataset("data", (2, *SHAPE), "u2")
    assert stored(tmp_path / "all.h5") == ([True, True], [False, False])


def test_all_chunks_of_a_frame_must_be_stored(tmp_path):
    with h5py.File(tmp_path / "all.h5", "w") as file:
        data = file.create_dataset("data", (3, *SHAPE), "u2", chunks=(2, 3, 4))
        data[2:] = 1
        data[0, :3] = 1
        data[1, 3:, :8] = 1
        assert not are_stored(data, slice(0, 3))
        assert not are_stored(data, slice(1, 2))
        assert are_stored(data, slice(2, 3))
        data[1, 3:] = 1
        assert are_stored(data, slice(0, 3))
