"""What a scene may hold: peaks, spots, lines, rings, fringes, speckle, shadows."""

import numpy as np

from bluesky_denoise.simulation.random_backgrounds import (
    log_uniform,
    random_background,
    random_centre,
    smooth_noise,
    turned,
)

__all__ = [
    "add_lines",
    "add_spots",
    "fringes",
    "peak",
    "powder",
    "ring",
    "shadow",
    "speckle",
    "streak",
    "striations",
]


def peak(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a Bragg peak, Gaussian or with diffuse tails, over a background of about 1."""
    row, col = random_centre(rows, rng)
    angle = rng.uniform(0, np.pi)
    sigma = log_uniform(rng, 0.4, 10)
    other = sigma * log_uniform(rng, 0.5, 2)
    along, across = turned(rows - row, cols - col, angle)
    distance = (along / sigma) ** 2 + (across / max(other, 0.35)) ** 2
    height = log_uniform(rng, 0.1, 30) if rng.random() < 0.6 else log_uniform(rng, 10, 1e4)
    # Diffuse tails as often as none.
    profile = np.exp(-distance / 2) if rng.random() < 0.6 else (1 + distance) ** -1.5
    return height * profile


def streak(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a streak, most often along rows or columns."""
    row, col = random_centre(rows, rng)
    upright = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.02) * (rng.random() < 0.5)
    angle = upright if rng.random() < 0.65 else rng.uniform(0, np.pi)
    along, across = turned(rows - row, cols - col, angle)
    width = log_uniform(rng, 0.4, 8)
    length = log_uniform(rng, 10, 400)
    height = log_uniform(rng, 0.05, 5) if rng.random() < 0.6 else log_uniform(rng, 1, 1e3)
    profile = np.exp(-0.5 * (across / width) ** 2) + 0.1 / (1 + (across / width) ** 2)
    return height * profile * np.exp(-0.5 * (along / length) ** 2)


