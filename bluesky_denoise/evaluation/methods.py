"""What is compared: the raw frame, classical denoisers, and networks, all called alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bluesky_denoise.evaluation.baselines import anscombe_bm3d, anscombe_nlm, best_gaussian
from bluesky_denoise.frames import SupportsDenoise

__all__ = ["Judge", "Method", "NamedDenoiser", "baselines", "network"]

Judge = Callable[[np.ndarray], float]
"""Expected counts (H, W) -> how bad they are; looks at what the estimate has not seen."""


class NamedDenoiser(SupportsDenoise, Protocol):
    """A denoiser that tables have a name for, and no two the same."""

    name: str


@dataclass(frozen=True)
class Method:
    """One way to estimate expected counts."""

    name: str
    """As it is called in tables."""
    estimate: Callable[[np.ndarray, np.ndarray, Judge], np.ndarray]
    """Integer counts (H, W), mask (H, W) bool, judge -> expected counts (H, W) float, 0 where
    masked. Only the Gaussian asks the judge: its width is the best that anyone could have
    chosen, which nobody at a beamline can know."""
    slow: bool = False
    """Takes a second or more for a frame: gets fewer of the simulated frames."""


def baselines(bm3d: bool = True) -> list[Method]:
    """Return the raw frame, the best Gaussian, non-local means, and BM3D unless left out."""
    methods = [
        Method("raw", lambda n, mask, judge: np.where(mask, 0.0, n)),
        Method("best Gaussian", lambda n, mask, judge: best_gaussian(n, judge, mask)[0]),
        Method("non-local means", lambda n, mask, judge: anscombe_nlm(n, mask)),
    ]
    if bm3d:
        methods.append(
            Method("Anscombe + BM3D", lambda n, mask, judge: anscombe_bm3d(n, mask), slow=True)
        )
    return methods


def network(denoiser: NamedDenoiser, slow: bool = False) -> Method:
    """Wrap a denoiser; the exposure is taken as 1 s, so that rates are counts."""

    def estimate(counts: np.ndarray, mask: np.ndarray, judge: Judge) -> np.ndarray:
        return np.nan_to_num(denoiser.denoise(counts, 1.0, mask).rate).astype(np.float64)

    return Method(denoiser.name, estimate, slow)
