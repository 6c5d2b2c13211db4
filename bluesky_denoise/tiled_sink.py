"""Derived runs into Tiled, on a thread of their own, with a backup for when it is down."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_context, from_uri
from tiled.client.utils import ClientError
from tiled.structures.core import Spec

from .backup import BackupFile, backup_files, read_backup
from .settings import DenoiseSettings
from .tiled_streams import NodeMissing, StreamWriter

__all__ = ["TiledSink", "replay_backup"]

logger = logging.getLogger(__name__)

Document = tuple[str, Mapping[str, Any]]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_NODE_PAUSE_S = 0.2
_REST = 3.0
"""How long to rest after each writing, in units of the time that it took."""


class _Writer(Protocol):
    def write(self, documents: list[Document]) -> None: ...


class DerivedRunWriter:
    """Write one derived run as a run of its own, with bluesky's own `TiledWriter`."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._writer = TiledWriter(container, batch_size=1)

    def write(self, documents: list[Document]) -> None:
        if [name for name, _ in documents] == ["start", "stop"]:
            uid = documents[0][1]["uid"]
            if uid in self._container:  # its own writer died: keep what it has written
                self._container[uid].update_metadata({"stop": dict(documents[1][1])})
                return
        for name, doc in documents:
            if name == "start" and doc["uid"] in self._container:
                # What an earlier, failed attempt has left of this derived run.
                self._container.delete_contents(doc["uid"], recursive=True, external_only=False)
            self._writer(name, doc)


