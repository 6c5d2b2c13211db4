import threading

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import event_model
import numpy as np
import pytest
from bluesky.callbacks import LiveTable
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.utils import FailedStatus
from event_model import pack_event_page
from live_path import UNIT, settings
from ophyd.sim import SynAxis
from ophyd.utils.errors import ReadOnlyError
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import DenoiseError, DenoiseTimeout, SettingsError
from bluesky_denoise.last_event import LastEvent, RawEvent
from bluesky_denoise.newest_results import Result
from bluesky_denoise.plans import denoised_count
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.raw_sums import RawSums
from bluesky_denoise.results import audit_keys, event_keys, number_keys
from bluesky_denoise.roi import ROI
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector

SHAPE = (16, 20)
KEY = "det_image"
SPOT = ROI(rows=(16, 32), cols=(14, 30), background_px=4)


@pytest.fixture
def counts():
    return np.random.default_rng(1).poisson(5, (7, *SHAPE)).astype(np.uint16)


@pytest.fixture
def det(counts):
    return ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0), exposure_s=1.0)


@pytest.fixture(scope="module")
def process():
    with DenoiseProcess(data_keys=[KEY], model=UNIT) as process:
        yield process


@pytest.fixture
def denoise(process, RE):
    RE.subscribe(process)
    return process


class Derived:
    """Derived documents made by hand, when the test says so."""

    def __init__(self, *data_keys):
        data_keys = data_keys or [KEY]
        keys = number_keys({key: {} for key in data_keys}, "test") | audit_keys(data_keys, "test")
        self.keys = [*keys, *event_keys("test")]
        self.functions = []

    def subscribe(self, func):
        self.functions.append(func)
        return 0

    def emit(self, name, doc):
        for func in self.functions:
            func(name, doc)

    def open(self, raw_uid, stream="denoised"):
        self.bundle = event_model.compose_run(metadata={"original_run_uid": raw_uid})
        self.emit("start", self.bundle.start_doc)
        data_keys = {k: {"dtype": "number", "shape": [], "source": "test"} for k in self.keys}
        self.stream = self.bundle.compose_descriptor(name=stream, data_keys=data_keys)
        self.emit("descriptor", self.stream.descriptor_doc)

    def event(self, seq_num, value, time=1.0):
        data = dict.fromkeys(self.keys, value) | {"raw_seq_num": seq_num}
        stamps = dict.fromkeys(data, time)
        self.emit("event", self.stream.compose_event(data=data, timestamps=stamps, time=time))


def signals_of(derived, **kwargs):
    kwargs = {"data_keys": [KEY], "rois": [], "timeout_s": 5.0, **kwargs}
    return DenoisedSignals(derived, name="denoised", **kwargs)


def at(signals, seq_num, time=1.0, run="raw-run", stream="primary"):
    """Tell the signals which raw event was the last."""
    spec = {"dtype": "array", "shape": [16, 16], "source": "sim"}
    descriptor = {"uid": f"{run} {stream}", "run_start": run, "name": stream}
    signals.raw("descriptor", {**descriptor, "data_keys": {KEY: spec}})
    signals.raw("event", {"descriptor": descriptor["uid"], "seq_num": seq_num, "time": time})


@pytest.fixture
def derived():
    return Derived()


def test_the_last_event_is_that_of_the_newest_run_that_is_open():
    signals = signals_of(Derived())
    assert signals.last_event is None
    at(signals, 1, run="outer")
    at(signals, 7, run="inner")
    assert signals.last_event.run_uid == "inner"
    at(signals, 2, run="outer")
    assert signals.last_event[:3] == ("outer", "primary", 2)
    at(signals, 8, run="inner")
    signals.raw("stop", {"run_start": "inner"})
    assert signals.last_event[:3] == ("outer", "primary", 2)
    signals.raw("stop", {"run_start": "outer"})
    assert signals.last_event is None


