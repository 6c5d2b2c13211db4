"""Derived runs into Tiled, on a thread of their own, with a backup for when it is down."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bluesky_denoise.as_settings import SettingsLike, as_settings
from bluesky_denoise.backup import backup_files, read_backup, take_backup
from bluesky_denoise.documents import Document
from bluesky_denoise.errors import DenoiseError, TiledUnavailable
from bluesky_denoise.in_tiled.layouts import (
    connect,
    explain,
    is_away,
    is_refusal,
    open_writer,
    try_reading,
)
from bluesky_denoise.in_tiled.pending_run import PendingRun
from bluesky_denoise.in_tiled.streams import NodeMissing

__all__ = ["TiledSink", "replay_backup"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LONGEST_AWAY_S = 5.0
"""Of a server that does not answer."""
_NODE_PAUSE_S = 0.2
_REST = 3.0
"""How long to rest after each writing, in units of the time that it took."""
_MOST_BYTES = 1 << 30
"""Of frames that may come during one request; more than that goes into the backup."""
_REPLAY = "`bluesky-denoise replay-backup` brings it in"
_AGAIN = "it is tried again"
_NOT_AGAIN = f"it is not tried again; {_REPLAY}"
_STILL = "It is tried again until the denoiser is closed"


class TiledSink:
    """Take documents of derived runs, and write them to Tiled on a thread.

    A run that cannot be written goes to a backup file. It is tried again until it is
    written or the sink is closed; where Tiled refuses it, it stays in its backup.

    Parameters
    ----------
    settings :
        Address, key, layout, backup directory; or a YAML file of these.
    on_written :
        Called with the uid of the raw run when all of its derived run is in Tiled.
    on_kept :
        Called with the uid of the raw run, and the reason, when all of its derived run is
        in the backup, and Tiled will not have it, or has not for `node_timeout_s`.
    look :
        Whether to find out, and log, if Tiled can read the frames of the first run.
    """

    def __init__(
        self,
        settings: SettingsLike,
        on_written: Callable[[str], None] = lambda uid: None,
        on_kept: Callable[[str, str], None] = lambda uid, reason: None,
        *,
        look: bool = True,
    ) -> None:
        self._settings = as_settings(settings)
        self._on_written, self._on_kept = on_written, on_kept
        # Held by whoever changes what waits, but not while Tiled is asked.
        self._changed = threading.Condition()
        self._arrived: deque[Document | None] = deque()  # None: it is closed
        self._size = 0  # of their frames
        self._runs: dict[str, PendingRun] = {}  # by uid of the derived run
        self._run_of: dict[str, str] = {}
        self._left: list[Path] = []  # backups of runs that were refused
        self._client: Any = None
        self._looked, self._closing = not look, False
        self._away = ""  # why nothing answers: then not each run tries it
        self._away_s = self._away_until = 0.0
        # A thread whose `join` was interrupted counts as ended, up to Python 3.12: an event tells.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="denoise-tiled", daemon=True)
        self._thread.start()

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document; it is written later."""
        with self._changed:
            self._arrived.append((name, doc))
            self._size += _bytes(doc) if name == "event" else 0
            if self._size > _MOST_BYTES:
                self._back_up_all("Tiled takes more time than there is memory for", _AGAIN)
            self._changed.notify()

    def close(self, timeout: float | None = None) -> list[Path]:
        """Write what can be written, and end the thread; the rest is backed up, after Ctrl-C too.

        Parameters
        ----------
        timeout :
            Seconds to wait at most.

        Returns
        -------
        list of pathlib.Path
            Backup files of runs that are not in Tiled.

        Raises
        ------
        DenoiseError
            If a function that was given to the sink calls it: it would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise DenoiseError(
                "`close` was called by a function that was given to a TiledSink: it waits until "
                "that has ended. Call it outside."
            )
        with self._changed:
            self._arrived.append(None)
            self._changed.notify()
        try:
            self._ended.wait(timeout)
        finally:
            with self._changed:
                if not self._ended.is_set():  # Tiled takes a request, and does not answer
                    self._back_up_all(
                        "Tiled did not answer before the denoiser was closed", _REPLAY
                    )
        with self._changed:
            runs = list(self._runs.values())
            for run in runs:
                run.release()
            return self._left + [run.backup_path for run in runs if run.backup_path]

    def _back_up_all(self, reason: str, then: str) -> None:
        """Back up what waits, from another thread: ours is held up by Tiled.

        What it writes meanwhile is recognised when the backup is replayed.
        """
        self._sort_arrived()
        for run in self._runs.values():
            run.trouble = run.trouble or f"{reason}. {_STILL}"
            run.back_up(reason, then)

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            self._ended.set()

    def _loop(self) -> None:
        while True:
            # The one that failed last comes last: it may be the only one that does.
            for run in sorted(self._take(), key=lambda run: run.next_try):
                try:
                    self._advance(run)
                except Exception:
                    logger.exception(
                        "Derived run %.8s of run %.8s is held up; all others are written",
                        *(run.uid, run.raw_uid),
                    )
                    run.next_try = time.monotonic() + _LONGEST_PAUSE_S
            with self._changed:
                if self._closing and not self._worth_waiting():
                    for run in self._runs.values():
                        run.back_up("the denoiser was closed", _REPLAY)
                    self._disconnect()
                    return

    def _advance(self, run: PendingRun) -> None:
        """Write what waits of a run, if it is time, and forget the run if that was all."""
        if run.to_write and time.monotonic() >= max(run.next_try, self._away_until):
            self._try(run)
        if run.stopped and not run.to_write:
            self._end(run)
        elif run.stopped and run.backup_path and not run.told and self._is_late(run):
            run.told = True
            self._on_kept(run.raw_uid, run.trouble)

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.context.close()
            self._client = None
        for run in self._runs.values():
            run.writer = None  # it would go on with the client that is closed

    def _worth_waiting(self) -> bool:
        """Tell whether something may still be written soon: only a node that is to come."""
        patience = min(self._settings.node_timeout_s, 5.0)
        return any(
            run.to_write and not run.backup_path and time.monotonic() - run.since < patience
            for run in self._runs.values()
        )

    def _take(self) -> list[PendingRun]:
        """Wait until documents have come, or a retry is due; return all runs."""
        with self._changed:
            runs = self._runs.values()
            due = [max(run.next_try, self._away_until) for run in runs if run.to_write]
            pause = max(0.0, min(due) - time.monotonic()) if due else None
            self._changed.wait_for(lambda: self._arrived, pause)
            self._sort_arrived()
            return list(runs)

    def _sort_arrived(self) -> None:
        """Give all documents that have come to their runs."""
        while self._arrived:
            item = self._arrived.popleft()
            if item is None:
                self._closing = True
            else:
                self._sort(*item)
        self._size = 0

    def _sort(self, name: str, doc: Mapping[str, Any]) -> None:
        """Give a document to its run; one of a run that was never begun is logged."""
        try:
            self._add(name, doc)
        except Exception:
            logger.exception("A denoised %s document could not be sorted in", name)

    def _add(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            uid = doc["uid"]
            self._runs[uid] = PendingRun(doc, self._settings)
        elif name in ("event", "stream_datum"):
            uid = self._run_of[doc["descriptor"]]
        else:
            uid = doc["run_start"]
        run = self._runs[uid]
        if name == "descriptor":
            self._run_of[doc["uid"]] = uid
        run.add(name, doc)
        if name == "start" and self._away:
            self._wait_for_answers(run)
        if run.stopped and not run.backup_path:
            run.next_try = 0.0

    def _try(self, run: PendingRun) -> None:
        try:
            writer = run.writer
            if writer is None:
                if self._client is None:
                    self._client = connect(self._settings)
                    self._away, self._away_s = "", 0.0
                writer = open_writer(self._client, self._settings)
                with self._changed:
                    run.begin_anew(writer)
            began = time.monotonic()
            run.write(writer, self._changed)
        except Exception as error:
            with self._changed:
                self._begin_later(run, error)
        else:
            # Raw data has the server to itself for most of the time, and what comes
            # meanwhile goes in one request.
            now = time.monotonic()
            run.next_try = now + _REST * (now - began)
            run.pause_s = 0.0

    def _begin_later(self, run: PendingRun, error: Exception) -> None:
        run.writer = None  # its state is unknown: begin anew, which skips what is there
        if isinstance(error, NodeMissing):
            run.next_try = time.monotonic() + _NODE_PAUSE_S
            if self._is_late(run):
                self._failed(run, error)
                trouble = f"{error} What is derived goes in when the run is there"
                run.trouble = self._settings.redact(trouble)
            return
        self._failed(run, error)
        if is_away(error):
            self._disconnect()
            self._away = type(error).__name__
            self._away_s = min(2 * self._away_s or _FIRST_PAUSE_S, _LONGEST_AWAY_S)
            self._away_until = time.monotonic() + self._away_s
            for other in self._runs.values():
                self._wait_for_answers(other)

    def _is_late(self, run: PendingRun) -> bool:
        return time.monotonic() - run.since > self._settings.node_timeout_s

    def _wait_for_answers(self, run: PendingRun) -> None:
        """Keep a run out of memory while a request may hang for half a minute."""
        run.trouble = f"Tiled does not answer ({self._away}). {_STILL}"
        run.back_up(self._away, _AGAIN)

    def _failed(self, run: PendingRun, error: Exception) -> None:
        reason = self._settings.redact(explain(error, self._settings))
        if is_refusal(error):
            run.refusal = reason
            run.back_up(reason, _NOT_AGAIN, logging.ERROR)
            return
        run.pause_s = min(2 * run.pause_s or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        run.next_try = time.monotonic() + run.pause_s
        run.trouble = f"Tiled does not take it: {' '.join(reason.split()).rstrip('.')}. {_STILL}"
        run.back_up(reason, _AGAIN)

    def _end(self, run: PendingRun) -> None:
        """Forget a run that is in Tiled, or refused."""
        with self._changed:
            del self._runs[run.uid]
            for key in [key for key, owner in self._run_of.items() if owner == run.uid]:
                del self._run_of[key]
        if not run.refusal:
            self._look(run)
            self._on_written(run.raw_uid)
            return
        run.back_up(run.refusal, _NOT_AGAIN, logging.ERROR)
        run.release()
        if run.backup_path:
            self._left.append(run.backup_path)
        self._on_kept(run.raw_uid, run.refusal)

    def _look(self, run: PendingRun) -> None:
        """Find out with the first frames whether Tiled can serve the files that it knows of."""
        if self._looked or self._client is None or self._settings.frames_directory is None:
            return
        try:
            self._looked = try_reading(self._client, self._settings, run.start)
        except httpx.HTTPStatusError as error:
            self._looked = True
            logger.error(
                "Tiled has the denoised stream of run %.8s, and cannot read its frames in %s (%s). "
                "Add that directory to `readable_storage` in the server's configuration, or leave "
                "`frames_directory` out, which sends frames through HTTP.",
                *(run.raw_uid, self._settings.frames_directory),
                self._settings.redact(f"{type(error).__name__}: {error}".partition("\n")[0]),
            )
        except Exception as error:  # Tiled is away: look at the next run
            logger.debug("Run %.8s could not be looked at: %s", run.raw_uid, error)


def _bytes(event: Mapping[str, Any]) -> int:
    data = event.get("data", {})  # malformed ones are told of when they are sorted
    return sum(value.nbytes for value in data.values() if isinstance(value, np.ndarray))


def replay_backup(settings: SettingsLike) -> list[str]:
    """Write the runs of the backup directory to Tiled, and remove their files.

    Those that a session which lives still writes, or tries again itself, are left to it; the log
    names them.

    Parameters
    ----------
    settings :
        The settings that the runs were denoised with; or a YAML file of them.

    Returns
    -------
    list of str
        The uids of the raw runs that were written.

    Raises
    ------
    TiledUnavailable
        If Tiled lacks the raw run of some, or does not take them, or a file is damaged; all
        others are written.
    Exception
        Whatever a Tiled that is away raises. The files of all that is not written are kept.
    """
    settings = as_settings(settings)
    client = connect(settings)
    written, failed = [], []
    with client.context:
        for path in backup_files(settings.backup_path):
            with take_backup(path) as ours:
                if not ours:
                    logger.warning(
                        "Backup %s is left alone: the session that writes it still runs, and "
                        "brings it in itself; replay it after that session if it is there then",
                        path,
                    )
                    continue
                try:
                    documents: list[Document] = list(read_backup(path))
                    if not documents:
                        logger.warning("Backup %s held no whole document and is removed", path)
                        path.unlink(missing_ok=True)
                        continue
                    open_writer(client, settings).write(documents)
                except Exception as error:
                    if is_away(error):
                        raise
                    failed.append(f"{path.name}: {settings.redact(explain(error, settings))}")
                    continue
                written.append(documents[0][1]["original_run_uid"])
                path.unlink(missing_ok=True)
    if failed:
        raise TiledUnavailable(
            f"{len(written)} runs were written, {len(failed)} are still in "
            f"{settings.backup_path}: {'; '.join(failed)}"
        )
    return written
