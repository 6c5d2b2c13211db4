"""The last exchange, between pixels that look alike."""

import numpy as np
import pytest
import torch

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.models import alike, build_model
from bluesky_denoise.models.alike import share_alike
from bluesky_denoise.models.checkpoint import load_checkpoint
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.settings import DenoiseSettings

rng = np.random.default_rng


@pytest.fixture(scope="module")
def denoisers():
    return Denoiser.load(device="cpu"), Denoiser.load(device="cpu", non_local=True)


def _image(array):
    return torch.from_numpy(np.asarray(array, np.float32))[None, None]


def _frames(shape, seed=0):
    """Counts, validity, an estimate that keeps much noise, its variance, and what may move."""
    draw = rng(seed)
    counts = draw.poisson(np.where(np.arange(shape[1]) % 9 < 4, 40.0, 5.0), shape)
    valid = (draw.random(shape) > 0.05) * 1.0
    valid[:, 12:14] = 0
    estimate = (0.7 * counts + 0.3 * counts.mean(1, keepdims=True)) * valid
    variance = draw.uniform(0, 0.6, shape) * (estimate + 1e-5) * valid
    free = draw.uniform(0, 1, shape)
    return [_image(x) for x in (counts * valid, valid, estimate, variance, free)]


def _by_hand(counts, valid, estimate, variance, free):
    """The formula of the module, for one frame, pixel by pixel and without tiles."""
    counts, valid, estimate, variance, free = (
        x[0, 0].double().numpy() for x in (counts, valid, estimate, variance, free)
    )
    rows, cols = np.indices(counts.shape)
    least, full = alike.NOISY
    noisy = np.clip((variance / np.maximum(estimate, 1) - least) / (full - least), 0, 1)
    noisy *= np.clip(estimate - 1, 0, 1) * free * valid
    w = {}
    for step in alike.STEPS:
        to = rows + step[0], cols + step[1]
        inside = (to[0] < counts.shape[0]) & (to[1] >= 0) & (to[1] < counts.shape[1])
        there = np.where(inside, to[0], 0), np.where(inside, to[1], 0)
        both = inside * valid * valid[there]
        far = 0
        for image, noise, beyond in (
            (estimate, variance, alike.BEYOND_NOISE[0]),
            (counts, np.maximum(counts, 1e-3), alike.BEYOND_NOISE[1]),
        ):
            with np.errstate(all="ignore"):
                unlike = (image - image[there]) ** 2 / (noise + noise[there])
            padded = np.pad(np.where(both > 0, unlike, 0), 2)
            # Around a cell of 2 x 2 pixels: the cell, and two pixels more on each side.
            first = rows - rows % 2, cols - cols % 2
            mean = sum(padded[first[0] + r, first[1] + c] for r in range(6) for c in range(6)) / 36
            far = far + (np.maximum(mean - 1, 0) / beyond) ** 2
        w[step] = np.exp(-far) * both
    friends = np.ones_like(counts)
    for step, share in w.items():
        friends += share
        np.add.at(friends, (rows + step[0] * (share > 0), cols + step[1] * (share > 0)), share)
    pairs = []
    for step, share in w.items():
        at = np.nonzero(share)
        to = at[0] + step[0], at[1] + step[1]
        part = share[at] * np.minimum((noisy / friends)[at], (noisy / friends)[to])
        pairs += [(at, to, part), (to, at, part)]
    taken, out = np.zeros_like(counts), estimate.copy()
    kept, squares = np.ones_like(counts), np.zeros_like(counts)
    for one, other, part in pairs:
        taken[one] += part * (estimate[one] - estimate[other])
        kept[one] -= part
        squares[one] += part**2
    for one, other, part in pairs:
        out[one] += part * (taken[other] - taken[one])
    least, most = alike.SHARED_NOISE
    shared = least + (most - least) * np.minimum(variance / np.maximum(estimate, 1e-3), 1)
    return out, variance * (1 - (1 - shared) * (1 - kept**2 - squares) ** 2)


def test_it_is_the_formula_whatever_the_tiles():
    frames = _frames((150, 140))
    frames[2][..., 20:50] *= 0.1  # of so few counts pixels take part in part, or not at all
    found, variance = share_alike(*frames)
    expected, expected_variance = _by_hand(*frames)
    assert abs(expected - frames[2][0, 0].numpy()).max() > 3
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance[0, 0], expected_variance, rtol=1e-4, atol=1e-4)


def test_sums_and_signs_are_kept_and_what_is_flat_stays_flat():
    counts, valid, estimate, variance, free = _frames((64, 96), 1)
    found, squares = share_alike(counts, valid, estimate, variance, free)
    assert found.double().sum() == pytest.approx(float(estimate.double().sum()), rel=1e-6)
    assert found.min() >= 0
    assert (squares <= variance).all()
    assert squares.sum() < 0.9 * variance.sum()
    flat, _ = share_alike(counts, valid, 7 * valid, variance, free)
    torch.testing.assert_close(flat, 7 * valid)