def test_a_plan_reads_the_numbers_of_the_frame_it_has_just_taken(RE, det, denoise, counts):
    signals = DenoisedSignals(denoise)
    read = []

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan():
        for _ in range(5):
            yield from bps.trigger_and_read([det])
            yield from bps.trigger(signals, wait=True)
            read.append((yield from bps.rd(signals.det_image_raw_total)))
            read.append((yield from bps.rd(signals.raw_seq_num)))

    RE(plan())
    assert read[::2] == [float(c.sum()) for c in counts[:5]]
    assert read[1::2] == [1, 2, 3, 4, 5]


def test_the_result_of_a_slow_denoiser_is_waited_for(RE, counts, det):
    from bluesky_denoise.testing import UnitDenoiser

    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser(0.05))
    signals = DenoisedSignals(router)
    RE.subscribe(signals.raw)
    # On threads, in the order in which the documents came, as a process would answer.
    threads = []

    def later(name, doc):
        before = threads[-1] if threads else None

        def run():
            if before:
                before.join()
            router(name, doc)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    RE.subscribe(later)
    totals = []

    def per_shot(detectors):
        yield from bps.trigger_and_read(detectors)
        reading = yield from bps.trigger_and_read([signals], "signals")
        totals.append(reading["denoised_det_image_raw_total"]["value"])

    RE(bp.count([det], 4, per_shot=per_shot))
    assert totals == [float(c.sum()) for c in counts[:4]]


def test_a_result_that_comes_after_the_trigger_finishes_it(derived):
    signals = signals_of(derived)
    derived.open("raw-run")
    derived.event(1, 10.0)
    at(signals, 2)
    status = signals.trigger()
    assert not status.done
    derived.event(2, 20.0)
    status.wait(1)
    assert signals.read()["denoised_det_image_raw_total"]["value"] == 20.0


def test_a_point_taken_again_waits_for_its_own_result(derived):
    signals = signals_of(derived)
    derived.open("raw-run")
    derived.event(2, 10.0, time=1.0)
    at(signals, 2, time=5.0)
    status = signals.trigger()
    assert not status.done
    derived.event(2, 20.0, time=5.0)
    status.wait(1)
    assert signals.det_image_raw_total.get() == 20.0


def test_results_of_another_run_or_stream_do_not_count(derived):
    signals = signals_of(derived, streams=("primary", "reference"))
    derived.open("raw-run", "denoised_reference")
    at(signals, 1)
    status = signals.trigger()
    derived.event(1, 1.0)
    derived.open("other-run")
    derived.event(1, 2.0)
    assert not status.done
    derived.open("raw-run")
    derived.event(1, 3.0)
    status.wait(1)
    assert signals.det_image_raw_total.get() == 3.0


def test_a_deadline_is_an_error_that_says_what_was_waited_for(RE, derived, det, logged):
    signals = signals_of(derived, timeout_s=0.05)
    RE.subscribe(signals.raw)

    def per_shot(detectors):
        yield from bps.trigger_and_read(detectors)
        yield from bps.trigger(signals, wait=True)

    with pytest.raises(FailedStatus) as caught:
        RE(bp.count([det], 1, per_shot=per_shot))
    cause = caught.value.__cause__
    assert logged().count(str(cause)) == 1
    assert isinstance(cause, DenoiseTimeout)
    assert "denoised: event 1 of run" in str(cause)
    assert "not denoised within 0.05 s" in str(cause)


def test_a_deadline_can_be_nan_with_the_flag_down(derived, logged):
    signals = signals_of(derived, timeout_s=0.05, on_timeout="nan")
    derived.open("raw-run")
    derived.event(1, 10.0)
    at(signals, 2)
    signals.trigger().wait(1)
    assert np.isnan(signals.det_image_raw_total.get())
    assert signals.denoise_ok.get() is False
    assert signals.raw_seq_num.get() == 2
    assert "not denoised within" in signals.denoise_reason.get()
    assert "not denoised within" in logged()


