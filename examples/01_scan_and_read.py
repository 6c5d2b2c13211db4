"""Scan with a simulated detector, denoise beside the scan, read both from Tiled.

python examples/01_scan_and_read.py
"""

import tempfile
from pathlib import Path

import bluesky.plans as bp
from bluesky import RunEngine
from bluesky.callbacks import LiveTable
from ophyd.sim import motor
from tiled.client import from_uri

from bluesky_denoise import DenoiseProcess, DenoiseSettings, embedded_tiled, raw_writer
from bluesky_denoise.simulation import SceneFrames, diffraction_scene
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector


def main(directory: Path) -> None:
    frames = SceneFrames(diffraction_scene(), position=lambda: motor.position)
    det = ReplayDetector(name="det", frames=frames, exposure_s=0.1)
    RE = RunEngine()
    with embedded_tiled(directory) as uri:
        cat = from_uri(uri)
        RE.subscribe(raw_writer(cat, directory / "raw_backup"))
        settings = DenoiseSettings(tiled_uri=uri, frames_directory=directory / "denoised")
        with DenoiseProcess(settings) as denoise:
            columns = ["motor", "det_image_denoised_total", "latency_s"]
            denoise.subscribe(LiveTable(columns, stream_name="denoised"))
            RE.subscribe(denoise)
            RE(bp.scan([det], motor, -1, 1, 5))
            denoise.wait(60)
        run = cat[-1]
        raw, denoised = run["primary"]["det_image"], run["denoised"]["det_image"]
        print("raw     ", raw.shape, raw.dtype)
        print("denoised", denoised.shape, denoised.dtype, "counts / s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
