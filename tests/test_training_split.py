"""What is held out of training, and how frames that are trained on are known there."""

import numpy as np
import pytest
from training_sources import repeats, thinned, write

from bluesky_denoise.errors import (
    SettingsError,
)
from bluesky_denoise.support.digests import frame_digests
from bluesky_denoise.training.data import SimulatedScenes
from bluesky_denoise.training.files import measured_pairs, read_file
from bluesky_denoise.training.pairs import (
    MeasuredPairs,
    ThinnedFrames,
)
from bluesky_denoise.training.split import split


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_last_block_is_held_out_after_a_gap():
    data = split([thinned(100)], share=0.2, gap_frames=10)
    assert len(data.training[0]) == 70
    assert len(data.held_out[0]) == 20
    assert data.held_out[0].first == 80
    (entry,) = data.record
    assert entry["training"] == "frames 0 to 69"
    assert entry["held_out"] == "frames 80 to 99"
    assert entry["gap_frames"] == 10


def test_a_short_run_is_trained_on_whole_and_repeats_need_no_gap():
    data = split([thinned(33, "short"), thinned(34, "long", seed=2), repeats(10, seed=3)])
    assert [len(source) for source in data.training] == [33, 17, 8]
    assert [len(source) for source in data.held_out] == [7, 2]
    assert data.record[0]["training"] == "all frames"


def test_whole_runs_are_held_out_and_never_trained_on():
    data = split([thinned(5, "a"), SimulatedScenes()], [thinned(5, "b", seed=2)])
    assert [source.name for source in data.training] == ["a", "simulated scenes"]
    assert [source.name for source in data.held_out] == ["b"]
    assert data.record[-1]["held_out"] == "all frames"
    with pytest.raises(SettingsError, match="a has 5 frames among those trained on and among"):
        split([thinned(5, "a")], [thinned(5, "a")])


def test_runs_of_one_name_are_told_apart_by_their_folder(tmp_path, rng):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run1").mkdir()
        write(tmp_path / folder / "run1" / "scan.h5", frames=rng.poisson(3.0, (3, 40, 48)))
    first, second = (read_file(tmp_path / folder / "run1" / "scan.h5") for folder in ("a", "b"))
    assert split([first], [second]).held_out == [second]
    with pytest.raises(SettingsError, match=r"run1/scan\.h5 has 3 frames among those"):
        split([first, second], [first])


def test_a_copy_of_what_is_trained_on_is_not_held_out(tmp_path, rng):
    counts = rng.poisson(3.0, (3, 40, 48))
    paths = [write(tmp_path / name, frames=counts) for name in ("scan.h5", "copy.h5")]
    first, second = (read_file(path) for path in paths)
    with pytest.raises(SettingsError, match=r"copy\.h5 cannot be .*scan\.h5 has 3 of its"):
        split([first], [second])


@pytest.mark.parametrize("change", ["uint16", ">i8", "float32", "mask", "part"])
def test_the_same_frames_are_known_whatever_file_they_are_in(tmp_path, rng, change):
    counts = rng.poisson(3.0, (20, 40, 48)).astype(np.int32)
    counts[:, 0, 0] = -1
    first = read_file(write(tmp_path / "scan.h5", frames=counts))
    copy, more = counts[5:6] if change == "part" else counts, {}
    if change == "mask":
        more["mask"] = rng.random((40, 48)) < 0.1
    elif change == "uint16":
        copy = np.where(counts < 0, 65535, counts).astype(change)
    elif change != "part":
        copy = copy.astype(change)
    path = write(tmp_path / "copy.h5", frames=copy, **more)
    second = read_file(path, repeats=change == "float32")
    with pytest.raises(SettingsError, match=r"copy\.h5 cannot be .*scan\.h5 has \d+ of its fram"):
        split([first], [second])


def test_a_master_file_beside_its_data_is_noticed():
    whole = thinned(100)
    part = ThinnedFrames(counts=whole.counts[70:], mask=whole.mask, name="data")
    with pytest.raises(SettingsError, match=r"scan cannot be .*data has 20 of its frames"):
        split([whole, part])


def test_hashes_tell_frames_apart_by_their_shape_and_their_flags():
    dark = np.zeros((1, 4, 6), np.int32)
    flagged = dark.copy()
    flagged[0, 0, 0] = -1
    assert len({frame_digests(f) for f in (dark, flagged, dark.reshape(1, 6, 4))}) == 3


def test_dark_frames_and_single_photons_may_be_alike():
    counts = np.zeros((100, 40, 48), int)
    counts[::2, 3, 3] = 1
    source = ThinnedFrames(counts=counts, mask=np.zeros((40, 48), bool), name="dim")
    assert len(split([source]).held_out) == 1


def test_pairs_of_one_exposure_ratio_are_not_the_same_frames(rng):
    mask, ratios = np.zeros((40, 48), bool), np.full(3, 20.0)
    first, second = (
        MeasuredPairs(
            counts=rng.poisson(1.0, (3, 40, 48)),
            targets=rng.poisson(20.0, (3, 40, 48)),
            ratios=ratios,
            mask=mask,
            name=name,
        )
        for name in "ab"
    )
    assert split([first], [second]).held_out == [second]
    long = ThinnedFrames(counts=second.targets[1:], mask=mask, name="long")
    with pytest.raises(SettingsError, match=r"long cannot be .*b has 2 of its frames"):
        split([second], [long])


def test_a_block_is_known_by_what_its_frames_were_before_they_were_masked(rng):
    short, long = rng.poisson(2.0, (4, 40, 48)), rng.poisson(6.0, (4, 40, 48))
    mask = np.zeros((40, 48), bool)
    mask[:5] = True
    whole = measured_pairs(short, long, np.full(4, 3.0), mask, "a", {})
    assert whole.digests == frame_digests(short) + frame_digests(long)
    assert whole.block(1, 3).digests == frame_digests(short[1:3]) + frame_digests(long[1:3])


def test_the_frames_of_a_point_are_in_one_block():
    counts = np.random.default_rng(1).poisson(5.0, (110, 40, 48))
    mask = np.zeros((40, 48), bool)
    source = ThinnedFrames(counts=counts, mask=mask, name="scan", per_point=10)
    (entry,) = split([source], share=0.25, gap_frames=3).record
    assert entry["training"] == "frames 0 to 69"
    assert entry["held_out"] == "frames 80 to 109"


@pytest.mark.parametrize("change", [{"share": 0.6}, {"share": -0.1}, {"gap_frames": -1}])
def test_splits_out_of_range_are_refused(change):
    with pytest.raises(SettingsError, match="cannot be held out"):
        split([thinned(5)], **change)


def test_no_share_holds_nothing_out():
    data = split([thinned(100)], share=0)
    assert data.held_out == []
    assert len(data.training[0]) == 100


def test_hashes_know_a_frame_again_whose_flags_are_those_of_16_bits():
    narrow = np.arange(24, dtype=np.uint16).reshape(1, 4, 6)
    narrow[0, 1, 1] = 2**16 - 1
    copies = [narrow.astype(kind) for kind in (np.int32, np.uint64, np.float32)]
    assert {frame_digests(copy) for copy in copies} == {frame_digests(narrow)}
