"""What `measure_roi` makes of a background that is level, sloping or curved."""

import numpy as np
import pytest
from roi_fixtures import BOX, SHAPE, STEEP, Smoother, measured

from bluesky_denoise.regions.extraction import outside_is_quiet
from bluesky_denoise.regions.region import cut
from bluesky_denoise.regions.summation import bend, choose_summation, ground
from bluesky_denoise.roi import ROI, measure_roi
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak


def test_a_sloping_background_does_not_bias_a_peak_off_the_middle():
    rng = np.random.default_rng(9)
    slope = 0.5 + np.linspace(0, 1.5, SHAPE[1])[None, :] * np.ones(SHAPE)
    peaks = [Peak(20.0, 31.0, 120.0, 1.5, 1.5) for _ in range(50)]
    rows = measured(rng, Smoother(), peaks, slope)
    assert rows[:, 4].all()
    error = rows[:, 1] - 120.0
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(50)


def test_a_peak_on_a_steep_background_is_measured_where_it_is():
    rng = np.random.default_rng(5)
    plane = 20 * (1 + (np.arange(46) - 22.5) / 30) * np.ones((46, 1))  # threefold over the region
    found = []
    for _ in range(60):
        rate = gaussian_peak(SHAPE, Peak(22.5, 20.0, 300.0, 1.6, 1.6)) + plane
        values = measure_roi(rng.poisson(rate), 1.0, BOX, Smoother(), rng=rng)
        found.append((values.intensity, values.intensity_error, values.method == "profile"))
    intensity, error, used = np.array(found).T
    # Sought above a level that is the same everywhere, the peak is missed in the bright corner.
    assert used.mean() > 0.8
    pulls = (intensity - 300) / error
    # 60 pulls: their width to 9 %, their mean to 13 %.
    assert pulls.std() < 1.3
    assert abs(pulls.mean()) < 0.4


def test_a_slope_seen_by_three_of_four_parts_does_not_shift_where_a_peak_is_summed():
    rate = gaussian_peak(SHAPE, Peak(22.5, 15.0, 600.0, 1.6, 1.6)) + STEEP
    chosen = choose_summation(cut(rate, 1.0, BOX, None, 4), np.round(0.75 * rate), rate)
    # No photon is drawn. A slope that is a quarter too low shifts it by 0.07.
    assert chosen.profile.sum(0) @ np.arange(46) == pytest.approx(15.0, abs=0.01)


def test_the_ground_is_a_plane_only_where_counts_rise_by_more_than_noise():
    rng = np.random.default_rng(0)
    around = np.ones((40, 40), bool)
    around[8:32, 8:32] = False
    flat = rng.poisson(5.0, (40, 40)).astype(float)
    assert np.ptp(ground(flat, around)) == 0
    assert ground(flat, around)[0, 0] == pytest.approx(flat[around].mean())
    plane = 5 + 0.1 * np.arange(40) * np.ones((40, 1))
    # The slopes of 1024 pixels of 7 counts are known to 0.006 counts a pixel.
    np.testing.assert_allclose(ground(rng.poisson(plane).astype(float), around), plane, atol=0.7)
    assert not ground(flat, np.zeros((40, 40), bool)).any()


def test_a_background_that_is_no_plane_is_told():
    rows, cols = np.indices(SHAPE)
    flat = gaussian_peak(SHAPE, Peak(22.5, 22.5, 300.0, 1.8, 1.8)) + 2.0
    slope = flat + 0.05 * rows
    beside = flat + 2e6 / ((rows - 22.5) ** 2 + (cols + 25.0) ** 2) ** 1.5
    found = {}
    for name, expected in (("flat", flat), ("slope", slope), ("beside", beside)):
        counts = np.random.default_rng(1).poisson(expected)
        found[name] = measure_roi(counts, 0.5, BOX, Smoother())
    assert found["flat"].background_error == found["slope"].background_error == 0
    off = found["beside"].intensity - 300 / 0.5
    assert abs(off) > 3 * found["beside"].intensity_error
    assert found["beside"].background_error == pytest.approx(abs(off), rel=0.3)


def test_a_plane_is_hardly_ever_taken_to_be_curved():
    rng = np.random.default_rng(2)
    seen = np.ones(SHAPE, bool)
    seen[8:38, 8:38] = False
    for level in (0.02, 1.0, 50.0):
        plane = level * (1 + np.linspace(-0.8, 0.8, SHAPE[0])[:, None] * np.ones(SHAPE))
        bent = [bool(bend(rng.poisson(plane), seen).any()) for _ in range(200)]
        assert sum(bent) <= 3, level


@pytest.mark.parametrize("masked", [True, False])
def test_where_nothing_is_left_for_the_background_there_is_no_intensity(masked):
    counts = np.random.default_rng(0).poisson(5.0, (40, 48))
    rows, cols = ((0, 39), (0, 47)) if masked else ((0, 40), (0, 48))
    mask = np.ones(counts.shape, bool)
    mask[slice(*rows), slice(*cols)] = False
    found = measure_roi(counts, 1.0, ROI(rows, cols), Smoother(), mask=mask)
    assert np.isnan(found.intensity)
    assert found.raw_sum == counts[~mask].sum()
    plain = measure_roi(counts, 1.0, ROI(rows, cols, background_px=0), Smoother(), mask=mask)
    assert plain.intensity == plain.raw_sum


def test_noise_is_no_second_object_however_large_the_region():
    rng, quiet = np.random.default_rng(0), 0
    rate = np.full((200, 200), 2.0)
    everywhere = np.ones(rate.shape, bool)
    for _ in range(100):
        quiet += outside_is_quiet(rng.poisson(rate).astype(float), rate, everywhere, 0.0)
    # The total alone is 2.5 standard deviations above in 0.6 %; 93 if all boxes had 4.5.
    assert quiet >= 97
    rate[100:105, 100:105] += 3.0  # 10 standard deviations
    counts = rng.poisson(rate).astype(float)
    assert not outside_is_quiet(counts, np.full(rate.shape, 2.0), everywhere, 0.0)


@pytest.mark.parametrize(
    ("shape", "rate", "most"),
    [((20, 20), 2.0, 35), ((200, 200), 2.0, 41), ((3, 9), 2.0, 22), ((20, 20), 0.01, 5)],
    ids=str,
)
def test_a_box_is_an_object_from_where_noise_hardly_ever_makes_one(shape, rate, most):
    """From 4.5 standard deviations, or more among many boxes."""
    under, everywhere = np.full(shape, rate), np.ones(shape, bool)
    for extra in (most, most + 1):
        counts = under.copy()
        counts[:, : shape[1] // 2] = 0  # so that the total is none
        counts[0, -1] += extra
        assert outside_is_quiet(counts, under, everywhere, 0.0) == (extra == most)
        counts[1, 1] += 1000
        everywhere[1, 1] = False  # it is in the ellipse
    assert not outside_is_quiet(counts, under, everywhere, 0.0)


@pytest.mark.parametrize(
    ("rate", "noise", "most"), [(1.0, 0.0, 100), (1.0, 0.1, 412), (1e-4, 0.0, 2)]
)
def test_a_total_is_more_than_noise_from_two_and_a_half_standard_deviations(rate, noise, most):
    """Those of the counts, 40, and of the background, 160, squared and added; of none it is 1."""
    under, everywhere = np.full((80, 20), rate), np.ones((80, 20), bool)
    for extra in (most, most + 1):
        counts = under + extra / under.size
        assert outside_is_quiet(counts, under, everywhere, noise) == (extra == most)
