"""Regions of a frame: a rectangle or a mask, cut out with what surrounds it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_denoise.errors import FrameShapeError, FrameValueError, SettingsError
from bluesky_denoise.frame_checks import check_exposure, check_frame, check_mask, valid_pixels

__all__ = ["ROI", "Crop", "cut", "deal", "photons"]

MARGIN_PX = 8
"""What the denoiser sees around the background frame."""


@dataclass(frozen=True)
class ROI:
    """A rectangle of pixels, with a frame around it that tells the background.

    Raises
    ------
    SettingsError
        If a range is empty, negative, or not of two integers.
    """

    rows: tuple[int, int]
    """First row, and the one after the last."""
    cols: tuple[int, int]
    """First column, and the one after the last."""
    background_px: int = 4
    """Width of the frame around the rectangle, pixels; 0: no background is subtracted."""

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            value = getattr(self, name)
            try:
                start, stop = (int(edge) for edge in value)
                exact = start == value[0] and stop == value[1]
            except (TypeError, ValueError, OverflowError):
                exact = False
            if not exact or not 0 <= start < stop:
                raise SettingsError(
                    f"The {name} of a ROI are {value!r}; expected (first, one after the last) "
                    "with 0 <= first < last."
                )
            object.__setattr__(self, name, (start, stop))
        object.__setattr__(self, "background_px", _pixels(self.background_px))

    def check(self, shape: tuple[int, int], name: str = "") -> None:
        """Raise `FrameShapeError` if the rectangle is not inside of frames (H, W)."""
        if self.rows[1] > shape[0] or self.cols[1] > shape[1]:
            which = f"ROI {name!r}" if name else "A ROI"
            raise FrameShapeError(
                f"{which} of rows {self.rows} and columns {self.cols} does not fit frames of shape "
                f"{tuple(shape)}."
            )


def _pixels(value: Any) -> int:
    try:
        width = int(value)
        exact = width == value
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or width < 0:
        raise SettingsError(f"The background_px of a ROI is {value!r}; expected pixels, >= 0.")
    return width


@dataclass(frozen=True, eq=False)
class Crop:
    """The pixels around a region that are looked at, all (h, w)."""

    counts: np.ndarray
    valid: np.ndarray
    region: np.ndarray
    frame: np.ndarray
    has_background: bool
    """Whether a background is to be subtracted, though no pixel of the frame be left for it."""
    origin: tuple[int, int]
    exposure_s: float

    @property
    def window(self) -> tuple[slice, slice]:
        """Where the crop is in the frame."""
        (row, col), (height, width) = self.origin, self.counts.shape
        return slice(row, row + height), slice(col, col + width)

    @property
    def inside(self) -> np.ndarray:
        """Valid pixels of the region."""
        return self.region & self.valid

    @property
    def around(self) -> np.ndarray:
        """Valid pixels of the background frame."""
        return self.frame & self.valid


def cut(
    counts: np.ndarray,
    exposure_s: float,
    roi: ROI | np.ndarray,
    mask: np.ndarray | None,
    background_px: int,
) -> Crop:
    """Cut out a region with its surroundings; the arguments are those of `measure_roi`."""
    check_frame(counts)
    check_exposure(exposure_s, 1, counts.ndim)
    mask = check_mask(mask, counts.shape)
    if isinstance(roi, ROI):
        roi.check(counts.shape)
        region = np.zeros(counts.shape, bool)
        (top, bottom), (left, right) = roi.rows, roi.cols
        region[top:bottom, left:right] = True
        background_px = roi.background_px
    else:
        region = np.asarray(roi) != 0
        if region.shape != counts.shape or not region.any():
            raise FrameShapeError(
                f"A region of shape {region.shape} with {int(region.sum())} pixels was given for "
                f"a frame of shape {counts.shape}; expected the same, with one pixel at least."
            )
        found = np.nonzero(region.any(1))[0], np.nonzero(region.any(0))[0]
        (top, bottom), (left, right) = ((int(f[0]), int(f[-1]) + 1) for f in found)
    background_px = _pixels(background_px)
    reach = background_px + MARGIN_PX
    window = (
        slice(max(top - reach, 0), bottom + reach),
        slice(max(left - reach, 0), right + reach),
    )
    region, inner = region[window], counts[window]
    valid = valid_pixels(inner, None if mask is None else mask[window])
    if (inner[valid] < 0).any():
        raise FrameValueError(
            f"{int((inner[valid] < 0).sum())} pixels in or around the region are negative (least "
            f"{inner[valid].min()}); expected counts. Put flags such as -1 into the mask."
        )
    frame = _widen(region, background_px) & ~region
    known = np.where(valid, inner, 0).astype(np.float64)
    origin = (window[0].start, window[1].start)
    return Crop(
        known, valid, region, frame, background_px > 0, origin, float(np.reshape(exposure_s, ()))
    )


def _widen(region: np.ndarray, pixels: int) -> np.ndarray:
    for axis in (0, 1):
        padded = np.pad(region, [(pixels, pixels) if a == axis else (0, 0) for a in (0, 1)])
        near = np.lib.stride_tricks.sliding_window_view(padded, 2 * pixels + 1, axis)
        region = np.any(near, axis=-1)
    return region


def photons(counts: np.ndarray) -> np.ndarray | None:
    """Return integer counts, or None where they are not photons."""
    whole = counts.astype(np.int64)
    return whole if (whole == counts).all() and whole.min(initial=0) >= 0 else None


def deal(counts: np.ndarray, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Deal photons into equal parts at random: (h, w) -> (parts, h, w)."""
    dealt, left = [], counts
    for remaining in range(parts, 1, -1):
        part = rng.binomial(left, 1 / remaining)
        dealt.append(part)
        left = left - part
    return np.stack([*dealt, left])
