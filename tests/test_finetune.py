import json
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bluesky_denoise.cli import app
from bluesky_denoise.errors import CheckpointError, FrameValueError, SettingsError
from bluesky_denoise.models.checkpoint import load_checkpoint, save_checkpoint
from bluesky_denoise.training.files import read_file
from bluesky_denoise.training.finetune import ADAPTING, Adapted, _may_be_kept, finetune
from bluesky_denoise.training.pairs import MeasuredPairs, Repeats, ThinnedFrames
from bluesky_denoise.training.validation import Comparison, HeldOut

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
    """Write weights that have forgotten much, and their range of counts."""
    torch.manual_seed(3)
    path = tmp_path / "untrained.safetensors"
    network, _ = load_checkpoint("default")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    seen = {"mean_counts_per_pixel": [1e-9, 1.0], "largest_counts_in_a_pixel": 1e7}
    save_checkpoint(network, path, {"model": "photon_exchange", "input": seen})
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
    assert card["input"]["mean_counts_per_pixel"][0] == 1e-9
    assert card["input"]["mean_counts_per_pixel"][1] > 1
    assert card["input"]["largest_counts_in_a_pixel"] == 1e7
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


@pytest.mark.parametrize("kind", [ThinnedFrames, Repeats])
def test_few_held_out_frames_are_refused_before_anything_is_trained(tmp_path, scan, kind):
    whole = read_file(scan)
    number = 3 if kind is ThinnedFrames else 7
    runs = [
        kind(counts=whole.counts[cut], mask=whole.mask, name=name)
        for cut, name in ((slice(20), "a"), (slice(30, 30 + number), "b"))
    ]
    with pytest.raises(SettingsError, match=r"3 independent frames .* of b; expected 4 or more"):
        finetune(
            tmp_path / "a.safetensors",
            runs[:1],
            replace(QUICK, held_out_share=0),
            held_out=runs[1:],
        )
    assert not list(tmp_path.glob("a.*"))


def test_weights_far_worse_than_a_gaussian_are_not_kept():
    better = {"default": Comparison(-50.0, 1.0)}
    assert _may_be_kept(99.0, better)
    assert not _may_be_kept(101.0, better)
    told = str(Adapted(False, 101.0, {"default": 151.0}, better, Comparison(0.0, 1.0), 16))
    assert "more than 100 % worse than a Gaussian: they are not kept" in told


@pytest.mark.thorough
def test_the_verdict_is_of_photons_that_the_progress_bar_has_not_shown(tmp_path, scan, monkeypatch):
    shown = []

    class Recorded(HeldOut):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            shown.append([pair.target for pair in self._pairs])

    for module in ("fit", "finetune"):
        monkeypatch.setattr(f"bluesky_denoise.training.{module}.HeldOut", Recorded)
    finetune(tmp_path / "a.safetensors", [read_file(scan)], replace(QUICK, steps=1), threads=1)
    verdict, bar, simulated = shown
    assert simulated
    assert not any(np.array_equal(a, b) for a in verdict for b in bar)


@pytest.mark.thorough
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
    # Four frames 0, 1, 2, 3: their standard deviation over the root of four; Student's t of three
    # degrees of freedom has 3.307 where a normal distribution has 2, to 1 % by the series.
    assert found.error == pytest.approx(np.std([0, 1, 2, 3], ddof=1) / 2 * 3.307 / 2, rel=0.01)


@pytest.mark.parametrize(("kind", "frames"), [(ThinnedFrames, 3), (Repeats, 7)])
def test_fewer_than_four_frames_compare_nothing(kind, frames):
    counts = np.random.default_rng(0).poisson(3.0, (frames, 32, 32))
    source = kind(counts=counts, mask=np.zeros((32, 32), bool), name="a")
    held_out = HeldOut([source], windows=16, shape=(32, 32))
    found = held_out.compare(np.arange(16.0), np.full(16, 1000.0))
    assert held_out.frames == 3
    assert found.error == np.inf
    assert not found.better


def test_windows_of_repeats_share_no_noise():
    counts = np.random.default_rng(0).poisson(3.0, (9, 32, 32))
    source = Repeats(counts=counts, mask=np.zeros((32, 32), bool), name="a")
    pairs = HeldOut([source], windows=8, shape=(32, 32))._pairs
    for pair in pairs:
        np.testing.assert_array_equal(pair.counts, counts[2 * pair.frame])
        np.testing.assert_array_equal(pair.target, counts[2 * pair.frame + 1])
    assert {pair.frame for pair in pairs} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("targets", "message"),
    [(np.zeros, "no counts in 4 windows .* of a; expected"), (np.ones, "predicts the held-out c")],
)
def test_held_out_frames_that_tell_nothing_are_refused(targets, message):
    source = MeasuredPairs(
        counts=np.full((4, 32, 32), 2),
        targets=targets((4, 32, 32)),
        ratios=np.full(4, 0.5),
        mask=np.zeros((32, 32), bool),
        name="a",
    )
    with pytest.raises(FrameValueError, match=message):
        HeldOut([source], windows=4, shape=(32, 32))
