import numpy as np
import pytest
from scattering import SHAPE, smooth_scene

from bluesky_denoise.audit import audit_frame, audit_rate
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.errors import FrameShapeError, FrameValueError, MaskError, SettingsError
from bluesky_denoise.evaluation.baselines import gaussian
from bluesky_denoise.frames import Denoised, Frame
from bluesky_denoise.photons.photon_checks import fano_factor, looks_poisson
from bluesky_denoise.photons.pixel_checks import dead_areas, hot_pixels
from bluesky_denoise.photons.residuals import lone_pixels
from bluesky_denoise.runs.results import audit
from bluesky_denoise.simulation.random_scenes import random_scene
from bluesky_denoise.simulation.scenes import Peak, diffraction_scene, gaussian_peak
from bluesky_denoise.testing import UnitDenoiser


class Smoother:
    """A Gaussian of 3 pixels with the API of a denoiser."""

    def denoise(self, counts, exposure_s, mask=None):
        rate = np.stack([gaussian(c, 3.0, mask) / exposure_s for c in counts])
        if mask is not None:
            rate[:, np.asarray(mask) != 0] = np.nan
        return Denoised(rate.astype(np.float32))


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def test_a_pixel_stands_alone_where_its_eight_neighbours_fit(rng):
    model = np.full((64, 64), 5.0)
    counts = rng.poisson(model).astype(float)
    counts[20, 20] = 60  # alone
    counts[40:43, 40:43] = 60  # a spot that the model lacks
    assert np.argwhere(lone_pixels(counts, model)).tolist() == [[20, 20]]


def test_many_counts_that_are_lost_over_a_few_pixels_are_no_single_pixels(rng):
    model = np.full((256, 256), 3000.0)
    counts = rng.poisson(model)
    counts[20:27, 20:27] = rng.poisson(3900, (7, 7))
    verdict = audit_rate(counts, model)
    assert verdict.reason.startswith("photons that the estimate lacks around (2")
    assert not len(verdict.bad_pixels)


def test_the_right_rate_passes_at_every_count_level(rng):
    alarms = 0
    for _ in range(60):
        rate = random_scene(SHAPE, rng, log10_level=(-3, 3))
        verdict = audit_rate(rng.poisson(rate), rate)
        alarms += not verdict.ok
    # Under 1 % of good frames are flagged; two of 60 have a chance of 12 % then, three 2 %.
    assert alarms <= 2


def test_noise_of_the_estimate_itself_raises_no_alarm(rng):
    alarms = 0
    for _ in range(40):
        rate = smooth_scene(10 ** rng.uniform(-1.5, 2.5))
        seen, held_out = rng.poisson(rate), rng.poisson(rate)
        # The estimate follows the counts that it saw entirely, or almost not.
        for estimate in (seen, gaussian(seen, 4.0)):
            if np.all(estimate[held_out > 0] > 0):
                alarms += not audit_rate(held_out, estimate, seen=seen).ok
    assert alarms <= 1


@pytest.mark.parametrize("background", [0.1, 1.0, 10.0])
def test_a_removed_peak_and_an_invented_peak_are_found_with_their_place(rng, background):
    sigma = 2.0
    noise = np.sqrt(background * 4 * np.pi * sigma**2)
    # 12 matched standard deviations, and enough photons that there are some to miss.
    strength = max(12 * noise, 45.0)
    peak = gaussian_peak(SHAPE, Peak(60.0, 110.0, strength, sigma, sigma))
    flat = np.full(SHAPE, background)
    removed = invented = 0
    for _ in range(20):
        gone = audit_rate(rng.poisson(flat + peak), flat)
        made = audit_rate(rng.poisson(flat), flat + peak)
        removed += "photons that the estimate lacks" in gone.reason
        invented += "an estimate without photons" in made.reason
        assert np.unravel_index(np.nanargmax(np.abs(gone.map)), gone.map.shape) == (1, 3)
    # Of 150 draws 0.99 to 1 and 0.96 to 0.99 were found: fewer than these come once in 300.
    assert removed >= 18
    assert invented >= 17


