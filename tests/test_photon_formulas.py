"""What tells photons from other numbers, for patterns of which it is known by hand."""

import numpy as np
import pytest

from bluesky_denoise.photons.photon_checks import (
    chessboard_noise,
    fano_factor,
    favoured_count,
    neighbour_correlation,
    no_counts,
    scatters_otherwise,
    unmasked,
)
from bluesky_denoise.photons.pixel_checks import hot_pixels

ROWS, COLS = np.indices((160, 176))
CHESSBOARD = (-1.0) ** (ROWS + COLS)
STRIPES = (-1.0) ** COLS


def brighter_at_the_right(pattern: np.ndarray, level: float, height: float) -> np.ndarray:
    """Return a frame whose right third is brighter, and scatters by more: it has no say."""
    bright = COLS >= 112
    return level * (1 + 3 * bright) + pattern * height * (1 + 9 * bright)


def test_a_fano_factor_is_the_square_of_second_differences_over_the_mean():
    # Along both axes a chessboard is 16 times its height, and the weights have squares of 36.
    assert fano_factor(40 + 3 * CHESSBOARD) == pytest.approx(256 * 9 / 36 / 40, rel=0.01)
    assert fano_factor(brighter_at_the_right(CHESSBOARD, 40, 3)) == pytest.approx(
        256 * 9 / 36 / 40, rel=0.02
    )
    # What is a line along rows or columns does not show.
    assert fano_factor(40.0 + ROWS + 2 * COLS + 0.01 * ROWS * COLS) == pytest.approx(0, abs=1e-9)
    assert fano_factor(40 + 9 * STRIPES) == pytest.approx(0, abs=1e-9)


def test_a_fano_factor_of_few_counts_is_that_of_the_pooled_blocks():
    frame = np.zeros((48, 48))
    frame[2::4, 2::4] = 1.0  # one in 16: four differences of 4, four of 1, and the middle of 16
    rows = frame[:-2] - 2 * frame[1:-1] + frame[2:]
    squared = (rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]) ** 2 / 36
    assert np.isnan(fano_factor(frame))  # 140 counts tell nothing
    wide = np.tile(frame, (3, 2))
    told = squared[:44, :44].mean() * 16
    assert fano_factor(wide) == pytest.approx(told, rel=0.03)
    # Bright blocks have no say, nor has the tenth that scatters most.
    wide[:32, :64] = 0.5 + 0.5 * CHESSBOARD[:32, :64]
    wide[[40, 72, 104], 40] = 20
    assert fano_factor(wide) == pytest.approx(told, rel=0.03)


@pytest.mark.parametrize("masked", [0, 100])
def test_spots_of_two_pixels_are_left_out_and_single_pixels_are_not(masked):
    mask = masked > COLS
    frame = 40 + 3 * CHESSBOARD
    spots = (ROWS % 16 == 8) & (COLS % 16 == 8)
    frame[spots] = 90  # five standard deviations and 5 counts are 77
    pairs = np.where(np.roll(spots, 1, 1), 90, frame)
    # Two pixels beside a pair are left out, too.
    single, near = np.zeros(frame.shape, bool), np.zeros(frame.shape, bool)
    for row, col in np.argwhere(spots):
        single[row - 2 : row + 3, col - 2 : col + 3] = True
        near[row - 2 : row + 3, col - 2 : col + 4] = True
    for check in (fano_factor, neighbour_correlation):
        assert check(frame, mask) != check(frame, mask | single)
        # Of a correlation, fewer than a hundred blocks tell nothing.
        told = pytest.approx(check(frame, mask | near), nan_ok=masked > 0)
        assert check(pairs, mask) == told


def test_masked_pixels_have_no_say_in_how_counts_scatter():
    frame = 40 + 3 * CHESSBOARD
    dense = (ROWS % 8 == 7) & (COLS % 8 == 3)
    assert neighbour_correlation(np.where(dense, 0, frame), dense) > 0.8  # of 1, of fewer pairs
    mask = (ROWS % 40 == 7) & (COLS % 40 == 9)
    for check in (fano_factor, neighbour_correlation):
        spoilt = check(np.where(mask, 9e6, frame), mask)
        assert spoilt == check(np.where(mask, 0, frame), mask)
        assert spoilt == pytest.approx(check(frame), rel=0.01)
    spoilt = chessboard_noise(np.where(mask, 9e6, frame), mask)
    assert spoilt == pytest.approx(chessboard_noise(frame), rel=0.01, abs=1e-3)
    values, valid = unmasked(frame, mask)
    assert (values[mask] == 0).all()
    np.testing.assert_array_equal(valid, ~mask)


@pytest.mark.parametrize(("period", "correlation"), [(2, 1), (4, -1)])
def test_neighbours_are_correlated_as_a_wave_is_two_columns_on(period, correlation):
    wave = np.cos(2 * np.pi * COLS / period + 0.3) * (-1.0) ** ROWS
    for frame in (40 + 3 * wave, brighter_at_the_right(wave, 40, 3)):
        assert neighbour_correlation(frame) == pytest.approx(correlation, abs=0.02)
    assert np.isnan(neighbour_correlation(np.full((160, 176), 7)))  # no noise at all


