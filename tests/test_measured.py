from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from bluesky_denoise.errors import FrameShapeError, FrameValueError
from bluesky_denoise.evaluation.baselines import gaussian
from bluesky_denoise.evaluation.frame_sets import (
    FrameSet,
    frame_set,
    lit_frames,
    middle,
    read_frame_set,
)
from bluesky_denoise.evaluation.known_sets import KnownSet
from bluesky_denoise.evaluation.methods import Method, baselines
from bluesky_denoise.evaluation.neighbours import neighbour_scores, pairs
from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.run import Gallery, score_measured
from bluesky_denoise.evaluation.shift import gaussian_variance, shift_scores
from bluesky_denoise.evaluation.spots import find_spots, spot_scores
from bluesky_denoise.evaluation.thinned import thinned_scores
from bluesky_denoise.frames import Denoised
from bluesky_denoise.testing import UnitDenoiser

METHODS = baselines(bm3d=False)[:2]


def quiet(items, what):
    return items


def level():
    rate = 20 + 8 * np.cos(np.linspace(0, 5, 80))[:, None] * np.ones(120)
    rate[:, 58:63] += 15
    return rate


def series(frames=5, known=None):
    rng = np.random.default_rng(0)
    counts = rng.poisson(level(), (frames, 80, 120))
    return FrameSet("line", counts, np.zeros((80, 120), bool), known or KnownSet("yes"))


def test_thinned_scores_rank_the_truth_first_and_the_raw_frame_last():
    shares = iter((0.5, 0.1))
    truth = Method("truth", lambda n, mask, judge: level() * round(n.mean() / 20, 1))
    scores = thinned_scores(
        series(), [*METHODS, truth], quiet, fractions=tuple(shares), most_frames=1
    )
    found = {(s.fraction, s.method): s for s in scores}
    for share in (0.5, 0.1):
        # 9600 pixels: a few percent each.
        assert found[share, "raw"].error == pytest.approx(1, abs=0.1)
        assert found[share, "truth"].error == pytest.approx(0, abs=0.03)
        assert found[share, "best Gaussian"].against_gaussian == 0
        assert found[share, "truth"].against_gaussian < 0
        assert found[share, "truth"].deviance == pytest.approx(1, abs=0.05)
        assert found[share, "raw"].flux == 1
    assert found[0.5, "raw"].deviance == pytest.approx(2, abs=0.3)


def test_a_frame_is_not_among_its_own_neighbours():
    known = KnownSet("yes", targets=range(5), around=4, line=60)
    frames = series(known=known)
    for i, counts, reference, _ in pairs(frames, middle((80, 120), (80, 120))):
        np.testing.assert_array_equal(reference, frames.counts.sum(0) - counts)
        np.testing.assert_array_equal(counts, frames.counts[i])
    truth = Method("truth", lambda n, mask, judge: level())
    scores = neighbour_scores(frames, [*METHODS, truth], quiet, fractions=(1.0,))
    found = {s.method: s for s in scores}
    assert found["truth"].frames == 5
    assert found["truth"].times_longer == pytest.approx(4, rel=0.02)
    assert found["truth"].error == pytest.approx(0, abs=0.01)
    assert found["raw"].error == pytest.approx(1, abs=0.05)
    assert found["truth"].contrast == pytest.approx(1, abs=0.02)


