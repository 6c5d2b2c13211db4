"""Short exposures that begin within a run, which has the exposure of a detector only once."""

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import pytest
from beamline import denoised_here, detector, events_of
from bluesky.utils import Msg
from ophyd import Kind, Signal
from ophyd.sim import flyer1
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices

from bluesky_denoise.denoised_detector import DenoisedDetector
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import short_exposure_wrapper
from bluesky_denoise.plans.exposures import ExposureReading, set_exposure_wrapper
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.testing import UnitDenoiser

WRAPPERS = {
    "short_exposure_wrapper": lambda plan, det: short_exposure_wrapper(plan, [det], 10),
    "set_exposure_wrapper": lambda plan, det: set_exposure_wrapper(plan, [det], 0.05),
}
short = WRAPPERS["short_exposure_wrapper"]


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=0.5)


def in_a_run(plan, det, before=()):
    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def full_then_short():
        for _ in range(2):
            yield from bps.trigger_and_read([det, *before])
        yield from plan
        yield from bps.trigger_and_read([det, *before])

    return full_then_short()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_shorter_frames_in_a_run_that_is_open_are_refused(wrapper, RE, raw, det):
    plan = WRAPPERS[wrapper](bps.trigger_and_read([det]), det)
    with pytest.raises(SettingsError, match=r"Frames of det .* Wrap the whole run, or make the"):
        RE(in_a_run(plan, det))
    assert len(events_of(raw, "primary")) == 2
    assert raw.by_name["stop"][0]["exit_status"] == "fail"
    assert det.cam.acquire_time.get() == 0.5


@pytest.mark.parametrize(
    ("exposed", "read"),
    [
        (lambda det: det, lambda det: det.stats1.total),
        (lambda det: DenoisedDetector(det, UnitDenoiser()), lambda det: det),
    ],
    ids=["a part", "what it is a part of"],
)
def test_shorter_frames_are_refused_whatever_of_the_detector_is_read(exposed, read, RE, raw, det):
    plan = short(bps.trigger_and_read([read(det)]), exposed(det))
    with pytest.raises(SettingsError, match="Frames of det at another exposure"):
        RE(in_a_run(plan, det))
    assert len(events_of(raw, "primary")) == 2


def test_a_plan_may_go_on_in_the_run_when_shorter_frames_were_refused(RE, raw, det):
    def going_on():
        with pytest.raises(SettingsError, match="Wrap the whole run"):
            yield from short(bps.trigger_and_read([det]), det)

    RE(in_a_run(going_on(), det))
    assert len(events_of(raw, "primary")) == 3
    assert raw.by_name["stop"][0]["exit_status"] == "success"


def own_reading(det):
    det.cam.kind = det.cam.acquire_time.kind = Kind.normal
    return det, []


def another_reading(det):
    return det, [ExposureReading(det)]


def another_signal(det):
    det.exposure_signal = Signal(name="seconds", value=0.5)
    det.exposure_signal.subscribe(lambda value, **kwargs: det.cam.acquire_time.put(value))
    return det, [det.exposure_signal]


def denoised_detector(det):
    return DenoisedDetector(det, UnitDenoiser()), []


@pytest.mark.parametrize(
    ("reading", "key"),
    [
        (own_reading, "det_cam_acquire_time"),
        (another_reading, "det_cam_acquire_time"),
        (another_signal, "seconds"),
        (denoised_detector, "det_frame_exposure_s"),
    ],
)
def test_frames_whose_events_have_the_exposure_may_be_shorter_in_a_run(reading, key, RE, raw, det):
    read, more = reading(det)
    RE(in_a_run(short(bps.trigger_and_read([read, *more]), read), read, more))
    events = events_of(raw, "primary")
    assert [event[key] for event in events] == [0.5, 0.5, 0.05, 0.5]
    totals = [event["det_image"].sum() for event in events]
    assert totals[2] < 0.3 * min(totals[0], totals[1], totals[3])


def test_the_denoiser_takes_the_exposure_that_an_event_has(RE, raw, det):
    denoised_here(RE, UnitDenoiser()).router.subscribe(raw)
    read, _ = own_reading(det)
    RE(in_a_run(short(bps.trigger_and_read([read]), read), read))
    exposures = [e["det_image_exposure_s"] for e in events_of(raw, "denoised")]
    assert exposures == [0.5, 0.5, 0.05, 0.5]


