import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.cost import macs_per_pixel
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.errors import CheckpointError, ModelNotFound
from bluesky_denoise.models import build_model, kernels, spots
from bluesky_denoise.models import photon_exchange as pe
from bluesky_denoise.models.checkpoint import (
    WEIGHTS,
    load_checkpoint,
    resolve_checkpoint,
    save_checkpoint,
)
from bluesky_denoise.models.irunet import IRUNet


@pytest.fixture
def network():
    """Random weights, ten times larger than usual, so that shares are uneven."""
    torch.manual_seed(1)
    model = build_model("photon_exchange").eval()
    with torch.no_grad():
        for layer in [*model.outs, model.out_full]:
            layer.weight *= 10
    return model


def frames(seed: int = 0, side: int = 96):
    generator = torch.Generator().manual_seed(seed)
    level = 10 ** (4 * torch.rand(2, 1, side, side, generator=generator) - 2)
    counts = torch.poisson(level, generator=generator)
    valid = (torch.rand(2, 1, side, side, generator=generator) > 0.05).float()
    valid[:, :, 40:52] = 0
    counts[0, 0, 20, 20] = 1e6
    valid[0, 0, 20, 20] = 1
    return counts * valid, valid


@pytest.mark.parametrize("level", range(pe.LEVELS))
def test_every_kernel_is_a_symmetric_matrix_with_rows_of_at_most_one(network, level):
    side = 16
    basis = torch.eye(side * side, dtype=torch.float64).reshape(side * side, 1, side, side)
    for spread in network.banks[level]:
        matrix = spread(basis).reshape(side * side, side * side)
        # Rounding of float64.
        torch.testing.assert_close(matrix, matrix.T, atol=1e-12, rtol=0)
        assert matrix.min() >= 0
        assert matrix.sum(1).max() <= 1 + 1e-12
        own = matrix.diagonal().reshape(side, side)[4:-4, 4:-4]  # two rounds of what has places
        assert spread.centre == pytest.approx(float(own.mean()), rel=1e-2)


@pytest.mark.parametrize("step", [*pe.DIRECTIONS, *pe.BETWEEN])
def test_a_line_goes_in_its_direction(step):
    image, expected = torch.zeros(2, 1, 1, 15, 15)
    image[..., 7, 7] = 16
    for i in range(-3, 4):
        expected[..., 7 + i * step[0], 7 + i * step[1]] = 4 - abs(i)
    assert torch.equal(kernels.line(*step)(image), expected)


def test_halving_keeps_what_is_flat():
    flat = torch.full((1, 1, 6, 8), 3.0)
    assert torch.equal(kernels.halve(flat, 2), flat[..., :3, :])
    assert torch.equal(kernels.halve(flat, 3), flat[..., :4])


def test_up_is_four_times_the_transpose_of_down():
    basis = torch.eye(256, dtype=torch.float64).reshape(256, 1, 16, 16)
    down = kernels.down(basis).reshape(256, 64)  # pixel -> coarse pixel
    coarse = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    up = kernels.up(coarse).reshape(64, 256)
    torch.testing.assert_close(up.T, 4 * down, atol=1e-12, rtol=0)


def test_random_weights_conserve_counts_with_masks_and_a_hot_pixel(network):
    counts, valid = frames()
    with torch.inference_mode():
        out = network(counts, valid)
    total, expected = out.double().sum((1, 2, 3)), counts.double().sum((1, 2, 3))
    # float32 sums over 9216 pixels.
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    assert out.min() >= 0
    assert (out[valid == 0] == 0).all()


def test_random_weights_keep_a_flat_frame_flat_up_to_masks_and_borders(network):
    _, valid = frames()
    with torch.inference_mode():
        out = network(7 * valid, valid)
    # Rounding only: rows and columns of the matrix sum to one.
    torch.testing.assert_close(out, 7 * valid, rtol=1e-5, atol=1e-5)


