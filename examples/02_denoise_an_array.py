"""Denoise frames that are already in memory: numpy in, numpy out.

python examples/02_denoise_an_array.py
"""

import numpy as np

from bluesky_denoise import Denoiser
from bluesky_denoise.simulation import diffraction_scene


def main() -> None:
    scene = diffraction_scene()
    rng = np.random.default_rng(0)
    counts = np.stack([scene.expose(0.2, rng) for _ in range(4)])

    denoiser = Denoiser.load()
    rate = denoiser.denoise(counts, exposure_s=0.2, mask=scene.mask).rate

    valid = ~scene.mask
    print(f"{denoiser.name} on {denoiser.device}: {rate.shape} {rate.dtype}")
    print("masked pixels are NaN:", bool(np.isnan(rate[:, scene.mask]).all()))
    kept = rate[:, valid].sum(dtype=float) * 0.2 / counts[:, valid].sum(dtype=float)
    print(f"counts kept: {kept:.5f}")
    for name, frames in (("raw", counts / 0.2), ("denoised", rate)):
        error = np.mean((frames - scene.rate)[:, valid] ** 2)
        print(f"mean squared error, {name}: {error:.3f} (counts / s)^2")


if __name__ == "__main__":
    main()
