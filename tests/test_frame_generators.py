from pathlib import Path

import numpy as np
import pytest
from ophyd.sim import SynAxis

from bluesky_denoise.errors import FrameShapeError, FrameValueError, SettingsError
from bluesky_denoise.simulation import (
    ReplayFrames,
    SceneFrames,
    diffraction_scene,
    recorded_frames,
    reference,
)

SHAPE = (16, 20)


@pytest.fixture
def counts():
    return np.random.default_rng(1).poisson(5, (7, *SHAPE)).astype(np.uint16)


@pytest.fixture
def frames(counts):
    return ReplayFrames(counts, exposure_s=1.0)


# Recorded frames


def test_the_recorded_line_has_raw_counts_a_mask_and_its_exposure():
    recorded = recorded_frames()
    assert recorded.counts.shape == (51, 195, 487)
    assert recorded.counts.dtype == np.uint16
    assert recorded.mask.shape == (195, 487)
    assert recorded.mask.dtype == bool
    assert recorded.exposure_s == 1.0
    assert "islatu" in recorded.source
    assert "MIT" in recorded.source


def test_a_reference_is_the_sum_of_the_neighbours_without_the_frame_itself():
    recorded = recorded_frames()
    counts, exposure_s = reference(recorded, 20, half_width=2)
    assert exposure_s == 4.0
    expected = recorded.counts[[18, 19, 21, 22]].sum(axis=0, dtype=np.int64)
    np.testing.assert_array_equal(counts, expected)


def test_thirty_one_frames_have_a_reference_of_twenty_seconds():
    recorded = recorded_frames()
    for i in (10, 40):
        assert reference(recorded, i)[1] == 20.0
    for i in (9, 41, -1):
        with pytest.raises(SettingsError, match=r"take i from 10 to 40"):
            reference(recorded, i)


def test_a_recorded_frame_differs_from_its_reference_by_counting_noise_alone():
    recorded = recorded_frames()
    counts, exposure_s = reference(recorded, 25)
    expected = counts / exposure_s
    bright = expected >= 5
    ratio = np.mean((recorded.counts[25] - expected)[bright] ** 2 / expected[bright]) / 1.05
    # 1.05: the reference has 1/20 of the variance. The README of the data found 0.98.
    assert ratio == pytest.approx(0.98, abs=0.04)


def test_unknown_recorded_frames_are_refused_with_the_names_there_are():
    with pytest.raises(SettingsError, match=r"No recorded frames named 'moon'; there are i07_line"):
        recorded_frames("moon")


def test_the_notice_of_the_recorded_frames_ships_with_them():
    import bluesky_denoise.simulation as simulation

    folder = Path(simulation.__file__).parent / "frames"
    assert "Diamond Light Source" in (folder / "LICENSE.i07").read_text()
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3e6


# Frame generators


def test_recorded_frames_are_played_in_order_and_begin_again(counts, frames):
    for i in (0, 1, 2, 3, 4, 5, 6, 0, 1):
        frame = frames(1.0)
        assert frame.dtype == np.uint32
        np.testing.assert_array_equal(frame, counts[i])


def test_a_longer_exposure_is_the_sum_of_the_frames_that_follow(counts, frames):
    np.testing.assert_array_equal(frames(3.0), counts[:3].sum(axis=0))
    np.testing.assert_array_equal(frames(5.0), counts[[3, 4, 5, 6, 0]].sum(axis=0))


def test_exposures_that_are_a_multiple_but_for_rounding_are_summed(counts):
    frames = ReplayFrames(counts, exposure_s=0.1)
    np.testing.assert_array_equal(frames(0.1 * 3), counts[:3].sum(axis=0))


def test_a_shorter_exposure_thins_the_photons_and_stays_poisson():
    frames = ReplayFrames(np.random.default_rng(2).poisson(40, (1, 200, 200)), exposure_s=1.0)
    frame = frames(0.25)
    # Poisson of mean 10 over 40,000 pixels: the mean is known to 0.016, the variance to 0.07.
    assert frame.mean() == pytest.approx(10, abs=0.06)
    assert frame.var() == pytest.approx(10, abs=0.3)
    assert (frame <= 40 * 4).all()


def test_an_exposure_that_recorded_frames_cannot_make_is_refused(frames):
    with pytest.raises(SettingsError, match=r"1.5 s cannot be made of recorded frames of 1.0 s"):
        frames(1.5)


