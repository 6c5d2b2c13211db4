import re
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
import tifffile
from live_path import wait_for

from bluesky_denoise.errors import (
    DenoiseError,
    FrameNotReady,
    FrameShapeError,
    FrameValueError,
)
from bluesky_denoise.sources.readers import (
    AdapterSource,
    HDF5Source,
    as_stack,
    open_source,
    read_until,
)

DATASET = "/entry/data/data"
TIFF = "multipart/related;type=image/tiff"
NPY = "multipart/related;type=application/x-npy"


@pytest.fixture
def counts():
    return np.random.default_rng(3).poisson(5, (6, 16, 20)).astype(np.uint16)


def descriptor(shape, dtype="<u2"):
    key = {"dtype": "array", "dtype_numpy": dtype, "shape": list(shape), "source": "sim"}
    return {"data_keys": {"det": key | {"external": "STREAM:"}}, "name": "primary"}


def resource(path, mimetype="application/x-hdf5", **parameters):
    if mimetype == "application/x-hdf5":
        parameters = {"dataset": DATASET, **parameters}
    return {
        "uid": "resource",
        "mimetype": mimetype,
        "uri": f"file://localhost{path}",
        "data_key": "det",
        "parameters": parameters,
    }


def soon():
    return time.monotonic() + 20


class GrowingFile:
    """A file as a detector writes it: extended by frames while others read it."""

    def __init__(self, path, row_shape, maxlen=None):
        self.file = h5py.File(path, "w", libver="latest")
        self.data = self.file.create_dataset(
            DATASET, (0, *row_shape), "u2", maxshape=(maxlen, *row_shape), chunks=(1, *row_shape)
        )
        self.file.swmr_mode = True

    def append(self, rows):
        first = len(self.data)
        self.data.resize(first + len(rows), axis=0)
        self.data[first:] = rows
        self.data.flush()


@pytest.fixture
def growing(tmp_path):
    file = GrowingFile(tmp_path / "det.h5", (16, 20))
    yield file
    file.file.close()


# HDF5


@pytest.mark.parametrize(
    ("elsewhere", "held"),
    [
        ("/entry/instrument/detector/data", "it has frames in /entry/instrument/detector/data"),
        ("/entry/data", "nor other frames"),
    ],
)
def test_frames_that_a_layout_puts_elsewhere_are_told(tmp_path, counts, elsewhere, held):
    with h5py.File(tmp_path / "det.h5", "w") as file:
        file[elsewhere] = counts if "instrument" in elsewhere else 1.0
    source = open_source(resource(tmp_path / "det.h5"), descriptor((16, 20)))
    message = rf"det\.h5 has no dataset '{DATASET}', {held}\. .*`dataset` in the resource_kwargs"
    with pytest.raises(FrameNotReady, match=message):
        read_until(source, 0, time.monotonic())


def test_a_group_of_datasets_is_no_dataset(tmp_path, counts):
    with h5py.File(tmp_path / "det.h5", "w") as file:
        file[f"{DATASET}/frames"] = counts
    source = open_source(resource(tmp_path / "det.h5"), descriptor((16, 20)))
    message = rf"det\.h5 has no dataset '{DATASET}', it has frames in {DATASET}/frames\."
    with pytest.raises(FrameNotReady, match=message):
        read_until(source, 0, time.monotonic())


@pytest.mark.parametrize("declared", [(16, 20), (1, 16, 20)])
def test_a_growing_file_is_read_frame_by_frame(tmp_path, growing, counts, declared):
    source = open_source(resource(tmp_path / "det.h5"), descriptor(declared))
    assert isinstance(source, HDF5Source)
    for i, frame in enumerate(counts):
        growing.append(frame[None])
        np.testing.assert_array_equal(read_until(source, i, soon()), frame[None])


