"""What the command line says where something is wrong."""

import contextlib
import gc
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile

import bluesky.plans as bp
import pytest
import typer
from live_path import UNIT, Camera, poisson

from bluesky_denoise.catalog import denoised_streams
from bluesky_denoise.commands.terminal import open_catalog
from bluesky_denoise.settings import DenoiseSettings


@pytest.mark.parametrize("typed", [("runs", "-n", "-1"), ("catch-up", "settings.yaml", "-n", "0")])
def test_a_number_of_runs_below_one_is_refused(command, typed):
    said = command(*typed, code=2)
    assert "'-n'" in said
    assert ">=1" in said or "be greater than or equal" in said  # versions of typer differ


@pytest.mark.thorough
@pytest.mark.parametrize("number", [301, 10**20])
def test_more_runs_than_there_are_or_tiled_tells_of_at_once_may_be_asked_for(
    command, uid, monkeypatch, number
):
    monkeypatch.setattr("bluesky_denoise.commands.denoise._may_lack_frames", lambda *of: False)
    said = command("catch-up", "settings.yaml", "-n", str(number))
    assert re.search(r"0 of the newest [1-9]\d* runs are to be denoised", said)
    assert "no such runs" in command("runs", "-n", str(number), "--sample", "of nobody")


def test_a_package_that_lacks_is_named_with_the_extra_that_brings_it(tmp_path):
    (tmp_path / "scipy.py").write_text("raise ModuleNotFoundError('no', name='scipy.signal')")
    done = subprocess.run(
        [sys.executable, "-m", "bluesky_denoise.cli", "evaluate", "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "Error: this needs the package scipy, which is not installed: "
        "pip install 'bluesky-denoise[evaluation]'\n"
    )


def test_ctrl_c_while_the_program_is_imported_shows_no_traceback(tmp_path):
    press = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"
    (tmp_path / "typer.py").write_text(press)
    done = subprocess.run(
        [sys.executable, "-m", "bluesky_denoise", "runs"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        # A shell starts what it puts into the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_whether_the_picture_can_be_written_is_looked_at_before_the_demo(command, tmp_path):
    said = command("demo", "--picture", "nowhere/demo.png", code=1)
    assert "There is no folder nowhere for the picture" in said
    assert "demo.foo cannot be written" in command("demo", "--picture", "demo.foo", code=1)
    for folder in (".", "", str(tmp_path)):
        said = command("demo", "--picture", folder, code=1)
        assert "is a folder; expected the name of a picture" in said
    assert not (tmp_path / "demo_data").exists()


def test_a_demo_whose_data_can_go_nowhere_is_one_line_of_error(command, tmp_path):
    (tmp_path / "file").touch()
    said = command("demo", "--directory", "file", code=1)
    assert "No data can go into file: Not a directory. Name another --directory." in said
    assert "has a # or a ?" in command("demo", "--directory", "a#b", code=1)


def test_backups_without_a_server_are_one_line_of_error(command, tmp_path):
    (tmp_path / "none.yaml").write_text("frames_directory: x\n")
    assert "name no Tiled server" in command("replay-backup", "none.yaml", code=1)
    (tmp_path / "down.yaml").write_text("tiled_uri: http://127.0.0.1:9\n")
    said = " ".join(command("replay-backup", "down.yaml", code=1).split())
    assert "cannot be opened" in said
    assert "Give its address as `tiled_uri` of the settings." in said  # it takes no --uri


def test_an_empty_address_is_told(command):
    said = command("runs", "--uri", "", code=1)
    assert "--uri is empty; give the address of the Tiled server." in said


def test_a_port_that_is_taken_is_named(command, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "catalog.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        said = command("serve", "served", "--port", port, code=1)
    assert f"Port {port} cannot be used: Address already in use" in said


@pytest.mark.parametrize("typed", [["show"], ["export"], ["reprocess", "settings.yaml"]])
@pytest.mark.parametrize("wrong", ["abcdef12", "abc", "", "f" * 36])
def test_a_run_that_there_is_not_is_named(command, typed, wrong):
    output = command(*typed, wrong, code=1)
    assert f"There is no one run '{wrong}'" in output
    assert "as `bluesky-denoise runs` lists them" in output


def test_a_scan_id_in_place_of_a_uid_is_told_how_to_find_it(command):
    assert "as `bluesky-denoise runs --scan-id 1` lists them" in command("show", "1", code=1)


def test_weights_that_there_are_not_are_named(command, uid, tmp_path):
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(settings.replace(UNIT, "defalt"))
    assert "There are no weights 'defalt'; shipped are" in command(
        "reprocess", "wrong.yaml", uid, code=1
    )


def test_files_that_cannot_be_written_are_named(command, uid, tmp_path):
    command("reprocess", "settings.yaml", uid)
    said = command("show", uid, "--picture", "nowhere/a.png", code=1)
    assert "There is no folder nowhere for the picture" in said
    for folder in ("", "."):
        assert ". is a folder" in command("show", uid, "--picture", folder, code=1)
    (tmp_path / "full.png").symlink_to("/dev/full")
    said = command("show", uid, "--picture", "full.png", code=1)
    assert "full.png cannot be written: [Errno 28] No space left" in said
    assert "settings.yaml/x" in command("export", uid, "--directory", "settings.yaml/x", code=1)


def test_a_directory_that_tiled_may_not_read_is_named_and_the_stream_marked(
    command, uid, tiled, tmp_path
):
    settings = (tmp_path / "settings.yaml").read_text()
    with tempfile.TemporaryDirectory() as elsewhere:
        wrong = settings.replace("frames_directory: denoised", f"frames_directory: {elsewhere}")
        (tmp_path / "wrong.yaml").write_text(wrong)
        output = command("reprocess", "wrong.yaml", uid, code=1)
    assert f"Tiled may not read the frames under {elsewhere}" in output
    (stream,) = denoised_streams(tiled.client[uid])
    assert stream.exit_status == "fail"
    assert "may not read" in stream.reason
    assert f"{uid}: denoised as run" in command("reprocess", "settings.yaml", uid, "--again")


@pytest.mark.thorough
def test_a_stream_that_tiled_fails_to_read_costs_no_other_run(RE, command, uid, tiled, monkeypatch):
    camera = Camera(name="broken", func=poisson())  # with a table in Tiled for itself
    (broken,) = RE(bp.count([camera], 2))
    command("reprocess", "settings.yaml", broken)
    with_sources = tiled.client.include_data_sources()
    (source,) = with_sources[broken]["denoised"].base["internal"].data_sources()
    tables = source.assets[0].data_uri.removeprefix("sqlite://localhost/")
    with contextlib.closing(sqlite3.connect(tables)) as database:
        name = source.parameters["table_name"]
        database.execute(f'ALTER TABLE "{name}" RENAME COLUMN denoise_ok TO lost')
    # Some waiting there must be: after a failure the server closes the connection.
    monkeypatch.setattr("tiled.client.utils.TILED_RETRY_ATTEMPTS", 2)
    listed = command("runs", "-n", "2")
    told = command("catch-up", "settings.yaml", "-n", "2", code=1)
    assert re.search(rf"{broken[:8]} .*│ cannot be read, Tiled answers 500", listed)
    assert uid[:8] in listed
    assert f"{uid}: denoised as run" in told
    assert f"{broken}: Tiled failed to send or store data" in told


# The client of tiled that is refused leaves its sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
def test_the_wrong_key_and_what_is_no_address_are_named(command, monkeypatch):
    assert "expected an address such as" in command("runs", "--uri", "localhost:8000", code=1)
    for key in ("", "wrong"):
        monkeypatch.setenv("TILED_API_KEY", key)
        assert "Put it into TILED_API_KEY" in command("runs", code=1)
    gc.collect()


def test_a_server_that_is_not_there_is_named(command):
    output = command("runs", "--uri", "http://127.0.0.1:9", code=1)
    assert "Tiled at http://127.0.0.1:9 cannot be opened" in output.replace("\n", " ")


SERVE = """
from bluesky_denoise.server import embedded_tiled
with embedded_tiled("catalog") as uri:
    print(uri, flush=True)
    input()
"""


@pytest.mark.thorough
def test_a_server_that_goes_away_meanwhile_is_named(tmp_path, capsys):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    uri = server.stdout.readline().decode().strip()
    address, _, key = uri.partition("?api_key=")
    settings = DenoiseSettings(tiled_uri=address, tiled_api_key=key)

    def lose():
        with open_catalog(None, settings) as catalog:
            server.kill()
            server.communicate()
            list(catalog)

    with pytest.raises(typer.Exit):
        lose()
    assert f"Tiled at {address} cannot be reached any more" in capsys.readouterr().err


def test_wrong_settings_are_named(command, tmp_path):
    (tmp_path / "bad.yaml").write_text("exposure: 1\n")
    output = command("reprocess", "bad.yaml", "x", code=1)
    assert "unknown setting 'exposure'" in output
