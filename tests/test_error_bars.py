"""The standard error of every pixel: what is promised, and how it is fitted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.frames import Denoised
from bluesky_denoise.models import build_model
from bluesky_denoise.models.error_head import ErrorHead
from bluesky_denoise.simulation.random_scenes import random_scene
from bluesky_denoise.training.calibration import calibrate
from bluesky_denoise.training.losses import known_rate_loss, variance_loss
from bluesky_denoise.training.recipes import FitSettings, PhotonRecipe, TensorBatch


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser.load(device="cpu", threads=1)


def test_error_bars_are_positive_where_valid_and_nan_where_masked(denoiser):
    counts = np.random.default_rng(0).poisson(1.0, (2, 48, 64))
    counts[1] = 0
    mask = np.zeros((48, 64), bool)
    mask[10:14] = True
    found = denoiser.denoise(counts, 2.0, mask)
    assert found.sigma.shape == counts.shape
    assert found.sigma.dtype == np.float32
    assert np.isnan(found.sigma[:, mask]).all()
    assert (found.sigma[:, ~mask] > 0).all()


def test_error_bars_scale_with_the_exposure(denoiser):
    counts = np.random.default_rng(0).poisson(3.0, (48, 64))
    one, two = (denoiser.denoise(counts, seconds).sigma for seconds in (1.0, 2.0))
    np.testing.assert_allclose(one, 2 * two, rtol=1e-6)


def test_error_bars_have_no_seams(denoiser, monkeypatch):
    counts = np.random.default_rng(0).poisson(3.0, (64, 1700))
    whole = denoiser.denoise(counts, 1.0)
    monkeypatch.setattr(denoiser, "_most_pixels", 64 * 900)
    tiled = denoiser.denoise(counts, 1.0)
    np.testing.assert_allclose(tiled.rate, whole.rate, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(tiled.sigma, whole.sigma, rtol=2e-2)


def test_pixels_that_are_kept_have_the_error_of_their_counts(denoiser):
    counts = np.random.default_rng(0).poisson(1.0, (48, 64))
    counts[20, 30] = 40_000
    found = denoiser.denoise(counts, 1.0)
    assert found.rate[20, 30] == pytest.approx(40_000, rel=1e-4)
    assert found.sigma[20, 30] == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize(
    ("told", "factor"),
    [(0.3, np.exp(12 * np.tanh(0.3 / 12))), (-900.0, np.exp(-12)), (900.0, np.exp(12))],
)
def test_the_head_tells_the_log_of_a_factor_that_has_bounds(told, factor):
    channels = (16, 32, 64, 64)
    head = ErrorHead(channels)
    torch.nn.init.zeros_(head.out.weight)
    torch.nn.init.constant_(head.out.bias, told)
    found = [torch.zeros(1, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate(channels)]
    counts = torch.full((1, 1, 32, 32), 50.0)
    with torch.inference_mode():
        variance = head(found, counts, own=torch.zeros_like(counts))
    torch.testing.assert_close(variance, factor * counts, rtol=1e-5, atol=0)


def test_an_empty_pixel_beside_a_spot_is_as_known_as_those_around_it(denoiser):
    counts = np.random.default_rng(0).poisson(0.3, (48, 64))
    counts[19:22, 29:32] = 60  # stays as counted
    counts[18, 30] = 0
    found = denoiser.denoise(counts, 2.0)
    assert found.sigma[18, 30] < 0.2  # one count would be 0.5
    assert abs(found.rate[18, 30] - 0.15) < 3 * found.sigma[18, 30]
    assert np.median(found.sigma) < 0.02  # away from it many pixels share what they know


def test_intervals_hold_the_true_rate_as_often_as_they_say(denoiser):
    rng = np.random.default_rng(11)
    inside = {0.68: [], 0.9: [], 0.95: []}
    for _ in range(24):
        rate = random_scene((96, 96), rng, log10_level=(-1.3, 2.0))
        found = denoiser.denoise(rng.poisson(rate), 1.0)
        for confidence, shares in inside.items():
            low, high = found.interval(confidence)
            shares.append(np.mean((rate >= low) & (rate <= high)))
    for confidence, shares in inside.items():
        # 24 scenes whose pixels err together: a standard error of 2 points. `make evaluate`
        # measures more of them, by intensity.
        assert np.mean(shares) == pytest.approx(confidence, abs=0.07)


def test_wider_confidence_gives_wider_intervals_that_are_not_negative(denoiser):
    found = denoiser.denoise(np.random.default_rng(0).poisson(0.2, (48, 64)), 1.0)
    widths = []
    for confidence in (0.5, 0.68, 0.9, 0.95, 0.99):
        low, high = found.interval(confidence)
        assert (low >= 0).all()
        widths.append(float((high - low).mean()))
    assert widths == sorted(widths)


def test_an_interval_needs_a_probability_and_an_error():
    found = Denoised(np.ones((16, 16), np.float32), np.ones((16, 16), np.float32))
    for confidence in (68, 1, 0):
        with pytest.raises(ValueError, match=f"is {confidence}; expected above 0 and below 1"):
            found.interval(confidence)
    with pytest.raises(ValueError, match="tell no standard errors"):
        replace(found, sigma=None).interval(0.68)


def test_intervals_are_those_of_a_normal_distribution_if_nothing_is_known():
    found = Denoised(np.full((16, 16), 9.0, np.float32), np.ones((16, 16), np.float32))
    low, high = found.interval(0.95)
    np.testing.assert_allclose((high - low) / 2, 1.95996, rtol=1e-4)
    low, high = replace(found, rate=np.full((16, 16), 0.5, np.float32)).interval(0.95)
    assert (low == 0).all()
    np.testing.assert_allclose(high, 0.5 + 1.95996, rtol=1e-4)
    low, high = found.interval()
    np.testing.assert_allclose((high - low) / 2, 0.99446, rtol=1e-4)  # 68 %
    wider = replace(found, stretch={0.9: 1.0, 0.95: 1.5}).interval(0.95)
    np.testing.assert_allclose(wider[1] - 9, 1.5 * 1.95996, rtol=1e-4)
    with pytest.raises(ValueError, match=r"is 0\.999; .* is known up to 0\.95"):
        replace(found, stretch={0.9: 1.0, 0.95: 1.5}).interval(0.999)


def test_the_variance_loss_is_least_where_the_variance_is_right():
    torch.manual_seed(0)
    truth = torch.full((1, 1, 200, 200), 4.0)
    valid = torch.ones_like(truth)
    # Errors of the distribution that is assumed, of scale 0.5.
    student = torch.distributions.StudentT(5.0)
    estimate = truth + 0.5 * student.sample(truth.shape)
    ratio = torch.zeros(1)
    losses = [
        variance_loss(estimate, torch.full_like(truth, v), truth, ratio, valid).item()
        for v in (0.15, 0.25, 0.4)
    ]
    assert min(losses) == losses[1]


def test_noise_of_the_remainder_is_no_error_of_the_estimate():
    torch.manual_seed(0)
    truth = torch.full((1, 1, 200, 200), 40.0)
    valid, ratio = torch.ones_like(truth), torch.tensor([200.0])
    estimate = truth + 0.5 * torch.distributions.StudentT(5.0).sample(truth.shape)
    rest = torch.poisson(200 * truth)  # its noise is 0.2 counts squared
    losses = [
        variance_loss(estimate, torch.full_like(truth, v), rest, ratio, valid).item()
        for v in (0.05, 0.25, 1.0)
    ]
    assert min(losses) == losses[1]


def test_what_is_lost_by_spreading_costs_more_than_noise():
    truth = torch.full((1, 1, 64, 64), 10.0)
    truth[..., 30:33] = 30.0
    valid = torch.ones_like(truth)
    wide = torch.nn.functional.avg_pool2d(truth, (1, 5), 1, (0, 2), count_include_pad=False)
    noisy = known_rate_loss(wide, truth, valid, spread=truth)
    spread, more = (
        known_rate_loss(wide, truth, valid, spread=wide, spread_weight=weight)
        for weight in (2.0, 5.0)
    )
    assert spread.item() > noisy.item() + 0.5
    assert more.item() > spread.item() + 0.5


def test_the_settings_say_what_spreading_costs():
    torch.manual_seed(0)
    batch = TensorBatch(
        counts=torch.poisson(torch.full((1, 1, 64, 64), 2.0)),
        target=torch.full((1, 1, 64, 64), 2.0),
        ratio=torch.zeros(1),
        valid=torch.ones(1, 1, 64, 64),
    )
    batch.target[..., 30:33] = 9.0
    model = build_model("photon_exchange")
    losses = [
        PhotonRecipe(FitSettings(spread_weight=weight)).loss(model, batch, 0).item()
        for weight in (0.0, 2.0, 5.0)
    ]
    assert losses == sorted(set(losses))


def test_calibration_leaves_estimates_alone_and_tells_rising_intervals():
    torch.manual_seed(0)
    network = build_model("photon_exchange").eval()
    recipe = PhotonRecipe(FitSettings(steps=10, pixels=2 * 64**2, sides_px=(64,)))
    counts, valid = torch.poisson(torch.full((1, 1, 64, 64), 2.0)), torch.ones(1, 1, 64, 64)
    before = network(counts, valid)
    first = network.estimate(counts, valid).variance

    def draw(number):
        return TensorBatch.of(recipe.batch(10 + number, [], 0, 1), "cpu")

    stretch = calibrate(network, draw, steps=20, told=20)
    torch.testing.assert_close(network(counts, valid), before, rtol=0, atol=0)
    assert not torch.allclose(network.estimate(counts, valid).variance, first, rtol=0.01)
    assert all(parameter.requires_grad for parameter in network.parameters())
    widths = [float(c) * f for c, f in stretch.items()]
    assert widths == sorted(widths)
    # The level was corrected on the same frames, so one sigma holds 68 % of them, about.
    assert stretch["0.68"] == pytest.approx(1, abs=0.2)
