"""What residuals of held-out counts come to, against sums over pixels one by one."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from bluesky_denoise.photons.poisson import added_deviance, deviance, expected_deviance
from bluesky_denoise.photons.residuals import (
    deviance_ratio,
    lone_pixels,
    lost_wave,
    own_variance,
    residual_correlation,
    surprise_by_side,
    tile_map,
    untold_error,
)

MODEL = np.array([[0.0, 0.3, 2.0, 5.0], [1.0, 40.0, 3.0, 0.7], [9.0, 2.5, 0.01, 6.0]])
COUNTS = np.array([[0, 1, 4, 2], [0, 55, 1, 2], [12, 1, 0, 9]])
STATED = 0.2 * MODEL
PAIRS = [((r, c), (r - 1, c)) for r in (1, 2) for c in range(4)]
PAIRS += [((r, c), (r, c - 1)) for r in range(3) for c in (1, 2, 3)]


def over(values: np.ndarray, pairs=PAIRS) -> float:
    return sum(values[one] * values[other] for one, other in pairs)


def test_the_correlation_of_residuals_is_a_sum_over_pairs():
    damped = MODEL + 0.05
    found = over((COUNTS - MODEL) / np.sqrt(damped))
    share, z = residual_correlation(COUNTS, MODEL)
    assert share == pytest.approx(found / over(np.sqrt(MODEL / damped)))
    assert z == pytest.approx(found / np.sqrt(over(MODEL / damped)))
    assert residual_correlation(np.zeros((3, 4)), np.zeros((3, 4))) == (0, 0)


def test_the_error_that_is_not_told_is_a_sum_over_pairs():
    damped = MODEL + 0.05
    error = (COUNTS - MODEL) / np.sqrt(damped)
    told = (np.sqrt(STATED) + 0.01 * MODEL) / np.sqrt(damped)
    variance = (MODEL + STATED) / damped
    below, beside = PAIRS[:8], PAIRS[8:]
    squared = sum(max(over(variance, pairs), over(error**2, pairs)) for pairs in (below, beside))
    share, z = untold_error(COUNTS, MODEL, STATED)
    assert share == pytest.approx(over(error) / over(told))
    assert z == pytest.approx(over(error) / np.sqrt(squared))
    assert untold_error(np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 4))) == (0, 0)


@pytest.mark.parametrize(("across", "down"), [(6, 0), (0, 5), (3, 4)])
def test_a_wave_that_is_lost_has_the_power_of_its_amplitude(across, down):
    height, width = 40, 48
    rows, cols = np.indices((height, width))
    phase = 2 * np.pi * (across * cols / width + down * rows / height) + 0.4
    model = np.full((height, width), 4.0)
    counts = model + 0.5 * np.cos(phase)
    power, share, stated, period = lost_wave(counts, model, 0.1 * model)
    variance = model.size * (4 + 0.4)
    assert power == pytest.approx((0.5 * model.size / 2) ** 2 / variance)
    assert share == pytest.approx(2 * (power - 9) / model.size)
    assert stated == pytest.approx((np.sqrt(0.4) + 0.04) ** 2 / 4.4)
    # To a frequency beside it: the 3 x 3 that have it are alike.
    off = abs(1 / period - np.hypot(across / width, down / height))
    assert off < np.hypot(1 / width, 1 / height)
    # More than counts scatter by, it is the whole of what there is.
    assert lost_wave(4 + 10 * (counts - 4), model, 0.1 * model)[0] == pytest.approx(model.size / 2)
    dark = np.zeros((height, width))
    assert lost_wave(dark, dark, dark)[:3] == (0, 0, 0)


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (2, 64), (64, 2)], ids=str)
def test_a_wave_along_a_strip_has_the_power_of_its_amplitude(shape):
    model = np.full(shape, 4.0)
    phase = 2 * np.pi * np.indices(shape)[int(np.argmax(shape))] / 8 + 0.4
    power, share, _, period = lost_wave(model + 0.5 * np.cos(phase), model, 0 * model)
    assert power == pytest.approx((0.5 / 2) ** 2 * model.size / 4)
    assert share == pytest.approx(2 * (power - 9) / model.size)
    assert abs(1 / period - 1 / 8) < 1.01 / 64  # to a frequency beside it


def test_a_deviance_ratio_is_that_of_sums_with_the_noise_of_the_model_on_top():
    counts, model = COUNTS.ravel(), MODEL.ravel()
    lit = model > 0
    counts_lit, model_lit = counts[lit], model[lit]
    mean, spread = expected_deviance(model_lit)
    found = deviance(counts_lit, model_lit).sum()
    ratio, right, z, exact_z = deviance_ratio(counts, model)
    assert (ratio, right) == (pytest.approx(found / mean.sum()), 1)
    assert z == exact_z == pytest.approx((found - mean.sum()) / np.sqrt(spread.sum()))
    own = 0.2 * model
    more = mean.sum() + added_deviance(model_lit, own[lit]).sum()
    ratio, right, z, z_of_exact = deviance_ratio(counts, model, own)
    assert z_of_exact == exact_z
    assert (ratio, right) == (pytest.approx(found / mean.sum()), pytest.approx(more / mean.sum()))
    assert z == pytest.approx((found - more) / np.sqrt(spread.sum()))
    for none in (np.zeros(3), np.zeros(0)):
        np.testing.assert_equal(deviance_ratio(none, none, none), (np.nan, 1, 0, 0))
    # A photon where nothing is expected is left to the squares; not so where all is dark.
    assert deviance_ratio(np.array([9, 1]), np.array([9.0, 1e-5]))[0] == 0
    assert deviance_ratio(np.array([0, 1]), np.array([1e-5, 1e-5]))[0] > 1


def test_the_noise_of_an_estimate_is_told_by_how_closely_it_follows_what_it_saw():
    model = np.full((32, 32), 9.0)
    seen = model.copy()
    seen[:16, :16] += 3.0 * (-1) ** np.arange(16)  # as much as counts scatter
    seen[16:, :16] += 1.5 * (-1) ** np.arange(16)
    seen[16:, 16:] += 6.0 * (-1) ** np.arange(16)
    found = own_variance(seen, model)
    assert (found[:16, :16] == 0).all()
    assert (found[16:, 16:] == 0).all()
    assert found[:16, 16:] == pytest.approx(9)
    assert found[16:, :16] == pytest.approx(9 * 0.75)


def test_the_limit_is_what_noise_exceeds_in_one_of_two_thousand_frames():
    counts = np.full((20, 31), 5.0)
    surprise, limit, noise = surprise_by_side(counts, counts, None)
    shapes = {1: (20, 31), 3: (18, 29), 7: (7, 13), 15: (2, 4)}
    assert {side: found.shape for side, found in surprise.items()} == shapes
    tests = sum(np.prod(shape) for shape in shapes.values())
    assert 2 * tests * stats.norm.sf(limit) == pytest.approx(0.0005, rel=0.07)
    assert noise == 0
    small = surprise_by_side(counts[:6, :9], counts[:6, :9], None)[0]
    assert list(small) == [1, 3]


@pytest.mark.parametrize("place", [(6, 7), (0, 7), (11, 13)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_pixel_is_alone_where_those_around_it_fit_to_four_standard_deviations(place, sign):
    model = np.full((12, 14), 1000.0)
    near = tuple(slice(max(at - 1, 0), at + 2) for at in place)
    around = model[near].sum() - 1000
    for z, alone in ((3.8, True), (4.2, False)):
        counts = model.copy()
        # Of counting, and 1 % that is let pass.
        off = z * np.sqrt(around + (0.01 * around) ** 2)
        counts[near] += sign * np.rint(off / (model[near].size - 1))
        counts[place] = 1000 + sign * 600
        assert np.argwhere(lone_pixels(counts, model)).tolist() == ([list(place)] if alone else [])
    assert not lone_pixels(counts[:2], model[:2]).any()  # no eight are around any


@pytest.mark.parametrize(("off", "alone"), [(0.03, False), (-0.03, False), (0.07, True)])
def test_a_pixel_of_many_counts_that_is_off_by_little_more_than_one_percent_fits(off, alone):
    model = np.full((12, 14), 1e6)
    counts = model.copy()
    counts[5, 6] *= 1 + off  # 30 and 70 standard deviations of counting, 3 and 7 with 1 %
    assert lone_pixels(counts, model).any() == alone


@pytest.mark.parametrize(("stated", "own"), [(None, 0), (1.0, 1), (15.0, 3)])
def test_squares_deviate_by_their_counts_over_noise_and_what_is_let_pass(stated, own):
    model = np.full((20, 31), 5.0)
    counts = model.copy()
    counts[4, 5] = 9
    # An estimate that is what it saw has the noise of counts, or more if it says so.
    seen = None if stated is None else model
    told = None if stated is None else np.full(model.shape, stated)
    surprise, _, noise = surprise_by_side(counts, model, seen, told)
    assert noise == pytest.approx(own)
    for side, step in ((1, 1), (3, 1), (7, 2), (15, 5)):
        expected = 5.0 * side**2
        z = 4 / np.sqrt(expected) / np.sqrt(1 + own + 0.01**2 * expected)
        found = surprise[side]
        holds = [
            (r, c)
            for r, c in np.ndindex(found.shape)
            if r * step <= 4 < r * step + side and c * step <= 5 < c * step + side
        ]
        wanted = np.zeros(found.shape)
        wanted[tuple(np.transpose(holds))] = z
        np.testing.assert_allclose(found, wanted, atol=1e-7)


def squares(image: np.ndarray, side: int, step: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    return windows[::step, ::step].sum((2, 3))


def block_means(image: np.ndarray, cuts: list[int]) -> np.ndarray:
    found, edges = np.empty(image.shape), [0, *cuts, None]
    blocks = [np.s_[a:b] for a, b in pairwise(edges)]
    for rows in blocks:
        for cols in blocks:
            found[rows, cols] = image[rows, cols].mean()
    return found


@pytest.mark.parametrize("scatter", [None, 0.5, 1.0])
def test_squares_that_stand_out_of_their_block_are_let_pass_by_more(scatter):
    rng = np.random.default_rng(4)
    model = np.full((32, 32), 5.0)
    model[4:7, 20:23], model[20:24, 3:7], model[25, 25] = 16.0, 0.4, 60.0
    counts = model + 0.1 * np.sqrt(model) * rng.normal(size=model.shape)
    seen = None if scatter is None else model + np.sqrt(scatter * model) * (-1) ** np.arange(32)
    surprise, _, noise = surprise_by_side(counts, model, seen)
    # By side: how far squares are apart, where blocks end, what is let pass.
    rules = {1: (1, [16], 0.25), 3: (1, [16], 0.12), 7: (2, [8], 0.07), 15: (5, [], 0.05)}
    for side, (step, cuts, let_pass) in rules.items():
        total, expected = (squares(image, side, step) for image in (counts, model))
        off = np.abs(expected - block_means(expected, cuts))
        variance = 1 + (let_pass * off + 0.01 * expected) ** 2 / expected
        if seen is not None:
            misfit = block_means((squares(seen, side, step) - expected) ** 2, cuts)
            own = np.clip(1 - misfit / block_means(expected, cuts), 0, 1)
            own = np.maximum(own, 0.1 + 0.6 * np.minimum(off / expected, 1))
            variance += own
            assert side > 1 or noise == pytest.approx(own.mean())
        z = (total - expected) / np.sqrt(expected)
        assert np.abs(z).max() < 2.5
        np.testing.assert_allclose(surprise[side], z / np.sqrt(variance), atol=1e-8)


def test_a_tile_has_the_deviate_farthest_from_zero_of_the_squares_centred_in_it():
    one, three = np.zeros((8, 12)), np.zeros((6, 10))
    one[1, 1], one[2, 6], one[5, 9] = 3.0, -4.0, 2.0
    three[2, 2], three[4, 8] = 5.0, -2.5  # centres (3, 3) and (5, 9)
    valid = np.ones((8, 12), bool)
    valid[4:, :4] = False
    found = tile_map({1: one, 3: three}, valid, 4)
    np.testing.assert_array_equal(found, [[5, -4, 0], [np.nan, 0, -2.5]])
    assert found.dtype == np.float32
