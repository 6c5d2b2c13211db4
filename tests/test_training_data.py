import json

import h5py
import numpy as np
import pytest
from training_sources import repeats, thinned, write

from bluesky_denoise.errors import (
    FrameShapeError,
    FrameValueError,
    MaskError,
)
from bluesky_denoise.frame_files import find_files
from bluesky_denoise.training.data import SimulatedScenes
from bluesky_denoise.training.files import measured_pairs, read_file
from bluesky_denoise.training.pair_checks import check_independent, check_lit
from bluesky_denoise.training.pairs import (
    MeasuredPairs,
    RecordedPairs,
    Repeats,
    Window,
    random_window,
)

WHOLE = Window(0, 0, 40, 48)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_window_sums_pixels_and_masks_what_is_outside():
    image = np.arange(30).reshape(5, 6)
    mask = np.zeros((5, 6), bool)
    mask[0, 0] = True
    window = Window(0, 2, 3, 3, step=2)
    expected = [[2 + 3 + 8 + 9, 4 + 5 + 10 + 11, 0], [70, 78, 0], [26 + 27, 28 + 29, 0]]
    np.testing.assert_array_equal(window.counts(image), expected)
    # Half of the last row of bins lies outside.
    np.testing.assert_array_equal(window.mask(mask), [[0, 0, 1], [0, 0, 1], [1, 1, 1]])
    assert Window(0, 0, 1, 1, step=2).mask(mask).item()


def test_random_windows_lie_inside_where_they_fit(rng):
    for _ in range(200):
        window = random_window((100, 300), (48, 64), rng)
        assert window.row + window.step * window.height <= 100
        assert window.col + window.step * window.width <= 300
    assert random_window((20, 30), (48, 64), rng) == Window(0, 0, 48, 64)


def test_thinned_pairs_hold_all_photons_at_the_ratio_of_their_exposures(rng):
    source = thinned(3)
    pair = source.pair(2, WHOLE, rng)
    np.testing.assert_array_equal(pair.counts + pair.target, source.counts[2])
    # 9600 photons: the ratio is met to its Poisson error.
    found = pair.target.sum() / pair.counts.sum()
    assert found == pytest.approx(pair.ratio, rel=5 / np.sqrt(pair.counts.sum()))
    assert pair.ratio >= 1


def test_repeats_are_targets_for_each_other_and_never_for_themselves(rng):
    source = repeats(4)
    pair = source.pair(1, WHOLE, rng)
    np.testing.assert_array_equal(pair.counts, source.counts[1])
    np.testing.assert_array_equal(pair.target, source.counts[[0, 2, 3]].sum(0))
    assert pair.ratio == 3
    block = source.block(2, 4)
    np.testing.assert_array_equal(block.pair(0, WHOLE, rng).target, source.counts[3])
    assert block.pair(0, WHOLE, rng).frame == 2


def test_a_block_of_pairs_keeps_targets_and_ratios_with_their_frames(rng):
    counts = rng.poisson(2.0, (5, 40, 48))
    ratios = np.arange(1.0, 6.0)
    mask = np.zeros((40, 48), bool)
    source = MeasuredPairs(counts=counts, targets=7 * counts, ratios=ratios, mask=mask, name="a")
    pair = source.block(3, 5).pair(1, WHOLE, rng)
    np.testing.assert_array_equal(pair.target, 7 * counts[4])
    assert (pair.ratio, pair.frame) == (5, 4)


@pytest.mark.parametrize("ratio", [0, -1, np.nan])
def test_ratios_that_are_no_exposures_are_refused(ratio):
    counts = np.zeros((2, 40, 48), int)
    mask = np.zeros((40, 48), bool)
    ratios = np.array([1, ratio], float)
    with pytest.raises(FrameValueError, match="expected long over short, above 0"):
        MeasuredPairs(counts=counts, targets=counts, ratios=ratios, mask=mask, name="a")


