"""Regions of interest in the settings, and their numbers in derived events."""

import bluesky.plans as bp
import numpy as np
import pytest
from ophyd.sim import motor
from roi_fixtures import Smoother
from tiers import thorough

from bluesky_denoise import ROI, Denoiser, DenoiseRouter, DenoiseSettings, measure_roi, measure_rois
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.frames import Frame
from bluesky_denoise.runs.raw_stream import open_stream
from bluesky_denoise.runs.results import measure
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser, validate_documents

ROWS, COLS = (20, 30), (30, 42)


def detector(rng: np.random.Generator, frames: int = 4) -> ReplayDetector:
    rate = np.full((48, 64), 2.0)
    rate[ROWS[0] + 4, COLS[0] + 5] = 400
    return ReplayDetector(name="det", frames=ReplayFrames(rng.poisson(rate, (frames, 48, 64)), 1.0))


def test_each_event_carries_the_intensity_of_each_region(RE):
    collector = DocumentCollector()
    router = DenoiseRouter(
        DenoiseSettings(rois={"spot": ROI(ROWS, COLS), "empty": ROI((4, 12), (4, 12))}),
        UnitDenoiser(),
    )
    router.subscribe(collector)
    RE(bp.scan([detector(np.random.default_rng(1))], motor, -1, 1, 4), router)
    validate_documents(collector.documents)
    for event in collector.by_name["event"]:
        data = event["data"]
        # 398 counts above the background: within four standard errors
        assert abs(data["spot_intensity"] - 398) < 4 * data["spot_intensity_error"]
        assert 15 < data["spot_intensity_error"] < 40
        assert abs(data["empty_intensity"]) < 5 * data["empty_intensity_error"]
        assert data["spot_significance"] > 10
    hints = collector.by_name["descriptor"][0]["hints"]
    assert hints["denoiser"]["fields"] == ["spot_intensity", "empty_intensity"]


