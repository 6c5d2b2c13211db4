"""An archived run as documents again, with its frames read from Tiled."""

import logging
from collections import defaultdict, deque
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from bluesky_tiled_plugins.exporters import build_descriptor_docs

from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.in_tiled.event_array import is_array, rows_at_once, why_no_array
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.in_tiled.streams import METADATA_KEY
from bluesky_denoise.sources.exposure import find_exposure
from bluesky_denoise.sources.frame_keys import is_frame_key

__all__ = ["ArchivedStream", "archived_documents", "find_raw"]

logger = logging.getLogger(__name__)


def archived_documents(
    run: Any,
    streams: tuple[str, ...] = ("primary",),
    *,
    without_frames: Mapping[str, Container[int]] | None = None,
    most: int | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the documents of a run in Tiled, with the frames inside the events.

    Whatever way the frames came in, they are read through Tiled: the files need not be
    reachable from here.

    Parameters
    ----------
    run :
        A run of a Tiled catalog.
    streams :
        The streams to yield; denoised streams are left out.
    without_frames :
        By stream, the numbers of events whose frames are not read, and left out.
    most :
        Events of each stream, from its start; None: all.

    Yields
    ------
    tuple
        Name and document; events are in the order of their stream.
    """
    run = getattr(run, "v3", run)  # databroker makes clients of version 2
    start = dict(run.metadata["start"])
    yield "start", start
    for name in streams:
        stream = find_raw(run, name)
        if stream is None or METADATA_KEY in stream.stored.metadata:
            continue
        descriptors = _readable(stream)
        yield "descriptor", descriptors.pop(0)
        bare = (without_frames or {}).get(name, ())
        for event in stream.events(last=most, without_frames=bare):
            while descriptors and event["time"] >= descriptors[0]["time"]:
                yield "descriptor", descriptors.pop(0)  # a device was configured meanwhile
            yield "event", event
    if stop := run.metadata.get("stop"):
        yield "stop", dict(stop)


class ArchivedStream:
    """A raw stream of a run in Tiled.

    Parameters
    ----------
    run :
        A run of a Tiled catalog.
    name :
        The name of the stream.

    Raises
    ------
    KeyError
        If the run has no such stream.
    """

    def __init__(self, run: Any, name: str) -> None:
        self._run, self.name = run, name
        self.stored = StoredStream(run[name])
        """What lies there."""

    def __str__(self) -> str:
        return f"Run {self._run.metadata['start']['uid']}, stream {self.name}"

    def descriptors(self) -> list[dict[str, Any]]:
        """Return the descriptors, all their data keys inside the events.

        There is one more for each time that a device was configured during the run.
        """
        uid = self._run.metadata["start"]["uid"]
        descriptors = build_descriptor_docs(self.stored.metadata, self.name, uid)
        for descriptor in descriptors:
            descriptor["data_keys"] = {
                key: {k: v for k, v in spec.items() if k != "external"}
                for key, spec in descriptor["data_keys"].items()
            }
        return descriptors

    def events(
        self,
        first: int = 1,
        last: int | None = None,
        *,
        without_frames: Container[int] = (),
    ) -> Iterator[dict[str, Any]]:
        """Yield events.

        Parameters
        ----------
        first, last :
            From and up to these ``seq_num``; None: to the end.
        without_frames :
            The numbers of events whose frames are not read, and left out.

        Raises
        ------
        DenoiseError
            If the exposure was changed during a scan without events, or if files have more frames
            than there are events: which frames are of which?
        """
        descriptors = self.descriptors()
        table = self.stored.read_table()
        arrays = {key: self.stored.frames(key) for key in self.stored.arrays}
        lengths = [len(array) for array in arrays.values()]
        if table is not None:
            self._check_rows(max(lengths, default=0), len(table))
            lengths.append(len(table))
        else:
            self._check_exposures(descriptors)
        length = min(lengths, default=0)
        # A point that was taken again after a pause has its number again: rows are not numbers.
        seq_nums = range(1, length + 1) if table is None else table["seq_num"].tolist()[:length]
        rows = [
            index
            for index, seq_num in enumerate(seq_nums)
            if first <= seq_num and (last is None or seq_num <= last)
        ]
        each = rows_at_once(*arrays.values())
        for begin in range(0, len(rows), each):
            some = rows[begin : begin + each]
            wanted = any(seq_nums[index] not in without_frames for index in some)
            span = slice(some[0], some[-1] + 1)
            frames = {key: array[span] for key, array in arrays.items() if wanted}
            for index in some:
                row = table.iloc[index] if table is not None else {}
                own = {} if seq_nums[index] in without_frames else frames
                yield _event(descriptors, seq_nums[index], row, own, index - some[0])

    def rows_of(
        self, seq_nums: np.ndarray, number: int, *, from_archive: bool = False
    ) -> np.ndarray:
        """Return the rows of the raw frames that denoised ones are of.

        A point that is taken again after a pause has its number again, in both streams: the second
        row of a number is of the second.

        Parameters
        ----------
        seq_nums :
            (N,) int, ``raw_seq_num`` of the denoised stream.
        number :
            How many rows of raw frames there are.
        from_archive :
            The numbers are those of `events`.

        Returns
        -------
        numpy.ndarray
            (N,) int, from 0.

        Raises
        ------
        DenoiseError
            If that cannot be told, or there are not so many rows.
        """
        points = ((self._run.metadata.get("stop") or {}).get("num_events") or {}).get(self.name)
        table = self.stored.read_table(["seq_num"])
        if table is not None:
            self._check_rows(number, len(table))
            found = _rows_by_number(table["seq_num"].tolist(), seq_nums)
        elif from_archive or points == number:  # rows were numbered; or no point was taken again
            found = seq_nums - 1
        elif len(seq_nums) == number:
            found = np.arange(number)
        else:
            raise DenoiseError(
                f"{self}, has {number} raw frames of "
                f"{'an unknown number of' if points is None else points} points, and "
                f"{len(seq_nums)} denoised ones; Tiled does not tell which belong together, as the "
                "raw stream has no events. Denoise all of the run again, from Tiled: "
                "`bluesky-denoise reprocess --again`."
            )
        if len(found) and found.max() >= number:
            raise DenoiseError(
                f"{self}, has {number} raw frames, and frame {found.max() + 1} is denoised. If the "
                "run is still being written, wait for its end."
            )
        return found

    def _check_exposures(self, descriptors: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a stream without times whose frames have several exposures."""
        for key, spec in descriptors[0]["data_keys"].items():
            if not is_frame_key(spec):
                continue
            found = list(dict.fromkeys(_exposure_s(descriptor, key) for descriptor in descriptors))
            if len(found) > 1:
                told = ", ".join("unknown" if value is None else f"{value:g} s" for value in found)
                raise DenoiseError(
                    f"{self}: the exposure of {key} was changed during the scan ({told}), and "
                    "Tiled does not tell which frames had which, as the stream has no events. "
                    "Denoise such a scan live, or from its documents; or take a run or a stream "
                    "for each exposure."
                )

    def _check_rows(self, frames: int, events: int) -> None:
        """Refuse a stream with more frames in its files than events, once no more of these come.

        A file may have frames of other streams, or of points that have no event: Tiled shows all
        of them once the run is validated. The point at which a run was broken off comes last. As
        long as a run goes on, frames may be ahead of their events.
        """
        if frames <= events:
            return
        stop = self._run.metadata.get("stop")
        ahead = not stop or (stop.get("exit_status") != "success" and frames == events + 1)
        if not (ahead and self._has_own_files()):
            raise DenoiseError(
                f"{self}: the files have frames for {frames} events, and there are {events}; Tiled "
                "does not tell which frames are of which event. They may be of other streams, or "
                "of points that were taken again or dropped. Denoise such a run beside the scan, "
                "or from its documents."
            )

    def _has_own_files(self) -> bool:
        """Tell whether no other raw stream of the run has frames of the same detectors."""
        keys = self.stored.nodes.keys()
        others = (self._run[name].base.metadata for name in self._run if name != self.name)
        return all(
            METADATA_KEY in other or keys.isdisjoint(other.get("data_keys", {})) for other in others
        )


def _readable(stream: ArchivedStream) -> list[dict[str, Any]]:
    """Return the descriptors without the data keys of files that Tiled cannot look into."""
    descriptors = stream.descriptors()
    for key, node in stream.stored.nodes.items():
        if is_array(node):
            continue
        logger.warning("%s: %s is left out. %s", stream, key, why_no_array(key, node))
        for descriptor in descriptors:
            descriptor["data_keys"].pop(key, None)
            for owned in descriptor.get("object_keys", {}).values():
                owned[:] = [other for other in owned if other != key]
    _warn_of_filled_up(descriptors[0], stream)
    return descriptors


def _warn_of_filled_up(descriptor: Mapping[str, Any], stream: ArchivedStream) -> None:
    """Tell of frames that are larger in Tiled than they were said to be: zeros may be no counts."""
    for key, array in stream.stored.arrays.items():
        spec = descriptor["data_keys"].get(key, {})
        external = "external" in stream.stored.metadata.get("data_keys", {}).get(key, {})
        if not is_frame_key(spec) or external:
            continue
        said, found = tuple(spec["shape"][-2:]), tuple(array.shape[-2:])
        if said != found:
            logger.warning(
                "%s: frames of %s are %s in Tiled, and the descriptor has %s. If their size "
                "changed during the run, zeros were put around the smaller ones, and are denoised "
                "as if they were counts.",
                *(stream, key, found, said),
            )


def find_raw(run: Any, name: str) -> ArchivedStream | None:
    """Return a stream of a run; None if there is none of the name."""
    try:
        return ArchivedStream(run, name)
    except KeyError:
        return None


def _event(
    descriptors: Sequence[Mapping[str, Any]],
    seq_num: int,
    row: Any,
    frames: Mapping[str, Any],
    offset: int,
) -> dict[str, Any]:
    time = float(row.get("time", descriptors[0]["time"]))
    began = [one for one in descriptors[1:] if one["time"] <= time]
    descriptor = began[-1] if began else descriptors[0]
    data: dict[str, Any] = {key: array[offset] for key, array in frames.items()}
    for key in descriptor["data_keys"]:
        if key in row:
            value = row[key]
            data[key] = value.item() if hasattr(value, "item") else value
    return {
        "uid": f"{descriptor['uid']}/{seq_num}",
        "descriptor": descriptor["uid"],
        "seq_num": seq_num,
        "time": time,
        "data": data,
        "timestamps": {key: float(row.get(f"ts_{key}", time)) for key in data},
        "filled": {},
    }


def _exposure_s(descriptor: Mapping[str, Any], key: str) -> float | None:
    try:
        return find_exposure(descriptor, key).value_s
    except DenoiseError:
        return None


def _rows_by_number(raw: Sequence[int], seq_nums: np.ndarray) -> np.ndarray:
    """Return the rows of raw numbers; each time that a number comes, the next row of it.

    Those that the raw table lacks, as it is still being written or was cut short, come behind it.
    """
    rows: defaultdict[int, deque[int]] = defaultdict(deque)
    for row, seq_num in enumerate(raw):
        rows[seq_num].append(row)
    behind, last = len(raw), max(raw, default=0)
    found = []
    for seq_num in seq_nums.tolist():
        if rows[seq_num]:
            found.append(rows[seq_num].popleft())
            continue
        behind = max(behind, len(raw) + seq_num - last - 1)
        found.append(behind)
        behind += 1
    return np.array(found)