@pytest.mark.parametrize("source", [thinned(2), repeats(2), SimulatedScenes()])
def test_every_source_draws_pairs_of_the_shape_asked_for(source, rng):
    pair = source.draw((64, 32), rng)
    assert pair.counts.shape == pair.target.shape == pair.mask.shape == (64, 32)
    assert isinstance(source, RecordedPairs) != isinstance(source, SimulatedScenes)


def test_the_layout_of_the_archive_of_the_paper_is_read(tmp_path, rng):
    low, high = rng.poisson(2.0, (40, 48, 6)), rng.poisson(40.0, (40, 48, 6))
    low[3, 4, 5] = -2
    path = write(tmp_path / "pairs.h5", low_count__data=low, high_count__data=high)
    source = read_file(path)
    np.testing.assert_array_equal(source.targets[5], np.where(source.mask, 0, high[..., 5]))
    assert np.argwhere(source.mask).tolist() == [[3, 4]]
    valid = ~source.mask
    expected = high[valid].sum() / low[valid].sum()
    np.testing.assert_allclose(source.ratios, expected)
    assert source.about["exposure_ratio_from"] == "ratio of all counts"
    with h5py.File(path, "a") as file:
        file["low_count"].attrs["exposure_s"] = 1.0
        file["high_count/data"].attrs["exposure_s"] = 20.0
    np.testing.assert_array_equal(read_file(path).ratios, 20.0)


@pytest.mark.parametrize(
    ("exposures_s", "message"),
    [
        ((1.0, 200.0), r"19\.\d+ times the counts .* whose times are 200 times the short ones"),
        ((20.0, 1.0), "long exposures of 0.05 times the short ones. Give the short ones first"),
    ],
)
def test_exposures_that_the_counts_contradict_are_refused(tmp_path, rng, exposures_s, message):
    low, high = rng.poisson(2.0, (40, 48, 6)), rng.poisson(39.0, (40, 48, 6))
    path = write(tmp_path / "pairs.h5", low_count__data=low, high_count__data=high)
    with h5py.File(path, "a") as file:
        for group, exposure_s in zip(("low_count", "high_count"), exposures_s, strict=True):
            file[group].attrs["exposure_s"] = exposure_s
    with pytest.raises(FrameValueError, match=message):
        read_file(path)


def test_floats_that_are_counts_are_thinned(tmp_path, rng):
    counts = rng.poisson(3.0, (4, 40, 48)).astype(float)
    counts[1, 5, 6] = np.nan
    source = read_file(write(tmp_path / "floats.h5", frames=counts))
    assert np.argwhere(source.mask).tolist() == [[5, 6]]
    assert source.counts.dtype == np.int64
    np.testing.assert_array_equal(source.counts, np.where(source.mask, 0, counts))


def test_our_layout_is_read_with_what_its_attributes_say(tmp_path, rng):
    counts = rng.poisson(3.0, (4, 40, 48)).astype(np.uint32)
    counts[1, 7, 7] = 2**32 - 1
    mask = np.zeros((40, 48), np.uint8)
    mask[0] = 1
    path = write(tmp_path / "scan.h5", frames=counts, mask=mask)
    with h5py.File(path, "a") as file:
        file.attrs.update(exposure_s=0.5, licence="CC-BY-4.0", detector=np.bytes_("Pilatus"))
    source = read_file(path)
    assert source.kind == "thinned"
    assert source.about == {
        "file": f"{tmp_path.name}/scan.h5",
        "detector": "Pilatus",
        "exposure_s": 0.5,
        "licence": "CC-BY-4.0",
    }
    assert source.mask[0].all()
    assert source.mask[7, 7]
    assert source.mask.sum() == 49
    assert source.counts.max() < 100
    assert read_file(path, repeats=True).kind == "repeats"
    with h5py.File(path, "a") as file:
        file["frames"].attrs["repeats"] = 1
    assert read_file(path).kind == "repeats"


