"""What the tests of devices and plans share: a scene with one weak peak, and its denoiser."""

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.roi import ROI
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.simulation import Peak, Scene, SceneFrames, gaussian_peak
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector

SHAPE = (48, 48)
KEY = "det_image"
ROIS = {"satellite": ROI(rows=(15, 32), cols=(16, 34), background_px=4)}
NUMBERS = ("intensity", "intensity_error", "background", "raw_sum", "denoised_sum")


def scene(intensity_cps=100.0, background_cps=0.5, shape=SHAPE):
    """Return a satellite in the middle of the region `satellite`, and nothing else."""
    peak = Peak(23.0, 24.5, intensity_cps, 2.0, 2.5)
    rate = np.full(shape, background_cps) + gaussian_peak(shape, peak)
    return Scene(rate, np.zeros(shape, bool), (peak,), ())


def detector(motor=None, *, exposure_s=0.1, seed=0, centre=0.0, width=1.0, **kwargs):
    position = None if motor is None else lambda: motor.position
    frames = SceneFrames(scene(**kwargs), seed=seed, position=position, centre=centre, width=width)
    return ReplayDetector(name="det", frames=frames, exposure_s=exposure_s)


def denoised_here(
    RE, denoiser, *, streams=("primary",), rois=ROIS, data_keys=(KEY,), audit=True, **kwargs
):
    """Return signals fed by a denoiser in this process: each result is there at once."""
    settings = {"data_keys": data_keys, "rois": rois, "streams": streams, "exposure_s": 1.0}
    settings["audit"] = audit
    router = DenoiseRouter(DenoiseSettings(**settings), denoiser)
    signals = DenoisedSignals(router, **kwargs)
    RE.subscribe(signals.raw)
    RE.subscribe(router)
    signals.router = router  # the RunEngine holds it weakly
    return signals


def events_of(collector, stream):
    """Return the data of all events of a stream."""
    uids = {d["uid"] for d in collector.by_name.get("descriptor", []) if d["name"] == stream}
    return [e["data"] for e in collector.by_name.get("event", []) if e["descriptor"] in uids]


def paused_after(plan, saves):
    """Pause a plan once so many events are saved."""
    return after_saves(plan, saves, bps.pause)


def after_saves(plan, saves, stub):
    """Put a stub into a plan once so many events are saved."""
    count = 0

    def insert(msg):
        nonlocal count
        count += msg.command == "save"
        if msg.command == "save" and count == saves:
            return None, stub()
        return None, None

    return bpp.plan_mutator(plan, insert)
