"""The child process that denoises, seen from the RunEngine's process."""

import contextlib
import io
import json
import logging
import os
import pickle
import secrets
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import numpy as np

from bluesky_denoise.errors import DenoiseError, DenoiseTimeout
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.support.memory import with_large_pages

__all__ = ["Child"]

logger = logging.getLogger(__name__)

_STARTUP_TIMEOUT_S = 120.0
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from bluesky_denoise.child.worker import main; "
    "main(sys.argv[1])"
)
"""Run by the child, before it imports anything."""
_KNOWN = sys.stdlib_module_names | {"bluesky_denoise", "numpy", "pydantic", "pydantic_core"}
"""Packages whose objects the child gets as they are."""
_HOLD_FUNCTIONS = defaultdict, partial
"""They cannot be made again without their function, which may be foreign."""


class Child:
    """Start `bluesky_denoise.child.worker` in a process of its own, and talk to it.

    It begins at once, and takes messages once `start` has returned; `end` may be called meanwhile.

    Parameters
    ----------
    settings :
        For the child.
    """

    def __init__(self, settings: DenoiseSettings) -> None:
        self._settings, self._authkey = settings, secrets.token_bytes(32)
        self._connection: Connection  # from `start` on
        self._listener = _listener(self._authkey)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(self._listener.address), *_import_path()],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the RunEngine
            env={**with_large_pages(os.environ), "PYTHONUNBUFFERED": "1"},
        )

    def start(self, handle: Callable[[str, Any], None]) -> Mapping[str, Any]:
        """Wait until it has started; return what makes its results.

        Parameters
        ----------
        handle :
            Called with the messages that come before.

        Raises
        ------
        DenoiseError
            If it does not start, or whatever its model or Tiled make of the settings.
        """
        try:
            with self._listener:
                if stdin := self._process.stdin:  # it is a pipe
                    with contextlib.suppress(BrokenPipeError), stdin:
                        stdin.write(self._authkey.hex().encode() + b"\n")
                self._connection = _accept(self._listener, self._process)
            level = logging.getLogger("bluesky_denoise").getEffectiveLevel()
            with contextlib.suppress(OSError):  # it has died, as is found next
                self.send(("settings", (self._settings, level)))
            return self._await_start(handle)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: tuple[str, Any]) -> None:
        """Send a message; documents that cannot be pickled are left out, and logged.

        Raises
        ------
        OSError
            If the child has died.
        """
        self._connection.send_bytes(_packed(message))

    def receive(self) -> tuple[str, Any]:
        """Wait for the next message.

        Raises
        ------
        EOFError, OSError
            If the child has died.
        """
        return pickle.loads(self._connection.recv_bytes())

    def wait(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        return self._process.wait()

    def end(self, timeout: float) -> bool:
        """Wait for the end of the process; kill it, and return False, if it takes too long."""
        try:
            self._process.wait(max(0.1, timeout))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def close(self) -> None:
        """Let go of the connection."""
        if hasattr(self, "_connection"):
            self._connection.close()

    def _await_start(self, handle: Callable[[str, Any], None]) -> Mapping[str, Any]:
        """Wait for the child to have loaded its model; raise what it failed with."""
        deadline = time.monotonic() + _STARTUP_TIMEOUT_S
        while self._connection.poll(max(0.0, deadline - time.monotonic())):
            try:
                kind, content = self.receive()
            except (EOFError, OSError):
                raise DenoiseError(
                    f"The denoiser process died as it started (exit {self._process.wait()}); "
                    "what it printed stands above."
                ) from None
            if kind == "started":
                return content
            if kind == "failed":
                raise content
            handle(kind, content)
        raise DenoiseTimeout(f"The denoiser did not start within {_STARTUP_TIMEOUT_S} s.")


def _listener(authkey: bytes) -> Listener:
    try:
        return Listener(None, authkey=authkey)
    except OSError:  # the path of a socket is short, and that of TMPDIR may be long
        return Listener(("127.0.0.1", 0), authkey=authkey)


def _import_path() -> list[str]:
    """Return the path that modules are imported from here; the working directory comes last.

    A ``secrets.py`` there would be taken for that of the standard library.
    """
    path = [entry for entry in sys.path if isinstance(entry, str)]
    return [entry for entry in path if entry] + ["."] * ("" in path)


def _accept(listener: Listener, process: subprocess.Popen) -> Connection:
    """Accept the child's connection, unless it ends before."""
    accepted: list[Connection] = []

    def accept() -> None:
        with contextlib.suppress(EOFError, OSError):
            accepted.append(listener.accept())

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    deadline = time.monotonic() + _STARTUP_TIMEOUT_S
    try:
        while thread.is_alive() and process.poll() is None and time.monotonic() < deadline:
            thread.join(0.05)
    finally:
        if not accepted:
            with contextlib.suppress(OSError):
                Client(listener.address).close()  # nothing else ends the thread
    if not accepted:
        raise DenoiseError(
            f"The denoiser process did not start (exit {process.poll()}); "
            "what it printed stands above."
        )
    return accepted[0]


class _Pickler(pickle.Pickler):
    """Make plain values of objects whose class the child may not know.

    The enumeration of a device's modes is often defined in the startup files of a session,
    whose ``__main__`` the child does not have; and it must import nothing of a beamline.
    """

    def reducer_override(self, obj: Any) -> Any:
        """Replace an object of a foreign class."""
        named = obj if hasattr(obj, "__qualname__") else type(obj)  # a class or a function itself
        package = (getattr(named, "__module__", None) or "builtins").partition(".")[0]
        if package in _KNOWN and not isinstance(obj, _HOLD_FUNCTIONS):
            return NotImplemented
        if isinstance(obj, np.ndarray) or (named is not obj and bool(getattr(obj, "ndim", 0))):
            return np.asarray, (np.asarray(obj),)  # of xarray, dask, torch, ... too
        value = obj.value if isinstance(obj, Enum) else obj
        kinds = (str, int, float, list, tuple, dict)
        kind = next((kind for kind in kinds if isinstance(value, kind)), str)
        return kind, (kind(value),)


def _dumps(message: Any) -> bytes:
    packed = io.BytesIO()
    _Pickler(packed, protocol=5).dump(message)
    return packed.getvalue()


def _packed(message: tuple[str, Any]) -> bytes:
    try:
        return _dumps(message)
    except Exception:
        kind, items = message
        kept = []
        for item in items:
            try:
                _dumps(item)
                kept.append(item)
            except Exception as error:
                logger.error("A %s document cannot be sent to the denoiser: %s", item[0], error)
        return _dumps((kind, kept))