@pytest.mark.parametrize("told", [np.nan, -np.inf])
def test_attributes_that_are_not_finite_are_left_out(tmp_path, rng, told):
    path = write(tmp_path / "a.h5", frames=rng.poisson(3.0, (4, 40, 48)))
    with h5py.File(path, "a") as file:
        file.attrs["exposure_s"] = told
    assert read_file(path).about["exposure_s"] is None


def test_repeats_may_come_from_an_integrating_detector(tmp_path, rng):
    frames = rng.normal(500.0, 3.0, (4, 64, 64)).astype(np.float32)
    path = write(tmp_path / "flat_panel.h5", frames=frames)
    with pytest.raises(FrameValueError, match="flat_panel: Frames of dtype float32 cannot be"):
        read_file(path)
    assert read_file(path, repeats=True).draw((32, 32), rng).counts.dtype == np.float64


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"data": np.zeros((2, 8, 16))}, r"has \['data'\]; expected the data sets `frames`"),
        ({"frames": np.zeros((16, 16), int)}, r"shape \(16, 16\) and dtype int64; expected"),
        (
            {"frames": np.zeros((2, 16, 16), int), "mask": np.zeros((8, 8))},
            r"frames \(2, 16, 16\) and mask \(8, 8\)",
        ),
        (
            {"low_count__data": np.ones((16, 16, 3)), "high_count__data": np.ones((16, 16, 2))},
            r"low_count/data \(3, 16, 16\) and high_count/data \(2, 16, 16\)",
        ),
        (
            {"low_count__data": np.zeros((16, 16, 2)), "high_count__data": np.ones((16, 16, 2))},
            r"\[0\.0, 512\.0\] counts in short and long frames",
        ),
        ({"low_count__data": np.ones((16, 16))}, r"/low_count/data, a dataset of shape \(16, 16\)"),
        ({"frames": np.ones((2, 16, 16), int), "mask__data": np.ones((16, 16))}, "`mask` that is"),
        ({"low_count__data__a": np.ones(3)}, "/low_count/data, a group of shape None; expected"),
    ],
)
def test_files_that_cannot_be_learnt_from_say_why(tmp_path, datasets, message):
    path = write(tmp_path / "a.h5", **datasets)
    with pytest.raises((FrameShapeError, FrameValueError), match=message):
        read_file(path)


@pytest.mark.parametrize("told", [1.0, [1.0], [1.0, 1.0, 1.0]], ids=str)
def test_exposures_may_be_told_for_each_frame(tmp_path, told):
    low, high = (np.random.default_rng(i).poisson(5.0**i, (16, 16, 3)) for i in range(2))
    path = write(tmp_path / "a.h5", low_count__data=low, high_count__data=high)
    with h5py.File(path, "a") as file:
        file["low_count"].attrs["exposure_s"] = told
        file["high_count"].attrs["exposure_s"] = 5.0
    np.testing.assert_array_equal(read_file(path).ratios, 5.0)


@pytest.mark.parametrize("told", ["1 s", [1.0, 2.0], 0.0, np.nan], ids=str)
def test_exposures_that_are_no_seconds_are_named(tmp_path, told):
    path = write(tmp_path / "a.h5", low_count__data=np.ones((16, 16, 3)))
    with h5py.File(path, "a") as file:
        file["low_count"].attrs["exposure_s"] = told
    with pytest.raises(FrameShapeError, match=r"exposure_s = .* at /low_count; expected one numb"):
        read_file(path)


def test_frames_behind_links_are_read_and_links_to_nothing_are_not(tmp_path, rng):
    write(tmp_path / "scan_data.h5", entry__data__data=rng.poisson(3.0, (4, 32, 32)))
    master = write(tmp_path / "scan_master.h5", entry__note="x")
    with h5py.File(master, "a") as file:
        file["entry/data_000001"] = h5py.ExternalLink("scan_data.h5", "/entry/data/data")
        file["entry/loop"] = h5py.SoftLink("/entry")
        file["frames"] = h5py.ExternalLink("gone.h5", "/x")
    assert read_file(master).counts.shape == (4, 32, 32)
    with h5py.File(master, "a") as file:
        file["entry/own"] = rng.poisson(3.0, (2, 32, 32))
    assert read_file(master).counts.shape == (2, 32, 32)
    with h5py.File(master, "a") as file:
        del file["entry/own"]
    (tmp_path / "scan_data.h5").unlink()
    with pytest.raises(FrameShapeError, match=r"scan_master\.h5 has \['entry', 'frames'\]; expect"):
        read_file(master)


