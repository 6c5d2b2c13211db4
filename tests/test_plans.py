import asyncio
import contextlib
import os
import signal
import threading

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from beamline import KEY, after_saves, denoised_here, detector, events_of, paused_after
from bluesky.simulators import check_limits, summarize_plan
from bluesky.utils import FailedStatus, RunEngineInterrupted
from ophyd.sim import SynAxis
from ophyd_async.core import init_devices, soft_signal_rw
from tiers import thorough

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import (
    adaptive_denoised_scan,
    adaptive_exposure_scan,
    denoised_count,
    denoised_per_shot,
    denoised_per_step,
    denoised_scan,
    find_weak_peak,
    paired_exposures,
    read_denoised,
    short_exposure_wrapper,
)
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser

STREAMS = ("primary", "reference", "short")


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=0.5)


@pytest.fixture
def denoised(RE):
    return denoised_here(RE, UnitDenoiser(), streams=STREAMS, timeout_s=2)


def plans(det, motor, denoised):
    """Return every plan, made small, by name."""
    return {
        "short_exposure": short_exposure_wrapper(bp.scan([det], motor, -1, 1, 3), [det], 20),
        "denoised_count": denoised_count([det], 3, denoised=denoised),
        "denoised_scan": denoised_scan([det], motor, -1, 1, 3, denoised=denoised),
        "reference_every": denoised_scan(
            [det], motor, -1, 1, 3, denoised=denoised, reference_every=2, reference_s=2.0
        ),
        "adaptive_exposure_scan with references": adaptive_exposure_scan(
            *([det], denoised, "satellite", motor, -1, 1, 3),
            relative_error=0.01,
            max_frames=2,
            exposure_s=0.1,
            reference_every=2,
            reference_s=2.0,
        ),
        "adaptive_exposure_scan": adaptive_exposure_scan(
            *([det], denoised, "satellite", motor, -1, 1, 3),
            relative_error=0.01,
            max_frames=3,
            exposure_s=0.1,
        ),
        "adaptive_denoised_scan": adaptive_denoised_scan(
            *([det], "denoised_satellite_intensity", motor, -1, 1, 0.2, 1.0, 20.0, True),
            denoised=denoised,
        ),
        "find_weak_peak": find_weak_peak(
            [det], denoised, "satellite", motor, -3, 3, 7, exposure_s=0.1, fine_num=5
        ),
        "paired_exposures": paired_exposures(
            [det], motor, -1, 1, num=3, short_s=0.1, long_s=1.0, denoised=denoised
        ),
    }


NAMES = sorted(
    plans(
        detector(),
        SynAxis(name="m"),
        type(
            "D",
            (),
            {
                "streams": STREAMS,
                "rois": ("satellite",),
                "name": "denoised",
                "describe": lambda self: {"denoised_satellite_intensity": 0},
            },
        )(),
    )
)


# All plans


@pytest.mark.parametrize("name", NAMES)
def test_each_plan_can_be_looked_at_without_running_it(name, det, motor, denoised, capsys):
    summarize_plan(plans(det, motor, denoised)[name])
    assert "Open Run" in capsys.readouterr().out
    check_limits(plans(det, motor, denoised)[name])
    assert det.cam.acquire_time.get() == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_each_plan_runs_closes_its_run_and_puts_the_exposure_back(
    name, RE, raw, det, motor, denoised
):
    RE(plans(det, motor, denoised)[name])
    raw.validate()
    assert raw.by_name["stop"][0]["exit_status"] == "success"
    assert det.cam.acquire_time.get() == 0.5


