"""Poisson statistics of photon counts on arrays: tails, deviance, sums over boxes."""

from functools import reduce

import numpy as np

__all__ = [
    "added_deviance",
    "box_sum",
    "deviance",
    "expected_deviance",
    "integral",
    "square_sums",
    "tail_z",
]

_LOG10 = np.linspace(-8, 3, 441)
FEW_PX = 3
"""Side of squares whose pixels are faster added one by one."""


def tail_z(counts: np.ndarray | float, expected: np.ndarray | float) -> np.ndarray:
    """Say how surprising counts are, in standard deviations of a normal deviate.

    The tail that is turned into a deviate includes the observed count, so that discrete
    counts are not called more surprising than they are. Wilson and Hilferty's cube root is
    used. Up to 6 standard deviations it exceeds the exact tail by 0.02 at most, and errs towards
    no surprise: for more counts than expected by up to 0.1 where 10 or more are expected, 0.3
    from 1 on, 0.7 from 0.1 on and 1.1 from 0.01 on; for fewer by up to 0.1 where 50 or more are
    expected, and below that by up to 0.4, which is for none of 20.

    Parameters
    ----------
    counts : counts, >= 0, any shape
    expected : expected counts, >= 0, same shape

    Returns
    -------
    numpy.ndarray
        float64; positive for more counts than expected. Limited to +-100; 0 where both
        are 0.

    References
    ----------
    Wilson & Hilferty (1931), doi:10.1073/pnas.17.12.684
    """
    counts, expected = np.asarray(counts, np.float64), np.asarray(expected, np.float64)
    above = counts > expected
    degrees = np.where(above, counts, counts + 1)  # Poisson tails are those of chi-square
    least = np.maximum(degrees, 1e-9)
    z = 3 * np.sqrt(degrees) * (1 - 1 / (9 * least) - np.cbrt(expected / least))
    # A tail above one half is no surprise: the sign must not flip.
    z = np.where(above, np.maximum(z, 0), np.minimum(z, 0))
    return np.clip(z, -100, 100)


def deviance(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the Poisson deviance of each pixel, >= 0, float64.

    Parameters
    ----------
    counts : counts, >= 0
    expected : expected counts, > 0 where there are counts; infinite deviance otherwise
    """
    counts = np.asarray(counts, np.float64)
    expected = np.asarray(expected, np.float64)
    counts, expected = np.broadcast_arrays(counts, expected)
    logs = np.zeros(counts.shape)
    hit = counts > 0
    with np.errstate(divide="ignore"):
        logs[hit] = counts[hit] * np.log(counts[hit] / expected[hit])
    return np.maximum(2 * (logs - counts + expected), 0)


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Sum the mean and variance of the deviance over all counts, for a grid of rates."""
    means, variances = [], []
    for rate in 10.0**_LOG10:
        if rate > 150:  # next orders of the expansion are below 1e-5
            means.append(1 + 1 / (6 * rate))
            variances.append(2 + 2 / (3 * rate))
            continue
        counts = np.arange(int(rate + 12 * np.sqrt(rate) + 15))
        log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
        chance = np.exp(counts * np.log(rate) - rate - log_factorial)
        found = deviance(counts, np.full(counts.shape, rate))
        means.append(float(chance @ found))
        variances.append(float(chance @ found**2 - (chance @ found) ** 2))
    return np.array(means), np.array(variances)


_MEAN, _VARIANCE = _table()


def expected_deviance(expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the deviance of a Poisson count with a known mean.

    They tend to 1 and 2 for many counts; at 0.01 counts the mean is 0.092, at 1 it is 1.15.

    Parameters
    ----------
    expected : expected counts, >= 0

    Returns
    -------
    tuple of numpy.ndarray
        Mean and variance, float64; 0 where nothing is expected.
    """
    expected = np.asarray(expected, np.float64)
    place = (np.log10(np.maximum(expected, 1e-12)) - _LOG10[0]) / (_LOG10[1] - _LOG10[0])
    place = np.clip(place, 0, len(_LOG10) - 1.001)
    index = place.astype(np.intp)
    place -= index
    mean = _MEAN[index] + place * (_MEAN[index + 1] - _MEAN[index])
    variance = _VARIANCE[index] + place * (_VARIANCE[index + 1] - _VARIANCE[index])
    dark = expected < 10.0 ** _LOG10[0]
    return np.where(dark, 0, mean), np.where(dark, 0, variance)


def added_deviance(expected: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return what the noise of an estimate adds to the deviance of independent counts.

    To second order that is ``variance / expected`` for many counts, and twice as much for
    few, since :func:`expected_deviance` is taken at the estimate and curved. The next order
    matters where an estimate is as noisy as a single count of few photons.

    Parameters
    ----------
    expected : the estimate, counts, >= 0
    variance : of the estimate, counts squared, >= 0, same shape; what is above the Poisson
        variance of so many counts is not believed

    Returns
    -------
    numpy.ndarray
        float64; at most twice the photons' own deviance, so that no error bar excuses all.
    """
    level = np.maximum(np.asarray(expected, np.float64), 1e-9)
    share = np.minimum(np.asarray(variance, np.float64) / level, 1)
    added = share * (1 + np.exp(-level)) * (1 + 1.5 * share / level)
    return np.minimum(added, 2 * expected_deviance(level)[0])


def integral(image: np.ndarray) -> np.ndarray:
    """Sum over all pixels above and left of each corner: (H, W) -> (H + 1, W + 1), float64."""
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    total[1:, 1:] = image
    for axis in (0, 1):
        np.cumsum(total, axis=axis, out=total)
    return total


def square_sums(total: np.ndarray, side_px: int, step_px: int = 1) -> np.ndarray:
    """Sum over squares, from an `integral`, at every ``step_px`` along both axes.

    Returns
    -------
    numpy.ndarray
        ((H - s) // step + 1, (W - s) // step + 1) float64.
    """
    tops, ends = total[:-side_px:step_px], total[side_px::step_px]
    strips = ends - tops
    return strips[:, side_px::step_px] - strips[:, :-side_px:step_px]


def box_sum(image: np.ndarray, side_px: int) -> np.ndarray:
    """Sum over every square of ``side_px`` pixels: (H, W) -> (H - s + 1, W - s + 1), float64."""
    if side_px > FEW_PX:
        return square_sums(integral(image), side_px)
    height, width = (size - side_px + 1 for size in image.shape)
    image = np.asarray(image, np.float64)
    strips: np.ndarray = reduce(np.add, (image[i : i + height] for i in range(side_px)))
    return reduce(np.add, (strips[:, i : i + width] for i in range(side_px)))
