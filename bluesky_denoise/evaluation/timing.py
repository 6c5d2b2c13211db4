"""The process that times a denoiser and others on one frame, and does nothing else.

Run by `speed_scores` as ``python -m bluesky_denoise.evaluation.timing MODEL ROUNDS``: a
frame comes in as ``.npy``, and for each round a line of JSON goes out, seconds of CPU time by
method.
"""

import json
import sys
import time
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.evaluation.baselines import anscombe_bm3d, anscombe_nlm
from bluesky_denoise.models import MODELS
from bluesky_denoise.support.memory import keep_freed_memory

__all__ = ["OURS", "TURN_S", "eager", "main"]

OURS = "ours"
TURN_S = 0.1
"""A method takes the frame again and again for so long in each of its turns, once at least."""


def main(model: str, rounds: int, counts: np.ndarray) -> None:
    """Time all methods in turns, on one thread, and print a line for each round."""
    keep_freed_memory()  # and large pages, as where frames are denoised live; all profit
    denoiser = Denoiser.load(model, "cpu", threads=1)
    jobs: dict[str, Callable[[], object]] = {
        OURS: lambda: denoiser.denoise(counts, 1.0),
        "VDSR, eager float32": eager(MODELS["vdsr"]().eval(), counts),
        "IRUNet, eager float32": eager(MODELS["irunet"]().eval(), counts),
        "non-local means": lambda: anscombe_nlm(counts),
        "Anscombe + BM3D": lambda: anscombe_bm3d(counts),
    }
    for job in jobs.values():
        job()  # imports, plans and kernels are not timed
    for _ in range(rounds):
        least = {name: _turn(job) for name, job in jobs.items()}
        print(json.dumps(least), flush=True)


def _turn(job: Callable[[], object]) -> float:
    """Return the least CPU time of a call, seconds."""
    elapsed: list[float] = []
    while sum(elapsed) < TURN_S:
        begin = time.process_time()
        job()
        elapsed.append(time.process_time() - begin)
    return min(elapsed)


def eager(network: torch.nn.Module, counts: np.ndarray) -> Callable[[], torch.Tensor]:
    """Return a function that applies a network to a frame, padded to what it accepts.

    Parameters
    ----------
    network : takes and returns (B, 1, H, W)
    counts : (H, W) counts
    """
    image = torch.from_numpy(counts.astype(np.float32))[None, None]  # (H, W) -> (1, 1, H, W)
    below, right = (-size % network.multiple for size in counts.shape)
    image = torch.nn.functional.pad(image, (0, right, 0, below))
    valid = torch.ones_like(image)

    def apply() -> torch.Tensor:
        with torch.inference_mode():
            return network(image, valid)

    return apply


if __name__ == "__main__":
    frame = np.load(BytesIO(sys.stdin.buffer.read()))
    main(sys.argv[1], int(sys.argv[2]), frame)
