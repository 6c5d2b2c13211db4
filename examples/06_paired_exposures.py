"""Take short and long exposures of the same points, and compare denoised with long.

python examples/06_paired_exposures.py
"""

from bluesky import RunEngine
from ophyd.sim import motor

from bluesky_denoise import DenoiseProcess
from bluesky_denoise.plans import paired_exposures
from bluesky_denoise.simulation import SceneFrames, diffraction_scene
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import DocumentCollector


def main() -> None:
    frames = SceneFrames(diffraction_scene((96, 128)), position=lambda: motor.position)
    det = ReplayDetector(name="det", frames=frames)
    RE, derived = RunEngine(), DocumentCollector()
    with DenoiseProcess(data_keys=["det_image"], streams=["short", "long"]) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(paired_exposures([det], motor, -1, 1, num=3, short_s=0.05, long_s=1.0))
        denoise.wait(60)
    for event in derived.by_name["event"]:
        data = event["data"]
        print(f"motor {data['motor']:+.1f}", end="  ")
        print(f"{data['det_image_exposure_s']:5.2f} s", end="  ")
        print(f"{data['det_image_denoised_total']:9.1f} counts / s")


if __name__ == "__main__":
    main()
