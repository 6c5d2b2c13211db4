"""Scans, as they happen at a beamline, denoised in a child process."""

import pickle
import re
import sys
import threading
import time
from collections import defaultdict
from enum import StrEnum
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
import xarray
from bluesky.callbacks import LiveTable
from bluesky.utils import FailedStatus
from bluesky_tiled_plugins import TiledWriter
from live_path import (
    SHAPE,
    UNIT,
    Camera,
    PlainImage,
    UnchangedDocuments,
    abort_after_three_points,
    poisson,
    values,
    wait_for,
)
from ophyd import Signal
from ophyd.sim import DirectImage, SynAxis, SynSignal, SynSignalWithRegistry
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from ophyd_async.sim import SimBlobDetector
from process_fixtures import FRAMES, finished, open_node, replay
from tiers import thorough

from bluesky_denoise.catalog import denoised_streams
from bluesky_denoise.child.connection import _packed
from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import denoised_count
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay
from bluesky_denoise.testing import DocumentCollector, assert_emitted


def test_settings_may_be_a_file_of_them(idle_child, tmp_path):
    (tmp_path / "settings.yaml").write_text(f"model: '{UNIT}'\nframes_directory: frames\n")
    with DenoiseProcess(tmp_path / "settings.yaml", batch_size=2) as denoise:
        assert denoise.settings.frames_directory == tmp_path / "frames"
        assert denoise.settings.batch_size == 2


def test_a_closed_denoiser_says_once_that_it_does_nothing(RE, idle_child, logged):
    denoise = DenoiseProcess(model=UNIT)
    with pytest.raises(SettingsError, match="`mask` of a DenoiseProcess cannot be set: what it"):
        denoise.mask = np.zeros(SHAPE)
    assert repr(denoise) == f"<DenoiseProcess '{UNIT}', pid {denoise.pid}, into callbacks>"
    denoise.close()
    assert "closed" in repr(denoise)
    RE.subscribe(denoise)
    (uid,) = RE(bp.count([replay()], 1))
    RE(bp.count([replay()], 1))
    assert f"Run {uid[:8]} is not denoised by {denoise!r}, nor are later ones." in logged()
    assert logged().count("`RE.unsubscribe(token)`") == 1


def test_signals_do_not_wait_for_a_closed_denoiser(RE, idle_child):
    denoise = DenoiseProcess(model=UNIT, data_keys=["det_image"])
    RE.subscribe(denoise)
    denoised = DenoisedSignals(denoise, timeout_s=100)
    denoise.close()
    began = time.monotonic()
    with pytest.raises(FailedStatus) as failed:
        RE(denoised_count([replay()], 1, denoised=denoised))
    assert "waits for a denoiser that was closed" in str(failed.value.__cause__)
    assert time.monotonic() - began < 50


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
    abort_after_three_points(RE, det, "the beam is gone")
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


class Mode(StrEnum):
    FAST = "fast"


def test_a_class_that_only_the_session_knows_reaches_the_denoiser_as_its_value(
    RE, live, monkeypatch
):
    """As the enumeration of a detector's modes in a startup file, which runs in __main__."""
    monkeypatch.setattr(sys.modules["__main__"], "Mode", Mode, raising=False)
    monkeypatch.setattr(Mode, "__module__", "__main__")
    before = live.denoise.pid
    mode = Signal(name="mode", value=Mode.FAST)
    md = {"mode": Mode.FAST, "made": defaultdict(lambda: 0, by="hand")}  # of foreign functions, too
    (uid,) = RE(bp.count([replay(), mode], 2, md=md))
    stream = live.check(uid, 2)
    assert live.denoise.pid == before
    assert list(stream["mode"].read()) == ["fast", "fast"]
    (start,) = live.derived.by_name["start"]
    assert (start["mode"], start["made"]) == ("fast", {"by": "hand"})


def test_frames_of_another_package_reach_the_denoiser_as_arrays():
    frame = np.arange(6, dtype=np.uint16).reshape(2, 3)
    sent = {"frame": xarray.DataArray(frame), "number": xarray.DataArray(3), "of": xarray.DataArray}
    _, ((_, got, _),) = pickle.loads(_packed(("documents", [("event", sent, "")])))
    assert type(got["frame"]) is np.ndarray
    np.testing.assert_array_equal(got["frame"], frame, strict=True)
    assert type(got["number"]) is type(got["of"]) is str


def test_a_document_that_cannot_be_sent_is_left_out_and_the_others_go_on(RE, live, logged):
    live.denoise("resource", {"run_start": "nothing", "spec": threading.Lock(), "uid": "u"})
    (uid,) = RE(bp.count([replay()], 2))
    live.check(uid, 2)
    assert "A resource document cannot be sent to the denoiser" in logged()


@pytest.mark.parametrize(
    "name",
    [thorough("start"), "descriptor", thorough("event"), thorough("stream_datum"), "stop"],
)
def test_a_document_that_is_malformed_is_told_and_reaches_no_one(RE, live, logged, name):
    live.denoise(name, {})
    (uid,) = RE(bp.count([replay()], 2))
    live.check(uid, 2)
    assert re.search(f"A {name} document could not be (handled|handed|followed)", logged())


@pytest.mark.thorough
def test_a_run_that_cannot_be_opened_costs_no_other(RE, tiled, tmp_path):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    camera = Camera(name="det", func=poisson(shape=(32, 32)))
    odd = {"dimensions": [[["x"], "primary", "x"]]}
    with DenoiseProcess(
        model=UNIT, tiled_uri=tiled.uri, frames_directory=tmp_path / "denoised"
    ) as denoise:
        RE.subscribe(denoise)
        (first,) = RE(bp.count([camera], 2), hints=odd)
        (second,) = RE(bp.count([camera], 5))
    for uid, number in ((first, 2), (second, 5)):
        (found,) = denoised_streams(tiled.client[uid])
        assert (found.num_events, found.exit_status) == (number, "success")


def test_frames_of_a_file_that_streams_share_are_each_its_own(RE, live, tmp_path):
    """Of the streams `dark` and `primary`, in one file, only the latter is denoised."""
    frames = np.arange(5, dtype=np.uint32)[:, None, None] * np.ones(SHAPE, np.uint32)
    det = AreaDetectorReplay(
        name="det", frames=ReplayFrames(frames, 1.0), directory=tmp_path, exposure_s=1.0
    )

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan():
        for _ in range(2):
            yield from bps.trigger_and_read([det], name="dark")
        for _ in range(3):
            yield from bps.trigger_and_read([det])

    (uid,) = RE(plan())
    denoised = live.check(uid, 3)["det_image"].read()
    assert [float(frame.mean()) for frame in denoised] == [2.0, 3.0, 4.0]
