import json
import resource
import subprocess
import sys

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import httpx
import numpy as np
import pytest
from live_path import SHAPE, Camera, is_whole, poisson, settings, wait_for
from ophyd import Signal
from process_fixtures import replay
from tiled.client import from_uri

from bluesky_denoise import backup
from bluesky_denoise.backup import BackupFile, backup_files, read_backup, take_backup
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.raw_runs import raw_writer
from bluesky_denoise.restore import restore_run
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser, validate_documents


@pytest.fixture(params=[True, False], ids=["frames in files", "frames in events"])
def documents(RE, tmp_path, request):
    """Return the documents of a derived run."""
    options = {"frames_directory": tmp_path / "denoised"} if request.param else {}
    router, derived = DenoiseRouter(settings(**options), UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    RE(bp.count([Camera(name="det", func=poisson())], 3))
    return derived.documents


def as_json_would_be(value):
    """Return a document with lists for tuples, as they come back from JSON."""
    if isinstance(value, dict):
        return {k: as_json_would_be(v) for k, v in value.items()}
    return [as_json_would_be(v) for v in value] if isinstance(value, list | tuple) else value


def test_documents_come_back_as_they_were(tmp_path, documents):
    file = BackupFile(tmp_path / "backup", "run")
    for first in range(0, len(documents), 2):
        file.append(documents[first : first + 2])
    read = list(read_backup(file.path))
    assert [name for name, _ in read] == [name for name, _ in documents]
    for (_, one), (_, other) in zip(read, documents, strict=True):
        np.testing.assert_equal(one, as_json_would_be(other))
    validate_documents(read)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint16).reshape(2, 3),
        np.array([[np.nan, 1.5], [np.inf, -0.0]], np.float32),
        np.arange(24).reshape(4, 6)[::2, ::3],
        np.zeros((0, 4)),
        np.array([True, False]),
        np.array(2.5, np.float32),
    ],
    ids=["integers", "not finite", "not contiguous", "empty", "boolean", "no axis"],
)
def test_arrays_keep_their_values_shape_and_dtype(tmp_path, array):
    file = BackupFile(tmp_path, "run")
    file.append([("event", {"data": {"det": array}})])
    ((_, doc),) = read_backup(file.path)
    read = doc["data"]["det"]
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    np.testing.assert_array_equal(read, array)


def test_numbers_of_numpy_become_plain_ones(tmp_path):
    file = BackupFile(tmp_path, "run")
    file.append([("event", {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True)})])
    ((_, doc),) = read_backup(file.path)
    assert doc == {"a": 3, "b": 0.5, "c": True}


def test_values_that_are_not_json_are_kept_as_text(tmp_path):
    file = BackupFile(tmp_path, "run")
    file.append([("start", {"where": tmp_path, "which": {1}})])
    ((_, doc),) = read_backup(file.path)
    assert doc == {"where": str(tmp_path), "which": "{1}"}


def test_arrays_of_objects_are_kept_as_lists(tmp_path):
    file = BackupFile(tmp_path, "run")
    samples = np.array([["lead", None], [np.int64(3), {np.int64(1): 2}]], object)
    file.append([("event", {"data": {"sample": samples}})])
    ((_, doc),) = read_backup(file.path)
    assert doc["data"]["sample"] == [["lead", None], [3, {"1": 2}]]


def test_keys_that_json_does_not_have_become_text(tmp_path):
    file = BackupFile(tmp_path, "run")
    frame = np.arange(6, dtype=np.uint16).reshape(2, 3)
    limits = {np.int64(1): frame, (2, 3): [{np.float32(0.5): "half"}], None: 1}
    file.append([("start", {"limits": limits})])
    ((_, doc),) = read_backup(file.path)
    np.testing.assert_array_equal(doc["limits"].pop("1"), frame)
    assert doc["limits"] == {"(2, 3)": [{"0.5": "half"}], "None": 1}


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, documents):
    file = BackupFile(tmp_path / "backup", "run")
    file.append(documents)
    whole = file.path.read_bytes()
    for cut in (1, 2, 40):
        file.path.write_bytes(whole[:-cut])
        names = [name for name, _ in read_backup(file.path)]
        assert names == [name for name, _ in documents[:-1]]


