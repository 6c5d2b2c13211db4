"""Frames that are larger than their place on the screen."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from bluesky_denoise.views.screen import block_maxima, block_px, block_residuals, show_blocks

SHAPE = (619, 487)


def test_a_peak_of_one_pixel_is_in_its_block_whatever_the_size():
    frame = np.zeros(SHAPE)
    frame[[0, 300, 618], [0, 200, 486]] = 7, 8, 9
    blocks = block_maxima(frame, 10)
    assert blocks.shape == (62, 49)
    assert [blocks[0, 0], blocks[30, 20], blocks[61, 48]] == [7, 8, 9]
    assert blocks.sum() == 24


def test_a_block_is_invalid_only_where_all_of_it_is():
    frame = np.ones((40, 40))
    frame[:20, :15] = np.nan
    blocks = block_maxima(frame, 10)
    assert np.argwhere(np.isnan(blocks)).tolist() == [[0, 0], [1, 0]]


def test_a_small_frame_stays_as_it_is():
    frame = np.random.default_rng(0).normal(size=(48, 48)).astype(np.float32)
    np.testing.assert_array_equal(block_maxima(frame, 1), frame)


@pytest.mark.parametrize("block", [1, 8])
def test_residuals_of_noise_have_a_standard_deviation_of_one(block):
    rate = np.full(SHAPE, 20.0)  # so many that noise is symmetric in single pixels too
    counts = np.random.default_rng(0).poisson(rate * 0.5).astype(np.float32)
    residuals = block_residuals(counts, rate, 0.5, block)
    # By 4.9 thousand blocks to 0.014.
    assert residuals.mean() == pytest.approx(0, abs=0.05)
    assert residuals.std() == pytest.approx(1, abs=0.05)


def test_few_counts_leave_residuals_on_both_sides():
    rate = np.full(SHAPE, 0.05)
    counts = np.random.default_rng(0).poisson(rate).astype(np.float32)
    assert block_residuals(counts, rate, 1.0, 14).mean() == pytest.approx(0, abs=0.1)


def test_a_spot_that_was_denoised_away_is_seen_in_the_residuals():
    rate = np.full(SHAPE, 0.3)
    counts = np.random.default_rng(0).poisson(rate).astype(np.float32)
    counts[302:305, 203:206] += 7
    residuals = block_residuals(counts, rate, 1.0, 10)
    assert residuals[30, 20] > 8  # 63 counts on 30
    assert np.delete(residuals.ravel(), 30 * 49 + 20).max() < 6


def test_residuals_leave_out_what_is_invalid():
    rate = np.full((40, 40), 1.0)
    counts = np.ones((40, 40), np.float32)
    rate[:20, :15] = counts[:20, :15] = np.nan
    residuals = block_residuals(counts, rate, 1.0, 10)
    assert np.argwhere(np.isnan(residuals)).tolist() == [[0, 0], [1, 0]]
    assert np.nanmax(np.abs(residuals)) == 0
    assert np.isnan(block_residuals(counts, rate, np.nan, 10)).all()


@pytest.mark.parametrize("shape", [(195, 487), SHAPE, (4362, 4148), (64, 1), (16, 3000)])
def test_each_block_has_its_point_on_the_screen(shape):
    figure = Figure((4, 3))
    axes = figure.add_subplot()
    block = block_px(axes, shape)
    show_blocks(axes, block_maxima(np.ones(shape), block), block, shape)
    figure.savefig(io.BytesIO(), dpi=figure.dpi)
    box = axes.get_window_extent()
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, shape[1] - 0.5), (shape[0] - 0.5, -0.5))
    assert box.height * block / shape[0] >= 0.99
    assert box.width * block / shape[1] >= 0.99
