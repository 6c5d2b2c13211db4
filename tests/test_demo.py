"""The main job from end to end, and the examples, as a user starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from live_path import UNIT
from tiled.client import from_uri
from tiled.structures.core import Spec
from typer.testing import CliRunner

from bluesky_denoise.backup import BackupFile
from bluesky_denoise.cli import app

ROOT = Path(__file__).parents[1]
TOLD = {
    "01": r"denoised \(5, 195, 487\) float32 counts / s",
    "02": r"counts kept: 1\.00000",
    "03": r"denoised_2 default \w{8} success 3\ndenoised default \w{8} success 3",
}
"""What each example prints, by its number."""
EXAMPLES = sorted((ROOT / "examples").glob("0[123]*.py"))  # test_plans_docs has the others


def test_the_demo_removes_nothing_but_an_earlier_demo(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "frames.h5").write_text("of the beamtime")
    result = CliRunner().invoke(app, ["demo", "--directory", str(tmp_path / "data")])
    assert result.exit_code == 1
    assert "is not of an earlier demo" in result.output
    assert (tmp_path / "data" / "frames.h5").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)  # a loaded machine takes ten times as long as a free one
def test_the_demo_ends_in_words_and_in_a_picture(tmp_path):
    command = [sys.executable, "-m", "bluesky_denoise.cli", "demo"]
    done = subprocess.run(
        [*command, "--directory", "data", "--picture", "demo.png"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stderr
    scores = dict(re.findall(r"(raw|Gaussian|denoised)[ 1s]* │ +([\d.]+)", done.stdout))
    contrast = float(re.search(r"denoised 1 s[ │]+[\d.]+ │ +([\d.]+)", done.stdout)[1])
    raw, gaussian, denoised = (float(scores[name]) for name in ("raw", "Gaussian", "denoised"))
    assert denoised <= raw / 10
    assert denoised < gaussian
    assert abs(contrast - 1) <= 0.10
    assert "scanned" in done.stdout
    assert "31/31" in done.stdout
    assert re.search(r'cat\["\w{8}"\]\["denoised"\]\["pilatus_image"\]\.read\(\)', done.stdout)
    assert re.search(r"http://127\.0\.0\.1:\d+/ui/browse/[\w-]+/denoised/pilatus", done.stdout)
    picture = (tmp_path / "demo.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) > 50_000

    said = served_until_sigterm(tmp_path)
    assert "1 runs at http://" in said
    assert "/denoised/pilatus_image?api_key=" in said
    assert "until Ctrl-C, or SIGTERM" in said


def served_until_sigterm(tmp_path):
    """Serve the data of the demo without a terminal; return what that prints."""
    command = [sys.executable, "-m", "bluesky_denoise", "serve", "data", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        said = ""
        while line := process.stdout.readline():
            said += line
            if "SIGTERM" in line:
                client = from_uri(re.search(r" at (http\S+)", said)[1])
                with client.context:
                    assert len(client) == 1
                process.terminate()
        assert process.wait(20) == 0
    return said


@pytest.mark.thorough
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example, tmp_path):
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(TOLD[example.stem[:2]], done.stdout), done.stdout


def test_serve_refuses_what_is_no_server_directory(tmp_path):
    result = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no catalog; expected a directory that embedded_tiled has made" in result.stderr


def test_replay_backup_says_what_it_wrote(tiled, tmp_path, monkeypatch):
    address, _, key = tiled.uri.partition("?api_key=")
    monkeypatch.setenv("TILED_API_KEY", key)
    raw = tiled.client.create_container(
        "0" * 32,
        metadata={"start": {"uid": "0" * 32}},
        specs=[Spec("BlueskyRun", version="3.0")],
    )
    start = {
        "uid": "1" * 32,
        "time": 0.0,
        "original_run_uid": raw.item["id"],
        "denoise": {"model": "unit"},
    }
    stop = {"uid": "2" * 32, "run_start": start["uid"], "exit_status": "success", "time": 1.0}
    BackupFile(tmp_path / "backup", start["uid"]).append([("start", start), ("stop", stop)])
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"tiled_uri: {address}\nbackup_directory: backup\nmodel: {UNIT!r}\n")
    result = CliRunner().invoke(app, ["replay-backup", str(settings)])
    assert result.exit_code == 0, result.output
    assert f"{raw.item['id']}: in Tiled\n1 runs were written." in result.output
    assert not list((tmp_path / "backup").glob("*.jsonl"))
