"""Residuals of held-out counts: squares that stand out, deviance, what neighbours share."""

import numpy as np

from bluesky_denoise.photons.blocks import Blocks
from bluesky_denoise.photons.poisson import (
    added_deviance,
    deviance,
    expected_deviance,
    integral,
    square_sums,
    tail_z,
)

__all__ = [
    "deviance_ratio",
    "lone_pixels",
    "lost_wave",
    "own_variance",
    "residual_correlation",
    "step_px",
    "surprise_by_side",
    "tile_map",
    "untold_error",
]

SCALES_PX = (1, 3, 7, 15)
"""Sides of the squares whose counts are compared with the estimate."""
FALSE_ALARMS = 0.0005
"""Chance that noise alone makes one of all squares of a frame stand out."""
TOLERANCE = {1: 0.25, 3: 0.12, 7: 0.07, 15: 0.05}
"""Misfit that is let pass, as one standard deviation, by side, as a share of how much a square
differs from its surroundings: a denoiser that spreads a bright spot a little is no failure."""
FLAT_TOLERANCE = 0.01
"""Misfit that is let pass everywhere, as a share of the counts expected."""
NOISE_PX = 16
"""Side of the blocks over which the noise of the estimate itself is told."""
LEAST_NOISE = 0.1
"""Noise that every estimate is taken to have, as a share of Poisson variance."""
NOTHING = 2e-5
"""Counts expected in a pixel below which it has no say in the deviance of a frame."""
FLOOR = 0.05
"""Counts that damp the residuals of nearly dark pixels in what neighbours share."""
BESIDE = ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]))
"""Pixels of a frame, and those beside them: in the row above, and to the left."""


