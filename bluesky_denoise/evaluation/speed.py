"""How much longer others take for the same frame, timed side by side in a new process."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.evaluation import timing
from bluesky_denoise.evaluation.frame_sets import Track
from bluesky_denoise.support.memory import with_large_pages

__all__ = ["SpeedScore", "TimingError", "speed_scores"]


class TimingError(DenoiseError, RuntimeError):
    """The process that times ended before it was done."""


@dataclass(frozen=True)
class SpeedScore:
    """Time of one method, as a ratio."""

    method: str
    times_longer: float
    """Least CPU time for one frame over that of the denoiser."""
    frame: str
    """Size of the frame, pixels."""


def speed_scores(
    model: str | Path, counts: np.ndarray, track: Track, *, rounds: int = 7
) -> list[SpeedScore]:
    """Time BM3D, non-local means, VDSR and IRUNet against a denoiser on the CPU.

    All are timed alike, and as frames are denoised live: in a process that does nothing else, on
    one thread, after a first frame. They take turns, so that whatever else the machine does
    meets all of them, and the least CPU time of each counts: other work only adds to it, and
    adds more to what depends on the caches. VDSR and IRUNet run eagerly in float32, as
    released; what they weigh does not change what they cost.

    Parameters
    ----------
    model : name or path of the weights
    counts : (H, W) integer counts
    track : shows progress
    rounds : turns of each method

    Raises
    ------
    TimingError
        If the process fails, with the end of what it wrote.
    """
    command = [sys.executable, "-m", timing.__name__, str(model), str(rounds)]
    least: dict[str, float] = {}
    with tempfile.TemporaryFile() as frame, tempfile.TemporaryFile() as errors:
        np.save(frame, counts, allow_pickle=False)
        frame.seek(0)
        with subprocess.Popen(
            command,
            stdin=frame,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=with_large_pages(os.environ),
        ) as process:
            lines = iter(process.stdout or ())
            for _ in track(range(rounds), "speed"):
                for name, seconds in json.loads(next(lines, "{}")).items():
                    least[name] = min(least.get(name, seconds), seconds)
        if process.returncode:
            errors.seek(0)
            end = errors.read().decode(errors="replace").strip()[-500:] or "nothing"
            raise TimingError(
                f"Nothing could be timed; the process for it ended with {process.returncode} and "
                f"wrote: {end}"
            )
    ours = least.pop(timing.OURS)
    size = " x ".join(map(str, counts.shape))
    return [SpeedScore(name, seconds / ours, size) for name, seconds in least.items()]