@pytest.mark.parametrize("exposure_s", [0, -1.0, float("nan"), float("inf")])
def test_an_exposure_must_be_positive(frames, exposure_s):
    with pytest.raises(SettingsError, match=r"expected more than 0 s"):
        frames(exposure_s)
    with pytest.raises(SettingsError, match=r"expected more than 0 s"):
        SceneFrames(diffraction_scene((32, 32)))(exposure_s)


def test_only_stacks_of_counts_are_replayed():
    with pytest.raises(FrameShapeError, match=r"shape \(16, 20\); expected \(n, H, W\)"):
        ReplayFrames(np.zeros(SHAPE, int), 1.0)
    with pytest.raises(FrameValueError, match=r"float64, from 0.0; expected raw counts"):
        ReplayFrames(np.zeros((2, *SHAPE)), 1.0)
    with pytest.raises(FrameValueError, match=r"from -1"):
        ReplayFrames(np.full((2, *SHAPE), -1), 1.0)


def test_what_marks_pixels_that_are_not_valid_is_not_replayed():
    counts = np.ones((2, *SHAPE), np.uint32)
    counts[1, 3, 4] = 2**32 - 1
    told = r"hold 4294967295 in frame 1, row 3, column 4; .* Set those to 0, and mask them"
    with pytest.raises(FrameValueError, match=told):
        ReplayFrames(counts, 1.0)
    with pytest.raises(FrameValueError, match=r"hold 9223372036854775813 in frame 0"):
        ReplayFrames(np.full((1, *SHAPE), 2**63 + 5, np.uint64), 1.0)


def test_a_sum_that_frames_cannot_hold_is_refused():
    frames = ReplayFrames(np.full((2, *SHAPE), 2**31, np.uint32), 1.0)
    assert frames(1.0)[0, 0] == 2**31
    with pytest.raises(FrameValueError, match=r"exposure of 2.0 s has 4294967296 counts"):
        frames(2.0)


def test_the_counts_of_a_scene_scale_with_the_exposure():
    scene = diffraction_scene((64, 96))
    frames = SceneFrames(scene)
    rate = np.where(scene.mask, 0, scene.rate).sum()
    for exposure_s in (0.1, 10.0):
        expected = rate * exposure_s
        # Five standard deviations of the Poisson total.
        assert frames(exposure_s).sum() == pytest.approx(expected, abs=5 * expected**0.5)


def test_the_same_seed_gives_the_same_frames():
    scene = diffraction_scene((32, 32))
    np.testing.assert_array_equal(SceneFrames(scene, seed=3)(1.0), SceneFrames(scene, seed=3)(1.0))


def test_peaks_follow_a_motor_and_the_background_stays():
    scene = diffraction_scene((64, 96), hot_pixels=0)
    motor = SynAxis(name="motor")
    frames = SceneFrames(scene, position=lambda: motor.position, centre=2.0, width=0.5)
    peak = scene.satellites[0]
    pixel = round(peak.row), round(peak.col)

    motor.set(2.0).wait()
    assert frames.brightness == 1
    np.testing.assert_array_equal(frames.rate(), scene.rate)
    motor.set(2.5).wait()
    assert frames.brightness == pytest.approx(np.exp(-0.5))
    motor.set(100.0).wait()
    dark = frames.rate()
    assert dark[pixel] < 0.7 * scene.rate[pixel]
    # Far from every peak, nothing has changed.
    np.testing.assert_allclose(dark[0, 0], scene.rate[0, 0], rtol=1e-6)


def test_hot_pixels_stay_as_they_are_under_a_peak_that_fades():
    scene = diffraction_scene((48, 64), hot_pixels=200)
    frames = SceneFrames(scene, position=lambda: 100.0)
    peak = scene.braggs[0]
    rows, cols = np.nonzero(scene.hot)
    assert np.hypot(rows - peak.row, cols - peak.col).min() < 3
    np.testing.assert_array_equal(frames.rate()[scene.hot], 2000.0)
    assert frames.rate()[~scene.hot].max() < 10  # without peaks


def test_a_rocking_curve_needs_a_width():
    with pytest.raises(SettingsError, match=r"0 wide"):
        SceneFrames(diffraction_scene((32, 32)), width=0)