def test_a_tile_of_the_map_says_where_and_with_which_sign(rng):
    rate = np.full(SHAPE, 2.0)
    wrong = rate.copy()
    wrong[100:110, 10:20] = 0.5
    verdict = audit_rate(rng.poisson(rate), wrong, tile_px=32)
    assert verdict.map.shape == (4, 5)
    assert verdict.map[3, 0] > verdict.limit > 4
    assert (np.abs(np.delete(verdict.map.ravel(), 15)) < verdict.limit).all()
    mirrored = audit_rate(rng.poisson(wrong), rate)
    assert mirrored.map[3, 0] < -mirrored.limit


def test_an_estimate_that_smears_texture_fails_by_deviance_and_whiteness(rng):
    rate = random_scene(SHAPE, np.random.default_rng(1), log10_level=(1, 1.1))
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    rate = 20 * (1 + 0.9 * np.cos(rows / 1.5) * np.cos(cols / 1.5))
    verdict = audit_rate(rng.poisson(rate), np.full(SHAPE, 20.0))
    assert not verdict.ok
    assert verdict.deviance > 2
    assert verdict.whiteness > 0.3
    assert "fit badly" in verdict.reason
    assert "correlate" in verdict.reason


def test_pixels_that_respond_unequally_are_told_by_the_deviance_alone(rng):
    rate = smooth_scene(300.0)
    for spread, ok in ((0.0, True), (0.03, False)):
        response = rng.normal(1, spread, SHAPE)
        verdict = audit_frame(rng.poisson(rate * response), 1.0, Smoother(), rng=rng)
        assert verdict.ok == ok, verdict.reason
        # Half of 300 counts, three percent: 150 * 0.03^2 above 1; 20480 pixels tell it to 0.01.
        assert verdict.deviance == pytest.approx(1 + 150 * spread**2, abs=0.04)
    assert "pixel by pixel: an uneven response (flat field)" in verdict.reason
    assert "lacks" not in verdict.reason


def test_noise_that_an_estimate_states_is_no_fault_and_noise_that_it_hides_is(rng):
    rate = np.full(SHAPE, 100.0)
    seen, held_out = rng.poisson(rate), rng.poisson(rate)
    noisy = rng.poisson(4 * rate) / 4.0
    # A quarter of the variance of counts, which `seen` does not tell: it is other photons.
    assert audit_rate(held_out, noisy, seen=seen, sigma=np.sqrt(noisy / 4)).ok
    verdict = audit_rate(held_out, noisy, seen=seen, sigma=np.sqrt(noisy / 100))
    assert "fit badly (deviance 1.2" in verdict.reason


def test_the_error_bars_that_a_denoiser_states_for_half_of_the_photons_are_those_of_the_audit(rng):
    counts = rng.poisson(np.full(SHAPE, 200.0))
    # 100 counts in half of the exposure, with a quarter of their variance, of other photons.
    estimate = rng.poisson(np.full(SHAPE, 400.0)) / 4.0 / 0.25

    class States:
        def __init__(self, share):
            self.share = share

        def denoise(self, counts, exposure_s, mask=None):
            sigma = np.sqrt(self.share * 100 / 4) / 0.25 * np.ones(SHAPE)
            return Denoised(estimate[None].astype(np.float32), sigma[None].astype(np.float32))

    assert audit_frame(counts, 0.5, States(1.0), rng=rng).ok
    for share in (0.0, 0.25):
        assert "fit badly" in audit_frame(counts, 0.5, States(share), rng=rng).reason


def test_a_frame_of_smooth_scattering_passes():
    rng = np.random.default_rng(21)
    for level in (0.05, 1.0, 20.0, 300.0):
        verdict = audit_frame(rng.poisson(smooth_scene(level)), 0.5, Smoother(), rng=rng)
        assert verdict.ok, (level, verdict.reason)
        # The smoother leaves 1 % of the noise; few counts scatter more.
        assert verdict.deviance == pytest.approx(1, abs=0.1)
        assert abs(verdict.whiteness) < 0.05
        assert np.isfinite(verdict.map).all()


