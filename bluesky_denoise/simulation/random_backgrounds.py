"""Smooth backgrounds, and the draws that all random scenes are made of."""

import numpy as np

__all__ = ["log_uniform", "random_background", "random_centre", "smooth_noise", "turned"]


def random_background(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth background of any scale, seldom flat.

    Networks that were shown flat ones and slopes alone took averages too far over curved ones.
    """
    if rng.random() < 0.15:
        return np.ones(rows.shape)
    kinds = (_slope, _clouds, _decay, _hills)
    scene = kinds[rng.integers(len(kinds))](rows, cols, rng)
    if rng.random() < 0.3:
        scene = scene * kinds[rng.integers(len(kinds))](rows, cols, rng)
    return scene


def _slope(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    along = rows * np.cos(angle) + cols * np.sin(angle)
    return np.exp(log_uniform(rng, 0.1, 6) * along / max(rows.shape))


def _clouds(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.exp(rng.uniform(0.05, 0.8) * smooth_noise(rows.shape, log_uniform(rng, 5, 80), rng))


def _decay(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scattering that falls off from a beam centre, in or beyond the frame."""
    row, col = random_centre(rows, rng, 0.5)
    radius = np.hypot(rows - row, cols - col) / log_uniform(rng, 4, 80)
    decay = (1 + radius**2) ** -rng.uniform(0.3, 2.2)
    peak = log_uniform(rng, 1, 300)
    return peak * decay + 10.0 ** rng.uniform(-2, 0)


def _hills(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Broad humps and hollows, much wider than peaks."""
    scene = np.ones(rows.shape)
    for _ in range(rng.integers(1, 4)):
        row, col = random_centre(rows, rng, 0.2)
        angle = rng.uniform(0, np.pi)
        along, across = turned(rows - row, cols - col, angle)
        length = log_uniform(rng, 15, 200)
        width = max(length * log_uniform(rng, 0.25, 1), 12)
        distance = (along / length) ** 2 + (across / width) ** 2
        scene *= np.exp(rng.uniform(-0.7, 1.2) * np.exp(-distance / 2))
    return scene


def smooth_noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise without frequencies above 1 / sigma, of unit variance."""
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij"))
    spectrum = np.fft.fft2(rng.normal(size=shape)) * np.exp(-2 * (np.pi * sigma * frequency) ** 2)
    field = np.fft.ifft2(spectrum).real
    field -= field.mean()
    return field / max(float(field.std()), 1e-9)


def random_centre(
    rows: np.ndarray, rng: np.random.Generator, beyond: float = 0.0
) -> tuple[float, float]:
    """Draw a place (row, column) in the frame, or up to `beyond` of its sides outside."""
    low, high = -beyond, 1 + beyond
    return rng.uniform(low, high) * rows.shape[0], rng.uniform(low, high) * rows.shape[1]


def turned(rows: np.ndarray, cols: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates along and across a direction, radians from that of the rows."""
    along = rows * np.cos(angle) + cols * np.sin(angle)
    return along, cols * np.cos(angle) - rows * np.sin(angle)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