def test_a_hot_pixel_stays_where_it_is(network):
    counts, valid = frames()
    hot = counts.clone()
    hot[0, 0, 20, 20] = 1e6
    with torch.inference_mode():
        out = network(hot, valid)
    near = out[0, 0, 17:24, 17:24].clone()
    assert near[3, 3] == pytest.approx(1e6, rel=1e-6)
    near[3, 3] = 0
    # The brightest level of the scene is 100 counts.
    assert near.max() < 150


def test_a_sharp_spot_stays_as_counted_and_a_line_does_not(network):
    counts = torch.poisson(torch.full((1, 1, 64, 64), 2.0), generator=torch.manual_seed(0))
    counts[0, 0, 20, 20:22] = torch.tensor([60.0, 40.0])
    counts[0, 0, :, 50] = 60
    with torch.inference_mode():
        out = network(counts, torch.ones_like(counts))
    # More than ten standard deviations above all pixels 3 away.
    torch.testing.assert_close(out[0, 0, 20, 20:22], counts[0, 0, 20, 20:22], rtol=1e-3, atol=0)
    assert (out[0, 0, :, 50] - 60).abs().max() > 1


def test_a_dark_pixel_beside_a_spot_is_not_told_to_be_dark_for_ever(network):
    """It counted nothing by chance, as the pixels farther away did here and there."""
    counts = torch.ones((1, 1, 64, 64))
    counts[0, 0, 20, 20] = 300
    counts[0, 0, 21, 20] = 0
    with torch.inference_mode():
        out = network(counts, torch.ones_like(counts))[0, 0]
    assert out[20, 20] == pytest.approx(300, rel=1e-3)
    assert out[21, 20] > 0.1


@pytest.mark.parametrize("slope", [0.0, 0.2, 0.41, 0.7, 1.0])
def test_no_line_of_any_slope_is_taken_for_spots(slope):
    rows, cols = np.mgrid[:96, :96]
    across = (cols - 20 - slope * rows) / np.hypot(1, slope)
    rate = 2 + 300 * np.exp(-0.5 * (across / 0.8) ** 2)
    counts = torch.from_numpy(np.random.default_rng(0).poisson(rate).astype(np.float32))
    counts = counts[None, None]
    inner = spots.excess(counts, spots.ring_maximum(counts))[..., 8:-8, 8:-8]
    # Noise along the line alone: neighbours differ by a few standard deviations.
    assert inner.max() < 5.5


def test_the_image_beside_the_counts_is_spread_as_they_are(network):
    counts = torch.poisson(torch.full((1, 1, 32, 48), 3.0))
    valid = torch.ones_like(counts)
    valid[..., 20:24] = 0
    found = network.estimate(counts * valid, valid, 2 * counts * valid)
    torch.testing.assert_close(found.spread, 2 * found.counts)
    torch.testing.assert_close(found.counts, network(counts * valid, valid))


def test_the_weight_of_a_pixels_own_counts_is_that_in_the_matrix(network):
    counts, valid = frames(side=48)
    with torch.inference_mode():
        told = network.estimate(counts, valid).own
        shares, _ = network.shares(counts, valid)
        far = []
        for row, col in [(3, 5), (20, 20), (20, 21), (30, 8), (41, 45)]:
            one = torch.zeros_like(counts)
            one[:, :, row, col] = 1
            (moved,), *_ = network._moved(shares, valid, one)
            far.append((moved - told)[:, 0, row, col] * valid[:, 0, row, col])
    far = torch.stack(far)
    # Coarser levels, which are left out, give back at most an eighth; `long` depends on the place.
    assert far.max() < 0.125
    assert far.min() > -0.01
    assert told.max() <= 1 + 1e-5
    assert told[0, 0, 20, 20] == pytest.approx(1, abs=1e-4)  # a hot pixel


def test_masked_pixels_do_not_change_the_others(network):
    counts, valid = frames()
    with torch.inference_mode():
        out = network(counts, valid)
        again = network(torch.where(valid == 0, 0.0, counts), valid)
    assert torch.equal(out, again)


def test_an_empty_frame_gives_zeros_without_warning(network):
    with torch.inference_mode():
        out = network(torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32))
    assert (out == 0).all()


