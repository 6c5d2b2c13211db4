"""Denoise an archived run again, and see both results with what made them.

python examples/03_denoise_again.py
"""

import tempfile
from pathlib import Path

import bluesky.plans as bp
from bluesky import RunEngine
from tiled.client import from_uri

from bluesky_denoise import (
    DenoiseSettings,
    denoised_streams,
    embedded_tiled,
    raw_writer,
    reprocess,
)
from bluesky_denoise.simulation import ReplayFrames, recorded_frames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay


def main(directory: Path) -> None:
    recorded = recorded_frames()
    frames = ReplayFrames(recorded.counts, recorded.exposure_s)
    pilatus = AreaDetectorReplay(name="pilatus", frames=frames, directory=directory / "raw")
    RE = RunEngine()
    with embedded_tiled(directory) as uri:
        cat = from_uri(uri)
        RE.subscribe(raw_writer(cat, directory / "raw_backup"))
        RE(bp.count([pilatus], 3))

        settings = DenoiseSettings(tiled_uri=uri, frames_directory=directory / "denoised")
        for mask in (None, recorded.mask):
            reprocess(cat[-1], settings.model_copy(update={"mask": mask}))
        for item in denoised_streams(cat[-1]):
            print(item.name, item.model, item.weights_sha256[:8], item.exit_status, item.num_events)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
