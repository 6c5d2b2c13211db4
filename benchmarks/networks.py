"""The denoiser against BM3D and the networks of the paper, on the same frames."""

import time
from collections.abc import Callable
from statistics import median

import torch

from bluesky_denoise import Denoiser
from bluesky_denoise.evaluation.baselines import anscombe_bm3d
from bluesky_denoise.evaluation.speed import eager
from bluesky_denoise.memory import keep_freed_memory
from bluesky_denoise.models import MODELS
from bluesky_denoise.simulation import recorded_frames


def times_slower(repeats: int = 5) -> dict[str, float]:
    """Return how many times longer the others take for a frame of 195 x 487, on one thread.

    VDSR and IRUNet run eagerly in float32, as released; what they weigh does not change
    what they cost.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the process that denoises live does; it helps the others, too
    try:
        counts = recorded_frames().counts[0]
        denoiser = Denoiser.load(device="cpu")
        ours = _time(lambda: denoiser.denoise(counts, 1.0), repeats)
        ratios = {"Anscombe + BM3D": _time(lambda: anscombe_bm3d(counts), 1) / ours}
        for name in ("vdsr", "irunet"):
            ratios[name] = _time(eager(MODELS[name]().eval(), counts), 2) / ours
        return ratios
    finally:
        torch.set_num_threads(threads)


def _time(function: Callable, repeats: int) -> float:
    if repeats > 1:
        function()
    elapsed = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        elapsed.append(time.perf_counter() - begin)
    return median(elapsed)