def test_a_disk_that_is_full_leaves_whole_lines_and_what_failed_can_be_written_later(tmp_path):
    file = BackupFile(tmp_path, "run")
    file.append([("start", {"uid": "a"})])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append([("event", {"uid": "b"})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.append([("event", {"uid": "b"}), ("stop", {"uid": "c"})])
    assert [doc["uid"] for _, doc in read_backup(file.path)] == ["a", "b", "c"]


def test_an_empty_file_holds_no_documents(tmp_path):
    (tmp_path / "run.jsonl").write_bytes(b"")
    assert list(read_backup(tmp_path / "run.jsonl")) == []


def test_each_line_is_json_that_other_programs_can_read(tmp_path):
    file = BackupFile(tmp_path, "run")
    file.append([("event", {"data": {"det": np.ones(SHAPE)}})])
    item = json.loads(file.path.read_text())
    assert item["name"] == "event"
    assert item["doc"]["data"]["det"]["shape"] == [*SHAPE]


def taken(path):
    with take_backup(path) as ours:
        return ours


def test_a_file_is_its_writers_until_that_lets_it_go_or_is_killed(tmp_path):
    file = BackupFile(tmp_path, "run")
    file.append([("start", {"uid": "a"})])
    assert not taken(file.path)
    file.release()
    assert taken(file.path)
    file.append([("stop", {"uid": "b"})])
    assert not taken(file.path)
    assert len(list(read_backup(file.path))) == 2
    release, there = file.release, []
    file.release = lambda: [there.append(file.path.exists()), release()]
    file.done()
    assert there == [False]  # else another could take what is in Tiled
    assert not taken(file.path)

    write = "file = BackupFile(Path(sys.argv[1]), 'run'); file.append([('start', {})]); input()"
    code = f"import sys; from pathlib import Path; from {BackupFile.__module__} import *; {write}"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE) as other:
        wait_for(lambda: file.path.exists() and list(read_backup(file.path)))
        assert not taken(file.path)
        other.kill()
    assert taken(file.path)


def test_a_file_that_another_has_taken_is_written_later(tmp_path):
    file = BackupFile(tmp_path, "run")
    file.path.touch()
    with take_backup(file.path) as ours:
        assert ours
        with pytest.raises(BlockingIOError, match="another process has just taken"):
            file.append([("start", {"uid": "a"})])
    file.append([("start", {"uid": "a"})])
    assert [doc for _, doc in read_backup(file.path)] == [{"uid": "a"}]


def test_a_file_that_another_removes_before_it_is_locked_is_not_taken(tmp_path, monkeypatch):
    path, lock = tmp_path / "run.jsonl", backup._lock

    def lock_too_late(number):
        path.unlink()
        return lock(number)

    path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(backup, "_lock", lock_too_late)
        with take_backup(path) as ours:
            assert not ours
        file = BackupFile(tmp_path, "run")
        with pytest.raises(BlockingIOError, match="another process has just taken"):
            file.append([("start", {"uid": "run"})])
    file.append([("start", {"uid": "run"})])
    assert list(read_backup(path)) == [("start", {"uid": "run"})]
    file.done()


def test_files_are_listed_oldest_first_and_removed_when_done(tmp_path):
    import os

    files = [BackupFile(tmp_path, f"run{i}") for i in range(3)]
    for age, file in zip((1, 3, 2), files, strict=True):
        file.append([("start", {"uid": "a"})])
        os.utime(file.path, (1e9 - age, 1e9 - age))
    (tmp_path / "notes.txt").write_text("mine")
    assert [p.stem for p in backup_files(tmp_path)] == ["run1", "run2", "run0"]
    for file in files:
        file.done()
        file.done()
    assert backup_files(tmp_path) == []
    assert backup_files(tmp_path / "nowhere") == []


def test_a_server_error_ends_no_scan_and_the_raw_run_comes_back(RE, tiled, raw, tmp_path, caplog):
    """With arrays and numbers of numpy in its events."""
    client = from_uri(tiled.uri)
    requests, send = [], client.context.http_client.send

    def fail(request, **kwargs):
        requests.append(request.method)
        if len(requests) > 3:
            return httpx.Response(500, request=request, text="broken")
        return send(request, **kwargs)

    RE.subscribe(raw_writer(client, tmp_path / "raw"))
    client.context.http_client.send = fail
    (uid,) = RE(bp.count([replay(), Signal(name="number", value=np.int64(3))], 3))
    client.context.http_client.send = send
    path = tmp_path / "raw" / f"{uid}.jsonl"
    assert f"Raw run {uid} cannot be written to Tiled" in caplog.text
    assert str(path) in caplog.text
    assert is_whole(path)

    restore_run(client, path, replace=True)
    run = client[uid]
    frames = [event["data"]["det_image"] for event in raw.by_name["event"]]
    np.testing.assert_array_equal(run["primary"]["det_image"].read(), frames)
    assert list(run["primary"]["number"].read()) == [3, 3, 3]
    assert run.stop["exit_status"] == "success"
    client.context.close()


@pytest.fixture
def no_tiled(RE, tiled, tmp_path):
    """Subscribe a writer of raw runs whose Tiled fails; return the directory of its backups."""
    client = from_uri(tiled.uri)
    RE.subscribe(raw_writer(client, tmp_path / "raw"))
    client.context.http_client.send = lambda request, **_: httpx.Response(
        500, request=request, text="broken"
    )
    yield tmp_path / "raw"
    client.context.close()


def crowded(det, room, at):
    """Take three points, with no room on the disk from the first on until it is made `at`."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @bpp.run_decorator()
    def plan():
        for point in range(3):
            if point == at:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            yield from bps.trigger_and_read([det])
            if point == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room(), limits[1]))

    try:
        yield from plan()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("at", [2, "the next run", "the end"])
def test_raw_documents_that_a_full_disk_does_not_take_are_written_when_there_is_room(
    RE, raw, no_tiled, caplog, monkeypatch, at
):
    at_exit = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    det = Camera(name="det", func=poisson())

    def room():
        (path,) = backup_files(no_tiled)
        return path.stat().st_size + 10

    (uid,) = RE(crowded(det, room, at))
    path = no_tiled / f"{uid}.jsonl"
    assert f"{path} cannot be written ([Errno 27] File too large)" in caplog.text
    if at == "the next run":
        RE(bp.count([det]))
    elif at == "the end":
        (write_last,) = at_exit
        write_last()
    assert f"{path} has all that waited" in caplog.text
    assert "lost with this session" not in caplog.text
    assert is_whole(path)
    kept = [doc for name, doc in read_backup(path) if name == "event_page"]
    frames = [event["data"]["det_image"] for event in raw.by_name["event"][:3]]
    np.testing.assert_array_equal([page["data"]["det_image"][0] for page in kept], frames)
    with take_backup(path) as ours:
        assert ours


def test_a_directory_that_can_keep_no_raw_runs_is_told_when_the_writer_is_built(tiled, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot be kept in .*file/raw: Not a directory"):
        raw_writer(tiled.client, tmp_path / "file" / "raw")
    raw_writer(tiled.client, tmp_path / "later" / "raw")
    with pytest.raises(SettingsError, match="to go to a str; expected a client of Tiled, such"):
        raw_writer(tiled.uri, tmp_path / "raw")
    assert not (tmp_path / "later").exists()
