"""How the counts of a region are weighed, against plain and slow computations."""

import numpy as np
import pytest
from roi_fixtures import BOX, SHAPE, Blind

from bluesky_denoise.regions.extraction import Ellipse, find_ellipse, widest
from bluesky_denoise.regions.region import cut
from bluesky_denoise.regions.summation import (
    bend,
    choose_summation,
    excess,
    ground,
    made_up,
    plain_summation,
)
from bluesky_denoise.roi import ROI, measure_roi
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

ROWS, COLS = np.indices(SHAPE) - 22.5


def frame() -> np.ndarray:
    return cut(np.zeros(SHAPE), 1.0, BOX, None, 4).around


@pytest.mark.parametrize(("chi_square", "plane"), [(11.9, False), (12.1, True)])
@pytest.mark.parametrize("direction", [(1, 0), (0.6, -0.8)], ids=str)
def test_a_ground_slopes_from_a_chi_square_of_twelve(chi_square, plane, direction):
    around = frame()
    slope = direction[0] * ROWS + direction[1] * COLS
    # The noise of 5 counts is sqrt(5).
    counts = 5 + slope * np.sqrt(5 * chi_square / (slope[around] ** 2).sum())
    np.testing.assert_allclose(ground(counts, around), counts if plane else 5.0)


def test_a_ground_is_nowhere_below_zero():
    counts = np.maximum(3 + ROWS, 0) * 10.0
    found = ground(counts, frame())
    fit = np.stack([np.ones(SHAPE), ROWS, COLS])[:, frame()]
    factors = np.linalg.lstsq(fit.T, counts[frame()], rcond=None)[0]
    plane = factors[0] + factors[1] * ROWS + factors[2] * COLS
    assert plane.min() < -50
    np.testing.assert_allclose(found, np.maximum(plane, 0), atol=1e-9)


@pytest.mark.parametrize(("chi_square", "curved"), [(15.9, False), (16.1, True)])
def test_a_background_is_curved_from_a_chi_square_of_sixteen(chi_square, curved):
    around = frame()
    counts = 5 + ROWS * COLS * np.sqrt(5 * chi_square / ((ROWS * COLS)[around] ** 2).sum())
    np.testing.assert_allclose(bend(counts, around), counts - 5 if curved else 0.0, atol=1e-9)


def test_a_denoised_image_less_its_background_is_zero_on_average_where_it_is_seen():
    around, under = frame(), 2 + 0.1 * ROWS
    image = under + 3 + gaussian_peak(SHAPE, Peak(22.5, 22.5, 50.0, 1.5, 1.5))
    np.testing.assert_allclose(
        excess(image, under, around), image - under - (image - under)[around].mean()
    )
    assert excess(image, under, np.zeros(SHAPE, bool)) is image


@pytest.mark.parametrize("hidden", ["region", "frame"])
def test_where_the_region_or_its_frame_is_masked_there_is_no_intensity(hidden):
    crop = cut(np.full(SHAPE, 3), 1.0, BOX, None, 4)
    mask = crop.region if hidden == "region" else crop.frame
    found = measure_roi(np.full(SHAPE, 3), 1.0, BOX, Blind(), mask=mask)
    assert np.isnan([found.intensity, found.intensity_error, found.covered]).all()
    if hidden == "region":
        assert np.isnan([found.raw_sum, found.raw_sum_error, found.denoised_sum]).all()
        assert found.background == 3
    else:
        assert (found.raw_sum, found.background) == (2700, 0)