def test_a_hot_pixel_is_found_and_a_sharp_spot_is_not(rng):
    counts = rng.poisson(smooth_scene(0.5))
    counts[40, 50] = 4000
    counts[0, 159] = 300
    spot = rng.poisson(gaussian_peak(SHAPE, Peak(90.0, 90.4, 3000.0, 0.6, 0.6)))
    assert hot_pixels(counts + spot).tolist() == [[0, 159], [40, 50]]
    verdict = audit_frame(counts, 1.0, Smoother())
    assert not verdict.ok
    assert "2 hot pixels" in verdict.reason
    assert "(40, 50)" in verdict.reason
    masked = np.zeros(SHAPE, bool)
    masked[40, 50] = masked[0, 159] = True
    assert audit_frame(counts, 1.0, Smoother(), mask=masked).ok


@pytest.mark.parametrize("level", [0.1, 3.0, 100.0])
def test_a_dead_module_is_found_unless_it_is_masked(rng, level):
    counts = rng.poisson(smooth_scene(level))
    counts[:, 60:121] = 0
    assert len(dead_areas(counts)) > 0
    verdict = audit_frame(counts, 1.0, Smoother())
    assert "dead module" in verdict.reason
    mask = np.zeros(SHAPE, bool)
    mask[:, 60:121] = True
    assert audit_frame(counts, 1.0, Smoother(), mask=mask).ok


@pytest.mark.parametrize("level", [0.5, 20, 200])
@pytest.mark.parametrize("half", [np.s_[:, :150], np.s_[:, 150:], np.s_[:150], np.s_[150:]])
def test_a_dead_half_is_found_at_any_level(rng, level, half):
    counts = rng.poisson(level, (300, 300))
    counts[half] = 0
    assert len(dead_areas(counts)) > 0


@pytest.mark.parametrize("level", [0.5, 5, 50])
def test_a_dead_module_between_masked_gaps_is_found_where_it_is(rng, level):
    mask = np.zeros((400, 500), bool)
    mask[190:207] = mask[:, 240:247] = True
    counts = np.where(mask, 0, rng.poisson(level, mask.shape))
    assert len(dead_areas(counts, mask)) == 0
    counts[:190, 247:] = 0
    found = dead_areas(counts, mask)
    assert len(found) > 0
    for row, col, _ in found:
        assert row < 190
        assert col >= 247


def test_sharp_spots_on_darkness_are_photons_and_pass():
    rng, denoiser = np.random.default_rng(7), Denoiser.load(threads=1)
    flagged = []
    for background, height in ((0.02, 50), (0.02, 300), (0.05, 300), (0.2, 50)):
        for _ in range(3):
            rate = np.full((195, 244), background)
            for row, col in rng.uniform((5, 5), (190, 239), (30, 2)):
                rate += gaussian_peak(rate.shape, Peak(row, col, height * 4.0, 0.8, 0.8))
            flagged += [audit_frame(rng.poisson(rate), 1.0, denoiser).reason]
    assert sum(map(bool, flagged)) <= 1, flagged


@pytest.mark.parametrize("bright", [0.01, 0.5])
def test_an_estimate_that_is_far_too_low_where_it_is_dim_fails(rng, bright):
    truth, estimate = np.full((2, 192, 192), bright)
    truth[:, 64:], estimate[:, 64:] = 0.008, 9e-4
    assert audit_rate(rng.poisson(truth), truth).ok
    assert not audit_rate(rng.poisson(truth), estimate).ok


@pytest.mark.parametrize("level", [1e-4, 3e-4, 1e-3])
def test_frames_of_a_few_photons_pass(level):
    denoiser = Denoiser.load(threads=1)
    for seed in range(6):
        counts = np.random.default_rng(seed).poisson(level, (195, 244))
        assert audit_frame(counts, 1.0, denoiser).ok


def test_a_peak_on_darkness_is_no_dead_module(rng):
    counts = rng.poisson(gaussian_peak(SHAPE, Peak(60.0, 70.0, 20_000.0, 6.0, 6.0)))
    assert len(dead_areas(counts)) == 0


