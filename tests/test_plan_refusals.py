"""Detectors that a plan refuses before its run: those that are not denoised."""

import pytest
from beamline import denoised_here, detector
from ophyd.sim import SynAxis

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import (
    adaptive_denoised_scan,
    adaptive_exposure_scan,
    denoised_count,
    denoised_scan,
    find_weak_peak,
    paired_exposures,
)
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import UnitDenoiser

STREAMS = ("primary", "reference", "short")


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=0.5)


@pytest.fixture
def denoised(RE):
    return denoised_here(RE, UnitDenoiser(), streams=STREAMS, timeout_s=2)


def asking_for(detectors, motor, denoised):
    """Return every plan with `denoised`, for other detectors."""
    roi = detectors, denoised, "satellite", motor
    asked = {"relative_error": 0.1, "max_frames": 2, "exposure_s": 0.1}
    target = "denoised_satellite_intensity"
    pair = {"short_s": 0.1, "long_s": 1.0}
    return {
        "denoised_count": denoised_count(detectors, denoised=denoised),
        "denoised_scan": denoised_scan(detectors, motor, -1, 1, 3, denoised=denoised),
        "adaptive_exposure_scan": adaptive_exposure_scan(*roi, -1, 1, 3, **asked),
        "adaptive_denoised_scan": adaptive_denoised_scan(
            *(detectors, target, motor, -1, 1, 0.2, 1.0, 20.0, True), denoised=denoised
        ),
        "find_weak_peak": find_weak_peak(*roi, -3, 3, 7, exposure_s=0.1),
        "paired_exposures": paired_exposures(detectors, num=1, denoised=denoised, **pair),
    }


@pytest.mark.parametrize("name", sorted(asking_for([], SynAxis(name="m"), None)))
def test_a_detector_that_is_not_denoised_is_refused_before_the_run(name, RE, raw, motor, denoised):
    other = ReplayDetector(name="other", frames=detector().frames)
    plan = asking_for([other], motor, denoised)[name]
    message = r"has the numbers of det_image; other read .*other.*Scan the detector that"
    with pytest.raises(SettingsError, match=message):
        RE(plan)
    assert "start" not in raw.by_name
    with pytest.raises(SettingsError, match="No detectors read nothing"):
        RE(asking_for([], motor, denoised)[name])
    with pytest.raises(SettingsError, match=r"`detectors` has the text 'det'; expected detectors"):
        RE(asking_for(["det"], motor, denoised)[name])
    with pytest.raises(SettingsError, match=r"denoised is among the `detectors`.*Leave it out"):
        RE(asking_for([other, denoised], motor, denoised)[name])
    with pytest.raises(SettingsError, match="`denoised` is a str; expected DenoisedSignals"):
        RE(asking_for([other], motor, "denoised")[name])


@pytest.mark.parametrize("name", sorted(asking_for([], SynAxis(name="m"), None)))
def test_frames_of_a_stream_that_is_not_denoised_are_refused_before_the_run(
    name, RE, raw, det, motor
):
    denoised = denoised_here(RE, UnitDenoiser(), streams=("long",))
    stream = "short" if name == "paired_exposures" else "primary"
    message = f"follows the streams long; the frames of this plan go into '{stream}'. Name it in"
    with pytest.raises(SettingsError, match=message):
        RE(asking_for([det], motor, denoised)[name])
    assert "start" not in raw.by_name