def test_no_pixel_gives_more_than_it_has():
    counts = valid = torch.ones(1, 1, 64, 64)
    estimate = torch.full_like(counts, 5000.0)
    estimate[..., :32] = 3
    found, _ = share_alike(counts, valid, estimate, 1e9 * valid, valid)  # all look alike
    assert found[..., :26].min() < 2.9  # what is given back would take more than all of it
    assert found.min() >= 0
    assert found.double().sum() == pytest.approx(float(estimate.double().sum()), rel=1e-6)


def test_what_is_masked_is_not_looked_at():
    counts, valid, estimate, variance, free = _frames((48, 48), 2)
    found, squares = share_alike(counts, valid, estimate, variance, free)
    assert (found[valid == 0] == 0).all()
    other, other_squares = share_alike(counts, valid, estimate, variance, free + 3 * (1 - valid))
    torch.testing.assert_close(other, found)
    torch.testing.assert_close(other_squares, squares)


def test_a_frame_without_noise_is_left_alone():
    counts, valid, estimate, variance, free = _frames((48, 48), 3)
    found, squares = share_alike(counts, valid, estimate, 0 * variance, free)
    assert found is estimate
    assert squares.max() == 0


def test_frames_of_a_stack_do_not_know_of_each_other():
    first, second = _frames((64, 64), 4), _frames((64, 64), 5)
    both = share_alike(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
    torch.testing.assert_close(both[0][1:], share_alike(*second)[0])
    torch.testing.assert_close(both[1][:1], share_alike(*first)[1])


def _lines(shape=(160, 160), top=200.0, beside=5.0):
    rows, cols = np.indices(shape)
    across = (cols * np.cos(0.5) + rows * np.sin(0.5)) % 30 - 15
    return beside + top * np.exp(-0.5 * (across / 1.5) ** 2)


def test_oblique_lines_lose_noise_that_they_keep_otherwise(denoisers):
    truth = _lines()
    counts, line = rng(0).poisson(truth), truth > 100
    plain, better = (d.denoise(counts, 1.0) for d in denoisers)
    before, after = (((d.rate - truth) ** 2 / truth)[line].mean() for d in (plain, better))
    assert before > 0.6
    assert after < 0.35
    assert better.rate.sum(dtype=float) == pytest.approx(counts.sum(), rel=1e-6)
    # The peaks of the lines are not cut: what is taken away is noise.
    assert better.rate[line].mean() / truth[line].mean() == pytest.approx(1, abs=0.01)
    held = (abs(better.rate - truth) <= better.sigma)[line].mean()
    assert 0.55 < held < 0.85
    assert better.sigma[line].mean() < 0.7 * plain.sigma[line].mean()


def test_spots_keep_their_counts(denoisers):
    truth = np.full((96, 96), 2.0)
    truth[20:80:15, 20:80:15] += 60
    truth[21:80:15, 20:80:15] += 30
    counts = rng(1).poisson(truth)
    plain, better = (d.denoise(counts, 1.0).rate for d in denoisers)
    np.testing.assert_allclose(better[20:80:15, 20:80:15], plain[20:80:15, 20:80:15], rtol=1e-3)


def test_tiles_that_memory_asks_for_do_not_show(denoisers):
    counts = rng(2).poisson(_lines((1100, 64)))
    whole = denoisers[1].denoise(counts, 1.0)
    cut = Denoiser.load(device="cpu", non_local=True)
    cut._most_pixels = 900 * 64
    found = cut.denoise(counts, 1.0)
    np.testing.assert_allclose(found.rate, whole.rate, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.sigma, whole.sigma, rtol=1e-2, atol=1e-3)


def test_the_setting_reaches_the_denoiser_and_what_is_told_of_results():
    better, plain = (DenoiseRouter(DenoiseSettings(non_local=on)) for on in (True, False))
    assert better.denoiser.non_local
    assert not plain.denoiser.non_local
    # `reprocess` takes results for the same where this is alike.
    assert better.provenance["settings"] == {**plain.provenance["settings"], "non_local": True}


def test_networks_that_cannot_refuse():
    _, card = load_checkpoint()
    with pytest.raises(SettingsError, match="'mine' is 'vdsr', which tells no errors"):
        Denoiser(build_model("vdsr"), {**card, "model": "vdsr"}, "mine", "cpu", non_local=True)
    own = DenoiseSettings(model="bluesky_denoise.testing:BlurDenoiser", non_local=True)
    with pytest.raises(SettingsError, match="`non_local` is true, and `model` is"):
        DenoiseRouter(own)
