"""Detail that an estimate has lost where no pixel by itself tells of it: fringes, speckle."""

import re

import numpy as np
import pytest
from scattering import fringes, smooth_scene, speckle
from skimage.filters import gaussian as blur

from bluesky_denoise.audit import audit_frame, audit_rate
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.photons.residuals import lost_wave, untold_error


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def test_photons_of_a_fine_scene_pass_where_its_detail_is_kept():
    rng, denoiser = np.random.default_rng(23), Denoiser.load(threads=1)
    for scene in (fringes(20, 4), fringes(200, 5), speckle(10, 2, rng), speckle(10, 3, rng)):
        verdict = audit_frame(rng.poisson(scene), 1.0, denoiser)
        assert verdict.ok, verdict.reason
        assert np.isfinite(verdict.deviance)


def test_fine_detail_that_was_lost_in_few_counts_is_told_by_what_neighbours_share():
    rng, denoiser = np.random.default_rng(25), Denoiser.load(threads=1)
    for scene in (fringes(0.5, 4), fringes(0.5, 6), fringes(0.5, 8), fringes(0.2, 4)):
        verdict = audit_frame(rng.poisson(scene), 1.0, denoiser)
        # Nothing else tells: counting noise hides what a single pixel lacks.
        reasons = verdict.reason.split("; ")
        assert [reason[:12] for reason in reasons] == ["errors large", "fringes were"]
    scene = speckle(0.1, 2, rng)
    reasons = [audit_frame(rng.poisson(scene), 1.0, denoiser).reason for _ in range(6)]
    # 2 to 4 times too small, as the photons fall; from 2 on they are flagged.
    assert sum("errors larger than expected" in reason for reason in reasons) >= 4
    for scene in (fringes(3, 6), smooth_scene(0.1, (256, 256)), smooth_scene(0.5, (256, 256))):
        assert audit_frame(rng.poisson(scene), 1.0, denoiser).ok


def test_errors_that_neighbours_share_are_those_of_the_estimate(rng):
    rate = np.full((256, 256), 2.0)
    error = blur(rng.normal(size=rate.shape), 4.0)
    error *= 0.3 / error.std()
    counts = rng.poisson(rate)
    for stated in (0.3, 0.1):
        ratio, z = untold_error(counts, rate + error, np.full(rate.shape, stated**2))
        # Neighbours are equally wrong, by 0.3^2 to 2 %; noise adds 2 / sqrt(131072), 6 % of it.
        assert ratio == pytest.approx((0.3 / (stated + 0.02)) ** 2, rel=0.2)
        assert z > 5
    assert audit_rate(counts, rate, seen=counts, sigma=np.full(rate.shape, 0.01)).ok
    ratio, z = untold_error(counts, rate, np.zeros(rate.shape))
    assert abs(z) < 4
    assert untold_error(np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))) == (0.0, 0.0)
    pair, dark = np.zeros(rate.shape), np.full(rate.shape, 1e-4)
    pair[100, 100:102] = 1
    assert untold_error(pair, dark, 0 * dark)[1] < 2  # two photons side by side are no detail


@pytest.mark.parametrize("period", [2.5, 4, 12])
def test_fringes_that_no_pixel_tells_of_are_found_in_the_frequencies(rng, period):
    scene = fringes(0.1, period)
    scene[:, 128:] = 0.1  # in half of the frame
    smooth, sigma = np.full(scene.shape, 0.1), np.full(scene.shape, 0.003)
    counts, seen = rng.poisson(scene), rng.poisson(scene)
    found = re.search(
        r"fringes were lost, of a period of ([\d.]+) pixels",
        audit_rate(counts, smooth, seen=seen, sigma=sigma).reason,
    )
    assert float(found[1]) == pytest.approx(period, rel=0.1)
    # Told errors are no fault, nor is what the estimate has not lost.
    assert audit_rate(counts, smooth, seen=seen, sigma=np.full(scene.shape, 0.05)).ok
    assert audit_rate(counts, scene, seen=seen, sigma=sigma).ok


@pytest.mark.parametrize("rate", [1e-4, 0.01, 1, 100])
@pytest.mark.parametrize("shape", [(1, 1), (16, 17), (256, 300)])
def test_noise_holds_no_wave(rng, rate, shape):
    model = np.full(shape, rate)
    powers = [lost_wave(rng.poisson(model), model, 0 * model)[0] for _ in range(20)]
    assert max(powers) < 55
    assert min(shape) < 200 or rate < 0.01 or min(powers) > 20  # the largest of 40,000 places


def test_a_total_that_is_off_is_no_wave(rng):
    model = np.full((256, 256), 100.0)
    assert lost_wave(rng.poisson(1.03 * model), model, 0 * model)[0] < 55
