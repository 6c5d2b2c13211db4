"""The child process of :class:`DenoiseProcess`: router and sinks, fed over a pipe.

Messages from the parent are ``("settings", (settings, log level))`` as the first,
``("documents", [(name, doc, why it is skipped or ""), ...])``,
``("abandoned", [(name, doc), ...])`` for a derived run that an earlier child left open,
and ``("close", seconds)``, of which so many are for Tiled. Messages to the parent are
``("started", provenance)`` or ``("failed", exception)``,
``("documents", [(name, doc), ...])`` of derived runs,
``("ready", documents)`` with the last of what came of a message, when it can take more,
``("done", (raw_run_uid, why it is not in Tiled or ""))``, ``("log", (logger, level, text))``
and ``("closed", backup_files)``.
"""

import contextlib
import json
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection
from typing import Any

from bluesky_denoise.documents import Document
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.support.directories import check_writable
from bluesky_denoise.support.garbage import keep_garbage_at_exit, no_garbage
from bluesky_denoise.support.memory import keep_freed_memory

logger = logging.getLogger(__name__)

__all__ = ["main"]

_MOST_AT_ONCE = 256
_ALONE_S = 60.0
"""How long a child whose parent is gone waits for Tiled."""
_NICENESS = 5
"""Of a core that both want, the RunEngine gets three quarters. More would starve a scan that
waits for its results wherever other programs keep all cores busy."""


class _Pipe:
    """The connection to the parent, for use from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, kind: str, content: Any = None) -> None:
        data = pickle.dumps((kind, content), protocol=5)
        with self._lock:
            self._connection.send_bytes(data)

    def tell(self, kind: str, content: Any = None) -> None:
        """Send, unless the parent is gone: Tiled gets its documents all the same."""
        with contextlib.suppress(OSError):
            self.send(kind, content)

    def receive(self) -> tuple[str, Any]:
        return pickle.loads(self._connection.recv_bytes())


class _LogToParent(logging.Handler):
    """Send log records to the parent, where the user's handlers are."""

    def __init__(self, pipe: _Pipe, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._pipe, self._redact = pipe, redact

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)  # with the traceback, which cannot be pickled
        self._pipe.tell("log", (record.name, record.levelno, self._redact(text)))


