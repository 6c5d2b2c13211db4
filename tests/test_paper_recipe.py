from functools import partial

import h5py
import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage.metrics import structural_similarity

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.errors import FrameShapeError, SettingsError
from bluesky_denoise.models import MODELS, build_model
from bluesky_denoise.models.checkpoint import load_checkpoint, save_checkpoint
from bluesky_denoise.models.paper_scaled import MEAN, PaperScaled
from bluesky_denoise.models.vdsr import VDSR
from bluesky_denoise.training.files import read_file
from bluesky_denoise.training.fit import fit
from bluesky_denoise.training.ms_ssim import K1, K2, WEIGHTS, ms_ssim, ssim
from bluesky_denoise.training.paper import PaperRecipe, paper_loss, paper_settings
from bluesky_denoise.training.recipes import TensorBatch


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    """Return two images, 0 to 1, that are alike."""
    ramp = np.linspace(0.1, 0.9, 192)[None] * np.ones((176, 1))
    noisy = ramp + 0.1 * rng.standard_normal(ramp.shape)
    return ramp, np.clip(noisy, 0, 1)


def as_tensor(image):
    return torch.from_numpy(image)[None, None]


@pytest.fixture
def archive(tmp_path, rng):
    """Write pairs in the layout of the paper's archive: frames on the last axis."""
    rate = np.linspace(0.5, 4.0, 180)[:, None, None] * np.ones((1, 200, 12))
    path = tmp_path / "pairs.h5"
    with h5py.File(path, "w") as file:
        file["low_count/data"] = rng.poisson(rate).astype(np.int32)
        file["high_count/data"] = rng.poisson(20 * rate).astype(np.int32)
    return path


@pytest.fixture
def small_vdsr(monkeypatch):
    monkeypatch.setitem(MODELS, "vdsr_paper", partial(PaperScaled, partial(VDSR, 2, 4)))


def test_ssim_is_that_of_scikit_image(images):
    expected = structural_similarity(
        *images, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*map(as_tensor, images)).item() == pytest.approx(expected, abs=1e-6)