@pytest.mark.parametrize("where", ["top", "bottom", "beside a gap", "a corner"])
def test_a_slope_does_not_bias_the_plain_sum_where_the_frame_lies_to_one_side(where):
    level = 5 + np.linspace(0, 40, 90)[:, None] + np.linspace(0, 9, 60)
    first = {"top": 0, "bottom": 65, "beside a gap": 30, "a corner": 65}[where]
    cols = (35, 60) if where == "a corner" else (20, 45)
    mask = np.zeros(level.shape, bool)
    mask[55:61] = where == "beside a gap"
    box = ROI((first, first + 25), cols)
    crop = cut(level, 1.0, box, mask, 4)
    inside, around = (np.argwhere(pixels) for pixels in (crop.inside, crop.around))
    seen, wanted = (np.insert(places, 0, 1, axis=1) for places in (around, inside))
    taken = wanted.sum(0) @ np.linalg.pinv(seen)  # of each pixel beside the region
    noise = level[crop.window][crop.inside].sum() + taken**2 @ level[crop.window][crop.around]
    found = measure_roi(level, 0.5, box, Blind(), mask=mask)
    assert found.method == "sum"
    assert found.intensity == pytest.approx(0, abs=1e-6)
    assert found.intensity_error == pytest.approx(np.sqrt(noise) / 0.5)


@pytest.mark.parametrize("tilt", [0.0, 1.5, -1.5])
def test_an_ellipse_is_that_of_a_tilted_peak_in_a_region_wider_than_high(tilt):
    rows, cols = np.indices((30, 60))
    region = (rows >= 4) & (rows < 24) & (cols >= 10) & (cols < 55)
    u, v = rows - 13.3, cols - 41.6
    covariance = np.array([[4.0, tilt], [tilt, 3.0]])
    # By its inverse, written out.
    distance = (3 * u * u - 2 * tilt * u * v + 4 * v * v) / (12 - tilt**2)
    image = 50 * np.exp(-0.5 * distance)
    valid = cols != 44
    excess = np.where(region & valid, image, np.nan)
    found = find_ellipse(excess, region, valid)
    assert (found.row, found.col) == pytest.approx((13.3, 41.6), abs=0.02)
    np.testing.assert_allclose(found.covariance, covariance, atol=0.05)
    true = Ellipse(13.3, 41.6, covariance)
    np.testing.assert_allclose(true.squared_distance(region.shape), distance, atol=1e-9)


@pytest.mark.parametrize("longer", [(2, 0), (0, 4), (1, 3)])
def test_an_ellipse_is_widened_along_each_axis_as_the_counts_say(longer):
    everywhere = np.ones(SHAPE, bool)
    sigmas = 1.5 * 3 ** (np.array(longer) / 6)
    under = np.full(SHAPE, 2.0)
    counts = under + 900 * Ellipse(22.0, 23.0, np.diag(sigmas**2)).profile(everywhere)
    seen = Ellipse(22.0, 23.0, np.diag([1.5**2, 1.5**2]))
    found = widest(seen, counts, under, everywhere, everywhere, doubt=0)
    np.testing.assert_allclose(found.covariance, np.diag(sigmas**2), atol=1e-9)


def reaches(crop, others, expected):
    """Return risk and coefficients for each reach, from the equations one by one."""
    under = ground(others, crop.around)
    found = find_ellipse(excess(expected, under * 4 / 3, crop.around), crop.region, crop.valid)
    ellipse = widest(found, others, under, crop.region, crop.inside)
    profile, distance = ellipse.profile(crop.region), ellipse.distance(SHAPE)
    edge = np.linalg.det(ellipse.covariance) ** 0.25
    planes = [np.ones(SHAPE), ROWS, COLS]
    core = np.clip((2.8 - distance) * edge + 0.5, 0, 1) * crop.region
    strength = 4 / 3 * (core * (others - under)).sum() / (core * profile).sum()
    for reach in (2.8, 3.2, 4.0, 6.0):
        weight = np.clip((reach - distance) * edge + 0.5, 0, 1) * crop.region
        rest = (crop.region | crop.around) * (1 - weight)
        tests = np.stack([weight, *(rest * plane for plane in planes)]).reshape(4, -1)
        model = np.stack([profile, *planes]).reshape(4, -1)
        coefficients = (np.linalg.inv(tests @ model.T)[0] @ tests).reshape(SHAPE)
        variance = (coefficients**2 * (strength * profile + under * 4 / 3)).sum()
        yield variance + (0.02 * strength * (2.8 / reach) ** 2) ** 2, coefficients


