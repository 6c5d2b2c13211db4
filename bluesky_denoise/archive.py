"""An archived run as documents again, with its frames read from Tiled."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from bluesky_tiled_plugins.exporters import build_descriptor_docs

from .tiled_streams import METADATA_KEY

__all__ = ["archived_documents", "archived_events"]

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
        yield "descriptor", descriptor_of(run, name)
        bare = (without_frames or {}).get(name, ())
        events = archived_events(run, name, without_frames=bare)
        yield from (("event", event) for event in events)
    if stop := run.metadata.get("stop"):
        yield "stop", dict(stop)


def descriptor_of(run: Any, stream: str) -> dict[str, Any]:
    """Return the descriptor of an archived stream, all its data keys inside the events."""
    metadata = dict(run[stream].base.metadata)
    metadata.pop(METADATA_KEY, None)
    descriptor = build_descriptor_docs(metadata, stream, run.metadata["start"]["uid"])[0]
    descriptor["data_keys"] = {
        key: {k: v for k, v in spec.items() if k != "external"}
        for key, spec in descriptor["data_keys"].items()
    }
    return descriptor


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
    descriptor = descriptor_of(run, stream)
    table = node["internal"].read().set_index("seq_num") if "internal" in node else None
    arrays = {key: node[key] for key in node if key != "internal"}
    lengths = [array.shape[0] for array in arrays.values()]
    if table is not None:
        lengths.append(len(table))
    stop = min(lengths, default=0)
    stop = stop if last is None else min(stop, last)
    for begin in range(first, stop + 1, _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE - 1, stop)
        wanted = any(seq_num not in without_frames for seq_num in range(begin, end + 1))
        frames = {key: array[begin - 1 : end] for key, array in arrays.items() if wanted}
        for seq_num in range(begin, end + 1):
            row = table.loc[seq_num] if table is not None else {}
            own = {} if seq_num in without_frames else frames
            yield _event(descriptor, seq_num, row, own, seq_num - begin)


def _event(
    descriptor: Mapping[str, Any],
    seq_num: int,
    row: Any,
    frames: Mapping[str, Any],
    offset: int,
) -> dict[str, Any]:
    time = float(row.get("time", descriptor["time"]))
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
