import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import psutil
import pytest
from bluesky.callbacks import LiveTable
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from live_path import (
    NO_PROXY,
    SHAPE,
    Camera,
    PlainImage,
    UnchangedDocuments,
    poisson,
    python_path,
    rates,
    settings,
    values,
    wait_for,
)
from ophyd.sim import DirectImage, SynAxis, SynSignal, SynSignalWithRegistry
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from ophyd_async.sim import SimBlobDetector
from tiled.client import from_uri
from tiled.structures.core import Spec

import bluesky_denoise.process as process_module
from bluesky_denoise.backup import backup_files, read_backup
from bluesky_denoise.errors import DenoiseTimeout, ModelNotFound, SettingsError
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import DocumentCollector, assert_emitted, validate_documents

FRAMES = np.random.default_rng(1).poisson(5, (7, *SHAPE)).astype(np.uint16)
NOWHERE = "http://127.0.0.1:9/api/v1?api_key=secret"


def replay(name="det"):
    return ReplayDetector(name=name, frames=ReplayFrames(FRAMES, 0.5), exposure_s=0.5)


def open_node(tiled, start):
    """Open a raw run in Tiled, and write nothing into it."""
    spec = Spec("BlueskyRun", version="3.0")
    tiled.client.create_container(start["uid"], metadata={"start": start}, specs=[spec])


def finished(derived, number=1):
    return wait_for(lambda: len(derived.by_name.get("stop", [])) == number, what="the derived stop")


@pytest.fixture(scope="module")
def shared(tiled, tmp_path_factory):
    """One process for the many tests that can share it; it is restarted by some."""
    directory = tmp_path_factory.mktemp("process")
    options = settings(
        tiled_uri=tiled.uri,
        frames_directory=directory / "denoised",
        read_timeout_s=20,
        batch_size=4,
    )
    with DenoiseProcess(options) as denoise:
        yield denoise
    assert backup_files(options.backup_path) == []


class LivePath:
    """The RunEngine with a raw writer and a denoiser behind it."""

    def __init__(self, tiled, denoise, raw, derived):
        self.tiled, self.denoise, self.raw, self.derived = tiled, denoise, raw, derived

    def in_tiled(self, uid):
        return self.tiled.client[uid]

    def check(self, uid, denoised, **told):
        """Check that the raw run is complete, and what the denoised stream says of itself."""
        self.denoise.wait(60)
        run = self.in_tiled(uid)
        (stop,) = (d for d in self.raw.by_name["stop"] if d["run_start"] == uid)
        assert run.stop["exit_status"] == stop["exit_status"]
        assert run.stop["num_events"] == stop["num_events"]
        descriptors = [d for d in self.raw.by_name.get("descriptor", []) if d["run_start"] == uid]
        for descriptor in descriptors:
            events = [e for e in self.raw.by_name["event"] if e["descriptor"] == descriptor["uid"]]
            stream = run[descriptor["name"]]
            assert len(stream["time"].read()) == len(events)
            for key, spec in descriptor["data_keys"].items():
                if spec["dtype"] == "array" and "external" not in spec:
                    np.testing.assert_array_equal(
                        stream[key].read(), [e["data"][key] for e in events]
                    )
        if denoised is None:
            assert "denoised" not in run
            return None
        stream = run["denoised"]
        told = {"exit_status": "success", "num_events": denoised, **told}
        assert {key: stream.metadata["denoise"][key] for key in told} == told
        if denoised:
            assert len(stream["denoise_ok"].read()) == denoised
        return stream


