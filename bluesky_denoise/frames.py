"""Frames on their way in, and denoised frames on their way out."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Denoised", "Frame"]


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
    """Name of the data key in the raw descriptor."""
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
    """Standard error of ``rate``, same shape, float32, counts / s; NaN where masked. None
    where the denoiser gives none."""
