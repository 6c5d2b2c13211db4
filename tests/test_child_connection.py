"""The connection to the child, without a denoiser at its other end."""

import contextlib
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Client, Pipe

import pytest

from bluesky_denoise.child import connection
from bluesky_denoise.child.connection import Child, _import_path, _listener
from bluesky_denoise.errors import DenoiseError, DenoiseTimeout, SettingsError


@pytest.fixture
def child():
    """Return a child that has been started, and has not told of it."""
    child = Child.__new__(Child)
    child._connection, child.other = Pipe()
    child._process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield child
    with contextlib.suppress(OSError):
        child.other.close()
    child.close()
    child._process.kill()
    child._process.wait()
    child._process.stdin.close()


def tell(child, *messages):
    for message in messages:
        child.other.send_bytes(pickle.dumps(message))


def test_what_comes_before_the_start_is_handed_on(child):
    handed = []
    tell(child, ("log", "loading"), ("done", "uid"), ("started", {"model": "unit"}), ("log", "x"))
    assert child._await_start(lambda *message: handed.append(message)) == {"model": "unit"}
    assert handed == [("log", "loading"), ("done", "uid")]
    assert child.receive() == ("log", "x")


def test_what_the_child_failed_with_is_raised(child):
    tell(child, ("failed", SettingsError("no such model")))
    with pytest.raises(SettingsError, match="no such model"):
        child._await_start(print)


@pytest.mark.parametrize("sent", [b"", struct.pack("!i", 100) + b"a part"], ids=["none", "a part"])
def test_a_child_that_dies_as_it_tells_of_its_start_is_told_with_its_exit(child, sent):
    os.write(child.other.fileno(), sent)
    child.other.close()
    child._process.kill()
    with pytest.raises(DenoiseError, match=r"died as it started \(exit -9\)"):
        child._await_start(print)


def test_a_child_that_tells_nothing_is_not_waited_for_without_end(child, monkeypatch):
    monkeypatch.setattr(connection, "_STARTUP_TIMEOUT_S", 0.01)
    with pytest.raises(DenoiseTimeout, match=r"did not start within 0\.01 s"):
        child._await_start(print)


def test_a_child_that_does_not_connect_is_not_waited_for_without_end(child, monkeypatch):
    monkeypatch.setattr(connection, "_STARTUP_TIMEOUT_S", 0.0)
    before = set(threading.enumerate())
    with _listener(b"key") as listener:
        with pytest.raises(DenoiseError, match=r"did not start \(exit None\)"):
            connection._accept(listener, child._process)
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
    assert set(threading.enumerate()) <= before


def test_a_child_that_does_not_end_is_killed(child):
    began = time.monotonic()
    assert child.end(0) is False
    assert 0.1 <= time.monotonic() - began < 10
    assert child.wait() == -9
    assert child.end(0) is True


def test_where_the_path_of_a_socket_is_too_long_there_is_a_port(monkeypatch, tmp_path):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: str(deep))
    with _listener(b"key") as listener:
        host, port = json.loads(json.dumps(listener.address))  # as the child gets it
        thread = threading.Thread(target=lambda: Client((host, port), authkey=b"key").close())
        thread.start()
        listener.accept().close()
        thread.join()
    assert host == "127.0.0.1"


def test_the_working_directory_is_the_last_that_modules_are_imported_from(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", "a", b"c", "b"])
    assert _import_path() == ["a", "b", "."]
    monkeypatch.setattr(sys, "path", ["a"])
    assert _import_path() == ["a"]