@pytest.fixture
def live(RE, raw, tiled, shared):
    unchanged, derived = UnchangedDocuments(), DocumentCollector()
    for callback in (unchanged, TiledWriter(tiled.client, batch_size=1), shared):
        RE.subscribe(callback)
    token = shared.subscribe(derived)
    yield LivePath(tiled, shared, raw, derived)
    shared.unsubscribe(token)
    unchanged.check()
    raw.validate()
    if derived.documents:
        derived.validate()


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """Hold the denoiser of a process back until ``gate.touch()``."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setenv("DENOISE_TEST_GATE", str(tmp_path / "gate"))
    return tmp_path / "gate"


# The main job


def test_a_scan_at_the_prompt_gives_a_denoised_stream_in_tiled(RE, tiled, tmp_path):
    """With detectors of ophyd, of ophyd-async and ours, as typed in the README."""
    from bluesky_denoise import DenoiseProcess, DenoiseSettings

    motor, path = SynAxis(name="motor"), tmp_path / "raw"
    path.mkdir()
    frames = ReplayFrames(FRAMES, 0.1)
    paths = StaticPathProvider(UUIDFilenameProvider(), path)
    with init_devices():
        blob = SimBlobDetector(paths, name="blob")
        flown = AsyncReplayDetector(paths, frames, name="flown")
    detectors = {
        "direct_img": DirectImage(func=poisson(), name="direct"),
        "blob": blob,
        "flown": flown,
        "ad_image": AreaDetectorReplay(name="ad", frames=frames, directory=path),
    }
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    options = DenoiseSettings(
        tiled_uri=tiled.uri,
        data_keys=list(detectors),
        exposure_s=0.1,
        frames_directory=tmp_path / "denoised",
    )
    with DenoiseProcess(options, model="bluesky_denoise.testing:UnitDenoiser") as denoise:
        assert denoise.settings.data_keys == tuple(detectors)
        assert denoise.settings.frames_directory == tmp_path / "denoised"
        RE.subscribe(denoise)
        uids = {key: RE(bp.scan([det], motor, -1, 1, 3))[0] for key, det in detectors.items()}
        denoise.wait(90)
    for key, uid in uids.items():
        run = tiled.client[uid]
        counts, rates = run["primary"][key].read(), run["denoised"][key].read()
        exposure_s = run["denoised"][f"{key}_exposure_s"].read()[0]
        np.testing.assert_allclose(
            rates, counts.reshape(rates.shape) / exposure_s, rtol=1e-6, err_msg=key
        )
        assert rates.max() > 0
        assert list(run["denoised"]["denoise_ok"].read()) == [True] * 3


def test_a_live_table_prints_denoised_numbers(RE, live, capsys):
    keys = ["motor", "det_image_denoised_total", "denoise_ok"]
    table = LiveTable(keys, stream_name="denoised")
    token = live.denoise.subscribe(table)
    (uid,) = RE(bp.scan([replay()], SynAxis(name="motor"), 1, 3, 3))
    live.check(uid, 3)
    live.denoise.unsubscribe(token)
    printed = capsys.readouterr().out
    assert "det_image_denoised_total" in printed
    for position, frame in zip((1, 2, 3), FRAMES, strict=False):
        assert re.search(rf"\|\s+{position}\.?0* \|\s+{2 * frame.sum()}", printed)
    assert len(re.findall(r"\| +True \|", printed)) == 3


# What a scan can do


def test_two_detectors(RE, live):
    (uid,) = RE(bp.count([replay("a"), replay("b")], 3))
    stream = live.check(uid, 3)
    for key in ("a_image", "b_image"):
        np.testing.assert_array_equal(stream[key].read(), FRAMES[:3] * 2)


def test_two_interleaved_runs(RE, live):
    a, b = poisson(1), poisson(2)
    cameras = Camera(name="a", func=a), Camera(name="b", func=b)

    def of(run, plan):
        return bpp.set_run_key_wrapper(plan, run)

    def plan():
        for run in (0, 1):
            yield from of(run, bps.open_run({"which": run}))
        for run in (0, 1, 1, 0, 1):
            yield from of(run, bps.trigger_and_read([cameras[run]]))
        for run in (0, 1):
            yield from of(run, bps.close_run())

    uids = RE(plan())
    first, second = live.check(uids[0], 2), live.check(uids[1], 3)
    np.testing.assert_array_equal(first["a_image"].read(), np.stack(a.taken[-2:]) * 2)
    np.testing.assert_array_equal(second["b_image"].read(), np.stack(b.taken[-3:]) * 2)
    assert "b_image" not in first


def test_an_aborted_scan(RE, live):
    det = replay()

    def plan():
        yield from bps.open_run()
        for _ in range(3):
            yield from bps.trigger_and_read([det])
        yield from bps.pause()

    with pytest.raises(RunEngineInterrupted):
        RE(plan())
    RE.abort("the beam is gone")
    uid = live.raw.by_name["start"][0]["uid"]
    stream = live.check(uid, 3, exit_status="abort", reason="the beam is gone")
    np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:3] * 2)


def test_no_exposure(RE, live):
    (uid,) = RE(bp.count([PlainImage(func=poisson(), name="det")], 2))
    stream = live.check(uid, 0, exit_status="fail")
    reason = stream.metadata["denoise"]["reason"]
    assert "No exposure time for 'det' in stream 'primary': looked for det*acquire_time" in reason


def test_a_run_without_frames(RE, live):
    (uid,) = RE(bp.scan([SynSignal(name="diode", func=lambda: 1.0)], SynAxis(name="m"), 0, 1, 3))
    live.check(uid, None)
    assert not live.derived.documents


def test_a_frame_whose_shape_changes(RE, raw, tiled, shared):
    class AnyShape(Camera):
        def describe(self):
            described = super().describe()
            described[f"{self.name}_image"]["shape"] = [None, None]
            return described

    shapes = iter([SHAPE, (18, 24), SHAPE])
    det = AnyShape(name="det", func=lambda: np.full(next(shapes), 3, np.uint32))
    derived, unchanged = DocumentCollector(), UnchangedDocuments()
    token = shared.subscribe(derived)
    RE.subscribe(unchanged)
    RE.subscribe(shared)
    # Frames of two shapes are too much for TiledWriter: the raw run is its node alone.
    RE.subscribe(lambda name, doc: open_node(tiled, doc), "start")
    (uid,) = RE(bp.count([det], 3))
    shared.wait(60)
    shared.unsubscribe(token)
    raw.validate()
    derived.validate()
    unchanged.check()
    assert_emitted(raw.by_name, start=1, descriptor=1, event=3, stop=1)
    assert values(derived, "denoise_ok") == [True, False, True]
    assert values(derived, "denoise_reason")[1] == (
        "'det_image' has shape (1, 18, 24); the first frames of this run had (16, 20)"
    )
    stream = tiled.client[uid]["denoised"]
    assert stream.metadata["denoise"]["num_events"] == 3
    frames = stream["det_image"].read()
    assert [f.mean() for f in frames[[0, 2]]] == [6, 6]
    assert np.isnan(frames[1]).all()


def test_a_file_that_grows_while_the_child_reads_it(RE, live, tmp_path):
    det = AreaDetectorReplay(
        name="det", frames=ReplayFrames(FRAMES, 0.5), exposure_s=0.5, directory=tmp_path
    )

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan():
        for number in (1, 2, 3):
            yield from bps.trigger_and_read([det])
            wait_for(lambda n=number: len(live.derived.by_name.get("event", [])) == n, what="event")

    (uid,) = RE(plan())
    assert values(live.derived, "denoise_reason") == ["", "", ""]
    stream = live.check(uid, 3)
    np.testing.assert_array_equal(stream["det_image"].read().reshape(3, *SHAPE), FRAMES[:3] * 2)


def test_a_half_written_file(RE, live, tmp_path):
    """The events come when half of each file is there; the rest is written later."""
    late = {}

    def write_half(path, array):
        np.save(path, array)
        whole = Path(path).read_bytes()
        late[path] = whole
        Path(path).write_bytes(whole[: len(whole) // 2])

    class Det(SynSignalWithRegistry):
        """With an exposure time in the configuration."""

        def read_configuration(self):
            return {"det_exposure": {"value": 0.5, "timestamp": 0.0}}

        def describe_configuration(self):
            return {"det_exposure": {"dtype": "number", "shape": [], "source": "sim"}}

    func = poisson()
    det = Det(func=func, name="det", save_path=str(tmp_path), save_func=write_half)
    (uid,) = RE(bp.count([det], 2))
    assert "event" not in live.derived.by_name
    for path, whole in late.items():
        Path(path).write_bytes(whole)
    finished(live.derived)
    assert values(live.derived, "denoise_reason") == ["", ""]
    stream = live.check(uid, 2)
    np.testing.assert_array_equal(stream["det"].read(), np.stack(func.taken[-2:]) * 2)


def test_the_exception_of_a_subscriber_breaks_nothing(RE, live, caplog):
    def broken(name, doc):
        raise RuntimeError("I am broken")

    other = DocumentCollector()
    tokens = [live.denoise.subscribe(f) for f in (broken, other)]
    (uid,) = RE(bp.count([replay()], 2))
    live.check(uid, 2)
    for token in tokens:
        live.denoise.unsubscribe(token)
    assert other.documents == live.derived.documents
    failed = [r for r in caplog.records if r.message.startswith("A subscriber of the denoised")]
    assert len(failed) == len(other.documents)
    assert str(failed[0].exc_info[1]) == "I am broken"


def test_a_document_that_cannot_be_sent_is_left_out_and_the_others_go_on(RE, live, logged):
    live.denoise("event", {"descriptor": "nothing", "data": {"f": lambda: 0}, "uid": "u"})
    (uid,) = RE(bp.count([replay()], 2))
    live.check(uid, 2)
    assert "A event document cannot be sent to the denoiser" in logged()


# The child dies


def test_a_child_that_is_killed_in_mid_run(RE, live, logged):
    det = replay()

    @bpp.run_decorator()
    def plan():
        for _ in range(2):
            yield from bps.trigger_and_read([det])
        wait_for(lambda: len(live.derived.by_name.get("event", [])) == 2, what="two events")
        os.kill(live.denoise.pid, signal.SIGKILL)
        for _ in range(3):
            yield from bps.trigger_and_read([det])

    before = live.denoise.pid
    (uid,) = RE(plan())
    reason = "the denoiser process died (exit -9)"
    stream = live.check(uid, 2, exit_status="fail", reason=reason)
    np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:2] * 2)
    np.testing.assert_array_equal(stream["raw_seq_num"].read(), [1, 2])
    stop = live.derived.by_name["stop"][0]
    assert (stop["exit_status"], stop["reason"]) == ("fail", reason)
    assert stop["num_events"] == {"denoised": 2}
    assert f"{reason}; runs cut short: {uid[:8]}" in logged()
    assert live.denoise.pid != before
    assert live.raw.by_name["stop"][0]["exit_status"] == "success"

    (after,) = RE(bp.count([det], 2))
    live.check(after, 2)


def test_a_child_that_is_killed_before_all_is_in_tiled(RE, raw, tiled, shared):
    """The derived run has ended for all who watch; it is written by the next child."""
    derived = DocumentCollector()
    token = shared.subscribe(derived)
    RE.subscribe(shared)
    (uid,) = RE(bp.count([replay()], 3))
    finished(derived)
    os.kill(shared.pid, signal.SIGKILL)
    writer = TiledWriter(tiled.client, batch_size=1)
    for name, doc in raw.documents:
        writer(name, doc)
    shared.wait(60)
    shared.unsubscribe(token)
    derived.validate()
    assert_emitted(
        {k: derived.by_name[k] for k in ("start", "event", "stop")}, start=1, event=3, stop=1
    )
    stream = tiled.client[uid]["denoised"]
    assert stream.metadata["denoise"]["exit_status"] == "success"
    np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:3] * 2)


def test_a_killed_child_with_frames_inside_the_events_is_counted_right(
    RE, raw, monkeypatch, logged
):
    """And a child that dies again and again is not started for ever."""
    monkeypatch.setattr(process_module, "_MOST_RESTARTS", 1)
    derived, det = DocumentCollector(), replay()

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        wait_for(lambda: derived.by_name.get("event"), what="an event")
        os.kill(denoise.pid, signal.SIGKILL)
        yield from bps.trigger_and_read([det])

    with DenoiseProcess(settings()) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(plan())
        finished(derived)
        derived.validate()
        assert derived.by_name["stop"][0]["num_events"] == {"denoised": 1}
        denoise.wait(60)
        wait_for(lambda: denoise._child_ready, what="the next child")
        os.kill(denoise.pid, signal.SIGKILL)
        wait_for(lambda: "Runs go on undenoised" in logged(), what="the end")
        RE(bp.count([det], 2))
        denoise.wait(1)
    raw.validate()
    assert_emitted(raw.by_name, start=2, descriptor=2, event=4, stop=2)


# A full queue


def test_a_full_queue_holds_the_scan_for_a_bounded_time_and_what_is_skipped_is_told(
    RE, raw, gate, tmp_path, logged
):
    derived, held, unchanged = DocumentCollector(), [], UnchangedDocuments()
    RE.subscribe(unchanged)
    options = settings(
        model="child_denoisers:Gated", frames_directory=tmp_path / "denoised", queue_size=4
    )
    with DenoiseProcess(options, queue_wait_s=0.3) as denoise:

        def timed(name, doc):
            began = time.monotonic()
            denoise(name, doc)
            held.append(time.monotonic() - began)

        denoise.subscribe(derived)
        RE.subscribe(timed)
        (uid,) = RE(bp.count([replay()], 30))
        assert_emitted(raw.by_name, start=1, descriptor=1, event=30, stop=1)
        assert "event" not in derived.by_name
        assert 0.3 <= max(held) < 2
        assert sum(held) < 4
        with pytest.raises(DenoiseTimeout, match=rf"after 0\.1 s\. Still open: {uid[:8]}\."):
            denoise.wait(0.1)
        gate.touch()
        denoise.wait(60)
    derived.validate()
    unchanged.check()
    np.testing.assert_array_equal(
        [e["data"]["det_image"] for e in raw.by_name["event"]], np.resize(FRAMES, (30, *SHAPE))
    )
    ok, reasons = values(derived, "denoise_ok"), values(derived, "denoise_reason")
    assert values(derived, "raw_seq_num") == list(range(1, 31))
    assert 4 <= sum(ok) < 30
    assert [r for r, good in zip(reasons, ok, strict=True) if good] == [""] * sum(ok)
    skipped = [r for r, good in zip(reasons, ok, strict=True) if not good]
    assert set(skipped) == {"skipped: the queue of the denoiser was full"}
    assert f"{len(skipped)} events were skipped" in logged()
    assert "The denoiser is 4 events behind: frames are skipped" in logged()
    frames = rates(derived, "det_image")
    assert [not np.isnan(f).any() for f in frames] == ok
    assert derived.by_name["stop"][0]["num_events"] == {"denoised": 30}


# Tiled stops


class TiledElsewhere:
    """A Tiled server in a process of its own, which can be stopped and started again."""

    KEY = "k3y0ft1led5erver"

    def __init__(self, directory, readable):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}/api/v1?api_key={self.KEY}"
        self._code = (
            "import sys\n"
            "from bluesky_denoise.server import embedded_tiled\n"
            f"with embedded_tiled({str(directory)!r}, readable=[{str(readable)!r}],"
            f" port={self.port}, api_key={self.KEY!r}):\n"
            "    print('ready', flush=True)\n"
            "    sys.stdin.read()\n"
        )
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout.readline() == b"ready\n"

    def stop(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def elsewhere(tmp_path):
    server = TiledElsewhere(tmp_path / "tiled", tmp_path)
    server.start()
    yield server
    server.stop()


def all_bytes(*directories):
    for directory in directories:
        for path in Path(directory).rglob("*"):
            if path.is_file():
                yield path, path.read_bytes()


def test_tiled_is_stopped_in_mid_run_and_comes_back_and_its_key_is_nowhere(
    RE, raw, elsewhere, tmp_path, caplog, capfd, monkeypatch
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    derived, det, held = DocumentCollector(), replay(), []
    options = settings(tiled_uri=elsewhere.uri, frames_directory=tmp_path / "denoised")
    client = from_uri(elsewhere.uri)
    writer = TiledWriter(client, batch_size=1)

    def write(name, doc):
        """Keep raw documents while Tiled is down, as a raw writer with a backup does."""
        if elsewhere.process.poll() is None:
            writer(name, doc)
        else:
            held.append((name, doc))

    with client.context, DenoiseProcess(options) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(write)
        RE.subscribe(denoise)

        def first_rows():
            with contextlib.suppress(KeyError):
                run = client[raw.by_name["start"][0]["uid"]]
                return len(run["denoised"]["denoise_ok"].read()) == 2

        @bpp.run_decorator()
        def plan():
            for _ in range(2):
                yield from bps.trigger_and_read([det])
            wait_for(first_rows, what="the first rows in Tiled")
            elsewhere.stop()
            for _ in range(3):
                yield from bps.trigger_and_read([det])

        (uid,) = RE(plan())
        finished(derived)
        (path,) = wait_for(lambda: backup_files(options.backup_path), 60, "the backup")
        with pytest.raises(DenoiseTimeout, match=r"kept in .*backup"):
            denoise.wait(0.1)
        wait_for(lambda: [n for n, _ in read_backup(path)][-1] == "stop", what="all documents")
        kept = path.read_bytes()
        elsewhere.start()
        for name, doc in held:
            writer(name, doc)
        denoise.wait(90)
        assert backup_files(options.backup_path) == []

        run = client[uid]
        np.testing.assert_array_equal(run["primary"]["det_image"].read(), FRAMES[:5])
        assert run.stop["num_events"] == {"primary": 5}
        np.testing.assert_array_equal(run["denoised"]["det_image"].read(), FRAMES[:5] * 2)
        np.testing.assert_array_equal(run["denoised"]["raw_seq_num"].read(), [1, 2, 3, 4, 5])
        assert run["denoised"].metadata["denoise"]["num_events"] == 5
        assert run["denoised"].metadata["denoise"]["exit_status"] == "success"
        run.validate(raise_on_error=True)
        documents = json.dumps([list(run.documents()), run.metadata], default=str)
    derived.validate()
    ours = [record for record in caplog.records if record.name.startswith("bluesky_denoise")]
    logs = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)
    assert "cannot be written to Tiled" in logs
    assert "is in Tiled again" in logs
    printed = "".join(capfd.readouterr())
    shown = [logs, printed, documents, repr(derived.documents), kept.decode()]
    assert [i for i, text in enumerate(shown) if elsewhere.KEY in text] == []
    found = [p for p, b in all_bytes(tmp_path) if elsewhere.KEY.encode() in b]
    assert found == []


def test_without_tiled_all_is_kept_in_the_backup_when_it_is_closed(
    RE, tmp_path, monkeypatch, logged
):
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    options = settings(tiled_uri=NOWHERE, backup_directory=tmp_path / "backup")
    derived = DocumentCollector()
    with DenoiseProcess(options) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(bp.count([replay()], 2))
        finished(derived)
    (path,) = backup_files(tmp_path / "backup")
    kept = list(read_backup(path))
    validate_documents(kept)
    frames = [doc["data"]["det_image"] for name, doc in kept if name == "event"]
    np.testing.assert_array_equal(frames, FRAMES[:2] * np.float32(2))
    assert "cannot be reached" in logged()
    assert "1 denoised runs are not in Tiled but in" in logged()
    assert b"secret" not in path.read_bytes()
    assert "secret" not in logged()


# Many runs


def resources(*pids):
    """Return the memory, MB, and the number of open files of processes."""
    processes = [psutil.Process(pid) for pid in pids]
    return [(p.memory_info().rss / 1e6, p.num_fds()) for p in processes]


def test_two_hundred_runs_leave_no_memory_and_no_files_behind(RE, tmp_path):
    """Each run brings 1 MB of frames: one in ten that stayed would show."""
    counts = np.ones((2, 256, 256), np.uint16)
    det = ReplayDetector(name="det", frames=ReplayFrames(counts, 0.5), exposure_s=0.5)
    ended, taken = [], Counter()

    def raw(name, doc):
        taken[name] += 1
        assert name != "event" or np.array_equal(doc["data"]["det_image"], counts[0])

    with DenoiseProcess(settings(frames_directory=tmp_path / "denoised")) as denoise:
        denoise.subscribe(lambda name, doc: ended.append(doc["num_events"]), "stop")
        RE.subscribe(denoise)
        RE.subscribe(raw)
        measured = []
        for number in range(1, 201):
            RE(bp.count([det], 4))
            denoise.wait(60)  # so that the queue is never what is measured
            if number in (40, 200):
                measured.append(resources(os.getpid(), denoise.pid))
        assert ended == [{"denoised": 4}] * 200
        assert taken == {"start": 200, "descriptor": 200, "event": 800, "stop": 200}
        assert not denoise._open
        assert not denoise._raw_of
    for before, after in zip(*measured, strict=True):
        assert after[0] - before[0] < 16
        assert after[1] <= before[1]


def test_many_runs_in_tiled_leave_no_files_and_no_state_behind(RE, raw, tiled, shared):
    derived = DocumentCollector()
    token = shared.subscribe(derived)
    RE.subscribe(shared)
    RE.subscribe(lambda name, doc: open_node(tiled, doc), "start")
    measured, det = [], replay()
    for number in range(12):
        RE(bp.count([det], 1))
        if number in (4, 11):
            shared.wait(60)
            measured.append(resources(shared.pid))
    shared.unsubscribe(token)
    assert len(derived.by_name["stop"]) == 12
    assert not shared._open
    assert measured[1][0][1] <= measured[0][0][1]


# It begins and ends


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere.module:Denoiser", r"Setting `model`, 'nowhere.module:Denoiser': No module named"),
        ("no-such-model", r"no-such-model"),
    ],
)
def test_a_wrong_model_is_told_when_it_is_built(model, message):
    with pytest.raises(ModelNotFound, match=message):
        DenoiseProcess(model=model)


def test_a_directory_that_cannot_be_written_is_told_when_it_is_built(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"'frames_directory': .* cannot be written to"):
        DenoiseProcess(frames_directory=tmp_path / "file" / "denoised")


def test_a_wrong_key_is_told_when_it_is_built(tiled):
    address = tiled.uri.partition("?")[0]
    with pytest.raises(SettingsError, match=r"refuses to be written to \(401\)\. Check") as caught:
        DenoiseProcess(settings(tiled_uri=f"{address}?api_key=wr0ng"))
    assert "wr0ng" not in str(caught.value)


def test_a_closed_process_takes_no_more_documents(RE, raw, tmp_path):
    derived = DocumentCollector()
    denoise = DenoiseProcess(settings(frames_directory=tmp_path))
    denoise.subscribe(derived)
    RE.subscribe(denoise)
    RE(bp.count([replay()], 3))
    denoise.close()
    denoise.close()
    assert_emitted(
        derived.by_name,
        **{"start": 1, "descriptor": 1, "stream_resource": 1},
        **{"stream_datum": len(derived.by_name["stream_datum"]), "event": 3, "stop": 1},
    )
    assert not psutil.pid_exists(denoise.pid)
    RE(bp.count([replay()], 3))
    denoise.wait(1)
    assert len(derived.by_name["stop"]) == 1
    assert len(raw.by_name["stop"]) == 2


SCRIPT = """
import signal, sys, time
import bluesky.plans as bp, bluesky.plan_stubs as bps
from bluesky import RunEngine
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.testing import DocumentCollector
from live_path import settings, wait_for
from test_process import replay, NOWHERE

