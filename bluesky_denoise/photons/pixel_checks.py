"""Checks of a raw frame alone: pixels that count alone, areas that do not count."""

import numpy as np

from bluesky_denoise.photons.photon_checks import unmasked
from bluesky_denoise.photons.poisson import box_sum, integral, square_sums

__all__ = ["dead_areas", "hot_pixels"]

DEAD_PX = (16, 32)
"""Sides of the squares that are looked at for missing counts."""
HOT_COUNTS = 50
"""A pixel with fewer counts above its neighbours is not called hot."""


def hot_pixels(counts: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Find pixels that count alone.

    A pixel is hot if it exceeds its neighbours by 50 counts, and four times their mean by 10
    standard deviations, and the four next to it share less than 3 % of what it has above them.
    A spot within one pixel, with nothing at its sides, cannot be told from it in one frame.

    Parameters
    ----------
    counts : (H, W) counts
    mask : (H, W) bool, True where a pixel is invalid

    Returns
    -------
    numpy.ndarray
        (n, 2) rows and columns.
    """
    values, valid = unmasked(np.asarray(counts, np.float64), mask)
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
    values, valid = unmasked(counts, mask)
    # Across the gaps between modules a dead one ends as sharply.
    lines = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    values, valid = values[np.ix_(*lines)], valid[np.ix_(*lines)]
    images = integral(values), integral(valid)
    sides = [side for side in DEAD_PX if side <= min(values.shape)]
    sums = {side: [square_sums(image, side) for image in images] for side in sides}
    if not any(((total == 0) & (known == side**2)).any() for side, (total, known) in sums.items()):
        return np.empty((0, 3), dtype=np.int64)
    found = []
    for turn in range(4):
        image = np.rot90(values, turn)
        for side, (total, known) in sums.items():
            at = _sharp_left_edge(image, np.rot90(total, turn), np.rot90(known, turn), side)
            if at is not None:
                corners = np.zeros(image.shape, bool)
                corners[at[0] : at[0] + side, at[1] : at[1] + side] = True
                rows, cols = np.nonzero(np.rot90(corners, -turn))
                found.append((lines[0][rows.min()], lines[1][cols.min()], side))
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _sharp_left_edge(
    image: np.ndarray, total: np.ndarray, known: np.ndarray, side: int
) -> tuple[int, int] | None:
    """Find a dark square with a lit one at its right.

    Parameters
    ----------
    image : (H, W) counts
    total, known : (H - side + 1, W - side + 1) counts, and valid pixels, of each square
    side : of a square, pixels
    """
    if image.shape[1] < 2 * side:
        return None
    mostly = known > 0.9 * side**2
    dark = (total[:, :-side] == 0) & mostly[:, :-side]
    dark &= (total[:, side:] >= 64) & mostly[:, side:]
    dark[:, :-1] &= total[:, 1:-side] > 0  # the last dark one before the light
    half = side // 2
    for row, col in np.argwhere(dark)[:: max(1, int(dark.sum()) // 2000)]:
        lit = image[row : row + side, col + side : col + 2 * side]
        quarters = lit.reshape(2, half, 2, half).sum(axis=(1, 3))
        if quarters.min() >= 6 and lit[:, :2].mean() >= 0.6 * lit.mean():
            return int(row), int(col)
    return None


def _spikes(values: np.ndarray) -> np.ndarray:
    """Mark pixels with 50 counts that exceed 4 times their neighbours' mean by its noise."""
    padded = np.pad(values, 1, mode="reflect")
    near = box_sum(padded, 3) - values
    return (values >= HOT_COUNTS) & (values > 0.5 * near + 10 * np.sqrt(near / 8))


def _inside(pixel: tuple[int, int], shape: tuple[int, ...]) -> bool:
    return 0 <= pixel[0] < shape[0] and 0 <= pixel[1] < shape[1]
