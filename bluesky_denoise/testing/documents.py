"""Collect the documents of a run, count them, and check that they hold together."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from event_model import (
    DocumentNames,
    schema_validators,
    unpack_datum_page,
    unpack_event_page,
)
from event_model.documents import DatumPage, EventPage

from bluesky_denoise.documents import Document

__all__ = ["DocumentCollector", "assert_emitted", "validate_documents"]


class DocumentCollector:
    """A callback that keeps every document.

    Examples
    --------
    >>> collector = DocumentCollector()
    >>> _ = RE.subscribe(collector)
    >>> _ = RE(bp.count([det], 3))
    >>> assert_emitted(collector.by_name, start=1, descriptor=1, event=3, stop=1)
    """

    def __init__(self) -> None:
        self.documents: list[tuple[str, dict[str, Any]]] = []
        """(name, document), in the order in which they came."""
        self.by_name: dict[str, list[dict[str, Any]]] = {}
        """Documents under their names, in order."""

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Keep a document; it is not copied."""
        self.documents.append((str(name), doc))
        self.by_name.setdefault(str(name), []).append(doc)

    def clear(self) -> None:
        """Forget all documents."""
        self.documents.clear()
        self.by_name.clear()

    def validate(self) -> None:
        """Check all documents with `validate_documents`."""
        validate_documents(self.documents)


def assert_emitted(docs: Mapping[str, Sequence[Any]], **numbers: int) -> None:
    """Assert how many documents of each kind there are, and that there is no other.

    Parameters
    ----------
    docs : documents under their names, as `DocumentCollector.by_name`
    **numbers : how many documents of each name are expected

    Raises
    ------
    AssertionError
        If the numbers differ; the message holds both.
    """
    emitted = {name: len(documents) for name, documents in docs.items() if documents}
    expected = {name: number for name, number in numbers.items() if number}
    if emitted != expected:
        raise AssertionError(f"Emitted {emitted}; expected {expected}.")


def validate_documents(docs: Iterable[Document]) -> None:
    """Check documents against their schemas and against one another.

    One or several runs, which may nest or interleave. Each run must begin with its start
    and end with its stop; a descriptor refers to a start that came, an event to a
    descriptor and, at the stop, to datums that came, a datum to a resource, a stream
    datum to a stream resource and a descriptor; events carry the data keys of their
    descriptor, arrays in the shape described; the ``seq_num`` of a stream counts from 1
    without a gap, and goes back only where points are taken again after a pause; the indices
    of stream datums do not overlap; and the stop's ``num_events`` is the number of points of
    each stream, of stream datums too.

    Parameters
    ----------
    docs : (name, document), in the order in which they came

    Raises
    ------
    AssertionError
        At the first document that does not hold; the message names it.
    """
    check = _Check()
    for name, doc in docs:
        check(DocumentNames[str(name)].name, doc)
    check.finish()


class _Stream:
    """What came of one stream of one run, over all its descriptors."""

    def __init__(self) -> None:
        self.events = 0
        self.data_keys: set[str] = set()
        self.streamed: dict[str, int] = {}
        self.events_again: set[int] = set()  # seq_nums at which events went back
        self.datums_again: set[int] = set()  # the same of stream datums

    @property
    def points(self) -> int:
        return max([self.events, *self.streamed.values()])


class _Run:
    def __init__(self) -> None:
        self.stopped = False
        self.streams: dict[str, _Stream] = {}
        self.datums: set[str] = set()
        self.datums_used: set[str] = set()