@pytest.mark.parametrize(
    ("counts", "background", "best"),
    [(9000, 1.0, 3), (1000, 1.0, 2), (900, 5.0, 1), (900, 32.0, 0)],
)
def test_an_ellipse_reaches_as_far_as_noise_and_what_may_lie_outside_are_least(
    counts, background, best
):
    rate = gaussian_peak(SHAPE, Peak(22.3, 22.9, counts, 1.8, 1.6)) + background
    crop, others = cut(rate, 1.0, BOX, None, 4), np.round(0.75 * rate)
    found = list(reaches(crop, others, rate))
    chosen = choose_summation(crop, others, rate)
    assert int(np.argmin([risk for risk, _ in found])) == best
    np.testing.assert_allclose(chosen.coefficients, found[best][1], atol=1e-9)
    assert chosen.covered == pytest.approx(1)
    assert (chosen.coefficients * rate).sum() == pytest.approx(counts, rel=2e-3)


def test_a_wide_peak_is_summed_plainly_where_that_is_no_worse():
    rate = gaussian_peak(SHAPE, Peak(22.5, 22.5, 3000.0, 9.0, 9.0)) + 0.5
    crop = cut(rate, 1.0, BOX, None, 4)
    assert choose_summation(crop, 0.75 * rate, rate) is None
    plain = plain_summation(crop)
    assert plain.coefficients.sum() == pytest.approx(0)
    assert (plain.profile, plain.covered) == (None, 1)


def test_a_peak_that_the_other_parts_hardly_show_is_summed_plainly():
    for strength, used in ((60, False), (110, True)):
        rate = gaussian_peak(SHAPE, Peak(22.5, 22.5, strength, 1.5, 1.5)) + 4.0
        chosen = choose_summation(cut(rate, 1.0, BOX, None, 4), np.rint(0.75 * rate), rate)
        assert (chosen is not None) == used


def behind_a_gap(counts, background=1.0):
    mask = np.zeros(SHAPE, bool)
    mask[:, 22:24] = True
    rate = gaussian_peak(SHAPE, Peak(22.0, 22.5, counts, 2.0, 2.0)) + background
    return cut(rate, 1.0, BOX, mask, 4), rate


@pytest.mark.parametrize(
    ("row", "col", "tall", "wide", "off"),
    [
        (22.0, 22.5, 2.0, 2.0, 1e-6),
        (22.3, 22.5, 2.0, 2.0, 1),
        (22.0, 22.8, 2.0, 2.0, 1),
        (22.0, 22.5, 2.2, 2.0, 6),
        (22.0, 22.5, 2.0, 2.2, 50),
    ],
)
def test_what_is_hidden_is_made_up_for_by_an_ellipse_that_is_nearly_right(
    row, col, tall, wide, off
):
    crop, _ = behind_a_gap(5000)
    made = made_up(crop, Ellipse(row, col, np.diag([tall**2, wide**2])))
    # No photon is drawn; the plain sum, and what is hidden.
    assert made.covered == pytest.approx(0.62, abs=0.05)
    assert (made.coefficients * crop.counts).sum() == pytest.approx(5000, abs=off)
    assert made.profile is None


def test_what_tells_nothing_of_a_hidden_part_makes_nothing_up():
    crop, _ = behind_a_gap(5000)
    seen = Ellipse(22.0, 32.0, np.diag([1.0, 1.0]))
    assert made_up(crop, seen) is None  # nothing of it is hidden
    bare = cut(crop.counts, 1.0, ROI((0, 42), (0, 42), 0), None, 0)
    assert made_up(bare, Ellipse(0.0, 0.0, np.diag([1.0, 1.0]))) is None


def test_the_sum_of_a_peak_behind_a_gap_is_that_of_the_whole():
    crop, rate = behind_a_gap(5000)
    chosen = choose_summation(crop, np.round(0.75 * crop.counts), rate)
    assert chosen.covered == pytest.approx(0.62, abs=0.01)
    assert (chosen.coefficients * crop.counts).sum() == pytest.approx(5000, rel=2e-3)
    np.testing.assert_allclose(chosen.coefficients[~crop.valid], 0, atol=1e-12)


