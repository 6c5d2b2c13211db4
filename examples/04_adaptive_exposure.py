"""Expose each point of a scan only as long as its satellite needs.

python examples/04_adaptive_exposure.py
"""

import numpy as np
from bluesky import RunEngine
from bluesky.callbacks import LiveTable
from ophyd.sim import motor

from bluesky_denoise import DenoiseProcess
from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.plans import adaptive_exposure_scan
from bluesky_denoise.roi import ROI
from bluesky_denoise.simulation import Peak, Scene, SceneFrames, gaussian_peak
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector


def main(num: int = 7) -> None:
    peak = Peak(row=32.0, col=32.0, intensity_cps=400.0, width_row_px=2.0, width_col_px=2.5)
    rate = np.full((64, 64), 0.5) + gaussian_peak((64, 64), peak)
    scene = Scene(rate, np.zeros((64, 64), bool), (peak,), ())
    frames = SceneFrames(scene, position=lambda: motor.position, width=0.5)
    det = ReplayDetector(name="det", frames=frames)
    rois = {"satellite": ROI(rows=(24, 41), cols=(23, 42), background_px=4)}
    RE = RunEngine()
    with DenoiseProcess(data_keys=["det_image"], rois=rois) as denoise:
        RE.subscribe(denoise)
        denoised = DenoisedSignals(denoise, timeout_s=30)
        plan = adaptive_exposure_scan(
            *([det], denoised, "satellite", motor, -0.9, 0.9, num),
            relative_error=0.1,
            max_frames=12,
            exposure_s=0.5,
        )
        columns = ["motor", "satellite_point_intensity", "satellite_point_exposure_s"]
        totals = []
        table = LiveTable(columns, stream_name="points")
        RE(plan, [table, lambda name, doc: totals.append((name, doc))])
    data = [doc["data"] for name, doc in totals if name == "event"][-1]
    print(f"exposed {data['satellite_total_exposure_s']:.1f} s", end=" ")
    print(f"instead of {data['satellite_total_fixed_exposure_s']:.1f} s with the longest at each")


if __name__ == "__main__":
    main()