def test_a_result_that_comes_too_late_is_not_shown_for_the_point_after_it(derived):
    signals = signals_of(derived, timeout_s=0.05, on_timeout="nan")
    derived.open("raw-run")
    for seq_num in (1, 2):
        at(signals, seq_num)
        signals.trigger().wait(1)
    derived.event(1, 10.0)
    assert np.isnan(signals.det_image_raw_total.get())
    assert signals.raw_seq_num.get() == 2
    derived.event(2, 20.0)  # of the point itself, it is right whenever it comes
    assert signals.det_image_raw_total.get() == 20.0


def test_results_of_runs_without_triggers_are_shown_as_they_come(derived):
    signals = signals_of(derived)
    for run in ("first", "second", "third"):
        derived.open(run)
        derived.event(1, 10.0)
        assert signals.det_image_raw_total.get() == 10.0
        if run == "first":
            at(signals, 1, run=run)
            signals.trigger().wait(1)
        derived.event(2, 20.0)
        assert signals.det_image_raw_total.get() == 20.0
        derived.emit("stop", derived.bundle.compose_stop())


@pytest.mark.parametrize("kind", ["inline", "files", "async files"])
def test_a_deadline_can_be_raw_sums_with_the_flag_down(RE, raw, tmp_path, kind):
    counts = np.random.default_rng(0).poisson(3.0, (3, 48, 48)).astype(np.uint32)
    frames = ReplayFrames(counts, 1.0)
    key = "det" if kind == "async files" else KEY
    if kind == "inline":
        det = ReplayDetector(name="det", frames=frames)
    elif kind == "files":
        det = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path)
    else:
        with init_devices():
            provider = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
            det = AsyncReplayDetector(provider, frames, exposure_s=1.0, name="det")
    mask = np.zeros((48, 48), bool)
    mask[20, 20] = True
    settings = DenoiseSettings(data_keys=[key], rois={"spot": SPOT}, mask=mask)
    silent = Derived()
    signals = DenoisedSignals(silent, settings=settings, timeout_s=0.05, on_timeout="raw",
                              data_keys=[key], rois=["spot"])  # fmt: skip
    RE.subscribe(signals.raw)
    RE(denoised_count([det], 3, denoised=signals))
    events = [e["data"] for e in raw.by_name["event"] if "denoised_spot_raw_sum" in e["data"]]
    assert [e["denoised_raw_seq_num"] for e in events] == [1, 2, 3]
    region, wider = (np.zeros((48, 48), bool) for _ in range(2))
    region[16:32, 14:30] = True
    wider[12:36, 10:34] = True  # 4 pixels of frame
    places = np.stack([np.ones((48, 48)), *np.mgrid[:48, :48]], -1)  # a plane's
    around, counted = wider & ~region, region & ~mask
    for event, frame in zip(events, counts, strict=True):
        inside = frame[counted].sum()
        plane = np.linalg.lstsq(places[around], frame[around].astype(float))[0]
        background = (places[counted] @ plane).sum()
        # Nearly that of their mean: the one masked pixel is all that is uneven.
        error = np.sqrt(inside + frame[around].sum() * (counted.sum() / around.sum()) ** 2)
        assert event["denoised_spot_raw_sum"] == inside
        assert event["denoised_spot_intensity"] == pytest.approx(inside - background)
        assert event["denoised_spot_intensity_error"] == pytest.approx(error, rel=1e-3)
        assert np.isnan(event["denoised_spot_denoised_sum"])
        assert event["denoised_denoise_ok"] is False
        assert "not denoised within" in event["denoised_denoise_reason"]


@pytest.mark.parametrize("kwargs", ["point_number", "frame"])
def test_raw_sums_are_of_the_last_frame_however_datums_are_counted(RE, raw, tmp_path, kwargs):
    counts = np.random.default_rng(0).poisson(3.0, (4, 48, 48)).astype(np.uint32)
    frames = ReplayFrames(counts, 1.0)
    RE(bp.count([AreaDetectorReplay(name="det", frames=frames, directory=tmp_path)], 4))
    sums, found = RawSums(DenoiseSettings(read_timeout_s=1)), []
    for name, doc in raw.documents:
        if name == "datum":  # as other kinds of files count
            number = doc["datum_kwargs"]["point_number"]
            doc = {**doc, "datum_kwargs": {kwargs: number}}
        sums(name, doc)
        if name == "event":
            found.append((sums.measure()["raw_seq_num"], sums.measure()["det_image_raw_total"]))
    assert found == [(i + 1, frame.sum()) for i, frame in enumerate(counts)]


