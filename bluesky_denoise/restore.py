"""Raw runs that `RawBackup` has kept, into Tiled."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from bluesky_tiled_plugins import TiledWriter
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer
from event_model import DocumentRouter
from tiled.client.container import Container

from bluesky_denoise.backup import read_backup, take_backup
from bluesky_denoise.errors import BackupError
from bluesky_denoise.in_tiled.event_array import is_array
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.in_tiled.streams import denoised_in
from bluesky_denoise.runs.derived_run import is_derived
from bluesky_denoise.sources.resources import RESOURCE_PATCHES

__all__ = ["restore_run"]

_BATCH_BYTES = 2**24
"""Of the file, that are written at once: of more than 100 MB Tiled makes no even array."""
_UNKNOWN = "application/octet-stream"
"""Mimetype that `TiledWriter` gives files of a kind that it does not know."""
_RESTORED = ".restored"
_UNTOUCHED = "Nothing is written, and the file is as it was"


def restore_run(
    client: Any,
    path: Path,
    *,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Write a raw run to Tiled from its backup file, and see that all of it is there.

    Then the file gets the ending ``.restored``; it is never removed. Denoised streams of the run
    stay as they are.

    Parameters
    ----------
    client :
        The Tiled container of raw runs.
    path :
        A file of `RawBackup`, or of the `backup_directory` of a `TiledWriter`.
    replace :
        Delete what Tiled has of the raw run, if that has no end and no event that the file lacks.
    progress :
        Called with how many documents of how many are written.

    Returns
    -------
    str
        What there is now, to be read by people.

    Raises
    ------
    BackupError
        If the file is damaged or of another kind, or Tiled has a part of the run, or denoised
        frames under the name of a raw stream, or does not take it. The file is as it was.
    OSError
        If it cannot be read.
    """
    path.stat()
    with take_backup(path) as ours:
        if not ours:
            raise BackupError(
                f"Backup {path.name} is held by a session that runs; restore it after "
                f"that. {_UNTOUCHED}."
            )
        kept = _look_through(path)
        run = _run_in(client, kept.uid)
        if run is not None:
            _refuse_taken_names(run, kept)
        if run is None:
            _write(client, path, kept, progress)
        elif differences := _differences(run, kept):
            _make_room(run, kept, differences, replace)
            _write(_InPlace(run), path, kept, progress)
        else:
            return f"run {kept.uid} was in Tiled already, {kept.told()}. {_set_aside(path)}"
        if differences := _differences(_run_in(client, kept.uid), kept):
            raise BackupError(
                f"Run {kept.uid} was written, and is not in Tiled as it should be: {differences}. "
                f"The file {path.name} is as it was."
            )
        return f"run {kept.uid} is in Tiled, {kept.told()}. {_set_aside(path)}"


def _run_in(client: Any, uid: str) -> Any:
    """Return the run with just this uid, or None; a catalog itself takes first letters of one."""
    try:
        run = Container.__getitem__(client, uid)
    except KeyError:
        return None
    return run if run.metadata.get("start", {}).get("uid") == uid else None


