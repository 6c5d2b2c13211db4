from dataclasses import replace

import numpy as np
import pytest

from bluesky_denoise.errors import FrameValueError
from bluesky_denoise.simulation.random_backgrounds import random_background
from bluesky_denoise.simulation.random_masks import random_dead, random_mask
from bluesky_denoise.simulation.random_scenes import MOST_COUNTS, random_scene
from bluesky_denoise.simulation.scenes import Peak, diffraction_scene, gaussian_peak


def test_the_same_seed_gives_the_same_scene():
    first, again = diffraction_scene(seed=4), diffraction_scene(seed=4)
    np.testing.assert_array_equal(first.rate, again.rate)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert first.satellites == again.satellites
    assert diffraction_scene(seed=5).satellites != first.satellites


def test_a_peak_integrates_to_its_intensity():
    peak = Peak(31.3, 40.8, 250.0, 1.5, 4.0)
    image = gaussian_peak((64, 96), peak)
    # Sampling a Gaussian of sigma >= 1 errs by far less than that.
    assert image.sum() == pytest.approx(250.0, rel=1e-6)
    rows, cols = np.mgrid[:64, :96]
    assert (image * rows).sum() / image.sum() == pytest.approx(31.3, abs=1e-6)
    assert (image * cols).sum() / image.sum() == pytest.approx(40.8, abs=1e-6)


def test_satellites_stand_where_the_scene_says():
    with_peaks = diffraction_scene(hot_pixels=0, dead_pixels=0)
    without = diffraction_scene(satellite_cps=0.0, hot_pixels=0, dead_pixels=0)
    rest = with_peaks.rate - without.rate
    assert len(with_peaks.satellites) == 4
    for peak in with_peaks.satellites:
        row, col = round(peak.row), round(peak.col)
        around = rest[row - 16 : row + 17, col - 20 : col + 21]
        assert around.sum() == pytest.approx(60.0, rel=1e-3)


def test_the_background_has_the_mean_asked_for():
    scene = diffraction_scene(background_cps=3.0, satellite_cps=0, bragg_cps=0, hot_pixels=0)
    assert scene.rate.mean() == pytest.approx(3.0)


def test_exposures_are_poisson_and_masked():
    scene = diffraction_scene((64, 96), background_cps=20.0)
    rng = np.random.default_rng(0)
    stack = np.stack([scene.expose(0.5, rng) for _ in range(400)])
    assert stack.dtype == np.uint32
    assert (stack[:, scene.mask] == 0).all()
    seen = ~scene.mask
    fano = stack.var(0)[seen] / (0.5 * scene.rate[seen])
    # 400 frames of 6000 pixels: the mean Fano factor is known to 0.1 %.
    assert fano.mean() == pytest.approx(1.0, abs=0.01)


def test_more_counts_than_32_bits_hold_are_refused():
    scene = replace(diffraction_scene((32, 32)), mask=np.zeros((32, 32), bool))
    bright = replace(scene, rate=np.full((32, 32), 5e9))
    with pytest.raises(FrameValueError, match="photons in 1 s; 32 bits hold fewer than"):
        bright.expose(1.0, np.random.default_rng(0))
    dark = replace(bright, mask=np.ones((32, 32), bool))
    assert not dark.expose(1.0, np.random.default_rng(0)).any()


def test_hot_pixels_are_part_of_the_rate_and_not_masked():
    scene = diffraction_scene(hot_pixels=3, bragg_cps=0.0)
    assert ((scene.rate == 2000) & ~scene.mask).sum() >= 2
    assert (scene.rate == 2000).sum() == 3


@pytest.mark.parametrize("shape", [(16, 16), (33, 200)])
def test_small_scenes_have_their_peaks_inside(shape):
    scene = diffraction_scene(shape)
    for peak in (*scene.braggs, *scene.satellites):
        assert 0 < peak.row < shape[0]
        assert 0 < peak.col < shape[1]


def test_scenes_too_small_for_peaks_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 100\) was asked for; at least \(16, 16\)"):
        diffraction_scene((8, 100))


def test_random_scenes_are_finite_and_span_the_count_levels():
    rng = np.random.default_rng(0)
    scenes = [random_scene((48, 64), rng) for _ in range(200)]
    stack = np.stack(scenes)
    assert stack.shape == (200, 48, 64)
    assert np.isfinite(stack).all()
    assert stack.min() >= 0
    assert stack.max() <= MOST_COUNTS
    means = np.median(stack, axis=(1, 2))
    assert (means == 0).any()
    assert means[means > 0].min() < 1e-2
    assert means.max() > 1e3
    assert (stack.max((1, 2)) > 1e5).any()


def test_random_masks_leave_pixels_to_see():
    rng = np.random.default_rng(0)
    shares = [random_mask((64, 64), rng).mean() for _ in range(200)]
    assert 0 < np.mean(shares) < 0.3
    assert 0.3 < np.mean(np.equal(shares, 0)) < 0.7
    assert max(shares) < 0.8


def test_dead_pixels_are_few():
    rng = np.random.default_rng(0)
    dead = [random_dead((64, 64), rng) for _ in range(100)]
    assert 0 < np.mean(dead) < 0.05
    assert any(d.all(axis=0).any() or d.all(axis=1).any() for d in dead)


def test_backgrounds_are_seldom_flat():
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:96, :128].astype(float)
    spreads = []
    for _ in range(300):
        background = random_background(rows, cols, rng)
        assert np.isfinite(background).all()
        assert background.min() > 0
        spreads.append(background.max() / background.min() - 1)
    flat = np.mean(np.array(spreads) == 0)
    assert 0.08 < flat < 0.22
    assert np.median(spreads) > 0.5
