"""Missed and false peaks: shapes that training never saw, injected at known strength."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter
from scipy.signal import fftconvolve

from bluesky_denoise.evaluation.frame_sets import Track
from bluesky_denoise.evaluation.methods import Method
from bluesky_denoise.evaluation.metrics import poisson_deviance

__all__ = [
    "EXPOSURES",
    "PEAK_PX",
    "SHAPES",
    "DetectionLimit",
    "Recovery",
    "detection_limits",
    "estimate",
    "recovery",
]

SIDE, HALF, SEARCH = 192, 20, 3
"""Pixels of a frame, from the middle to the edge of a shape, and how far it may be off."""
EXPOSURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Times that a frame is exposed; the background is 1 count a pixel at 1."""
STRENGTH = 5.0
"""What a matched filter sees of every shape at exposure 1, standard deviations; it grows with
the root of the exposure."""
FALSE_ALARMS = 0.01
"""Share of empty places where a method's threshold, its own, is exceeded by noise."""
PEAK_PX = 2.0
"""Width of the peaks that false ones are looked for as."""
FILTER, EYE = "matched filter", "brightest pixel"


def _line(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    along, across = rows + 0.5 * cols, cols - 0.5 * rows
    return np.exp(-0.5 * (across / 1.0) ** 2) * (np.abs(along) < 18)


def _doublet(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    pair = [np.exp(-0.5 * (rows**2 + (cols - x) ** 2) / 1.2**2) for x in (-2.5, 2.5)]
    return pair[0] + 0.6 * pair[1]


def _ring(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((np.hypot(rows, cols) - 7.0) / 1.0) ** 2)


def _peak(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * (rows**2 + cols**2) / PEAK_PX**2)


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "peak": _peak,
    "streak": _line,
    "doublet": _doublet,
    "ring": _ring,
}
"""A Gaussian of 2 pixels; a tilted line with blunt ends; two peaks 5 pixels apart, one of
them weaker; a circle of 7 pixels radius."""


def template(shape: str) -> np.ndarray:
    """Return a shape of one count: (41, 41) float64."""
    rows, cols = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1].astype(np.float64)
    image = SHAPES[shape](rows, cols)
    return image / image.sum()


@dataclass(frozen=True)
class Recovery:
    """How often one method shows shapes of one strength."""

    method: str
    shape: str
    how: str
    """``matched filter``: the shape is known, its place within 3 pixels; ``brightest pixel``:
    the highest pixel there, as an eye or a plain threshold would have it."""
    exposure: float
    strength: float
    """Standard deviations of the known shape over the raw background."""
    injected: int
    recovered: float
    """Share above the threshold that noise alone exceeds in one of a hundred empty places,
    in images of the same method."""
    kept: float
    """Median of what the filter of the shape finds in the image over what was injected; 1 keeps
    all."""


@dataclass(frozen=True)
class DetectionLimit:
    """Where a method recovers half and nine tenths of what was injected."""

    method: str
    how: str
    """As in `Recovery`."""
    shape: str
    half: float
    """Strength at 50 %, standard deviations; infinite beyond what was tried."""
    most: float
    """Strength at 90 %."""
    exposure_ratio: float
    """Exposure that the raw frame needs for 50 %, seen the same way, over that of the method;
    0 where the method never gets there."""
    at_least: bool
    """The raw frame never got there: the ratio is a lower bound."""


