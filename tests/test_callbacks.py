"""The programs in callbacks/, started as a beamline starts them."""

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from unittest.mock import MagicMock, Mock

import bluesky.plans as bp
import numpy as np
import psutil
import pytest
from bluesky.callbacks.zmq import Publisher, RemoteDispatcher
from bluesky_tiled_plugins import TiledWriter
from live_path import ROOT, UNIT, python_path, start_program, wait_for
from ophyd.sim import motor

import bluesky_denoise
from bluesky_denoise import DenoiseSettings, denoised_streams, from_bus
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.testing import DocumentCollector, validate_documents


@pytest.fixture
def settings_file(tiled, tmp_path):
    path = tmp_path / "settings.yaml"
    address = DenoiseSettings(tiled_uri=tiled.uri).tiled_uri
    path.write_text(f"tiled_uri: {address}\nframes_directory: denoised\nmodel: {UNIT!r}\n")
    return path


@pytest.fixture
def environment(tiled):
    return {**os.environ, "TILED_API_KEY": tiled.uri.partition("api_key=")[2]}


def test_replay_denoises_runs_that_are_in_tiled(RE, tiled, settings_file, environment, camera):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.scan([camera], motor, -1, 1, 3))
    process = start_program(["callbacks/replay.py", str(settings_file), uid[:8]], environment)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    stream = denoised_streams(tiled.client[uid])[0]
    assert f"{uid}: denoised as run {stream.run_uid}" in output
    assert stream.num_events == 3


def test_replay_says_what_it_could_not_do(RE, tiled, settings_file, environment):
    from ophyd.sim import det

    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.count([det]))
    process = start_program(["callbacks/replay.py", str(settings_file), uid], environment)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "holds no frames" in output


SESSION = """
from ophyd.sim import motor
from live_path import Camera, poisson
print("child", denoise.pid)
uid, = RE(scan([Camera(name="det", func=poisson())], motor, -1, 1, 3))
print("run", uid)
exit()
"""


def test_in_process_gives_a_prompt_whose_runs_are_denoised_to_the_end(
    tiled, settings_file, environment, tmp_path
):
    """Leaving IPython finishes what has been handed over, and ends the child."""
    environment |= {"PYTHONPATH": python_path(), "IPYTHONDIR": str(tmp_path / "ipython")}
    command = ["-m", "IPython", "--simple-prompt", "--no-banner", "-i"]
    process = start_program(
        [*command, "callbacks/in_process.py", str(settings_file)],
        environment,
        stdin=subprocess.PIPE,
    )
    output, _ = process.communicate(SESSION, timeout=150)
    assert process.returncode == 0, output
    told = dict(re.findall(r"(child|run) ([\w-]+)$", output, re.MULTILINE))
    assert not psutil.pid_exists(int(told["child"]))
    run = tiled.client[told["run"]]
    assert run["denoised"].metadata["denoise"]["exit_status"] == "success"
    np.testing.assert_allclose(
        run["denoised"]["det_image"].read(), run["primary"]["det_image"].read() / 0.5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "Give the file of settings"),
        ("exposure_s: 1.0\n", "names no Tiled server; add"),
        ("tiled_url: http://127.0.0.1:9\n", "perhaps 'tiled_uri' is meant"),
    ],
    ids=["no settings", "no server", "misspelt"],
)
def test_in_process_says_what_it_lacks(told, tmp_path, settings, message):
    arguments = []
    if settings is not None:
        arguments = [tmp_path / "settings.yaml"]
        arguments[0].write_text(settings)
    assert message in told("callbacks/in_process.py", *arguments)