@pytest.mark.parametrize("order", ["<", ">"])
def test_flags_are_masked_in_either_byte_order(tmp_path, rng, order):
    counts = rng.poisson(3.0, (4, 40, 48)).astype(f"{order}u2")
    counts[:, 7, 7] = 65535
    assert read_file(write(tmp_path / "a.h5", frames=counts)).mask.sum() == 1


def test_attributes_of_any_kind_go_into_the_card(tmp_path, rng):
    path = write(tmp_path / "a.h5", frames=rng.poisson(3.0, (4, 40, 48)))
    with h5py.File(path, "a") as file:
        file.attrs.update(detector=np.array([b"Pilatus"]), exposure_s=np.array([1.0, np.nan]))
    about = read_file(path).about
    assert json.loads(json.dumps(about)) == about
    assert (about["detector"], about["exposure_s"]) == (["Pilatus"], [1.0, None])


def test_a_mask_is_added_to_that_of_a_file(tmp_path, rng):
    first, second = np.zeros((2, 40, 48), bool)
    first[0], second[:, 0] = True, True
    path = write(tmp_path / "a.h5", frames=rng.poisson(3.0, (4, 40, 48)), mask=first)
    np.testing.assert_array_equal(read_file(path, mask=second).mask, first | second)
    with pytest.raises(FrameShapeError, match=r"a mask \(40, 48\); the one given is \(4, 4\)"):
        read_file(path, mask=np.zeros((4, 4), bool))


def test_what_is_no_hdf5_is_refused(tmp_path):
    (tmp_path / "a.h5").write_text("frames")
    with pytest.raises(FrameShapeError, match=r"a\.h5 cannot be read as HDF5"):
        read_file(tmp_path / "a.h5")


def test_folders_are_searched_and_what_is_not_there_is_named(tmp_path):
    for name in ("b.h5", "a.hdf5", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_files([tmp_path])] == ["a.hdf5", "b.h5"]
    with pytest.raises(FrameShapeError, match=r"no frames at .*gone"):
        find_files([tmp_path / "gone"])


def test_dark_frames_may_be_alike_in_repeats_and_in_pairs(rng):
    counts, mask = rng.poisson(3.0, (4, 40, 48)), np.zeros((40, 48), bool)
    counts[1:3] = 0
    assert len(Repeats(counts=counts, mask=mask, name="a")) == 4
    long = np.where(counts > 0, counts + 1, 0)
    pairs = MeasuredPairs(counts=counts, targets=long, ratios=np.ones(4), mask=mask, name="a")
    assert len(pairs) == 4


@pytest.mark.parametrize("dark", ["short", "long"])
def test_pairs_need_light_in_both_exposures(rng, dark):
    frames = {"short": rng.poisson(3.0, (4, 40, 48)), "long": rng.poisson(9.0, (4, 40, 48))}
    frames[dark] = 0 * frames[dark]
    with pytest.raises(FrameValueError, match=f"a, {dark} exposures, has no counts in the 1920"):
        measured_pairs(*frames.values(), np.full(4, 3.0), np.zeros((40, 48), bool), "a", {})


