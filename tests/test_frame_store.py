"""What is kept of denoised frames, and how much room it takes."""

import h5py
import numpy as np
import pytest

from bluesky_denoise.runs.frame_store import FrameStore, rounded

RATES = np.random.default_rng(1).gamma(0.5, 100, (4, 120, 160)).astype(np.float32)


def test_rates_are_rounded_to_one_part_in_8192():
    saved = rounded(RATES)
    assert saved.dtype == np.float32
    off = np.abs(saved / RATES - 1)
    assert 0.9 / 8192 < off.max() <= 1 / 8192
    np.testing.assert_array_equal(rounded(saved), saved)


def test_counts_that_are_few_enough_are_kept_as_they_are():
    counts = np.arange(8193, dtype=np.float32)
    np.testing.assert_array_equal(rounded(counts), counts)
    np.testing.assert_array_equal(rounded(-counts), -counts)


def test_sums_of_rounded_rates_stay():
    assert rounded(RATES).sum(dtype=float) == pytest.approx(RATES.sum(dtype=float), rel=2e-6)
    # Of the odd numbers here each is as near to one as to another.
    odd = np.arange(8193, 16384, 2, dtype=np.float32)
    assert rounded(odd).sum(dtype=float) == odd.sum(dtype=float)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_what_is_no_number_stays(value):
    np.testing.assert_array_equal(rounded(np.float32([value])), np.float32([value]))
    every_bit = np.array([0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(rounded(every_bit)).all()


def test_what_is_rounded_is_left_as_it_was():
    given = RATES.copy()
    rounded(given)
    np.testing.assert_array_equal(given, RATES)


def test_frames_are_saved_rounded_and_take_half_of_the_room(tmp_path):
    store = FrameStore(tmp_path / "frames.h5", {"det": RATES.shape[1:]}, {})
    store.append("det", RATES)
    store.close()
    with h5py.File(tmp_path / "frames.h5") as file:
        dataset = file["denoised/det"]
        np.testing.assert_array_equal(dataset[()], rounded(RATES))
        assert dataset.id.get_storage_size() < 0.6 * RATES.nbytes