@pytest.mark.thorough
def test_in_process_says_that_its_server_is_down(environment, tmp_path):
    (tmp_path / "settings.yaml").write_text("tiled_uri: http://127.0.0.1:9\n")
    process = start_program(
        ["callbacks/in_process.py", str(tmp_path / "settings.yaml")], environment
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Give its address as `tiled_uri` in" in output
    assert "Traceback" not in output


def test_in_process_says_why_nothing_can_be_denoised(settings_file, tiled, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["in_process.py", str(settings_file)])
    monkeypatch.setattr("tiled.client.from_uri", lambda *args, **options: tiled.client)
    refuse = Mock(side_effect=SettingsError("There is no such mask."))
    monkeypatch.setattr(bluesky_denoise, "DenoiseProcess", refuse)
    with pytest.raises(SystemExit, match="There is no such mask"):
        runpy.run_path(str(ROOT / "callbacks/in_process.py"))


@pytest.mark.thorough
def test_in_process_says_that_it_cannot_keep_raw_runs(tiled, environment, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "settings.yaml").write_text(f"tiled_uri: {tiled.uri}\n")
    environment |= {"XDG_DATA_HOME": str(tmp_path / "file")}
    process = start_program(
        ["callbacks/in_process.py", str(tmp_path / "settings.yaml")], environment
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "backup/raw: Not a directory. Give a directory that can be written to." in output
    assert "It is below `backup_directory` in" in output
    assert "Traceback" not in output


def test_what_listens_to_the_bus_says_what_is_wrong_with_its_settings(told, tmp_path):
    (tmp_path / "settings.yaml").write_text("model: defualt\n")
    assert "There are no weights 'defualt'" in told("callbacks/zmq.py", tmp_path / "settings.yaml")


@pytest.mark.thorough
@pytest.mark.parametrize("option", ["--subscribe", "--publish"])
def test_an_address_of_the_bus_that_is_none_is_told_in_a_line(environment, tmp_path, option):
    (tmp_path / "settings.yaml").write_text(f"model: {UNIT!r}\n")
    arguments = ["callbacks/zmq.py", str(tmp_path / "settings.yaml"), option, "nonsense"]
    process = start_program(arguments, environment)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{option} 'nonsense': Invalid argument" in output
    assert "expected an address such as localhost:5578" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("option", ["--subscribe", "--publish"])
@pytest.mark.parametrize("address", ["localhost:70000", "tcp://localhost:0"])
def test_a_port_of_the_bus_that_is_none_is_told_in_a_line(told, option, address):
    port = address.rpartition(":")[2]
    assert told("callbacks/zmq.py", "settings.yaml", option, address) == (
        f"{option} {address!r}: port {port} is none from 1 to 65535; expected an address such as "
        "localhost:5578"
    )


@pytest.fixture
def proxy():
    """Run Bluesky's 0MQ proxy; yield its two ports."""
    code = (
        "from bluesky.callbacks.zmq import Proxy; p = Proxy('tcp://127.0.0.1', 'tcp://127.0.0.1')\n"
        "print(p.in_port, p.out_port, flush=True); p.start()"
    )
    process = start_program(["-c", code], dict(os.environ))
    ports = [word.rpartition(":")[2] for word in process.stdout.readline().split()]
    yield ports
    process.terminate()
    process.wait(10)
    process.stdout.close()


def test_zmq_keeps_results_whatever_fails_as_it_ends(settings_file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zmq.py", str(settings_file)])
    monkeypatch.setattr(signal, "signal", Mock())
    sink, filler, publisher = Mock(), Mock(), Mock()
    filler.close.side_effect = OSError("Tiled is away")
    monkeypatch.setattr(from_bus, "TiledSink", lambda settings: sink)
    monkeypatch.setattr(from_bus, "GapFiller", lambda *args: filler)
    monkeypatch.setattr(from_bus, "DenoiseRouter", MagicMock())
    names = runpy.run_path(str(ROOT / "callbacks/zmq.py"))["main"].__globals__
    names |= {"Dispatcher": MagicMock(), "Publisher": lambda *args, **options: publisher}
    with pytest.raises(OSError, match="Tiled is away"):
        names["main"]()
    sink.close.assert_called_once_with(30)
    publisher.close.assert_called_once_with()


def test_zmq_denoises_what_comes_over_the_proxy_and_publishes_it_back(
    RE, tiled, settings_file, environment, camera, proxy
):
    into, out = (f"127.0.0.1:{port}" for port in proxy)
    command = ["callbacks/zmq.py", str(settings_file), "--subscribe", out, "--publish", into]
    process = start_program(command, environment)
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
        process.terminate()
        output, _ = process.communicate(timeout=30)
        dispatcher.loop.call_soon_threadsafe(dispatcher.loop.stop)
        listener.join(10)
        dispatcher.stop()
    assert "Traceback" not in output
    assert "ERROR" not in output
    assert process.returncode == 0


@pytest.mark.thorough
def test_zmq_completes_a_run_whose_end_was_lost_when_it_is_ended(
    RE, tiled, settings_file, environment, camera, proxy
):
    into, out = (f"127.0.0.1:{port}" for port in proxy)
    command = ["callbacks/zmq.py", str(settings_file), "--subscribe", out, "--publish", into]
    process = start_program(command, environment)
    publisher, losing = Publisher(into), False

    def publish(name, doc):
        if not (losing and (name == "stop" or doc.get("seq_num") == 3)):
            publisher(name, doc)

    def streams(uid):
        return denoised_streams(tiled.client[uid])

    try:
        assert "Denoising what comes from" in process.stdout.readline()
        RE.subscribe(TiledWriter(tiled.client, batch_size=1))
        RE.subscribe(publish)
        (uid,) = RE(bp.count([camera], 3))  # then all are connected
        wait_for(lambda: any(s.exit_status for s in streams(uid)), what="the first run in Tiled")
        losing = True
        (uid,) = RE(bp.count([camera], 3))
        (stream,) = wait_for(lambda: streams(uid), what="the second run in Tiled")
        assert stream.exit_status is None
    finally:
        publisher.close()
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output
    assert f"Run {uid:.8}: its stop was lost on the bus; it came from Tiled" in output
    (stream,) = streams(uid)
    assert (stream.exit_status, stream.num_events) == ("success", 3)
