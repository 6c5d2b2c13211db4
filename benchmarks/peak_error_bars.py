"""Print how often the error bars of a denoised frame hold the truth on the cores of weak peaks.

Run as ``python -m benchmarks.peak_error_bars [--frames 40] [--weights default]``. Round peaks of a
standard deviation of 2 pixels, 16 to a frame, stand on a flat background; a core is what lies
within one standard deviation of a centre. Strength is S / sqrt(4 pi sigma^2 B).
"""

import numpy as np

from benchmarks.judged import judged
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

SHAPE = (192, 192)
SIGMA, APART = 2.0, 48
STRENGTHS = (3, 5, 7, 10, 15, 30)
LEVELS = (0.1, 1.0, 10.0)
"""Background, counts per pixel."""


def main() -> None:
    denoiser, frames = judged(__doc__, "frames", 40)
    print(" B/px  strength   95 % intervals: cores, all pixels   of the peak in its core kept")
    for level in LEVELS:
        for strength in STRENGTHS:
            print(_row(denoiser, level, strength, frames), flush=True)


def _row(denoiser: Denoiser, level: float, strength: float, frames: int) -> str:
    rng = np.random.default_rng(0)
    photons = strength * np.sqrt(4 * np.pi * SIGMA**2 * level)
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    on_core, on_all, kept = [], [], []
    for _ in range(frames):
        truth, cores = np.full(SHAPE, level), []
        for corner in np.ndindex(SHAPE[0] // APART, SHAPE[1] // APART):
            row, col = APART * (np.array(corner) + 0.5) + rng.uniform(-3, 3, 2)
            truth += gaussian_peak(SHAPE, Peak(row, col, photons, SIGMA, SIGMA))
            cores.append(np.hypot(rows - row, cols - col) < SIGMA)
        found = denoiser.denoise(rng.poisson(truth), 1.0)
        low, high = found.interval(0.95)
        held = (truth >= low) & (truth <= high)
        on_core += [held[core].mean() for core in cores]
        on_all.append(held.mean())
        kept += [(found.rate[core] - level).sum() / (truth[core] - level).sum() for core in cores]
    error = np.std(on_core) / np.sqrt(len(on_core))
    tenth, median, most = np.quantile(kept, (0.1, 0.5, 0.9))
    return (
        f"{level:5.1f} {strength:9d} {np.mean(on_core):21.0%} ± {error:.0%} {np.mean(on_all):12.1%}"
        f"   {median:14.2f} ({tenth:.2f} to {most:.2f})"
    )


if __name__ == "__main__":
    main()
