"""Against a Tiled server with users, whose access tags say who may read and write what."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import httpx
import pytest
import yaml
from bluesky.plans import scan
from bluesky_tiled_plugins import TiledWriter
from live_path import free_port, settings, wait_for
from tiled.access_control.access_tags import AccessTagsCompiler
from tiled.access_control.scopes import ALL_SCOPES
from tiled.client import from_uri
from tiled.client.context import Context, password_grant
from tiled.server.connection_pool import close_database_connection_pool
from tiled.server.settings import DatabaseSettings
from tiled_fixtures import Live

from bluesky_denoise import DenoiseProcess
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.reprocessing import reprocess
from bluesky_denoise.server import embedded_tiled

ALL = ["read:data", "read:metadata", "write:data", "write:metadata", "create:node", "register"]
USERS = {"alice": "of alice", "bob": "of bob"}


def of_users(directory):
    return {
        "access_control": {
            "access_policy": "tiled.access_control.access_policies:TagBasedAccessPolicy",
            "args": {
                "provider": "here",
                "access_tags_parser": "tiled.access_control.access_tags:AccessTagsParser",
            },
        },
        "authentication": {
            "secret_keys": ["a" * 32],
            "providers": [
                {
                    "provider": "here",
                    "authenticator": "tiled.authenticators:DictionaryAuthenticator",
                    "args": {"users_to_passwords": USERS},
                }
            ],
        },
        "database": {"uri": f"sqlite:///{directory / 'users.db'}", "init_if_not_exists": True},
        "trees": [
            {
                "path": "/",
                "tree": "catalog",
                "args": {
                    "uri": str(directory / "catalog.db"),
                    "writable_storage": [
                        str(directory / "data"),
                        f"sqlite:///{directory / 'tables.db'}",
                    ],
                    "readable_storage": [str(directory.parent)],
                    "top_level_access_tags": ["beamline"],
                },
            }
        ],
        "streaming_cache": {"uri": "memory"},
    }


def give_tags(directory):
    """Both users may do all with what is tagged; only alice may tag by her proposal."""
    both = {"users": [{"name": name, "scopes": ALL} for name in USERS]}
    tags = {
        "tags": {"beamline": both, "proposal": both},
        "tag_owners": {"proposal": {"users": [{"name": "alice"}]}},
    }
    databases = [
        DatabaseSettings(uri=f"sqlite+aiosqlite:///{directory / name}")
        for name in ("catalog.db", "users.db")
    ]
    catalog, users = databases
    compiler = AccessTagsCompiler(
        ALL_SCOPES, tags, catalog, list, authn_database_settings=users, provider="here"
    )

    async def compile_all():
        await compiler.load_principal_tags()
        await compiler.compile()
        for database in databases:
            await close_database_connection_pool(database)

    compiler.load_tag_config()
    # In this thread it would leave no event loop for the tests that come after.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, compile_all()).result()


def key_of(url, user):
    with Context.from_any_uri(f"{url}/api/v1")[0] as context:
        link = context.server_info.authentication.providers[0].links["auth_endpoint"]
        tokens = password_grant(context.http_client, link, "here", user, USERS[user])
        context.configure_auth(tokens, remember_me=False)
        return context.create_api_key()["secret"]


@pytest.fixture(scope="module")
def uri_of(tmp_path_factory):
    """Return a function that gives the address of the server, with the key of a user."""
    directory = tmp_path_factory.mktemp("users") / "tiled"
    with embedded_tiled(directory):
        pass  # makes the catalog
    path = directory / "config.yml"
    path.write_text(yaml.safe_dump(of_users(directory)))
    port = free_port()
    command = [sys.executable, "-m", "tiled", "serve", "config", str(path), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with open(directory / "log.txt", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(partial(answers, url), what="Tiled")
        keys = {user: key_of(url, user) for user in USERS}
        give_tags(directory)
        yield lambda user: f"{url}/api/v1?api_key={keys[user]}"
    finally:
        server.terminate()
        server.wait(30)


def answers(url):
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def client_of(uri_of):
    with ExitStack() as stack:

        def client_of(user):
            client = from_uri(uri_of(user))
            stack.enter_context(client.context)
            return client

        yield client_of


@pytest.fixture
def denoised_by(RE, det, motor, uri_of, client_of, tmp_path):
    """Return a function that scans as alice, denoises as a user, and returns run and backups."""
    opened = []

    def denoised_by(user, **metadata):
        own = client_of("alice")
        RE.subscribe(TiledWriter(own, batch_size=1))
        opened.append(live := Live(tiled_uri=uri_of(user), backup_directory=tmp_path / "backup"))
        RE.subscribe(live.router)
        (uid,) = RE(scan([det], motor, -1, 1, 3), **metadata)
        left = live.sink.close(30)
        opened.remove(live)
        return own[uid], left

    yield denoised_by
    for live in opened:
        live.sink.close(1)


def test_who_has_no_key_and_cannot_log_in_is_told_so(uri_of, monkeypatch):
    monkeypatch.delenv("TILED_API_KEY", raising=False)
    with pytest.raises(SettingsError, match=r"wants an API key, and was given none\. Set"):
        DenoiseProcess(settings(tiled_uri=uri_of("alice").partition("?")[0]))


def tags(node):
    return list(node.access_tags)


@pytest.mark.thorough
def test_a_run_that_is_its_writers_alone_is_denoised_by_its_writer(denoised_by):
    run, left = denoised_by("alice")
    assert left == []
    assert list(run["denoised"].read()["raw_seq_num"]) == [1, 2, 3]
    assert tags(run.base) == tags(run.base["denoised"]) == ["user:alice"]


def test_what_is_derived_has_the_tags_of_the_raw_run(denoised_by, client_of):
    run, left = denoised_by("alice", tiled_access_tags=["proposal"])
    assert left == []
    stream = run.base["denoised"].base
    for node in (run.base, stream, stream["internal"], stream["det_image"]):
        assert tags(node) == ["proposal"]
    seen_by_bob = client_of("bob")[run.metadata["start"]["uid"]]
    assert list(seen_by_bob["denoised"].read()["raw_seq_num"]) == [1, 2, 3]


@pytest.mark.thorough
def test_who_may_not_tag_so_is_told_by_what_tiled_says(denoised_by, caplog):
    run, (path,) = denoised_by("bob", tiled_access_tags=["proposal"])
    assert list(run) == ["primary"]
    assert path.exists()
    assert "user='bob' is not an owner of tag='proposal'" in caplog.text
    assert "give a `tiled_api_key` of an owner of them" in caplog.text


@pytest.mark.thorough
def test_a_derived_run_of_the_archive_has_the_tags_of_the_raw_run(
    RE, det, motor, uri_of, client_of
):
    own = client_of("alice")
    RE.subscribe(TiledWriter(own, batch_size=1))
    for given in (["proposal"], None):
        with_tags = {"tiled_access_tags": given} if given else {}
        (uid,) = RE(scan([det], motor, -1, 1, 1), **with_tags)
        options = settings(
            tiled_uri=uri_of("alice"), tiled_layout="run", tiled_container="beside/denoised"
        )
        made = reprocess(own[uid], options)
        derived = own["beside/denoised"][made]
        for node in (derived.base, derived["denoised"].base):
            assert tags(node) == (given or ["user:alice"])