def test_frames_that_stand_still_are_no_repeats(tmp_path, rng):
    counts = rng.poisson(3.0, (4, 40, 48))
    counts[3] = counts[1]
    path = write(tmp_path / "stuck.h5", frames=counts)
    with pytest.raises(FrameValueError, match="stuck: frames 1 and 3 are the same, count for"):
        read_file(path, repeats=True)
    sums = np.stack([counts[:1].sum(0) + rng.poisson(0.01, (40, 48)) for _ in range(4)])
    with pytest.raises(FrameValueError, match=r"differ by 0\.0\d of the variance that photons"):
        read_file(write(tmp_path / "slow.h5", frames=sums), repeats=True)


@pytest.mark.parametrize(
    ("long", "message"),
    [
        (lambda short, rng: short, "long frame 0 is the short one"),
        (lambda short, rng: 20 * short, r"differ by 0\.00 of the variance"),
        (lambda short, rng: short + rng.poisson(2.0, short.shape), r"differ by 0\.3\d of the"),
        (lambda short, rng: short + rng.poisson(38.0, short.shape), None),
        (lambda short, rng: short + rng.poisson(6.0, short.shape), "the long one contains it"),
        (lambda short, rng: rng.poisson(6.0, short.shape), None),
        (lambda short, rng: 0 * short, r", 0\.0\] counts in short and long frames; expected some"),
    ],
    ids=["same", "scaled", "half in", "twentieth in", "quarter in", "independent", "dark"],
)
def test_long_exposures_have_noise_of_their_own(tmp_path, rng, long, message):
    short = rng.poisson(2.0, (40, 48, 10))
    path = write(tmp_path / "pairs.h5", low_count__data=short, high_count__data=long(short, rng))
    if message is None:
        assert len(read_file(path)) == 10
        return
    with pytest.raises(FrameValueError, match=message):
        read_file(path)


def test_a_few_pixels_may_be_alike_by_chance():
    short, long = np.array([[[7, 10], [9, 8]]]), np.array([[[8, 10], [9, 9]]])
    check_independent(short, long, np.zeros((2, 2), bool), "a")
    many = [np.tile(f, (1, 20, 20)) for f in (short, long)]
    with pytest.raises(FrameValueError, match=r"a: exposures of one scene differ by 0\.0\d of the"):
        check_independent(*many, np.zeros((40, 40), bool), "a")


def test_frames_without_counts_are_refused(tmp_path):
    counts, mask = np.zeros((3, 40, 48), int), np.zeros((40, 48), bool)
    counts[:, 0], mask[0] = 7, True
    with pytest.raises(FrameValueError, match="a has no counts"):
        check_lit(counts, mask, "a")
    path = write(tmp_path / "dark.h5", frames=counts, mask=mask)
    with pytest.raises(FrameValueError, match=r"dark has no counts in the 1872 valid pixels of 3"):
        read_file(path)


def test_of_several_masks_in_a_file_the_first_by_name_is_taken(tmp_path, rng):
    frames, first, second = rng.poisson(3.0, (4, 40, 48)), *np.zeros((2, 40, 48), np.uint32)
    first[0], second[:, 0] = 1, 1
    write(
        tmp_path / "a.nxs",
        entry__a__data=frames,
        entry__a__pixel_mask=first,
        entry__b__pixel_mask=second,
    )
    np.testing.assert_array_equal(read_file(tmp_path / "a.nxs").mask, first != 0)


def test_frames_without_a_valid_pixel_are_refused(tmp_path, rng):
    counts = rng.poisson(2.0, (3, 16, 16)).astype(np.int32)
    path = write(tmp_path / "inverted.h5", frames=counts, mask=np.ones((16, 16), np.uint8))
    with pytest.raises(MaskError, match=r"inverted has no valid pixel: of 256, 0 are flagged.*256"):
        read_file(path)
    path = write(tmp_path / "flags.h5", frames=np.full_like(counts, -1))
    with pytest.raises(MaskError, match="flags has no valid pixel: of 256, 256 are flagged"):
        read_file(path)
    counts[1] = -1
    path = write(tmp_path / "lost.h5", frames=counts)
    with pytest.raises(MaskError, match=r"Take out frames 1, in which all are\."):
        read_file(path)
