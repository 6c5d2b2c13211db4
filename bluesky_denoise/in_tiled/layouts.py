"""Where in Tiled a derived run goes, and what writes it there: in the raw run, or as its own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import httpx
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_context, from_uri
from tiled.client.context import CannotPrompt
from tiled.client.utils import ClientError
from tiled.structures.core import Spec

from bluesky_denoise.documents import Document
from bluesky_denoise.errors import TiledUnavailable
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.in_tiled.stream_table import Columns
from bluesky_denoise.in_tiled.streams import StreamWriter, streams_of
from bluesky_denoise.settings import DenoiseSettings

__all__ = [
    "DerivedRunWriter",
    "Writer",
    "connect",
    "explain",
    "is_away",
    "is_refusal",
    "open_writer",
    "try_reading",
    "wants_a_key",
    "why_not_opened",
]

_MAY_PASS = frozenset({404, 408, 409, 423, 425, 429})
"""Client errors that also come of proxies whose Tiled is away, of haste, and of others' writing."""
_PROXY_ALONE = frozenset({502, 503, 504})


class Writer(Protocol):
    """What writes one derived run."""

    def write(self, documents: Sequence[Document]) -> None:
        """Write some of its documents; those that are in Tiled already are recognised."""


class DerivedRunWriter:
    """Write one derived run as a run of its own, with bluesky's own `TiledWriter`.

    Where the answer to a row was lost, `TiledWriter` sends the row again: `write` raises
    `TiledUnavailable` at the stop then, for the run to be written anew.

    Parameters
    ----------
    container :
        The Tiled container of derived runs.
    """

    def __init__(self, container: Any) -> None:
        self._container = container
        self._writer = TiledWriter(container, batch_size=1)
        self._columns: dict[str, Columns] = {}  # by descriptor

    def write(self, documents: Sequence[Document]) -> None:
        """Write documents; a start begins the run anew."""
        if [name for name, _ in documents] == ["start", "stop"]:
            uid = documents[0][1]["uid"]
            if uid in self._container:  # its own writer died: keep what it has written
                self._container[uid].update_metadata({"stop": dict(documents[1][1])})
                return
        for name, doc in documents:
            if name == "start" and doc["uid"] in self._container:
                # What an earlier, failed attempt has left of this derived run.
                self._container.delete_contents(doc["uid"], recursive=True, external_only=False)
            if name == "descriptor":
                self._columns[doc["uid"]] = Columns(doc, f"{doc['run_start']}/{doc['name']}")
            self._writer(name, self._as_columns(doc) if name == "event" else doc)
            if name == "stop":
                self._check_rows(doc["run_start"])

    def _as_columns(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return an event with readings of one kind each: `TiledWriter` goes by the first row."""
        columns = self._columns[event["descriptor"]]
        values = columns.values(event)
        values |= {
            key: math.nan
            for key, value in values.items()
            if value is None and columns.kinds[key] == "number"
        }
        return {**event, "data": {**event["data"], **values}}

    def _check_rows(self, uid: str) -> None:
        """Raise where `TiledWriter` has sent a row again whose answer was lost."""
        for name, stream in self._container[uid].items():
            columns = [_a_column(part) for part in StoredStream(stream).parts]
            if not columns:
                continue
            (numbers,) = (column for column in columns if column.name == "seq_num")
            rows = max(map(len, columns))
            twice = rows - numbers.nunique()
            if twice:
                raise TiledUnavailable(
                    f"{twice} of {rows} rows of {name!r} in derived run {uid} are in Tiled twice, "
                    "for an answer of it was lost; expected each once. Write the run anew"
                )


def _a_column(part: Any) -> Any:
    """Read a column of a part of a table: that of the events' numbers, where it has them."""
    key = "seq_num" if "seq_num" in part.columns else part.columns[0]
    return part.read([key])[key]


def connect(settings: DenoiseSettings) -> Any:
    """Return a Tiled client for the container that the settings write into.

    For the layout ``"stream"`` this is the raw catalog; for ``"run"`` the container of
    derived runs, which is made if missing.
    """
    key = settings.tiled_api_key
    client = from_uri(
        settings.tiled_uri,
        api_key=key.get_secret_value() if key else None,
        include_data_sources=True,
    )
    if settings.tiled_layout == "stream":
        return client
    # By path, since a catalog of runs takes any key for a partial uid.
    path: list[str] = []
    for part in settings.tiled_container.strip("/").split("/"):
        parent = from_context(client.context, node_path_parts=path)
        path.append(part)
        try:  # to look first, for it may lie where nothing may be made
            from_context(client.context, node_path_parts=path)
            continue
        except (KeyError, ClientError) as error:
            if isinstance(error, ClientError) and error.response.status_code != 404:
                raise
        try:
            parent.create_container(part, specs=[Spec("CatalogOfBlueskyRuns", version="3.0")])
        except ClientError as error:
            if error.response.status_code != 409:  # 409: it is there by now
                raise
    return from_context(client.context, node_path_parts=path, include_data_sources=True)


def wants_a_key(error: Exception) -> bool:
    """Tell whether a server was asked without the key that it wants, and nobody can log in."""
    # Of a server with one key it is a RuntimeError.
    return isinstance(error, CannotPrompt) or (
        isinstance(error, RuntimeError) and "API key" in str(error)
    )


def why_not_opened(error: Exception, given: str = "as --uri or in TILED_URI") -> str:
    """Say to whoever has given its address why a server cannot be opened, and what to do.

    Parameters
    ----------
    error :
        Of the attempt.
    given :
        How the address is given.
    """
    refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403)
    if refused or wants_a_key(error):
        return "it wants an API key that is right. Put it into TILED_API_KEY."
    told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, httpx.TransportError):
        return f"{told}. Does it run there? Give its address {given}."
    return f"{told}. Is it the address of a Tiled server?"


