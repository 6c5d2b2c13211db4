import gc
import re
import threading
import weakref

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.callbacks import LiveTable
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.utils import FailedStatus
from derived_by_hand import KEY, Derived, at, signals_of
from live_path import UNIT, settings
from ophyd.sim import SynAxis
from ophyd.utils.errors import ReadOnlyError

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import DenoiseError, DenoiseTimeout, SettingsError
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.runs.result_signals import frames_of
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import UnitDenoiser

SHAPE = (16, 20)


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


@pytest.fixture
def derived():
    return Derived()


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


def test_signals_that_are_destroyed_are_let_go_of():
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    signals = DenoisedSignals(router)
    kept = weakref.ref(signals)
    signals.destroy()
    del signals
    gc.collect()
    assert kept() is None


def test_the_result_of_a_slow_denoiser_is_waited_for(RE, counts, det):
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
    ((_, _, timer),) = signals._waiting
    assert timer.daemon  # the end of a session does not wait for it
    derived.event(2, 20.0)
    status.wait(1)
    assert signals.read()["denoised_det_image_raw_total"]["value"] == 20.0
    timer.join(1)  # nor is there one for each point of a fast scan
    assert not timer.is_alive()


def test_a_result_that_comes_just_as_time_is_up_stays(derived):
    signals = signals_of(derived, on_timeout="nan")
    derived.open("raw-run")
    at(signals, 1)
    status = signals.trigger()
    ((_, _, timer),) = signals._waiting
    derived.event(1, 20.0)
    timer.function(*timer.args)
    status.wait(1)
    assert signals.det_image_raw_total.get() == 20.0


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
    assert str(cause) == str(caught.value).partition("\n")[0]
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
    newest = signals._newest
    assert [*newest.ended] == ["third"]
    assert [*newest.results] == [("third", "primary")]


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
    signals, reasons = DenoisedSignals(denoise), []
    RE.subscribe(lambda name, doc: reasons.append(doc["reason"]), "stop")
    for run in (1, 2):  # the second must not see the frames of the first
        with pytest.raises(FailedStatus) as caught:
            RE(bp.count([det, signals], 2))
        assert "Trigger it after the event of its detector" in reasons[-1]
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
    "keys", [("det_image", "det_image_small"), ("det_image_small", "det_image")]
)
def test_a_region_of_a_detector_is_of_the_frames_whose_name_is_nearest(keys):
    assert frames_of(keys, {"det": ["spot"]})["spot_intensity"] == "det_image"


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
        assert [key for key in (*data_keys, *rois) if re.search(f" {key}[_,;]", named)] == missing
        assert logged().count(error) == 1
    else:
        status.wait(1)
        totals = {key: getattr(signals, f"{key}_raw_total").get() for key in data_keys}
        expected = {key: 7.0 if key in there else np.nan for key in data_keys}
        assert totals == pytest.approx(expected, nan_ok=True)


def test_regions_of_a_detector_that_no_run_has_are_told_with_the_frames_that_there_are():
    derived = Derived("pil_image")
    regions = {"pilatus": {"satellite": {"rows": [0, 9], "cols": [0, 9]}}}
    signals = DenoisedSignals(derived, settings=settings(rois=regions))
    at(signals, 1)
    status = signals.trigger()
    derived.open("raw-run")
    assert str(status.exception(1)) == (
        "denoised has the numbers of pilatus; the frames that are denoised of run raw-run are "
        "pil_image. Name these in `data_keys` or `rois`."
    )


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


def test_one_name_stands_for_a_list_of_one(derived):
    signals = DenoisedSignals(derived, data_keys=KEY, rois="spot", streams="primary")
    assert (signals.data_keys, signals.rois, signals.streams) == ((KEY,), ("spot",), ("primary",))
    assert np.isnan(signals.spot_intensity.get())


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
