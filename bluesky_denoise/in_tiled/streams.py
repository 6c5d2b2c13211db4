"""A derived run as streams of the raw run's node in Tiled, written as documents come.

All that depends on the shapes of Tiled and of bluesky-tiled-plugins in writing is here.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from bluesky_tiled_plugins.utils import truncate_json_overflow
from bluesky_tiled_plugins.writing.consolidators import Patch, consolidator_factory
from tiled.client.utils import ClientError, handle_error
from tiled.structures.core import Spec
from tiled.utils import safe_json_dump

from bluesky_denoise.documents import Document
from bluesky_denoise.errors import TiledUnavailable
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.in_tiled.stream_table import Columns
from bluesky_denoise.runs.derived_run import raw_stream_of

__all__ = [
    "METADATA_KEY",
    "NodeMissing",
    "StreamWriter",
    "denoised_in",
    "streams_of",
    "tags_of",
]

logger = logging.getLogger(__name__)

_PIECE_BYTES = 8 * 2**20
"""Most that one request carries of events, where one event is not more: proxies take no request
of any length, and what waits after a night without Tiled is long."""
METADATA_KEY = "denoise"
"""Under this key the metadata of a denoised stream hold its provenance."""

_TAGS_OF_USERS = ("user:", "service:")
"""Begin the access tags that Tiled gives itself."""
_SPECS = [Spec("BlueskyEventStream", version="3.0"), Spec("composite")]
_ARROW = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
}


class NodeMissing(TiledUnavailable):
    """The raw run has not been written to Tiled yet."""


def denoised_in(run: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield the denoised streams beside the raw ones: key, stream, and what made it."""
    for key, stream in run.base.items():  # all at once; `run.items()` asks for each
        if not hasattr(stream, "base"):
            continue  # an array that somebody has put there
        provenance = stream.base.metadata.get(METADATA_KEY)
        if provenance:
            yield key, stream, dict(provenance)


def streams_of(run: Any, derived_uid: str) -> Iterator[tuple[str, Any]]:
    """Yield the streams of a raw run that were written for one derived run, with their keys."""
    for key, stream, provenance in denoised_in(run):
        if provenance.get("run_uid") == derived_uid:
            yield key, stream.base