def test_raw_sums_of_a_page_are_of_its_last_event(RE, raw):
    counts = np.random.default_rng(0).poisson(3.0, (3, 48, 48)).astype(np.uint32)
    RE(bp.count([ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0))], 3))
    sums = RawSums(DenoiseSettings())
    events = [doc for name, doc in raw.documents if name == "event"]
    for name, doc in raw.documents:
        if name in ("start", "descriptor"):
            sums(name, doc)
    sums("event_page", pack_event_page(*events))
    assert sums.value.seq_num == 3
    assert sums.measure()["det_image_raw_total"] == counts[2].sum()


def test_raw_sums_need_the_settings_of_the_denoiser(derived):
    with pytest.raises(SettingsError, match="give DenoisedSignals its `settings`"):
        signals_of(derived, on_timeout="raw")


def test_a_derived_run_that_ended_is_not_waited_for(derived, logged):
    signals = signals_of(derived)
    derived.open("raw-run")
    at(signals, 1)
    status = signals.trigger()
    stop = derived.bundle.compose_stop(exit_status="fail", reason="the process died")
    derived.emit("stop", stop)
    assert "the process died" in str(status.exception(1))
    assert logged().count("the process died") == 1
    assert "the process died" in str(signals.trigger().exception(1))


def test_signals_read_with_their_detector_are_refused(RE, det, denoise, logged):
    signals = DenoisedSignals(denoise)
    for run in (1, 2):  # the second must not see the frames of the first
        with pytest.raises(FailedStatus) as caught:
            RE(bp.count([det, signals], 2))
        assert isinstance(caught.value.__cause__, DenoiseError)
        assert "not in the same one" in str(caught.value.__cause__)
        # `FailedStatus` says nothing of it, and may be all that IPython shows.
        assert logged().count(str(caught.value.__cause__)) == run


def test_numbers_that_the_denoiser_does_not_have_are_named(derived):
    signals = signals_of(derived, rois=["satellite"])
    at(signals, 1)
    status = signals.trigger()
    derived.open("raw-run")
    error = status.exception(1)
    assert isinstance(error, SettingsError)
    assert "satellite_intensity" in str(error)
    assert "it has det_image_raw_total" in str(error)


@pytest.mark.parametrize(
    ("there", "data_keys", "rois", "missing"),
    [
        (["lo"], ["lo", "hi"], ["spot"], ["spot"]),
        (["other"], ["lo", "hi"], [], ["lo", "hi"]),
        (["det_image1", "det_image2", "lo"], ["det", "lo", "hi"], [], ["det"]),
        (["det_2"], ["det", "det_2"], [], []),
        (["det_image"], ["det_image", "lo", "hi"], [], []),
    ],
)
def test_numbers_may_lack_only_of_frames_that_are_not_there(
    there, data_keys, rois, missing, logged
):
    derived = Derived(*there)
    signals = signals_of(derived, data_keys=data_keys, rois=rois)
    at(signals, 1)
    status = signals.trigger()
    derived.open("raw-run")
    derived.event(1, 7.0)
    if missing:
        error = str(status.exception(1))
        named = error.partition("which the denoised stream")[0]
        assert [key for key in (*data_keys, *rois) if f" {key}_" in named] == missing
        assert logged().count(error) == 1
    else:
        status.wait(1)
        totals = {key: getattr(signals, f"{key}_raw_total").get() for key in data_keys}
        expected = {key: 7.0 if key in there else np.nan for key in data_keys}
        assert totals == pytest.approx(expected, nan_ok=True)


def test_before_the_first_frame_all_is_nan_and_read_only(derived):
    signals = signals_of(derived, rois=["satellite"])
    reading = signals.read()
    assert np.isnan(reading["denoised_satellite_intensity"]["value"])
    assert signals.denoise_ok.get() is False
    with pytest.raises(ReadOnlyError):
        signals.satellite_intensity.put(1.0)


