"""Frames on their way in, and denoised frames on their way out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np

__all__ = ["Denoised", "DenoiserLike", "Frame", "SupportsDenoise", "expected_sigma"]


@dataclass(frozen=True, eq=False)
class Frame:
    """The detector frames of one data key in one event, with where they come from."""

    counts: np.ndarray
    """(n, H, W) integer or float, detector counts; n frames per event, usually 1."""
    exposure_s: float
    """Exposure time of each frame, seconds, > 0."""
    mask: np.ndarray | None
    """(H, W) bool, True where a pixel is invalid; None where all are valid."""
    data_key: str
    """Name of the frames: the raw data key, or the device that the settings name."""
    seq_num: int
    """Number of the raw event in its stream, from 1."""
    run_uid: str
    """The uid of the raw run."""


@dataclass(frozen=True, eq=False)
class Denoised:
    """What a denoiser returns for a stack of frames."""

    rate: np.ndarray
    """Same shape as the counts, float32, counts / s, >= 0; NaN where masked."""
    sigma: np.ndarray | None = None
    """Standard error of ``rate``: same shape, float32, counts / s, > 0; NaN where masked. Larger
    where the counts disagree with ``rate``.
    Of single pixels: errors of neighbours are correlated, so they do not add in quadrature.
    None if the network tells none."""
    stretch: Mapping[float, float] = field(default_factory=dict)
    """Confidence -> how much wider an interval must be than a normal distribution's, as
    found on fresh draws of what was trained on; 1 where nothing is known."""
    expected_sigma: np.ndarray | None = None
    """``sigma`` as it would be if the counts did not disagree with ``rate``; None: the same."""

    def interval(self, confidence: float = 0.68) -> tuple[np.ndarray, np.ndarray]:
        """Return the interval of each pixel that holds the true rate with a probability.

        Parameters
        ----------
        confidence : probability, above 0 and at most the highest in `stretch`: 0.99 for the
            shipped weights

        Returns
        -------
        tuple of numpy.ndarray
            Lower and upper limit, shape of ``rate``, float32, counts / s, >= 0; NaN where
            masked.

        Raises
        ------
        ValueError
            If the confidence is no such probability, or the network tells no errors.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"The confidence is {confidence!r}; expected above 0 and below 1.")
        if self.sigma is None:
            raise ValueError(
                "These weights tell no standard errors; the shipped ones (`default`) do."
            )
        known = sorted(self.stretch) or [0.5]
        if self.stretch and confidence > known[-1]:
            raise ValueError(
                f"The confidence is {confidence!r}; how wide an interval must be is known up to "
                f"{known[-1]}, as large errors are more frequent than a normal distribution has."
            )
        values = [self.stretch.get(key, 1.0) for key in known]
        factor = NormalDist().inv_cdf(0.5 + confidence / 2)
        half = self.sigma * np.float32(factor * np.interp(confidence, known, values))
        return np.maximum(self.rate - half, 0), self.rate + half


def expected_sigma(denoised: Denoised) -> np.ndarray | None:
    """Return the error that a denoiser expects of such a frame, whatever its counts say.

    What judges the estimate goes by it: an estimate that has lost what the frame shows has failed,
    even where its error bars tell. ``None`` if the denoiser states no error.
    """
    expected = getattr(denoised, "expected_sigma", None)
    return getattr(denoised, "sigma", None) if expected is None else expected


class SupportsDenoise(Protocol):
    """What can denoise frames; `Denoiser` is one."""

    def denoise(
        self, counts: np.ndarray, exposure_s: float | np.ndarray, mask: np.ndarray | None = None
    ) -> Denoised:
        """Estimate the count rate behind frames (B, H, W), and its error if it can."""


class DenoiserLike(SupportsDenoise, Protocol):
    """What the router needs of a denoiser; `Denoiser` is one."""

    name: str
    device: str
    weights_sha256: str

    @property
    def card(self) -> Mapping[str, Any]:
        """What the weights are; empty: it claims nothing that could be audited."""
