"""Runs denoised again from the archive; what is denoised already can be taken over."""

import json
import logging
from collections.abc import Callable, Mapping, Set
from typing import Any

import httpx
import numpy as np

from bluesky_denoise.as_settings import SettingsLike, as_settings
from bluesky_denoise.catalog import (
    FROM_ARCHIVE,
    NO_END,
    DenoisedStream,
    as_tiled_run,
    denoised_streams,
    ended_well,
    has_frames,
    is_whole,
    is_whole_so_far,
)
from bluesky_denoise.errors import DenoiseError, SettingsError, TiledUnavailable
from bluesky_denoise.frames import DenoiserLike
from bluesky_denoise.in_tiled.archive import ArchivedStream, archived_documents
from bluesky_denoise.in_tiled.event_array import rows_at_once, why_not_read
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.in_tiled.streams import METADATA_KEY, denoised_in, tags_of
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.runs.derived_stream import DerivedEvent
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.sources.frame_keys import SIGMA, is_sigma
from bluesky_denoise.tiled_sink import TiledSink

__all__ = ["StoredResults", "has_result", "mark_interrupted", "reprocess"]

logger = logging.getLogger(__name__)

_INTERRUPTED = "interrupted before its end"


class StoredResults:
    """Results in earlier denoised streams of a run, which the same settings would give again.

    An interrupted stream has those of its first frames, one that was written beside a scan
    those of the frames that were not skipped. Taken over by `reprocess`, they make a
    complete stream for the price of the frames that lack.

    Parameters
    ----------
    run :
        The raw run.
    provenance :
        `DenoiseRouter.provenance`: weights and settings must be these.
    streams :
        The raw streams.
    container :
        Where derived runs are, as for `denoised_streams`.
    """

    def __init__(
        self,
        run: Any,
        provenance: Mapping[str, Any],
        streams: tuple[str, ...] = ("primary",),
        container: str = "denoised",
    ) -> None:
        self._rows: dict[tuple[str, int], tuple[Any, Mapping[str, Any], int]] = {}
        self._chunks: dict[str, tuple[int, np.ndarray]] = {}  # by address of the array
        raw = as_tiled_run(run)
        for found in denoised_streams(raw, container):
            same = _what_matters(found.provenance) == _what_matters(provenance)
            if same and found.raw_stream in streams:
                self._add(raw, found)

    def _add(self, raw: Any, found: DenoisedStream) -> None:
        stored = StoredStream(found.stream)
        table = stored.read_table()
        if table is None:
            return
        archived = ArchivedStream(raw, found.raw_stream)
        try:
            table["raw_seq_num"] = _archived_seq_nums(
                archived, found, table["raw_seq_num"].to_numpy()
            )
        except DenoiseError as error:
            logger.warning("%s is not taken over: %s", found.name, error)
            return
        arrays = stored.arrays
        length = min([len(table), *(array.shape[0] for array in arrays.values())])
        good = has_frames(table)
        good &= ~table["raw_seq_num"].isin(_taken_again(archived))  # which is which?
        for index, row in enumerate(table[:length].to_dict("records")):
            if arrays and good.iloc[index]:
                event = archived.name, int(row["raw_seq_num"])
                self._rows.setdefault(event, (arrays, row, index))

    def __len__(self) -> int:
        return len(self._rows)

    def seq_nums(self, stream: str) -> Set[int]:
        """Return the numbers of the raw events whose results there are."""
        return {seq_num for name, seq_num in self._rows if name == stream}

    def read(self, stream: str, seq_num: int) -> DerivedEvent:
        """Read a result.

        Raises
        ------
        DenoiseError
            If its frames cannot be read.
        """
        arrays, row, index = self._rows[stream, seq_num]
        try:
            frames = {key: self._frames(array, index) for key, array in arrays.items()}
        except Exception as error:
            raise DenoiseError(
                f"Event {seq_num} was denoised before, and its frame cannot be read any more: "
                f"{why_not_read(error, arrays.values())}. Denoise all frames again: "
                "`bluesky-denoise reprocess --again`, or in Python `reprocess` without `known`."
            ) from error
        sigmas = {key for key in frames if is_sigma(key, frames.keys() | row.keys())}
        rates = {key: frame for key, frame in frames.items() if key not in sigmas}
        verdict = row["denoise_audit"]
        return DerivedEvent(
            seq_num=seq_num,
            time=row["time"],
            data={},
            timestamps={},
            rates=rates,
            sigmas={key.removesuffix(SIGMA): frames[key] for key in sigmas},
            numbers={key: value for key, value in row.items() if isinstance(value, float)},
            problems=[row["denoise_reason"]] if row["denoise_reason"] else [],
            audits={} if verdict == "none" else dict.fromkeys(rates, verdict == "passed"),
        )

    def _frames(self, array: Any, index: int) -> np.ndarray:
        """Return the frames of one event, (n, H, W)."""
        first, chunk = self._chunks.get(array.uri, (0, ()))
        if not first <= index < first + len(chunk):
            first = index
            chunk = np.asarray(array[first : first + rows_at_once(array)])
            self._chunks[array.uri] = first, chunk
        frame = chunk[index - first]
        return frame.reshape(-1, *frame.shape[-2:])


