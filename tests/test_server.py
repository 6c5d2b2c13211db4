"""The Tiled server inside a process."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import bluesky.plans as bp
import httpx
import numpy as np
import pyarrow
import pytest
from bluesky_tiled_plugins import TiledWriter
from tiled.catalog.core import ALL_REVISIONS
from tiled.client import from_context, from_uri
from tiled.structures.array import ArrayStructure
from tiled.structures.data_source import Asset, DataSource, Management

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.server import embedded_tiled


@pytest.mark.parametrize(
    ("options", "told"),
    [({"api_key": "a-b"}, "letters and digits alone"), ({"port": 70_000}, "Port 70000 is none")],
)
def test_a_server_that_cannot_be_is_refused_at_once(tmp_path, options, told):
    with pytest.raises(SettingsError, match=told), embedded_tiled(tmp_path, **options):
        pass


@pytest.mark.parametrize("name", ["a#1", "why?"])
@pytest.mark.parametrize("of", ["directory", "readable"])
def test_a_directory_that_tiled_could_not_find_is_refused_before_it_is_made(tmp_path, name, of):
    paths = {"directory": tmp_path / "plain", "readable": tmp_path} | {of: tmp_path / name}
    with pytest.raises(SettingsError, match=r"has a # or a \?, after"), embedded_tiled(**paths):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_directory_of_a_server(tmp_path):
    (tmp_path / "taken").write_text("")
    told = "keep its files in .*taken: Not a directory"
    with pytest.raises(SettingsError, match=told), embedded_tiled(tmp_path / "taken"):
        pass


def catalog_of(path):
    with closing(sqlite3.connect(path)) as tables:
        schema = set(tables.execute("SELECT name, sql FROM sqlite_master"))
        return schema, tables.execute("SELECT * FROM alembic_version").fetchall()


@pytest.mark.thorough
def test_the_catalog_is_one_that_tiled_would_make(tmp_path):
    with embedded_tiled(tmp_path):
        pass
    expected = tmp_path / "expected.db"
    command = [sys.executable, "-m", "tiled", "catalog", "init", f"sqlite:///{expected}"]
    subprocess.run(command, capture_output=True, check=True)
    assert catalog_of(tmp_path / "catalog.db") == catalog_of(expected)


def test_a_catalog_of_another_tiled_is_refused_with_what_to_do(tmp_path):
    with embedded_tiled(tmp_path):
        pass
    catalog = tmp_path / "catalog.db"
    with closing(sqlite3.connect(catalog)) as tables, tables:
        tables.execute("UPDATE alembic_version SET version_num = ?", (ALL_REVISIONS[1],))
    told = rf"is of an older Tiled.*upgrade-database sqlite:///{catalog}`"
    with pytest.raises(SettingsError, match=told), embedded_tiled(tmp_path):
        pass
    catalog.write_text("SQLite" * 100)
    told = "cannot be read as a catalog .*file is not a database"
    with pytest.raises(SettingsError, match=told), embedded_tiled(tmp_path):
        pass


@pytest.mark.thorough
def test_a_directory_is_read_by_whatever_path_leads_to_it(RE, motor, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "sub")
    for written, read in (("../data", tmp_path / "data"), (tmp_path / "link" / "data", "../data")):
        with embedded_tiled(written) as uri:
            client = from_uri(uri)
            with client.context:
                token = RE.subscribe(TiledWriter(client))
                (uid,) = RE(bp.scan([motor], motor, -1, 1, 3))
                RE.unsubscribe(token)
        with embedded_tiled(read) as uri:
            client = from_uri(uri)
            with client.context:
                positions = client[uid]["primary"]["motor"].read()
                np.testing.assert_array_equal(positions, [-1, 0, 1])


def test_one_directory_to_read_is_no_list_of_letters(tmp_path):
    (tmp_path / "raw").mkdir()
    paths = [tmp_path / "raw" / "a.npy", tmp_path / "b.npy"]
    # As one that is seen under a link: files may be registered by either path.
    (tmp_path / "share").symlink_to(tmp_path / "raw", target_is_directory=True)
    paths.append(tmp_path / "share" / "c.npy")
    with embedded_tiled(tmp_path / "tiled", readable=str(tmp_path / "share")) as uri:
        client = from_uri(uri)
        with client.context:
            nodes = []
            for path in paths:
                np.save(path, np.arange(3.0))
                source = DataSource(
                    structure_family="array",
                    structure=ArrayStructure.from_array(np.arange(3.0)),
                    mimetype="application/x-npy",
                    assets=[
                        Asset(
                            data_uri=f"file://localhost{path}",
                            is_directory=False,
                            parameter="data_uri",
                        )
                    ],
                    management=Management.external,
                )
                nodes.append(client.new("array", [source]))
            for node in (nodes[0], nodes[2]):
                np.testing.assert_array_equal(node.read(), np.arange(3.0))
            with pytest.raises(httpx.HTTPStatusError):
                nodes[1].read()


def test_a_column_is_read_whose_first_numbers_come_late(tmp_path):
    times = np.arange(3000.0)
    widths = np.where(times < 2000, np.nan, times)
    table = pyarrow.table({"time": times, "width": widths})
    for number in range(2):  # what it has is served by the next server, too
        with embedded_tiled(tmp_path) as uri, from_uri(uri).context as context:
            if number == 0:
                root = from_context(context)
                root.create_appendable_table(table.schema, key="table").append_partition(0, table)
            found = from_uri(uri.replace("/api/v1", "/api/v1/metadata/table"))
            with found.context:
                np.testing.assert_array_equal(found.read()["width"], widths)
                np.testing.assert_array_equal(found["width"].read(), widths)
