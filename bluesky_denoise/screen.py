"""Frames on a screen that has fewer pixels than they have, with all their peaks."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["block_maxima", "block_px", "block_residuals", "show_blocks"]

_MOST_BLOCKS = 600


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