@pytest.mark.parametrize(
    ("interrupted", "saves", "then", "ends_as"),
    [
        thorough("pause", 1, "resume", "success"),
        ("pause", 2, "resume", "success"),
        ("pause", 1, "abort", "abort"),
        thorough("pause", 2, "stop", "success"),
        ("Ctrl-C twice", 2, "resume", "success"),
        thorough("Ctrl-C twice", 1, "abort", "abort"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_that_is_interrupted_restores_the_exposure_and_closes_both_runs(
    name, interrupted, saves, then, ends_as, RE, raw, det, motor, denoised
):
    derived = DocumentCollector()
    denoised.router.subscribe(derived)
    plan = plans(det, motor, denoised)[name]
    plan = paused_after(plan, saves) if interrupted == "pause" else signalled_after(RE, plan, saves)
    with pytest.raises(RunEngineInterrupted):
        RE(plan)
    assert RE.state == "paused"
    getattr(RE, then)()
    assert RE.state == "idle"
    assert [stop["exit_status"] for stop in raw.by_name["stop"]] == [ends_as]
    assert [stop["exit_status"] for stop in derived.by_name["stop"]] == [ends_as]
    assert det.cam.acquire_time.get() == 0.5
    numbers = [e["data"] for e in raw.by_name["event"] if "denoised_denoise_ok" in e["data"]]
    assert bool(numbers) == (name != "short_exposure" and then != "abort")
    assert all(data["denoised_denoise_ok"] for data in numbers)


def signalled_after(RE, plan, saves):
    """Send SIGINT twice once so many events are saved, as Ctrl-C at the prompt does."""

    pressed = threading.Event()

    def press():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.15)  # what comes within 0.1 s is no second Ctrl-C to bluesky
        os.kill(os.getpid(), signal.SIGINT)

    async def until_pressed():
        if not pressed.is_set():  # when it is resumed it goes on
            pressed.set()
            threading.Thread(target=press).start()
            await asyncio.sleep(30)

    return after_saves(plan, saves, lambda: bps.wait_for([until_pressed]))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "short_exposure"])
def test_a_pause_while_a_result_is_waited_for_takes_no_frame_again(
    name, RE, raw, det, motor, denoised
):
    def pause(msg):
        waits = msg.command == "trigger" and msg.obj is denoised
        return None, bps.pause() if waits else None

    with pytest.raises(RunEngineInterrupted):
        RE(bpp.plan_mutator(plans(det, motor, denoised)[name], pause))
    while RE.state == "paused":
        with contextlib.suppress(RunEngineInterrupted):
            RE.resume()
    frames = [e for e in raw.by_name["event"] if "det_image" in e["data"]]
    assert raw.by_name["stop"][0]["exit_status"] == "success"
    assert len({(e["descriptor"], e["seq_num"]) for e in frames}) == len(frames) > 2


@pytest.mark.parametrize("name", [name for name in NAMES if name != "denoised_count"])
@pytest.mark.parametrize("where", ["frame", "checkpoint"])
def test_a_motor_that_is_moved_during_a_pause_is_moved_back(
    where, name, RE, raw, det, motor, denoised
):
    checkpoints = []

    def pause(msg):
        if where == "frame" and msg.command == "trigger" and msg.obj is det:
            return None, bps.pause()
        if where == "checkpoint" and msg.command == "checkpoint" and len(checkpoints) < 5:
            checkpoints.append(msg)
            return None, bps.pause()  # as a deferred pause, at which bluesky waits for 0.5 s
        return None, None

    with pytest.raises(RunEngineInterrupted):
        RE(bpp.plan_mutator(plans(det, motor, denoised)[name], pause))
    while RE.state == "paused":
        motor.set(7.0).wait(10)  # it moves in a thread
        with contextlib.suppress(RunEngineInterrupted):
            RE.resume()
    positions = [e["data"]["motor"] for e in raw.by_name["event"] if "motor" in e["data"]]
    assert len(positions) > 2
    assert 7.0 not in positions


@pytest.mark.parametrize("name", ["adaptive_exposure_scan", "find_weak_peak"])
def test_plans_that_set_an_exposure_record_the_full_one_too(name, RE, raw, det, motor, denoised):
    RE(plans(det, motor, denoised)[name])
    exposures = raw.by_name["start"][0]["exposures"]
    assert exposures == {"det": {"full_s": 0.5, "short_s": 0.1, "factor": 5.0}}


# Scans