RE, det, derived = RunEngine(), replay(), DocumentCollector()
options = settings(frames_directory=sys.argv[1], **eval(sys.argv[2]))
denoise = DenoiseProcess(options)
denoise.subscribe(derived)
RE.subscribe(denoise)
# A shell starts what it puts into the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def start_script(tmp_path, code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + code, str(tmp_path / "denoised"), repr(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **NO_PROXY, "PYTHONPATH": python_path()},
    )


def test_ctrl_c_leaves_the_child_alone_and_the_end_of_the_session_finishes_its_work(tmp_path):
    code = """
try:
    print(denoise.pid, flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    RE(bp.count([det], 3))
    print("counted", denoise.pid, flush=True)
"""
    script = start_script(tmp_path, code)
    child = int(script.stdout.readline())
    os.killpg(script.pid, signal.SIGINT)
    assert script.stdout.readline() == f"counted {child}\n"
    assert script.wait(60) == 0
    script.communicate()
    assert not psutil.pid_exists(child)
    (path,) = (tmp_path / "denoised").rglob("*.h5")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["denoised/det_image"][()], FRAMES[:3] * 2)


def test_a_parent_that_is_killed_leaves_no_child_and_no_open_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    code = """
def plan():
    yield from bps.open_run()
    for _ in range(2):
        yield from bps.trigger_and_read([det])
    wait_for(lambda: len(derived.by_name.get("event", [])) == 2)
    print(denoise.pid, flush=True)
    sys.stdin.read()
RE(plan())
"""
    script = start_script(
        tmp_path, code, tiled_uri=NOWHERE, backup_directory=str(tmp_path / "backup")
    )
    child = psutil.Process(int(script.stdout.readline()))
    os.kill(script.pid, signal.SIGKILL)
    script.communicate()
    wait_for(lambda: not child.is_running(), 60, "the end of the child")
    (path,) = (tmp_path / "denoised").rglob("*.h5")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["denoised/det_image"][()], FRAMES[:2] * 2)
    (backup,) = backup_files(tmp_path / "backup")
    kept = list(read_backup(backup))
    validate_documents(kept)
    assert kept[-1][1]["exit_status"] == "fail"
    assert kept[-1][1]["reason"] == "the process that runs the RunEngine ended"


def test_importing_the_package_imports_neither_torch_nor_tiled():
    code = (
        "import sys, bluesky_denoise;"
        "print([m for m in ('torch', 'tiled', 'h5py', 'ophyd') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_parent_of_a_denoiser_imports_no_torch(RE):
    code = "import sys, bluesky_denoise.process;print([m for m in ('torch',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