def main(address: str) -> None:
    """Serve a parent until it closes the pipe.

    Parameters
    ----------
    address :
        Where it listens, as JSON; the first line of the standard input is its key.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the RunEngine
    _step_back()
    keep_freed_memory()
    keep_garbage_at_exit()
    _open_as_many_files_as_allowed()
    authkey = bytes.fromhex(sys.stdin.readline().strip())
    where = json.loads(address)
    pipe = _Pipe(Client(tuple(where) if isinstance(where, list) else where, authkey=authkey))
    settings, log_level = pipe.receive()[1]
    root = logging.getLogger("bluesky_denoise")
    root.addHandler(_LogToParent(pipe, settings.redact))
    root.setLevel(log_level)
    root.propagate = False
    try:
        with no_garbage():
            worker = _Worker(settings, pipe)
    except Exception as error:
        pipe.send("failed", _portable(error, settings.redact))
        return
    pipe.send("started", worker.provenance)
    try:
        worker.serve()
    except (EOFError, OSError):  # the parent is gone: save what there is
        worker.close("the process that runs the RunEngine ended")
    except Exception as error:  # such as a message that cannot be read
        logger.exception("The denoiser cannot go on")
        worker.close(f"the denoiser failed ({type(error).__name__}: {error})")
        sys.exit(1)


def _step_back() -> None:
    """Leave a core that the RunEngine wants to it, as `_NICENESS` says."""
    if not hasattr(os, "nice"):
        return
    os.nice(_NICENESS)
    # Linux shares cores among sessions first, and this process has one of its own.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:
        group.write(str(_NICENESS))


def _open_as_many_files_as_allowed() -> None:
    """While Tiled is down each run has a file of its own, and there may be a night of them."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS names a limit that it does not take
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Worker:
    def __init__(self, settings: DenoiseSettings, pipe: _Pipe) -> None:
        # Both read the environment when they are imported.
        os.environ.setdefault("TILED_RETRY_ATTEMPTS", "3")
        os.environ.setdefault("TILED_RETRY_TIMEOUT", "10")
        from bluesky_denoise.router import DenoiseRouter

        self._pipe = pipe
        self._router = DenoiseRouter(settings)
        self._router.subscribe(self._take)
        self._sink = _open_sink(settings, self._done)
        self._derived: set[str] = set()
        self._documents: list[Document] = []  # of derived runs, to be handed on
        self._ended: list[str] = []  # raw runs of which nothing goes to Tiled
        # Frames inside the events make messages large: they go one by one.
        self._most_at_once = _MOST_AT_ONCE if settings.frames_directory else 1

    @property
    def provenance(self) -> dict[str, Any]:
        return self._router.provenance

    def serve(self) -> None:
        while True:
            self._hand_on("ready")
            kind, content = self._pipe.receive()
            if kind == "documents":
                self._denoise(content)
            elif kind == "abandoned":
                raw_run_uid = content[0][1]["original_run_uid"]
                if self._sink is None:
                    self._ended.append(raw_run_uid)
                else:
                    self._derived.add(raw_run_uid)  # done when in Tiled, not at its raw stop
                    for name, doc in content:
                        self._sink(name, doc)
            elif kind == "close":
                backups = self.close("the denoiser was closed during the run", content)
                self._pipe.send("closed", backups)
                return

    def _denoise(self, documents: list[tuple[str, Mapping[str, Any], str]]) -> None:
        ended = []
        for name, doc, skipped in documents:
            self._router.accept(name, doc, skipped=skipped)
            if name == "stop":
                ended.append(doc["run_start"])
        self._router.flush()
        for uid in ended:
            if self._sink is None or uid not in self._derived:
                self._ended.append(uid)
            self._derived.discard(uid)

    def _take(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self._derived.add(doc["original_run_uid"])
        self._documents.append((name, doc))

    def _hand_on(self, kind: str) -> None:
        """Send what there is to the parent, where plans wait for it, and then to Tiled."""
        documents, self._documents = self._documents, []
        ended, self._ended = self._ended, []
        most = self._most_at_once
        first = max(0, len(documents) - most)
        try:
            for begin in range(0, first, most):
                self._pipe.send("documents", documents[begin : min(begin + most, first)])
            self._pipe.send(kind, documents[first:])
        finally:  # Tiled gets them even if the parent is gone
            if self._sink is not None:
                for name, doc in documents:
                    self._sink(name, doc)
        for uid in ended:
            self._done(uid)

    def _done(self, raw_run_uid: str, refusal: str = "") -> None:
        self._pipe.tell("done", (raw_run_uid, refusal))

    def close(self, reason: str, tiled_s: float = _ALONE_S) -> list[str]:
        try:
            self._router.close(reason)
            with contextlib.suppress(OSError):
                self._hand_on("documents")
        finally:  # what Tiled has not taken is kept
            left = self._sink.close(tiled_s) if self._sink else []
        return [str(path) for path in left]


def _open_sink(settings: DenoiseSettings, on_done: Callable[..., None]) -> Any:
    """Return what writes to Tiled, or None; say where results go."""
    frames = settings.frames_directory
    if settings.tiled_uri is None:
        logger.warning(
            "Nothing is written to Tiled, for `tiled_uri` is not set: denoised frames are %s, and "
            "all other results go only to callbacks that `subscribe` to the denoiser.",
            f"saved in {frames}" if frames else "not saved (`frames_directory` is not set either)",
        )
        return None

    try:
        check_writable(settings.backup_path)
    except OSError as error:
        logger.warning(
            "While Tiled is down, results cannot be kept, for %s cannot be written to (%s). Set "
            "`backup_directory`.",
            *(settings.backup_path, error.strerror),
        )

    from tiled.client.utils import ClientError

    from bluesky_denoise.errors import SettingsError
    from bluesky_denoise.in_tiled.layouts import connect, wants_a_key
    from bluesky_denoise.tiled_sink import TiledSink

    try:
        connect(settings)
    except ClientError as error:
        raise SettingsError(
            f"Tiled at {settings.tiled_uri} refuses to be written to "
            f"({error.response.status_code}). Check `tiled_uri` and `tiled_api_key`."
        ) from None
    except Exception as error:
        if wants_a_key(error):
            raise SettingsError(
                f"Tiled at {settings.tiled_uri} wants an API key, and was given none. Set "
                "`tiled_api_key`, or TILED_API_KEY, to one that may write there."
            ) from None
        logger.warning(
            "Tiled at %s cannot be reached (%s); what is denoised is kept in %s until it is back",
            *(settings.tiled_uri, _in_a_line(error, settings.redact), settings.backup_path),
        )
    else:
        logger.info(
            "Results go to Tiled at %s, into %s; frames %s",
            settings.tiled_uri,
            "the raw runs" if settings.tiled_layout == "stream" else settings.tiled_container,
            f"are saved in {frames}" if frames else "go with them",
        )
    return TiledSink(settings, on_written=on_done, on_kept=on_done)


def _in_a_line(error: Exception, redact: Callable[[str], str]) -> str:
    told = redact(" ".join(str(error).split()).rstrip("."))
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def _portable(error: Exception, redact: Callable[[str], str]) -> Exception:
    """Return an error that can be pickled and shows no secret."""
    try:
        copy = type(error)(redact(str(error)))
        pickle.loads(pickle.dumps(copy))
    except Exception:
        return RuntimeError(redact(f"{type(error).__name__}: {error}"))
    return copy
