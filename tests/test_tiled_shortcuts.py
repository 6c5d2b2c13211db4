"""What the embedded Tiled server does once, in place of in each request."""

import asyncio
import gc
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import aiosqlite
import numpy as np
import pytest
from fastapi import HTTPException
from sqlalchemy import Column, event, text
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_cursor
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from tiled.access_control.access_policies import NO_ACCESS
from tiled.catalog import adapter
from tiled.catalog import from_uri as catalog_from_uri
from tiled.client import from_context, from_uri
from tiled.server import schemas

from bluesky_denoise.server import embedded_tiled


def test_signatures_of_dependencies_are_looked_at_once(tiled, monkeypatch):
    from fastapi.dependencies import utils

    looks, look = [], utils.get_typed_signature
    monkeypatch.setattr(utils, "get_typed_signature", lambda call: looks.append(call) or look(call))
    for _ in range(2):
        looks.clear()
        tiled.client.refresh()
    assert looks == []


@pytest.fixture(scope="module")
def nested(tiled):
    """Make a container in a container, with a table and an array in it."""
    inner = tiled.client.create_container("outer").create_container("inner")
    inner.write_array(np.arange(3.0), key="array")
    return inner


def test_a_node_is_found_by_one_question_however_deep_it_is(tiled, nested):
    questions = []

    def note(connection, cursor, statement, *_):
        questions.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        array = from_context(tiled.client.context, node_path_parts=["outer", "inner", "array"])
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    np.testing.assert_array_equal(array.read(), np.arange(3.0))
    assert sum(statement.startswith("SELECT nodes.id") for statement in questions) == 1


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("array/full/outer/inner/none", "No such entry: ['outer', 'inner', 'none']"),
        ("array/full/outer/none/array", "No such entry: ['outer', 'none', 'array']"),
        (
            "array/full/outer/inner",
            "The node at outer/inner has structure family StructureFamily.container",
        ),
        (
            "search/outer/inner/array",
            "The node at outer/inner/array has structure family StructureFamily.array",
        ),
    ],
)
def test_what_is_not_where_it_is_asked_for_is_told_with_its_path(tiled, nested, path, told):
    url = f"{tiled.uri.partition('?')[0]}/{path}"
    response = tiled.client.context.http_client.get(url)
    assert response.status_code == 404
    assert told in response.json()["detail"]


class _NoneButTheTop:
    """Whoever asks may read what lies at the top, and nothing below."""

    async def allowed_scopes(self, *_):
        return {"read:metadata"}

    async def filters(self, node, *_):
        return [] if node.node.parent is None else NO_ACCESS


def test_a_policy_is_asked_about_each_node_on_the_way(tiled, tmp_path):
    from tiled.server import router

    with embedded_tiled(tmp_path) as uri, from_uri(uri).context as context:
        from_context(context).create_container("outer").create_container("inner")

    async def find(policy):
        tree = catalog_from_uri(str(tmp_path / "catalog.db"))
        user, times = [["read:metadata"], None, None, {"read:metadata"}], {"acl": Counter()}
        try:
            return await router.get_entry("outer/inner", *user, tree, {}, times, None, policy)
        finally:
            await tree.shutdown()

    with ThreadPoolExecutor(1) as pool:
        node = pool.submit(asyncio.run, find(None)).result()
        assert node.node.key == "inner"
        with pytest.raises(HTTPException, match="No such entry"):
            pool.submit(asyncio.run, find(_NoneButTheTop())).result()


@pytest.mark.usefixtures("tiled")
def test_a_path_is_asked_for_as_tiled_asks():
    for segments in ([], ["a"], ["a", "b"], ["a", "b", "c", "it's"], ["a"]):
        for root in (0, 7):
            asked, wanted = (
                str(ask(segments, root).compile(compile_kwargs={"literal_binds": True}))
                for ask in (adapter.node_from_segments, adapter.node_from_segments.__wrapped__)
            )
            assert asked == wanted


def test_columns_of_a_path_are_made_once(nested, monkeypatch):
    made, make = [], Column._make_proxy
    monkeypatch.setattr(
        Column, "_make_proxy", lambda *given, **named: made.append(given) or make(*given, **named)
    )
    assert nested["array"].shape == (3,)
    assert made == []


@pytest.mark.usefixtures("tiled")
def test_types_of_answers_are_made_once():
    array, container = map(
        schemas.resource_links_type_by_structure_family.get, ("array", "container")
    )
    kinds = [(array, schemas.EmptyDict), (container, schemas.ContainerMeta)]
    types = [weakref.ref(schemas.Resource[schemas.NodeAttributes, *kind]) for kind in kinds]
    gc.collect()
    assert all(kept() is not None for kept in types)


STATEMENTS = [
    "CREATE TABLE frames (id INTEGER PRIMARY KEY, counts INTEGER UNIQUE)",
    "INSERT INTO frames (counts) VALUES (3), (5)",
    "INSERT INTO frames (counts) VALUES (7) RETURNING id, counts",
    "UPDATE frames SET counts = counts + 1 WHERE counts > 4",
    "SELECT id, counts FROM frames WHERE counts > :least ORDER BY id",
    "SELECT id FROM frames WHERE counts > 2 * :least + 100",
]


async def answers_of_sqlite(path):
    """Return what each of the statements gives, and what a stream of rows does."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    answers = []
    async with engine.begin() as connection:
        for statement in STATEMENTS:
            given = {"least": 3} if ":least" in statement else {}
            result = await connection.execute(text(statement), given)
            rows = [row._asdict() for row in result] if result.returns_rows else None
            answers.append((rows, result.lastrowid, result.rowcount))
        with pytest.raises(IntegrityError, match="UNIQUE constraint failed"):
            await connection.execute(text(STATEMENTS[1]))
        streamed = await connection.stream(text("SELECT id FROM frames ORDER BY id"))
        answers.append([row async for row in streamed])
    with suppress(OperationalError):  # nor can it be rolled back
        async with engine.connect() as connection:
            opened = await connection.get_raw_connection()
            await opened.driver_connection.close()
            try:
                await connection.execute(text(STATEMENTS[-1]), {"least": 3})
            except Exception as error:
                answers.append(repr(error.__class__))
    await engine.dispose()
    return answers


@pytest.mark.usefixtures("tiled")
def test_sqlite_is_visited_once_for_a_statement_and_answers_as_before(tmp_path, monkeypatch):
    visits, visit = [], aiosqlite.Connection._execute

    def count(*given, **named):
        visits.append(given)
        return visit(*given, **named)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", count)
    ask = AsyncAdapt_aiosqlite_cursor.execute
    found = []
    for execute in (ask.__wrapped__, ask):
        monkeypatch.setattr(AsyncAdapt_aiosqlite_cursor, "execute", execute)
        visits.clear()
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(asyncio.run, answers_of_sqlite(tmp_path / f"{len(found)}.db"))
            found.append((answers.result(), len(visits)))
    (before, visits_before), (now, visits_now) = found
    assert now == before
    assert now[-1] == repr(OperationalError)
    assert now[4][0] == [{"id": 2, "counts": 6}, {"id": 3, "counts": 8}]
    assert visits_now <= visits_before - 2 * len(STATEMENTS)  # and one more where there are rows
