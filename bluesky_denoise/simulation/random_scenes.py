"""Random expected counts over the whole range that a counting detector meets."""

import numpy as np

__all__ = ["random_dead", "random_mask", "random_scene"]

MOST_COUNTS = 2e6
"""No expected count of a random scene is above this."""


def random_scene(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    log10_level: tuple[float, float] = (-3.0, 4.0),
) -> np.ndarray:
    """Draw the expected counts of one frame.

    A background (flat, sloping, cloudy, or decaying from a beam centre) carries any of
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
        scene = _background(rows, cols, rng)
        scene *= 10.0 ** rng.uniform(low, high) / scene.mean()
        scene = _add_lines(scene, rows, cols, rng) if kind < 0.2 else _add_spots(scene, rng)
        return np.clip(scene, 0, MOST_COUNTS)
    if kind < 0.43:
        scene = _powder(rows, cols, rng) * 10.0 ** rng.uniform(*log10_level)
        return np.clip(scene, 0, MOST_COUNTS)
    scene = _background(rows, cols, rng)
    if rng.random() < 0.12:
        scene *= _striations(shape, rng)
    if rng.random() < 0.33:
        return np.clip(scene * 10.0 ** rng.uniform(*log10_level), 0, MOST_COUNTS)
    if rng.random() < 0.2:
        scene *= _speckle(shape, rng)
    if rng.random() < 0.2:
        scene *= _fringes(rows, cols, rng)
    for _ in range(_few(rng, 0.4, 3)):
        scene = scene + _ring(rows, cols, rng)
    for _ in range(_few(rng, 0.45, 3)):
        scene = scene + _streak(rows, cols, rng)
    for _ in range(_few(rng, 0.55, 25)):
        scene = scene + _peak(rows, cols, rng)
    for _ in range(_few(rng, 0.25, 2)):
        scene *= _shadow(rows, cols, rng)
    scene = scene * 10.0 ** rng.uniform(*log10_level)
    for _ in range(_few(rng, 0.2, 5)):
        scene[rng.integers(shape[0]), rng.integers(shape[1])] = 10.0 ** rng.uniform(1, 6)
    return np.clip(scene, 0, MOST_COUNTS)


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


def _few(rng: np.random.Generator, chance: float, most: int) -> int:
    return int(rng.integers(1, most + 1)) if rng.random() < chance else 0


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _centre(rows: np.ndarray, rng: np.random.Generator, beyond: float = 0.0) -> tuple[float, float]:
    low, high = -beyond, 1 + beyond
    return rng.uniform(low, high) * rows.shape[0], rng.uniform(low, high) * rows.shape[1]


def _smooth(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise without frequencies above 1 / sigma, of unit variance."""
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij"))
    spectrum = np.fft.fft2(rng.normal(size=shape)) * np.exp(-2 * (np.pi * sigma * frequency) ** 2)
    field = np.fft.ifft2(spectrum).real
    field -= field.mean()
    return field / max(float(field.std()), 1e-9)