class _Run:
    """What is still to be written of one derived run."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.start = start
        self.written: list[Document] = []  # what a new attempt needs from the start
        self.waiting: list[Document] = []
        self.writer: _Writer | None = None
        self.backup: BackupFile | None = None
        self.next_try = 0.0
        self.pause_s = _FIRST_PAUSE_S
        self.since = time.monotonic()
        self.stopped = False


class TiledSink:
    """Take documents of derived runs, and write them to Tiled on a thread.

    A run that cannot be written goes to a backup file, and is tried again until it is
    written or the sink is closed.

    Parameters
    ----------
    settings :
        Address, key, layout, backup directory.
    on_written :
        Called with the uid of the raw run when all of its derived run is in Tiled.
    """

    def __init__(
        self, settings: DenoiseSettings, on_written: Callable[[str], None] = lambda uid: None
    ) -> None:
        self._settings, self._on_written = settings, on_written
        self._queue: queue.SimpleQueue[Document | None] = queue.SimpleQueue()
        self._runs: dict[str, _Run] = {}  # by uid of the derived run
        self._run_of: dict[str, str] = {}
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
        return [run.backup.path for run in self._runs.values() if run.backup]

    def _loop(self) -> None:
        while True:
            self._take()
            for uid, run in list(self._runs.items()):
                if (run.waiting or run.backup) and time.monotonic() >= run.next_try:
                    self._try(run)
                if run.stopped and not run.waiting:
                    del self._runs[uid]
                    for key in [key for key, owner in self._run_of.items() if owner == uid]:
                        del self._run_of[key]
                    self._on_written(run.start["original_run_uid"])
            if self._closing and not self._worth_waiting():
                for run in self._runs.values():
                    self._back_up(run, "the denoiser was closed")
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
        due = [run.next_try for run in self._runs.values() if run.waiting or run.backup]
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
            self._keep(run, run.backup, [(name, doc)])
        elif run.stopped:
            run.next_try = 0.0

    def _try(self, run: _Run) -> None:
        try:
            if run.writer is None:
                run.writer = self._open(run.start)
                run.waiting = run.written + run.waiting
                run.written = []
            began = time.monotonic()
            run.writer.write(run.waiting)
        except NodeMissing as error:
            run.writer = None
            run.next_try = time.monotonic() + _NODE_PAUSE_S
            if time.monotonic() - run.since > self._settings.node_timeout_s:
                self._failed(run, error)
        except Exception as error:
            run.writer = None  # its state is unknown: begin anew, which skips what is there
            self._client = None
            self._failed(run, error)
        else:
            run.written += [item for item in run.waiting if self._is_needed_again(item[0])]
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
        run.next_try = time.monotonic() + run.pause_s
        run.pause_s = min(2 * run.pause_s, _LONGEST_PAUSE_S)
        self._back_up(run, _reason(error, self._settings))

    def _back_up(self, run: _Run, reason: str) -> None:
        if run.backup or not run.waiting:
            return
        backup = BackupFile(self._settings.backup_path, run.start["uid"], self._redact)
        logger.warning(
            "Derived run %.8s of run %.8s cannot be written to Tiled (%s). Its documents are kept "
            "in %s, and it is tried again.",
            *(run.start["uid"], run.start["original_run_uid"], reason, backup.path),
        )
        self._keep(run, backup, run.written + run.waiting)

    def _keep(self, run: _Run, backup: BackupFile, documents: list[Document]) -> None:
        """Add documents to a backup; without a disk they wait in memory, and are tried again."""
        try:
            backup.append(documents)
            run.backup = backup
        except OSError as error:
            run.backup = None
            logger.error(
                "Derived run %.8s cannot be kept in %s: %s", run.start["uid"], backup.path, error
            )

    def _redact(self, text: str) -> str:
        key = self._settings.tiled_api_key
        return text.replace(key.get_secret_value(), "***") if key else text

    def _open(self, start: Mapping[str, Any]) -> _Writer:
        if self._client is None:
            self._client = connect(self._settings)
        return open_writer(self._client, self._settings)


def connect(settings: DenoiseSettings) -> Any:
    """Return a Tiled client for the container that the settings write into.

    For the layout ``"stream"`` this is the raw catalog; for ``"run"`` the container of
    derived runs, which is made if missing.
    """
    key = settings.tiled_api_key
    client = from_uri(
        settings.tiled_uri,
        api_key=key.get_secret_value() if key else None,
        include_data_sources=True,
    )
    if settings.tiled_layout == "stream":
        return client
    # By path, since a catalog of runs takes any key for a partial uid.
    path: list[str] = []
    for part in settings.tiled_container.strip("/").split("/"):
        parent = from_context(client.context, node_path_parts=path)
        path.append(part)
        try:  # to look first, for it may lie where nothing may be made
            from_context(client.context, node_path_parts=path)
            continue
        except (KeyError, ClientError) as error:
            if isinstance(error, ClientError) and error.response.status_code != 404:
                raise
        try:
            parent.create_container(part, specs=[Spec("CatalogOfBlueskyRuns", version="3.0")])
        except ClientError as error:
            if error.response.status_code != 409:  # 409: it is there by now
                raise
    return from_context(client.context, node_path_parts=path, include_data_sources=True)


def _reason(error: Exception, settings: DenoiseSettings) -> str:
    """Say why Tiled was not written to, and what to do where it refuses."""
    if not isinstance(error, ClientError) or error.response.status_code not in (401, 403):
        return f"{type(error).__name__}: {error}"
    if settings.tiled_layout == "stream":
        where = "the raw catalog"
        other = ", or use `tiled_layout` 'run' with a `tiled_container` that it may write to"
    else:
        where, other = f"the container {settings.tiled_container!r}", ""
    return (
        f"Tiled refuses, status {error.response.status_code}: `tiled_api_key` may not write to "
        f"{where}. Give one that may{other}"
    )


def open_writer(client: Any, settings: DenoiseSettings) -> _Writer:
    """Return a writer for one derived run, in the layout of the settings."""
    return StreamWriter(client) if settings.tiled_layout == "stream" else DerivedRunWriter(client)


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
    Exception
        Whatever Tiled raises; the file of that run and of later ones are kept.
    """
    client = connect(settings)
    written = []
    with client.context:
        for path in backup_files(settings.backup_path):
            documents = list(read_backup(path))
            if documents:
                open_writer(client, settings).write(documents)
                written.append(documents[0][1]["original_run_uid"])
            else:
                logger.warning("Backup %s held no whole document and is removed", path)
            path.unlink()
    return written