class StreamWriter:
    """Write one derived run into the node of its raw run.

    What has been written already is recognised and not written again, so that the
    documents of a run may be sent anew from the start after a failure.

    Parameters
    ----------
    client :
        The Tiled container that holds the raw runs.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._tags: list[str] | None = None
        self._start: Mapping[str, Any] = {}
        self._run: Any = None
        self._streams: dict[str, _Stream] = {}  # by uid of the derived descriptor
        self._resources: dict[str, Mapping[str, Any]] = {}

    def write(self, documents: Sequence[Document]) -> None:
        """Write documents in few requests: events and stream datums are joined.

        Raises
        ------
        NodeMissing
            If the raw run is not in Tiled; call again later with the same documents.
        Exception
            Whatever Tiled raises.
        """
        for name, group in itertools.groupby(documents, key=_kind):
            docs = [doc for _, doc in group]
            if name == "start":
                self._start = docs[0]
            elif name == "descriptor":
                for doc in docs:
                    self._descriptor(doc)
            elif name == "stream_resource":
                self._resources |= {doc["uid"]: doc for doc in docs}
            elif name == "data":
                self._data(docs)
            elif name == "stop":
                self._stop(docs[0])

    def _node(self) -> Any:
        if self._run is None:
            uid = self._start["original_run_uid"]
            try:
                self._run = self._client[uid]
            except KeyError:
                raise NodeMissing(
                    f"Run {uid} is not in Tiled at {self._client.uri}; is a TiledWriter subscribed "
                    "to the RunEngine, and may `tiled_api_key` read the run?"
                ) from None
            self._tags = tags_of(self._run.base)
        return self._run

    def _descriptor(self, doc: Mapping[str, Any]) -> None:
        if doc["uid"] not in self._streams:
            metadata = {k: v for k, v in doc.items() if k not in ("name", "object_keys")}
            self._streams[doc["uid"]] = self._open_stream(doc["name"], metadata, doc)

    def _open_stream(
        self, name: str, metadata: dict[str, Any], descriptor: Mapping[str, Any]
    ) -> "_Stream":
        """Find the stream that this derived run has begun, or add one beside the others."""
        metadata.pop("run_start", None)
        # Tiled keeps no object_keys; bluesky-tiled-plugins makes them from `object_name`.
        owners = {k: o for o, keys in descriptor.get("object_keys", {}).items() for k in keys}
        metadata["data_keys"] = {
            key: {**spec, **({"object_name": owners[key]} if key in owners else {})}
            for key, spec in descriptor["data_keys"].items()
        }
        metadata[METADATA_KEY] = {
            **self._start["denoise"],
            "run_uid": self._start["uid"],
            "time": self._start["time"],
            "raw_stream": raw_stream_of(name),
        }
        run = self._node().base
        key, number = name, 1
        while True:
            try:
                node = run.create_container(
                    key,
                    metadata=truncate_json_overflow(metadata),
                    specs=_SPECS,
                    access_tags=self._tags,
                ).base
            except ClientError as error:
                if error.response.status_code != 409:  # 409: there is one of this name
                    raise
                there = run[key]  # a stream, or what somebody has put there
                if there.metadata.get(METADATA_KEY, {}).get("run_uid") == self._start["uid"]:
                    return _Stream(there.base, descriptor, self._tags, resumed=True)
            else:
                return _Stream(node, descriptor, self._tags)
            number += 1
            key = f"{name}_{number}"

    def _data(self, docs: list[Mapping[str, Any]]) -> None:
        by_stream = defaultdict(list)
        for doc in docs:
            by_stream[doc["descriptor"]].append(doc)
        for uid, items in by_stream.items():
            stream = self._streams[uid]
            datums = [doc for doc in items if "indices" in doc]
            if datums:
                stream.add_files(datums, self._resources)
            stream.add_events([doc for doc in items if "seq_num" in doc])

    def _stop(self, doc: Mapping[str, Any]) -> None:
        if not self._streams:
            self._streams = {
                key: _Stream(node, {"data_keys": {}}, self._tags, resumed=True)
                for key, node in streams_of(self._node(), self._start["uid"])
            }
        if not self._streams:  # it ended before its first event: say why all the same
            empty = {"uid": self._start["uid"], "time": self._start["time"], "data_keys": {}}
            self._streams[""] = self._open_stream("denoised", dict(empty), empty)
        ended = {key: doc[key] for key in ("exit_status", "reason") if key in doc}
        for stream in self._streams.values():
            stream.close(ended)


def _kind(item: Document) -> str:
    return "data" if item[0] in ("event", "stream_datum") else item[0]


def tags_of(node: Any) -> list[str] | None:
    """Return the access tags by which others may read what is derived from a node.

    None where it is its writer's alone: tags of users are not for clients to give, and Tiled
    gives that of whoever writes.
    """
    tags = [t for t in node.access_tags or () if not t.startswith(_TAGS_OF_USERS)]
    return tags or None


class _Stream:
    """The node of one stream, its table and its arrays."""

    def __init__(
        self,
        node: Any,
        descriptor: Mapping[str, Any],
        access_tags: list[str] | None,
        resumed: bool = False,
    ) -> None:
        self._node, self._descriptor, self._tags = node, descriptor, access_tags
        specs = descriptor["data_keys"]
        arrays = [key for key, spec in specs.items() if spec["dtype"] == "array"]
        self._arrays = [key for key in arrays if "external" not in specs[key]]
        self._columns = Columns(descriptor, "/".join(node.path_parts))
        self._scalars = list(self._columns.kinds)
        fields = [("seq_num", pa.int64()), ("time", pa.float64())]
        fields += [(key, _ARROW[kind]) for key, kind in self._columns.kinds.items()]
        fields += [(f"ts_{key}", pa.float64()) for key in [*self._scalars, *self._arrays]]
        self._schema = pa.schema(fields)
        self._table: Any = None
        self._inline: dict[str, Any] = {}
        self._files: dict[str, tuple[Any, Any]] = {}  # stream resource -> node, consolidator
        self._datums: set[str] = set()  # that have been added: documents may come twice
        self._written, self._resumed = 0, resumed
        self._piece_bytes = _PIECE_BYTES
        if not resumed:
            return
        there = StoredStream(node)
        if there.parts:
            self._table = there.parts[0]
            # Not how many rows there are: one whose answer was too late may be there twice.
            self._written = int(max(self._table.read(["seq_num"])["seq_num"], default=0))
        self._inline = {key: there.nodes[key] for key in self._arrays if key in there.nodes}

    def add_files(
        self, datums: list[Mapping[str, Any]], resources: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Tell Tiled of rows that have been added to files."""
        by_resource = defaultdict(list)
        for doc in datums:
            if doc["uid"] not in self._datums:
                self._datums.add(doc["uid"])
                by_resource[doc["stream_resource"]].append(doc)
        for uid, docs in by_resource.items():
            if uid in self._files:
                node, consolidator = self._files[uid]
                patches = [consolidator.consume_stream_datum(doc) for doc in docs]
                _grow(node, consolidator, Patch.combine_patches(patches))
                continue
            consolidator = consolidator_factory(resources[uid], self._descriptor)
            key = consolidator.data_key
            if self._resumed and key in self._node:
                node = self._node[key]
            else:  # empty at first: live subscribers are told only of what is added
                source = consolidator.get_data_source()
                node = self._node.new(
                    source.structure_family,
                    [source],
                    key=key,
                    metadata={},
                    specs=[],
                    access_tags=self._tags,
                )
            patches = [consolidator.consume_stream_datum(doc) for doc in docs]
            _grow(node, consolidator, Patch.combine_patches(patches))
            self._files[uid] = node, consolidator

    def add_events(self, docs: list[Mapping[str, Any]]) -> None:
        """Append rows to the table, and inline frames to their arrays, in pieces."""
        docs = [doc for doc in docs if doc["seq_num"] > self._written]
        while docs:
            sizes = itertools.accumulate(map(_size, docs))
            fit = itertools.takewhile(lambda size: size <= self._piece_bytes, sizes)
            number = max(1, len(list(fit)))
            try:
                self._append(docs[:number])
            except ClientError as error:
                if error.response.status_code != 413 or number == 1:
                    raise
                self._piece_bytes = sum(map(_size, docs[:number])) // 2
            else:
                docs = docs[number:]

    def _append(self, docs: list[Mapping[str, Any]]) -> None:
        for key in self._arrays:
            self._append_array(key, np.stack([doc["data"][key] for doc in docs]))
        if self._table is None:
            specs = self._descriptor["data_keys"]
            self._table = self._node.create_appendable_table(
                schema=self._schema,
                # A reading may be called so, too.
                key="internal_0" if "internal" in specs else "internal",
                # Live subscribers to all of a stream find its columns by this.
                metadata=truncate_json_overflow({key: specs[key] for key in self._scalars}),
                access_tags=self._tags,
            )
        rows = [self._row(doc) for doc in docs]
        # Not idempotent, so last: what fails here is found by its count and done again.
        self._table.append_partition(0, pa.Table.from_pylist(rows, schema=self._schema))
        self._written = docs[-1]["seq_num"]

    def _row(self, doc: Mapping[str, Any]) -> dict[str, Any]:
        row = {"seq_num": doc["seq_num"], "time": doc["time"]}
        row |= self._columns.values(doc)
        return row | {f"ts_{key}": doc["timestamps"].get(key) for key in doc["data"]}

    def _append_array(self, key: str, frames: np.ndarray) -> None:
        if key not in self._inline:
            import dask.array  # comes with the server; with the client, chunk by frame

            chunked = dask.array.from_array(frames, chunks=(1, *frames.shape[1:]))
            self._inline[key] = self._node.write_array(chunked, key=key, access_tags=self._tags)
            return
        # Rows that are there already are written again: their frames may not have arrived.
        self._inline[key].patch(frames, offset=(self._written,), extend=True)

    def close(self, ended: Mapping[str, Any]) -> None:
        """Write how the run ended, and tell live subscribers that no more comes."""
        denoise = {**self._node.metadata[METADATA_KEY], **ended, "num_events": self._written}
        self._node.update_metadata({METADATA_KEY: denoise}, drop_revision=True)
        nodes = [n for n, _ in self._files.values()] + list(self._inline.values())
        for node in [*nodes, self._table, self._node]:
            if node is not None:
                node.close_stream()


def _size(event: Mapping[str, Any]) -> int:
    """Return about how many bytes an event has; with each value comes a time stamp."""
    return sum(
        16 + (len(v) if isinstance(v, str) else np.asarray(v).nbytes)
        for v in event["data"].values()
    )


def _grow(node: Any, consolidator: Any, patch: Patch) -> None:
    """Update the data source of an external array; live subscribers are told the patch."""
    source = consolidator.get_data_source()
    source.id = node.data_sources()[0].id
    handle_error(
        node.context.http_client.put(
            node.uri.replace("/metadata/", "/data_source/", 1),
            content=safe_json_dump({"data_source": source}),
            params={
                "patch_shape": ",".join(map(str, patch.shape)),
                "patch_offset": ",".join(map(str, patch.offset)),
            },
        )
    )
