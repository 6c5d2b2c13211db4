"""An archived run as documents again, with its frames read from Tiled."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from bluesky_tiled_plugins.exporters import build_descriptor_docs

from .tiled_streams import METADATA_KEY

__all__ = ["archived_documents", "archived_events", "descriptors_of"]

_ROWS_AT_ONCE = 16


def archived_documents(
    run: Any,
    streams: tuple[str, ...] = ("primary",),
    *,
    without_frames: Mapping[str, Container[int]] | None = None,
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

    Yields
    ------
    tuple
        Name and document; events are in the order of their stream.
    """
    start = dict(run.metadata["start"])
    yield "start", start
    for name in streams:
        if name not in run:
            continue
        node = run[name].base
        if METADATA_KEY in node.metadata:
            continue
        descriptors = descriptors_of(run, name)
        yield "descriptor", descriptors.pop(0)
        bare = (without_frames or {}).get(name, ())
        for event in archived_events(run, name, without_frames=bare):
            while descriptors and event["time"] >= descriptors[0]["time"]:
                yield "descriptor", descriptors.pop(0)  # a device was configured meanwhile
            yield "event", event
    if stop := run.metadata.get("stop"):
        yield "stop", dict(stop)


def descriptors_of(run: Any, stream: str) -> list[dict[str, Any]]:
    """Return the descriptors of an archived stream, all its data keys inside the events.

    There is one more for each time that a device was configured during the run.
    """
    metadata = dict(run[stream].base.metadata)
    metadata.pop(METADATA_KEY, None)
    descriptors = build_descriptor_docs(metadata, stream, run.metadata["start"]["uid"])
    for descriptor in descriptors:
        descriptor["data_keys"] = {
            key: {k: v for k, v in spec.items() if k != "external"}
            for key, spec in descriptor["data_keys"].items()
        }
    return descriptors


def archived_events(
    run: Any,
    stream: str,
    first: int = 1,
    last: int | None = None,
    *,
    without_frames: Container[int] = (),
) -> Iterator[dict[str, Any]]:
    """Yield events of an archived stream.

    Parameters
    ----------
    run :
        A run of a Tiled catalog.
    stream :
        The stream.
    first, last :
        From and up to these ``seq_num``; None: to the end.
    without_frames :
        The numbers of events whose frames are not read, and left out.
    """
    node = run[stream].base
    descriptors = descriptors_of(run, stream)
    table = node["internal"].read() if "internal" in node else None
    arrays = {key: node[key] for key in node if key != "internal"}
    lengths = [array.shape[0] for array in arrays.values()]
    if table is not None:
        lengths.append(len(table))
    length = min(lengths, default=0)
    # A point that was taken again after a pause has its number again: rows are not numbers.
    seq_nums = range(1, length + 1) if table is None else table["seq_num"].tolist()[:length]
    rows = [
        index
        for index, seq_num in enumerate(seq_nums)
        if first <= seq_num and (last is None or seq_num <= last)
    ]
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[begin : begin + _ROWS_AT_ONCE]
        wanted = any(seq_nums[index] not in without_frames for index in some)
        span = slice(some[0], some[-1] + 1)
        frames = {key: array[span] for key, array in arrays.items() if wanted}
        for index in some:
            row = table.iloc[index] if table is not None else {}
            own = {} if seq_nums[index] in without_frames else frames
            yield _event(descriptors, seq_nums[index], row, own, index - some[0])


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
