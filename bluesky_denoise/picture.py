"""A picture of one event: raw, denoised, and what lies between them."""

from pathlib import Path
from typing import Any

import numpy as np

from .archive import EventArray, raw_rows
from .catalog import FROM_ARCHIVE
from .frame_keys import raw_key

__all__ = ["draw_event"]


def draw_event(run: Any, denoised: Any, event: int, path: Path) -> None:
    """Draw raw and denoised frames of an event, and their difference in standard deviations.

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
        If Tiled does not tell which raw frames the denoised ones are of.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    raw = run[denoised.raw_stream].base
    specs = denoised.stream.base.metadata["data_keys"]
    raw_keys = {key: raw_key(key, spec) for key, spec in specs.items()}
    keys = [
        key for key in denoised.stream if denoised.stream[key].ndim >= 3 and raw_keys[key] in raw
    ]
    seq_nums = np.asarray(denoised.stream["raw_seq_num"].read(), int)
    columns = 4 if any(f"{key}_sigma" in denoised.stream for key in keys) else 3
    # As high as the frames are at this width, with room for a title.
    heights = [4.0 * np.divide(*denoised.stream[key].shape[-2:]) + 0.6 for key in keys]
    figure, axes = plt.subplots(
        *(len(keys), columns),
        figsize=(4.7 * columns, sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for row, key in zip(axes, keys, strict=True):
        exposure_s = float(denoised.stream[f"{key}_exposure_s"].read()[event - 1])
        rate = np.asarray(denoised.stream[key][event - 1], float)
        rate = rate.reshape(-1, *rate.shape[-2:])[0]
        events = EventArray(raw, raw_keys[key])
        order = raw_rows(
            *(run, denoised.raw_stream, seq_nums, len(events)),
            from_archive=bool(denoised.provenance.get(FROM_ARCHIVE)),
        )
        at = order[event - 1]
        counts = np.asarray(events[at : at + 1], float)
        counts = counts.reshape(-1, *counts.shape[-2:])[0]
        valid = np.isfinite(rate)
        top = max(float(np.nanpercentile(rate, 99.9)), 1e-6) if valid.any() else 1.0
        norm = LogNorm(top / 1e3, top)
        residual = (counts - rate * exposure_s) / np.sqrt(np.maximum(rate * exposure_s, 0.1))
        images = [
            (f"raw, {exposure_s:g} s", np.maximum(counts / exposure_s, top / 1e3), {"norm": norm}),
            (f"denoised, {denoised.model}", np.maximum(rate, top / 1e3), {"norm": norm}),
            ("raw - denoised", residual, {"vmin": -4, "vmax": 4, "cmap": "RdBu_r"}),
        ]
        if f"{key}_sigma" in denoised.stream:
            error = np.asarray(denoised.stream[f"{key}_sigma"][event - 1], float)
            error = error.reshape(-1, *error.shape[-2:])[0]
            images.append(("standard error", np.maximum(error, top / 1e3), {"norm": norm}))
        for axis, (title, image, options) in zip(row, images, strict=False):
            shown = axis.imshow(np.where(valid, image, np.nan), **options)
            axis.set(title=title, xticks=[], yticks=[])
            unit = "counts / s" if options.get("norm") else "standard deviations"
            figure.colorbar(shown, ax=axis, shrink=0.7, label=unit)
        row[0].set_ylabel(key)
    figure.suptitle(f"run {run.metadata['start']['uid'][:8]}, event {event}")
    figure.savefig(path, dpi=100)
    plt.close(figure)
