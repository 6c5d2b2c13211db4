"""A raw catalog that may be read and not written: where the denoised stream goes then."""

from contextlib import ExitStack
from functools import partial

import bluesky.plans as bp
import httpx
import numpy as np
import pytest
import tiled.server.app
from bluesky_tiled_plugins import TiledWriter
from live_path import settings
from ophyd.sim import SynAxis
from process_fixtures import FRAMES, replay
from tiled.access_control.access_policies import DummyAccessPolicy
from tiled.access_control.scopes import ALL_SCOPES, PUBLIC_SCOPES
from tiled.client import from_context, from_uri
from tiled.client.utils import ClientError, handle_error

from bluesky_denoise import DenoiseProcess, denoised_streams, embedded_tiled, replay_backup
from bluesky_denoise.backup import backup_files, read_backup
from bluesky_denoise.errors import SettingsError, TiledUnavailable
from bluesky_denoise.in_tiled.layouts import explain, is_refusal
from bluesky_denoise.testing import validate_documents


class OnlyDerivedIsWritable(DummyAccessPolicy):
    """Everything may be read; only what lies in the container `derived` may be written."""

    async def allowed_scopes(self, node, *who):
        writable = (await node.path_segments())[:1] == ["derived"]
        return ALL_SCOPES if writable else PUBLIC_SCOPES


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve one catalog twice: as its raw writer sees it, and as the denoiser does."""
    with ExitStack() as stack:
        own = from_uri(stack.enter_context(embedded_tiled(tmp_path / "tiled", readable=[tmp_path])))
        stack.enter_context(own.context)
        refusing = partial(tiled.server.app.build_app, access_policy=OnlyDerivedIsWritable())
        monkeypatch.setattr(tiled.server.app, "build_app", refusing)
        uri = stack.enter_context(embedded_tiled(tmp_path / "tiled", readable=[tmp_path]))
        yield own, uri


def scan(RE, own, denoise):
    RE.subscribe(TiledWriter(own, batch_size=1))
    RE.subscribe(denoise)
    (uid,) = RE(bp.scan([replay()], SynAxis(name="motor"), -1, 1, 3))
    return uid


def check_raw(own, uid):
    assert list(own[uid]) == ["primary"]
    assert own[uid].stop["num_events"] == {"primary": 3}
    np.testing.assert_array_equal(own[uid]["primary"]["det_image"].read(), FRAMES[:3])


def test_what_the_raw_catalog_refuses_is_kept_and_can_go_elsewhere(
    RE, raw, served, tmp_path, logged
):
    own, uri = served
    options = settings(
        tiled_uri=uri,
        frames_directory=tmp_path / "denoised",
        backup_directory=tmp_path / "backup",
    )
    why = (
        "Tiled refuses, status 403: `tiled_api_key` may not write to the raw catalog. Give one "
        "that may, or use `tiled_layout` 'run' with a `tiled_container` that it may write to"
    )
    with DenoiseProcess(options) as denoise:
        uid = scan(RE, own, denoise)
        with pytest.raises(TiledUnavailable) as told:
            denoise.wait(60)
        (path,) = backup_files(tmp_path / "backup")
        assert str(told.value) == (
            f"Denoised, but not in Tiled: {uid:.8}. {why}. The results are kept in "
            f"{path.parent}; `bluesky-denoise replay-backup` brings them in."
        )
        denoise.wait(1)
    raw.validate()
    check_raw(own, uid)
    validate_documents(list(read_backup(path)))
    assert (
        f"of run {uid:.8} cannot be written to Tiled ({why}). Its documents are kept in {path}, "
        "and it is not tried again; `bluesky-denoise replay-backup` brings it in."
    ) in logged()
    assert logged().count("cannot be written to Tiled") == 1
    assert "1 denoised runs are not in Tiled but in" in logged()

    with pytest.raises(TiledUnavailable, match=f"1 are still in .*{path.name}: Tiled refuses"):
        replay_backup(options)
    own.create_container("derived")
    elsewhere = options.model_copy(update={"tiled_layout": "run", "tiled_container": "derived"})
    assert replay_backup(elsewhere) == [uid]
    assert backup_files(tmp_path / "backup") == []
    check_derived(own, uid)


@pytest.mark.thorough
def test_a_container_that_may_be_written_takes_the_runs_of_a_raw_catalog_that_may_not(
    RE, raw, served, tmp_path, logged
):
    own, uri = served
    own.create_container("derived")
    options = settings(
        tiled_uri=uri,
        tiled_layout="run",
        tiled_container="derived",
        frames_directory=tmp_path / "denoised",
    )
    with DenoiseProcess(options) as denoise:
        uid = scan(RE, own, denoise)
        denoise.wait(60)
    raw.validate()
    check_raw(own, uid)
    check_derived(own, uid)
    assert backup_files(options.backup_path) == []
    assert "cannot be written" not in logged()


def test_frames_that_tiled_may_not_read_are_told_with_the_first_run(
    RE, raw, tmp_path_factory, logged
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with embedded_tiled(tmp_path_factory.mktemp("tiled")) as uri:
        own = from_uri(uri)
        options = settings(tiled_uri=uri, frames_directory=elsewhere)
        with own.context, DenoiseProcess(options) as denoise:
            uid = scan(RE, own, denoise)
            denoise.wait(60)
            assert own[uid]["denoised"]["det_image"].shape == (3, *FRAMES.shape[1:])
    assert (
        f"denoised stream of run {uid:.8}, and cannot read its frames in {elsewhere} "
        "(HTTPStatusError: Server error '500 Internal Server Error'"
    ) in logged()
    assert "Add that directory to `readable_storage` in the server's configuration" in logged()


@pytest.mark.thorough
def test_a_container_that_cannot_be_made_is_told_when_it_is_built(served):
    _, uri = served
    with pytest.raises(SettingsError, match=r"refuses to be written to \(403\)"):
        DenoiseProcess(settings(tiled_uri=uri, tiled_layout="run"))


@pytest.mark.parametrize(
    ("status", "refused"),
    [(400, True), (401, True), (403, True), (413, True), (422, True)]
    + [(status, False) for status in (404, 408, 409, 410, 423, 429, 500, 502, 503)],
)
def test_what_a_server_says_for_good_is_told_from_what_may_pass(status, refused):
    response = httpx.Response(status, request=httpx.Request("POST", "http://tiled/api/v1"))
    with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever the client makes of it)
        handle_error(response)
    assert is_refusal(caught.value) is refused
    unknown = "it does not know `tiled_api_key`" in explain(caught.value, settings())
    assert unknown is (status == 401)


@pytest.mark.parametrize(("lacks", "or_inline"), [("register", True), ("write:data", False)])
def test_a_key_that_tiled_knows_and_that_may_too_little_is_told_so(lacks, or_inline):
    detail = f"Not enough permissions. Requires scopes ['{lacks}']. Request had scopes ['register']"
    request = httpx.Request("POST", "http://tiled/api/v1")
    with pytest.raises(ClientError) as caught:
        handle_error(httpx.Response(401, request=request, json={"detail": detail}))
    told = explain(caught.value, settings())
    assert f"{detail} http://tiled/api/v1. Give a `tiled_api_key` that has these scopes" in told
    assert ("or leave `frames_directory` out" in told) is or_inline


def check_derived(own, uid):
    (found,) = denoised_streams(own[uid], container="derived")
    np.testing.assert_array_equal(found.stream["det_image"].read(), FRAMES[:3] * 2)
    assert found.exit_status == "success"
    (run,) = from_context(own.context, node_path_parts=["derived"]).values()
    assert run.metadata["start"]["original_run_uid"] == uid