def test_intensities_are_hinted_with_their_units(derived):
    signals = signals_of(derived, rois=["a", "b"])
    assert signals.hints == {"fields": ["denoised_a_intensity", "denoised_b_intensity"]}
    assert signals_of(derived).hints == {"fields": ["denoised_det_image_denoised_total"]}
    assert signals.describe()["denoised_a_intensity"]["units"] == "counts / s"
    assert signals.describe()["denoised_denoise_ok"]["dtype"] == "boolean"
    assert signals.describe()["denoised_denoise_reason"]["dtype"] == "string"


def test_names_with_hyphens_become_attributes(derived):
    signals = signals_of(derived, data_keys=["pilatus-image"])
    assert "denoised_pilatus_image_raw_total" in signals.read()
    derived = Derived("pilatus-image")
    signals = signals_of(derived, data_keys=["pilatus-image"])
    derived.open("raw-run")
    derived.event(1, 7.0)
    assert signals.pilatus_image_raw_total.get() == 7.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data_keys": []}, "name `data_keys`"),
        ({"timeout_s": 0}, "timeout_s is 0; expected more than 0"),
        ({"on_timeout": "ignore"}, "expected 'raise', 'raw' or 'nan'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(derived, wrong, message):
    with pytest.raises(SettingsError, match=message):
        signals_of(derived, **wrong)


def test_live_table_shows_the_signals(RE, det, denoise, capsys):
    from bluesky_denoise.plans import denoised_scan

    signals, motor = DenoisedSignals(denoise), SynAxis(name="motor")
    table = LiveTable(["motor", "denoised_det_image_denoised_total"], stream_name="signals")
    RE(denoised_scan([det], motor, -1, 1, 3, denoised=signals), table)
    shown = capsys.readouterr().out
    assert "denoised_det_image_denoised_total" in shown.replace("\n", "")
    assert shown.count("1.000") >= 2


def test_best_effort_plots_the_signals_against_the_motor_untold(RE, det, denoise):
    import matplotlib as mpl

    mpl.use("Agg")
    from bluesky_denoise.plans import denoised_scan

    signals, motor = DenoisedSignals(denoise), SynAxis(name="motor")
    bec = BestEffortCallback()
    bec.disable_table()
    RE.subscribe(bec)
    RE(denoised_scan([det], motor, -1, 1, 5, denoised=signals))
    assert "denoised_det_image_denoised_total" in bec.peaks["com"]
    assert -1 <= bec.peaks["com"]["denoised_det_image_denoised_total"] <= 1


def test_the_last_event_is_that_of_a_running_run_with_frames(RE, det):
    last = LastEvent()
    motor = SynAxis(name="motor")
    seen = []

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([motor], "motors")
        seen.append(last.value)
        yield from bps.trigger_and_read([det])
        seen.append(last.value)
        yield from bps.trigger_and_read([motor], "motors")
        seen.append(last.value)

    RE.subscribe(last)
    (uid,) = RE(plan())
    assert seen[0] is None
    assert seen[1][:3] == (uid, "primary", 1)
    assert seen[2] == seen[1]
    assert last.value is None


def test_only_what_was_denoised_since_answers_for_a_point_that_is_taken_again():
    """After a pause: points 1 and 2 were taken, and are taken again."""
    second = Result(2, 11.0, {})
    assert second.answers(RawEvent("run", "primary", 1, 10.0))
    assert not second.answers(RawEvent("run", "primary", 1, 20.0))
    assert not second.answers(RawEvent("run", "primary", 2, 21.0))
    assert Result(1, 20.0, {}).answers(RawEvent("run", "primary", 1, 20.0))
    assert not Result(1, 20.0, {}).answers(RawEvent("run", "primary", 2, 21.0))
    assert Result(3, 30.0, {}).answers(RawEvent("run", "primary", 3, 0.0))  # of a fly scan