def test_two_peaks_in_a_region_are_summed_plainly():
    two = (Peak(22.5, col, 900.0, 1.5, 1.5) for col in (15.0, 30.0))
    rate = 1.0 + sum(gaussian_peak(SHAPE, peak) for peak in two)
    crop = cut(rate, 1.0, BOX, None, 4)
    assert choose_summation(crop, np.round(0.75 * rate), rate) is None
    alone = rate - gaussian_peak(SHAPE, Peak(22.5, 30.0, 900.0, 1.5, 1.5))
    chosen = choose_summation(crop, np.round(0.75 * alone), alone)
    assert (chosen.coefficients * alone).sum() == pytest.approx(900, rel=5e-3)


def test_a_peak_is_believed_from_five_standard_deviations():
    seen = []
    for strength in (24, 40, 46, 56, 60):
        rate = gaussian_peak(SHAPE, Peak(22.5, 22.5, strength, 1.5, 1.5)) + 2.0
        found = measure_roi(np.rint(rate), 1.0, BOX, Blind(), rate=rate)
        seen.append((found.significance, np.isfinite(found.center_row)))
    below, above = (
        [told for z, told in seen if low < z < high] for low, high in ((2, 5), (5, 6.5))
    )
    assert len(below) > 2
    assert not any(below)
    assert len(above) > 1
    assert all(above)


def test_an_ellipse_is_no_narrower_than_a_pixel_that_has_all_photons():
    image = np.zeros((20, 30))
    image[7, 21] = 0.5
    found = find_ellipse(image, np.ones(image.shape, bool), np.ones(image.shape, bool))
    assert (found.row, found.col) == pytest.approx((7, 21))
    np.testing.assert_allclose(found.covariance, 0.36 * np.eye(2), atol=1e-9)


@pytest.mark.parametrize(
    ("top", "low", "counts"),
    [((5, 5), (4, 5), -41.0), ((0, 5), (1, 5), -9.9), ((5, 0), (5, 1), -9.9)],
    ids=["less than nothing in all", "a centre above", "a centre to the left"],
)
def test_where_the_moments_make_no_peak_there_is_no_ellipse(top, low, counts):
    image = np.zeros((11, 11))
    image[top], image[low] = 10.0, counts
    everywhere = np.ones(image.shape, bool)
    assert find_ellipse(image, everywhere, everywhere) is None
    image[low] = 0
    assert find_ellipse(image, everywhere, everywhere).row == pytest.approx(top[0])


@pytest.mark.parametrize("photons", [600.0, 60.0, 0.0])
def test_the_widest_ellipse_has_the_largest_area_of_those_that_fit_within_the_doubt(photons):
    under = 2 + 0.04 * ROWS
    seen = Ellipse(22.3, 23.1, np.array([[2.0, 0.4], [0.4, 1.5]]))
    everywhere = np.ones(SHAPE, bool)
    inside = COLS != 2.5
    profile = seen.profile(everywhere)
    true = Ellipse(22.3, 23.1, 1.5 * seen.covariance).profile(everywhere)
    counts = np.random.default_rng(3).poisson(under * (photons > 0) + photons * true)
    n, g = (counts - under)[inside], profile[inside]
    variance = np.maximum(under[inside] + max(g @ n / (g @ g), 0) * g, 0.02)
    values, axes = np.linalg.eigh(seen.covariance)
    tried = []
    for scales in np.stack(np.meshgrid(*[np.geomspace(1, 3, 7)] * 2, indexing="ij"), -1).reshape(
        -1, 2
    ):
        covariance = (axes * values * scales**2) @ axes.T
        shape = Ellipse(seen.row, seen.col, covariance).profile(everywhere)[inside]
        height = max((shape * n / variance).sum() / (shape**2 / variance).sum(), 0)
        chi_square = ((n - height * shape) ** 2 / variance).sum()
        tried.append((chi_square, scales.prod(), covariance))
    best = min(chi_square for chi_square, *_ in tried)
    _, _, wanted = max((one for one in tried if one[0] <= best + 4), key=lambda one: one[1])
    found = widest(seen, counts, under, everywhere, inside)
    np.testing.assert_allclose(found.covariance, wanted)
    assert (found.row, found.col) == (seen.row, seen.col)