def test_scores_of_a_scan_say_how_far_off_the_worst_frame_is_and_how_sure_the_mean():
    frames = series(known=KnownSet("yes", targets=range(5), around=4, line=60))
    calls = iter(range(1000))

    def fades(n, mask, judge):
        # Every frame of a half of the photons loses more than the one before.
        return n * (1 - 0.01 * (next(calls) % 5))

    def flatter(n, mask, judge):
        line = np.s_[:, 58:63]
        image = level() * n.sum() / level().sum()
        image[line] -= 7.5 * n.sum() / level().sum()
        return image

    worse, half = Method("fades", fades), Method("flatter", flatter)
    (found, flat) = neighbour_scores(frames, [worse, half], quiet, fractions=(0.5,))
    assert found.flux == pytest.approx(0.96)
    assert found.times_longer == pytest.approx(8, rel=0.05)
    # Half of the height of the line is left; its noise is 2 %.
    assert flat.contrast == pytest.approx(0.5, abs=0.05)
    assert 0.002 < flat.contrast_spread < 0.02
    truth = Method("truth", lambda n, mask, judge: level() / 2)
    alone = [
        neighbour_scores(
            series(known=KnownSet("yes", targets=[i], around=4)), [truth], quiet, fractions=(0.5,)
        )[0].error
        for i in range(5)
    ]
    (told,) = neighbour_scores(frames, [truth], quiet, fractions=(0.5,))
    assert told.error == pytest.approx(np.mean(alone))
    assert told.error_spread == pytest.approx(np.std(alone, ddof=1) / np.sqrt(5))
    calls = iter(range(1000))
    thinned = thinned_scores(frames, [*METHODS, worse], quiet, fractions=(0.5,), most_frames=5)
    assert {s.method: s.flux for s in thinned}["fades"] == pytest.approx(0.96)


def test_frames_that_do_not_fit_their_neighbours_are_left_out():
    frames = series(known=KnownSet("yes", targets=range(5), around=4))
    frames.counts[2, 30:60, 30:60] *= 2
    assert 2 not in [i for i, *_ in pairs(frames, middle((80, 120), (80, 120)))]


def test_a_spot_that_comes_and_goes_is_not_scored_but_the_frame_is():
    frames = series(known=KnownSet("yes", targets=[2], around=4))
    frames.counts[2, 31, 32] += 5000
    ((i, _, _, moved),) = pairs(frames, middle((80, 120), (80, 120)))
    assert i == 2
    assert moved.sum() == 25
    assert moved[30:35, 30:35].all()


def test_files_of_both_layouts_are_read_and_integrating_detectors_refused(tmp_path):
    counts = series().counts.astype(np.uint16)
    with h5py.File(tmp_path / "ours.h5", "w") as file:
        file["frames"] = counts
        file["mask"] = np.eye(80, 120, dtype=np.uint8)
    with h5py.File(tmp_path / "paper.h5", "w") as file:
        file["low_count/data"] = np.moveaxis(counts, 0, -1)
    with h5py.File(tmp_path / "panel.h5", "w") as file:
        file["frames"] = counts + 2000
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"] = counts
    assert read_frame_set(tmp_path / "ours.h5").mask.sum() == 80
    np.testing.assert_array_equal(read_frame_set(tmp_path / "paper.h5").counts, counts)
    with pytest.raises(FrameValueError, match=r"Frame 0 .*: counts scatter unlike photons"):
        read_frame_set(tmp_path / "panel.h5")
    np.testing.assert_array_equal(read_frame_set(tmp_path / "other.h5").counts, counts)
    with h5py.File(tmp_path / "other.h5", "a") as file:
        file["dark"] = counts
    with pytest.raises(FrameShapeError, match=r"2 stacks of frames, \['/dark', '/image'\]"):
        read_frame_set(tmp_path / "other.h5")
    with pytest.raises(FrameValueError, match="says of itself: integrating"):
        frame_set("panel", counts, kind="integrating")
    with pytest.raises(FrameShapeError, match=r"expected numbers \(n, H, W\)"):
        frame_set("flat", counts[0])


@pytest.mark.parametrize(
    ("dtype", "flag"),
    [
        ("uint64", 2**64 - 1),
        ("uint32", 2**32 - 1),
        ("uint16", 2**16 - 1),
        ("int32", -1),
        ("float64", 2**32 - 1),
        ("float32", 2**32 - 1),
        ("float32", np.nan),
        ("float64", np.inf),
    ],
)
def test_pixels_that_flag_themselves_are_masked_in_every_frame(dtype, flag):
    counts = series(2).counts.astype(dtype)
    counts[:, 10:14] = flag
    counts[1, 50, 60] = flag
    found = frame_set("gaps", counts)
    assert found.mask.sum() == 4 * 120 + 1
    assert found.mask[50, 60]
    assert found.counts.dtype.kind in "ui"
    assert found.counts.max() < 200
    assert not found.counts[:, found.mask].any()