@pytest.mark.parametrize("level", [1e-3, 1.0, 1e4])
def test_gradients_are_finite_at_every_count_level(level):
    torch.manual_seed(0)
    model = build_model("photon_exchange")
    counts = torch.poisson(torch.full((1, 1, 64, 64), level))
    valid = torch.ones_like(counts)
    valid[:, :, :, 30:40] = 0
    model(counts * valid, valid).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def published_cost(name):
    """Return the parameters of all convolutions, and their products for each pixel of a frame."""
    side, cost = 64, [0, 0.0]

    def add(layer, inputs, output):
        cost[0] += sum(p.numel() for p in layer.parameters())
        pixels = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        cost[1] += layer.weight.numel() * pixels[0, 0].numel() / side**2

    model = build_model(name)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(add)
    with torch.inference_mode():
        model(torch.ones(1, 1, side, side), torch.ones(1, 1, side, side))
    return tuple(cost)


@pytest.mark.parametrize(
    ("name", "parameters", "products"),
    # By hand, from the layers of the released TensorFlow code.
    [("vdsr", 702_849, 701_568), ("irunet", 1_954_497, 325_680)],
)
def test_published_networks_have_the_published_sizes(name, parameters, products):
    assert published_cost(name) == (parameters, products)
    assert published_cost(f"{name}_paper") == (parameters, products)


def test_the_default_network_is_small():
    assert sum(p.numel() for p in build_model("photon_exchange").parameters()) < 350_000


def test_irunet_sees_at_least_201_pixels():
    model = IRUNet(channels=1).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    widths = []
    for middle in (152, 159, 144):
        scaled = torch.ones(1, 1, 304, 304, dtype=torch.float64, requires_grad=True)
        model.published(scaled)[0, 0, middle, middle].backward()
        seen = scaled.grad[0, 0].abs().sum(0).nonzero().flatten()
        widths.append(int(seen.max() - seen.min() + 1))
        assert max(middle - int(seen.min()), int(seen.max()) - middle) <= model.field_px
    assert min(widths) >= 201


def test_vdsr_sees_43_pixels():
    torch.manual_seed(0)
    model = build_model("vdsr")
    counts = torch.ones(1, 1, 65, 65, requires_grad=True)
    model.body(counts)[0, 0, 32, 32].backward()
    seen = counts.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (32 - 21, 32 + 21)


@pytest.mark.parametrize("name", ["vdsr", "irunet", "vdsr_paper", "irunet_paper"])
def test_published_networks_give_counts(name):
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((1, 1, 32, 32), 5.0))
    with torch.inference_mode():
        out = build_model(name)(counts, torch.ones_like(counts))
    assert out.shape == counts.shape
    assert out.min() >= 0


def test_a_saved_network_loads_as_it_was(tmp_path, network):
    path = tmp_path / "mine.safetensors"
    card = save_checkpoint(network, path, {"model": "photon_exchange", "note": "random"})
    loaded, found = load_checkpoint(path)
    assert found == card
    assert found["note"] == "random"
    counts, valid = frames(side=32 + 64)
    with torch.inference_mode():
        assert torch.equal(loaded(counts, valid), network(counts, valid))


def test_unknown_weights_name_those_that_exist():
    with pytest.raises(ModelNotFound, match=r"no weights 'nothing'; shipped are .*default"):
        resolve_checkpoint("nothing")


def test_a_path_that_leads_nowhere_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no weights at .*gone\.safetensors"):
        resolve_checkpoint(tmp_path / "gone.safetensors")


def test_a_name_cannot_leave_the_folder_of_weights():
    with pytest.raises(ModelNotFound, match=r"no weights '\.\./weights/default'"):
        resolve_checkpoint("../weights/default")


def test_an_unknown_network_names_those_that_exist():
    with pytest.raises(ModelNotFound, match="no network 'resnet'; there are blur_bank, irunet"):
        build_model("resnet")


@pytest.fixture
def copy(tmp_path):
    for suffix in (".safetensors", ".json"):
        shutil.copy(WEIGHTS / f"default{suffix}", tmp_path)
    return tmp_path / "default.safetensors"


def test_a_damaged_file_is_refused(copy):
    data = bytearray(copy.read_bytes())
    data[-100] ^= 1
    copy.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"sha256 .* their card says .* damaged"):
        load_checkpoint(copy)


