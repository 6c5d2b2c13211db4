"""The numbers of a region against formulas by hand."""

import numpy as np
import pytest
from roi_fixtures import Blind

from bluesky_denoise.regions.region import cut
from bluesky_denoise.regions.summation import Summation, bend
from bluesky_denoise.roi import ROI, Weighing, measure_roi, values

COUNTS = np.array([[100, 400]])
PARTS = np.array([[[25, 100]]] * 4)


def weighed(coefficients, profile=None, counts=COUNTS, parts=PARTS, exposure_s=1.0):
    """Return what comes of two pixels that each part weighs on its own."""
    crop = cut(counts, exposure_s, ROI((0, 1), (0, 2), 0), None, 0)
    shape = None if profile is None else np.array([profile])
    chosen = [Summation(np.array([c]), shape, 1.0) for c in np.asarray(coefficients, float)]
    return values(Weighing(crop, parts, chosen, np.zeros(counts.shape)))


def test_an_error_has_the_noise_of_the_counts_and_what_the_choice_of_weights_makes_of_them():
    found = weighed([(1, 0), (1, 1), (1, 0), (1, 1)], exposure_s=0.5)
    noise = (100 + 500 + 100 + 500) / 4
    # The second pixel is taken with 0.5 +- 0.5: 200 counts each, of which 0.25 * 400 are noise.
    chance = 4 * (200**2 - 0.25 * 400) / (4 - 1)
    assert found.intensity == (100 + 200) / 0.5
    assert found.intensity_error == pytest.approx(np.sqrt(noise + chance) / 0.5)


def test_weights_that_differ_by_no_more_than_noise_add_no_error():
    alike = np.array([[100, 100]])
    found = weighed([(1.5, 0.5), (0.5, 1.5)], counts=alike, parts=np.stack([alike / 2] * 2))
    assert found.intensity_error**2 == pytest.approx(1.5**2 * 100 + 0.5**2 * 100)


def test_the_error_of_a_profile_is_that_of_what_the_model_expects():
    found = weighed([(2, 1)] * 4, profile=(0.25, 0.75))
    # The sum is 600, so 150 and 450 counts are expected, weighed with the squares.
    assert found.intensity_error**2 == pytest.approx(4 * 150 + 1 * 450)


def test_no_photon_is_no_certainty_but_that_of_one_count_in_the_pixel_of_most_weight():
    none = np.zeros((1, 2), int)
    found = weighed([(3, 1)] * 4, counts=none, parts=np.zeros((4, 1, 2), int), exposure_s=0.1)
    assert (found.intensity, found.intensity_error) == (0, pytest.approx(3 / 0.1))
    assert (found.raw_sum, found.raw_sum_error) == (0, pytest.approx(1 / 0.1))


def test_a_raw_sum_has_the_error_of_its_counts():
    found = weighed([(1, 1)] * 4, exposure_s=0.5)
    assert (found.raw_sum, found.raw_sum_error) == (500 / 0.5, pytest.approx(500**0.5 / 0.5))


@pytest.mark.parametrize("dtype", ["u2", "u4", "i4", "u8", "f4", "f8"])
def test_many_counts_are_summed_whatever_their_type(dtype):
    counts = np.full((300, 300), 60_000 if dtype == "u2" else 2_000_000_000).astype(dtype)
    level = float(counts[0, 0])
    counts[150, 150] += 1024
    found = measure_roi(counts, 1.0, ROI((0, 300), (0, 300), 0), Blind())
    assert found.raw_sum == found.intensity == 90_000 * level + 1024


def test_a_curvature_that_the_pixels_do_not_tell_is_none():
    rows, cols = np.indices((40, 40))
    lines, diagonal = (rows == 9) | (rows == 20), rows == cols
    twisted = 50 + 0.1 * (rows - 20.0) * (cols - 20)
    across = 50 + 0.1 * (cols - 20.0) ** 2
    for seen in (lines, diagonal):
        for counts in (twisted, across):
            # Less it, what is seen is a plane; elsewhere it is no larger.
            curved = bend(counts, seen)
            flat = np.stack([np.ones(seen.sum()), rows[seen], cols[seen]])
            rest = (counts - curved)[seen]
            plane = np.linalg.lstsq(flat.T, rest, rcond=None)[0] @ flat
            assert rest == pytest.approx(plane)
            assert 20 < np.abs(curved).max() < 60


@pytest.mark.parametrize("left", ["a diagonal", "corners", "three corners", "one pixel"])
def test_a_background_of_few_pixels_gives_numbers(left):
    mask = np.zeros((40, 40), bool)
    mask[6:24, 6:24] = True
    mask[10:20, 10:20] = False
    corners = [(9, 9), (9, 20), (20, 9), (20, 20)]
    pixels = {"a diagonal": [(i, i) for i in range(6, 24)], "corners": corners}
    pixels |= {"three corners": corners[:3], "one pixel": corners[:1]}
    mask[tuple(np.transpose(pixels[left]))] = False
    counts = np.full((40, 40), 7)
    found = measure_roi(counts, 1.0, ROI((10, 20), (10, 20)), Blind(), mask=mask)
    assert found.intensity == pytest.approx(0, abs=1e-9)
    assert (found.background, found.background_error) == (7, 0)
    assert found.intensity_error**2 >= 700 + 100**2 * 7 / len(pixels[left]) - 1e-6


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_the_background_is_that_of_the_region_and_not_of_the_frame_beside_it(slope):
    rows = np.arange(40)[:, None] * np.ones(40)
    counts = 100 + slope * rows
    found = measure_roi(counts, 0.5, ROI((0, 10), (10, 20)), Blind())
    assert found.background == pytest.approx((100 + slope * 4.5) / 0.5)
    assert found.raw_sum - 100 * found.background == pytest.approx(found.intensity, abs=1e-6)
