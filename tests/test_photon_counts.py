from pathlib import Path

import h5py
import numpy as np
import pytest
from skimage.filters import gaussian

from bluesky_denoise.errors import FrameValueError, MaskError
from bluesky_denoise.photons.photon_checks import (
    chessboard_noise,
    fano_factor,
    favoured_count,
    looks_poisson,
    neighbour_correlation,
)
from bluesky_denoise.photons.thinning import check_photon_counts
from bluesky_denoise.simulation.random_scenes import random_scene
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

TRAINING = sorted((Path(__file__).parents[1] / "training_data").glob("*.h5"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fringes(level, period_px, visibility=0.95, shape=(256, 256)):
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    phase = 2 * np.pi * (cols * np.cos(0.4) + rows * np.sin(0.4)) / period_px
    return level * (1 + visibility * np.cos(phase))


def speckle(level, size_px, rng, shape=(256, 256)):
    field = [gaussian(rng.normal(size=shape), size_px / 2) for _ in range(2)]
    intensity = field[0] ** 2 + field[1] ** 2
    return level * intensity / intensity.mean()


def rate_corrected(counts, exposure_s, dead_time_s=120e-9):
    return np.rint(counts / (1 - counts * dead_time_s / exposure_s)).astype(np.int64)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_every_measured_frame_of_a_counting_detector_passes(path):
    with h5py.File(path) as file:
        frames, mask = file["frames"][...], file["mask"][...]
    check_photon_counts(frames, mask, len(frames))


def test_photons_share_no_noise_whatever_the_scene(rng):
    found = [neighbour_correlation(rng.poisson(random_scene((256, 256), rng))) for _ in range(12)]
    found = [value for value in found if np.isfinite(value)]
    assert len(found) >= 3
    assert min(found) > -0.08


def test_a_screen_is_told_by_the_noise_that_its_pixels_share(rng):
    spread = gaussian(rng.poisson(400.0, (256, 256)).astype(float), 0.6)
    # The gain is such that variance and mean alone would pass for photons.
    counts = np.rint(spread / fano_factor(spread)).astype(np.uint16)
    assert fano_factor(counts) == pytest.approx(1, abs=0.02)
    assert neighbour_correlation(counts) < -0.08
    with pytest.raises(FrameValueError, match=r"Frame 0 cannot be thinned: neighbouring pixels"):
        check_photon_counts(counts)


def test_fine_structure_is_no_noise_that_neighbours_share(rng):
    scenes = [fringes(2, 3), fringes(20, 4), fringes(200, 5), fringes(100, 4, 0.2)]
    scenes += [speckle(10, 2, rng), speckle(10, 3, rng), speckle(100, 3, rng)]
    for scene in scenes:
        counts = rng.poisson(scene)
        # Their correlation is what a screen has, but the chessboard has its noise.
        assert neighbour_correlation(counts) < -0.07
        assert looks_poisson(counts) == ""


def test_the_chessboard_has_the_noise_of_photons_in_any_scene(rng):
    for scene in (np.full((256, 256), 0.5), fringes(20, 5), speckle(100, 3, rng)):
        ratio, error = chessboard_noise(rng.poisson(scene))
        assert 0.02 < error < 0.04
        assert ratio == pytest.approx(1, abs=4 * error)
    # What is as fine as the chessboard adds to it.
    assert chessboard_noise(rng.poisson(speckle(100, 2, rng)))[0] > 1.5
    spread = gaussian(rng.poisson(400.0, (256, 256)).astype(float), 0.6)
    assert chessboard_noise(spread / fano_factor(spread))[0] < 0.6
    assert np.isnan(chessboard_noise(rng.poisson(1e-3, (256, 256)))).all()
    assert np.isnan(chessboard_noise(np.ones((5, 300)))).all()


def test_a_reason_names_all_that_scatters_so(rng):
    uneven = rng.poisson(3000 * rng.normal(1, 0.03, (256, 256)))
    assert looks_poisson(uneven).endswith(
        "expected 1): a gain, an uneven response (flat field), or structure of one or two pixels, "
        "such as speckle or fringes"
    )
    pedestal = np.rint(1000 + rng.normal(0, 4.0, (64, 64))).astype(int)
    assert "a pedestal" in looks_poisson(pedestal)


@pytest.mark.parametrize("gain", [0.7, 0.8, 1.3, 1.7])
@pytest.mark.parametrize("level", [0.3, 3.0, 60.0, 300.0])
def test_a_gain_is_told_by_counts_that_hardly_come_up(rng, gain, level):
    counts = np.rint(gain * rng.poisson(level, (195, 244))).astype(np.uint16)
    with pytest.raises(FrameValueError, match=r"pixels hold \d+ counts, but only .* a gain"):
        check_photon_counts(counts)


@pytest.mark.parametrize(
    ("exposure_s", "level"), [(1e-3, 50), (1e-3, 120), (1e-3, 250), (3e-3, 250), (1e-2, 250)]
)
def test_photons_whose_rate_was_corrected_for_dead_time_pass(rng, exposure_s, level):
    # As DECTRIS detectors do by default: rounded, by 0.3 to 3 % where it is brightest.
    cols = np.arange(400) / 240
    counts = rate_corrected(rng.poisson(level * np.exp(-(cols**2)), (400, 400)), exposure_s)
    assert np.bincount(counts.ravel()).min() == 0
    assert looks_poisson(counts) == ""


def test_a_dead_time_that_makes_the_noise_wrong_by_more_than_a_tenth_is_refused(rng):
    # Of 200 counts 8 % were lost: a count more adds 1.18 after the correction.
    assert favoured_count(rate_corrected(rng.poisson(200.0, (256, 256)), 3e-4)) is not None


@pytest.mark.parametrize("gain", [0.8, 1.2])
@pytest.mark.parametrize("level", [5.0, 20.0, 100.0])
def test_a_gain_that_makes_the_noise_wrong_by_a_fifth_is_refused(rng, gain, level):
    cols = np.arange(-200, 200) / 200
    photons = rng.poisson(level * np.exp(-(cols**2)), (400, 400))
    assert favoured_count(np.rint(gain * photons).astype(int)) is not None


def test_a_gain_is_told_under_a_little_readout_noise(rng):
    electrons = 1.7 * rng.poisson(3.0, (195, 244)) + rng.normal(0, 0.4, (195, 244))
    counts = np.maximum(np.rint(electrons), 0).astype(np.uint16)
    assert fano_factor(counts) == pytest.approx(1.75, abs=0.1)  # which passes for photons
    assert "a gain, not photons" in looks_poisson(counts)


def test_no_number_of_photons_is_favoured_whatever_the_scene(rng):
    scenes = [random_scene((256, 256), rng) for _ in range(30)]
    scenes += [np.full((256, 256), level) for level in (0.01, 0.3, 3.0, 30.0, 300.0)]
    assert [favoured_count(rng.poisson(scene)) for scene in scenes] == [None] * 35


def test_readout_noise_on_a_pedestal_is_refused(rng):
    frames = np.rint(1000 + rng.normal(0, 4.0, (3, 64, 64))).astype(np.uint16)
    with pytest.raises(FrameValueError, match=r"variance / mean 0\.0"):
        check_photon_counts(frames)


def test_every_looked_at_frame_is_checked(rng):
    frames = rng.poisson(20.0, (5, 64, 64))
    frames[3] = 7 * frames[3]
    with pytest.raises(FrameValueError, match="Frame 3 cannot be thinned: all counts"):
        check_photon_counts(frames)


@pytest.mark.parametrize("shape", [(0, 16, 16), (2, 0, 16)])
def test_no_frames_have_nothing_wrong_about_them(shape):
    check_photon_counts(np.zeros(shape, int))


@pytest.mark.parametrize(
    "shape", [(8, 8), (10, 10), (19, 19), (20, 20), (35, 35), (3, 100)], ids=str
)
def test_small_frames_of_photons_pass(rng, shape):
    refused = [looks_poisson(rng.poisson(20, shape)) for _ in range(200)]
    assert sum(map(bool, refused)) <= 2


def test_a_gain_is_told_in_the_smallest_frames(rng):
    analog = 30 + 3.7 * rng.poisson(20.0, (16, 16)) + rng.normal(0, 2, (16, 16))
    assert "scatter unlike photons" in looks_poisson(np.rint(analog).astype(int))


def test_frames_that_are_mostly_masked_pass(rng):
    for _ in range(20):
        mask = rng.random((195, 244)) < 0.5
        assert not looks_poisson(np.where(mask, 0, rng.poisson(20, mask.shape)), mask)


def test_a_mask_of_another_shape_is_refused(rng):
    with pytest.raises(MaskError, match=r"shape \(20, 24\); the frames need \(24, 20\)"):
        check_photon_counts(rng.poisson(1.0, (3, 24, 20)), np.zeros((20, 24), bool))


@pytest.mark.parametrize("spots", [10, 100])
@pytest.mark.parametrize(("background", "height"), [(0.02, 300), (0.2, 50), (1.0, 1000)])
def test_sharp_spots_are_photons(rng, spots, background, height):
    rate = np.full((195, 244), background)
    for row, col in rng.uniform((5, 5), (190, 239), (spots, 2)):
        rate += gaussian_peak(rate.shape, Peak(row, col, height * 4.0, 0.8, 0.8))
    assert not looks_poisson(rng.poisson(rate))


@pytest.mark.parametrize("density", [0.005, 0.02, 0.05, 0.2])
@pytest.mark.parametrize(("gain", "shared"), [(10, 0.0), (10, 0.4), (3.7, 0.0), (30, 0.4)])
def test_single_photons_with_a_gain_are_no_spots(rng, density, gain, shared):
    hits = rng.poisson(density, (195, 244))
    signal = gain * ((1 - shared) * hits + shared * np.roll(hits, 1, 0))
    signal += np.where(signal > 0, rng.normal(0, 0.5, signal.shape), 0)
    assert looks_poisson(np.maximum(np.rint(signal), 0).astype(int))


def test_a_frame_too_dark_to_tell_passes(rng):
    assert looks_poisson(rng.poisson(1e-3, (64, 64))) == ""
    assert np.isnan(neighbour_correlation(rng.poisson(1e-3, (64, 64))))
