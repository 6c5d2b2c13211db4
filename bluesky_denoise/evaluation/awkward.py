"""Awkward frames: whether what comes out is finite, masked, and keeps the flux."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.evaluation.frame_sets import Track
from bluesky_denoise.frames import SupportsDenoise

__all__ = ["CASES", "AwkwardScore", "awkward_scores"]

FLUX = 1e-3
"""By how much the total may differ, of itself."""


@dataclass(frozen=True)
class AwkwardScore:
    """What became of one awkward frame."""

    case: str
    passed: bool
    result: str
    """Flux over that of the valid pixels, or the error that refused the frame."""


Case = tuple[np.ndarray, np.ndarray | None]
"""Counts (H, W), mask (H, W) or None."""


def _flat(shape: tuple[int, int] = (96, 128), level: float = 2.0) -> np.ndarray:
    return np.random.default_rng(0).poisson(level, shape)


def _with(value: float, dtype: type[np.generic] = np.int64) -> Case:
    counts = _flat().astype(dtype)
    counts[40, 50] = value
    return counts, None


def _module() -> Case:
    counts = _flat()
    counts[:, 60:90] = 0
    return counts, None


def _hot() -> Case:
    counts = _flat()
    counts[np.random.default_rng(1).random(counts.shape) < 1e-3] = 60_000
    return counts, None


def _photon() -> Case:
    counts = np.zeros((96, 128), np.uint16)
    counts[50, 60] = 1
    return counts, None


CASES: dict[str, Callable[[], Case]] = {
    "empty frame": lambda: (np.zeros((96, 128), np.uint16), None),
    "one photon": _photon,
    "1,000,000 counts in a pixel": lambda: _with(1e6),
    "a module of zeros": _module,
    "hot pixels, not masked": _hot,
    "every pixel masked": lambda: (_flat(), np.ones((96, 128), bool)),
    "NaN in a pixel": lambda: _with(np.nan, np.float32),
    "negative pedestal": lambda: (_flat() - 5, None),
    "uint8": lambda: (_flat().astype(np.uint8), None),
    "uint16": lambda: (_flat().astype(np.uint16), None),
    "uint32": lambda: (_flat().astype(np.uint32), None),
    "int64": lambda: (_flat(), None),
    "float32": lambda: (_flat().astype(np.float32), None),
    "float64": lambda: (_flat().astype(np.float64), None),
    "1 x 1 pixel": lambda: (np.array([[3]]), None),
    "3 x 5000 pixels": lambda: (_flat((3, 5000)), None),
    "4362 x 4148 pixels": lambda: (_flat((4362, 4148)).astype(np.uint16), None),
}
"""Name -> what makes the frame."""


def awkward_scores(denoiser: SupportsDenoise, track: Track) -> list[AwkwardScore]:
    """Denoise every case of `CASES`.

    A case passes if the rate is finite and not negative where valid, NaN where masked, and
    keeps the total; or if the frame is refused by an error of this package.
    """
    return [_score(name, *CASES[name](), denoiser) for name in track(list(CASES), "awkward frames")]


def _score(
    name: str, counts: np.ndarray, mask: np.ndarray | None, denoiser: SupportsDenoise
) -> AwkwardScore:
    try:
        rate = denoiser.denoise(counts, 1.0, mask).rate
    except DenoiseError as error:
        first = str(error).split(";")[0]
        return AwkwardScore(name, True, f"refused: {first}")
    valid = np.isfinite(counts) if mask is None else np.isfinite(counts) & ~mask
    if rate.shape != counts.shape:
        return AwkwardScore(name, False, f"shape {rate.shape} for {counts.shape}")
    if not np.isnan(rate[~valid]).all():
        return AwkwardScore(name, False, "numbers where masked")
    if not (np.isfinite(rate[valid]) & (rate[valid] >= 0)).all():
        return AwkwardScore(name, False, "not finite, or negative, where valid")
    total = float(np.sum(counts, where=valid, dtype=np.float64))
    found = float(np.sum(rate, where=valid, dtype=np.float64))
    if total == 0:
        return AwkwardScore(name, found == 0, "no counts in, none out" if found == 0 else "counts")
    kept = abs(found / total - 1) <= FLUX
    return AwkwardScore(name, kept, f"flux {found / total:.6f}")
