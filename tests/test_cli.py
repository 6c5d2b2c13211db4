import re

import bluesky.plans as bp
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import UNIT, Camera, poisson
from ophyd.sim import motor
from typer.testing import CliRunner

from bluesky_denoise.cli import app


@pytest.fixture
def command(tiled, tmp_path, monkeypatch):
    """Return a function that runs bluesky-denoise against the server of the tests."""
    address, _, key = tiled.uri.partition("?api_key=")
    monkeypatch.setenv("TILED_API_KEY", key)
    monkeypatch.setenv("TILED_URI", address)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(
        f"tiled_uri: {address}\nframes_directory: denoised\nmodel: {UNIT!r}\n"
    )

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        return result.output

    return run


@pytest.fixture
def uid(RE, tiled):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    camera = Camera(name="det", func=poisson(shape=(32, 40)), exposure_s=0.5)
    (uid,) = RE(bp.scan([camera], motor, -1, 1, 3, md={"sample": "lead"}))
    return uid


def test_runs_are_listed_denoised_and_shown(command, uid, tmp_path):
    assert re.search(rf"{uid[:8]} │ 1 +│ scan +│ lead +│ +│", command("runs"))
    assert "has no denoised stream" in command("show", uid[:8], code=1)
    assert "denoised as run" in command("reprocess", "settings.yaml", uid[:8])
    assert re.search(rf"{uid[:8]} .* denoised +│ unit +│ 3 +│ success", command("runs"))
    shown = command("show", uid[:8], "--event", "2", "--picture", "event.png")
    assert "model: unit" in shown
    assert "frames not ok: 0" in shown
    assert (tmp_path / "event.png").stat().st_size > 10_000


def test_catch_up_denoises_what_lacks_a_denoised_stream_and_only_that(command, uid):
    assert f"{uid}: denoised as run" in command("catch-up", "settings.yaml", "-n", "1")
    assert "0 of the newest 1 runs" in command("catch-up", "settings.yaml", "-n", "1")


def test_runs_are_searched_by_sample_and_scan_id(command, uid):
    assert uid[:8] in command("runs", "--sample", "lead", "--scan-id", "1", "-n", "100")
    assert uid[:8] not in command("runs", "--sample", "gold")


def test_a_server_that_is_not_there_is_named(command):
    output = command("runs", "--uri", "http://127.0.0.1:9", code=1)
    assert "Tiled at http://127.0.0.1:9 cannot be opened" in output.replace("\n", " ")


def test_wrong_settings_are_named(command, tmp_path):
    (tmp_path / "bad.yaml").write_text("exposure: 1\n")
    output = command("reprocess", "bad.yaml", "x", code=1)
    assert "unknown setting 'exposure'" in output


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_forwarded_commands_show_their_own_help(command, name):
    assert f"Usage: bluesky-denoise {name}" in command(name, "--help")
