"""The programs in callbacks/, started as a beamline starts them."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky.callbacks.zmq import Publisher, RemoteDispatcher
from bluesky_tiled_plugins import TiledWriter
from live_path import UNIT, Camera, poisson, wait_for
from ophyd.sim import motor

from bluesky_denoise import DenoiseSettings, denoised_streams
from bluesky_denoise.testing import DocumentCollector, validate_documents

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings_file(tiled, tmp_path):
    path = tmp_path / "settings.yaml"
    address = DenoiseSettings(tiled_uri=tiled.uri).tiled_uri
    path.write_text(f"tiled_uri: {address}\nframes_directory: denoised\nmodel: {UNIT!r}\n")
    return path


@pytest.fixture
def environment(tiled):
    return {**os.environ, "TILED_API_KEY": tiled.uri.partition("api_key=")[2]}


@pytest.fixture
def camera():
    return Camera(name="det", func=poisson(), exposure_s=0.5)


def start(command, environment, **options):
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def test_replay_denoises_runs_that_are_in_tiled(RE, tiled, settings_file, environment, camera):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.scan([camera], motor, -1, 1, 3))
    process = start(["callbacks/replay.py", str(settings_file), uid[:8]], environment)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    stream = denoised_streams(tiled.client[uid])[0]
    assert f"{uid}: denoised as run {stream.run_uid}" in output
    assert stream.num_events == 3


def test_replay_says_what_it_could_not_do(RE, tiled, settings_file, environment):
    from ophyd.sim import det

    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.count([det]))
    process = start(["callbacks/replay.py", str(settings_file), uid], environment)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "holds no frames" in output


SESSION = """
import bluesky.plans as bp
from ophyd.sim import motor
from live_path import Camera, poisson
uid, = RE(bp.scan([Camera(name="det", func=poisson())], motor, -1, 1, 3))
denoise.wait(60)
print("shape", cat[uid]["denoised"]["det_image"].shape)
"""


def test_in_process_gives_a_prompt_whose_runs_are_denoised(settings_file, environment):
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    process = start(
        ["-i", "callbacks/in_process.py", str(settings_file)], environment, stdin=subprocess.PIPE
    )
    output, _ = process.communicate(SESSION, timeout=90)
    assert "shape (3, 16, 20)" in output
    assert process.returncode == 0


@pytest.fixture
def proxy():
    """Run Bluesky's 0MQ proxy; yield its two ports."""
    code = (
        "from bluesky.callbacks.zmq import Proxy; p = Proxy('tcp://127.0.0.1', 'tcp://127.0.0.1')\n"
        "print(p.in_port, p.out_port, flush=True); p.start()"
    )
    process = start(["-c", code], dict(os.environ))
    ports = [word.rpartition(":")[2] for word in process.stdout.readline().split()]
    yield ports
    process.terminate()
    process.wait(10)
    process.stdout.close()


def test_zmq_denoises_what_comes_over_the_proxy_and_publishes_it_back(
    RE, tiled, settings_file, environment, camera, proxy
):
    into, out = (f"127.0.0.1:{port}" for port in proxy)
    command = ["callbacks/zmq.py", str(settings_file), "--subscribe", out, "--publish", into]
    process = start(command, environment)
    publisher = Publisher(into)
    derived = DocumentCollector()
    dispatcher = RemoteDispatcher(out, prefix=b"denoised")
    dispatcher.subscribe(derived)
    listener = threading.Thread(target=dispatcher.start, daemon=True)
    listener.start()
    try:
        assert "Denoising what comes from" in process.stdout.readline()
        RE.subscribe(TiledWriter(tiled.client, batch_size=1))
        RE.subscribe(publisher)
        # The first documents may be lost, since nobody may be connected yet: they are
        # read from Tiled, so that the run is complete all the same.
        (uid,) = RE(bp.scan([camera], motor, -1, 1, 10))
        stream = wait_for(
            lambda: next(
                (s for s in denoised_streams(tiled.client[uid]) if s.exit_status is not None), None
            ),
            60,
            "the denoised stream in Tiled",
        )
        assert (stream.exit_status, stream.num_events) == ("success", 10)
        raw = tiled.client[uid]["primary"]["det_image"].read()
        np.testing.assert_allclose(stream.stream["det_image"].read(), raw / 0.5)

        derived.clear()
        RE(bp.scan([camera], motor, -1, 1, 10))  # now all are connected
        wait_for(lambda: derived.by_name.get("stop"), 30, "the denoised stop over 0MQ")
        validate_documents(derived.documents)
        assert len(derived.by_name["event"]) == 10
    finally:
        publisher.close()
        process.send_signal(2)
        output, _ = process.communicate(timeout=30)
        dispatcher.loop.call_soon_threadsafe(dispatcher.loop.stop)
        listener.join(10)
        dispatcher.stop()
    assert "Traceback" not in output