class _KeptRun(DocumentRouter):
    """What a backup file has of a run; takes its documents as `TiledWriter` has them."""

    def __init__(self) -> None:
        super().__init__()
        self.documents = 0
        """In the file."""
        self.uid = ""
        self.num_events: Mapping[str, int] | None = None
        """By stream, as its stop document says; None where the file ends before that."""
        self.seq_nums: dict[str, list[int]] = {}
        """Of the events, by stream."""
        self.rows: dict[str, dict[str, int]] = defaultdict(dict)
        """By stream and data key, how many there are."""
        self.has_unknown_files = False
        """Tiled takes several rows of such at once for the same file twice, and fails."""
        self._streams: dict[str, str] = {}
        self._data_keys: dict[str, str] = {}

    def start(self, doc: Mapping[str, Any]) -> None:
        if is_derived(doc):
            raise BackupError(
                f"The file is of denoised run {doc['uid']}: `bluesky-denoise replay-backup` brings "
                f"that in. {_UNTOUCHED}."
            )
        if self.uid:
            raise BackupError(
                f"The file has a second start, of run {doc['uid']}; expected one run. {_UNTOUCHED}."
            )
        self.uid = doc["uid"]

    def descriptor(self, doc: Mapping[str, Any]) -> None:
        self._streams[doc["uid"]] = doc["name"]
        self.seq_nums.setdefault(doc["name"], [])

    def event(self, doc: Mapping[str, Any]) -> Any:
        stream = self._streams[doc["descriptor"]]
        self.seq_nums[stream].append(doc["seq_num"])
        for key in doc["data"]:
            self.rows[stream][key] = self.rows[stream].get(key, 0) + 1

    def stream_resource(self, doc: Mapping[str, Any]) -> None:
        self._data_keys[doc["uid"]] = doc["data_key"]
        self.has_unknown_files |= doc["mimetype"] == _UNKNOWN

    def stream_datum(self, doc: Mapping[str, Any]) -> None:
        rows = self.rows[self._streams[doc["descriptor"]]]
        key = self._data_keys[doc["stream_resource"]]
        rows[key] = max(rows.get(key, 0), doc["indices"]["stop"])

    def stop(self, doc: Mapping[str, Any]) -> None:
        self.num_events = doc.get("num_events", {})

    @property
    def events(self) -> dict[str, int]:
        """Events by stream; rows of a fly scan may come as stream datums alone."""
        return {
            name: len(numbers) or max(self.rows[name].values(), default=0)
            for name, numbers in self.seq_nums.items()
        }

    def told(self) -> str:
        """Say what there is."""
        events = self.events
        told = ", ".join(f"{number} events of {name}" for name, number in events.items())
        told = f"with {told or 'no events'}"
        if self.num_events is None:
            return (
                f"{told}, and without an end: the file has no stop document, as of a session that "
                "was killed during the run"
            )
        for name, number in self.num_events.items():
            if number > events.get(name, 0):
                told += f"; {number - events.get(name, 0)} more of {name} are not in the file"
        return told


def _look_through(path: Path) -> _KeptRun:
    """Read all of a file, to know that it is whole before anything is written."""
    kept, normalizer = _KeptRun(), RunNormalizer()
    normalizer.subscribe(kept)

    def take(name: str, doc: dict[str, Any]) -> None:
        if not kept.documents and name != "start":
            raise BackupError(
                f"Backup {path.name} begins with a document {name!r}; expected the start of a run. "
                f"{_UNTOUCHED}."
            )
        normalizer(name, doc)
        kept.documents += 1

    _pass_on(path, take, f"Backup {path.name} is damaged. {_UNTOUCHED}")
    if not kept.documents:
        raise BackupError(f"Backup {path.name} holds no whole document. {_UNTOUCHED}.")
    return kept


def _pass_on(path: Path, take: Callable[[str, dict[str, Any]], None], failed: str) -> None:
    """Give the documents of a file to what takes them; `failed` is said where it cannot."""
    done = 0
    try:
        for name, doc in read_backup(path):
            take(name, doc)
            done += 1
    except (BackupError, OSError, httpx.TransportError):
        raise
    except Exception as error:  # whatever these documents make of it
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise BackupError(f"{failed}: document {done + 1}, {why}") from error


def _differences(run: Any, kept: _KeptRun) -> str:
    """Say what of a run is not in Tiled as it is in a file; empty if all is."""
    if run is None:
        return "there is no such run"
    told = []
    for name, wanted in kept.events.items():
        if name not in run:
            told.append(f"the stream {name} is missing")
            continue
        found = _rows_in(run[name])
        number = found.get("seq_num", 0) if kept.seq_nums[name] else wanted
        if number != wanted:  # more, where an answer was lost and the writer tried again
            told.append(f"{number} events of {name} are there, and {wanted} in the file")
            continue
        lacking = [key for key, rows in kept.rows[name].items() if found.get(key, 0) < rows]
        if lacking:
            told.append(f"{', '.join(lacking)} of {name} is not complete")
    if kept.num_events is not None and not run.metadata.get("stop"):
        told.append("its end is missing")
    return ", ".join(told)


def _rows_in(stream: Any) -> dict[str, float]:
    """Return how many rows a stream in Tiled has of each of its columns and arrays.

    Of files that it cannot look into there are as many as one wants.
    """
    rows: dict[str, float] = {}
    for key, node in stream.base.items():
        if hasattr(node, "columns"):
            rows |= dict.fromkeys(node.columns, len(node.read(node.columns[:1])))
        else:
            rows[key] = node.shape[0] if is_array(node) else math.inf
    return rows