def recovery(
    methods: Sequence[Method],
    track: Track,
    *,
    frames: int = 16,
    slow_frames: int = 4,
    seed: int = 5,
) -> list[Recovery]:
    """Inject shapes into flat frames, denoise, and look whether they are there.

    Parameters
    ----------
    methods : what is compared
    track : shows progress
    frames, slow_frames : with nine shapes each, and as many empty ones, for each exposure
    seed : of places and photons
    """
    out = []
    for exposure in track(EXPOSURES, "injected shapes"):
        rng = np.random.default_rng([seed, round(100 * exposure)])
        strength = STRENGTH * float(np.sqrt(exposure))
        flat = np.full((SIDE, SIDE), exposure)
        kinds = rng.permuted(np.resize(list(SHAPES), 9 * frames)).reshape(frames, 9)
        kinds[:slow_frames] = rng.permuted(np.resize(list(SHAPES), 9 * slow_frames)).reshape(-1, 9)
        nulls: dict[tuple[str, str, str], list[np.ndarray]] = {}
        found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
        for i in range(frames):
            rate, places = _inject(flat, kinds[i], strength, rng)
            some = [m for m in methods if not m.slow or i < slow_frames]
            empty, signal = rng.poisson(flat), rng.poisson(rate)
            for method in some:
                image = estimate(method, empty, flat)
                for key, statistic in _statistics(image - exposure).items():
                    near = maximum_filter(statistic, 2 * SEARCH + 1)
                    step = 2 * SEARCH + 1
                    nulls.setdefault((method.name, *key), []).append(
                        near[HALF:-HALF:step, HALF:-HALF:step].ravel()
                    )
                after = _statistics(estimate(method, signal, rate) - exposure)
                for kind, row, col, expected in places:
                    window = np.s_[row - SEARCH : row + SEARCH + 1, col - SEARCH : col + SEARCH + 1]
                    share = float(after[kind, FILTER][row, col]) / expected
                    for how in (FILTER, EYE):
                        highest = float(after[kind, how][window].max())
                        found.setdefault((method.name, kind, how), []).append((highest, share))
        for (name, kind, how), values in found.items():
            threshold = np.quantile(np.concatenate(nulls[name, kind, how]), 1 - FALSE_ALARMS)
            highest, share = np.array(values).T
            out.append(
                Recovery(
                    name,
                    kind,
                    how,
                    exposure,
                    strength,
                    len(values),
                    float((highest > threshold).mean()),
                    float(np.median(share)),
                )
            )
    return out


def estimate(method: Method, counts: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Estimate (H, W) counts without a mask, judged by the (H, W) true rate."""

    def judge(estimate: np.ndarray) -> float:
        return poisson_deviance(estimate, rate)

    return method.estimate(counts, np.zeros(counts.shape, bool), judge)


def _inject(
    flat: np.ndarray, kinds: np.ndarray, strength: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[str, int, int, float]]]:
    """Return expected counts, and shape, middle and filter response of each injection."""
    rate, places = flat.copy(), []
    for site, kind in enumerate(kinds):
        row, col = (32 + 64 * x + int(rng.integers(-8, 9)) for x in divmod(site, 3))
        shape = template(kind)
        square = (shape**2).sum()
        photons = strength * np.sqrt(flat[0, 0] / square)
        rate[row - HALF : row + HALF + 1, col - HALF : col + HALF + 1] += photons * shape
        places.append((str(kind), row, col, float(photons * square)))
    return rate, places


def _statistics(excess: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Correlate with every shape; the brightest pixel of a shape is that of the image itself."""
    out = {}
    for kind in SHAPES:
        shape = template(kind)
        out[kind, FILTER] = fftconvolve(excess, shape[::-1, ::-1], mode="same")
        out[kind, EYE] = excess
    return out


def detection_limits(found: Sequence[Recovery]) -> list[DetectionLimit]:
    """Read the strengths at 50 and 90 % from the curves."""
    curves: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for r in found:
        curves.setdefault((r.method, r.how, r.shape), []).append((r.strength, r.recovered))
    halves = {key: _crossing(curve, 0.5) for key, curve in curves.items()}
    out = []
    for (method, how, shape), half in halves.items():
        raw = halves["raw", how, shape]
        never = not np.isfinite(raw)
        raw = STRENGTH * float(np.sqrt(EXPOSURES[-1])) if never else raw
        most = _crossing(curves[method, how, shape], 0.9)
        out.append(DetectionLimit(method, how, shape, half, most, (raw / half) ** 2, never))
    return out


def _crossing(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Find where a rising curve passes a share, on a logarithmic axis of strength."""
    strength, recovered = np.array(sorted(curve)).T
    rising = np.maximum.accumulate(recovered)
    above = np.flatnonzero(rising >= share)
    if not len(above):
        return float("inf")
    i = above[0]
    if i == 0:
        return float(strength[0])
    step = (share - rising[i - 1]) / (rising[i] - rising[i - 1])
    return float(np.exp(np.interp(step, (0, 1), np.log(strength[i - 1 : i + 1]))))
