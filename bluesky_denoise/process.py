"""Denoise in a child process, so that the RunEngine keeps its speed and its safety."""

import atexit
import logging
import os
import pickle
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener
from typing import Any, Self

import numpy as np
from bluesky.run_engine import Dispatcher
from event_model import DocumentNames, compose_run

from .derived import is_derived, start_metadata, stop_document
from .errors import DenoiseError, DenoiseTimeout
from .last_event import LastEvent, RawEvent
from .settings import DenoiseSettings

__all__ = ["DenoiseProcess"]

logger = logging.getLogger(__name__)

_STARTUP_TIMEOUT_S = 120.0
_CARRY_FRAMES = frozenset({"event", "event_page", "stream_datum"})
_FOR_LATER = frozenset({"start", "resource", "datum", "stream_resource"})
"""Documents that nothing follows from until the next one comes: not worth a message."""
_MOST_PER_MESSAGE = 64
_MOST_RESTARTS, _RESTARTS_WITHIN_S = 5, 60.0


@dataclass
class _OpenRun:
    """A raw run that has been handed over and is not done."""

    raw_start: Mapping[str, Any]
    sent: bool = False
    stopped: bool = False
    derived: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    """What has come of it: enough to end it, should the child die."""
    streams: dict[str, str] = field(default_factory=dict)
    """Names of its derived streams, by uid of their descriptor."""
    num_events: dict[str, int] = field(default_factory=dict)
    """Derived events that have come, by stream."""
    ended: bool = False
    """Its derived run has stopped; it may not be in Tiled yet."""


