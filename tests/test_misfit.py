"""What counts tell of the error of an estimate."""

import numpy as np
import pytest
import torch
from scattering import fringes

from bluesky_denoise.audit import audit_frame
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.frames import Denoised, expected_sigma
from bluesky_denoise.models import kernels
from bluesky_denoise.models.misfit import CLEAR, NOISE, misfit
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

SHAPE = (128, 160)
LEVELS = range(1, len(NOISE) + 1)


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser.load(device="cpu", threads=1)


def _found(counts, estimate, variance=0.0, own=0.0, free=1.0):
    arrays = np.broadcast_arrays(counts, estimate, variance, own, free, np.zeros(SHAPE))
    images = torch.from_numpy(np.stack(arrays).astype(np.float32))[:, None, None]
    return misfit(*images[:-1])[0, 0].numpy()


def _averaged(image, level):
    for _ in range(level):
        image = kernels.down(image)
    return kernels.blur(image)


@pytest.mark.parametrize("level", LEVELS)
def test_the_noise_of_an_average_is_the_sum_of_its_squared_weights(level):
    side, step = 512, 2**level
    squares = 0.0
    for row, col in np.ndindex(step, step):  # all places that a pixel can have in a cell
        image = torch.zeros(1, 1, side, side)
        image[..., side // 2 + row, side // 2 + col] = 1
        squares += float((_averaged(image, level) ** 2).sum())
    assert NOISE[level - 1] == pytest.approx(squares, rel=1e-4)


@pytest.mark.parametrize("level", [0.02, 0.3, 4.0, 300.0])
def test_an_estimate_that_is_right_has_hardly_any_misfit(level):
    rng = np.random.default_rng(3)
    found = [_found(rng.poisson(level, SHAPE), level) for _ in range(20)]
    # Two standard deviations are passed by chance in one of 22 averages, at each level.
    assert np.mean(np.array(found) > 0.02 * level) < 0.1
    assert np.mean(found) < 0.01 * level


@pytest.mark.parametrize("level", [0.3, 20.0])
def test_a_part_that_is_off_is_told_by_its_square_and_what_is_around_it_is_not(level):
    off = np.zeros(SHAPE)
    off[40:72, 64:96] = 2 * np.sqrt(level)
    found = _found(np.random.default_rng(4).poisson(level + off), level)
    inside = found[44:68, 68:92]
    assert np.median(inside) == pytest.approx(4 * level, rel=0.2)
    assert found[100:, :40].mean() < 0.05 * level


@pytest.mark.parametrize("kept", [0.0, 0.1])
def test_scatter_tells_the_squared_error_without_bias(kept):
    rng = np.random.default_rng(5)
    level, stated = 2.0, 0.1
    rows, cols = np.indices(SHAPE)
    lost = 0.9 * level * np.cos(np.pi * (rows + cols))  # nothing of it is in any sum
    counts = rng.poisson(level + lost)
    estimate = level + kept * (counts - level)
    true = ((1 - kept) * lost) ** 2 + kept**2 * (level + lost)
    found = _found(counts, estimate, stated * level, kept)
    beyond = true.mean() - stated * level
    inside = np.s_[32:-32, 32:-32]  # nothing is known beyond the frame
    assert found[inside].mean() == pytest.approx(beyond, rel=0.15)
    # What a pixel kept of its own scatters with it, and is no sign of a good fit.
    assert _found(counts, estimate, true.mean(), kept).mean() < 0.1 * level


def test_a_misfit_counts_in_part_from_two_standard_deviations_on():
    level, (least, full) = 100.0, CLEAR
    sums = np.sqrt(NOISE[-1] * level)  # of the widest average, where a frame is off everywhere
    for deviations, part in ((0.9 * least, 0.0), (np.sqrt((least**2 + full**2) / 2), 0.5)):
        off = deviations * sums
        found = _found(level + off, level)[32:-32, 32:-32]  # nothing is known beyond the frame
        np.testing.assert_allclose(found, part * off**2, rtol=1e-3)
        # The same for what no sum holds: every other pixel more, the others less.
        beyond = deviations * np.sqrt(2 * NOISE[-1]) * level
        chessboard = np.sqrt(level + beyond) * (-1) ** np.indices(SHAPE).sum(0)
        found = _found(level + chessboard, level)[32:-32, 32:-32]
        np.testing.assert_allclose(found, part * beyond, rtol=1e-2)


def test_pixels_that_stay_as_counted_and_masked_ones_have_none():
    rng = np.random.default_rng(6)
    free, estimate = np.ones(SHAPE), np.full(SHAPE, 1.0)
    free[:, :80] = 0
    estimate[:, 120:] = 0  # masked: neither counts nor an estimate
    counts = rng.poisson(9 * estimate)
    found = _found(counts, estimate, free=free)
    assert not found[:, :80].any()
    assert np.median(found[:, 90:110]) == pytest.approx(64, rel=0.1)
    assert np.isfinite(found).all()
    dark = np.zeros(SHAPE)
    assert not _found(dark, dark).any()


def test_error_bars_of_a_lost_peak_hold_more_often(denoiser):
    rng, shape = np.random.default_rng(7), (192, 192)
    rows, cols = np.indices(shape)
    held = []
    for _ in range(6):
        truth, cores = np.full(shape, 1.0), np.zeros(shape, bool)
        for row, col in np.ndindex(4, 4):
            row, col = 48 * np.array([row, col]) + rng.uniform(21, 27, 2)
            # Of 5 standard deviations: S / sqrt(4 pi sigma^2 B).
            truth += gaussian_peak(shape, Peak(row, col, 5 * np.sqrt(16 * np.pi), 2.0, 2.0))
            cores |= np.hypot(rows - row, cols - col) < 2
        found = denoiser.denoise(rng.poisson(truth), 1.0)
        for sigma in (found.expected_sigma, found.sigma):
            low, high = Denoised(found.rate, sigma, found.stretch).interval(0.95)
            held.append(((truth >= low) & (truth <= high))[cores].mean())
    before, after = np.reshape(held, (-1, 2)).mean(0)
    assert before < 0.35
    assert after > before + 0.3


def test_error_bars_of_lost_fringes_hold_and_the_audit_flags_them_all_the_same(denoiser):
    truth = fringes(0.5, 4)
    counts = np.random.default_rng(8).poisson(truth)
    found = denoiser.denoise(counts, 1.0)
    low, high = found.interval(0.95)
    assert ((truth >= low) & (truth <= high)).mean() > 0.9
    assert (found.sigma >= found.expected_sigma).all()
    verdict = audit_frame(counts, 1.0, denoiser)
    assert "fringes were lost" in verdict.reason


def test_what_is_expected_is_what_is_stated_unless_told_apart():
    rate = np.ones((2, 2), np.float32)
    assert expected_sigma(Denoised(rate)) is None
    assert expected_sigma(Denoised(rate, 2 * rate)) is not None
    np.testing.assert_array_equal(expected_sigma(Denoised(rate, 2 * rate)), 2 * rate)
    np.testing.assert_array_equal(
        expected_sigma(Denoised(rate, 2 * rate, expected_sigma=rate)), rate
    )
    assert expected_sigma(object()) is None
