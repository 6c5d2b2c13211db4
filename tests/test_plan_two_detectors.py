"""A denoiser of two detectors, in runs that have one of them alone."""

from types import SimpleNamespace

import numpy as np
import pytest
from beamline import ROIS, denoised_here, events_of, scene
from live_path import SummingCamera

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import (
    adaptive_denoised_scan,
    adaptive_exposure_scan,
    denoised_scan,
    find_weak_peak,
)
from bluesky_denoise.plans.checks import detector_of
from bluesky_denoise.plans.descriptions import images_per_event
from bluesky_denoise.simulation import SceneFrames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import UnitDenoiser

SPOT = ROIS["satellite"]
OWN = {"lo": {"low": SPOT}, "hi": {"high": SPOT}}
ASKED = {"relative_error": 0.2, "max_frames": 2, "exposure_s": 0.1}


def one(name, intensity_cps, kind=ReplayDetector, **kwargs):
    frames = SceneFrames(scene(intensity_cps), seed=1)
    return kind(name=name, frames=frames, exposure_s=1.0, **kwargs)


@pytest.fixture
def lo():
    return one("lo", 100.0)


@pytest.fixture
def hi():
    return one("hi", 1000.0)


def signals(RE, rois=OWN, data_keys=("lo", "hi"), **kwargs):
    asked = {"rois": rois, "data_keys": data_keys, "timeout_s": 2}
    return denoised_here(RE, UnitDenoiser(), **asked, **kwargs)


def test_what_a_detector_sums_into_an_image_counts_in_the_exposure_of_a_point(RE, raw, motor, hi):
    frames = SceneFrames(scene(100.0), seed=1)
    det = SummingCamera(name="lo", func=lambda: frames(0.8))
    denoised = denoised_here(
        RE, UnitDenoiser(), rois={"low": SPOT}, data_keys=("lo_image",), audit=False
    )
    asked = {"relative_error": 0.1, "max_frames": 9, "exposure_s": 0.2}
    RE(adaptive_exposure_scan([hi, det], denoised, "low", motor, 0, 1, 2, **asked))
    points = events_of(raw, "points")
    assert len(points) == 2
    for point in points:
        assert point["low_point_exposure_s"] == pytest.approx(0.8 * point["low_point_frames"])
        assert point["low_point_intensity"] == pytest.approx(100, rel=0.4)  # 4 sigma


def test_a_region_without_a_data_key_is_of_the_first_detector_that_is_denoised(RE, lo, hi):
    denoised = signals(RE, rois={"spot": SPOT}, data_keys=("hi", "lo"))
    assert detector_of(denoised, "spot_intensity", [lo, hi]) is hi
    assert detector_of(denoised, "spot_intensity", [lo]) is lo


@pytest.mark.parametrize("data_key", ["strip", "strip_image", None])
def test_images_of_a_strip_detector_are_counted(data_key):
    spec = {"dtype": "array", "shape": [3, 1, 1280], "source": "sim"}
    strip = SimpleNamespace(name="strip", describe=lambda: {"strip_image": spec})
    with pytest.raises(StopIteration) as end:
        next(images_per_event(strip, data_key))
    assert end.value.value == 3


def readings(raw):
    """Return what the signals read, of the last run, by name."""
    last = raw.by_name["start"][-1]["uid"]
    (stream,) = [
        d for d in raw.by_name["descriptor"] if d["run_start"] == last and d["name"] == "signals"
    ]
    events = [e["data"] for e in raw.by_name["event"] if e["descriptor"] == stream["uid"]]
    return {
        key.removeprefix("denoised_"): np.array([event[key] for event in events])
        for key in stream["data_keys"]
    }


