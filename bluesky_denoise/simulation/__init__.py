"""Scenes, recorded frames and detectors that need no beam.

The detectors are in `ophyd_devices` and `ophyd_async_devices`, which import their
control layer; what is named here needs numpy and h5py only.
"""

from bluesky_denoise.simulation.generators import FrameGenerator, ReplayFrames, SceneFrames
from bluesky_denoise.simulation.recorded import Recorded, recorded_frames, reference
from bluesky_denoise.simulation.scenes import Peak, Scene, diffraction_scene, gaussian_peak

__all__ = [
    "FrameGenerator",
    "Peak",
    "Recorded",
    "ReplayFrames",
    "Scene",
    "SceneFrames",
    "diffraction_scene",
    "gaussian_peak",
    "recorded_frames",
    "reference",
]
