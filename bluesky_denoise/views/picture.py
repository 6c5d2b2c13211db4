"""A picture of one event: raw, denoised, and what lies between them."""

from pathlib import Path
from typing import Any

import numpy as np

from bluesky_denoise.catalog import FROM_ARCHIVE
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.in_tiled.archive import find_raw
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.sources.frame_keys import SIGMA, is_sigma, raw_key
from bluesky_denoise.views.screen import block_px, panels, show_blocks

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

    raw, stored = find_raw(run, denoised.raw_stream), StoredStream(denoised.stream)
    specs = stored.metadata["data_keys"]
    raw_keys = {key: raw_key(key, spec) for key, spec in specs.items()}
    frames = {key: array for key, array in stored.arrays.items() if array.ndim >= 3}
    keys = [key for key in frames if raw and raw_keys[key] in raw.stored.nodes]
    if raw is None or not keys:
        what = "raw" if frames else "denoised"
        raise DenoiseError(f"There are no {what} frames of {denoised.name} in Tiled to draw.")
    table = stored.read_table(["raw_seq_num", *(f"{key}_exposure_s" for key in keys)])
    seq_nums = table["raw_seq_num"].to_numpy(int)
    errors = {key.removesuffix(SIGMA): key for key in frames if is_sigma(key, specs)}
    columns = 4 if errors.keys() & set(keys) else 3
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
        events = raw.stored.frames(raw_keys[key])
        from_archive = bool(denoised.provenance.get(FROM_ARCHIVE))
        order = raw.rows_of(seq_nums, len(events), from_archive=from_archive)
        at = order[event - 1]
        counts = np.asarray(events[at : at + 1])
        counts = counts.reshape(-1, *counts.shape[-2:])[0]
        sigmas = [frames[errors[key]][event - 1]] if key in errors else []
        sigmas = [np.reshape(sigma, (-1, *sigma.shape[-2:]))[0] for sigma in sigmas]
        # Before the layout is made, the places are smaller than they will be.
        block = block_px(row[0], counts.shape)
        drawn = panels(counts, rate, sigmas, exposure_s, block)
        for axis, panel in zip(row, drawn, strict=False):
            shown = show_blocks(axis, panel.blocks, block, counts.shape, **panel.options)
            axis.set(title=panel.title, xticks=[], yticks=[])
            figure.colorbar(shown, ax=axis, shrink=0.7, label=panel.unit)
        row[1].set_title(f"denoised, {denoised.model}")
        row[0].set_ylabel(key)
    figure.suptitle(f"run {run.metadata['start']['uid'][:8]}, event {event}")
    figure.savefig(path, dpi=100)
    plt.close(figure)
