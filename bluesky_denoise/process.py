"""Denoise in a child process, so that the RunEngine keeps its speed and its safety."""

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

from bluesky_denoise.as_settings import SettingsLike, as_settings
from bluesky_denoise.child.backlog import Backlog
from bluesky_denoise.child.connection import Child
from bluesky_denoise.child.open_runs import OpenRun, OpenRuns
from bluesky_denoise.child.untold import Untold
from bluesky_denoise.documents import Document
from bluesky_denoise.errors import DenoiseError, DenoiseTimeout, SettingsError
from bluesky_denoise.runs.derived_run import is_derived
from bluesky_denoise.runs.last_event import LastEvent, RawEvent
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.support.subscribers import Subscribers

__all__ = ["DenoiseProcess"]

logger = logging.getLogger(__name__)

_FOR_LATER = frozenset({"start", "resource", "datum", "stream_resource"})
"""Documents that nothing follows from until the next one comes: not worth a message."""
_MAY_HAVE_FRAMES = frozenset({"event", "event_page", "stream_datum"})
_MOST_PER_MESSAGE = 32
_MOST_PER_LAST_MESSAGE = 8
"""While it is closed, so that it can be told soon that time is up."""
_SHARE_FOR_FRAMES = 0.5
"""Of the time in which the child is to end, so much is for what waits to be denoised."""
_CLOSED = "skipped: the denoiser was closed before its turn"
_SHARE_FOR_TILED = 0.6
"""Of the time in which the child is to end, so much is for what Tiled still has to take."""
_MOST_RESTARTS, _RESTARTS_WITHIN_S = 5, 60.0
_ALL: "weakref.WeakSet[DenoiseProcess]" = weakref.WeakSet()
"""Those of this Python."""


