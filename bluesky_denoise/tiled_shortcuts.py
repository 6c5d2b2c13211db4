"""What the embedded Tiled server would do anew in each request, done once.

All of it is of the whole process, changes no answer, and is left out where Tiled, FastAPI or
SQLAlchemy no longer have what it is about.
"""

import inspect
import sqlite3
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import wraps
from typing import Any

__all__ = ["take_shortcuts"]

_kept: list[Any] = []
"""What would be made anew as soon as nobody has it."""


def take_shortcuts() -> None:
    """Take all shortcuts, once in a process."""
    _look_at_dependencies_once()
    _go_straight_to_nodes()
    _name_nodes_once()
    _keep_types_of_answers()
    _go_to_sqlite_once()


def _look_at_dependencies_once() -> None:
    """Keep what FastAPI finds in the signatures of functions, in this whole process.

    Where an application overrides some dependency, as Tiled does, FastAPI looks at those of all
    of them anew in each request.
    """
    from fastapi.dependencies import utils

    look = getattr(utils, "get_dependant", None)
    if look is None or look.__module__ == __name__:  # it is here already
        return
    found: dict[Any, Any] = {}

    def get_dependant(**told: Any) -> Any:
        # A route, which adds to what it gets, tells no scopes of a parent.
        if "parent_oauth_scopes" not in told or "own_oauth_scopes" in told:
            return look(**told)
        scopes = tuple(told["parent_oauth_scopes"] or ())
        key = tuple((told | {"parent_oauth_scopes": scopes}).items())
        if key not in found:
            found[key] = look(**told)
        return found[key]

    utils.get_dependant = get_dependant


def _go_straight_to_nodes() -> None:
    """Find nodes of catalogs by their whole path, in this process, where no policy says who may.

    Tiled asks the database for each node on the way, with its data sources, so as to apply an
    access policy to each.
    """
    from tiled.catalog.adapter import CatalogNodeAdapter
    from tiled.server import router
    from tiled.server.core import NoEntry
    from tiled.utils import BrokenLink

    walk = getattr(router, "get_entry", None)
    if walk is None or walk.__module__ == __name__:  # it is here already
        return
    signature = inspect.signature(walk)

    async def get_entry(*given: Any, **named: Any) -> Any:
        told = signature.bind(*given, **named).arguments
        tree, families = told.get("root_tree"), told.get("structure_families")
        segments = [part for part in told.get("path", "").split("/") if part]
        free = told.get("access_policy") is None
        if free and len(segments) > 1 and isinstance(tree, CatalogNodeAdapter):
            with suppress(NoEntry, BrokenLink):
                node = await tree.lookup_adapter(segments)
                if families is None or node.structure_family in families:
                    return node
        return await walk(*given, **named)  # whatever is wrong, it says so

    router.get_entry = get_entry


def _name_nodes_once() -> None:
    """Use the same aliases in each question for a path, whose columns SQLAlchemy makes anew."""
    from sqlalchemy import select
    from sqlalchemy.orm import aliased
    from tiled.catalog import adapter, orm

    ask = getattr(adapter, "node_from_segments", None)
    if ask is None or ask.__module__ == __name__:  # it is here already
        return
    ancestors: list[Any] = []

    @wraps(ask, assigned=())
    def node_from_segments(segments: Sequence[str], root_id: int = 0) -> Any:
        while len(ancestors) < len(segments):
            ancestors.append(aliased(orm.Node))
        nodes = [*ancestors[: len(segments)], orm.Node]
        statement = select(orm.Node).select_from(nodes[0]).where(nodes[0].id == root_id)
        for parent, child, key in zip(nodes, nodes[1:], segments, strict=False):
            statement = statement.join(child, child.parent == parent.id).where(child.key == key)
        return statement

    adapter.node_from_segments = node_from_segments


def _keep_types_of_answers() -> None:
    """Keep the types that answers have: pydantic makes a class of each that nobody has."""
    from tiled.server import schemas

    kinds = getattr(schemas, "resource_links_type_by_structure_family", None)
    if kinds is None or _kept:
        return
    for links in kinds.values():
        _kept.append(schemas.Resource[schemas.NodeAttributes, links, schemas.EmptyDict])
        _kept.append(schemas.Resource[schemas.NodeAttributes, links, schemas.ContainerMeta])


def _go_to_sqlite_once() -> None:
    """Ask, fetch and close in one visit to the thread of a connection, in place of up to four."""
    from aiosqlite import Connection
    from sqlalchemy.dialects.sqlite import aiosqlite

    cursors: Any = getattr(aiosqlite, "AsyncAdapt_aiosqlite_cursor", None)
    step_by_step = vars(cursors).get("execute") if cursors else None
    if step_by_step is None or step_by_step.__module__ == __name__:  # it is here already
        return
    known = {"description", "lastrowid", "rowcount", "_rows"} <= {
        *getattr(cursors, "__slots__", ())
    }
    if not (known and hasattr(Connection, "_execute") and hasattr(Connection, "_conn")):
        return

    @wraps(step_by_step, assigned=())
    def execute(self: Any, operation: str, parameters: Any = None) -> None:
        if self.server_side:  # its rows are fetched as they are wanted
            step_by_step(self, operation, parameters)
            return
        connection = self._connection
        given = () if parameters is None else (parameters,)
        try:
            answer = self.await_(connection._execute(_ask, connection._conn, operation, *given))
        except Exception as error:
            self._adapt_connection._handle_exception(error)
        self.description, rows, self.lastrowid, self.rowcount = answer
        if self.description:
            self.lastrowid = self.rowcount = -1
            self._rows = deque(rows)

    cursors.execute = execute


def _ask(connection: sqlite3.Connection, *asked: Any) -> tuple[Any, list[Any], int | None, int]:
    """Ask SQLite, in the thread of the connection."""
    cursor = connection.execute(*asked)
    try:
        return cursor.description, cursor.fetchall(), cursor.lastrowid, cursor.rowcount
    finally:
        cursor.close()
