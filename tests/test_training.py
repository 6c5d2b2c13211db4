import json
import resource
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from bluesky_denoise.errors import (
    CheckpointError,
    FrameValueError,
    SettingsError,
)
from bluesky_denoise.models.checkpoint import load_checkpoint, save_checkpoint
from bluesky_denoise.photons.thinning import check_photon_counts, thin
from bluesky_denoise.training.alone import alone_at
from bluesky_denoise.training.commands import train
from bluesky_denoise.training.data import sample_batch
from bluesky_denoise.training.fit import FitSettings, fit
from bluesky_denoise.training.losses import known_rate_loss, mean_deviance, remainder_loss
from bluesky_denoise.training.pairs import ThinnedFrames
from bluesky_denoise.training.progress import Seen
from bluesky_denoise.training.recipes import PhotonRecipe

QUICK = FitSettings(steps=3, pixels=2 * 64**2, sides_px=(64,))


@pytest.fixture(autouse=True)
def _few_windows(monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.fit.WINDOWS", 4)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def scan(tmp_path, rng):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = rng.poisson(3.0, (4, 80, 100)).astype(np.uint16)
        file["mask"] = np.zeros((80, 100), np.uint8)
    return path


def test_thinned_parts_add_up_and_are_independent_poisson(rng):
    counts = rng.poisson(6.0, (400, 500))
    first, rest = thin(counts, 0.25, rng)
    np.testing.assert_array_equal(first + rest, counts)
    # 200,000 pixels: standard errors of mean, Fano and correlation below 0.004.
    assert first.mean() == pytest.approx(1.5, abs=0.015)
    assert first.var() / first.mean() == pytest.approx(1, abs=0.015)
    assert np.corrcoef(first.ravel(), rest.ravel())[0, 1] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, np.nan])
def test_fractions_outside_zero_to_one_are_refused(fraction, rng):
    with pytest.raises(FrameValueError, match=r"it must be in \(0, 1\)"):
        thin(np.ones((16, 16), int), fraction, rng)


@pytest.mark.parametrize(
    "counts",
    [
        np.full((16, 16), 0.5),
        np.full((16, 16), -1),
        np.full((16, 16), 2**64 - 1, np.uint64),
        np.zeros((0, 16)),
    ],
)
def test_only_photon_counts_are_thinned(counts, rng):
    with pytest.raises(FrameValueError, match="integers >= 0, are needed"):
        thin(counts, 0.5, rng)


def test_corrected_frames_are_no_photon_counts():
    with pytest.raises(FrameValueError, match="dtype float64 cannot be thinned"):
        check_photon_counts(np.ones((16, 16)))


def test_negative_flags_must_be_masked(rng):
    counts = rng.poisson(3.0, (16, 16))
    counts[2, 2] = -1
    with pytest.raises(FrameValueError, match="least value of -1"):
        check_photon_counts(counts)
    check_photon_counts(counts, counts < 0)


def test_a_detector_gain_is_noticed(rng):
    with pytest.raises(FrameValueError, match="multiples of 4: a gain, not photons"):
        check_photon_counts(4 * rng.poisson(9.0, (2, 16, 16)))


def test_a_pedestal_is_noticed(rng):
    with pytest.raises(
        FrameValueError,
        match=r"Frame 0 cannot be thinned: counts scatter unlike photons \(variance / mean 0.00",
    ):
        check_photon_counts(1000 + rng.poisson(9.0, (2, 32, 32)))


def test_the_deviance_is_zero_at_the_truth_and_positive_elsewhere():
    truth = torch.full((1, 1, 16, 16), 0.3)
    valid = torch.ones_like(truth)
    assert mean_deviance(truth, truth, valid).item() == pytest.approx(0, abs=1e-6)
    assert mean_deviance(2 * truth, truth, valid).item() == pytest.approx(
        0.3 * (1 - np.log(2)), rel=1e-3
    )


