"""Checks of a raw frame alone: photons or not."""

from math import comb

import numpy as np

from bluesky_denoise.photons.blocks import Blocks
from bluesky_denoise.photons.poisson import box_sum

__all__ = [
    "chessboard_noise",
    "fano_factor",
    "favoured_count",
    "looks_poisson",
    "neighbour_correlation",
    "no_counts",
    "scatters_otherwise",
    "unmasked",
]

BLOCK_PX = 16
LEAST_SQUARES = 190
"""Squares of 3 x 3 pixels that it needs."""
MOST_SPOTS = 0.35
"""Share of the pixels that sharp spots may have, to be left out."""
LEAST_COUNTS = 400
"""Photons that a Fano factor needs: they tell it to 10 % or so."""
POISSON_FANO = (0.6, 1.85)
"""Fano factors that pass for photons: charge sharing lowers it, sharp rings raise it."""
CLEAR_COUNTS = 60
"""Counts of a block that tells something alone."""
LEAST_BLOCKS = 100
"""Blocks that the noise of neighbours is told from."""
LEAST_CORRELATION = -0.08
"""Correlation of neighbours that passes for photons; screens that spread light have less, and so
has fine structure."""
CHESSBOARD_ORDER = 6
"""Differences along each axis that leave little but a chessboard of an image."""
LEAST_CHESSBOARD = 0.95
"""Noise in that pattern, over that of photons, from which on what looks like shared noise is
taken for fine structure: light that spreads has less, photons of any scene 1 or more."""
MOST_COUNTS = 500
"""Counts whose frequencies are looked at: electronics correct the rate of brighter pixels."""
FAVOURED = 0.25
"""Excess of a count over its neighbours, as a logarithm, that is no fault of counting: lost or
paired photons make 0.06."""
SURE_Z = 6.0
"""Standard deviations of that excess."""
SHOWING = 200
"""Pixels that hold a number, from which a gap beside it begins to show."""
MOST_FAVOURED = 0.2
"""Share of the numbers that may break the law: a gap is between two, so that one number in ten is
lost, and the noise wrong by 10 %."""


