"""The statistics of counts that the audit rests on, against sums over all counts."""

import numpy as np
import pytest
from scipy import stats

from bluesky_denoise.photons.poisson import (
    added_deviance,
    box_sum,
    deviance,
    expected_deviance,
    square_sums,
    tail_z,
)


def all_counts(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return counts, as many as may come, with their chances."""
    counts = np.arange(int(rate + 15 * np.sqrt(rate) + 20))
    return counts, stats.poisson.pmf(counts, rate)


def test_a_deviance_is_twice_the_logarithm_of_how_much_likelier_the_best_rate_is():
    for rate in (0.2, 3.0, 40.0):
        counts, chance = all_counts(rate)
        best = stats.poisson.logpmf(counts, np.maximum(counts, 1e-300))
        best[0] = 0  # nothing, where nothing is expected
        np.testing.assert_allclose(deviance(counts, rate), 2 * (best - np.log(chance)), atol=1e-9)
    assert deviance(np.array([0, 2]), np.array([0.0, 0.0])).tolist() == [0, np.inf]
    assert deviance(3, 3.0) == 0


@pytest.mark.parametrize("rate", [1e-7, 0.001, 0.0123, 0.4, 1.0, 2.2, 30.0, 149.0, 155.0, 900.0])
def test_the_deviance_of_counts_has_the_expected_mean_and_variance_at_every_level(rate):
    counts, chance = all_counts(rate)
    found = deviance(counts, rate)
    near = 1e-5 if rate > 10 else 3e-4  # between the places of a table
    mean, variance = expected_deviance(np.array([rate]))
    assert mean[0] == pytest.approx(chance @ found, rel=near)
    assert variance[0] == pytest.approx(chance @ (found - chance @ found) ** 2, rel=2 * near)


def test_the_deviance_tends_to_that_of_a_normal_deviate_and_to_nothing_in_the_dark():
    mean, variance = expected_deviance(np.array([0.0, 9e-9, 999.0, 1e6]))
    assert mean == pytest.approx([0, 0, 1, 1], abs=2e-4)
    assert variance == pytest.approx([0, 0, 2, 2], abs=1e-3)


@pytest.mark.parametrize("share", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("rate", [3.0, 10.0, 100.0])
def test_the_noise_of_an_estimate_adds_the_deviance_that_is_said(rate, share):
    counts, chance = all_counts(rate)
    others, likely = all_counts(rate / share)
    estimate = np.maximum(others * share, 1e-9)
    mean, _ = expected_deviance(estimate)
    each = chance @ deviance(counts[:, None], estimate[None])
    found = likely @ (each - mean)
    told = likely @ added_deviance(estimate, share * estimate)
    # Counts of 0 make an estimate that has all the noise of few photons infinitely wrong.
    if rate > 5 or share < 0.1:
        assert found == pytest.approx(told, rel=0.08)
    assert told < 2


def test_what_noise_adds_is_that_of_photons_at_most_and_never_more_than_twice_their_own():
    assert added_deviance(400.0, 40.0) == pytest.approx(0.1, rel=1e-3)
    assert added_deviance(400.0, 1e6) == added_deviance(400.0, 400.0)
    # For few photons twice the share, and what is of the next order.
    assert added_deviance(0.01, 1e-5) == pytest.approx(1e-3 * (1 + np.exp(-0.01)) * 1.15)
    assert added_deviance(0.01, 0.01) == 2 * expected_deviance(0.01)[0]
    assert added_deviance(0.0, 0.0) == 0


def exact_z(counts: np.ndarray, rate: float) -> np.ndarray:
    above = stats.norm.isf(stats.poisson.sf(counts - 1, rate))
    below = stats.norm.ppf(stats.poisson.cdf(counts, rate))
    return np.where(counts > rate, np.maximum(above, 0), np.minimum(below, 0))


@pytest.mark.parametrize(
    ("rate", "more", "fewer"),
    [(0.01, 1.1, 0), (0.1, 0.7, 0), (1.0, 0.3, 0.1), (10.0, 0.1, 0.2), (20.0, 0.1, 0.4)]
    + [(50.0, 0.1, 0.1), (3000.0, 0.1, 0.1)],
)
def test_tails_of_counts_are_normal_deviates_as_far_as_is_said(rate, more, fewer):
    counts = np.arange(int(rate + 8 * np.sqrt(rate) + 8))
    exact = exact_z(counts, rate)
    near = np.abs(exact) < 6
    found, exact, counts = tail_z(counts, rate)[near], exact[near], counts[near]
    above = counts > rate
    # More surprising than they are by 0.02 at most, and less by what the docstring has.
    assert (np.abs(found) - np.abs(exact)).max() < 0.021
    assert (exact - found)[above].max() < more + 0.06
    assert (found - exact)[~above].max(initial=0) < fewer + 0.06
    assert (found[above] >= 0).all()
    assert (found[~above] <= 0).all()


def test_tails_have_limits_and_nothing_is_no_surprise():
    z = tail_z(np.array([0, 0, 1e6, 0]), np.array([0.0, 1e6, 1e-9, 20]))
    assert z == pytest.approx([0, -100, 100, -5.48], abs=0.01)


@pytest.mark.parametrize("side", [1, 3, 4, 5])  # small ones are summed in another way
@pytest.mark.parametrize("dtype", ["u1", "u2", "i8", "f4", "?"])
def test_box_sums_are_sums_over_boxes(dtype, side):
    image = (np.random.default_rng(20).poisson(3, (20, 17)) * 60).astype(dtype)
    sums = box_sum(image, side)
    assert sums.dtype == np.float64
    assert sums.shape == (21 - side, 18 - side)
    for (row, col), found in np.ndenumerate(sums):
        assert found == image[row : row + side, col : col + side].sum(dtype=float)
    total = np.pad(image.astype(float), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    np.testing.assert_array_equal(square_sums(total, side, 3), sums[::3, ::3])
