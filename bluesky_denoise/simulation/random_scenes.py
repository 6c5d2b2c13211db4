"""Random expected counts over the whole range that a counting detector meets."""

import numpy as np

from bluesky_denoise.simulation import random_features as features
from bluesky_denoise.simulation.random_backgrounds import random_background

__all__ = ["random_scene"]

MOST_COUNTS = 2e6
"""No expected count of a random scene is above this."""


def random_scene(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    log10_level: tuple[float, float] = (-3.0, 4.0),
) -> np.ndarray:
    """Draw the expected counts of one frame.

    A background (flat, or of slopes, clouds, broad hills, decay from a beam centre) carries any of
    Bragg peaks, streaks, powder rings, fringes, speckle, shadow edges, a beam stop and
    hot pixels, and the columns or rows of a detector that respond a little differently. One
    frame in fifty is empty, one in five has nothing but background. One in five has only
    lines on a smooth background, one in eight only small spots: about as strong as can be
    found, and stronger. One in ten has powder rings around one centre.

    Parameters
    ----------
    shape : (H, W), pixels
    rng : source of everything random
    log10_level : range of the mean background, log10 counts / pixel, drawn uniformly

    Returns
    -------
    numpy.ndarray
        (H, W) float64 expected counts, 0 to `MOST_COUNTS`.
    """
    if rng.random() < 0.02:
        return np.zeros(shape)
    rows, cols = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    kind = rng.random()
    if kind < 0.33:
        low, high = np.clip((-1.0, 2.5) if kind < 0.2 else (-2.0, 2.0), *log10_level)
        scene = random_background(rows, cols, rng)
        scene *= 10.0 ** rng.uniform(low, high) / scene.mean()
        if kind < 0.2:
            scene = features.add_lines(scene, rows, cols, rng)
        else:
            scene = features.add_spots(scene, rng)
        return np.clip(scene, 0, MOST_COUNTS)
    if kind < 0.43:
        scene = features.powder(rows, cols, rng) * 10.0 ** rng.uniform(*log10_level)
        return np.clip(scene, 0, MOST_COUNTS)
    scene = random_background(rows, cols, rng)
    if rng.random() < 0.12:
        scene *= features.striations(shape, rng)
    if rng.random() < 0.33:
        return np.clip(scene * 10.0 ** rng.uniform(*log10_level), 0, MOST_COUNTS)
    if rng.random() < 0.2:
        scene *= features.speckle(shape, rng)
    if rng.random() < 0.2:
        scene *= features.fringes(rows, cols, rng)
    for _ in range(_few(rng, 0.4, 3)):
        scene = scene + features.ring(rows, cols, rng)
    for _ in range(_few(rng, 0.45, 3)):
        scene = scene + features.streak(rows, cols, rng)
    for _ in range(_few(rng, 0.55, 25)):
        scene = scene + features.peak(rows, cols, rng)
    for _ in range(_few(rng, 0.25, 2)):
        scene *= features.shadow(rows, cols, rng)
    scene = scene * 10.0 ** rng.uniform(*log10_level)
    for _ in range(_few(rng, 0.2, 5)):
        scene[rng.integers(shape[0]), rng.integers(shape[1])] = 10.0 ** rng.uniform(1, 6)
    return np.clip(scene, 0, MOST_COUNTS)


def _few(rng: np.random.Generator, chance: float, most: int) -> int:
    """Draw how many of something there are: 0, or with a chance 1 to `most`."""
    return int(rng.integers(1, most + 1)) if rng.random() < chance else 0