def test_ms_ssim_is_that_of_its_definition(images):
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2

    def blurred(image):
        return convolve2d(image, window, "valid")

    x, y = images
    expected = 1.0
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            x, y = (z.reshape(z.shape[0] // 2, 2, -1, 2).mean((1, 3)) for z in (x, y))
        covariance = blurred(x * y) - blurred(x) * blurred(y)
        spread = blurred(x * x) - blurred(x) ** 2 + blurred(y * y) - blurred(y) ** 2
        value = (2 * covariance + K2**2) / (spread + K2**2)
        if scale == 4:
            means = blurred(x) ** 2 + blurred(y) ** 2
            value = value * (2 * blurred(x) * blurred(y) + K1**2) / (means + K1**2)
        expected *= value.mean() ** weight
    assert ms_ssim(*map(as_tensor, images)).item() == pytest.approx(expected, abs=1e-6)


def test_ms_ssim_falls_with_noise_and_has_gradients(images, rng):
    ramp, noisy = map(as_tensor, images)
    noisy.requires_grad_()
    near, equal = ms_ssim(noisy, ramp), ms_ssim(ramp, ramp)
    assert equal.item() == pytest.approx(1, abs=1e-9)
    assert near.item() < 0.9
    near.sum().backward()
    assert torch.isfinite(noisy.grad).all()
    assert noisy.grad.abs().max() > 0


def test_images_too_small_for_five_scales_are_refused():
    with pytest.raises(FrameShapeError, match=r"\(160, 192\) are too small for five scales"):
        ms_ssim(torch.zeros(1, 1, 160, 192), torch.zeros(1, 1, 160, 192))


def test_the_loss_has_three_parts_of_error_and_seven_of_dissimilarity(images):
    ramp, noisy = map(as_tensor, images)
    error = (ramp - noisy).abs().mean().item()
    expected = 0.3 * error + 0.7 * (1 - ms_ssim(noisy, ramp).item())
    assert paper_loss(noisy, ramp).item() == pytest.approx(expected, abs=1e-9)


def test_scaled_networks_know_no_exposure_and_keep_the_total(rng):
    torch.manual_seed(0)
    model = PaperScaled(partial(VDSR, 2, 4)).eval()
    counts = torch.from_numpy(rng.poisson(3.0, (2, 1, 32, 32)).astype(np.float32))
    valid = torch.ones_like(counts)
    valid[:, :, :4] = 0
    with torch.inference_mode():
        once, tenfold = model(counts * valid, valid), model(10 * counts * valid, valid)
    torch.testing.assert_close(10 * once, tenfold, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        once.sum((1, 2, 3)), (counts * valid).sum((1, 2, 3)), rtol=1e-4, atol=0
    )
    assert (once[valid == 0] == 0).all()


def test_scaled_networks_denoise_frames_of_any_size(tmp_path, small_vdsr, rng):
    path = tmp_path / "paper.safetensors"
    save_checkpoint(build_model("vdsr_paper"), path, {"model": "vdsr_paper"})
    counts = rng.poisson(2.0, (2, 50, 61))
    rate = Denoiser.load(path, "cpu").denoise(counts, 0.1).rate
    # float32 sums over 3050 pixels.
    np.testing.assert_allclose(rate.sum((1, 2)), 10 * counts.sum((1, 2)), rtol=1e-4)


def test_the_recipe_of_the_paper_trains_on_its_archive(archive, tmp_path, small_vdsr):
    source = read_file(archive)
    settings = paper_settings([source], "vdsr_paper", epochs=3)
    assert (settings.steps, settings.learning_rate, settings.average) == (3, 5e-4, 0)
    losses = []
    output = tmp_path / "paper.safetensors"
    fit(output, [archive], settings, threads=1, report=lambda now: losses.append(now.loss))
    assert len(losses) == 3
    assert all(0 < loss < 1 for loss in losses)
    _, card = load_checkpoint(output)
    assert card["training"]["settings"]["recipe"] == "paper"
    (entry,) = card["training"]["data"]
    assert entry["exposure_ratio"] == pytest.approx(20, rel=0.01)


def test_each_pair_is_seen_once_an_epoch(archive):
    source = read_file(archive).block(0, 8)
    recipe = PaperRecipe(paper_settings([source], "vdsr_paper", epochs=2))
    batches = [recipe.batch(step, [source], 0, 1) for step in range(2)]
    for batch in batches:
        assert batch.counts.shape == (8, 176, 192)
        totals = sorted(batch.counts.sum((1, 2)))
        assert totals == sorted(source.counts[:, 2:178, 4:196].sum((1, 2)))
    assert (batches[0].counts != batches[1].counts).any()
    shares = [recipe.batch(0, [source], rank, 2).counts for rank in (0, 1)]
    assert [len(share) for share in shares] == [4, 4]


def test_short_and_long_frames_are_scaled_apart_and_cut_off(archive):
    source = read_file(archive)
    recipe = PaperRecipe(paper_settings([source], "vdsr_paper"))
    batch = TensorBatch.of(recipe.batch(0, [source], 0, 1), "cpu")
    given = {}

    def model(counts, valid, scaled):
        given["means"] = counts.mean((1, 2, 3)).numpy()
        assert counts.max() <= 1
        return counts

    recipe.loss(model, batch, 0)
    assert given["means"].min() > 0.45 * MEAN
    assert given["means"].max() < 1.5 * MEAN
    assert np.ptp(given["means"]) > 0.2 * MEAN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vdsr"}, "trains irunet_paper or vdsr_paper, not 'vdsr'"),
        ({"frames": 5}, "has 5 measured pairs; expected 8"),
        ({"rows": 100}, r"needs frames of 176 pixels .* fits all is \(96, 192\)"),
    ],
)
def test_what_the_recipe_cannot_do_is_refused(archive, tmp_path, change, message):
    source = read_file(archive).block(0, change.get("frames", 12))
    rows = change.get("rows", 180)
    cut = type(source)(
        counts=source.counts[:, :rows],
        targets=source.targets[:, :rows],
        ratios=source.ratios,
        mask=source.mask[:rows],
        name="cut",
    )
    settings = paper_settings([cut], change.get("model", "vdsr_paper"))
    with pytest.raises((SettingsError, FrameShapeError), match=message):
        fit(tmp_path / "a.safetensors", [cut], settings)
