"""Print how much of their noise bright narrow lines keep, by the angle at which they run.

Run as ``python -m benchmarks.bright_lines [--frames 2] [--weights default]``. Below 1 the estimate
is better than the counts themselves. The network alone, without the last exchange, and Anscombe +
BM3D stand beside it.
"""

import numpy as np

from benchmarks.judged import judged, without_and_with
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.evaluation.baselines import anscombe_bm3d

SIDE_PX, BORDER_PX, APART_PX = 192, 20, 30
KINDS = ((50.0, 2.0, 1.5), (500.0, 10.0, 1.5), (500.0, 10.0, 3.0))
"""Counts on a line, counts beside it, sigma in pixels."""
ANGLES_DEG = (0.0, 5.0, 15.0, 26.6, 45.0)


def main() -> None:
    denoiser, frames = judged(__doc__, "frames", 2)
    print("squared error on the line over its Poisson noise")
    print(" line  beside  sigma px  degrees  network alone    ours   BM3D")
    for kind in KINDS:
        for angle in ANGLES_DEG:
            print(_row(denoiser, *kind, angle, frames))


def _row(
    denoiser: Denoiser, top: float, beside: float, sigma: float, angle: float, frames: int
) -> str:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(frames):
        truth = beside + top * _lines(sigma, np.deg2rad(angle), rng.uniform())
        counts = rng.poisson(truth)
        on_line = truth > 0.5 * top
        inside = np.zeros_like(on_line)
        inside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
        estimates = (*without_and_with(denoiser, counts), anscombe_bm3d(counts))
        found.append([((x - truth) ** 2 / truth)[on_line & inside].mean() for x in estimates])
    alone, ours, bm3d = np.mean(found, axis=0)
    return (
        f"{top:5.0f} {beside:7.0f} {sigma:9.1f} {angle:8.1f} {alone:14.2f} {ours:7.2f} {bm3d:6.2f}"
    )


def _lines(sigma: float, angle: float, offset: float) -> np.ndarray:
    """Parallel Gaussian lines of height 1 through a frame: (SIDE_PX, SIDE_PX)."""
    rows, cols = np.mgrid[:SIDE_PX, :SIDE_PX] - SIDE_PX / 2
    across = cols * np.cos(angle) + rows * np.sin(angle) - offset
    return sum(np.exp(-0.5 * ((across - k * APART_PX) / sigma) ** 2) for k in (-2, -1, 0, 1, 2))


if __name__ == "__main__":
    main()