def test_frames_in_groups_and_single_frames_are_read(tmp_path):
    counts = series(3).counts.astype(np.uint32)
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        file["entry/data/data"] = counts
        file["entry/instrument/detector/data"] = file["entry/data/data"]
        file["entry/instrument/detector/pixel_mask"] = np.eye(80, 120, dtype=np.uint32)
        file["entry/instrument/detector/flatfield"] = np.ones((80, 120))
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["frames"] = counts[0]
    found = read_frame_set(tmp_path / "scan.nxs")
    assert found.mask.sum() == 80
    np.testing.assert_array_equal(found.counts[:, 40, 60], counts[:, 40, 60])
    assert read_frame_set(tmp_path / "one.h5").counts.shape == (1, 80, 120)


@pytest.mark.parametrize(
    ("empty", "message"),
    [("frames", r"a\.h5 has /frames with no value in it .*expected frames \(n, H, W\)"),
     ("mask", r"has a `mask` that is .*; expected a data set")],
)  # fmt: skip
def test_data_sets_without_a_value_are_refused(tmp_path, empty, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"] = series(2).counts
        file.pop(empty, None)
        file[empty] = h5py.Empty("i4")
    with pytest.raises(FrameShapeError, match=message):
        read_frame_set(tmp_path / "a.h5")


def test_flags_alone_are_no_counts():
    counts = np.zeros((2, 80, 120))
    counts[:, 3, 3] = 2**32 - 1
    with pytest.raises(FrameValueError, match="dark holds no counts in its 9599 valid pixels"):
        frame_set("dark", counts)


def test_dark_frames_are_not_among_those_that_are_thinned():
    dark = np.zeros((3, 80, 120), int)
    frames = frame_set("shutter", np.concatenate([dark, series(3).counts, dark[:1]]))
    found = {s.method: s for s in thinned_scores(frames, METHODS, quiet, fractions=(0.5,))}
    # 2 frames of 9600 pixels.
    assert found["raw"].error == pytest.approx(1, abs=0.1)
    assert found["raw"].counts_per_pixel == pytest.approx(level().mean() / 2, rel=0.02)
    frames.counts[:, 0] = 1
    assert thinned_scores(frame_set("edge", (frames.counts == 1) * 1), METHODS, quiet)
    window = {"fractions": (0.5,), "most_shape": (40, 40)}
    corner = np.zeros((2, 80, 120), int)
    corner[:, 0] = 1
    assert thinned_scores(frame_set("corner", corner), METHODS, quiet, **window) == []
    # Nor are those with counts in masked pixels alone, or that a series does not have any more.
    hidden = FrameSet("hidden", corner, corner[0] > 0, KnownSet("yes", frames=(0, 1, 2)))
    assert lit_frames(hidden, np.s_[:, :]) == []


def test_the_flux_is_that_of_the_parts_with_photons():
    one = np.zeros((1, 80, 120), int)
    one[0, 40, 60] = 1
    glow = Method("glow", lambda n, mask, judge: n + 1e-6)
    scores = thinned_scores(frame_set("one", one), [*METHODS, glow], quiet, fractions=(0.5, 0.01))
    fluxes = {s.fraction: s.flux for s in scores if s.method == "glow"}
    levels = {s.fraction: s.counts_per_pixel for s in scores}
    for fraction, flux in fluxes.items():
        assert np.isnan(flux) if levels[fraction] == 0 else flux == pytest.approx(1.0096)
    assert 0 in levels.values()
    both = frame_set("one", np.concatenate([one, series(1).counts]))  # the dark part comes first
    scores = thinned_scores(both, [*METHODS, glow], quiet, fractions=(0.01,))
    assert scores[-1].flux == pytest.approx(1, abs=1e-4)


def test_the_flux_against_neighbours_is_that_of_the_parts_with_photons():
    glow = Method("glow", lambda n, mask, judge: n + 1e-6)
    frames = series(known=KnownSet("yes", targets=range(1, 5), around=4))
    # Of 200,000 counts of each, none is left of the first, two of another.
    scores = neighbour_scores(frames, [glow], quiet, fractions=(5e-6, 1e-12))
    assert [s.flux for s in scores] == pytest.approx([1.0048, np.nan], nan_ok=True)


def test_a_series_that_is_refused_on_the_way_is_left_out_and_the_others_are_scored():
    known = KnownSet("yes")
    bad = FrameSet("bad", np.full((1, 80, 120), -1), np.zeros((80, 120), bool), known)
    result, gallery = Evaluation("unit"), Gallery()
    score_measured(result, [bad, series(1, known)], METHODS, UnitDenoiser2(), quiet, gallery)
    assert {s.set for s in result.thinned} == {s.set for s in result.shift} == {"line"}
    (told,) = result.left_out
    assert told.startswith("bad: Frames of dtype int64, least value -1, cannot be thinned")
    assert [title for title, *_ in gallery.shown] == ["line, 10 % of the photons"]


def test_dark_frames_and_pedestals_are_refused_with_a_reason():
    with pytest.raises(FrameValueError, match="dark holds no counts in its 9600 valid pixels"):
        frame_set("dark", np.zeros((2, 80, 120), int))
    analog = np.rint(np.random.default_rng(0).normal(5, 10, (2, 80, 120))).astype(int)
    with pytest.raises(FrameValueError, match=r"least value of -\d+: an integrating detector"):
        frame_set("panel", analog)


@pytest.mark.parametrize("shape", [(1, 80, 120), (6, 48, 64)])
def test_a_single_frame_and_a_scan_that_changes_a_lot_are_scored(shape):
    strength = np.geomspace(1e-4, 1e4, shape[0]) if shape[0] > 1 else [1.0]
    rate = np.broadcast_to(level()[: shape[1], : shape[2]], shape)
    counts = np.random.default_rng(0).poisson(rate * np.reshape(strength, (-1, 1, 1)))
    frames = frame_set("odd", counts)
    scores = thinned_scores(frames, METHODS, quiet, most_frames=len(counts))
    assert len(scores) == 2 * 3
    for score in scores:
        assert np.isfinite([score.deviance, score.error, score.flux]).all()
    audits = shift_scores(frames, UnitDenoiser2(), quiet, most_frames=len(counts))
    assert [a.estimates for a in audits] == ["unit", "smeared"]


def spotty():
    counts = np.random.default_rng(0).poisson(2.0, (64, 80))
    counts[20, 30] += 60
    counts[40, 50] += 900
    counts[41, 50] += 500
    return counts


def test_spots_are_found_once_and_away_from_masks():
    counts, mask = spotty(), np.zeros((64, 80), bool)
    assert find_spots(counts, mask).tolist() == [[20, 30], [40, 50]]
    mask[20, 33] = True
    assert find_spots(counts, mask).tolist() == [[40, 50]]


def test_what_spots_keep_is_measured_and_lost_ones_are_counted():
    known = KnownSet("yes", stills=[0])
    frames = FrameSet("spots", spotty()[None], np.zeros((64, 80), bool), known)
    half = Method("half", lambda n, mask, judge: n * 0.45)
    whole = Method("whole", lambda n, mask, judge: n * 1.0)
    found = {(s.method, s.significance): s for s in spot_scores(frames, [half, whole], quiet)}
    assert found["whole", "above 20"].kept == 1
    assert found["half", "above 20"].kept == pytest.approx(0.45)
    assert found["half", "above 20"].lost == found["half", "above 20"].spots == 1
    assert found["half", "above 20"].lost_at == ((0, 40, 50),)
    seen = spot_scores(frames, [replace(half, slow=True)], quiet, most_shape=(50, 70))
    lost = {s.significance: s.lost_at for s in seen if s.method == "half, middle of the frame"}
    assert lost["above 20"] == ((0, 40, 50),)  # of the whole frame
    # A Gaussian of one pixel spreads a spot of one pixel over more than 5 x 5 pixels.
    assert 0.7 < found["Gaussian 1 px", "above 20"].kept < 0.99


def test_smeared_estimates_are_failures_that_the_audit_flags():
    frames = series()
    frames.counts[:] = np.random.default_rng(1).poisson(20 * level(), frames.counts.shape)
    scores = {s.estimates: s for s in shift_scores(frames, UnitDenoiser2(), quiet)}
    assert scores["smeared"].failures >= 8
    assert scores["smeared"].flagged >= 0.9 * scores["smeared"].failures


def test_noise_that_is_left_in_and_stated_is_no_failure():
    frames = series()
    frames.counts[:] = np.random.default_rng(1).poisson(20 * level(), frames.counts.shape)
    for sigma, failures in ((np.sqrt(20 * level() / 3), 0), (None, 4)):
        denoiser = UnitDenoiser2(sigma)
        scores = {s.estimates: s for s in shift_scores(frames, denoiser, quiet)}
        assert scores[denoiser.name].failures == failures


def test_flags_of_failures_and_of_right_ones_are_counted_apart(monkeypatch):
    frames = series()
    frames.counts[:] = np.random.default_rng(1).poisson(20 * level(), frames.counts.shape)
    rate, verdicts = 20 * level() / 3, []

    class True_(UnitDenoiser2):
        def denoise(self, counts, exposure_s, mask=None):
            return Denoised(rate.astype(np.float32), np.full(rate.shape, 1e-3, np.float32))

    def audit(held_out, expected, mask, *, seen, sigma):
        verdicts.append((held_out, seen))
        return SimpleNamespace(ok=len(verdicts) % 10 in (0, 1))  # flags most, right ones or not

    monkeypatch.setattr("bluesky_denoise.evaluation.shift.audit_rate", audit)
    true, smeared = shift_scores(frames, True_(), quiet)
    assert (true.failures, true.right) == (0, 4)
    # Five estimates of each frame, the first of them the truth: those of frames 0 and 2 pass.
    assert true.alarms == 2
    assert smeared.failures > smeared.flagged > 0
    assert smeared.alarms <= smeared.right


def test_the_audit_is_tried_on_the_frames_of_a_series_that_are_scored_alone(monkeypatch):
    frames, asked = series(known=KnownSet("sample seen", frames=(1, 3))), []
    denoiser = UnitDenoiser2()
    monkeypatch.setattr(
        "bluesky_denoise.evaluation.shift.rng_of",
        lambda name, frame: asked.append(frame) or np.random.default_rng(frame),
    )
    scores = shift_scores(frames, denoiser, quiet)
    assert asked == [1, 3]
    assert {s.held_out for s in scores} == {"sample seen"}


def test_the_audit_and_its_judge_see_different_photons(monkeypatch):
    judged, audited = [], []

    def audit(held_out, expected, mask, *, seen, sigma):
        audited.append((held_out.copy(), seen.copy()))
        return SimpleNamespace(ok=True)

    def excess(estimate, counts, sigma, mask):
        judged.append(counts.copy())
        return 0.0, 0.0

    monkeypatch.setattr("bluesky_denoise.evaluation.shift.audit_rate", audit)
    monkeypatch.setattr("bluesky_denoise.evaluation.shift.unexplained_deviance", excess)
    frames = series(1)
    shift_scores(frames, UnitDenoiser2(), quiet)
    for counts, (held_out, seen) in zip(judged, audited, strict=True):
        np.testing.assert_array_equal(counts + held_out + seen, frames.counts[0])


def test_the_variance_of_a_gaussian_average_is_that_of_its_scatter():
    rng = np.random.default_rng(4)
    mask = np.zeros((40, 40), bool)
    many = np.stack([gaussian(rng.poisson(9.0, mask.shape), 2.0, mask) for _ in range(400)])
    told = gaussian_variance(np.full(mask.shape, 9.0), 2.0, mask)
    inside = np.s_[8:-8, 8:-8]
    # 400 draws tell a variance to 7 %, some 20 independent pixels to less than 2 %.
    assert many.var(0)[inside].mean() == pytest.approx(told[inside].mean(), rel=0.06)


class UnitDenoiser2(UnitDenoiser):
    """Returns the counts themselves, of one frame, with an error bar if one is given."""

    def __init__(self, sigma=None):
        super().__init__()
        self.sigma = sigma

    def denoise(self, counts, exposure_s, mask=None):
        found = super().denoise(np.asarray(counts)[None], exposure_s, mask)
        return Denoised(found.rate[0], sigma=self.sigma)
