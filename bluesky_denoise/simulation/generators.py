"""Where the frames of a simulated detector come from: recorded series, or scenes."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from bluesky_denoise.errors import FrameShapeError, FrameValueError, SettingsError
from bluesky_denoise.simulation.scenes import Scene, gaussian_peak

__all__ = ["FrameGenerator", "ReplayFrames", "SceneFrames"]

_LARGEST = 2**32 - 1
"""Of 32 bits, in which frames are; detectors write it into pixels that are not valid."""


class FrameGenerator(Protocol):
    """What every simulated detector is fed by."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the frames, pixels."""
        ...

    def __call__(self, exposure_s: float) -> np.ndarray:
        """Expose for `exposure_s` seconds, > 0, and return (H, W) uint32 counts."""
        ...


class ReplayFrames:
    """Plays recorded frames in order, and begins again after the last.

    A shorter exposure than the recorded one is made by binomial thinning: each photon
    is kept with the probability asked / recorded, which leaves Poisson counts Poisson.
    A longer one is the sum of the frames that follow.

    Parameters
    ----------
    counts : (n, H, W) integer, raw counts, 0 to 4294967294
    exposure_s : seconds of each recorded frame, > 0
    seed : fixes the thinning

    Raises
    ------
    FrameShapeError
        If `counts` is not (n, H, W) with at least one frame.
    FrameValueError
        If `counts` are not integers, or some are negative or above; when called, if a sum is.
    SettingsError
        If an exposure is not positive; when called, also if one longer than recorded
        is not a whole number of frames.
    """

    def __init__(self, counts: np.ndarray, exposure_s: float, *, seed: int = 0) -> None:
        counts = np.asarray(counts)
        if counts.ndim != 3 or not len(counts):
            raise FrameShapeError(
                f"Frames to replay have shape {counts.shape}; expected (n, H, W)."
            )
        if not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
            raise FrameValueError(
                f"Frames to replay are {counts.dtype}, from {counts.min()}; "
                "expected raw counts, integers >= 0."
            )
        if counts.max() >= _LARGEST:
            where = np.unravel_index(counts.argmax(), counts.shape)
            raise FrameValueError(
                f"Frames to replay hold {counts.max()} in frame {where[0]}, row {where[1]}, column "
                f"{where[2]}; expected counts below {_LARGEST}, which marks pixels that are not "
                "valid. Set those to 0, and mask them."
            )
        self._counts = counts
        self.exposure_s = _positive(exposure_s)
        """Exposure time of each recorded frame, seconds."""
        self.position = 0
        """Index of the frame that is played next."""
        self._rng = np.random.default_rng(seed)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the frames, pixels."""
        return self._counts.shape[1:]

    def __call__(self, exposure_s: float) -> np.ndarray:
        """Return the next exposure: (H, W) uint32 counts."""
        ratio = _positive(exposure_s) / self.exposure_s
        n = max(1, round(ratio))
        whole = math.isclose(ratio, n, rel_tol=1e-6)
        if ratio > 1 and not whole:
            raise SettingsError(
                f"An exposure of {exposure_s} s cannot be made of recorded frames of "
                f"{self.exposure_s} s; ask for a shorter one, or for a multiple."
            )
        frames = self._counts.take(range(self.position, self.position + n), axis=0, mode="wrap")
        self.position = (self.position + n) % len(self._counts)
        counts = frames.sum(axis=0, dtype=np.int64)
        if counts.max() >= _LARGEST:
            raise FrameValueError(
                f"An exposure of {exposure_s} s has {counts.max()} counts in a pixel; frames hold "
                f"fewer than {_LARGEST}. Ask for a shorter one."
            )
        if not whole:
            counts = self._rng.binomial(counts, ratio)
        return counts.astype(np.uint32)


class SceneFrames:
    """Exposes a simulated scene; its peaks may follow the position of a motor.

    With `position`, the intensity of all peaks is multiplied by the rocking curve
    ``exp(-((position() - centre) / width)**2 / 2)``; the background and the `hot` pixels of
    the scene stay as they are.

    Parameters
    ----------
    scene : what is exposed
    seed : fixes the photon noise
    position : returns where the motor is, in its own unit, as
        ``lambda: motor.position`` does; None for peaks that are always there
    centre : position where the peaks are as bright as in the scene
    width : standard deviation of the rocking curve, in the motor's unit, > 0

    Raises
    ------
    SettingsError
        If `width` is not positive; when called, if the exposure is not.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        seed: int = 0,
        position: Callable[[], float] | None = None,
        centre: float = 0.0,
        width: float = 1.0,
    ) -> None:
        if not width > 0:
            raise SettingsError(f"The rocking curve is {width} wide; expected more than 0.")
        self.scene = scene
        self._position = position
        self._centre = centre
        self._width = width
        self._rng = np.random.default_rng(seed)
        shape = scene.rate.shape
        peaks = (*scene.braggs, *scene.satellites)
        self._peaks = sum((gaussian_peak(shape, peak) for peak in peaks), np.zeros(shape))
        if scene.hot is not None:
            self._peaks[scene.hot] = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the frames, pixels."""
        return self.scene.rate.shape

    @property
    def brightness(self) -> float:
        """Factor on the peaks at the present position, 0 to 1."""
        if self._position is None:
            return 1.0
        return math.exp(-0.5 * ((float(self._position()) - self._centre) / self._width) ** 2)

    def rate(self) -> np.ndarray:
        """Return the true rate at the present position: (H, W) float64, counts / s."""
        rate = self.scene.rate + (self.brightness - 1) * self._peaks
        return np.maximum(rate, 0)

    def __call__(self, exposure_s: float) -> np.ndarray:
        """Return the next exposure: (H, W) uint32 counts; 0 where masked."""
        exposed = Scene(self.rate(), self.scene.mask, self.scene.satellites, self.scene.braggs)
        return exposed.expose(_positive(exposure_s), self._rng)


def _positive(exposure_s: float) -> float:
    if not (exposure_s > 0 and math.isfinite(exposure_s)):
        raise SettingsError(f"The exposure is {exposure_s} s; expected more than 0 s.")
    return float(exposure_s)
