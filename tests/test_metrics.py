import numpy as np
import pytest

from bluesky_denoise.evaluation.baselines import (
    anscombe_bm3d,
    anscombe_nlm,
    best_gaussian,
    gaussian,
    unbiased_inverse,
)
from bluesky_denoise.evaluation.metrics import (
    deviance_ratio,
    flux_ratio,
    line_contrast,
    noise_corrected_error,
    poisson_deviance,
    spot_intensities,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_corrected_error_of_a_raw_frame_is_one_and_of_the_truth_zero(rng):
    truth = np.full((300, 300), 4.0)
    raw, reference = rng.poisson(truth), rng.poisson(20 * truth)
    # 90,000 pixels: standard errors below 0.01.
    assert noise_corrected_error(raw, reference, 1 / 20) == pytest.approx(1, abs=0.03)
    assert noise_corrected_error(truth, reference, 1 / 20) == pytest.approx(0, abs=0.002)


def test_the_deviance_of_the_truth_is_one_at_many_counts(rng):
    truth = np.full((300, 300), 100.0)
    counts = rng.poisson(truth)
    # Expectation 1 + 1 / (6 lambda); standard error 0.005.
    assert poisson_deviance(truth, counts) == pytest.approx(1, abs=0.02)
    assert poisson_deviance(1.1 * truth, counts) > 1.5


@pytest.mark.parametrize("level", [0.02, 1.0, 40.0])
def test_the_deviance_per_degree_of_freedom_of_the_truth_is_one_at_any_level(rng, level):
    truth = np.full((500, 500), level)
    counts, half = rng.poisson(truth), rng.poisson(truth)
    # 250,000 pixels: standard errors of half a percent, 2 % where one pixel in 50 counts.
    assert deviance_ratio(truth, counts) == pytest.approx(1, abs=0.03)
    # Few counts make too high an estimate look too quiet, many make it look too far off.
    assert abs(deviance_ratio(np.full_like(truth, 1.5 * level), counts) - 1) > 0.04
    if level > 10:
        # What was counted once has all the noise again.
        assert deviance_ratio(half, counts) == pytest.approx(2, abs=0.2)


def test_an_estimate_of_zero_under_a_count_has_a_finite_deviance():
    estimate, counts = np.ones((16, 16)), np.ones((16, 16))
    estimate[3, 3] = 0
    expected = 2 * (np.log(1e3 * 256 / 255) - 1 + 1e-3 * 255 / 256) / 256
    assert poisson_deviance(estimate, counts) == pytest.approx(expected)


def test_masked_pixels_are_in_no_metric(rng):
    counts = rng.poisson(5.0, (32, 32))
    mask = np.zeros((32, 32), bool)
    mask[:4] = True
    bad = np.where(mask, 1e9, counts)
    assert flux_ratio(bad, counts, mask) == 1
    assert poisson_deviance(bad + 0.5, counts, mask) < 1
    assert noise_corrected_error(bad, counts, 1.0, mask) == pytest.approx(-1)


def test_where_nothing_is_counted_there_is_no_score():
    empty = np.zeros((16, 16))
    for estimate in (empty, empty + 1):
        assert np.isnan(flux_ratio(estimate, empty))
        assert np.isnan(noise_corrected_error(estimate, empty, 0.1))
    assert np.isnan(deviance_ratio(empty, empty))


def test_flux_is_that_of_the_estimate_over_that_of_the_counts():
    counts = np.full((16, 16), 2.0)
    assert flux_ratio(1.5 * counts, counts) == pytest.approx(1.5)


def test_line_contrast_of_a_known_line():
    image = np.full((20, 100), 2.0)
    image[:, 46:55] = 3.0
    # Tails beside the line, and all that is further away than its sides, are not looked at.
    image[:, [41, 45, 55, 59]] = 100.0
    image[:, :31] = image[:, 70:] = 50.0
    assert line_contrast(image, 50) == pytest.approx(0.5)
    assert np.isnan(line_contrast(np.zeros((20, 100)), 50))


def test_spot_intensity_is_background_free():
    image = np.full((40, 40), 3.0)
    image[20, 21] += 70
    image[21, 21] += 30
    np.testing.assert_allclose(spot_intensities(image, np.array([[20, 21]])), [100.0])


def test_the_gaussian_ignores_masked_pixels_and_borders():
    counts = np.full((40, 50), 6.0)
    mask = np.zeros((40, 50), bool)
    mask[10:20] = True
    counts[mask] = 1e6
    blurred = gaussian(counts, 2.0, mask)
    np.testing.assert_allclose(blurred[~mask], 6.0)
    assert (blurred[mask] == 0).all()


def test_the_gaussian_has_the_width_asked_for():
    counts = np.zeros((65, 65))
    counts[32, 32] = 1
    offset = np.arange(65) - 32
    assert (gaussian(counts, 3.0).sum(0) * offset**2).sum() == pytest.approx(9, rel=0.01)


def test_the_best_gaussian_is_the_best_of_those_tried(rng):
    counts = rng.poisson(np.full((64, 64), 3.0))
    image, sigma = best_gaussian(counts, lambda e: float(((e - 3) ** 2).mean()), sigmas=(0, 1, 5))
    assert sigma == 5
    np.testing.assert_array_equal(image, gaussian(counts, 5))


def test_the_inverse_of_the_anscombe_transform_is_unbiased(rng):
    for level in (0.5, 2.0, 10.0, 300.0):
        mean = np.mean(2 * np.sqrt(rng.poisson(level, 400_000) + 0.375))
        # The closed form errs by up to 0.03 at half a count.
        assert unbiased_inverse(mean) == pytest.approx(level, abs=0.03, rel=0.005)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("denoise", [anscombe_bm3d, anscombe_nlm])
def test_classical_denoisers_beat_the_raw_frame_on_a_smooth_scene(rng, denoise):
    pytest.importorskip("bm3d")
    truth = 20 + 5 * np.cos(np.linspace(0, 3, 48))[:, None] * np.ones(48)
    counts = rng.poisson(truth)
    mask = np.zeros(truth.shape, bool)
    mask[20:23] = True
    found = denoise(np.where(mask, 0, counts), mask)
    assert (found[mask] == 0).all()
    error = np.mean((found - truth)[~mask] ** 2)
    assert error < 0.25 * np.mean((counts - truth)[~mask] ** 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("denoise", [anscombe_bm3d, anscombe_nlm])
@pytest.mark.parametrize("shape", [(8, 8), (1, 60), (60, 1), (3, 5), (1, 1)], ids=str)
def test_classical_denoisers_take_the_smallest_frames(rng, denoise, shape):
    pytest.importorskip("bm3d")
    found = denoise(rng.poisson(20.0, shape))
    assert found.shape == shape
    assert ((found > 2) & (found < 50)).all()
