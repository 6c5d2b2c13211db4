"""Documents in JSON Lines files, for as long as Tiled cannot be reached."""

import base64
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BackupFile", "RawBackup", "read_backup"]

logger = logging.getLogger(__name__)

_SUFFIX = ".jsonl"


class BackupFile:
    """The documents of one derived run, one a line.

    Parameters
    ----------
    directory :
        Made if missing.
    run_uid :
        The uid of the derived run; gives the file its name.
    redact :
        Applied to each line before it is written, to keep secrets out.
    """

    def __init__(self, directory: Path, run_uid: str, redact: Callable[[str], str] = str) -> None:
        self.path = directory / f"{run_uid}{_SUFFIX}"
        self._redact = redact

    def append(self, documents: list[tuple[str, Mapping[str, Any]]]) -> None:
        """Write documents: all, or none where the disk fails.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [_dumps({"name": name, "doc": doc}) for name, doc in documents]
        text = "".join(self._redact(line) + "\n" for line in lines).encode()
        with self.path.open("ab", buffering=0) as file:
            before, written = file.tell(), 0
            try:
                while written < len(text):  # a full disk takes a part
                    written += file.write(text[written:])
            except OSError:
                file.truncate(before)
                raise

    def done(self) -> None:
        """Remove the file: what it held is in Tiled."""
        self.path.unlink(missing_ok=True)


class RawBackup(dict[str, "_RawRun"]):
    """Keep the raw runs that a `TiledWriter` cannot write, so that no scan ends of it.

    Give it to the writer as `backup_dictionary`. Its own `backup_directory` does not take
    what numpy makes: events with arrays are lost, and each takes the next document along.

    Parameters
    ----------
    directory :
        Made with the first run that is kept; one file for each, read by `read_backup`.

    Examples
    --------
    >>> RE.subscribe(TiledWriter(cat, backup_dictionary=RawBackup("raw_backup")))
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self._directory = Path(directory).expanduser().absolute()

    def __setitem__(self, key: str, documents: list[Any]) -> None:
        """Begin a run."""
        super().__setitem__(key, _RawRun(self._directory))


class _RawRun:
    """What the writer takes for the list of the documents of a run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: BackupFile | None = None

    def append(self, item: Mapping[str, Any]) -> None:
        """Write a document."""
        name, doc = item["name"], item["doc"]
        if self._file is None:
            uid = doc["uid"]
            self._file = BackupFile(self._directory, uid)
            logger.error(
                "Raw run %s cannot be written to Tiled, and the scan goes on. All its documents "
                "are kept in %s; `read_backup` gives them to a TiledWriter.",
                *(uid, self._file.path),
            )
        self._file.append([(name, doc)])


def backup_files(directory: Path) -> list[Path]:
    """Return the backup files of a directory, oldest first."""
    return sorted(directory.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)


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
        data = base64.b64encode(np.ascontiguousarray(value)).decode()
        return {"__array__": data, "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, np.generic):
        return value.item()
    return str(value)  # from the raw run's metadata: better kept as text than not at all


def _decode(value: dict[str, Any]) -> Any:
    if "__array__" not in value:
        return value
    data = np.frombuffer(base64.b64decode(value["__array__"]), np.dtype(value["dtype"]))
    return data.reshape(value["shape"])
