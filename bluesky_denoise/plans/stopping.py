"""When to stop exposing a point: from raw-count statistics, without a bias."""

import math
from dataclasses import dataclass, field

__all__ = ["ExposureTally"]

_ONE_COUNT = 1 + 1e-6
"""Variance of a frame up to which its error may be that of no photon; with rounding."""


@dataclass
class ExposureTally:
    """The frames of one point, added up; tells when they are enough.

    Frames are weighted by their exposure and never by their error, which is small where
    an intensity happens to be small. Stopping at a relative error stops early where the
    counts happen to be high: the mean of what is saved would be too high by ``k error**2``
    (relative, with k between 1 for a peak alone and 2 for a peak under a strong
    background). :attr:`intensity` is corrected for this.

    A frame without a photon has an error of one count all the same (`measure_roi`). A point has
    it once, not once for each such frame; where the border is smaller than the region, the error
    of such a frame is above one count, and is not known from that of photons.

    Notes
    -----
    Let the exposure T be the first at which ``var / T <= (eps I)**2``. The counts minus
    their expectation are a martingale, so ``E[T (I - I_true)] = 0``; to first order T
    falls as ``I**-k`` with ``k = 2 - d ln var / d ln I``, and ``E[I] = I_true (1 + k
    eps**2)``. For a peak without background the correction is exact: ``(N - 1) / T`` for
    N counts, Haldane's estimator of inverse sampling.

    References
    ----------
    Haldane (1945), Biometrika 33, 222, doi:10.1093/biomet/33.3.222
    """

    relative_error: float
    """Enough once the error is this share of the intensity, > 0."""
    max_frames: int
    """Enough after so many frames, however large the error."""
    absolute_error: float | None = None
    """Enough once the error is this small, counts / s; None: only the relative one counts.
    What it ends is not corrected: the intensity is too low by up to ``1 / exposure_s``."""
    frames: int = 0
    """Frames taken, with those that could not be used."""
    exposure_s: float = 0.0
    """Exposure of the frames that are used, seconds."""
    _counts: float = field(default=0.0, repr=False)
    _photons_variance: float = field(default=0.0, repr=False)
    _least_variance: float = field(default=0.0, repr=False)
    _used: int = field(default=0, repr=False)

    def add(self, intensity: float, error: float, exposure_s: float, images: int = 1) -> None:
        """Add a frame, or the several images of an event.

        Parameters
        ----------
        intensity, error :
            Of the ROI, counts / s; a frame where they are not finite is not used.
        exposure_s :
            That of all images together, seconds, > 0.
        images :
            How many frames these are.
        """
        self.frames += images
        if not all(map(math.isfinite, (intensity, error, exposure_s))):
            return
        self._used += 1
        self.exposure_s += exposure_s
        counts, variance = intensity * exposure_s, (error * exposure_s) ** 2
        self._counts += counts
        if variance < _ONE_COUNT:
            # One photon, or none but in the border, has a square that is no less than its variance.
            self._least_variance = max(self._least_variance, variance)
            variance = min(variance, counts**2)
        self._photons_variance += variance

    @property
    def _variance(self) -> float:
        return max(self._photons_variance, self._least_variance)

    @property
    def error(self) -> float:
        """Standard deviation of the intensity, counts / s; NaN without frames."""
        return math.sqrt(self._variance) / self.exposure_s if self._used else math.nan

    @property
    def uncorrected(self) -> float:
        """Mean intensity, counts / s; NaN without frames."""
        return self._counts / self.exposure_s if self._used else math.nan

    @property
    def reached(self) -> bool:
        """Whether the relative error is reached."""
        return self._used > 0 and 0 < self.error <= self.relative_error * self.uncorrected

    @property
    def enough(self) -> bool:
        """Whether to stop."""
        small = self.absolute_error is not None and 0 < self.error <= self.absolute_error
        return self.frames >= self.max_frames or self.reached or small

    @property
    def intensity(self) -> float:
        """Intensity corrected for the early stop, counts / s; NaN without frames."""
        mean = self.uncorrected
        if not self.reached or self._used == 1 or self.frames >= self.max_frames:
            return mean
        share = min(1.0, max(0.0, self._counts / self._variance))  # of the peak in the variance
        return mean * (1 - (2 - share) * (self.error / mean) ** 2)
