"""How much longer others take for the same frame, in the same run, on one thread."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from bluesky_denoise.evaluation.baselines import anscombe_bm3d, anscombe_nlm
from bluesky_denoise.evaluation.frame_sets import Track
from bluesky_denoise.evaluation.methods import SupportsDenoise
from bluesky_denoise.memory import keep_freed_memory
from bluesky_denoise.models import MODELS

__all__ = ["SpeedScore", "eager", "speed_scores"]


@dataclass(frozen=True)
class SpeedScore:
    """Time of one method, as a ratio."""

    method: str
    times_longer: float
    """Median CPU time for one frame over that of the denoiser."""
    frame: str
    """Size of the frame, pixels."""


def speed_scores(
    denoiser: SupportsDenoise, counts: np.ndarray, track: Track, *, rounds: int = 3
) -> list[SpeedScore]:
    """Time BM3D, non-local means, VDSR and IRUNet against a denoiser on the CPU.

    VDSR and IRUNet run eagerly in float32, as released; what they weigh does not change
    what they cost. CPU time of this process is compared, so that other work on the machine
    counts less; rounds alternate between the methods.

    Parameters
    ----------
    denoiser : on the CPU
    counts : (H, W) integer counts
    track : shows progress
    rounds : BM3D is timed in the first only
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the process that denoises live does; it helps the others, too
    try:
        jobs: dict[str, Callable[[], object]] = {
            denoiser.name: lambda: denoiser.denoise(counts, 1.0),
            "VDSR, eager float32": eager(MODELS["vdsr"]().eval(), counts),
            "IRUNet, eager float32": eager(MODELS["irunet"]().eval(), counts),
            "non-local means": lambda: anscombe_nlm(counts),
            "Anscombe + BM3D": lambda: anscombe_bm3d(counts),
        }
        for name in list(jobs)[:2]:
            jobs[name]()  # warm up
        elapsed: dict[str, list[float]] = {}
        todo = [
            (i, name) for i in range(rounds) for name in jobs if i == 0 or name != "Anscombe + BM3D"
        ]
        for _, name in track(todo, "speed"):
            repeats = 5 if name == denoiser.name else 1
            for _ in range(repeats):
                begin = time.process_time()
                jobs[name]()
                elapsed.setdefault(name, []).append(time.process_time() - begin)
    finally:
        torch.set_num_threads(threads)
    ours = median(elapsed[denoiser.name])
    size = " x ".join(map(str, counts.shape))
    return [
        SpeedScore(name, median(times) / ours, size)
        for name, times in elapsed.items()
        if name != denoiser.name
    ]


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