def _refuse_taken_names(run: Any, kept: _KeptRun) -> None:
    """Raise where denoised streams have names of raw ones: Tiled holds one of each name."""
    taken = [name for name, _, _ in denoised_in(run) if name in kept.seq_nums]
    if taken:
        raise BackupError(
            f"The file has raw streams {taken}, and Tiled has denoised frames of run {kept.uid} "
            "under these names, which the denoiser takes in every run. Delete them with "
            f"`cat[{kept.uid!r}].delete_contents({taken}, recursive=True, external_only=False)`, "
            "and restore with --replace; `bluesky-denoise catch-up` makes them anew, under "
            f"other names. {_UNTOUCHED}."
        )


def _make_room(run: Any, kept: _KeptRun, differences: str, replace: bool) -> None:
    """Delete the raw streams of a run, if nothing is lost by that."""
    if run.metadata.get("stop"):
        raise BackupError(
            f"Tiled has run {kept.uid} with its end, and yet {differences}. A run that has its end "
            f"is not replaced. {_UNTOUCHED}."
        )
    derived = {name for name, _, _ in denoised_in(run)}
    raw = {name: run[name] for name in run.base if name not in derived}
    only_there = [name for name in raw if not _has_all(kept, name, raw[name])]
    if only_there:
        raise BackupError(
            f"Tiled has of run {kept.uid}, in {', '.join(only_there)}, what the file lacks, and "
            f"would lose it. {_UNTOUCHED}."
        )
    if raw and not replace:
        rows = {name: filter(math.isfinite, _rows_in(raw[name]).values()) for name in raw}
        events = [f"{name}, {max(rows[name], default=0)} events" for name in raw]
        raise BackupError(
            f"Tiled has a part of run {kept.uid}: {differences}. With --replace the raw streams "
            f"that are there ({'; '.join(events)}) are deleted, and written from the file. "
            f"{_UNTOUCHED}."
        )
    run.delete_contents(list(raw), recursive=True, external_only=False)


def _has_all(kept: _KeptRun, name: str, stream: Any) -> bool:
    """Tell whether a file has all events that Tiled has of a stream."""
    if name not in kept.seq_nums:
        return False
    stored = StoredStream(stream)
    numbers = stored.read_table(["seq_num"])
    if numbers is not None:
        return set(numbers["seq_num"]) <= set(kept.seq_nums[name])
    rows = kept.rows[name]
    return all(len(stored.frames(key)) <= rows.get(key, 0) for key in stored.arrays)


class _InPlace:
    """What `TiledWriter` takes for the catalog, where the node of the run is there already."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def include_data_sources(self) -> "_InPlace":
        return _InPlace(self._run.include_data_sources())

    def create_container(self, **_: Any) -> Any:
        return self._run


def _write(client: Any, path: Path, kept: _KeptRun, progress: Callable[[int, int], None]) -> None:
    """Write all documents, in batches: a column may begin with whole numbers, and go on otherwise.

    What waits for the rest of its batch is written at the stop, so without one nothing may wait.
    """
    size = max(1, _BATCH_BYTES * kept.documents // path.stat().st_size)
    batch_size = 1 if kept.num_events is None or kept.has_unknown_files else size
    writer = TiledWriter(client, batch_size=batch_size, patches=RESOURCE_PATCHES)
    done = 0

    def take(name: str, doc: dict[str, Any]) -> None:
        nonlocal done
        writer(name, doc)
        done += 1
        progress(done, kept.documents)

    failed = (
        f"Run {kept.uid} cannot be written to Tiled. The file {path.name} is as it was; what came "
        "into Tiled has no end, and --replace writes it anew"
    )
    _pass_on(path, take, failed)


def _set_aside(path: Path) -> str:
    """Give a file that is in Tiled another ending, so that it is not restored again."""
    if path.suffix == _RESTORED:
        return "The file stays."
    aside = path.with_name(path.name + _RESTORED)
    if aside.exists():
        return f"The file stays, since there is a {aside.name}."
    path.rename(aside)
    return f"The file is now {aside.name}."