def test_the_fano_factor_is_one_for_photons_at_every_level(rng):
    for level, tolerance in ((0.05, 0.15), (0.5, 0.12), (5.0, 0.12), (200.0, 0.12)):
        # The median over 80 blocks scatters by 0.035 and is 0.01 low: 3 sigma. Pooling at few
        # counts is 0.03 low.
        counts = rng.poisson(smooth_scene(level))
        assert fano_factor(counts) == pytest.approx(1, abs=tolerance)
        assert looks_poisson(counts) == ""
    assert np.isnan(fano_factor(rng.poisson(0.001, SHAPE)))


def test_the_fano_factor_tells_gain_and_smoothing(rng):
    photons = rng.poisson(smooth_scene(50.0))
    assert fano_factor(photons * 4) == pytest.approx(4, rel=0.06)
    assert fano_factor(np.rint(gaussian(photons, 1.0))) < 0.3


def test_counts_of_an_integrating_detector_are_refused_with_the_reason(rng):
    rate = smooth_scene(500.0)
    analog = np.rint(rng.poisson(rate) * 3.7 + rng.normal(100, 5, SHAPE)).astype(np.uint16)
    assert "scatter unlike photons" in audit_frame(analog, 1.0, Smoother()).reason
    corrected = rng.poisson(rate) / 0.93
    assert "no integers" in audit_frame(corrected, 1.0, Smoother()).reason
    dark = rng.normal(0, 3, SHAPE)
    assert "negative" in audit_frame(dark, 1.0, Smoother()).reason
    assert "multiples of 7" in audit_frame(rng.poisson(3.0, SHAPE) * 7, 1.0, Smoother()).reason
    verdict = audit_frame(corrected, 1.0, Smoother())
    assert not verdict.ok
    assert np.isnan(verdict.deviance)


def test_an_uneven_response_at_thousands_of_counts_is_told_pixel_by_pixel():
    rng, denoiser = np.random.default_rng(24), Denoiser.load(threads=1)
    counts = rng.poisson(smooth_scene(3000.0, (192, 192)) * rng.normal(1, 0.03, (192, 192)))
    verdict = audit_frame(counts, 1.0, denoiser)
    assert not verdict.ok
    assert "counts scatter unlike photons" in verdict.reason
    assert "pixel by pixel: an uneven response (flat field)" in verdict.reason
    assert verdict.deviance > 1.2


def test_what_scatters_unlike_photons_fails_and_is_judged_all_the_same(rng):
    spread = gaussian(rng.poisson(400.0, (256, 256)).astype(float), 0.6)
    screen = np.rint(spread / fano_factor(spread)).astype(np.uint16)
    screen[40, 50] = 60_000
    verdict = audit_frame(screen, 1.0, Smoother())
    assert "neighbouring pixels share their noise" in verdict.reason
    assert "1 hot pixels" in verdict.reason
    assert np.isfinite(verdict.map).all()


def test_a_wrong_exposure_shows_only_against_an_expected_rate(rng):
    counts = rng.poisson(smooth_scene(2.0))
    assert audit_frame(counts, 1.0, Smoother(), rate_range=(1.5, 2.7)).ok
    assert audit_frame(counts, 0.1, Smoother()).ok
    verdict = audit_frame(counts, 0.1, Smoother(), rate_range=(1.5, 2.7))
    assert "wrong exposure time" in verdict.reason


def test_counts_outside_of_the_trained_range_are_flagged(rng):
    counts = rng.poisson(smooth_scene(2.0))
    mean, most = counts.mean(), counts.max()
    for limits in ((1e-3, 1e6), (1e-3, most / 1.9), (1.9 * mean, 1e6)):
        assert audit_frame(counts, 1.0, Smoother(), trained_range=limits).ok
    for limits in ((1e-3, most / 2.1), (2.1 * mean, 1e6)):
        verdict = audit_frame(counts, 1.0, Smoother(), trained_range=limits)
        assert "outside of the range of training" in verdict.reason


