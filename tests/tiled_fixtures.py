"""What the tests of the Tiled sink share: a router that writes, and how runs are read."""

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import SHAPE, settings, wait_for
from ophyd.sim import SynAxis
from tiled.client import from_context

from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser
from bluesky_denoise.tiled_sink import TiledSink

FRAMES = np.random.default_rng(1).poisson(5, (6, *SHAPE)).astype(np.uint16)
IN_FILES, INLINE = "frames in files", "frames in Tiled"


@pytest.fixture
def det():
    return ReplayDetector(name="det", frames=ReplayFrames(FRAMES, 0.5), exposure_s=0.5)


@pytest.fixture
def motor():
    return SynAxis(name="motor")


class Live:
    """A router with a Tiled sink, and what it has written."""

    def __init__(self, **values):
        self.settings = settings(**values)
        self.router = DenoiseRouter(self.settings, UnitDenoiser())
        self.written = []
        self.sink = TiledSink(self.settings, self.written.append)
        self.derived = DocumentCollector()
        self.router.subscribe(self.sink)
        self.router.subscribe(self.derived)

    def wait(self, uid, times=1):
        wait_for(lambda: self.written.count(uid) == times, what=f"run {uid:.8} in Tiled")


@pytest.fixture
def into_tiled(RE, tiled, tmp_path):
    """Return a function that denoises what the RunEngine does into Tiled."""
    opened = []

    def into_tiled(frames=IN_FILES, **values):
        directory = tmp_path / "denoised" if frames == IN_FILES else None
        values = {"frames_directory": directory, "backup_directory": tmp_path / "backup", **values}
        opened.append(Live(tiled_uri=tiled.uri, **values))
        RE.subscribe(opened[-1].router)
        return opened[-1]

    yield into_tiled
    for one in opened:
        assert one.sink.close(30) == []
        assert not one.sink._runs
        assert not one.sink._run_of
        if one.derived.documents:
            one.derived.validate()


@pytest.fixture
def written(RE, tiled):
    """Write raw runs to Tiled."""
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))


def in_tiled(tiled, uid, *container):
    """Return a run as it is in Tiled now."""
    catalog = from_context(tiled.client.context, node_path_parts=list(container))
    return catalog[uid]


def check_documents(run, streams):
    """Check that Tiled gives valid documents of a run, with so many events in each stream."""
    run.validate(raise_on_error=True)
    documents = list(run.documents())
    names, numbers = {}, {}
    for name, doc in documents:
        if name == "descriptor":  # before its events
            names[doc["uid"]] = doc["name"]
            numbers.setdefault(doc["name"], 0)
        if name == "event":
            numbers[names[doc["descriptor"]]] += 1
        if name == "event_page":
            numbers[names[doc["descriptor"]]] += len(doc["seq_num"])
    assert numbers == streams
