"""Pictures of single frames, as every method sees them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_denoise.evaluation.plot_style import COLOURS, OTHERS, OURS, STYLE
from bluesky_denoise.views.screen import block_maxima, block_px, show_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["frame_picture"]


def frame_picture(images: dict[str, np.ndarray], mask: np.ndarray) -> "Figure":
    """Draw the images of one frame on one logarithmic scale, with profiles below.

    Of a large frame, each point shows the brightest of its pixels.

    Parameters
    ----------
    images : name -> (H, W) expected counts; the last is what they are compared with
    mask : (H, W) bool, True where invalid
    """
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    reference = list(images.values())[-1]
    mask = mask | ~np.isfinite(reference)
    known = reference[~mask]
    top = max(float(np.percentile(known, 99.9)), 1e-3) if known.size else 1.0
    positive = known[known > 0]
    low = float(np.percentile(positive, 2)) if positive.size else top / 100
    low = min(max(low * 0.7, top / 1e4), top / 3)
    norm = LogNorm(low, top)
    columns = 3 if reference.shape[1] > 1.3 * reference.shape[0] else 4
    rows = -(-len(images) // columns)
    aspect = reference.shape[0] / reference.shape[1]
    with rc_context(STYLE):
        figure = Figure((11, 11 / columns * aspect * rows + 0.3 * rows + 2.1), layout="constrained")
        heights = (figure.get_figheight() - 2.1, 2.1)
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        axes = above.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        shown = None
        # Before the layout is made, the places are smaller than they will be.
        block = block_px(axes[0], reference.shape)
        for axis, (name, image) in zip(axes, images.items(), strict=False):
            blocks = block_maxima(np.where(mask, np.nan, image), block)
            floor = np.maximum(blocks, low)
            shown = show_blocks(axis, floor, block, reference.shape, norm=norm, cmap="magma")
            axis.set_title(name)
        above.colorbar(
            shown, ax=list(axes), shrink=0.8, pad=0.01, label="expected counts per pixel"
        )
        _profile(below.subplots(1, 2, width_ratios=(3, 2)), images, mask)
    return figure


def _profile(axes: "Sequence[Axes]", images: dict[str, np.ndarray], mask: np.ndarray) -> None:
    """Draw the mean of nine rows across columns, and the part of most contrast once more."""
    *names, last = images
    known = np.where(mask, 0, images[last])
    height = known.shape[0]
    spiky = known.max() > 50 * known.mean()
    row = int(np.argmax(known.max(1))) if spiky else height // 2
    row = int(np.clip(row, min(4, height // 2), max(height - 5, height // 2)))
    band = np.s_[max(row - 4, 0) : row + 5]
    valid = ~mask[band]
    lit = np.any(valid, axis=0)
    weight = np.maximum(valid.sum(0), 1)
    lines = {name: np.where(lit, np.where(valid, images[name][band], 0).sum(0) / weight, np.nan)
             for name in images}  # fmt: skip
    flat = np.nan_to_num(lines[last])
    for name, profile in lines.items():
        colour = COLOURS.get(name, OURS if name == names[-1] else OTHERS[0])
        style: dict[str, Any] = {"color": colour, "lw": 0.7 if name == "raw" else 1.2, "zorder": 2}
        if name == last:
            style = {"color": "black", "lw": 1.6, "zorder": 1, "alpha": 0.75}
        for axis in axes:
            axis.plot(profile, label=name, **style)
    top = max(float(flat.max()), 1e-6)
    dim = flat[flat > 0]
    low = max(float(np.percentile(dim, 2)) / 2 if dim.size else top / 100, top / 1e5)
    is_steep = dim.size > 0 and top > 30 * low
    axes[0].set(yscale="log" if is_steep else "linear", xlim=(0, len(flat) - 0.5))
    if is_steep:
        axes[0].set_ylim(low, 2 * top)
    axes[0].set(title=f"mean of rows {band.start} to {band.stop - 1}", ylabel="counts per pixel")
    # Where the profile differs most from its surroundings, by the square root of counts.
    near_px = min(31, len(flat))
    wide = np.convolve(np.sqrt(flat), np.ones(near_px) / near_px, mode="same")
    away = np.abs(np.sqrt(flat) - wide)
    away[:20] = away[-20:] = 0
    middle = int(np.argmax(np.where(lit, away if spiky else flat, -1)))
    begin = int(np.clip(middle - 40, 0, max(len(flat) - 81, 0)))
    near = flat[begin : begin + 81][lit[begin : begin + 81]]
    axes[1].set(xlim=(begin, min(begin + 80, len(flat) - 0.5)), title="the same, closer")
    if near.any():  # else all of these rows are masked, or dark
        spread = near.max() - near.min() + 4 * np.sqrt(near.max() / 9)
        axes[1].set_ylim(max(0, near.min() - 0.2 * spread), near.max() + 0.2 * spread)
    for axis in axes:
        axis.set_xlabel("column, pixels")
    axes[1].legend(ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
