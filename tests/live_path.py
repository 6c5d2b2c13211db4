"""What the tests of the live path share: detectors, waiting, and the reading of results."""

import copy
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from ophyd import Component, Device, Signal
from ophyd.sim import SynSignal, motor
from tiled.utils import path_from_uri

from bluesky_denoise.backup import read_backup
from bluesky_denoise.settings import DenoiseSettings

ROOT = Path(__file__).parents[1]
SHAPE = (16, 20)
UNIT = "bluesky_denoise.testing:UnitDenoiser"
NO_PROXY = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


def python_path():
    """Return a `PYTHONPATH` by which other processes find the modules of the tests."""
    return os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


def start_program(command, environment, **options):
    """Start Python with a program of this repository, as a beamline does."""
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, timeout_s=60.0, what="what the test waits for"):
    """Return the first true value of `condition()`; fail after `timeout_s`."""
    deadline, pause_s = time.monotonic() + timeout_s, 0.02
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {timeout_s} s")
        time.sleep(pause_s)
        pause_s = min(1.3 * pause_s, 0.2)  # asking may keep busy what is waited for


def is_whole(backup):
    """Return whether a backup file has all documents of its run."""
    return [name for name, _ in read_backup(backup)][-1:] == ["stop"]


def settings(**values):
    return DenoiseSettings(**{"model": UNIT, **values})


def poisson(seed=0, shape=SHAPE, mean=5.0):
    """Return a function that exposes a new frame, and keeps it in its `taken`."""
    rng = np.random.default_rng(seed)

    def expose():
        expose.taken.append(rng.poisson(mean, shape).astype(np.uint32))
        return expose.taken[-1]

    expose.taken = []
    return expose


class PlainImage(SynSignal):
    """An image of `ophyd.sim`, without its copy in the configuration."""

    def read_configuration(self):
        return {}

    def describe_configuration(self):
        return {}


class Camera(Device):
    """An image of `ophyd.sim` in a device, with an exposure time where areaDetector has it."""

    image = Component(PlainImage, kind="normal")
    cam_acquire_time = Component(SynSignal, kind="config")

    def __init__(self, *, name, func, exposure_s=0.5):
        super().__init__(name=name)
        self.image.sim_set_func(func)
        self.cam_acquire_time.sim_set_func(lambda: exposure_s)
        self.cam_acquire_time.trigger()

    def trigger(self):
        return self.image.trigger()


class _SummingCam(Device):
    acquire_time = Component(Signal, value=0.5, kind="config")
    num_exposures = Component(Signal, value=4, kind="config")


class SummingCamera(Device):
    """A camera that sums several exposures into an image, as some of areaDetector do."""

    image = Component(PlainImage, kind="normal")
    cam = Component(_SummingCam, kind="config")

    def __init__(self, *, name, func):
        super().__init__(name=name)
        self.image.sim_set_func(func)

    def trigger(self):
        return self.image.trigger()


class UnchangedDocuments:
    """A callback that keeps a copy of each document, to compare at the end."""

    def __init__(self):
        self.kept = []

    def __call__(self, name, doc):
        self.kept.append((name, doc, copy.deepcopy(doc)))

    def check(self):
        for name, doc, before in self.kept:
            np.testing.assert_equal(doc, before, err_msg=f"a {name} was changed")


def archived(RE, tiled, detector, number=4):
    """Scan with the raw writer only, and return the run."""
    token = RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(bp.scan([detector], motor, -1, 1, number))
    RE.unsubscribe(token)
    return tiled.client[uid]


def paused_scan(RE, detectors):
    """Take three points; the second again after a pause, as after a loss of beam."""

    @bpp.stage_decorator(detectors)
    @bpp.run_decorator()
    def plan():
        for number in (1, 2, 3):
            yield from bps.checkpoint()
            yield from bps.trigger_and_read(detectors)
            if number == 2:
                yield from bps.pause()

    with pytest.raises(RunEngineInterrupted):
        RE(plan())
    return RE.resume()


def by_stream(collector, stream="denoised"):
    """Return the events of one derived stream."""
    uids = {d["uid"] for d in collector.by_name.get("descriptor", []) if d["name"] == stream}
    return [e for e in collector.by_name.get("event", []) if e["descriptor"] in uids]


def values(collector, key, stream="denoised"):
    """Return one key of all events of a derived stream."""
    return [event["data"][key] for event in by_stream(collector, stream)]


def rates(collector, key, stream="denoised"):
    """Return the denoised frames of a stream, (N, H, W) or (N, n, H, W), wherever they are."""
    uids = {d["uid"]: d for d in collector.by_name["descriptor"] if d["name"] == stream}
    datums = [d for d in collector.by_name.get("stream_datum", []) if d["descriptor"] in uids]
    if not datums:
        return np.stack(values(collector, key, stream))
    (resource,) = (
        r
        for r in collector.by_name["stream_resource"]
        if r["data_key"] == key and any(d["stream_resource"] == r["uid"] for d in datums)
    )
    with h5py.File(path_from_uri(resource["uri"]), "r", swmr=True) as file:
        return file[resource["parameters"]["dataset"]][()]


def abort_after_three_points(RE, detector, reason):
    """Abort a run that pauses after its third point."""

    def plan():
        yield from bps.open_run()
        for _ in range(3):
            yield from bps.trigger_and_read([detector])
        yield from bps.pause()

    with pytest.raises(RunEngineInterrupted):
        RE(plan())
    RE.abort(reason)
