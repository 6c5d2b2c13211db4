"""A command line against the server of the tests, a run to name in it, and programs."""

import runpy
import signal
import sys
from unittest.mock import Mock

import bluesky.plans as bp
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import ROOT, UNIT, Camera, poisson
from ophyd.sim import motor
from typer.testing import CliRunner

from bluesky_denoise.cli import app
from bluesky_denoise.commands.terminal import console


@pytest.fixture
def command(tiled, tmp_path, monkeypatch):
    """Return a function that runs bluesky-denoise against the server of the tests."""
    address, _, key = tiled.uri.partition("?api_key=")
    monkeypatch.setenv("TILED_API_KEY", key)
    monkeypatch.setenv("TILED_URI", address)
    # It took its width when it was imported, which another test may have done.
    monkeypatch.setattr(console, "width", 160)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(
        f"tiled_uri: {address}\nframes_directory: denoised\nmodel: {UNIT!r}\n"
    )

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, arguments, input="\n")
        assert code is None or result.exit_code == code, result.output
        return result.output

    return run


@pytest.fixture
def uid(RE, tiled):
    RE.subscribe(TiledWriter(tiled.client))
    camera = Camera(name="det", func=poisson(shape=(32, 40)), exposure_s=0.5)
    (uid,) = RE(bp.scan([camera], motor, -1, 1, 3, md={"sample": "lead"}))
    return uid


@pytest.fixture
def told(monkeypatch):
    """Return a function that runs a program in this process, and returns what it ends with."""

    def told(*command):
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(signal, "signal", Mock())
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        return ended.value.code

    return told
