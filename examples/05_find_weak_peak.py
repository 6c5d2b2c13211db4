"""Find a satellite that the total counts of a short scan do not show.

python examples/05_find_weak_peak.py
"""

import numpy as np
from bluesky import RunEngine
from ophyd.sim import motor

from bluesky_denoise import DenoiseProcess
from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.plans import find_weak_peak
from bluesky_denoise.roi import ROI
from bluesky_denoise.simulation import Peak, Scene, SceneFrames, gaussian_peak
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector


def main() -> None:
    peak = Peak(row=32.0, col=32.0, intensity_cps=120.0, width_row_px=2.0, width_col_px=2.5)
    rate = np.full((96, 96), 0.5) + gaussian_peak((96, 96), peak)
    scene = Scene(rate, np.zeros((96, 96), bool), (peak,), ())
    frames = SceneFrames(scene, position=lambda: motor.position, centre=0.35, width=0.3)
    det = ReplayDetector(name="det", frames=frames)
    rois = {"satellite": ROI(rows=(24, 41), cols=(23, 42), background_px=4)}
    RE = RunEngine(call_returns_result=True)
    with DenoiseProcess(data_keys=["det_image"], rois=rois) as denoise:
        RE.subscribe(denoise)
        denoised = DenoisedSignals(denoise, timeout_s=30)
        plan = find_weak_peak(
            *([det], denoised, "satellite", motor, -2, 2, 13),
            exposure_s=0.5,
            fine_num=9,
            fine_exposure_s=1.0,
        )
        found = RE(plan).plan_result
        denoise.wait()
    if found is None:
        print("no peak")
    else:
        print(f"peak at {found.position:.2f}, {found.significance:.1f} sigma", end=", ")
        print(f"by chance in {found.p_value:.1e} of such scans")


if __name__ == "__main__":
    main()