class DenoiseProcess:
    """Denoise the frames of every run, beside the RunEngine and not in it.

    Subscribe it to a RunEngine. Documents are handed to a child process; denoised
    documents come back to local subscribers, and are written to Tiled by the child.
    Nothing that goes wrong here reaches the RunEngine.

    Parameters
    ----------
    settings :
        What to denoise, and where results go; or a YAML file of it.
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

    def __init__(self, settings: SettingsLike | None = None, **overrides: Any) -> None:
        self._settings = settings = as_settings(settings, **overrides)
        self._subscribers = Subscribers()
        # Held by whoever changes what others look at. Without it the RunEngine's threads follow
        # the last event, and that of the receiver what comes of open runs.
        self._changed = threading.Condition()
        self._one_closes = threading.RLock()
        self._backlog = Backlog(self._changed, settings.queue_size, settings.queue_wait_s)
        self._open = OpenRuns(settings.frames_directory is not None)
        self._abandoned: deque[list[Document]] = deque()
        self._last_event = LastEvent(settings.streams, settings.data_keys)
        self._child_ready = False
        self._closing = self._closed = self._said_so = self._told_of_others = False
        self._gave_up = ""  # why
        self._close_by = self._skip_from = 0.0
        self._restarts: deque[float] = deque(maxlen=_MOST_RESTARTS)
        self._untold = Untold(settings)
        self._backups: list[str] = []
        # A thread whose `join` was interrupted counts as ended, up to Python 3.12: an event tells.
        self._fed = threading.Event()
        try:
            self._start_child()
            threading.Thread(target=self._feed, name="denoise-feed", daemon=True).start()
            atexit.register(self.close)
            _ALL.add(self)
        except BaseException:  # as by Ctrl-C
            self._leave_nothing()
            raise

    def _leave_nothing(self) -> None:
        """End what has been started of it, as it cannot be built."""
        with self._changed:
            self._closing = self._closed = self._child_ready = True
            self._changed.notify_all()
        if child := self.__dict__.get("_child"):
            child.end(0)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise SettingsError(
                f"`{name}` of a DenoiseProcess cannot be set: what it denoises, and how, is fixed "
                'when it is built. Close it and build another (docs/settings.md, "Other settings '
                'between scans").'
            )
        super().__setattr__(name, value)

    # For the user --------------------------------------------------------------------

    @property
    def settings(self) -> DenoiseSettings:
        """What it was built with."""
        return self._settings

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What makes the results, as of `DenoiseRouter`."""
        return self._provenance

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    @property
    def closed(self) -> bool:
        """Whether it takes no more runs: it was closed, or its child died for good."""
        return self._closing

    @property
    def last_event(self) -> RawEvent | None:
        """The newest event with frames that the running run has handed over."""
        return self._last_event.value

    def last_event_of(self, run_uid: str, stream: str) -> RawEvent | None:
        """Return the newest event with frames of a stream; None where its run is not open."""
        return self._last_event.of_stream(run_uid, stream)

    def subscribe(self, func: Callable[[str, Mapping[str, Any]], Any], name: str = "all") -> int:
        """Call `func` with the documents of derived runs, on a thread; returns a token."""
        return self._subscribers.subscribe(func, name)

    def unsubscribe(self, token: int) -> None:
        """Undo `subscribe`."""
        self._subscribers.unsubscribe(token)

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
        DenoiseFailed
            If the denoiser's process has died of some, or for good. It is told once.
        TiledUnavailable
            If Tiled refuses some of them, or has not taken them, or their raw runs, for longer
            than `node_timeout_s`; their documents are kept. It is told once.
        DenoiseError
            If it is called by a function that was given to `subscribe`.
        """
        self._refuse_in_a_callback("wait")
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open.unfinished(), timeout):
                runs = ", ".join(uid[:8] for uid in self._open.unfinished())
                raise DenoiseTimeout(
                    f"Not all is denoised and in Tiled after {timeout} s. Still open: {runs}. "
                    "Call `wait` again, with more time; if Tiled is down, which the log tells, "
                    f"the results are kept in {self.settings.backup_path}."
                )
            self._untold.tell()

    def close(self, timeout: float = 30.0) -> None:
        """Finish what has been handed over, and end the child process.

        Parameters
        ----------
        timeout :
            Seconds to wait for the child, before it is killed. After half of them, frames that
            still wait for their turn are skipped.

        Raises
        ------
        DenoiseError
            If it is called by a function that was given to `subscribe`.
        """
        self._refuse_in_a_callback("close")
        with self._one_closes:  # another thread that calls it returns when all is done, too
            self._close(timeout)

    def _close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            if not self._closing:
                self._closing = True
                self._close_by = deadline
                self._skip_from = deadline - (1 - _SHARE_FOR_FRAMES) * timeout
                self._changed.notify_all()
                if waiting := self._backlog.with_frames:
                    logger.warning(
                        "Closing the denoiser: %d events wait for it. In %.0f s at most, those "
                        "that are left are skipped; `bluesky-denoise catch-up` denoises them later",
                        *(waiting, _SHARE_FOR_FRAMES * timeout),
                    )
        self._fed.wait(timeout)
        with self._changed:
            self._closed = True  # a child that has died meanwhile is not started again
            runs = list(self._open)
        if not self._child.end(deadline - time.monotonic()):
            logger.error(
                "The denoiser did not finish in time and is killed; %s%s",
                *(_cut_short(runs), "; until then they have no end" if runs else ""),
            )
        self._receiver.join(1.0)
        self._child.close()
        backups, self._backups = self._backups, []
        if backups:
            logger.warning(
                "%d denoised runs are not in Tiled but in %s; bring them in with "
                "`bluesky-denoise replay-backup`",
                *(len(backups), self.settings.backup_path),
            )
        atexit.unregister(self.close)

    def close_others(self) -> None:
        """Close others of this Python for the same detectors, as left from a cell run again."""
        for other in list(_ALL):
            if self._shares_frames_with(other):
                other.close()

    def _refuse_in_a_callback(self, method: str) -> None:
        """Refuse to wait on the thread by which results come."""
        if threading.current_thread() is self._receiver:
            raise DenoiseError(
                f"`{method}` waits for results, and was called by a function that was given to "
                "`subscribe`: while that runs, none come. Call it in the plan or at the prompt."
            )

    def __repr__(self) -> str:
        where = self.settings.tiled_uri or self.settings.frames_directory or "callbacks"
        state = "closed" if self._closing else f"pid {self.pid}"
        return f"<DenoiseProcess {self.settings.model!r}, {state}, into {where}>"

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
                if name == "start" and self._gave_up and not is_derived(doc):
                    self._untold.lose([doc["uid"]], self._gave_up)
                if name == "start" and not self._said_so:
                    self._said_so = True
                    logger.warning(
                        "Run %.8s is not denoised by %r, nor are later ones. Take it off the "
                        "RunEngine: `RE.unsubscribe(token)`, with the token that `RE.subscribe` "
                        "gave for it",
                        *(doc.get("uid", ""), self),
                    )
                return
            if name == "start" and not is_derived(doc):
                self._open[doc["uid"]] = OpenRun(doc)
                self._tell_of_others(doc["uid"])
            elif name == "stop" and doc["run_start"] in self._open:
                self._open[doc["run_start"]].stopped = True
            # Events of other streams go on, too: the places of frames in a Resource that streams
            # share are counted over all of them.
            frames = name in _MAY_HAVE_FRAMES and self._last_event.has_frames(name, doc)
            self._backlog.put(name, doc, frames=frames)
            if self._child_ready and name not in _FOR_LATER:
                self._changed.notify_all()

    def _tell_of_others(self, uid: str) -> None:
        others = [each for each in _ALL if uid in each._open and self._shares_frames_with(each)]
        if others and not self._told_of_others:
            self._told_of_others = True
            logger.warning(
                "Run %.8s is denoised by %s, too, into a stream of its own. If that is left from a "
                "cell that was run again, or a file: `denoise.close_others()`",
                *(uid, ", ".join(map(repr, others))),
            )

    def _shares_frames_with(self, other: "DenoiseProcess") -> bool:
        """Tell whether another one denoises what this one does, and not a detector of its own."""
        ours, theirs = self.settings.data_keys, other.settings.data_keys
        return other is not self and not (ours and theirs and set(ours).isdisjoint(theirs))

    # To the child --------------------------------------------------------------------

    def _feed(self) -> None:
        """Send what waits whenever the child is ready for it (on a thread)."""
        try:
            self._feed_on()
        finally:
            self._fed.set()

    def _feed_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._child_ready and (self._backlog or self._abandoned or self._closing)
                    )
                )
                if self._closed:
                    return
                message, child = self._next_message(), self._child
                self._child_ready = False
            try:
                child.send(message)  # not to the next one, which may not have started yet
            except OSError:  # the child has died: the receiver sees to it, and to its runs
                continue
            if message[0] == "close":
                return

    def _next_message(self) -> tuple[str, Any]:
        if self._abandoned:
            return "abandoned", self._abandoned.popleft()
        if not self._backlog:
            left_s = max(0.0, self._close_by - time.monotonic())
            return "close", _SHARE_FOR_TILED * left_s
        if self._closing and time.monotonic() > self._skip_from:
            self._backlog.skip(_CLOSED)
        hurry = self._closing and self._backlog.with_frames
        batch = self._backlog.take(_MOST_PER_LAST_MESSAGE if hurry else _MOST_PER_MESSAGE)
        for name, doc, _ in batch:
            if name == "start" and doc["uid"] in self._open:
                self._open[doc["uid"]].sent = True
        return "documents", batch

    # From the child ------------------------------------------------------------------

    def _start_child(self) -> None:
        with self._changed:
            if self._closed:
                raise DenoiseError("The denoiser was closed before it was started again.")
            self._child = Child(self.settings)
        self._provenance = self._child.start(self._handle)
        self._receiver = threading.Thread(
            target=self._receive, args=(self._child,), name="denoise-receive", daemon=True
        )
        self._receiver.start()

    def _receive(self, child: Child) -> None:
        """Handle the child's messages until it ends (on a thread)."""
        while True:
            try:
                kind, content = child.receive()
            except (EOFError, OSError):
                break
            except Exception:  # some message can be read by nobody: its run has lost a part
                logger.exception("What the denoiser sent cannot be read; it is started anew")
                child.end(0)
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
        self._child_died(child.wait())

    def _handle(self, kind: str, content: Any) -> None:
        if kind == "ready":
            with self._changed:
                self._child_ready = True
                self._changed.notify_all()
        if kind in ("ready", "documents"):
            for name, doc in content:
                self._open.follow(name, doc)
                self._subscribers(name, doc)
        elif kind == "done":
            raw_run_uid, refusal = content
            with self._changed:
                self._open.done(raw_run_uid)
                self._untold.written(raw_run_uid, refusal)
                self._changed.notify_all()
        elif kind == "log":
            name, level, text = content
            logging.getLogger(name).log(level, "%s", text)
        elif kind == "closed":
            self._backups = content

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
            self._untold.lose((uid for uid, run in lost.items() if not run.ended), reason)
        logger.error("%s; %s", reason, _cut_short(lost))
        for uid, run in lost.items():
            try:
                documents, new = self._open.end_of(run, self.provenance, reason)
            except Exception:  # of one run: the others are ended, and the next denoised
                logger.exception("Run %.8s: the derived run could not be ended", uid)
                with self._changed:
                    self._open.done(uid)
                    self._changed.notify_all()
                continue
            for name, doc in new:
                self._subscribers(name, doc)
            with self._changed:
                self._abandoned.append(documents)
        why = "did so too often"
        if not give_up:
            try:
                self._start_child()
                return
            except Exception as error:
                if not self._closed:  # else it was `close` that ended it
                    logger.exception("The denoiser could not be started again")
                what = f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
                why = self.settings.redact(f"could not be started again ({what})")
        with self._changed:
            if not self._closing:
                self._gave_up = f"{reason}, and {why} (build a new one)"
                self._untold.lose(self._open, self._gave_up)
                logger.error(
                    "Runs go on undenoised; build a new DenoiseProcess to go on. Not denoised: %s; "
                    "`bluesky-denoise catch-up` denoises them",
                    ", ".join(uid[:8] for uid in self._open) or "none so far",
                )
            self._closing = self._closed = self._child_ready = True
            self._backlog.clear()
            self._open.clear()
            self._changed.notify_all()


def _cut_short(runs: Collection[str]) -> str:
    """Say which runs are cut short, and what to do about it."""
    if not runs:
        return "no run is cut short"
    return (
        f"runs cut short: {', '.join(uid[:8] for uid in runs)}. `bluesky-denoise catch-up "
        "SETTINGS.yaml`, with the settings of this session, completes their denoised streams"
    )