def surprise_by_side(
    counts: np.ndarray,
    model: np.ndarray,
    seen: np.ndarray | None,
    stated: np.ndarray | None = None,
) -> tuple[dict[int, np.ndarray], float, float]:
    """Compare squares of every size.

    The noise of the estimate itself is told from how closely it follows what it has ``seen``,
    by blocks; ``stated`` is its variance by pixels, where the denoiser says one, and rules where it
    is larger: a few pixels that stay as counted do not show in a block.

    Returns
    -------
    tuple
        Deviates by side, their limit, and the estimate's own noise in one pixel, as a share
        of Poisson noise and averaged over the frame.
    """
    images = [image for image in (counts, model, seen, stated) if image is not None]
    totals = [integral(image) for image in images]
    surprise, tests, noise = {}, 0.0, 0.0
    for side in SCALES_PX:
        if side > min(counts.shape):
            break
        step = step_px(side)
        sums = images if side == 1 else [square_sums(total, side, step) for total in totals]
        total, expected = sums[0], np.maximum(sums[1], 0)
        block = max(1, NOISE_PX // step)
        around = _mean_by_block(expected, block)
        misfit = TOLERANCE[side] * np.abs(expected - around) + FLAT_TOLERANCE * expected
        variance = 1 + misfit**2 / np.maximum(expected, 1e-9)
        if seen is not None:
            own = _own_noise(sums[2], expected, block)
            # A peak is smaller than a block, and followed more closely than what is around it.
            contrast = np.abs(expected - around) / np.maximum(expected, 1e-9)
            own = np.maximum(own, LEAST_NOISE + 0.6 * np.minimum(contrast, 1))
            if stated is not None:
                own = np.maximum(own, sums[3] / np.maximum(expected, 1e-9))
            variance += own
            noise = float(own.mean()) if side == 1 else noise
        surprise[side] = _deviate(total, expected) / np.sqrt(variance)
        tests += total.size
    return surprise, _limit(tests), noise


def lone_pixels(
    counts: np.ndarray, model: np.ndarray, seen: np.ndarray | None = None
) -> np.ndarray:
    """Find pixels that do not fit while the eight around them do: bad pixels, most likely.

    Returns
    -------
    numpy.ndarray
        (H, W) bool.
    """
    if min(counts.shape) < 3:
        return np.zeros(counts.shape, bool)
    variance = 1 + FLAT_TOLERANCE**2 * model
    if seen is not None:
        variance += _own_noise(seen, model, NOISE_PX)
    z = _deviate(counts, model) / np.sqrt(variance)
    found = np.abs(z) > _limit(counts.size)
    for row, col in np.argwhere(found):
        near = np.s_[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        total = counts[near].sum() - counts[row, col]
        expected = max(float(model[near].sum() - model[row, col]), 0.0)
        z_near = tail_z(total, expected) / np.sqrt(1 + FLAT_TOLERANCE**2 * expected)
        found[row, col] = abs(float(z_near)) < 4
    return found


def step_px(side: int) -> int:
    """Return how far squares are apart: the larger ones need not be at every pixel."""
    return max(1, side // 3)


def _deviate(total: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return z of each square: the exact tail where it matters, 2.5 and more."""
    z = (total - expected) / np.sqrt(expected + 1e-9)
    far = np.abs(z) > 2.5
    z[far] = tail_z(np.rint(total[far]), expected[far])
    return z


def _own_noise(seen: np.ndarray, expected: np.ndarray, block: int) -> np.ndarray:
    """Bound the variance of the estimate itself, as a share of Poisson variance: 0 to 1.

    Where it follows the counts that it saw, it has their noise. A linear smoother M has
    M^2 <= M, so its own variance is at most 1 - mean((seen - expected)^2) / mean(expected),
    which is taken over blocks.
    """
    blocks = Blocks(expected.shape, block)
    misfit, level = blocks.sums((seen - expected) ** 2), blocks.sums(expected)
    return blocks.spread(np.clip(1 - misfit / np.maximum(level, 1e-9), 0, 1))


def _mean_by_block(image: np.ndarray, block: int) -> np.ndarray:
    """Replace every pixel by the mean over its block."""
    blocks = Blocks(image.shape, block)
    return blocks.spread(blocks.sums(image) / np.multiply.outer(*blocks.sizes))


def _limit(tests: float) -> float:
    """Return the normal deviate that noise exceeds once in FALSE_ALARMS of frames."""
    log = np.log(2 * tests / FALSE_ALARMS)
    return float(np.sqrt(2 * log - np.log(4 * np.pi * log)))


def own_variance(seen: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Bound the variance of an estimate from how closely it follows what it has seen: (H, W)."""
    return _own_noise(seen, model, NOISE_PX) * model


def deviance_ratio(
    counts: np.ndarray, model: np.ndarray, own: np.ndarray | None = None
) -> tuple[float, float, float, float]:
    """Compare the deviance of counts with what their noise, and that of the model, make of it.

    Parameters
    ----------
    counts, model : (n,)
    own : (n,) variance of the model itself; None: it has no noise

    Returns
    -------
    tuple of float
        Deviance over its expectation if the model were exact; the same ratio as expected with
        the model's own noise, 1 or more; z of the difference; z if the model were exact. NaN, 1,
        0, 0 where no pixel tells.
    """
    # Where nothing is expected, one photon would outweigh a frame; squares tell there. A pixel
    # that stays as counted, with no count, is no estimate of darkness.
    some = model > min(NOTHING, 0.01 * float(model.sum()) / max(len(model), 1))
    counts, own = counts[some], None if own is None else own[some]
    model = np.maximum(model[some], 1e-6)
    if not len(model):
        return float("nan"), 1.0, 0.0, 0.0
    found = float(deviance(counts, model).sum())
    mean, spread = expected_deviance(model)
    total = float(mean.sum())
    right = total if own is None else total + float(added_deviance(model, own).sum())
    scatter = float(np.sqrt(spread.sum()))
    return found / total, right / total, (found - right) / scatter, (found - total) / scatter


def residual_correlation(counts: np.ndarray, model: np.ndarray) -> tuple[float, float]:
    """Return the correlation of residuals of pixels side by side, and its z; counts (H, W)."""
    # Both images are 0 where masked.
    damped = model + FLOOR
    residual = (counts - model) / np.sqrt(damped)
    spread = np.sqrt(model / damped)
    found = total = squared = 0.0
    for one, other in BESIDE:
        found += float((residual[one] * residual[other]).sum())
        product = spread[one] * spread[other]
        total += float(product.sum())
        squared += float((product**2).sum())
    if not total > 0:
        return 0.0, 0.0
    return found / total, found / float(np.sqrt(squared))


def untold_error(counts: np.ndarray, model: np.ndarray, stated: np.ndarray) -> tuple[float, float]:
    """Compare the errors that pixels side by side share with those that a denoiser states.

    Counting noise is independent from pixel to pixel: what the residuals of two neighbours share is
    the error of the estimate, which is smooth. Detail that was lost shows, even where each pixel
    has so few counts that its own residual tells nothing.

    Parameters
    ----------
    counts, model : (H, W), 0 where masked
    stated : (H, W) variance of the model that the denoiser states; 0 where masked

    Returns
    -------
    tuple of float
        Squared error over the one stated, 1 or less if that is right; how many standard deviations
        the error is from 0. A misfit of 1 % is let pass, as elsewhere.
    """
    error, told, variance = _damped(counts, model, stated)
    found = known = squared = 0.0
    for one, other in BESIDE:
        product = error[one] * error[other]
        found += float(product.sum())
        known += float((told[one] * told[other]).sum())
        # Two photons side by side in the dark, or one bright spot, scatter by more: no rule.
        should = float((variance[one] * variance[other]).sum())
        squared += max(should, float((product**2).sum()))
    if not squared > 0:
        return 0.0, 0.0
    return found / max(known, 1e-12), found / float(np.sqrt(squared))


def lost_wave(
    counts: np.ndarray, model: np.ndarray, stated: np.ndarray
) -> tuple[float, float, float, float]:
    """Find the wave of which residuals hold the most: fringes that an estimate has lost.

    The noise of independent counts is shared alike by all frequencies. A wave that goes on over
    many pixels stands out in one of them, or in a few side by side, however little each pixel
    says of it.

    Parameters
    ----------
    counts, model : (H, W), 0 where masked
    stated : (H, W) variance of the model that the denoiser states; 0 where masked

    Returns
    -------
    tuple of float
        Power in 3 x 3 frequencies, where noise has 9 on average, or less in a frame of one row or
        two; the share of the variance of the residuals that this is, without noise; the share that
        the denoiser states for its own error, with a misfit of 1 %; the period, pixels.
    """
    error, told, variance = _damped(counts, model, stated)
    # Two photons side by side in the dark, or one bright spot, scatter by more: no rule.
    total = max(float(variance.sum()), float((error**2).sum()))
    if not total > 0:
        return 0.0, 0.0, 0.0, float("nan")
    power = np.abs(np.fft.rfft2(error)) ** 2 / total
    power[0, 0] = 0  # the total
    height, width = counts.shape
    # In a frame of one row or two, the one above is the one below.
    near = np.zeros(power.shape)
    for row in {0, 1 % height, -1 % height}:
        near += np.roll(power, row, 0)
    near[:, 1:-1] = near[:, :-2] + near[:, 1:-1] + near[:, 2:]
    row, col = np.unravel_index(int(near.argmax()), near.shape)
    frequency = float(np.hypot(np.fft.fftfreq(height)[row], np.fft.rfftfreq(width)[col]))
    most = float(near[row, col])
    stated_share = float((told**2).sum()) / total
    return most, 2 * (most - 9) / counts.size, stated_share, 1 / max(frequency, 1 / counts.size)


def _damped(
    counts: np.ndarray, model: np.ndarray, stated: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return residuals, the error of the model that is stated or let pass, and their variance.

    All are in units of the noise of counts, and less in pixels that are nearly dark.
    """
    damped = 1 / np.sqrt(model + FLOOR)
    told = (np.sqrt(stated) + FLAT_TOLERANCE * model) * damped
    return (counts - model) * damped, told, (model + stated) * damped**2


def tile_map(surprise: dict[int, np.ndarray], valid: np.ndarray, tile_px: int) -> np.ndarray:
    """Return the most extreme deviate of each tile, by the centre of its square."""
    starts = [np.arange(0, n, tile_px) for n in valid.shape]
    worst = np.zeros([len(s) for s in starts])
    for side, values in surprise.items():
        tiles = [(np.arange(n) * step_px(side) + side // 2) // tile_px for n in values.shape]
        firsts = [np.unique(t, return_index=True) for t in tiles]
        for reduce in (np.maximum, np.minimum):
            most = reduce.reduceat(values, firsts[0][1], 0)
            most = reduce.reduceat(most, firsts[1][1], 1)
            at = np.ix_(firsts[0][0], firsts[1][0])
            worst[at] = np.where(np.abs(most) > np.abs(worst[at]), most, worst[at])
    known = np.logical_or.reduceat(np.logical_or.reduceat(valid, starts[0], 0), starts[1], 1)
    return np.where(known, worst, np.nan).astype(np.float32)