class DenoiseProcess:
    """Denoise the frames of every run, beside the RunEngine and not in it.

    Subscribe it to a RunEngine. Documents are handed to a child process by reference;
    denoised documents come back to local subscribers, and are written to Tiled by the
    child. Nothing that goes wrong here reaches the RunEngine.

    Parameters
    ----------
    settings :
        What to denoise, and where results go.
    **overrides :
        Settings by keyword, in place of `settings` or on top of them.

    Raises
    ------
    SettingsError, ModelNotFound, CheckpointError
        When it is built, if it could not work.

    Examples
    --------
    >>> denoise = DenoiseProcess(exposure_s=1.0, tiled_uri="http://localhost:8000")
    >>> RE.subscribe(denoise)
    0
    >>> denoise.subscribe(LiveTable(["motor", "det_image_denoised_total"], stream_name="denoised"))
    0
    >>> RE(scan([det], motor, -1, 1, 21))
    >>> denoise.wait(60)
    """

    def __init__(self, settings: DenoiseSettings | None = None, **overrides: Any) -> None:
        if settings is None:
            settings = DenoiseSettings(**overrides)
        elif overrides:
            given = {key: getattr(settings, key) for key in settings.model_fields_set}
            settings = DenoiseSettings(**{**given, **overrides})
        self.settings = settings
        self._dispatcher = Dispatcher()
        # One that fails must not keep documents from the others.
        self._dispatcher.cb_registry.ignore_exceptions = True
        self._subscribers: dict[int, Callable] = {}  # the dispatcher holds them weakly
        self._changed = threading.Condition()
        self._queue: deque[tuple[str, Mapping[str, Any], bool]] = deque()
        self._waiting = 0  # of those that carry frames
        self._full = False
        self._open: dict[str, _OpenRun] = {}  # by uid of the raw run
        self._raw_of: dict[str, str] = {}  # uid of a derived run or descriptor -> raw run
        self._abandoned: deque[list[tuple[str, Mapping[str, Any]]]] = deque()
        self._last_event = LastEvent(settings.streams, settings.data_keys)
        self._child_ready = False
        self._closing = self._closed = False
        self._restarts: deque[float] = deque(maxlen=_MOST_RESTARTS)
        self._backups: list[str] = []
        self._start_child()
        self._feeder = threading.Thread(target=self._feed, name="denoise-feed", daemon=True)
        self._feeder.start()
        atexit.register(self.close)

    # For the user --------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def last_event(self) -> RawEvent | None:
        """The newest event with frames that the running run has handed over."""
        return self._last_event.value

    def subscribe(self, func: Callable[[str, Mapping[str, Any]], Any], name: str = "all") -> int:
        """Call `func` with the documents of derived runs, on a thread; returns a token."""
        token = self._dispatcher.subscribe(func, name)
        self._subscribers[token] = func
        return token

    def unsubscribe(self, token: int) -> None:
        """Undo `subscribe`."""
        self._dispatcher.unsubscribe(token)
        self._subscribers.pop(token, None)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all runs that have ended are denoised and in Tiled.

        Parameters
        ----------
        timeout :
            Seconds; None: as long as it takes.

        Raises
        ------
        DenoiseTimeout
            If it takes longer; the runs go on being denoised.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._unfinished(), timeout):
                runs = ", ".join(uid[:8] for uid in self._unfinished())
                raise DenoiseTimeout(
                    f"Not all is denoised and in Tiled after {timeout} s. Still open: {runs}. "
                    "Call `wait` again, with more time; if Tiled is down, the results are kept "
                    f"in {self.settings.backup_path}."
                )

    def close(self, timeout: float = 30.0) -> None:
        """Finish what has been handed over, and end the child process.

        Parameters
        ----------
        timeout :
            Seconds to wait for the child, before it is killed.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout
        self._feeder.join(timeout)
        try:
            self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.error("The denoiser did not finish within %s s and is killed", timeout)
            self._process.kill()
            self._process.wait()
        self._receiver.join(1.0)
        self._connection.close()
        if self._backups:
            logger.warning(
                "%d denoised runs are not in Tiled but in %s; bring them in with "
                "`bluesky-denoise replay-backup`",
                *(len(self._backups), self.settings.backup_path),
            )
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # From the RunEngine --------------------------------------------------------------

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a raw run; never raises."""
        for take in (self._last_event, self._accept):
            try:
                take(str(name), doc)
            except Exception:
                logger.exception("A %s document could not be handed to the denoiser", name)

    def _accept(self, name: str, doc: Mapping[str, Any]) -> None:
        with self._changed:
            if self._closing:
                return
            skipped = False
            if name in _CARRY_FRAMES:
                skipped = not self._make_room()
                self._waiting += not skipped
            elif name == "start" and not is_derived(doc):
                self._open[doc["uid"]] = _OpenRun(doc)
            elif name == "stop" and doc["run_start"] in self._open:
                self._open[doc["run_start"]].stopped = True
            self._queue.append((name, _without_frames(doc) if skipped else doc, skipped))
            if self._child_ready and name not in _FOR_LATER:
                self._changed.notify_all()

    def _unfinished(self) -> list[str]:
        return [uid for uid, run in self._open.items() if run.stopped]

    def _make_room(self) -> bool:
        """Wait a bounded time for room in the queue; tell whether there is some."""
        if self._waiting < self.settings.queue_size and not self._full:
            return True
        if not self._full:
            room = self._changed.wait_for(
                lambda: self._waiting < self.settings.queue_size, self.settings.queue_wait_s
            )
            if room:
                return True
            logger.warning(
                "The denoiser is %d events behind: frames are skipped until it has caught up",
                self._waiting,
            )
        # Once full, wait no more for each event, until half the queue is done.
        self._full = self._waiting > self.settings.queue_size // 2
        return not self._full

    # To the child --------------------------------------------------------------------

    def _feed(self) -> None:
        """Send what waits whenever the child is ready for it (on a thread)."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._child_ready and (self._queue or self._abandoned or self._closing)
                )
                if self._closed:
                    return
                message = self._next_message()
                self._child_ready = False
                self._changed.notify_all()
            try:
                self._connection.send_bytes(_packed(message))
            except OSError:  # the child has died: the receiver sees to it
                if message[0] == "abandoned":
                    self._abandoned.appendleft(message[1])
                continue
            if message[0] == "close":
                return

    def _next_message(self) -> tuple[str, Any]:
        if self._abandoned:
            return "abandoned", self._abandoned.popleft()
        if not self._queue:
            return "close", None
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MOST_PER_MESSAGE))]
        for name, doc, skipped in batch:
            self._waiting -= name in _CARRY_FRAMES and not skipped
            if name == "start" and doc["uid"] in self._open:
                self._open[doc["uid"]].sent = True
        return "documents", batch

    # From the child ------------------------------------------------------------------

    def _start_child(self) -> None:
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
                self._connection = _accept_child(listener, self._process)
                level = logging.getLogger("bluesky_denoise").getEffectiveLevel()
                self._connection.send_bytes(pickle.dumps(("settings", (self.settings, level))))
                self.provenance = self._await_start()
            except BaseException:
                self._process.kill()
                self._process.wait()
                raise
        self._receiver = threading.Thread(
            target=self._receive,
            args=(self._connection, self._process),
            name="denoise-receive",
            daemon=True,
        )
        self._receiver.start()

    def _await_start(self) -> Mapping[str, Any]:
        """Wait for the child to have loaded its model; raise what it failed with."""
        deadline = time.monotonic() + _STARTUP_TIMEOUT_S
        while self._connection.poll(max(0.0, deadline - time.monotonic())):
            try:
                kind, content = pickle.loads(self._connection.recv_bytes())
            except EOFError:
                raise DenoiseError(
                    f"The denoiser process died as it started (exit {self._process.wait()}); "
                    "what it printed stands above."
                ) from None
            if kind == "started":
                return content
            if kind == "failed":
                raise content
            self._handle(kind, content)
        raise DenoiseTimeout(f"The denoiser did not start within {_STARTUP_TIMEOUT_S} s.")

    def _receive(self, connection: Connection, process: subprocess.Popen) -> None:
        """Handle the child's messages until it ends (on a thread)."""
        while True:
            try:
                kind, content = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                break
            try:
                self._handle(kind, content)
            except Exception:
                logger.exception("A message of the denoiser could not be handled")
            if kind == "closed":
                with self._changed:
                    self._closed = True
                    self._open.clear()
                    self._changed.notify_all()
                return
        self._child_died(process.wait())

    def _handle(self, kind: str, content: Any) -> None:
        if kind == "ready":
            with self._changed:
                self._child_ready = True
                self._changed.notify_all()
        if kind in ("ready", "documents"):
            for name, doc in content:
                self._track(name, doc)
                self._dispatch(name, doc)
        elif kind == "done":
            with self._changed:
                self._open.pop(content, None)
                for key in [key for key, raw in self._raw_of.items() if raw == content]:
                    del self._raw_of[key]
                self._changed.notify_all()
        elif kind == "log":
            name, level, text = content
            logging.getLogger(name).log(level, "%s", text)
        elif kind == "closed":
            self._backups = content

    def _track(self, name: str, doc: Mapping[str, Any]) -> None:
        """Keep what is needed to end a derived run, should the child die."""
        if name == "start":
            raw = doc["original_run_uid"]
        elif name in ("event", "stream_datum"):
            raw = self._raw_of.get(doc["descriptor"])
        else:
            raw = self._raw_of.get(doc["run_start"])
        if raw not in self._open:
            return
        if "uid" in doc and name in ("start", "descriptor"):
            self._raw_of[doc["uid"]] = raw
        run = self._open[raw]
        if name == "descriptor":
            run.streams[doc["uid"]] = doc["name"]
            run.num_events.setdefault(doc["name"], 0)
        elif name == "event":
            run.num_events[run.streams[doc["descriptor"]]] += 1
        run.ended |= name == "stop"
        # With frames in files the documents are small, and can all be sent again.
        if name == "start" or self.settings.frames_directory:
            run.derived.append((name, doc))

    def _dispatch(self, name: str, doc: Mapping[str, Any]) -> None:
        for error, _ in self._dispatcher.cb_registry.process(DocumentNames[name], name, doc):
            logger.error(
                "A subscriber of the denoised documents failed on a %s", name, exc_info=error
            )

    # When the child dies -------------------------------------------------------------

    def _child_died(self, exit_code: int) -> None:
        reason = f"the denoiser process died (exit {exit_code})"
        with self._changed:
            self._child_ready = False
            lost = {uid: run for uid, run in self._open.items() if run.sent}
            now = time.monotonic()
            often = len(self._restarts) == _MOST_RESTARTS
            give_up = self._closing or (often and now - self._restarts[0] < _RESTARTS_WITHIN_S)
            self._restarts.append(now)
        logger.error("%s; runs cut short: %s", reason, ", ".join(u[:8] for u in lost) or "none")
        for uid, run in lost.items():
            documents, new = self._end_of(run, reason)
            for name, doc in new:
                self._dispatch(name, doc)
            with self._changed:
                self._abandoned.append(documents)
                if give_up:
                    self._open.pop(uid, None)
        if not give_up:
            try:
                self._start_child()
                return
            except Exception:
                logger.exception("The denoiser could not be started again")
        with self._changed:
            if not self._closing:
                logger.error("Runs go on undenoised; build a new DenoiseProcess to go on")
            self._closing = self._closed = self._child_ready = True
            self._queue.clear()
            self._open.clear()
            self._changed.notify_all()

    def _end_of(
        self, run: _OpenRun, reason: str
    ) -> tuple[list[tuple[str, Mapping[str, Any]]], list[tuple[str, Mapping[str, Any]]]]:
        """Return all documents of a run cut short, and those of them that are new."""
        known, new = run.derived, []
        if run.ended and self.settings.frames_directory:
            return known, new  # all of it came, and may only not be in Tiled yet
        if not known:
            metadata = start_metadata(run.raw_start, self.provenance)
            new = [("start", compose_run(metadata=metadata).start_doc)]
        start = (known or new)[0][1]
        stop = "stop", stop_document(start["uid"], dict(run.num_events), reason)
        if run.ended:  # what was not in Tiled yet is lost with the child: say so there
            return [*known, stop], new
        return [*known, *new, stop], [*new, stop]


def _accept_child(listener: Listener, process: subprocess.Popen) -> Connection:
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
    """Return a message as bytes; documents that cannot be are left out, and logged."""
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


def _without_frames(doc: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an event without its arrays, which are what fills the memory."""
    if "data" not in doc:
        return doc
    data = {
        key: None if isinstance(value, np.ndarray) and value.ndim >= 2 else value
        for key, value in doc["data"].items()
    }
    return {**doc, "data": data}
