"""Print what share of the photons the network moves through each kernel, at each level.

Run as ``python -m benchmarks.kernel_shares [--scenes 60] [--weights default]``: the mean over all
simulated scenes, from 0.01 to 1000 counts per pixel, and the mean of the scene that uses it most.
The shares of a pixel at one level have the sum 1, but for pixels that stay as they were counted.
"""

import argparse

import numpy as np
import torch

from bluesky_denoise.models.checkpoint import load_checkpoint
from bluesky_denoise.models.photon_exchange import PhotonExchange
from bluesky_denoise.simulation.random_scenes import random_scene

SIDE_PX = 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--weights", default="default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    network, card = load_checkpoint(given.weights)
    if not isinstance(network, PhotonExchange):
        raise SystemExit(f"{given.weights} is a {card['model']}, which has no kernels.")
    print(f"weights {card['sha256'][:12]}, {given.scenes} scenes")
    found = [_shares(network, seed) for seed in range(given.scenes)]
    print("| pixels | kernel | mean | most in a scene |\n| --- | --- | --- | --- |")
    for pixels, name in found[0]:
        of_scenes = [shares[pixels, name] for shares in found]
        print(f"| {pixels} | {name} | {np.mean(of_scenes):.5f} | {max(of_scenes):.5f} |")


@torch.inference_mode()
def _shares(network: PhotonExchange, seed: int) -> dict[tuple[int, str], float]:
    """Return the mean share of each kernel, by the pixels of its level and its name."""
    rng = np.random.default_rng([31, seed])
    scene = random_scene((SIDE_PX, SIDE_PX), rng, log10_level=(-2.0, 3.0))
    counts = torch.from_numpy(rng.poisson(scene).astype(np.float32))[None, None]
    levels, _ = network.shares(counts, torch.ones_like(counts))
    found = {}
    for level, shares in enumerate(levels):
        roots = {"itself": shares.own}
        roots |= {
            kernel.name: root for kernel, root in zip(shares.bank, shares.kernels, strict=True)
        }
        if shares.coarser is not None:
            roots["coarser pixels"] = shares.coarser
        found |= {(2**level, name): float((root**2).mean()) for name, root in roots.items()}
    return found


if __name__ == "__main__":
    main()
