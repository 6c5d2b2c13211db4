"""The child process that denoises, seen from the RunEngine's process."""

import logging
import os
import pickle
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Listener
from typing import Any

from .errors import DenoiseError, DenoiseTimeout
from .settings import DenoiseSettings

__all__ = ["Child"]

logger = logging.getLogger(__name__)

_STARTUP_TIMEOUT_S = 120.0


class Child:
    """Start `bluesky_denoise.worker` in a process of its own, and talk to it.

    Parameters
    ----------
    settings :
        For the child.
    handle :
        Called with the messages that come before the child has started.

    Raises
    ------
    DenoiseError
        If it does not start, or whatever its model or Tiled make of the settings.
    """

    def __init__(
        self, settings: DenoiseSettings, handle: Callable[[str, Any], None] = lambda *message: None
    ) -> None:
        authkey = secrets.token_bytes(32)
        with Listener(None, authkey=authkey) as listener:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bluesky_denoise.worker", str(listener.address)],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the RunEngine
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            try:
                self._process.stdin.write(authkey.hex().encode() + b"\n")
                self._process.stdin.close()
                self._connection = _accept(listener, self._process)
                level = logging.getLogger("bluesky_denoise").getEffectiveLevel()
                self.send(("settings", (settings, level)))
                self.provenance = self._await_start(handle)
            except BaseException:
                self._process.kill()
                self._process.wait()
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

    def end(self, timeout: float) -> None:
        """Wait for the end of the process, and kill it where it takes too long."""
        try:
            self._process.wait(max(0.1, timeout))
        except subprocess.TimeoutExpired:
            logger.error("The denoiser did not finish in time and is killed")
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def _await_start(self, handle: Callable[[str, Any], None]) -> Mapping[str, Any]:
        """Wait for the child to have loaded its model; raise what it failed with."""
        deadline = time.monotonic() + _STARTUP_TIMEOUT_S
        while self._connection.poll(max(0.0, deadline - time.monotonic())):
            try:
                kind, content = self.receive()
            except EOFError:
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


def _accept(listener: Listener, process: subprocess.Popen) -> Connection:
    """Accept the child's connection, unless it ends before."""
    accepted: list[Connection] = []
    thread = threading.Thread(target=lambda: accepted.append(listener.accept()), daemon=True)
    thread.start()
    deadline = time.monotonic() + _STARTUP_TIMEOUT_S
    while thread.is_alive() and process.poll() is None and time.monotonic() < deadline:
        thread.join(0.05)
    if not accepted:
        raise DenoiseError(
            f"The denoiser process did not start (exit {process.poll()}); "
            "what it printed stands above."
        )
    return accepted[0]


def _packed(message: tuple[str, Any]) -> bytes:
    try:
        return pickle.dumps(message, protocol=5)
    except Exception:
        kind, items = message
        kept = []
        for item in items:
            try:
                pickle.dumps(item, protocol=5)
                kept.append(item)
            except Exception as error:
                logger.error("A %s document cannot be sent to the denoiser: %s", item[0], error)
        return pickle.dumps((kind, kept), protocol=5)
