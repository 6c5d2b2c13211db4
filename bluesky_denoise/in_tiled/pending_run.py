"""What is still to be written of a derived run: in memory, or in a backup file."""

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bluesky_denoise.backup import BackupFile, read_backup
from bluesky_denoise.documents import Document
from bluesky_denoise.in_tiled.layouts import Writer
from bluesky_denoise.settings import DenoiseSettings

__all__ = ["PendingRun"]

logger = logging.getLogger(__name__)


class PendingRun:
    """The documents of one derived run on their way to Tiled.

    Parameters
    ----------
    start :
        Its start document.
    settings :
        Where its backup is, and the secret that must not get there.
    """

    def __init__(self, start: Mapping[str, Any], settings: DenoiseSettings) -> None:
        self.start = start
        self.stopped = False
        """Its last document has come."""
        self.writer: Writer | None = None
        """None before the first attempt, and after one that failed."""
        self.refusal = ""
        """Why Tiled will not have it."""
        self.trouble = ""
        """Why it is not in Tiled yet."""
        self.told = False
        """It waits in its backup, for nobody knows how long, and that has been said."""
        self.since = time.monotonic()
        """When Tiled took something of it, or when it came; on that clock, as `next_try`."""
        self.next_try = 0.0
        self.pause_s = 0.0
        """How long the last pause between two attempts was."""
        self._settings = settings
        self._written: list[Document] = []  # what a new attempt needs from the start
        self._waiting: list[Document] = []
        self._backup: BackupFile | None = None  # holds what came before `_waiting`
        self._without_room = False  # for the backup, and that has been said

    @property
    def uid(self) -> str:
        """The uid of the derived run."""
        return self.start["uid"]

    @property
    def raw_uid(self) -> str:
        """The uid of the raw run."""
        return self.start["original_run_uid"]

    @property
    def to_write(self) -> bool:
        """Whether there is something that Tiled may take."""
        return not self.refusal and bool(self._waiting or self._backup)

    @property
    def backup_path(self) -> Path | None:
        """Where its documents are kept; None where they are not."""
        return self._backup.path if self._backup else None

    def add(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one more document; it goes where those before it are."""
        self._waiting.append((name, doc))
        self.stopped |= name == "stop"
        if self._backup and len(self._waiting) == 1:  # else the disk failed: not at each document
            self._keep()

    def begin_anew(self, writer: Writer) -> None:
        """Give the run a new writer, which needs all documents from the start."""
        self.writer = writer
        self._waiting = self._written + self._waiting
        self._written = []

    def write(self, writer: Writer, lock: AbstractContextManager) -> None:
        """Write all that waits.

        Parameters
        ----------
        writer :
            As `begin_anew` took it.
        lock :
            Held while it is changed what waits, and not while Tiled is asked.

        Raises
        ------
        Exception
            Whatever Tiled raises; begin anew then.
        """
        with lock:
            waiting, number = self._waiting, len(self._waiting)
            documents = [*(read_backup(self._backup.path) if self._backup else ()), *waiting]
        writer.write(documents)
        with lock:
            self.since = time.monotonic()
            if self._waiting is not waiting:  # this took so long that it has been backed up
                self.writer = None
                return
            self._written += [item for item in documents if self._is_needed_again(item[0])]
            self._waiting = waiting[number:]
            if self._backup:
                self._backup.done()
                self._backup = None
                logger.warning("Derived run %.8s is in Tiled again", self.uid)

    def _is_needed_again(self, name: str) -> bool:
        return name != "event" or self._settings.tiled_layout == "run"

    def back_up(self, reason: str, then: str, level: int = logging.WARNING) -> None:
        """Keep what waits in a file.

        Parameters
        ----------
        reason, then :
            Why, and what becomes of it: logged with the first document that is kept.
        level :
            Of the log message.
        """
        if self._backup is None and self._waiting:
            self._backup = BackupFile(self._settings.backup_path, self.uid)
            self._waiting = self._written + self._waiting
            self._written = []
            logger.log(
                level,
                "Derived run %.8s of run %.8s cannot be written to Tiled (%s). Its documents are "
                "kept in %s, and %s.",
                *(self.uid, self.raw_uid, reason, self._backup.path, then),
            )
        self._keep()

    def release(self) -> None:
        """Leave its backup to whoever replays it."""
        if self._waiting and self._without_room:
            logger.error(
                "Derived run %.8s of run %.8s: its last %d documents could not be kept, and are "
                "lost. `bluesky-denoise catch-up` denoises such a run again",
                *(self.uid, self.raw_uid, len(self._waiting)),
            )
        if self._backup:
            self._backup.release()

    def _keep(self) -> None:
        """Move what waits into the backup; without a disk it stays in memory."""
        if not (self._backup and self._waiting):
            return
        try:
            self._backup.append(self._waiting)
            self._waiting = []
        except (OSError, TypeError, ValueError, RecursionError) as error:  # or no JSON can be made
            if not self._without_room:
                logger.error(
                    "Derived run %.8s cannot be kept in %s (%s). It waits in memory, and is tried "
                    "again",
                    *(self.uid, self._backup.path, error),
                )
            self._without_room = True
            if not self._backup.path.exists():
                self._backup = None
            return
        if self._without_room:
            logger.warning("Derived run %.8s is kept in %s", self.uid, self._backup.path)
        self._without_room = False
