"""A detector whose numbers are denoised, in plans that cannot be changed."""

import inspect
from pathlib import Path

import bluesky.plans as bp
import numpy as np
import pytest
from beamline import detector, events_of
from bluesky import protocols
from bluesky.utils import FailedStatus
from live_path import SummingCamera, poisson
from ophyd import DeviceStatus
from ophyd.sim import SynSignal
from ophyd.utils import RedundantStaging
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from ophyd_async.sim import SimBlobDetector
from typing_extensions import get_protocol_members, is_protocol

from bluesky_denoise.denoised_detector import DenoisedDetector
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import short_exposure_wrapper
from bluesky_denoise.roi import ROI
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import UnitDenoiser


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=0.5)


def test_plans_that_cannot_be_changed_see_denoised_numbers_of_the_same_point(RE, raw, motor):
    det = detector(motor, exposure_s=20.0, centre=0.3)
    roi = {"satellite": ROI(rows=(15, 32), cols=(16, 34))}
    smart = DenoisedDetector(det, UnitDenoiser(), rois=roi)
    RE(bp.tune_centroid([smart], "det_satellite_intensity", motor, -3, 3, 0.2, 9))
    assert motor.position == pytest.approx(0.3, abs=0.15)  # 0.02 counting noise, 0.2 the step
    events = events_of(raw, "primary")
    for event in events:
        assert event["det_frame_raw_total"] == event["det_image"].sum()
    raw.validate()


def test_a_detector_that_fails_to_denoise_fails_the_plan_with_its_reason(RE, det):
    class Broken(UnitDenoiser):
        def denoise(self, *args, **kwargs):
            raise RuntimeError("CUDA is gone")

    with pytest.raises(FailedStatus) as caught:
        RE(bp.count([DenoisedDetector(det, Broken())]))
    assert "CUDA is gone" in str(caught.value.__cause__)


def test_what_a_detector_sums_into_an_image_counts_in_its_exposure(RE, raw):
    det = SummingCamera(name="det", func=poisson())
    RE(bp.count([DenoisedDetector(det, UnitDenoiser())]))
    (event,) = events_of(raw, "primary")
    assert event["det_frame_exposure_s"] == 2.0
    total = event["det_image"].sum()
    assert event["det_frame_denoised_total"] == pytest.approx(total / 2.0)


def test_the_exposure_of_a_denoised_detector_is_shortened_too(RE, raw, det):
    RE(
        short_exposure_wrapper(
            bp.count([smart := DenoisedDetector(det, UnitDenoiser())]), [smart], 5
        )
    )
    assert events_of(raw, "primary")[0]["det_frame_exposure_s"] == 0.1
    assert smart.hints["fields"] == ["det_stats1_total", "det_frame_denoised_total"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"exposure_s": 0}, "exposure_s is 0; expected a number above 0"),
        (
            {"rois": {"a": {"rows": (0, 9), "cols": (0, 9)}}},
            "Region 'a' is {'rows': .*expected a ROI",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(det, wrong, message):
    with pytest.raises(SettingsError, match=message):
        DenoisedDetector(det, UnitDenoiser(), **wrong)


def test_masked_pixels_are_left_out_of_its_numbers(RE, raw, det):
    mask = np.zeros((48, 48), bool)
    mask[:, :20] = True
    RE(bp.count([DenoisedDetector(det, UnitDenoiser(), mask=mask)]))
    (event,) = events_of(raw, "primary")
    assert event["det_frame_denoised_total"] == pytest.approx(
        event["det_image"][:, 20:].sum() / event["det_frame_exposure_s"]
    )


def test_a_detector_that_fails_to_expose_fails_the_plan(RE, det):
    class Broken(ReplayDetector):
        def trigger(self):
            status = DeviceStatus(self)
            status.set_exception(RuntimeError("no frame in time"))
            return status

    broken = Broken(name="broken", frames=det.frames)
    with pytest.raises(FailedStatus) as caught:
        RE(bp.count([DenoisedDetector(broken, UnitDenoiser())]))
    assert "no frame in time" in str(caught.value.__cause__)


def test_a_detector_whose_frames_are_in_files_is_told_how_to_get_them(RE, raw, det, tmp_path):
    files = AreaDetectorReplay(name="det", frames=det.frames, directory=tmp_path, exposure_s=0.5)
    with pytest.raises(FailedStatus) as caught:
        RE(bp.count([DenoisedDetector(files, UnitDenoiser())]))
    assert "Give DenoisedDetector a `frame` that returns it" in str(caught.value.__cause__)
    frame = np.full((48, 48), 2, np.uint32)
    raw.clear()
    RE(bp.count([DenoisedDetector(files, UnitDenoiser(), frame=lambda: frame)]))
    assert events_of(raw, "primary")[0]["det_frame_raw_total"] == 2 * 48 * 48


def supported(device):
    """Return the protocols of Bluesky that `isinstance` finds from Python 3.12 on."""

    def has(attribute):
        try:
            return inspect.getattr_static(device, attribute) is not NotImplemented
        except AttributeError:
            return False

    every = [p for p in vars(protocols).values() if isinstance(p, type) and is_protocol(p)]
    return {p.__name__ for p in every if all(map(has, get_protocol_members(p)))}


@pytest.mark.parametrize("kind", ["in events", "in files", "of a signal"])
def test_a_denoised_detector_is_to_bluesky_what_the_detector_is(det, tmp_path, kind):
    if kind == "in files":
        det = AreaDetectorReplay(name="det", frames=det.frames, directory=tmp_path)
    if kind == "of a signal":
        det = SynSignal(name="det")
    smart = DenoisedDetector(det, UnitDenoiser(), exposure_s=1.0)
    assert supported(smart) == supported(det)
    assert ("Stageable" in supported(smart)) == (kind != "of a signal")
    assert ("WritesExternalAssets" in supported(smart)) == (kind == "in files")
    assert "Configurable" in supported(smart)


def test_a_detector_of_ophyd_async_is_refused_when_it_is_built(RE):
    with init_devices():
        slow = SimBlobDetector(StaticPathProvider(UUIDFilenameProvider(), Path()), name="blob")
    with pytest.raises(SettingsError, match="blob is a detector of ophyd-async"):
        DenoisedDetector(slow, UnitDenoiser())


def test_a_denoised_detector_is_staged_and_configured_as_the_detector(RE, raw, det):
    smart = DenoisedDetector(det, UnitDenoiser())
    staged = []
    det.stage_sigs["cam.acquire_time"] = 0.25
    det.cam.acquire_time.subscribe(lambda value, **_: staged.append(value), run=False)
    RE(bp.count([smart]))
    assert staged == [0.25, 0.5]
    (descriptor,) = raw.by_name["descriptor"]
    assert descriptor["configuration"]["det"]["data"] == {"det_cam_acquire_time": 0.25}


@pytest.mark.parametrize("first", ["the detector", "what denoises it"])
def test_a_detector_beside_what_denoises_it_is_refused_before_the_run(RE, raw, det, first):
    """As the docstring says: ophyd's own error, whichever is staged first."""
    both = [det, DenoisedDetector(det, UnitDenoiser())]
    with pytest.raises(RedundantStaging, match="is already staged"):
        RE(bp.count(both if first == "the detector" else both[::-1]))
    assert not raw.documents
    RE(bp.count(both[1:]))  # nothing is left staged
    assert raw.by_name["stop"][0]["exit_status"] == "success"