def test_masked_pixels_are_in_no_loss():
    truth = torch.full((1, 1, 16, 16), 2.0)
    valid = torch.ones_like(truth)
    valid[..., :4] = 0
    wrong = torch.where(valid > 0, truth * 1.1, 1e6)
    assert mean_deviance(wrong, truth, valid) == pytest.approx(
        mean_deviance(1.1 * truth, truth, torch.ones_like(valid)).item(), rel=1e-4
    )
    ratio = torch.tensor([2.0])
    for loss in (known_rate_loss, lambda *args: remainder_loss(*args[:2], ratio, args[2])):
        assert torch.equal(loss(wrong, truth, valid), loss(wrong.clamp_max(7), truth, valid))


def test_a_smeared_line_costs_more_than_the_same_error_at_random():
    generator = torch.Generator().manual_seed(0)
    truth = torch.full((1, 1, 64, 64), 10.0)
    truth[..., 30:33] = 12
    line = torch.full_like(truth, 10.0 + 2 * 3 / 64)
    size = (line - truth).square().mean().sqrt()
    noisy = truth + size * torch.randn(truth.shape, generator=generator)
    valid = torch.ones_like(truth)
    assert mean_deviance(line, truth, valid) < 1.1 * mean_deviance(noisy, truth, valid)
    assert known_rate_loss(line, truth, valid) > known_rate_loss(noisy, truth, valid) + 0.5


def test_a_bright_peak_does_not_hide_a_bias_of_the_background_beside_it():
    generator = torch.Generator().manual_seed(0)
    valid, noise = torch.ones(1, 1, 64, 64), torch.randn(1, 1, 64, 64, generator=generator)

    def price(peak: float) -> float:
        """Say what a hollow of 6 % costs beside a bright area that keeps its noise."""
        truth = torch.full((1, 1, 64, 64), 5.0)
        truth[..., :40, :40] += peak
        seen = truth + 0.05 * noise
        seen[..., :40, :40] += noise[..., :40, :40] * truth[..., :40, :40] ** 0.5
        hollow = seen.clone()
        hollow[..., 44:60, 44:60] *= 0.94
        return (known_rate_loss(hollow, truth, valid) - known_rate_loss(seen, truth, valid)).item()

    # By frame and boxes alone it is 0.06.
    assert price(1e4) > 0.15
    assert price(1e4) == pytest.approx(price(1e5), abs=0.02)


def test_the_remainder_loss_is_least_at_the_true_rate():
    generator = torch.Generator().manual_seed(0)
    truth = torch.full((1, 1, 128, 128), 0.7)
    ratio = torch.tensor([9.0])
    rest = torch.poisson(9 * truth, generator=generator)
    losses = [
        remainder_loss(scale * truth, rest, ratio, torch.ones_like(truth)).item()
        for scale in (0.8, 1.0, 1.25)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_batches_are_seeded_masked_and_of_all_count_levels(rng):
    counts = rng.poisson(50.0, (3, 40, 200))
    real = ThinnedFrames(counts=counts, mask=np.zeros((40, 200), bool), name="scan")
    batch = sample_batch(40, 64, np.random.default_rng(1), [real])
    again = sample_batch(40, 64, np.random.default_rng(1), [real])
    np.testing.assert_array_equal(batch.counts, again.counts)
    assert batch.counts.shape == (40, 64, 64)
    assert (batch.counts[batch.mask] == 0).all()
    assert (batch.target[batch.mask] == 0).all()
    assert 5 < (batch.ratio > 0).sum() < 30
    means = batch.counts.mean((1, 2))
    assert means[means > 0].min() < 0.1
    assert means.max() > 100


def test_a_fit_writes_weights_with_their_card(tmp_path, scan):
    output = tmp_path / "mine.safetensors"
    seen = []
    fit(output, [scan], QUICK, report=seen.append)
    assert [now.step for now in seen if not now.error_bars] == [0, 1, 2]
    assert [now.error_bars for now in seen][-1] == 1
    assert all(np.isfinite(now.loss) for now in seen if not now.error_bars)
    _, card = load_checkpoint(output)
    assert card["training"]["steps"] == 3
    (entry,) = card["training"]["data"]
    assert entry["name"] == "scan"
    assert entry["training"] == "all frames"
    assert seen[-1].validation == pytest.approx(card["validation"]["last"]["percent"], abs=1e-3)
    assert card["validation"]["data"] == ["simulated scenes"]
    low, high = card["input"]["mean_counts_per_pixel"]
    assert 0 < low < high <= card["input"]["largest_counts_in_a_pixel"]
    assert json.loads(output.with_suffix(".json").read_text()) == card
    assert not output.with_suffix(".resume").exists()


def test_the_same_seed_gives_the_same_weights(tmp_path):
    first = fit(tmp_path / "a.safetensors", settings=QUICK, threads=1)
    again = fit(tmp_path / "b.safetensors", settings=QUICK, threads=1)
    other = fit(tmp_path / "c.safetensors", settings=replace(QUICK, seed=1), threads=1)
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_a_stopped_fit_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.fit.SAVE_EVERY", 2)
    whole = fit(tmp_path / "whole.safetensors", settings=QUICK, threads=1)

    def stop(now):
        if now.step == 2:
            raise KeyboardInterrupt

    output = tmp_path / "part.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(output, settings=QUICK, threads=1, report=stop)
    steps = []
    fit(output, settings=QUICK, threads=1, report=steps.append)
    assert [now.step for now in steps if not now.error_bars] == [2]
    assert output.read_bytes() == whole.read_bytes()


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / "part.resume").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"part\.resume cannot be read .* start afresh"):
        fit(tmp_path / "part.safetensors", settings=QUICK)


