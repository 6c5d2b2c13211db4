"""Print what becomes of fringes and speckle, which training has hardly seen at few counts.

Run as ``python -m benchmarks.fine_structure [--frames 2] [--weights default]``: the contrast that
fringes keep, the squared error over Poisson noise (1: no better than the counts themselves), how
often the 95 % intervals hold, and how many frames the audit flags. The network alone, without the
last exchange, Anscombe + BM3D, and the best Gaussian, which knows the truth, stand beside it.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from benchmarks.judged import judged, without_and_with
from bluesky_denoise.audit import audit_frame
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.evaluation.baselines import anscombe_bm3d, best_gaussian

SIDE_PX = 192
ANGLE = 0.4
"""Of the fringes, radians."""
VISIBILITY = 0.95
FRINGES = tuple((period, mean) for mean in (0.1, 0.5, 3.0, 20.0) for period in (4, 6, 8, 12))
"""Pixels, mean counts per pixel."""
SPECKLE = tuple((grain, mean) for mean in (0.1, 0.5, 5.0, 100.0) for grain in (2.0, 4.0))
"""Width of a grain in pixels, mean counts per pixel; contrast 1."""


def main() -> None:
    denoiser, frames = judged(__doc__, "frames", 2)
    print(
        "| scene | counts / px | contrast kept: network alone | ours | BM3D | best Gaussian | "
        "error over noise: network alone | ours | BM3D | best Gaussian | 95 % intervals | flagged |"
    )
    print("| --- " * 12 + "|")
    for name, mean, scenes in _scenes(frames):
        print(_row(denoiser, name, mean, scenes), flush=True)


def _scenes(frames: int) -> Iterator[tuple[str, float, list[tuple[np.ndarray, np.ndarray | None]]]]:
    """Yield name, mean counts, and scenes with the wave that contrast is measured with."""
    rows, cols = np.mgrid[:SIDE_PX, :SIDE_PX]
    across = cols * np.cos(ANGLE) + rows * np.sin(ANGLE)
    for period, mean in FRINGES:
        phase = 2 * np.pi * across / period
        scene = mean * (1 + VISIBILITY * np.cos(phase))
        yield f"fringes of {period} px", mean, [(scene, np.exp(-1j * phase))] * frames
    for grain, mean in SPECKLE:
        found = [(mean * _speckle(grain, np.random.default_rng(i)), None) for i in range(frames)]
        yield f"speckle of {grain:g} px", mean, found


def _speckle(grain_px: float, rng: np.random.Generator) -> np.ndarray:
    """Fully developed speckle of mean 1: the intensity of a smooth complex Gaussian field."""
    field = rng.normal(size=(2, SIDE_PX, SIDE_PX))
    real, imaginary = (ndimage.gaussian_filter(part, grain_px / 2.355) for part in field)
    intensity = real**2 + imaginary**2
    return intensity / intensity.mean()


def _row(
    denoiser: Denoiser, name: str, mean: float, scenes: list[tuple[np.ndarray, np.ndarray | None]]
) -> str:
    kept, errors, held, flagged = [], [], [], 0
    for seed, (truth, wave) in enumerate(scenes):
        counts = np.random.default_rng(seed).poisson(truth)
        found = denoiser.denoise(counts, 1.0)
        smooth, _ = best_gaussian(
            counts, lambda image, truth=truth: float(((image - truth) ** 2).mean())
        )
        estimates = (*without_and_with(denoiser, counts), anscombe_bm3d(counts), smooth)
        errors.append([((image - truth) ** 2).mean() / truth.mean() for image in estimates])
        if wave is not None:
            of_truth = abs((truth * wave).sum())
            kept.append([abs((image * wave).sum()) / of_truth for image in estimates])
        low, high = found.interval(0.95)
        held.append(((truth >= low) & (truth <= high)).mean())
        flagged += not audit_frame(counts, 1.0, denoiser).ok
    cells = [f"{x:.2f}" for x in np.mean(kept, axis=0)] if kept else [""] * 4
    cells += [f"{x:.3f}" for x in np.mean(errors, axis=0)]
    cells += [f"{100 * np.mean(held):.0f} %", f"{flagged} of {len(scenes)}"]
    return f"| {name} | {mean:g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