def test_regions_come_from_yaml_by_data_key(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("rois:\n  det_image:\n    spot: {rows: [20, 30], cols: [30, 42]}\n")
    settings = DenoiseSettings.from_yaml(path)
    assert settings.rois_of(["other", "det_image"]) == {
        "other": {},
        "det_image": {"spot": ROI(ROWS, COLS)},
    }


def test_regions_by_detector_and_by_its_data_key_are_all_measured():
    spot, line = ROI(ROWS, COLS), ROI((4, 12), (4, 12))
    settings = DenoiseSettings(rois={"det": {"spot": spot}, "det_image": {"line": line}})
    found = settings.rois_of(["det_image"], {"det_image": ["det"]})
    assert found == {"det_image": {"line": line, "spot": spot}}


def test_a_region_outside_of_the_frame_is_told_before_the_first_frame(RE):
    collector = DocumentCollector()
    router = DenoiseRouter(DenoiseSettings(rois={"far": ROI((0, 10), (60, 70))}), UnitDenoiser())
    router.subscribe(collector)
    RE(bp.count([detector(np.random.default_rng(2))]), router)
    stop = collector.by_name["stop"][0]
    assert stop["exit_status"] == "fail"
    assert "ROI 'far' of rows" in stop["reason"]
    assert "does not fit frames of shape (48, 64)" in stop["reason"]


@pytest.mark.parametrize(
    ("rois", "message"),
    [
        ({"a b": ROI(ROWS, COLS)}, "'a b' is no name such as 'satellite_1'"),
        ({"spot": {"rows": [5, 5], "cols": [0, 9]}}, r"expected \(first, one after the last\)"),
        ({"d": {"s": ROI(ROWS, COLS)}, "s": ROI(ROWS, COLS)}, "'s' is taken.* 'd_s' and 's'"),
        (
            {"lo": {"s": ROI(ROWS, COLS)}, "a-hi": {"s": ROI(ROWS, COLS)}},
            "'s' is taken; call each region something else, such as 'lo_s' and 'a_hi_s'",
        ),
    ],
)
def test_a_wrong_region_is_refused_when_the_settings_are_made(rois, message):
    with pytest.raises(SettingsError, match=message):
        DenoiseSettings(rois=rois)


HIDES = np.zeros((48, 64), bool)
HIDES[slice(*ROWS), slice(*COLS)] = True


@pytest.mark.parametrize(
    ("mask", "rois"),
    [
        (HIDES, {"spot": ROI(ROWS, COLS)}),
        ({"det": HIDES}, {"det": {"spot": ROI(ROWS, COLS)}}),
    ],
    ids=["for all", "by detector"],
)
def test_a_region_that_the_mask_hides_is_refused_when_the_settings_are_made(mask, rois):
    with pytest.raises(SettingsError, match=r"'rois': all pixels of 'spot', rows \(20, 30\) and "):
        DenoiseSettings(mask=mask, rois=rois)


def test_a_region_beside_a_mask_is_not_hidden_by_it():
    DenoiseSettings(mask=HIDES, rois={"spot": ROI((100, 110), COLS)})


def test_a_region_that_a_mask_hides_by_another_name_is_told_before_the_first_frame(RE, caplog):
    seen = ROI(ROWS, (COLS[0], COLS[1] + 1))
    settings = DenoiseSettings(
        mask={"det_image": HIDES}, rois={"det": {"spot": ROI(ROWS, COLS), "seen": seen}}
    )
    RE(bp.count([detector(np.random.default_rng(2))]), DenoiseRouter(settings, UnitDenoiser()))
    assert "stream primary: all pixels of spot in det_image are invalid by its mask" in caplog.text


@pytest.mark.parametrize(("background_px", "told"), [(4, True), (0, False)])
def test_a_region_that_leaves_nothing_for_its_background_is_told(RE, caplog, background_px, told):
    det = detector(np.random.default_rng(2))
    whole = ROI((0, 48), (0, 64), background_px=background_px)
    settings = DenoiseSettings(rois={"all": whole, "part": ROI((0, 48), COLS)})
    RE(bp.count([det]), DenoiseRouter(settings, UnitDenoiser()))
    assert ("stream primary: all are whole frames of det_image" in caplog.text) == told
    assert "has nothing for det_image" not in caplog.text  # regions of whatever there is


@pytest.mark.parametrize("shape", [[1, None, None], [0, 0], [1, 0, 64]], ids=str)
def test_masks_and_regions_wait_for_a_frame_where_its_size_is_not_told(shape):
    settings = DenoiseSettings(
        data_keys=["det"], exposure_s=1.0, mask=~HIDES, rois={"spot": ROI(ROWS, COLS)}
    )
    spec = {"dtype": "array", "shape": shape, "source": "sim", "external": "STREAM:"}
    descriptor = {"name": "primary", "run_start": "", "data_keys": {"det": spec}}
    problems = []
    assert open_stream(descriptor, settings, (), problems.append).names == ["det"]
    assert problems == []


@pytest.mark.parametrize("keyed", [False, True])
def test_which_of_two_detectors_has_regions_without_a_data_key_is_told(RE, caplog, keyed):
    rng = np.random.default_rng(2)
    detectors = [
        ReplayDetector(name=name, frames=ReplayFrames(rng.poisson(2.0, (1, 48, 64)), 1.0))
        for name in ("lo", "hi")
    ]
    rois = {"spot": ROI(ROWS, COLS)}
    router = DenoiseRouter(DenoiseSettings(rois={"lo": rois} if keyed else rois), UnitDenoiser())
    RE(bp.count(detectors, 2), router)
    told = "rois` set without a data key (spot) are measured in lo_image alone, not in hi_image."
    assert caplog.text.count(told) == caplog.text.count("without a data key") == (not keyed)
    caplog.clear()
    RE(bp.count(detectors[:1]), router)
    assert "without a data key" not in caplog.text


@pytest.fixture
def good_and_bad():
    """Return a detector with one frame that is well, and one with a hot pixel unmasked."""
    rate = np.full((64, 64), 3.0)
    rate[10, 10] = 5000
    rng = np.random.default_rng(3)
    frames = np.stack([rng.poisson(3.0, (64, 64)), rng.poisson(rate)])
    return ReplayDetector(name="det", frames=ReplayFrames(frames, 1.0))


def audited(**values):
    """Return a router with the network that ships, and what it emits."""
    collector = DocumentCollector()
    router = DenoiseRouter(DenoiseSettings(device="cpu", threads=1, **values))
    router.subscribe(collector)
    return router, collector


def verdicts(collector):
    return [event["data"]["denoise_audit"] for event in collector.by_name["event"]]


def test_an_audited_frame_that_fails_is_passed_on_marked(RE, good_and_bad):
    router, collector = audited()
    RE(bp.count([good_and_bad], 2), router)
    assert verdicts(collector) == ["passed", "failed"]
    good, bad = (event["data"] for event in collector.by_name["event"])
    assert good["denoise_ok"]
    # 4096 pixels tell the deviance to 1.5 standard deviations of 2 percent, and a smooth fit
    assert abs(good["det_image_audit_deviance"] - 1) < 0.1
    assert not bad["denoise_ok"]
    assert "audit of det_image: 1 hot pixel" in bad["denoise_reason"]
    assert np.isfinite(bad["det_image"]).all()


def test_frames_that_come_faster_than_the_audit_are_not_audited_and_say_so(RE, good_and_bad):
    raw = DocumentCollector()
    RE(bp.count([good_and_bad], 2), raw)
    router, collector = audited()
    router.feed(raw.documents)
    assert verdicts(collector) == ["none", "none"]
    assert [event["data"]["denoise_ok"] for event in collector.by_name["event"]] == [True, True]


@pytest.mark.parametrize(
    ("limits", "ok"),
    [((1.0, 5.0), True), ((10.0, 50.0), False), ({"det": (0, 1)}, False), ({"cam": (0, 1)}, True)],
    ids=str,
)
def test_a_mean_rate_that_is_not_expected_fails_the_audit(RE, good_and_bad, limits, ok, caplog):
    router, collector = audited(rate_range=limits)
    RE(bp.count([good_and_bad]), router)  # its first frame has 3 counts / s and pixel
    data = collector.by_name["event"][0]["data"]
    assert (data["denoise_audit"] == "passed") == ok
    assert ok or "a wrong exposure time" in data["denoise_reason"]
    assert ("`rate_range` has nothing for det_image" in caplog.text) == ("cam" in limits)


def test_the_audit_can_be_left_out(RE, good_and_bad):
    router, collector = audited(audit=False)
    RE(bp.count([good_and_bad], 2), router)
    assert verdicts(collector) == ["none", "none"]


def test_both_detectors_of_an_event_are_audited(RE, good_and_bad):
    well = ReplayDetector(
        name="well",
        frames=ReplayFrames(np.random.default_rng(4).poisson(3.0, (1, 64, 64)), 1.0),
    )
    router, collector = audited()
    RE(bp.count([well, good_and_bad], 2), router)
    assert verdicts(collector) == ["passed", "failed"]
    assert np.isfinite(collector.by_name["event"][0]["data"]["well_image_audit_deviance"])


def test_several_images_of_an_event_are_measured_as_their_sum_shows_them():
    """Each of them alone shows no peak."""
    rate = np.full((48, 64), 0.05) + gaussian_peak((48, 64), Peak(25.0, 36.0, 10.0, 1.5, 1.5))
    counts = np.random.default_rng(2).poisson(rate, (20, 48, 64))
    frame = Frame(counts, 1.0, None, "det", 1, "run")
    alone = np.zeros(counts.shape, np.float32)
    found = measure(frame, alone, {"spot": ROI(ROWS, COLS)}, Smoother())
    assert found["spot_significance"] > 5
    assert found["spot_center_row"] == pytest.approx(25.0, abs=0.5)
    assert found["spot_denoised_sum"] == pytest.approx(10.0 + 120 * 0.05, rel=0.1)


def test_in_the_sum_of_several_images_a_flag_is_no_count_and_no_count_is_too_many():
    counts = np.random.default_rng(2).poisson(3.0, (2, 48, 64)).astype(np.uint16)
    counts[:, 25, 35] = 40_000  # more than 16 bits hold, together
    region = counts[:, slice(*ROWS), slice(*COLS)].sum(dtype=int)
    flagged = counts.copy()
    flagged[1, 22, 33] = 65535
    spot = {"spot": ROI(ROWS, COLS)}
    for frames, expected in ((counts, region), (flagged, region - counts[:, 22, 33].sum())):
        frame = Frame(frames, 0.5, None, "det", 1, "run")
        rate = np.where(frames == 65535, np.nan, frames / 0.5)
        found = measure(frame, rate, spot, Smoother())
        assert found["spot_raw_sum"] == pytest.approx(expected / (2 * 0.5))


class Counting:
    """A denoiser that notes what it is asked for at once."""

    def __init__(self, denoiser):
        self._denoiser, self.asked = denoiser, []

    def denoise(self, counts, exposure_s, mask=None):
        self.asked.append(counts.shape)
        return self._denoiser.denoise(counts, exposure_s, mask)


@pytest.mark.parametrize("kind", [np.uint16, np.float32], ids=["integers", "floats with NaN"])
@pytest.mark.parametrize("denoised", [True, thorough(False)])
def test_regions_that_are_measured_together_are_as_each_alone(kind, denoised):
    rng, denoiser = np.random.default_rng(3), Counting(Denoiser.load())
    spots = [Peak(30, 30, 900, 2, 3), Peak(31, 80, 400, 2, 2), Peak(90, 60, 2000, 3, 2)]
    counts = rng.poisson(0.7 + sum(gaussian_peak((120, 140), spot) for spot in spots)).astype(kind)
    mask = np.zeros(counts.shape, bool)
    mask[80:84, 60:66], mask[100:120, 100:120] = True, True
    if kind is np.float32:
        counts[28:30, 33] = np.nan
    ring = np.hypot(*(np.indices(counts.shape) - np.reshape([31, 80], (2, 1, 1)))) < 9
    rois = {
        "first": ROI((20, 40), (20, 42)),
        "as wide": ROI((21, 41), (70, 91)),
        "behind a mask": ROI((80, 99), (48, 70)),
        "at the edge": ROI((0, 12), (0, 9)),
        "without background": ROI((80, 99), (48, 70), background_px=0),
        "masked": ROI((102, 110), (102, 110), background_px=2),
        "ring": ring,
        "all": ROI((0, 120), (0, 140)),
        "nearly all": ROI((0, 119), (0, 140)),
    }
    rate = denoiser.denoise(counts[None], 0.5, mask).rate[0] if denoised else None
    denoiser.asked.clear()
    found = measure_rois(counts, 0.5, rois, denoiser, mask=mask, rate=rate)
    assert list(found) == list(rois)
    asked = denoiser.asked.copy()
    denoiser.asked.clear()
    for name, roi in rois.items():
        alone = measure_roi(counts, 0.5, roi, denoiser, mask=mask, rate=rate).as_dict()
        assert found[name].method == alone.pop("method")
        together = [value for key, value in found[name].as_dict().items() if key != "method"]
        np.testing.assert_allclose(
            together, list(alone.values()), rtol=2e-3, atol=2e-3, err_msg=name
        )
    assert sum(shape[0] for shape in asked) == sum(shape[0] for shape in denoiser.asked)
    assert len(asked) <= len(denoiser.asked) - 2
    assert {shape for shape in denoiser.asked if shape[1] > 100} <= set(asked)  # large ones alone
    assert found["first"].method == found["behind a mask"].method == "profile"
    assert np.isnan(found["masked"].intensity)
