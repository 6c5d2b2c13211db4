"""Fits by the likelihood of Poisson noise, against what is known by hand."""

import numpy as np
import pytest

from bluesky_denoise.photons.poisson_fit import fit_poisson

X = np.arange(40.0)


def free(tried: np.ndarray, before: np.ndarray) -> np.ndarray:
    return tried


def peak(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, centre, sigma, level = parameters.T[:, :, None]
    u = (X - centre) / sigma
    g = np.exp(-0.5 * u * u)
    slopes = [g, height * g * u / sigma, height * g * u * u / sigma, np.ones_like(g)]
    return height * g + level, np.stack(slopes, 1)


def near(tried: np.ndarray, before: np.ndarray) -> np.ndarray:
    tried[:, [0, 2, 3]] = np.clip(
        tried[:, [0, 2, 3]], before[:, [0, 2, 3]] / 5, before[:, [0, 2, 3]] * 5
    )
    return tried


def test_the_most_likely_height_of_a_known_profile_is_its_share_of_all_counts():
    profile = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    counts = np.array([[5, 1, 0, 4, 2], [0, 90, 210, 0, 500]])
    found, information = fit_poisson(
        counts,
        lambda p: (p * profile, np.broadcast_to(profile, (2, 1, 5))),
        np.array([[30], [30]]),
        free,
    )
    # Which is not that of least squares; where nothing is expected, nothing is said.
    np.testing.assert_allclose(found[:, 0], [7, 800])
    np.testing.assert_allclose(information[:, 0, 0], [1 / 7, 1 / 800])


def test_peaks_are_found_all_at_once_from_starts_that_are_far_off():
    truth = np.array([50.0, 20.0, 3.0, 2.0])
    starts = np.array(
        [[50, 20, 3, 2], [9, 25, 1, 9], [400, 14, 2, 0.1], [20, 26, 8, 1], [50, 13, 3, 2]]
    )
    counts = np.repeat(peak(truth[None])[0], len(starts), 0)
    found, information = fit_poisson(counts, peak, starts, near)
    np.testing.assert_allclose(found, np.tile(truth, (len(starts), 1)), rtol=1e-5)
    expected, slopes = peak(truth[None])
    fisher = (slopes[0] / expected) @ slopes[0].T
    np.testing.assert_allclose(information, np.tile(fisher, (len(starts), 1, 1)), 1e-4, 1e-6)
    # A step that makes the counts less likely is not taken.
    kept, information = fit_poisson(
        counts[:1], peak, truth[None], lambda tried, before: 1.3 * before, steps=1
    )
    np.testing.assert_array_equal(kept[0], truth)
    np.testing.assert_allclose(information[0], fisher, 1e-9, 1e-12)


def test_what_no_count_tells_stays_where_it_began():
    def level(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        expected = np.repeat(p[:, :1], 4, 1)
        return expected, np.stack([np.ones_like(expected), np.zeros_like(expected)], 1)

    start = np.array([[3.0, 7.0]])
    found, information = fit_poisson(np.array([[4, 6, 5, 9]]), level, start, free)
    assert found[0] == pytest.approx([6, 7])
    np.testing.assert_allclose(information[0], [[4 / 6, 0], [0, 0]])
    np.testing.assert_array_equal(start, [[3, 7]])