def test_a_frame_that_comes_late_is_waited_for(tmp_path, growing, counts):
    source = open_source(resource(tmp_path / "det.h5"), descriptor((16, 20)))
    growing.append(counts[:1])
    np.testing.assert_array_equal(read_until(source, 0, soon()), counts[:1])
    read = []
    reader = threading.Thread(target=lambda: read.append(read_until(source, 2, soon())))
    reader.start()
    growing.append(counts[1:2])
    assert reader.is_alive()
    growing.append(counts[2:3])
    reader.join(20)
    np.testing.assert_array_equal(read[0], counts[2:3])


def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path, counts):
    path = tmp_path / "late.h5"
    source = open_source(resource(path), descriptor((16, 20)))
    message = r"frame 0 is not readable: .*No such file.*late\.h5'\. Where the IOC sees the files"
    with pytest.raises(FrameNotReady, match=message):
        read_until(source, 0, time.monotonic())
    path.write_bytes(b"")
    with pytest.raises(FrameNotReady, match="frame 0 is not readable"):
        read_until(source, 0, time.monotonic())
    path.unlink()
    with h5py.File(path, "w", libver="latest") as file:
        file[DATASET] = counts
    np.testing.assert_array_equal(read_until(source, 5, soon()), counts[5:])


def test_a_frame_whose_place_is_not_written_yet_is_waited_for(tmp_path, counts):
    # Writers that know the number of frames make room for all of them at the start.
    with h5py.File(tmp_path / "det.h5", "w", libver="latest") as file:
        data = file.create_dataset(DATASET, counts.shape, np.uint16, chunks=(1, 8, 20))
        file.swmr_mode = True
        source = open_source(resource(tmp_path / "det.h5"), descriptor((16, 20)))
        data[0] = 0 * counts[0]
        data[1, :8] = counts[1, :8]
        data.flush()
        assert not source.read(0).any()
        for nothing in (1, 2):  # half of it, all of it
            with pytest.raises(FrameNotReady, match="nothing is written"):
                read_until(source, nothing, time.monotonic())
        data[1, 8:] = counts[1, 8:]
        data.flush()
        np.testing.assert_array_equal(source.read(1), counts[1:2])


def test_all_frames_of_an_event_must_be_written(tmp_path, counts):
    with h5py.File(tmp_path / "det.h5", "w", libver="latest") as file:
        data = file.create_dataset(DATASET, counts.shape, np.uint16, chunks=(1, 16, 20))
        file.swmr_mode = True
        source = open_source(resource(tmp_path / "det.h5", multiplier=3), descriptor((16, 20)))
        for number in range(3):
            with pytest.raises(FrameNotReady, match="nothing is written"):
                read_until(source, 0, time.monotonic())
            data[number] = counts[number]
            data.flush()
        np.testing.assert_array_equal(source.read(0), counts[:3])


def test_at_the_deadline_the_error_says_how_many_frames_there_are(tmp_path, growing, counts):
    growing.append(counts[:2])
    source = open_source(resource(tmp_path / "det.h5"), descriptor((16, 20)))
    began = time.monotonic()
    message = "frame 2 is not readable: 2 frames in the file, 3 promised"
    with pytest.raises(FrameNotReady, match=re.escape(message)):
        read_until(source, 2, began + 0.2)
    assert 0.2 <= time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("declared", "parameters"),
    [
        ((2, 16, 20), {}),
        ((1, 2, 16, 20), {}),
        ((16, 20), {"multiplier": 2}),
        ((2, 16, 20), {"multiplier": 2}),
    ],
)
def test_two_frames_per_event_lie_one_after_the_other(
    tmp_path, growing, counts, declared, parameters
):
    growing.append(counts)
    source = open_source(resource(tmp_path / "det.h5", **parameters), descriptor(declared))
    for i in range(3):
        np.testing.assert_array_equal(source.read(i), counts[2 * i : 2 * i + 2])
    growing.append(counts[:1])
    with pytest.raises(IndexError, match="7 frames in the file, 8 promised"):
        source.read(3)