def test_what_is_not_exposed_may_be_read_in_a_run_that_is_open(RE, raw, det, motor):
    def plan():
        yield from bps.trigger_and_read([motor], "motors")
        yield from bps.trigger(det, wait=True)  # frames that are only looked at
        yield from bps.rd(det.stats1.total)
        yield from bps.create("primary")
        yield from bps.read(det)
        yield from bps.drop()

    RE(in_a_run(short(plan(), det), det))
    assert len(events_of(raw, "motors")) == 1


@pytest.mark.parametrize("key", [None, "inner"])
def test_of_several_runs_only_those_that_the_plan_opens_take_shorter_frames(key, RE, raw, det):
    def plan(after=False):
        yield from bpp.set_run_key_wrapper(bps.open_run(), "own")
        yield from bpp.set_run_key_wrapper(bps.trigger_and_read([det]), "own")
        if not after:
            yield from bps.trigger_and_read([det])
        yield from bpp.set_run_key_wrapper(bps.close_run(), "own")
        yield from bps.trigger_and_read([det])

    for after in (False, True):
        raw.clear()
        outer = in_a_run(short(plan(after), det), det)
        with pytest.raises(SettingsError, match="Wrap the whole run"):
            RE(outer if key is None else bpp.set_run_key_wrapper(outer, key))
        exposures = [start.get("exposures") for start in raw.by_name["start"]]
        assert exposures == [None, {"det": {"full_s": 0.5, "short_s": 0.05, "factor": 10}}]
        assert len(raw.by_name["event"]) == 3
        assert det.cam.acquire_time.get() == 0.5


def test_runs_of_a_plan_take_shorter_frames_one_after_another(RE, raw, det, motor):
    def plan():
        for _ in range(2):
            yield from bp.scan([det], motor, -1, 1, 2)

    RE(short(plan(), det))
    assert [start["exposures"]["det"]["short_s"] for start in raw.by_name["start"]] == [0.05] * 2
    assert len(raw.by_name["event"]) == 4


@pytest.mark.parametrize("by", ["declare_stream", "kickoff", "monitor"])
def test_streams_without_saves_are_refused_too(by, RE, det):
    args = (det,) if by == "declare_stream" else ()
    obj = None if by == "declare_stream" else det

    def plan():
        yield Msg(by, obj, *args, name="primary")

    with pytest.raises(SettingsError, match="Wrap the whole run"):
        RE(in_a_run(short(plan(), det), det))
    assert det.cam.acquire_time.get() == 0.5


def test_a_stream_whose_events_will_have_the_exposure_may_be_declared(RE, raw, det):
    read, _ = own_reading(det)
    RE(in_a_run(short(bps.declare_stream(read, name="short"), read), read))
    assert [d["name"] for d in raw.by_name["descriptor"]] == ["primary", "short"]


def test_a_plan_that_is_only_looked_at_is_refused_too(det):
    with pytest.raises(SettingsError, match="Wrap the whole run"):
        list(in_a_run(short(bps.trigger_and_read([det]), det), det))
    read, _ = own_reading(det)
    assert list(in_a_run(short(bps.trigger_and_read([read]), read), read))


def test_other_flyers_may_fly_in_the_meantime(RE, raw, det):
    RE(in_a_run(short(bps.kickoff(flyer1, wait=True), det), det))
    assert raw.by_name["stop"][0]["exit_status"] == "success"


def test_detectors_that_do_not_describe_themselves_yet_are_judged_by_what_they_read(
    RE, raw, det, tmp_path
):
    with init_devices():
        provider = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
        pilatus = AsyncReplayDetector(provider, det.frames, exposure_s=0.5, name="det")
    with pytest.raises(SettingsError, match="Frames of det at another exposure"):
        RE(in_a_run(short(bps.trigger_and_read([pilatus]), pilatus), pilatus))
    read = [pilatus, ExposureReading(pilatus)]
    RE(in_a_run(short(bps.trigger_and_read(read), pilatus), pilatus, read[1:]))
    exposures = [e.get("det-driver-acquire_time") for e in events_of(raw, "primary")]
    assert exposures[-4:] == [0.5, 0.5, 0.05, 0.5]