def test_a_denoised_scan_has_frames_in_primary_and_numbers_beside_them(
    RE, raw, det, motor, denoised
):
    RE(denoised_scan([det], motor, -1, 1, 5, denoised=denoised))
    primary, signals = events_of(raw, "primary"), events_of(raw, "signals")
    assert [e["denoised_raw_seq_num"] for e in signals] == [1, 2, 3, 4, 5]
    assert [e["motor"] for e in signals] == [e["motor"] for e in primary]
    totals = [float(e["det_image"].sum()) for e in primary]
    assert [e["denoised_det_image_raw_total"] for e in signals] == totals
    assert raw.by_name["start"][0]["hints"]["dimensions"] == [(["motor"], "signals")]
    assert raw.by_name["start"][0]["plan_name"] == "denoised_scan"


def test_frames_that_a_suspender_takes_meanwhile_are_not_those_of_the_point(
    RE, raw, det, motor, denoised
):
    def dark_first(msg):
        if msg.command == "trigger" and msg.obj is denoised:
            dark = bps.trigger_and_read([det], name="reference")
            return bpp.pchain(dark, bpp.single_gen(msg)), None
        return None, None

    RE(bpp.plan_mutator(denoised_scan([det], motor, -1, 1, 3, denoised=denoised), dark_first))
    totals = [float(e["det_image"].sum()) for e in events_of(raw, "primary")]
    signals = events_of(raw, "signals")
    assert [e["denoised_det_image_raw_total"] for e in signals] == totals


def test_the_per_step_serves_other_plans(RE, raw, det, motor, denoised):
    other = SynAxis(name="other")
    per_step = denoised_per_step(denoised)
    RE(bp.grid_scan([det], motor, 0, 1, 2, other, 0, 1, 2, per_step=per_step))
    assert [e["other"] for e in events_of(raw, "signals")] == [0, 1, 0, 1]
    raw.clear()
    RE(bp.log_scan([det], motor, -1, 1, 3, per_step=per_step))
    assert [e["denoised_raw_seq_num"] for e in events_of(raw, "signals")] == [1, 2, 3]
    assert [e["motor"] for e in events_of(raw, "signals")] == pytest.approx([0.1, 1, 10])


@pytest.mark.parametrize("stream", ["denoised", "denoised_dark"])
def test_numbers_do_not_go_into_streams_of_the_denoiser(stream, RE, raw, denoised):
    message = f"`stream` is '{stream}'; the denoiser's results go .* is free, such as 'signals'"
    for plan in (denoised_per_step, denoised_per_shot):
        with pytest.raises(SettingsError, match=message):
            plan(denoised, stream=stream)
    with pytest.raises(SettingsError, match=message):
        RE(read_denoised(denoised, stream=stream))
    assert not raw.documents


def test_references_are_taken_at_each_nth_point_with_their_own_exposure(
    RE, raw, det, motor, denoised
):
    RE(
        denoised_scan(
            [det], motor, 0, 0.4, 5, denoised=denoised, reference_every=2, reference_s=4.0
        )
    )
    reference = events_of(raw, "reference")
    assert [e["motor"] for e in reference] == pytest.approx([0.0, 0.2, 0.4])
    assert [e["det_cam_acquire_time"] for e in reference] == [4.0] * 3
    numbers = events_of(raw, "reference_signals")
    assert [e["denoised_det_image_exposure_s"] for e in numbers] == [4.0] * 3
    assert [e["denoised_det_image_exposure_s"] for e in events_of(raw, "signals")] == [0.5] * 5
    pulls = [e["agreement_satellite_pull"] for e in events_of(raw, "agreement")]
    assert len(pulls) == 3
    assert max(map(abs, pulls)) < 4  # standard deviations, of three


