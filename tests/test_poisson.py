"""The statistics of counts that the audit rests on."""

import numpy as np
import pytest

from bluesky_denoise.photons.poisson import (
    added_deviance,
    box_sum,
    deviance,
    expected_deviance,
    tail_z,
)


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def test_deviance_of_poisson_counts_has_the_expected_mean_at_every_level(rng):
    for rate in (0.001, 0.03, 0.4, 2.0, 30.0, 1000.0):
        counts = rng.poisson(rate, 400_000)
        mean, variance = expected_deviance(np.array([rate]))
        found = deviance(counts, np.full(counts.shape, rate))
        # Five standard errors of 400,000 draws.
        assert found.mean() == pytest.approx(mean[0], abs=5 * np.sqrt(variance[0] / 400_000))
        # The variance of the deviance at low rates rests on few draws.
        assert found.var() == pytest.approx(variance[0], rel=0.15)


@pytest.mark.parametrize("share", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("rate", [3.0, 10.0, 100.0])
def test_the_noise_of_an_estimate_adds_the_deviance_that_is_said(rng, rate, share):
    counts = rng.poisson(rate, 400_000)
    estimate = rng.poisson(rate / share, 400_000) * share
    estimate = np.maximum(estimate, 1e-9)
    mean, _ = expected_deviance(estimate)
    found = float((deviance(counts, estimate) - mean).mean())
    told = float(added_deviance(estimate, share * estimate).mean())
    # Counts of 0 make an estimate that has all the noise of few photons infinitely wrong.
    if rate > 5 or share < 0.1:
        assert found == pytest.approx(told, rel=0.1, abs=0.01)
    assert told < 2


def test_tails_of_poisson_counts_are_normal_deviates(rng):
    # Exact: P(n >= 60 | 30) = 9.3e-7, P(n <= 10 | 30) = 2.2e-5.
    assert tail_z(np.array([60]), np.array([30.0]))[0] == pytest.approx(4.77, abs=0.03)
    assert tail_z(np.array([10]), np.array([30.0]))[0] == pytest.approx(-4.08, abs=0.05)
    z = tail_z(rng.poisson(0.5, 1_000_000), np.full(1_000_000, 0.5))
    # One tail beyond 4 is 3e-5 of a normal deviate; discrete counts give less, never more.
    assert (z > 4).mean() < 4.5e-5
    # Exact: 5.79 for 9 of 0.5, 5.87 for 34 of 10, -5.88 for none of 20.
    found = tail_z(np.array([9, 34, 0]), np.array([0.5, 10, 20]))
    assert found == pytest.approx([5.46, 5.80, -5.48], abs=0.01)
    assert tail_z(np.array([0]), np.array([0.0]))[0] == 0


def test_box_sums_are_sums_over_boxes(rng):
    image = rng.poisson(3, (20, 17))
    sums = box_sum(image, 5)
    assert sums.shape == (16, 13)
    assert sums[4, 7] == image[4:9, 7:12].sum()