def test_a_stopped_fit_does_not_go_on_with_other_data(tmp_path, scan, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.fit.SAVE_EVERY", 1)
    output = tmp_path / "part.safetensors"

    def stop(now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(output, settings=QUICK, report=stop)
    with pytest.raises(CheckpointError, match=r"other data \[\], now \[\{'name': 'scan'"):
        fit(output, [scan], QUICK)


@pytest.mark.parametrize("changed", ["frames", "mask", "precision"])
def test_a_stopped_fit_goes_on_with_the_same_frames_and_precision_only(
    tmp_path, rng, monkeypatch, changed
):
    monkeypatch.setattr("bluesky_denoise.training.fit.SAVE_EVERY", 1)
    counts, mask = rng.poisson(3.0, (4, 64, 64)), np.zeros((64, 64), bool)
    output = tmp_path / "part.safetensors"

    def stop(now):
        if now.step == 1:
            raise KeyboardInterrupt

    def go_on(mixed=False, report=None):
        source = ThinnedFrames(counts=counts.copy(), mask=mask.copy(), name="scan")
        return fit(output, [source], QUICK, mixed_precision=mixed, device="cpu", report=report)

    with pytest.raises(KeyboardInterrupt):
        go_on(report=stop)
    if changed == "precision":
        with pytest.raises(CheckpointError, match="other mixed_precision False, now True"):
            go_on(mixed=True)
        return
    (counts if changed == "frames" else mask)[..., 3, 3] = 1
    with pytest.raises(CheckpointError, match=r"other frames or masks [0-9a-f]+, now [0-9a-f]+"):
        go_on()


def test_weights_are_not_written_over_those_started_from(tmp_path):
    first = fit(tmp_path / "a.safetensors", settings=QUICK)
    before = first.read_bytes()
    with pytest.raises(SettingsError, match=r"a\.safetensors cannot be written over the weights"):
        fit(first, settings=QUICK, start_from=str(first))
    assert first.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be written: .*File exists"):
        fit(tmp_path / "file" / "a.safetensors", settings=QUICK)


@pytest.mark.parametrize("name", ["a.safetensors", "a.json"])
def test_a_folder_in_place_of_weights_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(
        CheckpointError, match=rf"a\.safetensors cannot be written: .*{name} is a f"
    ):
        fit(tmp_path / "a.safetensors", settings=QUICK)


def test_what_is_no_card_is_not_replaced_by_one(tmp_path):
    (tmp_path / "notes.json").write_text('{"sample": "mine"}')
    with pytest.raises(CheckpointError, match=r"its card in notes\.json, which is .* no card"):
        fit(tmp_path / "notes.safetensors", settings=QUICK)
    assert (tmp_path / "notes.json").read_text() == '{"sample": "mine"}'


def test_two_trainings_do_not_write_one_place(tmp_path):
    output = tmp_path / "a.safetensors"
    with alone_at(output), pytest.raises(CheckpointError, match="Another training is writing"):
        fit(output, settings=QUICK)
    fit(output, settings=QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_a_lock_whose_file_has_just_been_removed_is_none(tmp_path, monkeypatch):
    def flock(file, how):  # the one that held it has ended since it was opened
        Path(file.name).unlink()

    monkeypatch.setattr("bluesky_denoise.training.alone.fcntl.flock", flock)
    with (
        pytest.raises(CheckpointError, match="Another training is writing"),
        alone_at(tmp_path / "a.safetensors"),
    ):
        pass


def test_weights_are_not_replaced_before_their_card_is_written(tmp_path):
    output = tmp_path / "a.safetensors"
    network, card = load_checkpoint("default")
    save_checkpoint(network, output, card)
    (tmp_path / "a.json.part").mkdir()  # nothing can be written there
    with torch.no_grad():
        next(network.parameters()).add_(1)
    with pytest.raises(CheckpointError, match=r"cannot be written: .* What was there is as it was"):
        save_checkpoint(network, output, card)
    assert load_checkpoint(output)[1]["sha256"] == card["sha256"]
    assert not output.with_name("a.safetensors.part").exists()


def test_what_is_lost_on_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.fit.SAVE_EVERY", 1)
    output = tmp_path / "a.safetensors"
    before = {}

    def fill(now):
        if now.step == 1:
            before.update({p.name: p.read_bytes() for p in tmp_path.glob("a.*")})
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            CheckpointError, match=r"too large.* after step 3\. The state saved last"
        ):
            fit(output, settings=QUICK, threads=1, report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert set(before) == {"a.safetensors", "a.json", "a.resume"}


def test_weights_that_diverged_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.fit.SAVE_EVERY", 1)
    output = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match=r"diverged: after \d steps at rates up to 1e\+30"):
        fit(output, settings=replace(QUICK, learning_rate=1e30), threads=1)
    assert not list(tmp_path.iterdir())


def test_the_range_of_counts_of_weights_that_saw_no_light_is_no_beginning():
    seen = {"mean_counts_per_pixel": [0.0, 0.0], "largest_counts_in_a_pixel": 0.0}
    assert Seen.after({"input": seen}) == Seen.after(None) == Seen()


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_only_cpu_and_cuda_are_devices(tmp_path, device):
    with pytest.raises(SettingsError, match=f"Device '{device}' cannot be used; expected cpu or"):
        fit(tmp_path / "a.safetensors", settings=QUICK, device=device)


def test_processes_draw_different_batches():
    recipe = PhotonRecipe(QUICK)
    first, second = (recipe.batch(0, [], rank, 2) for rank in (0, 1))
    assert first.counts.shape == second.counts.shape == (1, 64, 64)
    assert (first.counts != second.counts).any()


def test_the_best_and_the_last_score_of_a_held_out_block_are_in_the_card(
    tmp_path, rng, monkeypatch
):
    monkeypatch.setattr("bluesky_denoise.training.fit.SAVE_EVERY", 1)
    counts = rng.poisson(3.0, (40, 64, 64))
    source = ThinnedFrames(counts=counts, mask=np.zeros((64, 64), bool), name="long")
    seen = []
    output = tmp_path / "a.safetensors"
    fit(output, [source], QUICK, threads=1, report=lambda now: seen.append(now.validation))
    _, card = load_checkpoint(output)
    assert card["validation"]["data"] == ["long"]
    assert card["validation"]["last"] == {"step": 3, "percent": round(seen[2], 3)}
    best = int(np.argmin(seen))
    assert card["validation"]["best"] == {"step": best + 1, "percent": round(seen[best], 3)}
    assert card["training"]["data"][0]["held_out"] == "frames 32 to 39"


def test_a_stopped_fit_does_not_go_on_with_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.fit.SAVE_EVERY", 1)
    output = tmp_path / "part.safetensors"

    def stop(now):
        if now.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(output, settings=QUICK, report=stop)
    with pytest.raises(CheckpointError, match="belongs to a run with other settings"):
        fit(output, settings=replace(QUICK, steps=4))
    with pytest.raises(CheckpointError, match=r"parent None, now [0-9a-f]{64}"):
        fit(output, settings=QUICK, start_from="default")


def test_a_fit_can_start_from_the_shipped_weights(tmp_path):
    settings = replace(QUICK, steps=1, learning_rate=1e-9)
    output = fit(tmp_path / "a.safetensors", settings=settings, start_from="default")
    model, card = load_checkpoint(output)
    shipped, shipped_card = load_checkpoint("default")
    assert card["parent"] == {"weights": "default", "sha256": shipped_card["sha256"]}
    theirs = dict(shipped.named_parameters())
    for name, mine in model.named_parameters():
        if not name.startswith("error."):  # error bars are fitted anew
            torch.testing.assert_close(mine, theirs[name], rtol=1e-4, atol=1e-6)


def test_weights_of_another_network_are_no_start(tmp_path):
    with pytest.raises(CheckpointError, match="belong to network 'photon_exchange', not 'vdsr'"):
        fit(tmp_path / "a.safetensors", settings=replace(QUICK, model="vdsr"), start_from="default")


def test_weights_are_written_as_safetensors_only(tmp_path):
    with pytest.raises(CheckpointError, match=r"saved as \.safetensors, not as 'a\.pt'"):
        fit(tmp_path / "a.pt", settings=QUICK)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"sides_px": (20,)},
        {"sides_px": ()},
        {"recipe": "other"},
        {"pixels": -5},
        {"seed": 2**64},
        {"learning_rate": np.nan},
        {"learning_rate": np.inf},
        {"learning_rate": 0.0},
        {"spread_weight": np.nan},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(tmp_path, change):
    with pytest.raises(SettingsError, match="cannot be fitted"):
        fit(tmp_path / "a.safetensors", settings=replace(QUICK, **change))


def test_a_few_steps_learn_something(tmp_path):
    settings = FitSettings(steps=25, pixels=4 * 64**2, sides_px=(64,), learning_rate=3e-3)
    output = tmp_path / "a.safetensors"
    fit(output, settings=settings, threads=1)
    model, _ = load_checkpoint(output)
    rng = np.random.default_rng(5)
    truth = np.full((128, 128), 2.0, np.float32)
    counts = torch.from_numpy(rng.poisson(truth).astype(np.float32))[None, None]
    with torch.inference_mode():
        out = model(counts, torch.ones_like(counts)).numpy()
    assert np.mean((out - truth) ** 2) < 0.3 * 2.0


def test_strict_losses_cost_frames_that_are_far_off():
    truth = torch.full((1, 1, 16, 16), 100.0)
    valid = torch.ones_like(truth)
    near = known_rate_loss(1.001 * truth, truth, valid, 0.5) - known_rate_loss(
        1.001 * truth, truth, valid
    )
    far = known_rate_loss(2 * truth, truth, valid, 0.5) - known_rate_loss(2 * truth, truth, valid)
    assert near.item() == pytest.approx(0, abs=1e-3)
    # KL of 200 against 100 counts: 100 (1 - log 2); a raw frame has half a count.
    assert far.item() == pytest.approx(0.5 * 100 * (1 - np.log(2)) / 0.5, rel=1e-3)


def test_the_command_trains_on_a_folder_of_frames(tmp_path, scan):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(train)
    output = tmp_path / "out" / "mine.safetensors"
    arguments = [str(output), str(scan.parent), "--steps", "1", "--start-from", "default"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    _, card = load_checkpoint(output)
    assert [entry["name"] for entry in card["training"]["data"]] == ["scan"]