def add_lines(
    scene: np.ndarray, rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Add lines of 3 to 150 standard deviations, some with a broad foot."""
    background = np.maximum(scene, 1e-3)
    for _ in range(rng.integers(1, 5)):
        row, col = random_centre(rows, rng)
        upright = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.02) * (rng.random() < 0.3)
        angle = upright if rng.random() < 0.8 else rng.uniform(0, np.pi)
        along, across = turned(rows - row, cols - col, angle)
        width = log_uniform(rng, 0.4, 6)
        profile = np.exp(-0.5 * (across / width) ** 2)
        if rng.random() < 0.3:
            foot = width * rng.uniform(2, 5)
            profile += rng.uniform(0.1, 1) * np.exp(-0.5 * (across / foot) ** 2)
        profile *= np.exp(-0.5 * (along / log_uniform(rng, 20, 600)) ** 2)
        # What a matched filter would find has this significance.
        height = log_uniform(rng, 3, 150) / np.sqrt((profile**2 / background).sum())
        scene = scene + height * profile
    return scene


def add_spots(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add spots of 1 to 4 pixels and 2 to 150 standard deviations."""
    scene = scene.copy()
    for _ in range(rng.integers(1, 60)):
        row, col = (rng.integers(size) for size in scene.shape)
        top, left = max(row - 7, 0), max(col - 7, 0)
        patch = scene[top : row + 8, left : col + 8]
        shift = rng.uniform(-0.5, 0.5, 2)
        rows, cols = np.mgrid[top : top + patch.shape[0], left : left + patch.shape[1]]
        sigma = log_uniform(rng, 0.3, 1.7)
        distance = (rows - row - shift[0]) ** 2 + (cols - col - shift[1]) ** 2
        profile = np.exp(-0.5 * distance / sigma**2)
        profile /= profile.sum()
        # Counts whose own noise and that of the background make them so significant.
        square = log_uniform(rng, 2, 150) ** 2
        below = scene[row, col] * 4 * np.pi * (sigma**2 + 0.1)
        patch += (square / 2 + np.sqrt(square**2 / 4 + square * below)) * profile
    return scene


def ring(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a powder ring, or an arc of one."""
    centre, stretch = random_centre(rows, rng, 2.0), log_uniform(rng, 0.8, 1.25)
    radius = _radius(rows, cols, centre, stretch)
    ring = _ring_profile(radius, log_uniform(rng, 0.6, 10), rng)
    if rng.random() < 0.3:  # texture: grains along the ring
        ring *= np.exp(0.7 * smooth_noise(rows.shape, log_uniform(rng, 1, 15), rng))
    return log_uniform(rng, 0.05, 100) * ring


def powder(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rings of about one width around one centre, over a smooth background."""
    centre, stretch = random_centre(rows, rng, 1.5), log_uniform(rng, 0.9, 1.1)
    radius = _radius(rows, cols, centre, stretch)
    scene = random_background(rows, cols, rng)
    scene /= scene.mean()
    width, top = log_uniform(rng, 0.5, 6), log_uniform(rng, 0.3, 100)
    for _ in range(rng.integers(1, 9)):
        sharp = width * log_uniform(rng, 0.7, 1.5)
        scene += top * log_uniform(rng, 0.03, 1) * _ring_profile(radius, sharp, rng)
    if rng.random() < 0.2:  # preferred orientation
        angle = np.arctan2(rows - centre[0], cols - centre[1])
        scene *= 1 + rng.uniform(0.1, 0.9) * np.cos(2 * angle + rng.uniform(0, 6.3))
    return scene


def _radius(
    rows: np.ndarray, cols: np.ndarray, centre: tuple[float, float], stretch: float
) -> np.ndarray:
    return np.hypot(rows - centre[0], stretch * (cols - centre[1]))


def _ring_profile(radius: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian or Lorentzian ring through a random pixel of the frame, height 1."""
    at = radius[rng.integers(radius.shape[0]), rng.integers(radius.shape[1])]
    square = ((radius - at) / width) ** 2
    return np.exp(-0.5 * square) if rng.random() < 0.7 else 1 / (1 + square)


def striations(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Response of columns or rows that differs a little, about 1."""
    axis = int(rng.integers(2))
    sigma = log_uniform(rng, 0.3, 4)
    taps = np.exp(-0.5 * (np.arange(-16, 17) / sigma) ** 2)
    taps /= np.sqrt((taps**2).sum())
    found = np.convolve(rng.normal(size=shape[axis] + 32), taps, mode="valid")
    response = np.exp(log_uniform(rng, 0.005, 0.15) * found)
    return np.expand_dims(response, 1 - axis)


def fringes(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a factor of straight or round fringes, about 1."""
    row, col = random_centre(rows, rng, 1.0)
    period = log_uniform(rng, 3, 50)
    if rng.random() < 0.5:
        phase = np.hypot(rows - row, cols - col)
    else:
        angle = rng.uniform(0, np.pi)
        phase = rows * np.cos(angle) + cols * np.sin(angle)
    depth = rng.uniform(0.1, 1.0)
    return 1 + depth * np.cos(2 * np.pi * phase / period + rng.uniform(0, 6.3))


def speckle(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a factor of speckle: coherent light, wholly or in part."""
    size = log_uniform(rng, 1.0, 8)
    wave = smooth_noise(shape, size, rng) + 1j * smooth_noise(shape, size, rng)
    depth = rng.uniform(0.2, 1.0)
    return 1 - depth + depth * np.abs(wave) ** 2 / 2


def shadow(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Transmission of an edge, a slit, or a round beam stop: sharp to a pixel or two."""
    row, col = random_centre(rows, rng)
    kind = rng.integers(3)
    if kind == 2:
        inside = log_uniform(rng, 3, 40) - np.hypot(rows - row, cols - col)
    else:
        upright = rng.choice([0.0, np.pi / 2, np.pi, 3 * np.pi / 2])
        angle = upright if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
        inside = (rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)
        if kind == 1:
            inside = log_uniform(rng, 2, 40) - np.abs(inside)
            inside = inside if rng.random() < 0.5 else -inside
    covered = 1 / (1 + np.exp(-np.clip(inside / log_uniform(rng, 0.1, 2), -50, 50)))
    transmission = 0.0 if rng.random() < 0.2 else log_uniform(rng, 1e-3, 0.9)
    return 1 - (1 - transmission) * covered