class _Check:
    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._descriptors: dict[str, tuple[_Run, Mapping[str, Any]]] = {}
        self._resources: dict[str, _Run] = {}
        self._stream_resources: dict[str, tuple[_Run, str]] = {}
        self._indices: dict[str, int] = {}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        label = f"{name} {doc.get('uid', doc.get('datum_id', ''))!s:.8}"
        try:
            schema_validators[DocumentNames[name]].validate(doc)
        except Exception as error:
            raise AssertionError(f"{label} does not fit its schema: {error}") from error
        getattr(self, f"_{name}")(label, doc)

    def finish(self) -> None:
        _require(self._runs, "There is no start document.")
        for uid, run in self._runs.items():
            _require(run.stopped, f"Run {uid:.8} has no stop.")

    def _start(self, label: str, doc: Mapping[str, Any]) -> None:
        _require(doc["uid"] not in self._runs, f"{label} came twice.")
        self._runs[doc["uid"]] = _Run()

    def _open(self, label: str, run: _Run | None, what: str) -> _Run:
        if run is None:
            raise AssertionError(f"{label} refers to {what}, which did not come before it.")
        _require(not run.stopped, f"{label} came after the stop of its run.")
        return run

    def _descriptor(self, label: str, doc: Mapping[str, Any]) -> None:
        start = doc["run_start"]
        run = self._open(label, self._runs.get(start), f"start {start:.8}")
        _require(doc["uid"] not in self._descriptors, f"{label} came twice.")
        self._descriptors[doc["uid"]] = run, doc
        stream = run.streams.setdefault(doc["name"], _Stream())
        keys = set(doc["data_keys"])
        _require(
            not stream.data_keys or keys == stream.data_keys,
            f"{label} changes the data keys of stream {doc['name']!r}.",
        )
        stream.data_keys = keys

    def _described(self, label: str, uid: str) -> tuple[_Run, Mapping[str, Any]]:
        run, descriptor = self._descriptors.get(uid, (None, {}))
        return self._open(label, run, f"descriptor {uid:.8}"), descriptor

    def _event(self, label: str, doc: Mapping[str, Any]) -> None:
        run, descriptor = self._described(label, doc["descriptor"])
        stream = run.streams[descriptor["name"]]
        _require(
            1 <= doc["seq_num"] <= stream.events + 1,
            f"{label} of stream {descriptor['name']!r} has seq_num {doc['seq_num']}; "
            f"expected {stream.events + 1}.",
        )
        if doc["seq_num"] <= stream.events:
            stream.events_again.add(doc["seq_num"])
        stream.events = doc["seq_num"]
        described = descriptor["data_keys"]
        expected = {k for k, v in described.items() if v.get("external") != "STREAM:"}
        for part in ("data", "timestamps"):
            _require(
                set(doc[part]) == expected,
                f"{label} has {part} of {sorted(doc[part])}; its descriptor says "
                f"{sorted(expected)}.",
            )
        for key, value in doc["data"].items():
            if described[key].get("external") and not doc.get("filled", {}).get(key):
                run.datums_used.add(value)
            elif isinstance(value, np.ndarray):
                _require(
                    _fits(value.shape, described[key]["shape"]),
                    f"{label} has {key!r} of shape {value.shape}; its descriptor says "
                    f"{tuple(described[key]['shape'])}.",
                )

    def _event_page(self, label: str, doc: EventPage) -> None:
        for event in unpack_event_page(doc):
            self._event(label, event)

    def _resource(self, label: str, doc: Mapping[str, Any]) -> None:
        start = doc.get("run_start", "")
        self._resources[doc["uid"]] = self._open(label, self._runs.get(start), f"start {start:.8}")

    def _datum(self, label: str, doc: Mapping[str, Any]) -> None:
        resource = doc["resource"]
        run = self._open(label, self._resources.get(resource), f"resource {resource:.8}")
        _require(doc["datum_id"] not in run.datums, f"{label} came twice.")
        run.datums.add(doc["datum_id"])

    def _datum_page(self, label: str, doc: DatumPage) -> None:
        for datum in unpack_datum_page(doc):
            self._datum(label, datum)

    def _stream_resource(self, label: str, doc: Mapping[str, Any]) -> None:
        start = doc.get("run_start", "")
        run = self._open(label, self._runs.get(start), f"start {start:.8}")
        _require(doc["uid"] not in self._stream_resources, f"{label} came twice.")
        self._stream_resources[doc["uid"]] = run, doc["data_key"]

    def _stream_datum(self, label: str, doc: Mapping[str, Any]) -> None:
        uid = doc["stream_resource"]
        run, key = self._stream_resources.get(uid, (None, ""))
        run = self._open(label, run, f"stream_resource {uid:.8}")
        described_run, descriptor = self._described(label, doc["descriptor"])
        _require(run is described_run, f"{label} joins a resource and a descriptor of two runs.")
        _require(
            key in descriptor["data_keys"],
            f"{label} has frames of {key!r}; its descriptor has {sorted(descriptor['data_keys'])}.",
        )
        stream = run.streams[descriptor["name"]]
        indices, seq_nums = doc["indices"], doc["seq_nums"]
        for part, first in (("indices", self._indices.get(uid, 0)), ("seq_nums", 1)):
            _require(
                first <= doc[part]["start"] < doc[part]["stop"],
                f"{label} of {key!r} has {part} {doc[part]['start']} to {doc[part]['stop']}; "
                f"expected a range from {first} on.",
            )
        if seq_nums["start"] <= stream.streamed.get(key, 0):
            stream.datums_again.add(seq_nums["start"])
        self._indices[uid] = indices["stop"]
        stream.streamed[key] = seq_nums["stop"] - 1

    def _stop(self, label: str, doc: Mapping[str, Any]) -> None:
        start = doc["run_start"]
        run = self._open(label, self._runs.get(start), f"start {start:.8}")
        missing = sorted(map(str, run.datums_used - run.datums))
        _require(not missing, f"Events refer to datums that never came: {', '.join(missing)}.")
        for name, stream in run.streams.items():
            twice = sorted(stream.datums_again - stream.events_again)
            _require(
                not twice,
                f"Stream datums of stream {name!r} go back to the seq_nums {twice}, its events "
                "do not.",
            )
        points = {name: stream.points for name, stream in run.streams.items()}
        said = dict(doc.get("num_events", {}))
        _require(
            {k: v for k, v in said.items() if v} == {k: v for k, v in points.items() if v},
            f"{label} has num_events {said}; the streams have {points} points.",
        )
        run.stopped = True


def _fits(shape: Sequence[int], described: Sequence[int | None]) -> bool:
    return len(shape) == len(described) and all(
        d is None or s == d for s, d in zip(shape, described, strict=True)
    )


def _require(holds: object, message: str) -> None:
    if not holds:
        raise AssertionError(message)