def _background(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kind = rng.integers(4)
    if kind == 0:
        return np.ones(rows.shape)
    if kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        along = rows * np.cos(angle) + cols * np.sin(angle)
        return np.exp(_log_uniform(rng, 0.1, 6) * along / max(rows.shape))
    if kind == 2:
        return np.exp(rng.uniform(0.05, 0.8) * _smooth(rows.shape, _log_uniform(rng, 5, 80), rng))
    row, col = _centre(rows, rng, 0.5)
    radius = np.hypot(rows - row, cols - col) / _log_uniform(rng, 4, 80)
    decay = (1 + radius**2) ** -rng.uniform(0.3, 2.2)
    peak = _log_uniform(rng, 1, 300)
    return peak * decay + 10.0 ** rng.uniform(-2, 0)


def _peak(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    row, col = _centre(rows, rng)
    angle = rng.uniform(0, np.pi)
    sigma = _log_uniform(rng, 0.4, 10)
    other = sigma * _log_uniform(rng, 0.5, 2)
    along = (rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)
    across = (cols - col) * np.cos(angle) - (rows - row) * np.sin(angle)
    distance = (along / sigma) ** 2 + (across / max(other, 0.35)) ** 2
    height = _log_uniform(rng, 0.1, 30) if rng.random() < 0.6 else _log_uniform(rng, 10, 1e4)
    # Diffuse tails as often as none.
    profile = np.exp(-distance / 2) if rng.random() < 0.6 else (1 + distance) ** -1.5
    return height * profile


def _streak(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    row, col = _centre(rows, rng)
    upright = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.02) * (rng.random() < 0.5)
    angle = upright if rng.random() < 0.65 else rng.uniform(0, np.pi)
    along = (rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)
    across = (cols - col) * np.cos(angle) - (rows - row) * np.sin(angle)
    width = _log_uniform(rng, 0.4, 8)
    length = _log_uniform(rng, 10, 400)
    height = _log_uniform(rng, 0.05, 5) if rng.random() < 0.6 else _log_uniform(rng, 1, 1e3)
    profile = np.exp(-0.5 * (across / width) ** 2) + 0.1 / (1 + (across / width) ** 2)
    return height * profile * np.exp(-0.5 * (along / length) ** 2)


def _add_lines(
    scene: np.ndarray, rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Add lines of 3 to 150 standard deviations, some with a broad foot."""
    background = np.maximum(scene, 1e-3)
    for _ in range(rng.integers(1, 5)):
        row, col = _centre(rows, rng)
        upright = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.02) * (rng.random() < 0.3)
        angle = upright if rng.random() < 0.8 else rng.uniform(0, np.pi)
        along = (rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)
        across = (cols - col) * np.cos(angle) - (rows - row) * np.sin(angle)
        width = _log_uniform(rng, 0.4, 6)
        profile = np.exp(-0.5 * (across / width) ** 2)
        if rng.random() < 0.3:
            foot = width * rng.uniform(2, 5)
            profile += rng.uniform(0.1, 1) * np.exp(-0.5 * (across / foot) ** 2)
        profile *= np.exp(-0.5 * (along / _log_uniform(rng, 20, 600)) ** 2)
        # What a matched filter would find has this significance.
        height = _log_uniform(rng, 3, 150) / np.sqrt((profile**2 / background).sum())
        scene = scene + height * profile
    return scene


def _add_spots(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add spots of 1 to 4 pixels and 2 to 150 standard deviations."""
    scene = scene.copy()
    for _ in range(rng.integers(1, 60)):
        row, col = (rng.integers(size) for size in scene.shape)
        top, left = max(row - 7, 0), max(col - 7, 0)
        patch = scene[top : row + 8, left : col + 8]
        shift = rng.uniform(-0.5, 0.5, 2)
        rows, cols = np.mgrid[top : top + patch.shape[0], left : left + patch.shape[1]]
        sigma = _log_uniform(rng, 0.3, 1.7)
        distance = (rows - row - shift[0]) ** 2 + (cols - col - shift[1]) ** 2
        profile = np.exp(-0.5 * distance / sigma**2)
        profile /= profile.sum()
        # Counts whose own noise and that of the background make them so significant.
        square = _log_uniform(rng, 2, 150) ** 2
        below = scene[row, col] * 4 * np.pi * (sigma**2 + 0.1)
        patch += (square / 2 + np.sqrt(square**2 / 4 + square * below)) * profile
    return scene


def _ring(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    centre, stretch = _centre(rows, rng, 2.0), _log_uniform(rng, 0.8, 1.25)
    radius = _radius(rows, cols, centre, stretch)
    ring = _ring_profile(radius, _log_uniform(rng, 0.6, 10), rng)
    if rng.random() < 0.3:  # texture: grains along the ring
        ring *= np.exp(0.7 * _smooth(rows.shape, _log_uniform(rng, 1, 15), rng))
    return _log_uniform(rng, 0.05, 100) * ring


def _powder(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rings of about one width around one centre, over a smooth background."""
    centre, stretch = _centre(rows, rng, 1.5), _log_uniform(rng, 0.9, 1.1)
    radius = _radius(rows, cols, centre, stretch)
    scene = _background(rows, cols, rng)
    scene /= scene.mean()
    width, top = _log_uniform(rng, 0.5, 6), _log_uniform(rng, 0.3, 100)
    for _ in range(rng.integers(1, 9)):
        sharp = width * _log_uniform(rng, 0.7, 1.5)
        scene += top * _log_uniform(rng, 0.03, 1) * _ring_profile(radius, sharp, rng)
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


def _striations(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Response of columns or rows that differs a little, about 1."""
    axis = int(rng.integers(2))
    sigma = _log_uniform(rng, 0.3, 4)
    taps = np.exp(-0.5 * (np.arange(-16, 17) / sigma) ** 2)
    taps /= np.sqrt((taps**2).sum())
    found = np.convolve(rng.normal(size=shape[axis] + 32), taps, mode="valid")
    response = np.exp(_log_uniform(rng, 0.005, 0.15) * found)
    return np.expand_dims(response, 1 - axis)


def _fringes(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    row, col = _centre(rows, rng, 1.0)
    period = _log_uniform(rng, 3, 50)
    if rng.random() < 0.5:
        phase = np.hypot(rows - row, cols - col)
    else:
        angle = rng.uniform(0, np.pi)
        phase = rows * np.cos(angle) + cols * np.sin(angle)
    depth = rng.uniform(0.1, 1.0)
    return 1 + depth * np.cos(2 * np.pi * phase / period + rng.uniform(0, 6.3))


def _speckle(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    size = _log_uniform(rng, 1.0, 8)
    wave = _smooth(shape, size, rng) + 1j * _smooth(shape, size, rng)
    depth = rng.uniform(0.2, 1.0)
    return 1 - depth + depth * np.abs(wave) ** 2 / 2


def _shadow(rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Transmission of an edge, a slit, or a round beam stop: sharp to a pixel or two."""
    row, col = _centre(rows, rng)
    kind = rng.integers(3)
    if kind == 2:
        inside = _log_uniform(rng, 3, 40) - np.hypot(rows - row, cols - col)
    else:
        upright = rng.choice([0.0, np.pi / 2, np.pi, 3 * np.pi / 2])
        angle = upright if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
        inside = (rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)
        if kind == 1:
            inside = _log_uniform(rng, 2, 40) - np.abs(inside)
            inside = inside if rng.random() < 0.5 else -inside
    covered = 1 / (1 + np.exp(-np.clip(inside / _log_uniform(rng, 0.1, 2), -50, 50)))
    transmission = 0.0 if rng.random() < 0.2 else _log_uniform(rng, 1e-3, 0.9)
    return 1 - (1 - transmission) * covered
