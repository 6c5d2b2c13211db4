"""Print how often `find_weak_peak` finds a peak, where there is one and where there is none.

Run as ``python -m benchmarks.false_peaks [--scans 300] [--intensity 0]``; with an intensity of 0
it prints false alarms alone. The plan itself runs, on a simulated detector with the shipped
weights. Shares stand with their 95 % intervals (Clopper and Pearson).
"""

import argparse

import numpy as np
from bluesky import RunEngine
from ophyd.sim import SynAxis
from rich.progress import track
from scipy.stats import binomtest

from bluesky_denoise import Denoiser, DenoiseSettings
from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.plans import find_weak_peak
from bluesky_denoise.plans.peak_search import search_peak
from bluesky_denoise.roi import ROI
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import Peak, Scene, SceneFrames, gaussian_peak
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector

SHAPE = (64, 64)
REGION = ROI(rows=(23, 40), cols=(23, 42), background_px=4)
EXPOSURE_S = 0.5


def find(scans: int, intensity_cps: float, seed: int = 0) -> tuple[int, int]:
    """Return how many scans have a find, and how many a peak in the total of the raw frames."""
    motor = SynAxis(name="motor")
    peak = Peak(31.0, 32.0, intensity_cps, 2.0, 2.5)
    rate = np.full(SHAPE, 0.5) + gaussian_peak(SHAPE, peak)
    scene = Scene(rate, np.zeros(SHAPE, bool), (peak,), ())
    frames = SceneFrames(scene, seed=seed, position=lambda: motor.position, centre=0.35, width=0.3)
    det = ReplayDetector(name="det", frames=frames)
    router = DenoiseRouter(
        DenoiseSettings(data_keys=["det_image"], rois={"satellite": REGION}),
        Denoiser.load(device="cpu", threads=1),
    )
    denoised = DenoisedSignals(router)
    RE = RunEngine(call_returns_result=True)
    totals: list[float] = []
    RE.subscribe(denoised.raw)
    RE.subscribe(router)

    def total(name: str, doc: dict) -> None:
        if "det_image" in doc["data"]:
            totals.append(float(doc["data"]["det_image"].sum()))

    RE.subscribe(total, "event")
    found = shown = 0
    positions = np.linspace(-2, 2, 13)
    for _ in track(range(scans), f"{intensity_cps:g} counts / s", transient=True):
        totals.clear()
        plan = find_weak_peak(
            [det], denoised, "satellite", motor, -2, 2, 13, exposure_s=EXPOSURE_S, fine_num=9
        )
        found += RE(plan).plan_result is not None
        raw = np.array(totals[:13])
        shown += search_peak(positions, raw, np.sqrt(raw)).p_value <= 0.002
    return found, shown


def share(count: int, scans: int) -> str:
    """Return a share with its 95 % interval, in percent."""
    interval = binomtest(count, scans).proportion_ci(0.95, method="exact")
    return f"{count / scans:6.2%} ({interval.low:.2%} to {interval.high:.2%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=300)
    parser.add_argument(
        "--intensity",
        type=float,
        nargs="+",
        default=[0.0, 15.0, 30.0, 60.0],
        help="intensities of the peak, counts / s; 0: none, so that all finds are false alarms",
    )
    asked = parser.parse_args()
    head = "found by the plan", "shown by the total of the raw coarse scan"
    print(f"{asked.scans} scans each\npeak, counts / s | {head[0]:26} | {head[1]}")
    for intensity_cps in asked.intensity:
        found, shown = (share(count, asked.scans) for count in find(asked.scans, intensity_cps))
        print(f"{intensity_cps:16.0f} | {found:26} | {shown}", flush=True)


if __name__ == "__main__":
    main()
