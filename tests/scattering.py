"""Rates of smooth scattering, fringes and speckle, counts per pixel."""

import numpy as np
from skimage.filters import gaussian as blur

SHAPE = (128, 160)


def smooth_scene(level, shape=SHAPE):
    rows, cols = np.mgrid[: shape[0], : shape[1]] / 40.0
    return level * (1 + 0.3 * np.sin(rows) + 0.4 * np.cos(cols))


def fringes(level, period_px, shape=(256, 256)):
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    phase = 2 * np.pi * (cols * np.cos(0.4) + rows * np.sin(0.4)) / period_px
    return level * (1 + 0.95 * np.cos(phase))


def speckle(level, size_px, rng, shape=(256, 256)):
    field = [blur(rng.normal(size=shape), size_px / 2) for _ in range(2)]
    intensity = field[0] ** 2 + field[1] ** 2
    return level * intensity / intensity.mean()
