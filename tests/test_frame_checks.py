"""Which numbers are counts, and which exposures and masks go with them."""

import numpy as np
import pytest

from bluesky_denoise.errors import FrameShapeError, FrameValueError, MaskError
from bluesky_denoise.frame_checks import (
    as_counts,
    check_exposure,
    check_frame,
    check_mask,
    prepare,
    valid_pixels,
)

LARGE = {
    "u1": [0, 255],
    "u2": [0, 65533],
    "i2": [0, 32767],
    "u4": [65534, 65535, 2**32 - 3],
    "i4": [65535, 2**31 - 1],
    "u8": [65535, 2**32 - 3, 2**32, 2**62],
    "i8": [65535, 2**32 - 3, 2**32, 2**63 - 1],
    "f2": [65504],
    "f4": [65535, 2**32 - 256, 2**32 + 512],
    "f8": [65535, 2**32 - 3, 2**32 + 1, 2.0**62],
}
FLAGS = {
    "u2": [65534, 65535],
    "u4": [2**32 - 2, 2**32 - 1],
    "i8": [2**32 - 2, 2**32 - 1],
    "u8": [2**32 - 2, 2**32 - 1, 2**63, 2**64 - 1],
    "f2": [np.nan, np.inf],
    "f4": [np.nan, -np.inf, 2.0**32, 2.0**63],
    "f8": [np.nan, np.inf, 2**32 - 2, 2**32 - 1, 2**32, 2.0**63, 1e300],
}


@pytest.mark.parametrize("dtype", LARGE)
def test_what_is_no_flag_is_a_count_however_large(dtype):
    counts = np.array([LARGE[dtype]], dtype)
    assert valid_pixels(counts).all()
    assert not valid_pixels(counts, np.ones(counts.shape, "u1")).any()
    assert valid_pixels(counts, np.zeros(counts.shape)).all()


@pytest.mark.parametrize("dtype", FLAGS)
def test_what_is_a_flag_is_no_count(dtype):
    counts = np.array([[*FLAGS[dtype], 7]], dtype)
    assert valid_pixels(counts).tolist() == [[False] * len(FLAGS[dtype]) + [True]]
    frames, valid = prepare(counts[None], None)
    assert frames.dtype == np.float32
    assert frames[0, 0].tolist() == [0] * len(FLAGS[dtype]) + [7]
    np.testing.assert_array_equal(valid[0], valid_pixels(counts))


def test_exposures_become_one_for_each_frame():
    for given in (0.5, np.float64(0.5), np.array(0.5), [0.5, 0.5], np.array([0.5, 0.5])):
        found = check_exposure(given, 2, 3)
        assert (found.dtype, found.tolist()) == (np.float32, [0.5, 0.5])
    assert check_exposure(2, 1, 2).tolist() == check_exposure([2], 1, 2).tolist() == [2.0]
    assert check_exposure(np.finfo(np.float32).tiny, 1, 2)[0] > 0
    found = check_exposure(0.5, 2, 3)
    found[0] = 1.0  # a copy
    for given, batch, axes in (([1.0], 2, 3), ([[1.0]], 1, 2), ([[1.0], [1.0]], 2, 3), ([], 1, 2)):
        with pytest.raises(FrameShapeError, match="Exposures of shape"):
            check_exposure(np.array(given, float), batch, axes)


@pytest.mark.parametrize("exposure", [0, -1.0, np.nan, np.inf, [1.0, 0.0], 1e-40, 1e50])
def test_exposures_that_are_not_above_zero_are_none(exposure):
    with pytest.raises(FrameValueError, match="expected seconds, > 0"):
        check_exposure(exposure, 2, 3)


@pytest.mark.parametrize("exposure", ["1.0", True, [[1.0], [1.0, 2.0]], None], ids=str)
def test_an_exposure_that_is_no_number_is_none(exposure):
    with pytest.raises(FrameValueError, match="is no number of seconds"):
        check_exposure(exposure, 1, 3)


def test_a_mask_is_true_where_it_is_not_zero():
    assert check_mask(None, (1, 3)) is None
    assert check_mask(np.array([[0, 2, -1]]), (1, 3)).tolist() == [[False, True, True]]
    with pytest.raises(MaskError, match=r"mask has shape \(3, 1\); the frames need \(1, 3\)"):
        check_mask(np.zeros((3, 1)), (1, 3))
    with pytest.raises(MaskError, match="mask has dtype <U1"):
        check_mask(np.array([["a"]]), (1, 1))


def test_a_frame_has_two_axes_a_pixel_and_numbers():
    for dtype in ("?", "u2", "i4", "f8"):
        check_frame(np.zeros((1, 1), dtype))
    for shape in ((3,), (1, 1, 1), (0, 3)):
        with pytest.raises(FrameShapeError, match="was given; expected"):
            check_frame(np.zeros(shape))
    with pytest.raises(FrameValueError, match="dtype complex128"):
        check_frame(np.zeros((1, 1), complex))


def test_what_an_array_masks_is_not_lost():
    hidden = np.ma.masked_array([[1, 2]], mask=[[False, True]])
    with pytest.raises(FrameValueError, match="A masked array was given"):
        as_counts(hidden)
    assert as_counts(np.ma.masked_array([[1, 2]])).tolist() == [[1, 2]]
    assert as_counts([[1, 2]]).tolist() == [[1, 2]]


def test_negative_counts_are_refused_with_their_number_and_place():
    bad = np.zeros((2, 3, 4), int)
    bad[1, 2, 3] = bad[1, 2, 1] = -7
    with pytest.raises(
        FrameValueError, match=r"2 pixels are negative, the first is -7 .*1, 2, 1\)"
    ):
        prepare(bad, None)
    assert prepare(bad, bad[1] < 0)[1].sum() == 2 * 10
