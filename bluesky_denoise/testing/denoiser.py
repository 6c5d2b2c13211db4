"""A denoiser that leaves the noise in, for tests that are about documents."""

import time
from typing import Any

import numpy as np

from bluesky_denoise.errors import FrameShapeError
from bluesky_denoise.frames import Denoised

__all__ = ["UnitDenoiser"]


class UnitDenoiser:
    """Divides counts by the exposure, and remembers the sizes of its batches.

    It stands in for `Denoiser` where a test needs frames to come through unchanged,
    fast, and without torch.

    Parameters
    ----------
    delay_s : seconds that each batch takes, to play a slow network
    has_sigma : whether it gives standard errors, of single pixels: the root of the counts
    """

    def __init__(self, delay_s: float = 0.0, has_sigma: bool = True) -> None:
        self.name = "unit"
        self.weights_sha256 = "0" * 64
        self.card: dict[str, Any] = {}
        self.device = "cpu"
        self.delay_s, self.has_sigma = delay_s, has_sigma
        self.calls: list[int] = []
        """Number of frames of each batch, in order."""

    def denoise(
        self, counts: np.ndarray, exposure_s: float | np.ndarray, mask: np.ndarray | None = None
    ) -> Denoised:
        """Return the counts as a rate.

        Parameters
        ----------
        counts : (B, H, W), detector counts, >= 0
        exposure_s : seconds, > 0; one for all, or (B,)
        mask : (H, W) bool, True where a pixel is invalid; None where all are valid

        Returns
        -------
        Denoised
            ``rate`` and ``sigma``, (B, H, W) float32, counts / s; NaN where masked.

        Raises
        ------
        FrameShapeError
            If the frames are not (B, H, W).
        """
        counts = np.asarray(counts)
        if counts.ndim != 3:
            raise FrameShapeError(f"Counts have shape {counts.shape}; expected (B, H, W).")
        self.calls.append(len(counts))
        if self.delay_s:
            time.sleep(self.delay_s)
        exposure_s = np.reshape(exposure_s, (-1, 1, 1))  # (), (B,) -> (1 or B, 1, 1)
        rate = (counts / exposure_s).astype(np.float32)
        sigma = (np.sqrt(np.maximum(counts, 0)) / exposure_s).astype(np.float32)
        if mask is not None:
            rate[:, mask] = sigma[:, mask] = np.nan
        return Denoised(rate, sigma if self.has_sigma else None)
