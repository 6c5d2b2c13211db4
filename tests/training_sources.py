"""Sources of training data, in memory and in files."""

import h5py
import numpy as np

from bluesky_denoise.training.pairs import Repeats, ThinnedFrames


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return path


def thinned(number, name="scan", seed=1):
    counts = np.random.default_rng(seed).poisson(5.0, (number, 40, 48))
    return ThinnedFrames(counts=counts, mask=np.zeros((40, 48), bool), name=name)


def repeats(number, seed=1):
    counts = np.random.default_rng(seed).poisson(5.0, (number, 40, 48))
    return Repeats(counts=counts, mask=np.zeros((40, 48), bool), name="repeats")
