"""The numbers of a region against formulas by hand."""

import numpy as np
import pytest
from roi_fixtures import BOX, SHAPE, Blind, Smoother

from bluesky_denoise.errors import FrameShapeError
from bluesky_denoise.regions.region import cut
from bluesky_denoise.regions.summation import Summation, bend, choose_summation
from bluesky_denoise.roi import ROI, Weighing, measure_roi, values, weigh
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak
from bluesky_denoise.testing import UnitDenoiser

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


def test_the_error_of_a_profile_has_in_it_the_background_under_it_and_beside_it():
    counts = np.array([[3, 100, 400, 5]])
    crop = cut(counts, 1.0, ROI((0, 1), (1, 3), 1), None, 0)
    one = Summation(np.array([[-1.0, 2, 1, -1]]), np.array([[0, 0.25, 0.75, 0]]), 1.0)
    found = values(Weighing(crop, counts[None], [one], np.zeros(counts.shape)))
    assert found.intensity == -3 + 200 + 400 - 5
    expected = 592 * np.array([0, 0.25, 0.75, 0]) + 4
    assert found.intensity_error**2 == pytest.approx(np.array([1, 4, 1, 1]) @ expected)


def test_a_peak_below_nothing_is_no_noise_of_its_own():
    counts = np.array([[40, 1, 2, 60]])
    crop = cut(counts, 1.0, ROI((0, 1), (1, 3), 1), None, 0)
    one = Summation(np.array([[-1.0, 1, 1, -1]]), np.array([[0, 0.5, 0.5, 0]]), 1.0)
    plain = Summation(np.array([[-1.0, 1, 1, -1]]), None, 1.0)
    parts = np.stack([counts / 2] * 2)
    found = values(Weighing(crop, parts, [one, plain], np.zeros(counts.shape)))
    assert found.intensity == -97
    assert found.intensity_error**2 == pytest.approx((4 * 50 + 103) / 2)
    assert (found.method, found.significance) == ("profile", 0)


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


def test_a_curvature_that_shows_beside_the_peak_alone_is_told():
    rows, cols = np.indices(SHAPE) - 22.5
    peak = gaussian_peak(SHAPE, Peak(22.5, 22.5, 4000.0, 1.8, 1.8))
    counts = np.rint(peak + 10 + 0.01 * (rows**2 + cols**2))
    box = ROI(BOX.rows, BOX.cols, 1)
    crop = cut(counts, 1.0, box, None, 1)
    assert not bend(crop.counts, crop.around).any()
    found = measure_roi(counts, 1.0, box, Smoother())
    assert found.method == "profile"
    assert found.background_error == pytest.approx(4000 - found.intensity, rel=0.1)
    assert found.background_error > 300


def test_each_part_of_the_photons_is_weighed_by_the_others():
    counts = np.random.default_rng(0).poisson(
        gaussian_peak(SHAPE, Peak(22.5, 22.5, 900.0, 1.8, 1.8)) + 1.0
    )
    crop = cut(counts, 0.5, BOX, None, 4)
    found = weigh(crop, Smoother(), rng=np.random.default_rng(1))
    np.testing.assert_array_equal(found.parts.sum(0), crop.counts)
    for part, summation in zip(found.parts, found.summations, strict=True):
        others = crop.counts - part
        rate = Smoother().denoise(others[None], 0.5 * 0.75).rate[0]
        wanted = choose_summation(crop, others, 0.5 * rate)
        np.testing.assert_allclose(summation.coefficients, wanted.coefficients)
    assert len(found.parts) == 4


@pytest.mark.parametrize(("factor", "width"), [(1, 0), (1.5, 4)], ids=["no frame", "no photons"])
def test_with_a_denoised_frame_nothing_is_denoised_that_is_of_no_use(factor, width):
    counts = factor * np.random.default_rng(2).poisson(4.0, SHAPE)
    denoiser = UnitDenoiser()
    box = ROI(BOX.rows, BOX.cols, width)
    found = measure_roi(counts, 1.0, box, denoiser, rate=np.ones(SHAPE))
    assert denoiser.calls == []
    assert found.intensity == pytest.approx(measure_roi(counts, 1.0, box, Blind()).intensity)


def test_a_denoised_frame_without_an_end_shows_no_peak():
    counts = np.random.default_rng(3).poisson(4.0, SHAPE)
    rate = np.ones(SHAPE)
    rate[20, 21] = np.inf
    found = measure_roi(counts * 1.5, 1.0, BOX, Blind(), rate=rate)
    assert (found.method, found.significance) == ("sum", 0)


@pytest.mark.parametrize("value", [1e6, np.nan, np.inf, -3.0])
def test_what_a_masked_pixel_holds_has_no_say(value):
    counts = np.random.default_rng(4).poisson(
        gaussian_peak(SHAPE, Peak(22.5, 22.5, 900.0, 1.8, 1.8)) + 1.0
    )
    mask = np.zeros(SHAPE, bool)
    mask[21:23, 23] = mask[6, 20] = mask[0, 0] = True
    found = [
        measure_roi(np.where(mask, held, counts), 0.5, BOX, Smoother(), mask=mask).as_dict()
        for held in (value, 0)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("roi", [ROI((0, 41), (0, 5)), ROI((0, 5), (0, 41))], ids=str)
def test_a_region_that_leaves_the_frame_on_one_side_is_refused(roi):
    with pytest.raises(FrameShapeError, match=r"A ROI of rows .* does not fit frames of shape"):
        measure_roi(np.ones((40, 40), int), 1.0, roi, Blind())
    with pytest.raises(FrameShapeError, match="ROI 'satellite' of rows"):
        roi.check((40, 40), "satellite")
    roi.check((41, 41))


@pytest.mark.parametrize(("shape", "pixels"), [((40, 40), 0), ((39, 40), 1)])
def test_a_region_of_no_pixel_or_of_another_shape_is_refused(shape, pixels):
    region = np.zeros(shape, bool)
    region[:pixels, :1] = True
    with pytest.raises(FrameShapeError, match=rf"with {pixels} pixels was given for a frame of"):
        measure_roi(np.ones((40, 40), int), 1.0, region, Blind())


def test_an_exposure_may_be_an_array_of_one():
    counts = np.full((40, 40), 3)
    found = measure_roi(counts, np.array([0.5]), ROI((10, 20), (10, 20)), Blind())
    assert found.raw_sum == 300 / 0.5
