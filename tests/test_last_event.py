"""Which raw event the newest result has to be of."""

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from beamline import denoised_here, detector, events_of
from composed_runs import ComposedRun
from derived_by_hand import KEY, Derived, at, signals_of
from ophyd.sim import SynAxis

from bluesky_denoise.newest_results import Result
from bluesky_denoise.plans import read_denoised
from bluesky_denoise.runs.last_event import LastEvent, RawEvent
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import UnitDenoiser


def test_the_last_event_is_that_of_the_newest_run_that_is_open():
    signals = signals_of(Derived())
    assert signals.last_event is None
    at(signals, 1, run="outer")
    at(signals, 7, run="inner")
    assert signals.last_event.run_uid == "inner"
    at(signals, 2, run="outer")
    assert signals.last_event[:3] == ("outer", "primary", 2)
    at(signals, 8, run="inner")
    # What has been told of one run comes once more, of a file, when another is the newest.
    signals.raw("stream_datum", {"descriptor": "outer primary", "seq_nums": {"stop": 2}})
    assert signals.last_event[:3] == ("inner", "primary", 8)
    signals.raw("stop", {"run_start": "inner"})
    assert signals.last_event[:3] == ("outer", "primary", 2)
    signals.raw("stop", {"run_start": "outer"})
    assert signals.last_event is None


@pytest.mark.parametrize(("key", "brings"), [("det", True), ("det-sum", False)])
def test_a_stream_datum_of_something_else_brings_no_frames(tmp_path, key, brings):
    run = ComposedRun(tmp_path, det=((16, 20), "STREAM:"), **{"det-sum": ((), "STREAM:")})
    run.files(key, tmp_path / "of.h5")(1, 1)
    last = LastEvent()
    for name, doc in run.documents:
        last(name, doc)
    assert last.has_frames(*run.documents[-1]) is brings


@pytest.mark.parametrize("on_timeout", ["nan", "raw"])
def test_a_document_that_cannot_be_followed_is_logged_and_not_raised(on_timeout, caplog):
    settings = DenoiseSettings(data_keys=[KEY])
    signals = signals_of(Derived(), settings=settings, on_timeout=on_timeout)
    at(signals, 1)
    signals.raw("event", {"descriptor": "raw-run primary", "data": {}})
    assert "A event document could not be followed" in caplog.text
    assert signals.last_event.seq_num == 1


def test_the_last_event_is_that_of_a_running_run_with_frames(RE):
    det = ReplayDetector(name="det", frames=ReplayFrames(np.ones((1, 16, 20), int), 1.0))
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


@pytest.mark.parametrize("on_timeout", ["raise", "raw"])
def test_numbers_of_a_frame_before_do_not_stand_for_one_that_is_not_denoised(RE, raw, on_timeout):
    det = detector(exposure_s=0.5)
    denoised = denoised_here(RE, UnitDenoiser(), timeout_s=2, on_timeout=on_timeout)

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan():
        for streams in (("primary",), ("dark",), ("primary", "dark"), ("dark",), ()):
            for stream in streams:
                yield from bps.trigger_and_read([det], stream)
            yield from read_denoised(denoised)

    RE(plan())
    read = events_of(raw, "signals")
    assert [data["denoised_raw_seq_num"] for data in read] == [1, 0, 2, 0, 0]
    assert [data["denoised_denoise_ok"] for data in read] == [True, False, True, False, False]
    numbers = [data["denoised_satellite_intensity"] for data in read]
    assert list(np.isfinite(numbers)) == [True, False, True, False, False]
    assert read[1]["denoised_denoise_reason"] == "not denoised: the frame of 'dark'"
    assert denoised.raw.value is None