def test_two_frames_per_event_may_have_an_axis_of_their_own(tmp_path, counts):
    file = GrowingFile(tmp_path / "det.h5", (2, 16, 20))
    file.append(counts.reshape(3, 2, 16, 20))
    source = open_source(resource(tmp_path / "det.h5"), descriptor((2, 16, 20)))
    np.testing.assert_array_equal(source.read(1), counts[2:4])
    file.file.close()


def test_a_file_with_one_frame_and_no_axis_for_others_is_read(tmp_path, counts):
    with h5py.File(tmp_path / "det.h5", "w") as file:
        file[DATASET] = counts[0]
    source = open_source(resource(tmp_path / "det.h5"), descriptor((16, 20)))
    np.testing.assert_array_equal(as_stack(source.read(0), "det"), counts[:1])
    with pytest.raises(IndexError, match=r"1 frame in the file, 2 promised"):
        source.read(1)


def test_compressed_frames_are_read(tmp_path, counts):
    import hdf5plugin

    with h5py.File(tmp_path / "det.h5", "w") as file:
        file.create_dataset(DATASET, data=counts, chunks=(1, 16, 20), **hdf5plugin.Bitshuffle())
    source = open_source(resource(tmp_path / "det.h5"), descriptor((16, 20)))
    np.testing.assert_array_equal(source.read(3), counts[3:4])


WRITER = """
import sys, h5py
with h5py.File(sys.argv[1], "w", libver="latest") as file:
    data = file.create_dataset(sys.argv[2], (0, 16, 20), "u2", maxshape=(None, 16, 20))
    file.swmr_mode = True
    for number, _ in enumerate(sys.stdin):
        data.resize(number + 1, axis=0)
        data[number] = number
        data.flush()
        print(number, flush=True)
"""


def test_a_file_of_another_process_is_read_through_two_sources(tmp_path):
    path = tmp_path / "det.h5"
    command = [sys.executable, "-c", WRITER, str(path), DATASET]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        # As for two streams of one detector, and for a view beside the denoiser.
        sources = [open_source(resource(path), descriptor((16, 20))) for _ in range(2)]
        for number in range(6):
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == f"{number}\n"
            for source in sources:
                for earlier in range(number + 1):
                    assert (read_until(source, earlier, soon()) == earlier).all()
        writer.stdin.close()


# Series of files


def write(path, frame):
    if path.suffix == ".npy":
        np.save(path, frame)
    else:
        tifffile.imwrite(path, frame)


def series(tmp_path, kind, per_event=1):
    """Return a source of files det_0, det_1, … and where each lies."""
    if kind == "npy":
        parameters = {"spec": "NPY_SEQ"}
        mimetype, uri, suffix = NPY, tmp_path / "det", "npy"
    else:
        parameters = {"template": "_{:d}.tif"}
        mimetype, uri, suffix = TIFF, tmp_path / "det", "tif"
    shape = (per_event, 16, 20) if per_event > 1 else (16, 20)
    source = open_source(resource(uri, mimetype, **parameters), descriptor(shape))
    assert isinstance(source, AdapterSource)
    return source, lambda i: tmp_path / f"det_{i}.{suffix}"


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_a_series_of_files_is_read_file_by_file(tmp_path, counts, kind):
    source, path = series(tmp_path, kind)
    for i, frame in enumerate(counts[:3]):
        write(path(i), frame)
        np.testing.assert_array_equal(as_stack(source.read(i), "det"), frame[None])
    np.testing.assert_array_equal(as_stack(source.read(1), "det"), counts[1:2])


