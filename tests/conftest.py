import gc
import logging
import os
from contextlib import contextmanager
from typing import NamedTuple

# Read when tiled is imported: a server that a test has stopped is to be missed soon.
os.environ.setdefault("TILED_RETRY_ATTEMPTS", "3")
# Workers and what they start share few cores, which threads that wait for each other keep busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test speaks TLS: nothing has to read what all authorities have signed for each client.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.path.dirname(__file__)
# Modules are most of what there is, and looking through them is a tenth of the time of many tests.
gc.set_threshold(50_000, 20, 50)

import pytest
from bluesky import RunEngine
from live_path import NO_PROXY, UNIT, Camera, poisson

from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.simulation.ophyd_devices import SimulatedMotor
from bluesky_denoise.testing import DocumentCollector

pytest_plugins = ["cli_fixtures", "process_fixtures", "router_fixtures", "tiled_fixtures"]


def pytest_collection_modifyitems(items):
    """Begin with the slow tests: the last worker would be alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class Tiled(NamedTuple):
    uri: str
    """Address of the server, with the key in it."""
    client: object
    """Client at the root of the catalog."""


@contextmanager
def run_engine():
    """Run a RunEngine, and end its thread."""
    engine = RunEngine()
    yield engine
    if engine.state not in ("idle", "panicked"):
        engine.halt()
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()


@pytest.fixture
def RE():
    with run_engine() as engine:
        yield engine


@pytest.fixture
def raw(RE):
    """Collect what the RunEngine emits."""
    collector = DocumentCollector()
    RE.subscribe(collector)
    return collector


@pytest.fixture
def motor():
    return SimulatedMotor(name="motor")


@pytest.fixture(scope="session")
def tiled(tmp_path_factory):
    """Serve Tiled, which may read all that the tests write."""
    from tiled.client import from_uri

    from bluesky_denoise.server import embedded_tiled

    directory = tmp_path_factory.mktemp("tiled")
    with embedded_tiled(directory, readable=[tmp_path_factory.getbasetemp()]) as uri:
        client = from_uri(uri)
        with client.context:
            yield Tiled(uri, client)


@pytest.fixture
def camera():
    """Return a detector of photons, 0.5 s each."""
    return Camera(name="det", func=poisson(), exposure_s=0.5)


@pytest.fixture
def settings(tiled, tmp_path):
    """Return settings for `tiled`, with frames in files."""
    return DenoiseSettings(model=UNIT, tiled_uri=tiled.uri, frames_directory=tmp_path / "denoised")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    """Keep the user's own Tiled and proxies out of the tests."""
    monkeypatch.delenv("TILED_API_KEY", raising=False)
    for key, value in NO_PROXY.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(autouse=True)
def _clients_as_before():
    """Undo what `.v2` of a catalog does to every Tiled client of the process.

    It copies the map from specs to clients by `copy.copy`, which shares what is in the map.
    """
    from tiled.client.container import DEFAULT_STRUCTURE_CLIENT_DISPATCH, Container

    if Container.STRUCTURE_CLIENTS_FROM_ENTRYPOINTS is None:  # else the first test undoes this
        Container.discover_clients_from_entrypoints()
    maps = [clients.__getstate__() for clients in DEFAULT_STRUCTURE_CLIENT_DISPATCH.values()]
    saved = [dict(clients) for clients in maps]
    yield
    for clients, before in zip(maps, saved, strict=True):
        clients.clear()
        clients.update(before)


@pytest.fixture
def logged(caplog):
    """Return a function for all log messages so far, as one text."""
    caplog.set_level(logging.INFO, logger="bluesky_denoise")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)