def fano_factor(counts: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Estimate variance / mean of one frame from local differences.

    The second difference along both axes is blind to any surface that is a straight line
    along rows or columns. Its square, by blocks of 16 x 16 pixels, is compared with the
    mean; pixels far above the level of most blocks, if they are few, are left out, and the median
    over the dimmer half of the blocks forgives wider peaks.

    Limits: structure that is sharp everywhere (speckle, rings over the whole frame) raises the
    result, by about mean * (relative curvature per pixel)^2; charge that is shared between pixels
    lowers it. Compare repeated frames where either matters.

    Parameters
    ----------
    counts : (H, W) counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    float
        1 for photons; NaN with fewer than 400 counts, or 190 squares of 3 x 3 valid pixels, to
        tell from.
    """
    values, valid = unmasked(np.asarray(counts, np.float64), mask)
    if min(values.shape) < 3:
        return float("nan")
    known = box_sum(valid & ~_spots(values, valid), 3) == 9
    rows = values[:-2] - 2 * values[1:-1] + values[2:]
    squared = (rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]) ** 2 / 36
    mean = box_sum(values, 3) / 9
    above = _blocks(squared * known).ravel()
    below = _blocks(mean * known).ravel()
    # Squares that overlap tell less than their number says.
    if float(np.abs(below).sum()) < LEAST_COUNTS or known.sum() < LEAST_SQUARES:
        return float("nan")
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
    dimmer = _dimmer(below, CLEAR_COUNTS, 20)
    if dimmer is not None:
        return float(np.median(ratio[dimmer]))
    # Few counts: blocks are pooled, without bright ones and the tenth that scatters most.
    dim = np.flatnonzero((below > 0) & (below <= 5 * np.median(below[below > 0])))
    kept = dim[np.argsort(ratio[dim])][: max(1, int(0.9 * len(dim)))]
    level = float(below[kept].sum())
    return float(above[kept].sum() / level) if level > LEAST_COUNTS / 2 else float("nan")


def _spots(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mark pixels far above the level of most blocks, with those around them.

    Single pixels are not, and none where they are many: single photons with a gain look so.
    """
    pixels, total = _blocks(valid.astype(np.float64)), _blocks(values * valid)
    if not pixels.any():
        return np.zeros_like(valid)
    level = max(float(np.median(total[pixels > 0] / pixels[pixels > 0])), 0.0)
    far = (values > level + 5 * np.sqrt(level) + 5) & valid
    beside = np.zeros_like(far)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        beside[one] |= far[other]
        beside[other] |= far[one]
    marked = box_sum(np.pad(far & beside, 2), 5) > 0
    few = (marked & valid).sum() <= MOST_SPOTS * valid.sum()
    return marked if few else np.zeros_like(marked)


def neighbour_correlation(counts: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Estimate how far the noise of neighbouring pixels is correlated, from one frame.

    Differences over 2 x 2 pixels, two columns apart, share no pixel: independent noise makes
    them uncorrelated. Light that spreads over neighbours makes their correlation negative.
    As in `fano_factor`, bright pixels are left out if they are few, and the median over the dimmer
    half of the blocks forgives structure.

    Parameters
    ----------
    counts : (H, W) counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    float
        0 for photons, to 0.02 or so; NaN with fewer than 100 blocks of 16 x 16 pixels that
        have 60 counts each.
    """
    values, valid = unmasked(np.asarray(counts, np.float64), mask)
    if min(values.shape) < BLOCK_PX:
        return float("nan")
    valid = valid & ~_spots(values, valid)
    pairs, known = values[1:] + values[:-1], valid[1:] & valid[:-1]
    steps, known = values[1:] - values[:-1], known[:, 1:] & known[:, :-1]
    twist = (steps[:, 1:] - steps[:, :-1]) * known
    total = (pairs[:, 1:] + pairs[:, :-1]) * known
    parts = total[:, :-2], twist[:, :-2] ** 2, twist[:, :-2] * twist[:, 2:]
    level, own, lagged = (_blocks(part).ravel() for part in parts)
    dimmer = _dimmer(level, 4 * CLEAR_COUNTS)  # each count is in four differences
    if dimmer is None:
        return float("nan")
    variance = float(np.median(own[dimmer] / level[dimmer]))
    return float(np.median(lagged[dimmer] / level[dimmer])) / variance if variance else float("nan")


def chessboard_noise(counts: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    """Compare the noise in the finest pattern there is, a chessboard, with that of photons.

    Differences of sixth order along both axes see it, and hardly anything coarser than two pixels.
    Photons make their square, on average, the counts times the squares of the weights, or more:
    structure can only add to it, whatever the scene. Light that spreads over neighbours, as in a
    screen, washes the pattern out.

    Parameters
    ----------
    counts : (H, W) counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    tuple of float
        1 or more for photons, over the dimmer half of the blocks, and its standard error; NaN with
        fewer than 100 blocks of 16 x 16 pixels that have 60 counts each.
    """
    values, valid = unmasked(np.asarray(counts, np.float64), mask)
    side = CHESSBOARD_ORDER + 1
    if min(values.shape) < side:
        return float("nan"), float("nan")
    weights = np.array([comb(CHESSBOARD_ORDER, k) for k in range(side)], np.float64)
    pattern, photons = values, values
    for _ in range(2):  # along one axis, then, transposed, along the other
        pattern = _along_rows(pattern, weights * (-1) ** np.arange(side)).T
        photons = _along_rows(photons, weights**2).T
    known = box_sum(valid, side) == side**2
    found, level = _blocks(pattern**2 * known).ravel(), _blocks(photons * known).ravel()
    dimmer = _dimmer(level, CLEAR_COUNTS * (weights**2).sum() ** 2)
    if dimmer is None:
        return float("nan"), float("nan")
    # Sums, not the median over blocks: that is low where few bright pixels make the noise.
    total = float(level[dimmer].sum())
    ratio = float(found[dimmer].sum()) / total
    spread = np.sqrt(((found[dimmer] - ratio * level[dimmer]) ** 2).sum())
    return ratio, float(spread) / total


def _along_rows(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlate each row with weights, where they fit in: (H, W) -> (H, W - len + 1)."""
    width = image.shape[1] - len(weights) + 1
    return sum(weight * image[:, i : i + width] for i, weight in enumerate(weights))


def favoured_count(counts: np.ndarray, mask: np.ndarray | None = None) -> int | None:
    """Find a number of counts that comes up more often than any scene of photons allows.

    Times v!, the frequency of v counts is a moment of how bright the pixels are, whatever the
    scene; by Cauchy's inequality, p(v)^2 <= (1 + 1 / v) p(v - 1) p(v + 1). A gain that is no
    integer, rounded, leaves gaps in the counts, or has two numbers of photons share one: it
    breaks this law even if variance and mean agree. Noise of half a count beside it hides that.

    Detectors that correct their count rate for dead time, and round, leave a gap here and there:
    the first one at sqrt(T / 2 tau) counts, for an exposure T and a dead time tau, then more. As
    long as they lose fewer than one number in ten, the noise is that of photons within 10 %.

    Parameters
    ----------
    counts : (H, W) integer counts, >= 0
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    int or None
        None where all agrees with photons, too few pixels have counts, or few numbers are favoured:
        gains of 0.9 to 1.1 mostly pass, those of 0.8 and 1.2 do not.
    """
    counts = np.asarray(counts)
    values = _of_valid(counts, mask)
    pixels = np.bincount(values[values <= MOST_COUNTS].astype(np.int64), minlength=3)
    here, below, above = pixels[1:-1], pixels[:-2] + 1, pixels[2:] + 1
    some = np.maximum(here, 1)
    allowed = np.log1p(1 / np.arange(1, len(here) + 1)) + np.log(below) + np.log(above)
    excess = 2 * np.log(some) - allowed
    z = excess / np.sqrt(4 / some + 1 / below + 1 / above)
    breaks = (excess > FAVOURED) & (z > SURE_Z)
    if breaks.sum() <= MOST_FAVOURED * (breaks | (here > SHOWING)).sum():
        return None
    return int(np.where(breaks, z, -np.inf).argmax()) + 1


def looks_poisson(counts: np.ndarray, mask: np.ndarray | None = None) -> str:
    """Say why counts cannot be photons: '' if they can.

    Parameters
    ----------
    counts : (H, W) raw counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    str
        What `no_counts` says, or else what `scatters_otherwise` does.
    """
    return no_counts(counts, mask) or scatters_otherwise(counts, mask)


def no_counts(counts: np.ndarray, mask: np.ndarray | None = None) -> str:
    """Say why numbers cannot be counts of photons, whatever their scatter: '' if they can.

    Parameters
    ----------
    counts : (H, W) raw counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    str
        Counts are no integers, negative, multiples of a gain, or of some numbers more often than
        photons (`favoured_count`).
    """
    counts = np.asarray(counts)
    values = _of_valid(counts, mask)
    if values.size == 0:
        return ""
    least = float(values.min())
    if least < 0:
        return f"counts are negative (least {least:g}): an integrating detector, or a correction"
    if counts.dtype.kind == "f" and not (values == np.rint(values)).all():
        return "counts are no integers: an integrating detector, or a correction"
    found = np.unique(values.astype(np.int64))
    step = int(np.gcd.reduce(found)) if found.size > 2 else 1
    if step > 1:
        return f"all counts are multiples of {step}: a gain, not photons"
    favoured = favoured_count(counts, mask)
    if favoured is not None:
        near = [int((values == favoured + step).sum()) for step in (0, -1, 1)]
        return (
            f"{near[0]} pixels hold {favoured} counts, but only {near[1]} hold {favoured - 1} and "
            f"{near[2]} hold {favoured + 1}: a gain, not photons"
        )
    return ""


def scatters_otherwise(counts: np.ndarray, mask: np.ndarray | None = None) -> str:
    """Say how counts scatter unlike photons: '' if they do not.

    Parameters
    ----------
    counts : (H, W) raw counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    str
        Counts scatter by much more or less than photons (`fano_factor`, its limits hold here too),
        or not independently in neighbouring pixels (`neighbour_correlation`, unless
        `chessboard_noise` allows for photons of a scene that is as fine).
    """
    fano = fano_factor(counts, mask)
    if np.isfinite(fano) and not POISSON_FANO[0] < fano < POISSON_FANO[1]:
        reason = f"counts scatter unlike photons (variance / mean {fano:.3g}, expected 1)"
        if fano < 1:
            return f"{reason}: a pedestal, a gain, or light that spreads over neighbours"
        return (
            f"{reason}: a gain, an uneven response (flat field), or structure of one or two "
            "pixels, such as speckle or fringes"
        )
    shared = neighbour_correlation(counts, mask)
    if np.isfinite(shared) and shared < LEAST_CORRELATION:
        chessboard, error = chessboard_noise(counts, mask)
        if not chessboard + 3 * error > LEAST_CHESSBOARD:
            return f"neighbouring pixels share their noise (correlation {shared:.2f}, expected 0)"
    return ""


def _dimmer(level: np.ndarray, clear: float, least: int = LEAST_BLOCKS) -> np.ndarray | None:
    """Return the dimmer half of the blocks that tell something alone; None if these are few.

    Structure adds in proportion to the mean, so that the dimmer half is the fairer judge.
    """
    told = np.flatnonzero(level > clear)
    return told[level[told] <= np.median(level[told])] if len(told) >= least else None


def _of_valid(counts: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return the counts that are not masked, (N,) or (H, W)."""
    return counts if mask is None else counts[np.asarray(mask) == 0]


def unmasked(counts: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts, 0 where masked, and which pixels are not."""
    valid = np.ones(counts.shape, bool) if mask is None else np.asarray(mask) == 0
    return np.where(valid, counts, 0), valid


def _blocks(image: np.ndarray) -> np.ndarray:
    """Sum over blocks of 16 x 16 pixels."""
    return Blocks(image.shape, BLOCK_PX).sums(image)
