"""Denoisers that tests run in the child process; the child finds them by PYTHONPATH."""

import os
import time
from pathlib import Path

from bluesky_denoise.testing import UnitDenoiser


class Gated(UnitDenoiser):
    """Waits before each batch until the file `DENOISE_TEST_GATE` is there."""

    def denoise(self, counts, exposure_s, mask=None):
        while not Path(os.environ["DENOISE_TEST_GATE"]).exists():
            time.sleep(0.01)
        return super().denoise(counts, exposure_s, mask)


class StuckAtTheThird(UnitDenoiser):
    """Denoises two frames, and never comes back from the third."""

    def denoise(self, counts, exposure_s, mask=None):
        rate = super().denoise(counts, exposure_s, mask)
        if len(self.calls) > 2:
            time.sleep(600)
        return rate


class Broken(UnitDenoiser):
    """Fails on every frame."""

    def denoise(self, counts, exposure_s, mask=None):
        raise RuntimeError("no memory on the GPU")
