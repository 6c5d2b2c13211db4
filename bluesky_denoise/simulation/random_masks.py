"""Invalid pixels as detectors have them: masked ones, and dead ones that nobody has masked."""

import numpy as np

__all__ = ["random_dead", "random_mask"]


def random_mask(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw invalid pixels: module gaps, dead modules, dead pixels, or none.

    Returns
    -------
    numpy.ndarray
        (H, W) bool, True where invalid.
    """
    mask = np.zeros(shape, dtype=bool)
    if rng.random() < 0.5:
        return mask
    for axis in (0, 1):
        if rng.random() < 0.4:
            start = rng.integers(shape[axis])
            width = int(rng.integers(1, 20))
            np.moveaxis(mask, axis, 0)[start : start + width] = True
    if rng.random() < 0.15:
        row, col = rng.integers(shape[0]), rng.integers(shape[1])
        mask[row : row + shape[0] // 3, col : col + shape[1] // 3] = True
    if rng.random() < 0.6:
        mask |= rng.random(shape) < 10.0 ** rng.uniform(-4, -1.5)
    return mask


def random_dead(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw pixels that count nothing and that nobody has masked: (H, W) bool, True where dead."""
    dead = np.zeros(shape, dtype=bool)
    if rng.random() < 0.5:
        axis = int(rng.integers(2))
        start, width = rng.integers(shape[axis]), int(rng.integers(1, 4))
        np.moveaxis(dead, axis, 0)[start : start + width] = True
    else:
        dead |= rng.random(shape) < 10.0 ** rng.uniform(-4, -2)
    return dead
