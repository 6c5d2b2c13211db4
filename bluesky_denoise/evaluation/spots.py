"""``python -m bluesky_denoise.evaluation.spots FILE``: what sharp spots keep of their counts."""

from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import typer
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from rich.table import Table

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.evaluation.baselines import gaussian
from bluesky_denoise.evaluation.metrics import spot_intensities

__all__ = ["find_spots", "kept"]

CLASSES = ((3.0, 10.0), (10.0, 20.0), (20.0, np.inf))
"""Significances, standard deviations of the integrated raw counts."""
EDGE = 9
"""Pixels at the edge of a frame where no spot is looked for."""


def find_spots(counts: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Find pixels that are brightest within 3 pixels and stand out over the surroundings.

    Parameters
    ----------
    counts : (H, W) integer counts, 0 where masked
    mask : (H, W) bool, True where invalid

    Returns
    -------
    numpy.ndarray
        (n, 2) rows and columns: more than 20 counts, and 8 standard deviations above a
        Gaussian of 4 pixels; none near masked pixels or the frame's edge.
    """
    background = gaussian(counts, 4.0, mask)
    significance = (counts - background) / np.sqrt(background + 1)
    highest = sliding_window_view(np.pad(counts, 3), (7, 7)).max((2, 3))
    inside = gaussian(mask.astype(float), 3.0) < 1e-6
    inside[:EDGE] = inside[-EDGE:] = False
    inside[:, :EDGE] = inside[:, -EDGE:] = False
    return np.argwhere((counts == highest) & (significance > 8) & (counts > 20) & inside)


def kept(
    path: Annotated[Path, typer.Argument(help="HDF5 file with `frames` (n, H, W).")],
    first: Annotated[int, typer.Option(help="First frame that is denoised.")] = 0,
    last: Annotated[int | None, typer.Option(help="Last frame; None: of the file.")] = None,
    weights: Annotated[str, typer.Option(help="Name or path of the weights.")] = "default",
) -> None:
    """Print how much of their raw counts sharp spots keep in a box of 5 x 5 pixels.

    The mean of a border of 3 pixels is subtracted in both. Spots are sorted by the
    significance of their raw counts.
    """
    denoiser = Denoiser.load(weights)
    raw, found = [], []
    with h5py.File(path) as file:
        frames = file["frames"]
        mask = file["mask"][...] != 0 if "mask" in file else np.zeros(frames.shape[1:], bool)
        stop = len(frames) if last is None else last + 1
        for i in range(first, stop):
            counts = np.where(mask, 0, frames[i].astype(np.int64))
            spots = find_spots(counts, mask)
            estimate = np.nan_to_num(denoiser.denoise(counts, 1.0, mask).rate)
            raw.append(spot_intensities(counts, spots))
            found.append(spot_intensities(estimate, spots))
    before, after = np.concatenate(raw), np.concatenate(found)
    # Of 25 pixels with some background each.
    sigmas = before / np.sqrt(np.maximum(before, 1) + 25 * 4)
    table = Table(title=f"{path.name}, frames {first} to {stop - 1}, {denoiser.name}")
    for column in ("significance", "spots", "kept of all counts", "median"):
        table.add_column(column, justify="right")
    for low, high in CLASSES:
        of = (sigmas >= low) & (sigmas < high)
        if of.any():
            total, median = after[of].sum() / before[of].sum(), np.median(after[of] / before[of])
            table.add_row(f"{low:g} to {high:g}", f"{of.sum()}", f"{total:.4f}", f"{median:.4f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(kept)
