"""A picture of one event: raw, denoised, and what lies between them."""

from pathlib import Path
from typing import Any

import numpy as np

from .archive import raw_rows
from .catalog import FROM_ARCHIVE
from .errors import DenoiseError
from .event_array import EventArray
from .frame_checks import valid_pixels
from .frame_keys import raw_key
from .screen import block_maxima, block_px, block_residuals, show_blocks
from .tiled_streams import arrays_of

__all__ = ["draw_event"]


def draw_event(run: Any, denoised: Any, event: int, path: Path) -> None:
    """Draw raw and denoised frames of an event, and their difference in standard deviations.

    A raw frame that could not be denoised is drawn in counts. Of a large frame, each point shows
    the brightest of its pixels; as the difference, that of their sums.

    Parameters
    ----------
    run :
        The raw run, from Tiled.
    denoised :
        One of its `DenoisedStream`.
    event :
        Number of the event, from 1.
    path :
        The PNG to write.

    Raises
    ------
    DenoiseError
        If Tiled does not tell which raw frames the denoised ones are of, or there are none.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    raw = run[denoised.raw_stream].base if denoised.raw_stream in run else {}
    node = denoised.stream.base
    raw_keys = {key: raw_key(key, spec) for key, spec in node.metadata["data_keys"].items()}
    frames = {key: array for key, array in arrays_of(node).items() if array.ndim >= 3}
    keys = [key for key in frames if raw_keys[key] in raw]
    if not keys:
        what = "raw" if frames else "denoised"
        raise DenoiseError(f"There are no {what} frames of {denoised.name} in Tiled to draw.")
    table = node["internal"].read(["raw_seq_num", *(f"{key}_exposure_s" for key in keys)])
    seq_nums = table["raw_seq_num"].to_numpy(int)
    columns = 4 if any(f"{key}_sigma" in frames for key in keys) else 3
    # As high as the frames are at this width, with room for a title.
    heights = [4.0 * np.divide(*frames[key].shape[-2:]) + 0.6 for key in keys]
    figure, axes = plt.subplots(
        *(len(keys), columns),
        figsize=(4.7 * columns, sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for row, key in zip(axes, keys, strict=True):
        exposure_s = float(table[f"{key}_exposure_s"][event - 1])
        rate = np.asarray(frames[key][event - 1], float)
        rate = rate.reshape(-1, *rate.shape[-2:])[0]
        events = EventArray(raw, raw_keys[key])
        order = raw_rows(
            *(run, denoised.raw_stream, seq_nums, len(events)),
            from_archive=bool(denoised.provenance.get(FROM_ARCHIVE)),
        )
        at = order[event - 1]
        counts = np.asarray(events[at : at + 1])
        counts = counts.reshape(-1, *counts.shape[-2:])[0]
        valid, is_denoised = valid_pixels(counts), bool(np.isfinite(rate).any())
        if is_denoised:
            valid &= np.isfinite(rate)
        elif rate.shape != counts.shape:  # none could be denoised: nothing was known of it
            rate = np.full(counts.shape, np.nan)
        counts = np.where(valid, counts, np.nan)
        # Before the layout is made, the places are smaller than they will be.
        block = block_px(row[0], counts.shape)
        exposed = exposure_s > 0  # not nan, as of a frame that could not be denoised
        seen = block_maxima(counts / exposure_s if exposed else counts, block)
        rates = block_maxima(rate, block)
        scaled = rates if is_denoised else seen
        scaled = scaled[np.isfinite(scaled)]
        top = max(float(np.percentile(scaled, 99.9)), 1e-6) if scaled.size else 1.0
        floor, rated = top / 1e3, {"norm": LogNorm(top / 1e3, top)}
        residual = block_residuals(counts, rate, exposure_s, block)
        title, unit = (f"raw, {exposure_s:g} s", "counts / s") if exposed else ("raw", "counts")
        around_0 = {"vmin": -4, "vmax": 4, "cmap": "RdBu_r"}
        images = [
            (title, np.maximum(seen, floor), unit, rated),
            (f"denoised, {denoised.model}", np.maximum(rates, floor), "counts / s", rated),
            ("raw - denoised", residual, "standard deviations", around_0),
        ]
        if f"{key}_sigma" in frames:
            error = np.asarray(frames[f"{key}_sigma"][event - 1], float)
            error = block_maxima(error.reshape(-1, *error.shape[-2:])[0], block)
            images.append(("standard error", np.maximum(error, floor), "counts / s", rated))
        for axis, (title, image, unit, options) in zip(row, images, strict=False):
            shown = show_blocks(axis, image, block, counts.shape, **options)
            axis.set(title=title, xticks=[], yticks=[])
            figure.colorbar(shown, ax=axis, shrink=0.7, label=unit)
        row[0].set_ylabel(key)
    figure.suptitle(f"run {run.metadata['start']['uid'][:8]}, event {event}")
    figure.savefig(path, dpi=100)
    plt.close(figure)
