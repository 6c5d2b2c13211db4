"""Pairs to learn from: simulated scenes, and real frames that are thinned."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from bluesky_denoise.errors import FrameShapeError
from bluesky_denoise.simulation.random_scenes import random_dead, random_mask, random_scene
from bluesky_denoise.thinning import check_photon_counts, thin

__all__ = ["Batch", "RealFrames", "read_frames", "sample_batch"]


@dataclass(frozen=True, eq=False)
class RealFrames:
    """Raw photon counts of one scan."""

    counts: np.ndarray
    """(n, H, W) integer counts."""
    mask: np.ndarray
    """(H, W) bool, True where invalid."""
    name: str
    """Where they come from."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Frames to denoise, with what is known about the truth."""

    counts: np.ndarray
    """(B, side, side) float32, counts; 0 where masked."""
    target: np.ndarray
    """(B, side, side) float32: expected counts, or the remainder's counts."""
    ratio: np.ndarray
    """(B,) float32: 0 for expected counts, else exposure of the remainder over the input's."""
    mask: np.ndarray
    """(B, side, side) bool, True where invalid."""


def read_frames(path: Path) -> RealFrames:
    """Read ``frames`` (n, H, W) and ``mask`` (H, W) of an HDF5 file.

    Raises
    ------
    FrameShapeError
        If a data set is missing, or the shapes do not fit.
    FrameValueError
        If the frames are no raw photon counts.
    """
    with h5py.File(path) as file:
        if "frames" not in file:
            raise FrameShapeError(f"{path} has {sorted(file)}; a data set `frames` is needed.")
        counts = file["frames"][...]
        mask = file["mask"][...] != 0 if "mask" in file else np.zeros(counts.shape[1:], bool)
    if counts.ndim != 3 or mask.shape != counts.shape[1:]:
        raise FrameShapeError(
            f"{path} has frames {counts.shape} and mask {mask.shape}; expected (n, H, W), (H, W)."
        )
    check_photon_counts(counts, mask)
    return RealFrames(counts, mask, path.stem)


def _crop(real: RealFrames, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square from a random frame, binned by two pixels now and then."""
    counts = real.counts[rng.integers(len(real.counts))]
    height, width = counts.shape
    step = 2 if min(height, width) >= 2 * side and rng.random() < 0.15 else 1
    big = step * side
    row = rng.integers(max(height - big, 0) + 1)
    col = rng.integers(max(width - big, 0) + 1)
    counts = counts[row : row + big, col : col + big].astype(np.int64)
    mask = real.mask[row : row + big, col : col + big]
    pad = ((0, big - counts.shape[0]), (0, big - counts.shape[1]))
    counts, mask = np.pad(counts, pad), np.pad(mask, pad, constant_values=True)
    if step == 2:
        counts = counts.reshape(side, 2, side, 2).sum((1, 3))
        mask = mask.reshape(side, 2, side, 2).any((1, 3))
    return counts, mask


def _real_pair(
    real: RealFrames, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    counts, mask = _crop(real, side, rng)
    mean = counts[~mask].mean() if not mask.all() else 0.0
    # Input means from 1e-3 up, and at least half of the photons left to be predicted.
    low = min(1e-3 / max(mean, 1e-3), 0.2)
    fraction = float(np.exp(rng.uniform(np.log(max(low, 1e-5)), np.log(0.5))))
    first, remainder = thin(counts, fraction, rng)
    return first, remainder, (1 - fraction) / fraction, mask


def sample_batch(
    size: int,
    side: int,
    rng: np.random.Generator,
    real: list[RealFrames],
    real_share: float = 0.4,
    dead_share: float = 0.0,
) -> Batch:
    """Draw a batch of square frames.

    Parameters
    ----------
    size : frames in the batch
    side : pixels of a side
    rng : source of everything random
    real : scans to cut from, each equally often; may be empty
    real_share : chance that a frame is a real one
    dead_share : chance that a frame has dead pixels that are not masked
    """
    counts, targets, ratios, masks = [], [], [], []
    for _ in range(size):
        if real and rng.random() < real_share:
            first, target, ratio, mask = _real_pair(real[rng.integers(len(real))], side, rng)
        else:
            target, ratio = random_scene((side, side), rng), 0.0
            first, mask = rng.poisson(target), np.zeros((side, side), bool)
        if rng.random() < 0.4:
            mask = mask | random_mask((side, side), rng)
        if dead_share and rng.random() < dead_share:
            dead = random_dead((side, side), rng)
            first, target = np.where(dead, 0, first), np.where(dead, 0, target)
        turn = [first, target, mask]
        if rng.random() < 0.5:
            turn = [x.T for x in turn]
        for axis in (0, 1):
            if rng.random() < 0.5:
                turn = [np.flip(x, axis) for x in turn]
        first, target, mask = turn
        counts.append(np.where(mask, 0, first))
        targets.append(np.where(mask, 0, target))
        ratios.append(ratio)
        masks.append(mask)
    return Batch(
        np.stack(counts).astype(np.float32),
        np.stack(targets).astype(np.float32),
        np.array(ratios, dtype=np.float32),
        np.stack(masks),
    )
