"""A Tiled server inside this process, for demos, tests, and one-person beamlines."""

import asyncio
import logging
import os
import secrets
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bluesky_denoise.errors import SettingsError, TiledUnavailable
from bluesky_denoise.tiled_shortcuts import take_shortcuts

__all__ = ["embedded_tiled"]

_ONE_BATCH = {"adbc.sqlite.query.batch_rows": str(10**9)}
_LARGEST_MESSAGE = 256 * 1024 * 1024  # bytes; a live subscription must take a 4k float32 frame


@contextmanager
def embedded_tiled(
    directory: str | Path,
    *,
    readable: str | Path | Sequence[str | Path] = (),
    port: int = 0,
    api_key: str | None = None,
) -> Iterator[str]:
    """Run a Tiled server for Bluesky runs while the context lasts.

    It stores metadata and tables in SQLite and arrays in files, which keep what two
    writers write at the same time, and serves live subscriptions.

    Parameters
    ----------
    directory :
        Where the server keeps its files; made if missing, used again if not, by whatever path
        leads there. Files anywhere in it can be registered.
    readable :
        More directories (or one) whose files can be registered, such as those of detectors.
    port :
        0: any that is free.
    api_key :
        Letters and digits; None: a new random one.

    Yields
    ------
    str
        The address, with the key in it: pass it to ``tiled.client.from_uri``, or to
        ``DenoiseSettings(tiled_uri=...)``.

    Raises
    ------
    SettingsError
        If the key has other characters than letters and digits, the port is none, the path of a
        directory has a ``#`` or a ``?``, the directory cannot be made, or what is in it is no
        catalog of the Tiled that is installed.
    TiledUnavailable
        If the port is taken, or the server does not answer.

    Examples
    --------
    >>> with embedded_tiled("my_data") as uri:
    ...     client = from_uri(uri)
    """
    import uvicorn
    from bluesky_tiled_plugins.exporters import json_seq_exporter
    from bluesky_tiled_plugins.routers import validator
    from tiled.catalog import from_uri as catalog_from_uri
    from tiled.config import Authentication, StreamingCacheConfig
    from tiled.media_type_registration import default_serialization_registry
    from tiled.server.app import build_app
    from tiled.server.simple import ThreadedServer

    if api_key is not None and not (api_key.isascii() and api_key.isalnum()):
        raise SettingsError("The API key of a Tiled server has letters and digits alone.")
    if not 0 <= port < 2**16:
        raise SettingsError(f"Port {port} is none; expected 0 to {2**16 - 1}.")
    _check_free(port)
    readable = [readable] if isinstance(readable, str | Path) else readable
    # It would greet on stderr each time.
    logging.getLogger("tiled.server.app").setLevel(logging.WARNING)
    directory, *links = _paths(directory)
    more = [path for given in readable for path in _paths(given)]
    for path in (directory, *links, *more):
        if set("#?") & set(str(path)):
            raise SettingsError(
                f"{path} has a # or a ?, after which Tiled would read no path. Give a directory "
                "without."
            )
    try:
        (directory / "data").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"No server can keep its files in {directory}: {error.strerror}. Give a directory that "
            "can be written."
        ) from None
    api_key = api_key or secrets.token_hex(16)
    _make_catalog(directory / "catalog.db")
    catalog = catalog_from_uri(
        str(directory / "catalog.db"),
        writable_storage=[str(directory / "data"), f"sqlite:///{directory / 'tables.db'}"],
        readable_storage=[
            *map(str, [directory, *links, *more]),
            # Earlier versions registered tables under the link.
            *(f"sqlite:///{path / 'tables.db'}" for path in links),
        ],
        # One connection to the tables: a second writer would find SQLite locked.
        storage_pool_size=1,
        storage_max_overflow=0,
        specs=[{"name": "CatalogOfBlueskyRuns", "version": "3.0"}],
        cache_config=StreamingCacheConfig(uri="memory").model_dump(),
    )
    _take_types_from_all_rows(catalog)
    take_shortcuts()
    # Without this, `run.documents()` is refused by the server.
    default_serialization_registry.register("BlueskyRun", "application/json-seq", json_seq_exporter)
    app = build_app(catalog, authentication=Authentication(single_user_api_key=api_key))
    app.include_router(validator.router, prefix="/custom")  # `run.validate()` asks it
    _serve_what_the_reader_has_seen(app)
    _keep_own_settings(app)
    config = uvicorn.Config(
        app,
        port=port,
        loop="asyncio",
        log_config=None,
        log_level="warning",
        access_log=False,  # its lines would show the key of whoever opens the web page
        ws_max_size=_LARGEST_MESSAGE,
        timeout_graceful_shutdown=3,
    )
    with ThreadedServer(config).run_in_thread() as url:
        _wait_until_ready(url)
        yield f"{url}/api/v1?api_key={api_key}"