@pytest.mark.parametrize("plan", ["adaptive_exposure_scan", "adaptive_denoised_scan", "find"])
def test_references_can_be_taken_in_the_other_plans(plan, RE, raw, det, motor, denoised):
    asked = {"reference_every": 2, "reference_s": 4.0}
    if plan == "adaptive_exposure_scan":
        args = ([det], denoised, "satellite", motor, 0, 0.4, 5)
        wanted = {"relative_error": 0.2, "max_frames": 4, "exposure_s": 0.5}
        RE(adaptive_exposure_scan(*args, **wanted, **asked))
    elif plan == "adaptive_denoised_scan":
        args = ([det], "denoised_satellite_intensity", motor, 0, 1, 0.2, 0.4, 20.0, False)
        RE(adaptive_denoised_scan(*args, denoised=denoised, **asked))
    else:
        args = ([det], denoised, "satellite", motor, 0, 4, 5)
        RE(find_weak_peak(*args, exposure_s=0.5, fine_num=5, **asked))
    points = {e["motor"] for e in events_of(raw, "primary")}
    agreement = events_of(raw, "agreement")
    assert len(agreement) >= len(points) / 2
    assert {e["det_cam_acquire_time"] for e in events_of(raw, "reference")} == {4.0}
    assert {e["motor"] for e in events_of(raw, "reference")} <= points
    pulls = [e["agreement_satellite_pull"] for e in agreement]
    assert max(map(abs, pulls)) < 4  # standard deviations, of three to five
    assert det.cam.acquire_time.get() == 0.5


def test_a_reference_that_disagrees_is_reported(RE, det, motor, denoised, logged):
    exposures = iter([0.5, 4.0])
    frames = detector(intensity_cps=1000.0).frames

    class Fading:
        shape = frames.shape

        def __call__(self, exposure_s):
            # The beam is ten times weaker in the reference.
            return frames(exposure_s if next(exposures) == 0.5 else exposure_s / 10)

    det.frames = Fading()
    RE(denoised_count([det], 1, denoised=denoised, reference_every=1, reference_s=4.0))
    assert "ROI satellite, point 1: the short exposure differs from the reference" in logged()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "denoised_count"])
def test_what_is_scanned_need_not_have_hints(name, RE, raw, det, denoised):
    with init_devices():
        temperature = soft_signal_rw(float, 0.0, name="temperature")
    RE(plans(det, temperature, denoised)[name])
    assert raw.by_name["stop"][0]["exit_status"] == "success"
    assert {-1.0, 1.0} & {e["data"].get("temperature") for e in raw.by_name["event"]}


@pytest.mark.parametrize("keys", [("det",), (KEY,)])
@pytest.mark.parametrize(
    "kind", ["in events", "in files", "in files that are described when staged"]
)
def test_a_denoiser_may_be_told_the_detector_or_its_frames(kind, keys, RE, raw, motor, tmp_path):
    class Late(AreaDetectorReplay):
        """Describes what it reads as areaDetector's file plugins do: while it is staged."""

        def describe(self):
            return super().describe() if self._file else {}

    frames = detector(motor).frames
    if kind == "in events":
        det = ReplayDetector(name="det", frames=frames)
    else:
        made = AreaDetectorReplay if kind == "in files" else Late
        det = made(name="det", frames=frames, directory=tmp_path)
    denoised = denoised_here(RE, UnitDenoiser(), data_keys=keys, timeout_s=2)
    RE(denoised_scan([det], motor, 0, 0.2, 3, denoised=denoised))
    numbers = [e["denoised_satellite_intensity"] for e in events_of(raw, "signals")]
    assert numbers == pytest.approx([100] * 3, abs=40)  # counts / s, three standard deviations


def test_signals_whose_denoiser_sees_no_documents_say_what_to_subscribe(RE, det, motor):
    denoised = denoised_here(RE, UnitDenoiser(), timeout_s=2)
    RE.unsubscribe(0), RE.unsubscribe(1)
    with pytest.raises(FailedStatus) as caught:
        RE(denoised_scan([det], motor, -1, 1, 3, denoised=denoised))
    assert "subscribe the denoiser to the RunEngine" in str(caught.value.__cause__)


def test_references_need_a_denoiser_that_denoises_them(RE, det, motor):
    denoised = denoised_here(RE, UnitDenoiser())
    plan = denoised_scan(
        [det], motor, -1, 1, 3, denoised=denoised, reference_every=1, reference_s=1.0
    )
    with pytest.raises(SettingsError, match=r"Set `streams` to \['primary', 'reference'\]"):
        RE(plan)
    plan = denoised_scan([det], motor, -1, 1, 3, denoised=denoised, reference_every=1)
    with pytest.raises(SettingsError, match="needs `reference_s`"):
        RE(plan)
    plan = denoised_scan([det], motor, -1, 1, 3, denoised=denoised, reference_s=1.0)
    with pytest.raises(SettingsError, match="needs `reference_every`"):
        RE(plan)