def test_the_description_of_a_series_is_not_changed_by_reading_it(tmp_path, counts):
    described = resource(tmp_path / "det", NPY, spec="NPY_SEQ")
    write(tmp_path / "det_0.npy", counts[0])
    open_source(described, descriptor((16, 20))).read(0)
    assert described == resource(tmp_path / "det", NPY, spec="NPY_SEQ")


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_a_half_written_file_is_read_once_it_is_whole(tmp_path, counts, kind):
    source, path = series(tmp_path, kind)
    write(path(0), counts[0])
    whole = path(0).read_bytes()
    for length in (0, 4, len(whole) // 8, len(whole) // 2, len(whole) - 1):
        path(0).write_bytes(whole[:length])
        with pytest.raises(FrameNotReady, match="frame 0 is not readable"):
            read_until(source, 0, time.monotonic())
    read = []
    reader = threading.Thread(target=lambda: read.append(read_until(source, 0, soon())))
    reader.start()
    path(0).write_bytes(whole)
    reader.join(20)
    np.testing.assert_array_equal(as_stack(read[0], "det"), counts[:1])


def test_a_tiff_with_two_pages_has_two_frames(tmp_path, counts):
    source, path = series(tmp_path, "tif", per_event=2)
    write(path(0), counts[:2])
    np.testing.assert_array_equal(as_stack(source.read(0), "det"), counts[:2])


def test_a_file_of_another_shape_than_the_descriptor_has_is_told_with_what_to_do(tmp_path, counts):
    source, path = series(tmp_path, "tif")
    write(path(0), counts[0, :10])
    message = r"10, 20\).* the descriptor has \(16, 20\) for a point\. .*take one before"
    with pytest.raises(FrameNotReady, match=message):
        read_until(source, 0, time.monotonic())


def test_no_file_stays_open_after_a_series_was_read(tmp_path, counts):
    import psutil

    source, path = series(tmp_path, "tif")
    for i in range(3):
        write(path(i), counts[i])
        source.read(i)
    opened = lambda: [f for f in psutil.Process().open_files() if f.path.endswith(".tif")]  # noqa: E731
    wait_for(lambda: not opened(), 5, "the closing of the files")


# Shapes


@pytest.mark.parametrize(
    ("shape", "stack"),
    [
        ((16, 20), (1, 16, 20)),
        ((1, 16, 20), (1, 16, 20)),
        ((3, 16, 20), (3, 16, 20)),
        ((1, 1, 16, 20), (1, 16, 20)),
        ((1, 3, 16, 20), (3, 16, 20)),
    ],
)
def test_frames_become_a_stack(shape, stack):
    assert as_stack(np.zeros(shape), "det").shape == stack


@pytest.mark.parametrize("shape", [(16, 20, 3), (1, 16, 20, 3), (16, 20, 4)])
def test_colours_are_no_frames(shape):
    with pytest.raises(FrameShapeError, match=rf"has shape {re.escape(str(shape))}, which is colo"):
        as_stack(np.zeros(shape), "det")


@pytest.mark.parametrize("shape", [(), (16,), (2, 2, 16, 20), (0, 16, 20), (16, 0)])
def test_what_is_no_stack_of_frames_is_refused_with_its_shape(shape):
    with pytest.raises(FrameShapeError, match=rf"'det' has shape {re.escape(str(shape))}; expect"):
        as_stack(np.zeros(shape), "det")


def test_masked_arrays_are_refused_rather_than_unmasked():
    counts = np.ma.masked_array(np.ones((16, 20)), np.eye(16, 20))
    with pytest.raises(FrameValueError, match="A masked array was given"):
        as_stack(counts, "det")


def test_a_kind_of_file_that_nothing_reads_is_named():
    with pytest.raises(DenoiseError) as refusal:
        open_source(resource("/data/a.xyz", "application/x-weird"), descriptor((16, 20)))
    for told in ("/data/a.xyz", "'application/x-weird'", "application/x-hdf5", TIFF, NPY):
        assert told in str(refusal.value)


def test_a_spec_that_nothing_reads_is_named_with_what_to_do():
    eiger = resource("/data/a", "application/octet-stream", spec="AD_EIGER_MX")
    with pytest.raises(DenoiseError) as refusal:
        open_source(eiger, descriptor((16, 20)))
    for told in ("/data/a", "'AD_EIGER_MX'", "AD_HDF5, ", "AD_TIFF", "areaDetector's HDF5 plugin"):
        assert told in str(refusal.value)
    assert "octet-stream" not in str(refusal.value)
