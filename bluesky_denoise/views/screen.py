"""Frames on a screen that has fewer pixels than they have, with all their peaks."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bluesky_denoise.frame_checks import valid_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["Panel", "block_maxima", "block_px", "block_residuals", "panels", "show_blocks"]

_MOST_BLOCKS = 600
_RESIDUAL_SIGMA = 4.0


class Panel(NamedTuple):
    """One of the pictures of a frame that are drawn side by side."""

    title: str
    blocks: np.ndarray
    """For `show_blocks`."""
    unit: str
    options: dict[str, Any]
    """Colours and their range, for `show_blocks`."""


def panels(
    raw: np.ndarray,
    rate: np.ndarray,
    sigmas: Sequence[np.ndarray],
    exposure_s: float,
    block: int,
) -> list[Panel]:
    """Return raw, denoised, their difference, and standard errors, all rates in the same colours.

    Parameters
    ----------
    raw : (H, W) counts
    rate : (H, W), counts / s, or of any shape if nothing is denoised
    sigmas : (H, W) standard errors of ``rate``: one, or none
    exposure_s : seconds; NaN where it is not known: counts are shown then
    block : pixels a side, see `block_px`
    """
    from matplotlib.colors import LogNorm

    valid, is_denoised = valid_pixels(raw), bool(np.isfinite(rate).any())
    if is_denoised:
        valid &= np.isfinite(rate)
    elif rate.shape != raw.shape:  # none could be denoised: nothing was known of it
        rate = np.full(raw.shape, np.nan)
    counts = raw.astype(np.float32)
    counts[~valid] = np.nan
    shown, unit, title = block_maxima(counts, block), "counts", "raw"
    if exposure_s > 0:
        shown, unit, title = shown / exposure_s, "counts / s", f"raw, {exposure_s:.3g} s"
    denoised = block_maxima(rate, block)
    scaled = denoised if is_denoised else shown
    seen = scaled[scaled > 0]
    low, high = np.percentile(seen, (1, 99.95)) if seen.size else (0.1, 1.0)
    low = max(low, high * 1e-5)
    rated = {"norm": LogNorm(low, max(high, low * 1.01))}
    around_0 = {"cmap": "RdBu_r", "vmin": -_RESIDUAL_SIGMA, "vmax": _RESIDUAL_SIGMA}
    residuals = block_residuals(counts, rate, exposure_s, block)
    errors = [block_maxima(sigma, block) for sigma in sigmas]
    # Zero has no logarithm: it is drawn as the darkest, unlike what is invalid.
    shown, denoised, *errors = (np.where(b == 0, low, b) for b in (shown, denoised, *errors))
    return [
        Panel(title, shown, unit, rated),
        Panel("denoised", denoised, "counts / s", rated),
        Panel("raw - denoised", residuals, "standard deviations", around_0),
        *(Panel("standard error", error, "counts / s", rated) for error in errors),
    ]


def block_px(axes: "Axes", shape: tuple[int, ...]) -> int:
    """Return how many pixels of a frame a side fall on one of the screen, or a bit more.

    Parameters
    ----------
    axes :
        Where the frame is to be drawn.
    shape :
        (H, W).

    Returns
    -------
    int
        At least 1, and so many that no side has more than 600 blocks.
    """
    box = axes.get_window_extent()
    return math.ceil(max(shape[0] / box.height, shape[1] / box.width, max(shape) / _MOST_BLOCKS))


def block_maxima(frame: np.ndarray, block: int) -> np.ndarray:
    """Return the largest value in each block of pixels.

    Of each block a screen would show one pixel, mostly a dark one: peaks of a few pixels vanish.

    Parameters
    ----------
    frame : (H, W)
    block : pixels a side, see `block_px`

    Returns
    -------
    numpy.ndarray
        (H / block, W / block) float32; NaN where all of a block is.
    """
    return _by_block(np.fmax, np.asarray(frame, np.float32), block)


def block_residuals(
    counts: np.ndarray, rate: np.ndarray, exposure_s: float, block: int
) -> np.ndarray:
    """Return raw - denoised of each block of pixels, in standard deviations.

    The pixels of a block are summed: the largest of their own residuals would be a positive
    one nearly everywhere, where there are few counts.

    Parameters
    ----------
    counts : (H, W), NaN where invalid
    rate : (H, W), counts / s, NaN where invalid
    exposure_s : seconds; NaN where it is not known, and so are the residuals
    block : pixels a side, see `block_px`

    Returns
    -------
    numpy.ndarray
        (H / block, W / block) float32; NaN where all of a block is.
    """
    known = np.isfinite(counts) & np.isfinite(rate)
    counted, expected = (
        _by_block(np.add, np.where(known, frame, np.float32(0)), block) for frame in (counts, rate)
    )
    expected = expected * exposure_s
    residuals = (counted - expected) / np.sqrt(np.maximum(expected, 0.25))
    return np.where(_by_block(np.logical_or, known, block), residuals, np.nan).astype(np.float32)


def _by_block(function: np.ufunc, frame: np.ndarray, block: int) -> np.ndarray:
    if block == 1:
        return frame
    rows, cols = (np.arange(0, size, block) for size in frame.shape)
    # Along rows first, as they lie in memory.
    return function.reduceat(function.reduceat(frame, cols, axis=1), rows, axis=0)


def show_blocks(
    axes: "Axes", blocks: np.ndarray, block: int, shape: tuple[int, ...], **options: Any
) -> "AxesImage":
    """Draw the blocks of a frame; the axes are in its pixels.

    Parameters
    ----------
    axes :
        Where it is drawn.
    blocks :
        (H / block, W / block).
    block :
        Pixels a side.
    shape :
        (H, W) of the frame.
    **options :
        For ``imshow``.
    """
    height, width = (block * size - 0.5 for size in blocks.shape)
    image = axes.imshow(
        blocks, extent=(-0.5, width, height, -0.5), interpolation="nearest", **options
    )
    axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))  # the last are cut off
    return image
