"""What the tests of `DenoiseProcess` share: a process, and a live path to check."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import (
    SHAPE,
    UnchangedDocuments,
    free_port,
    python_path,
    settings,
    wait_for,
)
from tiled.structures.core import Spec

from bluesky_denoise.backup import backup_files
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import DocumentCollector

FRAMES = np.random.default_rng(1).poisson(5, (7, *SHAPE)).astype(np.uint16)
NOWHERE = "http://127.0.0.1:9/api/v1?api_key=secret"


def replay(name="det"):
    return ReplayDetector(name=name, frames=ReplayFrames(FRAMES, 0.5), exposure_s=0.5)


def open_node(tiled, start):
    """Open a raw run in Tiled, and write nothing into it."""
    spec = Spec("BlueskyRun", version="3.0")
    tiled.client.create_container(start["uid"], metadata={"start": start}, specs=[spec])


def finished(derived, number=1):
    return wait_for(lambda: len(derived.by_name.get("stop", [])) == number, what="the derived stop")


@pytest.fixture(scope="module")
def shared(tiled, tmp_path_factory):
    """One process for the many tests that can share it; it is restarted by some."""
    directory = tmp_path_factory.mktemp("process")
    options = settings(
        tiled_uri=tiled.uri,
        frames_directory=directory / "denoised",
        read_timeout_s=20,
        batch_size=4,
    )
    with DenoiseProcess(options) as denoise:
        yield denoise
    assert backup_files(options.backup_path) == []


class LivePath:
    """The RunEngine with a raw writer and a denoiser behind it."""

    def __init__(self, tiled, denoise, raw, derived):
        self.tiled, self.denoise, self.raw, self.derived = tiled, denoise, raw, derived

    def in_tiled(self, uid):
        return self.tiled.client[uid]

    def check(self, uid, denoised, **told):
        """Check that the raw run is complete, and what the denoised stream says of itself."""
        self.denoise.wait(60)
        run = self.in_tiled(uid)
        (stop,) = (d for d in self.raw.by_name["stop"] if d["run_start"] == uid)
        assert run.stop["exit_status"] == stop["exit_status"]
        assert run.stop["num_events"] == stop["num_events"]
        descriptors = [d for d in self.raw.by_name.get("descriptor", []) if d["run_start"] == uid]
        for descriptor in descriptors:
            events = [e for e in self.raw.by_name["event"] if e["descriptor"] == descriptor["uid"]]
            stream = run[descriptor["name"]]
            assert len(stream["time"].read()) == len(events)
            for key, spec in descriptor["data_keys"].items():
                if spec["dtype"] == "array" and "external" not in spec:
                    np.testing.assert_array_equal(
                        stream[key].read(), [e["data"][key] for e in events]
                    )
        if denoised is None:
            assert "denoised" not in run
            return None
        stream = run["denoised"]
        told = {"exit_status": "success", "num_events": denoised, **told}
        assert {key: stream.metadata["denoise"][key] for key in told} == told
        if denoised:
            assert len(stream["denoise_ok"].read()) == denoised
        return stream


@pytest.fixture
def live(RE, raw, tiled, shared):
    unchanged, derived = UnchangedDocuments(), DocumentCollector()
    for callback in (unchanged, TiledWriter(tiled.client, batch_size=1), shared):
        RE.subscribe(callback)
    token = shared.subscribe(derived)
    yield LivePath(tiled, shared, raw, derived)
    shared.unsubscribe(token)
    unchanged.check()
    raw.validate()
    if derived.documents:
        derived.validate()


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """Hold the denoiser of a process back until ``gate.touch()``."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setenv("DENOISE_TEST_GATE", str(tmp_path / "gate"))
    return tmp_path / "gate"


IDLE = """
import json, pickle, sys
from multiprocessing.connection import Client
with Client(json.loads(sys.argv[1]), authkey=bytes.fromhex(sys.stdin.readline())) as parent:
    parent.recv_bytes()
    parent.send_bytes(pickle.dumps(("started", {})))
    parent.send_bytes(pickle.dumps(("ready", [])))
    while pickle.loads(parent.recv_bytes())[0] != "close":
        pass
    parent.send_bytes(pickle.dumps(("closed", [])))
"""


@pytest.fixture
def idle_child(monkeypatch):
    """Start children that import nothing and denoise nothing, where the parent alone counts."""
    monkeypatch.setattr("bluesky_denoise.child.connection._START", IDLE)


@pytest.fixture
def ctrl_c():
    """Return a function that presses Ctrl-C a moment later."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    yield lambda: threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    signal.signal(signal.SIGINT, before)


class TiledElsewhere:
    """A Tiled server in a process of its own, which can be stopped and started again."""

    KEY = "k3y0ft1led5erver"

    def __init__(self, directory, readable):
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}/api/v1?api_key={self.KEY}"
        self._code = (
            "import sys\n"
            "from bluesky_denoise.server import embedded_tiled\n"
            f"with embedded_tiled({str(directory)!r}, readable=[{str(readable)!r}],"
            f" port={self.port}, api_key={self.KEY!r}):\n"
            "    print('ready', flush=True)\n"
            "    sys.stdin.read()\n"
        )
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout.readline() == b"ready\n"

    def stop(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def elsewhere(tmp_path):
    server = TiledElsewhere(tmp_path / "tiled", tmp_path)
    server.start()
    yield server
    server.stop()