def _make_catalog(path: Path) -> None:
    """Make the tables of a catalog, if there are none yet, as ``tiled catalog init`` does.

    Tiled itself would start another Python for it, which takes seconds each time.
    """
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy.exc import DatabaseError
    from sqlalchemy.ext.asyncio import create_async_engine
    from tiled.alembic_utils import (
        DatabaseUpgradeNeeded,
        UninitializedDatabase,
        UnrecognizedDatabase,
        check_database,
    )
    from tiled.catalog.alembic_constants import ALEMBIC_DIR
    from tiled.catalog.core import ALL_REVISIONS, REQUIRED_REVISION, initialize_database

    def stamp(connection: Any) -> None:
        scripts = ScriptDirectory(ALEMBIC_DIR)
        MigrationContext.configure(connection).stamp(scripts, REQUIRED_REVISION)

    async def make() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        try:
            await check_database(engine, REQUIRED_REVISION, ALL_REVISIONS)
        except UninitializedDatabase:
            await initialize_database(engine)
            async with engine.begin() as connection:
                await connection.run_sync(stamp)
        finally:
            await engine.dispose()

    try:
        with ThreadPoolExecutor(1) as pool:  # a notebook has a loop in the main thread
            pool.submit(asyncio.run, make()).result()
    except DatabaseUpgradeNeeded:
        raise SettingsError(
            f"The catalog {path} is of an older Tiled. Keep a copy, and run "
            f"`tiled catalog upgrade-database {shlex.quote(f'sqlite:///{path}')}`."
        ) from None
    except (UnrecognizedDatabase, DatabaseError) as error:
        raise SettingsError(
            f"{path} cannot be read as a catalog of this Tiled: {str(error).splitlines()[0]}. "
            "Give a directory that is new, or one in which this server has kept its files."
        ) from None


def _paths(directory: str | Path) -> list[Path]:
    """Return where a directory is and, if links lead there, the path through them.

    Tiled compares paths as they are written: files may be registered by either.
    """
    given = Path(directory).expanduser().absolute()
    resolved, plain = given.resolve(), Path(os.path.normpath(given))
    return [resolved, plain] if plain != resolved == plain.resolve() else [resolved]


def _check_free(port: int) -> None:
    """Refuse a port that something listens on: uvicorn would end, and its thread be waited for."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TiledUnavailable(
                f"Port {port} cannot be used: {error.strerror}. Give another one, or 0 for any "
                "that is free."
            ) from None


def _take_types_from_all_rows(catalog: Any) -> None:
    """Let a column be read whose first numbers come late.

    SQLite keeps NaN as NULL, and its driver takes the type of a column from the first batch of
    rows, 1024 of them. Where all of them are NULL it takes integers, and fails at the first
    number: a peak that appears late in a long series could not be read.
    """
    from sqlalchemy import event
    from tiled.storage import SQLStorage

    def prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor
        connection.cursor = lambda **given: cursor(**{"adbc_stmt_kwargs": _ONE_BATCH, **given})

    for storage in catalog.context.writable_storage.values():
        if isinstance(storage, SQLStorage):
            event.listen(storage._connection_pool, "connect", prepare)


def _serve_what_the_reader_has_seen(app: Any) -> None:
    """Let arrays and columns be read that have grown since the reader looked at their shape.

    The client asks for the shape that it has seen. Tiled refuses if there is more by now,
    with status 500, however often it is asked again; here it gets the rows that it knows.
    """
    from fastapi import Depends, Query
    from tiled.ndslice import NDSlice
    from tiled.server.dependencies import SLICE_REGEX, expected_shape, parse_slice_param

    def first_rows(
        slice: str = Query("", pattern=SLICE_REGEX),
        shape: tuple[int, ...] | None = Depends(expected_shape),
    ) -> NDSlice:
        # A slice that the client sends has its ends filled in, from the same shape.
        return parse_slice_param(slice or (f":{shape[0]}" if shape else ""))

    app.dependency_overrides[parse_slice_param] = first_rows


def _keep_own_settings(app: Any) -> None:
    """Give the application settings of its own.

    Tiled keeps one object for all in a process: a second server changes the key of the first.
    """
    from tiled.server.settings import get_settings

    own = app.dependency_overrides[get_settings]().model_copy()
    app.dependency_overrides[get_settings] = lambda: own


def _wait_until_ready(url: str, timeout_s: float = 60.0) -> None:
    """Wait for the application, which answers later than the socket listens."""
    deadline = time.monotonic() + timeout_s
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                if client.get(f"{url}/healthz", timeout=1.0).is_success:
                    return
            except httpx.RequestError:
                pass
            time.sleep(0.05)
    raise TiledUnavailable(f"The embedded Tiled server did not answer within {timeout_s} s.")
