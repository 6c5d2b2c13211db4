"""How long a plan waits for a denoised number, and what a point costs beyond its exposure.

Run as ``python -m benchmarks.latency [--points 60] [--exposure 0.2]``. A simulated detector
exposes in real time; a plan reads the denoised signals of each point, as `denoised_scan` does.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd.sim import SynAxis
from tiled.client import from_uri

from bluesky_denoise import DenoiseProcess, Denoiser, DenoiseSettings, embedded_tiled
from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.plans import denoised_scan
from bluesky_denoise.roi import ROI
from bluesky_denoise.simulation import SceneFrames, diffraction_scene
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector

_WARM_UP = 5  # points that make files, streams and kernels


class Latency(NamedTuple):
    """Seconds, but for the ratios."""

    p50_s: float
    """Median from the end of an exposure to the denoised signal in the plan."""
    p95_s: float
    """95 % of the points are faster."""
    point_s: float
    """What a point costs beyond its exposure, median, with denoised signals."""
    plain_point_s: float
    """The same in a plain `bluesky.plans.scan` of the same detector."""
    one_frame_s: float
    """What the denoiser alone takes for one frame."""


class _Stamped(ReplayDetector):
    """Notes when each exposure has ended."""

    def trigger(self):
        status = super().trigger()
        status.add_callback(lambda *args: self.ended.append(time.perf_counter()))
        return status


def plan_latency(points: int = 60, exposure_s: float = 0.2) -> Latency:
    """Scan, and measure; frames of 195 x 487 pixels, two ROIs, raw and denoised into Tiled."""
    scene = diffraction_scene()
    motor = SynAxis(name="motor")
    det = _Stamped(
        name="det",
        frames=SceneFrames(scene, position=lambda: motor.position),
        exposure_s=exposure_s,
        realtime=True,
    )
    det.ended = []
    rois = {
        f"satellite_{i}": ROI(
            rows=(round(peak.row) - 12, round(peak.row) + 13),
            cols=(round(peak.col) - 16, round(peak.col) + 17),
            background_px=4,
        )
        for i, peak in enumerate(scene.satellites[:2], 1)
    }
    number = points + _WARM_UP
    with tempfile.TemporaryDirectory() as name, embedded_tiled(name) as uri:
        RE = RunEngine()
        RE.subscribe(TiledWriter(from_uri(uri)))
        plain = _between(RE, det, bp.scan([det], motor, -1, 1, number))
        settings = DenoiseSettings(
            tiled_uri=uri, frames_directory=Path(name) / "denoised", rois=rois, mask=scene.mask
        )
        with DenoiseProcess(settings) as denoise:
            RE.subscribe(denoise)
            signals = DenoisedSignals(denoise, data_keys=["det_image"], timeout_s=60)
            there: list[float] = []

            def noted(plan: Iterator) -> Iterator:
                """Note when the plan has the signals of a point."""
                reply = None
                while True:
                    try:
                        msg = plan.send(reply)
                    except StopIteration:
                        return
                    reply = yield msg
                    if msg.command == "read" and msg.obj is signals:
                        there.append(time.perf_counter())

            plan = denoised_scan([det], motor, -1, 1, num=number, denoised=signals)
            beside = _between(RE, det, noted(plan))
            waited = np.subtract(there, det.ended)[_WARM_UP:]
    denoiser = Denoiser.load(threads=settings.threads)
    alone = []
    counts = scene.expose(exposure_s, np.random.default_rng(0))
    for _ in range(10):
        begin = time.perf_counter()
        denoiser.denoise(counts, exposure_s)
        alone.append(time.perf_counter() - begin)
    p50, p95 = np.percentile(waited, (50, 95))
    return Latency(p50, p95, beside - exposure_s, plain - exposure_s, float(np.median(alone)))


def _between(RE: RunEngine, det: _Stamped, plan: Iterator) -> float:
    """Return the median time from the end of an exposure to that of the next, seconds."""
    det.ended.clear()
    RE(plan)
    return float(np.median(np.diff(det.ended)[_WARM_UP:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--exposure", type=float, default=0.2, help="seconds")
    arguments = parser.parse_args()
    for name, value in plan_latency(arguments.points, arguments.exposure)._asdict().items():
        print(f"{name:>14}: {1000 * value:7.1f} ms")


if __name__ == "__main__":
    main()
