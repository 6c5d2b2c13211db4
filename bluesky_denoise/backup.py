"""Documents in JSON Lines files, for as long as Tiled cannot be reached."""

import atexit
import base64
import contextlib
import io
import json
import logging
import os
import shlex
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_denoise.documents import Document
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.support.directories import check_writable

__all__ = ["BackupFile", "RawBackup", "backup_files", "read_backup", "take_backup"]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_SUFFIX = ".jsonl"


class BackupFile:
    """The documents of one derived run, one a line.

    From the first on it is locked until `release` or `done`, or until this process ends,
    however that may be: nobody else is to take it while more may come.

    Parameters
    ----------
    directory :
        Made if missing.
    run_uid :
        The uid of the derived run; gives the file its name.
    """

    def __init__(self, directory: Path, run_uid: str) -> None:
        self.path = directory / f"{run_uid}{_SUFFIX}"
        self.release: Callable[[], Any] = lambda: None
        """Let others take the file; no more is written to it."""
        self._file: io.FileIO | None = None

    def append(self, documents: list[Document]) -> None:
        """Write documents: all, or none where the disk fails.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        lines = [_dumps({"name": name, "doc": doc}) for name, doc in documents]
        text = "".join(line + "\n" for line in lines).encode()
        file = self._hold()
        before, written = os.fstat(file.fileno()).st_size, 0
        try:
            while written < len(text):  # a full disk takes a part
                written += file.write(text[written:])
        except OSError:
            file.truncate(before)
            raise

    def done(self) -> None:
        """Remove the file: what it held is in Tiled."""
        self.path.unlink(missing_ok=True)
        self.release()

    def _hold(self) -> io.FileIO:
        """Return the file, locked."""
        if self._file is None or self._file.closed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab", buffering=0)
            self.release = weakref.finalize(self, file.close)
            if not _lock(file.fileno()) or not os.fstat(file.fileno()).st_nlink:
                self.release()
                raise BlockingIOError(f"another process has just taken {self.path}")
            self._file = file
        return self._file


class RawBackup(dict[str, Any]):
    """Keep the raw runs that a `TiledWriter` cannot write, so that no scan ends of it.

    Give it to the writer as `backup_dictionary`. Its own `backup_directory` does not take
    what numpy makes: events with arrays are lost, and each takes the next document along.

    What the disk does not take, as where it is full, waits in memory. It is written with the next
    document of a run that is kept, or when Python ends.

    Parameters
    ----------
    directory :
        Made with the first run that is kept; one file for each, which `bluesky-denoise restore`
        brings in.

    Raises
    ------
    SettingsError
        If nothing can be written there.

    Examples
    --------
    >>> RE.subscribe(TiledWriter(cat, backup_dictionary=RawBackup("raw_backup")))
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self._directory = Path(directory).expanduser().absolute()
        try:
            check_writable(self._directory)
        except OSError as error:
            raise SettingsError(
                f"Raw runs that Tiled does not take cannot be kept in {self._directory}: "
                f"{error.strerror}. Give a directory that can be written to."
            ) from None

    def __setitem__(self, key: str, documents: list[Any]) -> None:
        """Begin a run."""
        for run in self.values():
            run.write()
        super().__setitem__(key, _RawRun(self._directory))


class _RawRun:
    """What the writer takes for the list of the documents of a run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: BackupFile | None = None
        self._waiting: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._told = False

    def append(self, item: Mapping[str, Any]) -> None:
        """Write a document."""
        name, doc = item["name"], item["doc"]
        if self._file is None:
            uid = doc["uid"]
            self._file = BackupFile(self._directory, uid)
            logger.error(
                "Raw run %s cannot be written to Tiled, and the scan goes on. All its documents "
                "are kept in %s. Later, `bluesky-denoise restore %s --uri ADDRESS_OF_TILED` brings "
                "it in.",
                *(uid, self._file.path, shlex.quote(str(self._file.path))),
            )
        self._waiting.append((name, doc))
        self.write()

    def write(self) -> None:
        """Write what waits, in its order, as far as the disk takes it."""
        file = self._file
        if file is None:  # nothing has come
            return
        while self._waiting:
            document = self._waiting.popleft()
            try:
                file.append([document])
            except OSError as error:
                self._waiting.appendleft(document)
                self._tell(file.path, error)
                return
            except Exception:  # of what no JSON can be made, which must not hold up the others
                logger.exception("A %s document cannot be kept in %s", document[0], file.path)
                continue
            if document[0] == "stop":
                file.release()
        if self._told:
            self._told = False
            atexit.unregister(self._write_last)
            logger.warning("%s has all that waited", file.path)

    def _tell(self, path: Path, error: OSError) -> None:
        if self._told:
            return
        self._told = True
        atexit.register(self._write_last)
        logger.error(
            "%s cannot be written (%s): documents of this raw run wait in memory, and are lost if "
            "the session is killed. Make room. They are written with the next document of a run "
            "that Tiled does not take, or when the session ends.",
            *(path, error),
        )

    def _write_last(self) -> None:
        self.write()
        if self._file and self._waiting:
            logger.critical(
                "%s lacks %d documents of this raw run, which are lost with this session",
                *(self._file.path, len(self._waiting)),
            )


def backup_files(directory: Path) -> list[Path]:
    """Return the backup files of a directory, oldest first."""
    ages = {}
    for path in directory.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just removed it
            ages[path] = path.stat().st_mtime
    return sorted(ages, key=ages.__getitem__)


@contextmanager
def take_backup(path: Path) -> Iterator[bool]:
    """Keep the writer of a backup file out; yield whether the file may be taken.

    It may not while a session that lives holds it, or has just removed it.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        yield False
        return
    with file:
        yield _lock(file.fileno()) and path.exists()


def _lock(number: int) -> bool:
    """Lock an open file; tell whether nobody else has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        logger.debug("The file system of the backups knows no locks", exc_info=True)
    return True


def read_backup(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the documents of a backup file; a last line that was cut off is left out."""
    with path.open() as file:
        for line in file:
            if not line.endswith("\n"):
                return
            item = json.loads(line, object_hook=_decode)
            yield item["name"], item["doc"]


def _dumps(item: dict[str, Any]) -> str:
    try:
        return json.dumps(item, default=_encode)
    except TypeError:  # a key that JSON does not have
        return json.dumps(_with_text_keys(item), default=_encode)


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list | tuple) else value


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return value.tolist()  # its bytes are addresses
    if isinstance(value, np.ndarray):
        data = base64.b64encode(value.tobytes()).decode()
        return {"__array__": data, "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, np.generic):
        return value.item()
    return str(value)  # from the raw run's metadata: better kept as text than not at all


def _decode(value: dict[str, Any]) -> Any:
    if "__array__" not in value:
        return value
    data = np.frombuffer(base64.b64decode(value["__array__"]), np.dtype(value["dtype"]))
    return data.reshape(value["shape"])
