import numpy as np
import pytest

from bluesky_denoise.regions.extraction import Ellipse
from bluesky_denoise.regions.peak_shape import FWHM, fit_shape

SHAPE = (40, 44)
EVERYWHERE = np.ones(SHAPE, bool)
TILTED = np.array([[5.0, 1.5], [1.5, 3.0]])
WIDTHS = FWHM * np.sqrt(np.diag(TILTED))


def expected(centre: tuple[float, float], counts: float, background: float = 0.5) -> np.ndarray:
    slope = 1 + 0.01 * (np.arange(SHAPE[1]) - 20)
    peak = Ellipse(*centre, TILTED).profile(EVERYWHERE)
    return counts * peak + background * slope


def start_near(centre: tuple[float, float], rng: np.random.Generator) -> Ellipse:
    row, col = centre + rng.normal(0, 0.6, 2)
    return Ellipse(row, col, TILTED * rng.uniform(0.5, 1.3))


@pytest.mark.parametrize("counts", [100, 400])
def test_centres_and_widths_are_unbiased_with_errors_that_hold(counts):
    rng = np.random.default_rng(counts)
    found = []
    for _ in range(200):
        centre = tuple(20 + rng.uniform(-0.5, 0.5, 2))
        n = rng.poisson(expected(centre, counts))
        shape = fit_shape(n, EVERYWHERE, start_near(centre, rng), 0.5)
        found.append(
            (
                (shape.row - centre[0], shape.row_error),
                (shape.col - centre[1], shape.col_error),
                (shape.width_row - WIDTHS[0], shape.width_row_error),
                (shape.width_col - WIDTHS[1], shape.width_col_error),
            )
        )
    off, error = np.moveaxis(np.array(found), 2, 0)
    assert np.abs(off.mean(0) / error.mean(0)).max() < 0.3  # standard error of a mean: 0.07
    assert np.abs(off[:, 2:].mean(0) / WIDTHS).max() < 0.03
    within = (np.abs(off) < error).mean(0)
    np.testing.assert_allclose(within, 0.683, atol=0.1)  # standard error 0.033
    assert (np.abs(off) < 1.96 * error).mean(0).min() > 0.88


def test_a_peak_along_the_diagonal_is_known_alike_along_rows_and_columns():
    diagonal = Ellipse(20.0, 20.0, np.array([[6.0, 5.0], [5.0, 6.0]]))
    square = np.ones((41, 41), bool)
    counts = 400 * diagonal.profile(square) + 0.5
    shape = fit_shape(counts, square, diagonal, 0.5)
    assert shape.row_error == pytest.approx(shape.col_error, rel=1e-3)
    assert shape.width_row_error == pytest.approx(shape.width_col_error, rel=1e-3)
    # Hardly any background: sigma / sqrt(N), and the background's share on top.
    assert 1 < shape.row_error / (6 / 400) ** 0.5 < 1.3


@pytest.mark.parametrize("axis", [0, 1])
def test_on_a_strip_of_pixels_a_peak_has_a_centre_and_width_along_it(axis):
    rng, sigma, found = np.random.default_rng(12), 2.5, []
    start = Ellipse(0.0, 30.0, np.diag([0.36, 5.0]))
    if axis == 0:
        start = Ellipse(30.0, 0.0, np.diag([5.0, 0.36]))
    for _ in range(200):
        at = 30 + rng.uniform(-0.5, 0.5)
        peak = np.exp(-0.5 * ((np.arange(61) - at) / sigma) ** 2)
        counts = np.expand_dims(rng.poisson(400 * peak / peak.sum() + 2), 1 - axis)
        shape = fit_shape(counts, np.ones(counts.shape, bool), start, 2.0)
        across = shape.col, shape.col_error, shape.width_col, shape.width_col_error
        along = shape.row, shape.row_error, shape.width_row, shape.width_row_error
        if axis == 1:
            across, along = along, across
        assert np.isnan(across).all()
        found.append((along[0] - at, along[1], along[2] - FWHM * sigma, along[3]))
    for off, error in np.array(found).T.reshape(2, 2, -1):
        pulls = off / error
        assert abs(pulls.mean()) < 0.25  # standard error of a mean: 0.07
        assert pulls.std() == pytest.approx(1.0, abs=0.15)  # standard error 0.05


def test_masked_pixels_say_nothing():
    centre = (20.2, 21.1)
    pixels = EVERYWHERE.copy()
    pixels[:, 22:24] = False
    counts = np.where(pixels, expected(centre, 5000), 1e6)
    shape = fit_shape(counts, pixels, Ellipse(20, 21, TILTED), 0.5)
    assert (shape.row, shape.col) == pytest.approx(centre, abs=1e-3)
    assert (shape.width_row, shape.width_col) == pytest.approx(WIDTHS, rel=1e-3)
    seen = fit_shape(expected(centre, 5000), EVERYWHERE, Ellipse(20, 21, TILTED), 0.5)
    assert shape.col_error > 1.1 * seen.col_error


def test_a_peak_at_the_border_is_fitted_to_what_is_there():
    centre = (1.0, 42.5)
    shape = fit_shape(expected(centre, 5000), EVERYWHERE, Ellipse(1.3, 42, TILTED), 0.5)
    assert (shape.row, shape.col) == pytest.approx(centre, abs=0.01)
    assert shape.width_row == pytest.approx(WIDTHS[0], rel=0.01)


@pytest.mark.parametrize(
    "counts",
    [
        np.zeros(SHAPE),
        np.random.default_rng(1).poisson(0.05, SHAPE),
        expected((20, 20), 5000).max() - expected((20, 20), 5000),
    ],
    ids=["nothing", "background alone", "a hollow"],
)
def test_where_there_is_no_peak_nothing_is_told(counts):
    shape = fit_shape(counts, EVERYWHERE, Ellipse(20, 20, TILTED), 0.05)
    assert np.isnan([shape.row, shape.col_error, shape.width_row, shape.width_col_error]).all()


def test_errors_of_a_peak_on_darkness_are_those_of_its_photons_and_more_where_these_are_few():
    sigma, counts = 2.0, 20.0
    peak = Ellipse(20.0, 21.0, np.diag([sigma**2, sigma**2]))
    shape = fit_shape(counts * peak.profile(EVERYWHERE) + 1e-7, EVERYWHERE, peak, 0.0)
    curved = 1 + 6 / (2 * counts)
    centre, width = sigma / np.sqrt(counts), FWHM * sigma / np.sqrt(2 * counts)
    assert (shape.row_error, shape.col_error) == pytest.approx([centre * curved] * 2, rel=0.01)
    errors = shape.width_row_error, shape.width_col_error
    assert errors == pytest.approx([width * curved] * 2, rel=0.01)


@pytest.mark.parametrize(("off", "told"), [(2.5, True), (3.5, False)])
def test_a_peak_more_than_three_standard_deviations_from_where_it_was_seen_is_another(off, told):
    counts = expected((20.0, 20.0), 5000)
    shape = fit_shape(counts, EVERYWHERE, Ellipse(20 + off * 5**0.5, 20.0, TILTED), 0.5)
    assert shape.row == pytest.approx(20 if told else np.nan, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize(("number", "told"), [(11, False), (12, True)])
def test_fewer_than_twelve_pixels_tell_no_shape(number, told):
    pixels = np.zeros(SHAPE, bool)
    pixels[17:25:2, 18:24:2].flat = np.arange(12) < number
    shape = fit_shape(expected((20.0, 20.0), 1e6), pixels, Ellipse(20.0, 20.0, TILTED), 0.5)
    assert np.isfinite(shape.row) == told
