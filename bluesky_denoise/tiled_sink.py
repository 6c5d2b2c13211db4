"""Derived runs into Tiled, on a thread of their own, with a backup for when it is down."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .backup import BackupFile, backup_files, read_backup
from .errors import TiledUnavailable
from .settings import DenoiseSettings
from .tiled_layouts import Document, Writer, connect, explain, is_refusal, open_writer
from .tiled_streams import NodeMissing

__all__ = ["TiledSink", "replay_backup"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_NODE_PAUSE_S = 0.2
_REPLAY = "`bluesky-denoise replay-backup` brings it in"
_NOT_AGAIN = f"it is not tried again; {_REPLAY}"
_REST = 3.0
"""How long to rest after each writing, in units of the time that it took."""


class _Run:
    """What is still to be written of one derived run."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.start = start
        self.written: list[Document] = []  # what a new attempt needs from the start
        self.waiting: list[Document] = []
        self.writer: Writer | None = None
        self.backup: BackupFile | None = None  # holds what came before `waiting`
        self.next_try = 0.0
        self.pause_s = _FIRST_PAUSE_S
        self.since = time.monotonic()
        self.stopped = False
        self.refusal = ""

    @property
    def to_write(self) -> bool:
        """Whether there is something that Tiled may take."""
        return not self.refusal and bool(self.waiting or self.backup)


