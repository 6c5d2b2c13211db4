import json
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bluesky_denoise.cli import app
from bluesky_denoise.errors import CheckpointError, SettingsError
from bluesky_denoise.models import build_model
from bluesky_denoise.models.checkpoint import load_checkpoint, save_checkpoint
from bluesky_denoise.training.files import read_file
from bluesky_denoise.training.finetune import ADAPTING, finetune
from bluesky_denoise.training.pairs import ThinnedFrames
from bluesky_denoise.training.validation import HeldOut

QUICK = replace(ADAPTING, steps=20, pixels=3 * 64**2, sides_px=(64,), learning_rate=3e-3)


@pytest.fixture(autouse=True)
def _few_windows(monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.finetune.WINDOWS", 16)
    monkeypatch.setattr("bluesky_denoise.training.fit.WINDOWS", 4)


@pytest.fixture
def scan(tmp_path):
    """Write 40 frames of a smooth scene with lines."""
    rng = np.random.default_rng(0)
    rate = 2 + np.sin(np.linspace(0, 3, 96))[None] * np.ones((80, 1))
    rate[::8] += 6
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = rng.poisson(rate, (40, 80, 96)).astype(np.uint16)
        file.attrs["licence"] = "CC0-1.0"
    return path


@pytest.fixture
def untrained(tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "untrained.safetensors"
    save_checkpoint(build_model("photon_exchange"), path, {"model": "photon_exchange"})
    return path


def test_better_weights_are_kept_with_what_they_were_made_from(tmp_path, scan, untrained):
    output = tmp_path / "mine.safetensors"
    result = finetune(output, [read_file(scan)], QUICK, start_from=untrained, threads=1)
    assert result.promoted
    (comparison,) = result.comparisons.values()
    assert comparison.difference + 2 * comparison.error < 0
    _, card = load_checkpoint(output)
    assert card["parent"]["sha256"] == load_checkpoint(untrained)[1]["sha256"]
    (entry,) = card["training"]["data"]
    assert entry["training"] == "frames 0 to 21"
    assert entry["held_out"] == "frames 32 to 39"
    assert entry["licence"] == "CC0-1.0"
    (compared,) = card["metrics"]["held_out"]["compared_with"].values()
    assert compared["difference"] == pytest.approx(comparison.difference, abs=1e-3)
    assert sorted(path.name for path in tmp_path.glob("mine*")) == ["mine.json", "mine.safetensors"]


def test_worse_weights_leave_the_old_ones_as_they_were(tmp_path, scan):
    output = tmp_path / "mine.safetensors"
    model, card = load_checkpoint("default")
    save_checkpoint(model, output, {"model": card["model"], "note": "old"})
    before = [path.read_bytes() for path in (output, output.with_suffix(".json"))]
    ruin = replace(QUICK, steps=2, learning_rate=0.03, average=0.0)
    result = finetune(output, [read_file(scan)], ruin, threads=1)
    assert not result.promoted
    assert [*result.comparisons] == ["default", "mine.safetensors so far"]
    assert all(c.worse for c in result.comparisons.values())
    assert str(result).count(": worse") == 2
    assert re.search(r"simulated scenes: difference \+\d+\.\d\d ± .* to the parent", str(result))
    assert [path.read_bytes() for path in (output, output.with_suffix(".json"))] == before
    assert sorted(path.name for path in tmp_path.glob("mine*")) == ["mine.json", "mine.safetensors"]


def test_the_command_says_why_nothing_was_kept_and_fails(tmp_path, scan, monkeypatch):
    still = replace(QUICK, steps=1, learning_rate=1e-12)
    monkeypatch.setattr("bluesky_denoise.training.commands.ADAPTING", still)
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "mine.safetensors"
    arguments = ["finetune", str(output), str(scan), "--steps", "1", "--threads", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert re.search(r"difference [+-]0\.00 ± 0\.00: no better", result.output)
    assert "The new weights are not kept" in result.output
    split = "scan (thinned, 40 frames): trained on frames 0 to 21, held out frames 32 to 39"
    assert split in result.output
    assert "step 1: loss" in result.output
    assert not output.exists()


def test_one_short_run_cannot_be_adapted_to(tmp_path, scan):
    short = read_file(scan).block(0, 12)
    with pytest.raises(SettingsError, match=r"20% of it are held out after a gap of 10 frames"):
        finetune(tmp_path / "a.safetensors", [short], QUICK)


def test_of_several_short_runs_the_last_is_held_out(tmp_path, scan):
    counts = read_file(scan).counts
    mask = np.zeros(counts.shape[1:], bool)
    runs = [
        ThinnedFrames(counts=counts[i : i + 10], mask=mask, name=f"run {i}") for i in (0, 10, 20)
    ]
    result = finetune(tmp_path / "a.safetensors", runs, replace(QUICK, steps=1), threads=1)
    assert result.windows == 16


def test_integrating_detectors_are_refused_by_the_command(tmp_path):
    path = tmp_path / "flat_panel.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = np.rint(np.random.default_rng(0).normal(900, 4, (40, 64, 64))).astype("u2")
    output = tmp_path / "a.safetensors"
    result = CliRunner().invoke(app, ["finetune", str(output), str(path)])
    assert result.exit_code == 1
    assert "flat_panel: Frame 0 cannot be thinned" in " ".join(result.output.split())
    assert not output.exists()


def test_weights_are_checked_before_anything_is_trained(tmp_path, scan):
    output = tmp_path / "mine.safetensors"
    output.write_bytes(b"weights")
    output.with_suffix(".json").write_text(json.dumps({"model": "vdsr", "sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="their card says 000000000000"):
        finetune(output, [read_file(scan)], QUICK)
    with pytest.raises(CheckpointError, match=r"saved as \.safetensors, not as 'a\.pt'"):
        finetune(tmp_path / "a.pt", [read_file(scan)], QUICK)


def test_held_out_scores_tell_good_estimates_from_bad(scan):
    held_out = HeldOut([read_file(scan)], windows=8, shape=(80, 96))

    class Blurred(torch.nn.Module):
        def __init__(self, share):
            super().__init__()
            self.share = share

        def forward(self, counts, valid):
            mean = counts.mean((2, 3), keepdim=True)
            return (self.share * mean + (1 - self.share) * counts) * valid

    raw, half, mean = (held_out.scores(Blurred(share)) for share in (0.0, 0.5, 1.0))
    assert raw.mean() > half.mean() > 0
    assert held_out.compare(half, raw).better
    assert not held_out.compare(raw, half).better
    assert not held_out.compare(raw, raw).better
    # At few counts a mean of all is a good guess, and half of the noise is not.
    assert mean.mean() < half.mean()


def test_windows_of_one_frame_count_as_one():
    counts = np.random.default_rng(0).poisson(3.0, (4, 32, 32))
    source = ThinnedFrames(counts=counts, mask=np.zeros((32, 32), bool), name="a")
    held_out = HeldOut([source], windows=16, shape=(32, 32))
    difference = np.array([float(frame) for _, frame in held_out._groups])
    found = held_out.compare(difference, np.zeros(16))
    assert found.difference == pytest.approx(1.5)
    # Four frames 0, 1, 2, 3: their standard deviation over the root of four.
    assert found.error == pytest.approx(np.std([0, 1, 2, 3], ddof=1) / 2)