def test_a_truncated_file_is_refused(copy):
    copy.write_bytes(copy.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"sha256 .* their card says .* damaged"):
        load_checkpoint(copy)


def with_card(path, **entries):
    """Change the card of weights; None takes an entry out."""
    card = json.loads(path.with_suffix(".json").read_text()) | entries
    kept = {key: value for key, value in card.items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(kept))


def test_a_file_that_is_no_safetensors_is_refused(copy):
    copy.write_bytes(b"PK weights")
    with_card(copy, sha256=hashlib.sha256(b"PK weights").hexdigest())
    with pytest.raises(CheckpointError, match="do not fit network 'photon_exchange': Error while"):
        load_checkpoint(copy)


def test_the_card_of_other_weights_is_refused(copy, network):
    other = copy.with_name("other.safetensors")
    save_checkpoint(network, other, {"model": "photon_exchange"})
    shutil.copy(other.with_suffix(".json"), copy.with_suffix(".json"))
    with pytest.raises(CheckpointError, match="or the card belongs to others"):
        load_checkpoint(copy)


@pytest.mark.parametrize("missing", ["model", "sha256"])
def test_a_card_that_lacks_an_entry_is_refused(copy, missing):
    with_card(copy, **{missing: None})
    with pytest.raises(CheckpointError, match=f"'{missing}'.*it needs `model` and `sha256`"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    "stretch",
    [[1.0], {"a": 1.0}, {"0.68": None}, {"0.68": math.nan}, {"0.9": 0}, {"68": 1.0}],
    ids=str,
)
def test_a_card_whose_stretch_is_none_is_refused(copy, stretch):
    with_card(copy, stretch=stretch)
    with pytest.raises(CheckpointError, match=r"has a stretch of .*; expected factors above 0"):
        Denoiser.load(copy)


def test_a_card_that_is_a_list_is_refused(copy):
    copy.with_suffix(".json").write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(copy)


def test_a_network_that_this_version_does_not_know_is_named(copy):
    with_card(copy, model="unet9000")
    with pytest.raises(ModelNotFound, match="no network 'unet9000'; there are blur_bank, irunet"):
        load_checkpoint(copy)


def test_weights_that_cannot_be_written_leave_the_old_ones(copy, network):
    before = copy.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(network, copy, {"model": "photon_exchange", "note": object()})
    assert copy.read_bytes() == before
    load_checkpoint(copy)


def test_weights_without_a_card_are_refused(copy):
    copy.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=r"have no card; expected default\.json"):
        load_checkpoint(copy)


def test_a_card_that_is_no_json_is_refused(copy):
    copy.with_suffix(".json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(copy)


def test_weights_of_another_network_are_refused(copy):
    card = json.loads(copy.with_suffix(".json").read_text())
    copy.with_suffix(".json").write_text(json.dumps(card | {"model": "vdsr"}))
    with pytest.raises(CheckpointError, match="do not fit network 'vdsr'"):
        load_checkpoint(copy)


def test_the_shipped_card_says_what_the_weights_are():
    _, card = load_checkpoint("default")
    assert {"model", "sha256", "package_version", "training", "parameters"} <= set(card)


@pytest.mark.parametrize(
    ("name", "kilo_macs"), [("vdsr", 702), ("irunet", 326), ("unet", 141), ("blur_bank", 36)]
)
def test_multiplications_are_counted_as_published(name, kilo_macs):
    assert macs_per_pixel(build_model(name)) / 1e3 == pytest.approx(kilo_macs, rel=0.02)


@pytest.mark.parametrize("name", ["unet", "blur_bank"])
def test_networks_for_comparison_start_from_a_blurred_frame_and_keep_masks(name):
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((1, 1, 64, 64), 20.0))
    valid = torch.ones_like(counts)
    valid[..., :8] = 0
    with torch.inference_mode():
        found = build_model(name).eval()(counts * valid, valid)
    assert (found[..., :8] == 0).all()
    assert found[..., 8:].min() > 0
    assert found[..., 8:].mean() == pytest.approx(20, rel=0.3)