def _taken_again(archived: ArchivedStream) -> set[int]:
    """Return the numbers that several events of a raw stream have, as after a pause.

    Of these a denoised stream that was cut short may have one.
    """
    table = archived.stored.read_table(["seq_num"])
    if table is None:
        return set()
    return set(table["seq_num"][table["seq_num"].duplicated()].tolist())


def _archived_seq_nums(
    archived: ArchivedStream, found: DenoisedStream, seq_nums: np.ndarray
) -> np.ndarray:
    """Return the numbers that raw events have when they come from the archive.

    Raises
    ------
    DenoiseError
        If it cannot be told which they are.
    """
    stored = archived.stored
    if stored.parts:
        return seq_nums
    number = min((len(stored.frames(key)) for key in stored.nodes), default=0)
    from_archive = bool(found.provenance.get(FROM_ARCHIVE))
    rows = archived.rows_of(seq_nums, number, from_archive=from_archive)
    return rows + 1  # numbered anew, for there are no events


def has_result(
    run: Any,
    provenance: Mapping[str, Any],
    streams: tuple[str, ...] = ("primary",),
    container: str = "denoised",
) -> str:
    """Tell whether a run has been denoised with the same weights and settings.

    Parameters
    ----------
    run :
        The raw run.
    provenance :
        `DenoiseRouter.provenance`.
    streams :
        The raw streams that must have it.
    container :
        Where derived runs are, as for `denoised_streams`.

    Returns
    -------
    str
        Name of the denoised stream; empty where one is missing, or incomplete. Of a raw run that
        has no end, it must have all that is in Tiled.
    """
    raw = as_tiled_run(run)
    stop = raw.metadata.get("stop")
    if stop is None:
        wanted = [name for name in streams if name in raw]
    else:
        wanted = [name for name in streams if stop.get("num_events", {}).get(name)]
    made = {
        found.raw_stream: found.name
        for found in reversed(denoised_streams(raw, container))  # the newest counts
        if found.raw_stream in wanted
        and _what_matters(found.provenance) == _what_matters(provenance)
        and (is_whole_so_far(raw, found) if stop is None else is_whole(found, stop))
    }
    return made[wanted[-1]] if wanted and made.keys() == set(wanted) else ""


def _what_matters(provenance: Mapping[str, Any]) -> str:
    # In which other streams there were frames changes no result.
    settings = {k: v for k, v in provenance.get("settings", {}).items() if k != "streams"}
    what = [provenance.get("version"), provenance.get("weights_sha256"), settings]
    return json.dumps(what, sort_keys=True, default=str)  # as Tiled gives it back


def mark_interrupted(run: Any) -> list[str]:
    """Record that denoised streams which have no end were interrupted.

    A process that is killed leaves a stream without an end, which looks as if it were
    still being written. Call it for runs that nothing is denoising any more; where
    something is, its own end is recorded over this.

    Returns
    -------
    list of str
        Names of the streams.
    """
    raw = as_tiled_run(run)
    if raw.metadata.get("stop") is None:
        return []
    marked = []
    for name, stream, provenance in denoised_in(raw):
        if provenance.get("exit_status") is None:
            ended = {**provenance, "exit_status": "fail", "reason": _INTERRUPTED}
            stream.base.update_metadata({METADATA_KEY: ended}, drop_revision=True)
            marked.append(name)
    return marked


