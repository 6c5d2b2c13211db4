"""Checks of a raw frame alone: photons or not, hot pixels, dead areas."""

import numpy as np

from bluesky_denoise.poisson import box_sum

__all__ = [
    "dead_areas",
    "fano_factor",
    "hot_pixels",
    "looks_poisson",
    "neighbour_correlation",
]

BLOCK_PX = 16
LEAST_COUNTS = 400
"""Photons that a Fano factor needs: they tell it to 10 % or so."""
POISSON_FANO = (0.6, 1.85)
"""Fano factors that pass for photons: charge sharing lowers it, sharp rings raise it."""
LEAST_CORRELATION = -0.08
"""Correlation of neighbours that passes for photons; screens that spread light have less."""
DEAD_PX = (16, 32)
"""Sides of the squares that are looked at for missing counts."""
HOT_COUNTS = 50
"""A pixel with fewer counts above its neighbours is not called hot."""


def fano_factor(counts: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Estimate variance / mean of one frame from local differences.

    The second difference along both axes is blind to any surface that is a straight line
    along rows or columns. Its square, by blocks of 16 x 16 pixels, is compared with the
    mean; the median over the dimmer half of the blocks forgives sharp peaks
    and hot pixels.

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
        1 for photons; NaN with fewer than 400 counts to tell from.
    """
    values, valid = _valid(np.asarray(counts, np.float64), mask)
    if min(values.shape) < 3:
        return float("nan")
    known = box_sum(valid, 3) == 9
    rows = values[:-2] - 2 * values[1:-1] + values[2:]
    squared = (rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]) ** 2 / 36
    mean = box_sum(values, 3) / 9
    above = _blocks(squared * known).ravel()
    below = _blocks(mean * known).ravel()
    total = float(np.abs(below).sum())
    if total < LEAST_COUNTS:
        return float("nan")
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
    clear = np.flatnonzero(below > 60)  # blocks that tell something alone
    if len(clear) >= 20:
        # Structure adds in proportion to the mean: the dimmer half is the fairer judge.
        dimmer = clear[below[clear] <= np.median(below[clear])]
        return float(np.median(ratio[dimmer]))
    # Few counts: blocks are pooled, without bright ones and the tenth that scatters most.
    dim = np.flatnonzero((below > 0) & (below <= 5 * np.median(below[below > 0])))
    kept = dim[np.argsort(ratio[dim])][: max(1, int(0.9 * len(dim)))]
    level = float(below[kept].sum())
    return float(above[kept].sum() / level) if level > LEAST_COUNTS / 2 else float("nan")


def neighbour_correlation(counts: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Estimate how far the noise of neighbouring pixels is correlated, from one frame.

    Differences over 2 x 2 pixels, two columns apart, share no pixel: independent noise makes
    them uncorrelated. Light that spreads over neighbours makes their correlation negative.
    As in `fano_factor`, the median over the dimmer half of the blocks forgives structure.

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
    values, valid = _valid(np.asarray(counts, np.float64), mask)
    if min(values.shape) < BLOCK_PX:
        return float("nan")
    pairs, known = values[1:] + values[:-1], valid[1:] & valid[:-1]
    steps, known = values[1:] - values[:-1], known[:, 1:] & known[:, :-1]
    twist = (steps[:, 1:] - steps[:, :-1]) * known
    total = (pairs[:, 1:] + pairs[:, :-1]) * known
    parts = total[:, :-2], twist[:, :-2] ** 2, twist[:, :-2] * twist[:, 2:]
    level, own, lagged = (_blocks(part).ravel() for part in parts)
    clear = np.flatnonzero(level > 4 * 60)  # each count is in four differences
    if len(clear) < 100:
        return float("nan")
    dimmer = clear[level[clear] <= np.median(level[clear])]
    variance = float(np.median(own[dimmer] / level[dimmer]))
    return float(np.median(lagged[dimmer] / level[dimmer])) / variance if variance else float("nan")


def looks_poisson(counts: np.ndarray, mask: np.ndarray | None = None) -> str:
    """Say why counts cannot be photons: '' if they can.

    Parameters
    ----------
    counts : (H, W) raw counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    str
        Counts are no integers, negative, multiples of a gain, scatter by much more or less
        than photons (`fano_factor`, its limits hold here too), or not independently in
        neighbouring pixels (`neighbour_correlation`).
    """
    counts = np.asarray(counts)
    values = counts if mask is None else counts[np.asarray(mask) == 0]
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
    fano = fano_factor(counts, mask)
    if np.isfinite(fano) and not POISSON_FANO[0] < fano < POISSON_FANO[1]:
        return f"counts scatter unlike photons (variance / mean {fano:.3g}, expected 1)"
    shared = neighbour_correlation(counts, mask)
    if np.isfinite(shared) and shared < LEAST_CORRELATION:
        return f"neighbouring pixels share their noise (correlation {shared:.2f}, expected 0)"
    return ""


def hot_pixels(counts: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Find pixels that count alone.

    A pixel is hot if it exceeds its neighbours by 50 counts and 10 standard deviations,
    and the four next to it share less than 3 % of that. A spot within one pixel, with
    nothing at its sides, cannot be told from it in one frame.

    Parameters
    ----------
    counts : (H, W) counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    numpy.ndarray
        (n, 2) rows and columns.
    """
    values, valid = _valid(np.asarray(counts, np.float64), mask)
    found = []
    candidates = np.argwhere(_spikes(values))
    for row, col in candidates[:1000]:
        near = [(row + r, col + c) for r, c in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        near = [p for p in near if _inside(p, counts.shape) and valid[p]]
        top, left = max(row - 3, 0), max(col - 3, 0)
        ring = np.s_[top : row + 4, left : col + 4]
        far = valid[ring].copy()
        far[max(row - 1 - top, 0) : row + 2 - top, max(col - 1 - left, 0) : col + 2 - left] = False
        if len(near) < 2 or not far.any():
            continue
        middle = float(np.median(values[ring][far]))
        level = float(np.minimum(values[ring][far], middle + 5 * np.sqrt(middle + 1)).mean())
        height = values[row, col] - level
        sides = sum(values[p] for p in near) - len(near) * level
        if height > max(HOT_COUNTS, 10 * np.sqrt(level)) and (
            sides < 0.03 * height + 2 * np.sqrt(len(near) * level + 1)
        ):
            found.append((row, col))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def dead_areas(counts: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Find squares without a single count that end sharply at an evenly lit neighbour.

    A dead module looks so, and so does a beam stop or a shadow that no mask covers. The
    neighbour has 64 counts at least, 6 in each quarter, and its first two lines have 0.6 of its
    mean: the horizon of a sample or a slit is not as sharp as that, most of the time.

    Parameters
    ----------
    counts : (H, W) counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    numpy.ndarray
        (n, 3) first row, first column and side of up to one square for each size and direction.
    """
    values, valid = _valid(counts, mask)
    found = []
    least = min(DEAD_PX)
    if min(values.shape) < least or not (box_sum(values + ~valid, least) == 0).any():
        return np.empty((0, 3), dtype=np.int64)
    for turn in range(4):
        image, good = np.rot90(values, turn), np.rot90(valid, turn)
        for side in DEAD_PX:
            at = _sharp_left_edge(image, good, side)
            if at is not None:
                corners = np.zeros(image.shape, bool)
                corners[at[0] : at[0] + side, at[1] : at[1] + side] = True
                rows, cols = np.nonzero(np.rot90(corners, -turn))
                found.append((rows.min(), cols.min(), side))
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _sharp_left_edge(image: np.ndarray, good: np.ndarray, side: int) -> tuple[int, int] | None:
    """Find a dark square with a lit one at its right."""
    if image.shape[0] < side or image.shape[1] < 2 * side:
        return None
    total, known = box_sum(image, side), box_sum(good, side)
    dark = (total[:, :-side] == 0) & (known[:, :-side] > 0.9 * side**2)
    dark &= (total[:, side:] >= 64) & (known[:, side:] > 0.9 * side**2)
    half = side // 2
    for row, col in np.argwhere(dark)[:: max(1, int(dark.sum()) // 2000)]:
        lit = image[row : row + side, col + side : col + 2 * side]
        quarters = lit.reshape(2, half, 2, half).sum(axis=(1, 3))
        if quarters.min() >= 6 and lit[:, :2].mean() >= 0.6 * lit.mean():
            return int(row), int(col)
    return None


def _valid(counts: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts, 0 where masked, and which pixels are not."""
    valid = np.ones(counts.shape, bool) if mask is None else np.asarray(mask) == 0
    return np.where(valid, counts, 0), valid


def _spikes(values: np.ndarray) -> np.ndarray:
    """Mark pixels with 50 counts or more that are 5 times their neighbours' mean."""
    padded = np.pad(values, 1, mode="reflect")
    near = box_sum(padded, 3) - values
    return (values >= HOT_COUNTS) & (values > 0.5 * near + 10 * np.sqrt(near / 8))


def _inside(pixel: tuple[int, int], shape: tuple[int, ...]) -> bool:
    return 0 <= pixel[0] < shape[0] and 0 <= pixel[1] < shape[1]


def _blocks(image: np.ndarray) -> np.ndarray:
    """Sum over blocks, the incomplete ones too: (H, W) -> (ceil(H / 16), ceil(W / 16))."""
    for axis in (0, 1):
        image = np.add.reduceat(image, np.arange(0, image.shape[axis], BLOCK_PX), axis=axis)
    return image