@pytest.mark.parametrize("every", [0, 0.5, 2.5, "2"])
def test_references_are_taken_at_whole_points(RE, det, motor, denoised, every):
    asked = {"denoised": denoised, "reference_every": every, "reference_s": 1.0}
    with pytest.raises(SettingsError, match=f"reference_every is {every!r}; expected"):
        RE(denoised_scan([det], motor, -1, 1, 3, **asked))


def test_pairs_are_of_the_same_points_and_carry_their_exposures(RE, raw, det, motor, denoised):
    RE(paired_exposures([det], motor, -1, 1, num=3, short_s=0.1, long_s=2.0, denoised=denoised))
    short, long = events_of(raw, "short"), events_of(raw, "long")
    assert [e["motor"] for e in short] == [e["motor"] for e in long] == [-1, 0, 1]
    assert [e["det_cam_acquire_time"] for e in short + long] == [0.1] * 3 + [2.0] * 3
    for one, other in zip(short, long, strict=True):
        assert other["det_image"].sum() > 10 * one["det_image"].sum()
    exposures = [e["denoised_det_image_exposure_s"] for e in events_of(raw, "signals")]
    assert exposures == [0.1] * 3


def test_pairs_can_be_taken_without_moving(RE, raw, det):
    RE(paired_exposures([det], num=2, short_s=0.1, long_s=1.0))
    assert len(events_of(raw, "short")) == len(events_of(raw, "long")) == 2


def test_an_adaptive_scan_takes_smaller_steps_where_the_intensity_changes(RE, raw, motor, denoised):
    det = detector(motor, exposure_s=100.0, width=0.3)
    RE(
        adaptive_denoised_scan(
            *([det], "denoised_satellite_intensity", motor, -2, 2, 0.02, 0.5, 10.0, True),
            denoised=denoised,
        )
    )
    positions = np.array([e["motor"] for e in events_of(raw, "signals")])
    steps, middles = np.diff(positions), positions[:-1]
    flank = np.abs(np.abs(middles) - 0.3) < 0.15
    assert steps[flank].mean() < 0.5 * steps[np.abs(middles) > 1.3].mean()


def test_an_adaptive_scan_from_a_whole_number_has_positions_with_decimals(RE, raw, denoised):
    axis = SynAxis(name="axis")  # to ophyd an integer, as long as it stands at one
    det = detector(axis, exposure_s=0.5)
    RE(
        adaptive_denoised_scan(
            *([det], "denoised_satellite_intensity", axis, -1, 0, 0.2, 0.5, 10.0, False),
            denoised=denoised,
        )
    )
    # Tiled takes the type of a column from its first value.
    assert {type(e["axis_setpoint"]) for e in events_of(raw, "primary")} == {float}


@pytest.mark.parametrize("target", ["nothing", "denoised_denoise_reason", "denoised_denoise_ok"])
def test_an_adaptive_scan_needs_a_number_that_exists(target, RE, raw, det, motor, denoised):
    plan = adaptive_denoised_scan(
        [det], target, motor, -1, 1, 0.1, 0.5, 1.0, True, denoised=denoised
    )
    with pytest.raises(SettingsError, match=f"has no number '{target}'; it has denoised_"):
        RE(plan)
    assert "start" not in raw.by_name


def test_a_denoiser_that_does_not_answer_ends_the_plan_and_restores_the_exposure(RE, det):
    from bluesky_denoise.devices import DenoisedSignals

    class Silent:
        def subscribe(self, func):
            return 0

    denoised = DenoisedSignals(Silent(), data_keys=["det_image"], rois=[], timeout_s=0.05)
    RE.subscribe(denoised.raw)
    with pytest.raises(FailedStatus):
        RE(short_exposure_wrapper(denoised_count([det], denoised=denoised), [det], 20))
    assert det.cam.acquire_time.get() == 0.5