def test_the_range_of_training_is_that_of_the_weights(rng):
    denoiser = Denoiser.load(device="cpu", threads=1)
    low, high = denoiser.trained_range
    assert low < 1e-3
    assert high > 1e6
    counts = rng.poisson(smooth_scene(2.0))
    assert audit_frame(counts, 1.0, denoiser).ok
    denoiser.card = {"input": {"mean_counts_per_pixel": [5.0, 9.0], "largest_counts_in_a_pixel": 9}}
    assert "range of training, 5 to 9" in audit_frame(counts, 1.0, denoiser).reason
    one_photon = np.zeros(SHAPE, int)
    one_photon[3, 4] = 1
    assert audit_frame(one_photon, 1.0, denoiser).ok
    denoiser.card = {}
    assert denoiser.trained_range is None


def test_dead_and_weak_pixels_are_listed_and_do_not_fail_the_frame(rng):
    counts = rng.poisson(smooth_scene(200.0))
    counts[30, 40] = 0
    counts[31, 100] //= 3
    verdict = audit_frame(counts, 1.0, Smoother())
    assert verdict.ok, verdict.reason
    assert verdict.bad_pixels.tolist() == [[30, 40], [31, 100]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", [slice(0, 128), slice(0, 64), slice(5, 6)])
def test_an_estimate_that_is_no_number_fails(rng, value, part):
    expected = np.full((128, 160), 3.0)
    counts = rng.poisson(expected)
    expected[part] = value
    number = expected[part].size
    found = audit_rate(counts, expected)
    assert not found.ok
    assert found.reason == f"the estimate is no number in {number} valid pixels"
    mask = np.zeros(counts.shape, bool)
    mask[part] = True
    assert audit_rate(counts, expected, mask).ok


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_an_error_of_the_estimate_that_is_no_number_fails(rng, value):
    rate = np.full((64, 64), 3.0)
    sigma = np.full(rate.shape, 0.1)
    sigma[3, 4] = value
    found = audit_rate(rng.poisson(rate), rate, seen=rng.poisson(rate), sigma=sigma)
    assert found.reason == "the error of the estimate is no number in 1 valid pixels"


def test_the_limit_of_a_frame_grows_with_its_pixels(rng):
    small, large = (
        audit_rate(rng.poisson(np.full((side, side), 3.0)), np.full((side, side), 3.0))
        for side in (32, 512)
    )
    # 256 times as many places: by the normal distribution, from 4.6 to 5.6.
    assert 0.5 < large.limit - small.limit < 1.6


@pytest.mark.parametrize(
    ("frame", "given", "error", "message"),
    [
        (np.ones((8, 8), complex), {}, FrameValueError, "dtype complex128 was given"),
        (np.ones((8, 8), object), {}, FrameValueError, "dtype object was given"),
        (np.zeros((0, 5)), {}, FrameShapeError, r"shape \(0, 5\) was given"),
        (np.ones((8, 8)), {"mask": np.full((8, 8), "0")}, MaskError, "The mask has dtype <U1"),
        (np.ones((8, 8)), {"tile_px": 0}, SettingsError, "The tile_px is 0; expected pixels"),
        (np.ones((8, 8)), {"tile_px": 1.5}, SettingsError, "The tile_px is 1.5; expected"),
        (np.ones((8, 8)), {"rate_range": (5, 1)}, SettingsError, "expected least < most"),
        (np.ones((8, 8)), {"rate_range": (1, np.nan)}, SettingsError, "expected least < most"),
    ],
)
def test_what_no_frame_can_be_is_refused(frame, given, error, message):
    with pytest.raises(error, match=message):
        audit_frame(frame, 1.0, UnitDenoiser(), **given)


def test_an_empty_frame_has_nothing_wrong_about_it():
    verdict = audit_frame(np.zeros(SHAPE, np.uint32), 1.0, Smoother())
    assert verdict.ok
    assert verdict.reason == ""
    assert np.isnan(verdict.deviance)
    assert audit_frame(np.ones(SHAPE, int), 1.0, Smoother(), mask=np.ones(SHAPE, bool)).ok


def test_an_estimate_of_light_where_no_photon_came_fails():
    verdict = audit_rate(np.zeros(SHAPE, int), np.ones(SHAPE))
    assert "an estimate without photons around" in verdict.reason


def test_frames_of_every_size_are_audited(rng):
    for shape in ((1, 1), (2, 40), (16, 16), (33, 65)):
        verdict = audit_rate(rng.poisson(2.0, shape), np.full(shape, 2.0), seen=np.ones(shape))
        assert verdict.map.shape == tuple(-(-n // 32) for n in shape)
        audit_frame(rng.poisson(2.0, shape), 1.0, Smoother())


def test_what_does_not_fit_is_refused():
    flat = np.ones(SHAPE)
    with pytest.raises(FrameShapeError, match="expected all"):
        audit_rate(flat, flat[1:])
    with pytest.raises(MaskError, match="mask has shape"):
        audit_rate(flat, flat, np.zeros((2, 2)))
    with pytest.raises(FrameShapeError, match=r"expected \(H, W\)"):
        audit_frame(flat[0], 1.0, Smoother())
    with pytest.raises(FrameValueError, match="exposure is -1"):
        audit_frame(flat, -1, Smoother())


def test_the_shipped_weights_pass_on_diffraction_scenes_and_a_corrupted_peak_does_not():
    rng = np.random.default_rng(22)
    denoiser = Denoiser.load()
    scene = diffraction_scene((96, 160), seed=3, hot_pixels=0)
    for exposure_s in (0.2, 2.0):
        seen, held_out = (scene.expose(exposure_s, rng) for _ in range(2))
        expected = denoiser.denoise(seen, exposure_s, scene.mask).rate * exposure_s
        assert audit_rate(held_out, expected, scene.mask, seen=seen).ok
    strong = gaussian_peak((96, 160), Peak(75.0, 30.0, 120.0, 2.0, 2.0))
    assert not audit_rate(held_out, expected + strong, scene.mask, seen=seen).ok
    frame = audit_frame(scene.expose(2.0, rng), 2.0, denoiser, mask=scene.mask)
    assert frame.ok, frame.reason


def test_photons_that_were_denoised_do_not_judge():
    counts = np.random.default_rng(0).poisson(20.0, (96, 128))
    # Half of the photons, returned as they are, has as much noise as the half that judges.
    assert audit_frame(counts, 1.0, UnitDenoiser()).deviance == pytest.approx(2, abs=0.1)


def test_counts_that_fit_better_than_photons_can_are_told():
    model = np.full((96, 128), 20.3)
    assert "held-out counts fit too well" in audit_rate(np.full((96, 128), 20), model).reason


def test_single_pixels_fail_a_frame_if_they_are_bright_or_many():
    rng = np.random.default_rng(0)
    model = np.full((96, 128), 40.0)
    counts = rng.poisson(model)
    counts[40, 50] = 0
    one = audit_rate(counts, model)
    assert one.ok
    assert one.bad_pixels.tolist() == [[40, 50]]
    counts[40, 50] = 160
    assert "in 1 single pixels, at (40, 50)" in audit_rate(counts, model).reason
    counts = rng.poisson(model)
    counts[4:90:8, 4:120:8] = 0
    assert "single pixels do not fit" in audit_rate(counts, model).reason


@pytest.mark.parametrize("dark_first", [True, False])
def test_a_dark_image_of_an_event_hides_the_audit_of_none_of_the_others(rng, dark_first):
    dark, bright = np.zeros(SHAPE, int), rng.poisson(5.0, SHAPE)
    images = [dark, bright] if dark_first else [bright, dark]
    numbers, _ = audit(Frame(np.stack(images), 1.0, None, "det", 1, "run"), Smoother(), None)
    of_bright, _ = audit(Frame(bright[None], 1.0, None, "det", 1, "run"), Smoother(), None)
    assert numbers == of_bright
    assert np.isfinite(numbers["det_audit_deviance"])
