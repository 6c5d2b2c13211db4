"""Batches to learn from: simulated scenes, and pairs of measured frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.simulation.random_masks import random_dead, random_mask
from bluesky_denoise.simulation.random_scenes import random_scene
from bluesky_denoise.training.pairs import Pair, PairSource

__all__ = ["Batch", "SimulatedScenes", "sample_batch", "stack_pairs"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Frames to denoise, with what is known about the truth."""

    counts: np.ndarray
    """(B, H, W) float32, counts; 0 where masked."""
    target: np.ndarray
    """(B, H, W) float32: expected counts, or counts of an independent exposure."""
    ratio: np.ndarray
    """(B,) float32: 0 for expected counts, else exposure of the target over the input's."""
    mask: np.ndarray
    """(B, H, W) bool, True where invalid."""


class SimulatedScenes:
    """Random scenes whose expected counts are known; no two are alike."""

    name = "simulated scenes"

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Pair:
        """Return Poisson counts of a new scene, and their expectation."""
        expected = random_scene(shape, rng)
        return Pair(rng.poisson(expected), expected, 0.0, np.zeros(shape, bool))


def sample_batch(
    size: int,
    side: int,
    rng: np.random.Generator,
    measured: Sequence[PairSource],
    measured_share: float = 0.4,
    dead_share: float = 0.0,
) -> Batch:
    """Draw a batch of square frames.

    Parameters
    ----------
    size : frames in the batch
    side : pixels of a side
    rng : source of everything random
    measured : sources to draw from, each equally often; may be empty
    measured_share : chance that a frame is a measured one
    dead_share : chance that a frame has dead pixels that are not masked
    """
    scenes, shape, pairs = SimulatedScenes(), (side, side), []
    for _ in range(size):
        if measured and rng.random() < measured_share:
            pair = measured[int(rng.integers(len(measured)))].draw(shape, rng)
        else:
            pair = scenes.draw(shape, rng)
        first, target, mask = pair.counts, pair.target, pair.mask
        if rng.random() < 0.4:
            mask = mask | random_mask(shape, rng)
        if dead_share and rng.random() < dead_share:
            dead = random_dead(shape, rng)
            first, target = np.where(dead, 0, first), np.where(dead, 0, target)
        turn = [first, target, mask]
        if rng.random() < 0.5:
            turn = [x.T for x in turn]
        for axis in (0, 1):
            if rng.random() < 0.5:
                turn = [np.flip(x, axis) for x in turn]
        pairs.append(Pair(turn[0], turn[1], pair.ratio, turn[2]))
    return stack_pairs(pairs)


def stack_pairs(pairs: Sequence[Pair]) -> Batch:
    """Make a batch of pairs of one size, with zeros where they are masked."""
    return Batch(
        np.stack([np.where(p.mask, 0, p.counts) for p in pairs]).astype(np.float32),
        np.stack([np.where(p.mask, 0, p.target) for p in pairs]).astype(np.float32),
        np.array([p.ratio for p in pairs], dtype=np.float32),
        np.stack([p.mask for p in pairs]),
    )