class TiledSink:
    """Take documents of derived runs, and write them to Tiled on a thread.

    A run that cannot be written goes to a backup file. It is tried again until it is
    written or the sink is closed; where Tiled refuses it, it stays in its backup.

    Parameters
    ----------
    settings :
        Address, key, layout, backup directory.
    on_written :
        Called with the uid of the raw run when all of its derived run is in Tiled.
    on_refused :
        Called with the uid of the raw run, and the reason, when all of its derived run is
        in the backup and Tiled will not have it.
    """

    def __init__(
        self,
        settings: DenoiseSettings,
        on_written: Callable[[str], None] = lambda uid: None,
        on_refused: Callable[[str, str], None] = lambda uid, reason: None,
    ) -> None:
        self._settings = settings
        self._on_written, self._on_refused = on_written, on_refused
        self._queue: queue.SimpleQueue[Document | None] = queue.SimpleQueue()
        self._runs: dict[str, _Run] = {}  # by uid of the derived run
        self._run_of: dict[str, str] = {}
        self._left: list[Path] = []  # backups of runs that were refused
        self._client: Any = None
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="denoise-tiled", daemon=True)
        self._thread.start()

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document; returns at once."""
        self._queue.put((name, doc))

    def close(self, timeout: float | None = None) -> list[Path]:
        """Write what can be written, and end the thread.

        Parameters
        ----------
        timeout :
            Seconds to wait at most.

        Returns
        -------
        list of pathlib.Path
            Backup files of runs that are not in Tiled.
        """
        self._queue.put(None)
        self._thread.join(timeout)
        return self._left + [run.backup.path for run in self._runs.values() if run.backup]

    def _loop(self) -> None:
        while True:
            self._take()
            for uid, run in list(self._runs.items()):
                if run.to_write and time.monotonic() >= run.next_try:
                    self._try(run)
                if run.stopped and not run.to_write:
                    self._end(uid, run)
            if self._closing and not self._worth_waiting():
                for run in self._runs.values():
                    self._back_up(
                        run,
                        "the denoiser was closed",
                        "`bluesky-denoise replay-backup` brings it in",
                    )
                if self._client is not None:
                    self._client.context.close()
                return

    def _worth_waiting(self) -> bool:
        """Tell whether something may still be written soon: only a node that is to come."""
        patience = min(self._settings.node_timeout_s, 5.0)
        return any(
            run.waiting and not run.backup and time.monotonic() - run.since < patience
            for run in self._runs.values()
        )

    def _take(self) -> None:
        """Take all documents that wait; sleep until there are some, or a retry is due."""
        due = [run.next_try for run in self._runs.values() if run.to_write]
        pause = max(0.0, min(due) - time.monotonic()) if due else None
        try:
            item = self._queue.get(timeout=pause)
            while True:
                if item is None:
                    self._closing = True
                else:
                    self._sort(*item)
                item = self._queue.get_nowait()
        except queue.Empty:
            pass

    def _sort(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self._runs[doc["uid"]] = _Run(doc)
            uid = doc["uid"]
        elif name in ("event", "stream_datum"):
            uid = self._run_of[doc["descriptor"]]
        else:
            uid = doc["run_start"]
            self._run_of[doc["uid"]] = uid
        run = self._runs[uid]
        run.waiting.append((name, doc))
        run.stopped |= name == "stop"
        if run.backup:
            if len(run.waiting) == 1:  # more than that: the disk failed, and a retry tries it again
                self._keep(run)
        elif run.stopped:
            run.next_try = 0.0

    def _try(self, run: _Run) -> None:
        try:
            if run.writer is None:  # a new one needs all documents, from the start
                run.writer = self._open(run.start)
                run.waiting = run.written + run.waiting
                run.written = []
            kept = list(read_backup(run.backup.path)) if run.backup else []
            began = time.monotonic()
            run.writer.write(kept + run.waiting)
        except NodeMissing as error:
            run.writer = None
            run.next_try = time.monotonic() + _NODE_PAUSE_S
            if time.monotonic() - run.since > self._settings.node_timeout_s:
                self._failed(run, error)
        except Exception as error:
            run.writer = None  # its state is unknown: begin anew, which skips what is there
            if not is_refusal(error):
                self._client = None
            self._failed(run, error)
        else:
            run.written += [item for item in kept + run.waiting if self._is_needed_again(item[0])]
            run.waiting = []
            # Raw data has the server to itself for most of the time, and what comes
            # meanwhile goes in one request.
            now = time.monotonic()
            run.next_try = now + _REST * (now - began)
            run.pause_s = _FIRST_PAUSE_S
            if run.backup:
                run.backup.done()
                run.backup = None
                logger.warning("Derived run %.8s is in Tiled again", run.start["uid"])

    def _is_needed_again(self, name: str) -> bool:
        """Tell whether a written document must be kept for a new attempt."""
        return name != "event" or self._settings.tiled_layout == "run"

    def _failed(self, run: _Run, error: Exception) -> None:
        reason = self._redact(explain(error, self._settings))
        if is_refusal(error):
            run.refusal = reason
            self._back_up(run, reason, _NOT_AGAIN, logging.ERROR)
            return
        run.next_try = time.monotonic() + run.pause_s
        run.pause_s = min(2 * run.pause_s, _LONGEST_PAUSE_S)
        self._back_up(run, reason, "it is tried again")

    def _back_up(self, run: _Run, reason: str, then: str, level: int = logging.WARNING) -> None:
        """Keep what waits, and say why; once a run."""
        if run.backup is None and run.waiting:
            run.backup = BackupFile(self._settings.backup_path, run.start["uid"], self._redact)
            run.waiting = run.written + run.waiting
            run.written = []
            logger.log(
                level,
                "Derived run %.8s of run %.8s cannot be written to Tiled (%s). Its documents are "
                "kept in %s, and %s.",
                *(run.start["uid"], run.start["original_run_uid"], reason, run.backup.path, then),
            )
        self._keep(run)

    def _keep(self, run: _Run) -> None:
        """Move what waits into the backup; without a disk it stays in memory."""
        if not (run.backup and run.waiting):
            return
        try:
            run.backup.append(run.waiting)
            run.waiting = []
        except OSError as error:
            logger.error(
                "Derived run %.8s cannot be kept in %s: %s",
                *(run.start["uid"], run.backup.path, error),
            )
            if not run.backup.path.exists():
                run.backup = None

    def _end(self, uid: str, run: _Run) -> None:
        """Forget a run that is in Tiled, or refused."""
        del self._runs[uid]
        for key in [key for key, owner in self._run_of.items() if owner == uid]:
            del self._run_of[key]
        raw_uid = run.start["original_run_uid"]
        if not run.refusal:
            self._on_written(raw_uid)
            return
        self._back_up(run, run.refusal, _NOT_AGAIN, logging.ERROR)
        if run.backup:
            self._left.append(run.backup.path)
        self._on_refused(raw_uid, run.refusal)

    def _redact(self, text: str) -> str:
        key = self._settings.tiled_api_key
        return text.replace(key.get_secret_value(), "***") if key else text

    def _open(self, start: Mapping[str, Any]) -> Writer:
        if self._client is None:
            self._client = connect(self._settings)
        return open_writer(self._client, self._settings)


def replay_backup(settings: DenoiseSettings) -> list[str]:
    """Write the runs of the backup directory to Tiled, and remove their files.

    Parameters
    ----------
    settings :
        The settings that the runs were denoised with.

    Returns
    -------
    list of str
        The uids of the raw runs that were written.

    Raises
    ------
    TiledUnavailable
        If Tiled lacks the raw run of some, or refuses them; all others are written.
    Exception
        Whatever a Tiled that is away raises. The files of all that is not written are kept.
    """
    client = connect(settings)
    written, failed = [], []
    with client.context:
        for path in backup_files(settings.backup_path):
            documents = list(read_backup(path))
            if not documents:
                logger.warning("Backup %s held no whole document and is removed", path)
                path.unlink()
                continue
            try:
                open_writer(client, settings).write(documents)
            except Exception as error:
                if not (isinstance(error, NodeMissing) or is_refusal(error)):
                    raise
                failed.append(f"{path.name}: {explain(error, settings)}")
                continue
            written.append(documents[0][1]["original_run_uid"])
            path.unlink()
    if failed:
        raise TiledUnavailable(
            f"{len(written)} runs were written, {len(failed)} are still in "
            f"{settings.backup_path}: {'; '.join(failed)}"
        )
    return written