def open_writer(client: Any, settings: DenoiseSettings) -> Writer:
    """Return a writer for one derived run, in the layout of the settings."""
    return StreamWriter(client) if settings.tiled_layout == "stream" else DerivedRunWriter(client)


def try_reading(client: Any, settings: DenoiseSettings, start: Mapping[str, Any]) -> bool:
    """Read a pixel of each denoised array of a derived run; see `StoredStream.read_a_pixel`.

    Parameters
    ----------
    client :
        As `connect` returns it.
    settings :
        The layout.
    start :
        The start document of the derived run, which is in Tiled.

    Returns
    -------
    bool
        Whether there was one.

    Raises
    ------
    Exception
        Whatever Tiled raises.
    """
    if settings.tiled_layout == "run":
        streams = list(client[start["uid"]].base.values())
    else:
        streams = [node for _, node in streams_of(client[start["original_run_uid"]], start["uid"])]
    found = [StoredStream(stream).read_a_pixel() for stream in streams]
    return any(found)


def is_away(error: Exception) -> bool:
    """Tell whether nobody answers, or only a proxy whose Tiled does not."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PROXY_ALONE
    return isinstance(error, httpx.TransportError)


def is_refusal(error: Exception) -> TypeGuard[ClientError]:
    """Tell whether Tiled refuses what it was sent, and will do so again."""
    if not isinstance(error, ClientError):
        return False
    status = error.response.status_code
    return 400 <= status < 500 and status not in _MAY_PASS


def explain(error: Exception, settings: DenoiseSettings) -> str:
    """Say why Tiled was not written to, and what to do where it refuses."""
    if not is_refusal(error):
        return f"{type(error).__name__}: {error}"
    status = error.response.status_code
    if status == 413:
        return (
            f"Tiled, or a proxy before it, takes no request as long as one event: {error}. Raise "
            "its limit (`client_max_body_size` of nginx), or set `frames_directory`, so that "
            "frames do not go through HTTP"
        )
    if status not in (401, 403):
        return f"Tiled refuses, status {status}: {error}"
    if settings.tiled_layout == "stream":
        where = "the raw catalog"
        other = ", or use `tiled_layout` 'run' with a `tiled_container` that it may write to"
    else:
        where, other = f"the container {settings.tiled_container!r}", ""
    told = " ".join(str(error).split())
    if "access tags" in told:
        return (
            f"Tiled refuses, status {status}: {told}. What is derived has the access tags of its "
            "raw run: give a `tiled_api_key` of an owner of them"
        )
    if status == 401 and "Requires scopes" in told:  # it knows the key
        return f"Tiled refuses, status {status}: {told}. {_what_to_give(told)}"
    if status == 401:
        return (
            f"Tiled refuses, status {status}: it does not know `tiled_api_key`. Give one that may "
            f"write to {where}"
        )
    return (
        f"Tiled refuses, status {status}: `tiled_api_key` may not write to {where}. "
        f"Give one that may{other}"
    )


def _what_to_give(told: str) -> str:
    """Say what to do about scopes that a key lacks; that of files is not for all users."""
    registers = "'register'" in told.partition("Request had")[0]
    without = ", or leave `frames_directory` out, which sends frames through HTTP"
    return f"Give a `tiled_api_key` that has these scopes{without if registers else ''}"
