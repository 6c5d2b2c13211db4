"""Print how far the background is off beside bright peaks, and how often intervals hold it.

Run as ``python -m benchmarks.beside_peaks [--scenes 40] [--weights default]``. The background
of the simulated diffraction scene has a broad hump, its brightest tenth, some 40 pixels from the
two Bragg peaks, whose strength is varied.
"""

import numpy as np

from benchmarks.judged import judged
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.simulation.scenes import diffraction_scene

SHAPE = (160, 160)
BRAGG_CPS = 30_000.0
STRENGTHS = (0.0, 0.01, 0.1, 1.0)
LEVELS = (5.0, 50.0)
"""Mean of the background, counts per pixel."""


def main() -> None:
    denoiser, scenes = judged(__doc__, "scenes", 40)
    print("  B/px  stronger peak    hump, found / true   68 % intervals: hump, all background")
    for level in LEVELS:
        for strength in STRENGTHS:
            print(_row(denoiser, level, strength, scenes))


def _row(denoiser: Denoiser, level: float, strength: float, scenes: int) -> str:
    rng = np.random.default_rng(0)
    ratios, on_hump, on_all = [], [], []
    for seed in range(scenes):
        peaks = {"bragg_cps": strength * BRAGG_CPS, "satellite_cps": strength * 60.0}
        scene = diffraction_scene(SHAPE, seed=seed, hot_pixels=0, **peaks)
        bare = diffraction_scene(SHAPE, seed=seed, hot_pixels=0, bragg_cps=0.0, satellite_cps=0.0)
        truth = level * scene.rate
        found = denoiser.denoise(scene.expose(level, rng), 1.0, scene.mask)
        background = ~scene.mask & (scene.rate < 1.05 * bare.rate)
        hump = background & (bare.rate > np.quantile(bare.rate, 0.9))
        low, high = found.interval(0.68)
        held = (truth >= low) & (truth <= high)
        ratios.append(found.rate[hump].sum() / truth[hump].sum())
        on_hump.append(held[hump].mean())
        on_all.append(held[background].mean())
    photons = level * strength * BRAGG_CPS
    error = np.std(ratios) / np.sqrt(scenes)
    return (
        f"{level:6.0f} {photons:12.0f} ph  {np.mean(ratios):10.3f} +- {error:.3f}"
        f" {np.mean(on_hump):18.0%} {np.mean(on_all):12.0%}"
    )


if __name__ == "__main__":
    main()
