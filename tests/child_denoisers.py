"""Denoisers that tests run in the child process; the child finds them by PYTHONPATH."""

import logging
import os
import resource
import time
from pathlib import Path

from bluesky_denoise.testing import UnitDenoiser


class Gated(UnitDenoiser):
    """Waits before each batch until the file `DENOISE_TEST_GATE` is there."""

    def denoise(self, counts, exposure_s, mask=None):
        while not Path(os.environ["DENOISE_TEST_GATE"]).exists():
            time.sleep(0.01)
        return super().denoise(counts, exposure_s, mask)


def loaded_late():
    """Load when the file `DENOISE_TEST_GATE` is there."""
    while not Path(os.environ["DENOISE_TEST_GATE"]).exists():
        time.sleep(0.01)
    return UnitDenoiser()


class Slow(UnitDenoiser):
    """Takes a tenth of a second for each frame."""

    def denoise(self, counts, exposure_s, mask=None):
        time.sleep(0.1 * len(counts))
        return super().denoise(counts, exposure_s, mask)


class StuckAtTheThird(Gated):
    """Denoises two frames, and waits with the third until there is a file."""

    def denoise(self, counts, exposure_s, mask=None):
        if len(self.calls) < 2:
            return UnitDenoiser.denoise(self, counts, exposure_s, mask)
        return super().denoise(counts, exposure_s, mask)


class Broken(UnitDenoiser):
    """Fails on every frame."""

    def denoise(self, counts, exposure_s, mask=None):
        raise RuntimeError("no memory on the GPU")


class Talkative(UnitDenoiser):
    """Logs `DENOISE_TEST_SECRET` with each batch, and fails with it."""

    def denoise(self, counts, exposure_s, mask=None):
        logging.getLogger("bluesky_denoise.talkative").warning(
            "The secret is %s", os.environ["DENOISE_TEST_SECRET"]
        )
        return blabbing()


def blabbing():
    """Fail to load, with `DENOISE_TEST_SECRET` in the message."""
    raise ValueError(f"the secret is {os.environ['DENOISE_TEST_SECRET']}")


class FillsTheDisk(UnitDenoiser):
    """Leaves no room for files of its process to grow once it has denoised three frames."""

    def denoise(self, counts, exposure_s, mask=None):
        if sum(self.calls) == 3:
            used = Path(os.environ["DENOISE_TEST_FRAMES"]).rglob("*.h5")
            room = max(file.stat().st_size for file in used) + 1000
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        return super().denoise(counts, exposure_s, mask)


class Hasty(UnitDenoiser):
    """Lets requests of its process wait for an answer of Tiled for a second at most."""

    def __init__(self):
        from tiled.client.utils import DEFAULT_TIMEOUT_PARAMS

        super().__init__()
        DEFAULT_TIMEOUT_PARAMS["read"] = 1.0