def test_the_noise_of_a_chessboard_is_its_square_over_the_squares_of_the_weights():
    # 64 x 64 times its height; the squares of 1, 6, 15, 20, 15, 6, 1 are 924.
    told = (64**2 * 3 / 924) ** 2 / 40
    ratio, error = chessboard_noise(40 + 3 * CHESSBOARD)
    assert ratio == pytest.approx(told, rel=1e-6)
    assert error == pytest.approx(0, abs=1e-6)
    # Of the brighter part, one block that is cut has a say.
    assert chessboard_noise(brighter_at_the_right(CHESSBOARD, 40, 3))[0] < 1.2 * told
    assert chessboard_noise(40 + 9 * STRIPES)[0] == pytest.approx(0, abs=1e-9)


def test_blocks_of_few_counts_tell_nothing_of_neighbours():
    for level, told in ((0.15, False), (0.5, True)):  # 38 and 128 counts, or 80 at the edge
        frame = level * (1 + CHESSBOARD)
        assert np.isfinite(neighbour_correlation(frame)) == told
        assert np.isfinite(chessboard_noise(frame)).all() == told


def test_a_number_is_favoured_that_comes_up_more_often_than_a_moment_may():
    # Beside 1000 and 1000 pixels, (1 + 1 / 2) allows 1225; a quarter of a logarithm is 1388.
    for pixels, found in ((1300, None), (1800, 2)):
        counts = np.repeat([0, 1, 2, 3], [1000, 1000, pixels, 1000])[None]
        assert favoured_count(counts) == found
        mask = np.zeros(counts.shape, bool)
        mask[0, 2000:2600] = True
        assert favoured_count(counts, mask) is None
    assert favoured_count(np.zeros((4, 4), int)) is None


def test_a_number_that_many_pixels_favour_a_little_is_none():
    # By a tenth of a logarithm, of which twenty thousand pixels are sure.
    counts = np.repeat([0, 1, 2, 3], [20000, 20000, 26000, 20000])[None]
    assert favoured_count(counts) is None


def test_few_pixels_and_one_number_of_many_favour_none():
    few = np.repeat([0, 1, 2, 3], [20, 20, 50, 20])[None]
    assert favoured_count(few) is None
    some = [1000] * 14
    some[5] = 4000
    counts = np.repeat(np.arange(14), some)[None]
    assert favoured_count(counts) is None
    some[5] = some[8] = some[11] = 4000
    assert favoured_count(np.repeat(np.arange(14), some)[None]) == 11
    rare = np.repeat(np.arange(14), [1000] * 4 + [150] * 4 + [4000] + [150] * 5)[None]
    assert favoured_count(rare) == 8


@pytest.mark.parametrize("place", [(0, 0), (0, 9), (11, 0), (11, 9), (5, 0), (4, 6)], ids=str)
def test_a_pixel_that_counts_alone_is_hot_wherever_it_is(place):
    counts = np.full((12, 10), 4)
    counts[place] = 4 + 51
    assert hot_pixels(counts).tolist() == [list(place)]
    assert not len(hot_pixels(counts - (counts > 50) * 2))  # 50 counts at most
    mask = np.zeros(counts.shape, bool)
    mask[place] = True
    assert not len(hot_pixels(counts, mask))
    # Four times the mean of its neighbours, and 10 standard deviations.
    for height, hot in ((395, False), (405, True)):
        bright = np.full((12, 10), 100)
        bright[place] += height
        assert len(hot_pixels(bright)) == hot


def test_a_pixel_whose_neighbours_share_its_counts_is_not_hot():
    counts = np.full((12, 10), 4)
    counts[5, 5] = 1004
    assert len(hot_pixels(counts)) == 1
    counts[5, 6] += 30 + 9  # 3 %, and two standard deviations of the four at its sides
    assert not len(hot_pixels(counts))
    counts[5, 6] -= 3
    assert len(hot_pixels(counts)) == 1
    mask = np.zeros(counts.shape, bool)
    mask[4, 5] = mask[6, 5] = mask[5, 4] = True
    assert not len(hot_pixels(counts, mask))  # one that is left tells nothing


@pytest.mark.parametrize(
    ("height", "told"),
    [
        (1.0, "counts scatter unlike photons (variance / mean 0.178, expected 1): a pedestal"),
        (9.0, "counts scatter unlike photons (variance / mean 14.4, expected 1): a gain"),
        (2.5, ""),
    ],
)
def test_what_scatters_by_more_or_less_than_counts_says_so(height, told):
    said = scatters_otherwise(40 + height * CHESSBOARD)
    assert said.startswith(told)
    assert bool(said) == bool(told)


def test_neighbours_that_scatter_alike_share_no_noise():
    wave = np.cos(np.pi / 2 * ROWS + 0.7) * STRIPES
    assert neighbour_correlation(40 + 6 * wave) == pytest.approx(1, abs=0.02)
    assert chessboard_noise(40 + 6 * wave)[0] < 0.2
    assert scatters_otherwise(40 + 6 * wave) == ""


def test_a_favoured_number_is_told_with_its_neighbours():
    counts = np.repeat([0, 1, 2, 3], [1000, 900, 1800, 1100])[None]
    assert no_counts(counts) == (
        "1800 pixels hold 2 counts, but only 900 hold 1 and 1100 hold 3: a gain, not photons"
    )


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([[0, 1, 2]], ""),
        ([[0, 2, 4]], "all counts are multiples of 2"),
        ([[0, 2, 2]], ""),
        ([[0.0, 1.5, 2.0]], "counts are no integers"),
        ([[0.0, -1.0, 2.0]], "counts are negative (least -1)"),
        ([[]], ""),
    ],
)
def test_numbers_that_are_no_counts_say_why(counts, reason):
    said = no_counts(np.array(counts))
    assert said.startswith(reason)
    assert bool(said) == bool(reason)