@pytest.mark.parametrize(
    ("rois", "data_keys"),
    [
        (OWN, ("lo", "hi")),
        (OWN, ("lo_image", "hi_image")),
        ({"lo_image": OWN["lo"], "hi_image": OWN["hi"]}, ("lo", "hi")),
    ],
)
def test_a_plan_may_have_one_of_the_detectors(rois, data_keys, RE, raw, motor, lo, hi):
    denoised = signals(RE, rois, data_keys)
    keys = []
    for detectors in ([lo, hi], [lo], [hi]):
        RE(denoised_scan(detectors, motor, 0, 1, 2, denoised=denoised))
        read = readings(raw)
        keys.append(list(read))
        for name, region, key in (("lo", "low", data_keys[0]), ("hi", "high", data_keys[1])):
            of_it = [v for k, v in read.items() if k.startswith((f"{key}_", f"{region}_"))]
            assert len(of_it) > 15
            if name in [detector.name for detector in detectors]:
                expected = 100 if name == "lo" else 1000
                assert read[f"{region}_intensity"] == pytest.approx([expected] * 2, rel=0.5)
                assert read[f"{key}_exposure_s"].tolist() == [1.0, 1.0]
            else:
                assert np.isnan(of_it).all()
        assert read["denoise_ok"].all()
    assert keys[0] == keys[1] == keys[2]
    raw.validate()


def test_regions_set_without_a_data_key_are_of_the_detector_that_a_run_has(RE, raw, motor, lo, hi):
    denoised = signals(RE, {"spot": SPOT})
    for detector, expected in ((lo, 100), (hi, 1000)):
        RE(denoised_scan([detector], motor, 0, 1, 2, denoised=denoised))
        assert readings(raw)["spot_intensity"] == pytest.approx([expected] * 2, rel=0.5)
        RE(adaptive_exposure_scan([detector], denoised, "spot", motor, 0, 1, 2, **ASKED))


def test_regions_tell_which_frames_there_may_be_where_no_data_keys_are_set(RE, raw, motor, lo, hi):
    denoised = signals(RE, data_keys=None)
    RE(denoised_scan([hi], motor, 0, 1, 2, denoised=denoised))
    read = readings(raw)
    assert read["high_intensity"] == pytest.approx([1000] * 2, rel=0.5)
    assert np.isnan(read["low_intensity"]).all()


def needing(region, detectors, motor, denoised):
    """Return the plans that decide from a number of a region, by name."""
    args = detectors, denoised, region, motor, 0, 1
    target = f"denoised_{region}_intensity"
    return {
        "adaptive_exposure_scan": adaptive_exposure_scan(*args, 2, **ASKED),
        "find_weak_peak": find_weak_peak(*args, 5, exposure_s=0.1, fine_num=5),
        "adaptive_denoised_scan": adaptive_denoised_scan(
            *(detectors, target, motor, 0, 1, 0.4, 0.6, 100.0, False), denoised=denoised
        ),
    }


@pytest.mark.parametrize("kind", [ReplayDetector, AreaDetectorReplay])
@pytest.mark.parametrize("name", needing("", [], None, None))
def test_a_plan_that_needs_the_other_detector_is_refused(name, kind, RE, raw, motor, tmp_path):
    more = {"directory": tmp_path} if kind is AreaDetectorReplay else {}
    lo = one("lo", 100.0, kind, **more)
    denoised = signals(RE)
    with pytest.raises(SettingsError, match=r"denoised_high_intensity is a number of hi; lo read"):
        RE(needing("high", [lo], motor, denoised)[name])
    assert "start" not in raw.by_name
    RE(needing("low", [lo], motor, denoised)[name])
    assert raw.by_name["stop"][-1]["exit_status"] == "success"


def test_regions_of_a_detector_that_is_not_scanned_are_refused_before_the_run(RE, raw, motor, lo):
    denoised = signals(RE, {"pilatus": {"low": SPOT}}, None)
    message = r"has the numbers of pilatus; lo read .*lo_image.*name its frames in the `rois` of"
    with pytest.raises(SettingsError, match=message):
        RE(denoised_scan([lo], motor, 0, 1, 2, denoised=denoised))
    assert "start" not in raw.by_name