def reprocess(
    run: Any,
    settings: SettingsLike,
    *,
    denoiser: DenoiserLike | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    known: StoredResults | None = None,
) -> str:
    """Denoise an archived run again; the result goes beside the earlier ones.

    Parameters
    ----------
    run :
        A run from a Tiled catalog, or from a databroker one, as for `denoised_streams`.
    settings :
        What to denoise, with which model, and where to write it; or a YAML file of it.
    denoiser :
        None: the model that the settings name is loaded.
    progress :
        Called with the events done, and with how many there are; None where the run has no end.
    known :
        Results that are taken over, as they are, instead of denoising their frames.

    Returns
    -------
    str
        The uid of the derived run.

    Raises
    ------
    SettingsError
        If the settings name no place for the result.
    DenoiseError
        If the run holds nothing to denoise, it failed, Tiled may not read the frames, or the run
        has no end: the result is there then, up to where the run has come.
    TiledUnavailable
        If it could not be written; the documents are kept in the backup directory.
    """
    settings = as_settings(settings)
    if not settings.tiled_uri and not settings.frames_directory:
        raise SettingsError(
            "The result would be nowhere: the settings have neither `tiled_uri` nor "
            "`frames_directory`."
        )
    run = as_tiled_run(run)
    router = DenoiseRouter(settings, denoiser)
    derived: dict[str, Mapping[str, Any]] = {}
    router.subscribe(lambda name, doc: derived.setdefault(name, doc), "start")
    router.subscribe(lambda name, doc: derived.update(stop=doc), "stop")
    sink = None
    if settings.tiled_uri:
        sink = TiledSink(settings, look=False)  # `_check_readable` does
        router.subscribe(_with_events_only(sink, _tags(run, settings)))
    numbers = (run.metadata.get("stop") or {}).get("num_events", {})
    total = sum(numbers.get(stream, 0) for stream in settings.streams) or None
    done, reason = 0, _INTERRUPTED
    try:
        streams: dict[str, str] = {}  # by descriptor
        taken = {} if known is None else {name: known.seq_nums(name) for name in settings.streams}
        for name, doc in archived_documents(run, settings.streams, without_frames=taken):
            if name == "descriptor":
                streams[doc["uid"]] = doc["name"]
            if name != "event":
                router(name, doc)
                continue
            stream = streams[doc["descriptor"]]
            if known is not None and doc["seq_num"] in taken.get(stream, ()):
                router.accept(name, doc, known=known.read(stream, doc["seq_num"]))
                router.flush()
            else:
                router(name, doc)
            done += 1
            progress(done, total)
        reason = f"{NO_END}; the {done} events that are there are denoised"
    finally:
        router.close(reason)
        left = sink.close() if sink else []
    if left:
        raise TiledUnavailable(f"The result could not be written to Tiled; it is in {left[0]}.")
    uid = run.metadata["start"]["uid"]
    if "start" not in derived:
        raise DenoiseError(
            f"Run {uid} holds no frames in {', '.join(settings.streams)}: nothing was denoised."
        )
    why = derived["stop"].get("reason") or ""
    if not ended_well(derived["stop"]["exit_status"], why, run.metadata.get("stop") or {}):
        raise DenoiseError(f"Run {uid}: {why}")
    if not done:
        raise DenoiseError(
            f"Run {uid} holds no events in {', '.join(settings.streams)}: nothing was denoised."
        )
    uid = derived["start"]["uid"]
    if sink is not None:
        _check_readable(run, uid, settings)
    return uid


def _tags(run: Any, settings: DenoiseSettings) -> dict[str, list[str]]:
    """Return what asks `TiledWriter` for the access tags of the raw run.

    Its start document had that too, and has lost it in Tiled.
    """
    tags = tags_of(run.base) if settings.tiled_layout == "run" else None
    return {"tiled_access_tags": tags} if tags else {}


def _with_events_only(sink: Callable[..., None], more: Mapping[str, Any]) -> Callable[..., None]:
    """Pass documents on once there is something to write; note that they are of the archive.

    What is `more` goes into the start document.

    That a run cannot be denoised is raised, and needs no stream that says so.
    """
    start: list[dict[str, Any]] = []

    def write(name: str, doc: dict[str, Any]) -> None:
        if name == "start":
            start.append({**doc, **more, "denoise": {**doc["denoise"], FROM_ARCHIVE: True}})
        elif name != "stop" or not start:
            while start:
                sink("start", start.pop())
            sink(name, doc)

    return write


def _check_readable(run: Any, uid: str, settings: DenoiseSettings) -> None:
    """Read a pixel of what was written: a server may register files that it may not read."""
    for found in denoised_streams(run, settings.tiled_container):
        if found.run_uid != uid:
            continue
        try:
            StoredStream(found.stream).read_a_pixel()
        except httpx.HTTPStatusError as error:
            reason = (
                f"Tiled may not read the frames under {settings.frames_directory}; it must be in "
                "its `readable_storage`"
            )
            if settings.tiled_layout == "stream":
                ended = {**found.provenance, "exit_status": "fail", "reason": reason}
                found.stream.base.update_metadata({METADATA_KEY: ended}, drop_revision=True)
            raise DenoiseError(f"Stream {found.name} was written, but {reason}.") from error
