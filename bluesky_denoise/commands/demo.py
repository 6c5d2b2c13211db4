"""The main job from end to end, on measured frames: scan, denoise, compare, show.

The frames are from Diamond beamline I07 (1 s each, a weak specular line over diffuse
scattering). Each is compared with the 20 frames around it, 20 s, without itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bluesky import RunEngine
from bluesky import plans as bp
from ophyd.sim import SynAxis
from tiled.client import from_uri

from bluesky_denoise.evaluation.baselines import best_gaussian
from bluesky_denoise.evaluation.metrics import line_contrast, noise_corrected_error
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.raw_runs import raw_writer
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.simulation import ReplayFrames, recorded_frames, reference
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay

__all__ = ["Comparison", "compare", "draw", "scan_and_denoise"]

_AROUND = 10  # frames before and after that make the reference
_SHOWN_COLUMNS = 110  # on either side of the line, in the picture
_PROFILE_ROWS = slice(20, 60)
KEY = "pilatus_image"


def scan_and_denoise(
    uri: str, directory: Path, progress: Callable[[str, int, int], None]
) -> tuple[str, np.ndarray]:
    """Scan the recorded frames with a RunEngine, and denoise them beside it.

    Parameters
    ----------
    uri :
        Address of a Tiled server that may read `directory`.
    directory :
        Where raw and denoised frames are saved.
    progress :
        Called with ``"scanned"`` or ``"denoised"``, the number done, and of how many.

    Returns
    -------
    tuple
        The uid of the run, and the denoised frames (N, H, W), counts / s, from Tiled.
    """
    recorded = recorded_frames()
    inner = recorded.counts[_AROUND : len(recorded.counts) - _AROUND]
    pilatus = AreaDetectorReplay(
        name="pilatus",
        frames=ReplayFrames(inner, recorded.exposure_s),
        directory=directory / "raw_frames",
        exposure_s=recorded.exposure_s,
    )
    angle = SynAxis(name="angle")
    client = from_uri(uri)
    RE = RunEngine()
    RE.subscribe(raw_writer(client, directory / "raw_backup"))
    settings = DenoiseSettings(tiled_uri=uri, frames_directory=directory / "denoised_frames")
    with DenoiseProcess(settings) as denoise:

        def count(what: str) -> Callable[[str, Any], None]:
            return lambda name, doc: progress(what, doc["seq_num"], len(inner))

        counters = count("scanned"), count("denoised")
        RE.subscribe(counters[0], "event")
        denoise.subscribe(counters[1], "event")
        RE.subscribe(denoise)
        result = RE(bp.scan([pilatus], angle, 1.0, 1.3, len(inner)))
        (uid,) = result if isinstance(result, tuple) else result.run_start_uids
        denoise.wait(300)
    frames = client[uid]["denoised"][KEY].read()
    return uid, frames.reshape(len(inner), *inner.shape[1:])


@dataclass(frozen=True)
class Comparison:
    """Scores of one way to estimate the 20 s frame from the 1 s frame."""

    name: str
    error: float
    """Squared error without the reference's own noise, over the mean count; raw: 1."""
    contrast: float
    """Brightness of the line over both of its sides, over the reference's."""


def compare(denoised: np.ndarray) -> tuple[list[Comparison], dict[str, np.ndarray]]:
    """Compare raw, Gaussian and denoised frames with the measured 20 s references.

    Parameters
    ----------
    denoised : (N, H, W), counts / s

    Returns
    -------
    list of Comparison
        Raw, best Gaussian, denoised.
    dict
        The middle frame in each way, and the reference: (H, W), counts / s.
    """
    recorded = recorded_frames()
    exposure_s = recorded.exposure_s
    columns = recorded.counts.sum((0, 1), dtype=np.int64)
    line = int(np.argmax(columns - np.roll(columns, 12) / 2 - np.roll(columns, -12) / 2))
    names = ("raw 1 s", "best Gaussian", "denoised 1 s")
    errors: dict[str, list[float]] = {name: [] for name in names}
    sums = {name: np.zeros(recorded.counts.shape[1:]) for name in (*names, "measured 20 s")}
    shown: dict[str, np.ndarray] = {}
    for i, rate in enumerate(denoised):
        counts = recorded.counts[i + _AROUND]
        long_counts, long_s = reference(recorded, i + _AROUND, _AROUND)
        scale = exposure_s / long_s
        # The 20 frames around this one are a little brighter or darker than it.
        scale *= counts.sum(dtype=float) / (long_counts.sum() * scale)

        def score(
            estimate: np.ndarray, long: np.ndarray = long_counts, scale: float = scale
        ) -> float:
            return noise_corrected_error(estimate, long, scale)

        blurred, _ = best_gaussian(counts, score)
        estimates = dict(zip(names, (counts, blurred, rate * exposure_s), strict=True))
        for name, estimate in estimates.items():
            errors[name].append(score(estimate))
        estimates["measured 20 s"] = long_counts * scale
        for name, estimate in estimates.items():
            sums[name] += estimate
        if i == len(denoised) // 2:
            shown = {name: np.asarray(est) / exposure_s for name, est in estimates.items()}
    wanted = line_contrast(sums["measured 20 s"], line)
    table = [
        Comparison(name, float(np.mean(errors[name])), line_contrast(sums[name], line) / wanted)
        for name in names
    ]
    return table, shown | {"line": np.array(line)}


def draw(shown: dict[str, np.ndarray], path: Path) -> None:
    """Draw one frame in every way, and the profile across the line.

    Parameters
    ----------
    shown :
        As `compare` returns it.
    path :
        The PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    line = int(shown["line"])
    names = ("raw 1 s", "denoised 1 s", "measured 20 s")
    colors = {"raw 1 s": "0.7", "denoised 1 s": "tab:red", "measured 20 s": "k"}
    norm = LogNorm(0.3, float(np.percentile(shown["measured 20 s"], 99.9)))
    figure = plt.figure(figsize=(11, 7.5), layout="compressed")
    axes = figure.subplot_mosaic([list(names), ["profile"] * 3], height_ratios=[1.3, 1])
    left, right = max(0, line - _SHOWN_COLUMNS), line + _SHOWN_COLUMNS
    for name in names:
        image = axes[name].imshow(
            np.maximum(shown[name][:, left:right], 0.3),
            norm=norm,
            cmap="viridis",
            extent=(left, right, len(shown[name]), 0),
        )
        axes[name].set(title=name, xticks=[], yticks=[])
        for row in (_PROFILE_ROWS.start, _PROFILE_ROWS.stop):
            axes[name].axhline(row, color="w", linestyle=":", linewidth=0.8)
    figure.colorbar(image, ax=[axes[name] for name in names], label="counts / s")
    columns = np.arange(line - 40, line + 41)
    for name in ("raw 1 s", "measured 20 s", "denoised 1 s"):
        profile = shown[name][_PROFILE_ROWS][:, columns].mean(0)
        axes["profile"].plot(
            columns, profile, color=colors[name], label=name, drawstyle="steps-mid"
        )
    axes["profile"].set(
        title="Across the weak line, mean of the rows between the dotted lines",
        xlabel="column (pixels)",
        ylabel="counts / s",
    )
    axes["profile"].legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
