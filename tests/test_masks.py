import h5py
import numpy as np
import pytest
import tifffile

from bluesky_denoise.errors import MaskError, SettingsError
from bluesky_denoise.masks import load_mask
from bluesky_denoise.settings import DenoiseSettings


@pytest.fixture
def mask():
    return np.random.default_rng(2).random((16, 20)) < 0.1


def test_a_mask_is_true_where_the_array_is_not_zero():
    loaded = load_mask(np.array([[0, 1], [2, 0]]))
    assert loaded.dtype == bool
    np.testing.assert_array_equal(loaded, [[False, True], [True, False]])


def test_a_mask_that_seems_to_be_the_wrong_way_round_is_told_of(mask, caplog):
    load_mask(mask)
    assert not caplog.records
    np.testing.assert_array_equal(load_mask(~mask), ~mask)
    (record,) = caplog.records
    told = record.getMessage()
    assert f"The mask array leaves {100 * mask.mean():.2g} % of the pixels of (16, 20)" in told
    assert "Invert it if it marks the valid pixels" in told


@pytest.mark.parametrize(("rows", "told"), [(8, False), (9, True)])
def test_a_mask_is_told_of_where_it_leaves_less_than_half(rows, told, caplog):
    load_mask(np.arange(16)[:, None] < np.full((1, 20), rows))
    assert ("Invert it" in caplog.text) == told


def test_a_mask_cannot_be_written_to(mask):
    with pytest.raises(ValueError, match="read-only"):
        load_mask(mask)[0, 0] = True


def test_the_array_of_the_user_stays_writable(mask):
    load_mask(mask)
    mask[0, 0] = True


@pytest.mark.parametrize("name", ["bad.npy", "bad.h5", "bad.tif", "bad.tiff"])
def test_each_kind_of_file_gives_the_same_mask(tmp_path, mask, name):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, mask)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["mask"] = mask
    else:
        tifffile.imwrite(path, mask.astype(np.uint8))
    np.testing.assert_array_equal(load_mask(path), mask)


def test_a_file_in_the_home_directory_is_found(tmp_path, monkeypatch, mask):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "mask.npy", mask)
    np.testing.assert_array_equal(load_mask("~/mask.npy"), mask)


def test_another_dataset_of_an_hdf5_file_is_named_after_two_colons(tmp_path, mask):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["entry/pixel_mask"] = mask
    np.testing.assert_array_equal(load_mask(f"{tmp_path / 'bad.h5'}::/entry/pixel_mask"), mask)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.npy", None, r"bad\.npy cannot be read: .*No such file"),
        ("bad.npy", b"no mask", r"bad\.npy cannot be read"),
        ("bad.npy", b"", r"bad\.npy cannot be read"),
        ("bad.h5", b"no mask", r"bad\.h5 cannot be read"),
        ("bad.tif", b"no mask", r"bad\.tif cannot be read"),
        ("bad.png", b"no mask", r"bad\.png is of an unknown kind; expected \.npy, \.h5 or \.tif"),
    ],
)
def test_a_file_that_is_no_mask_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MaskError, match=message):
        load_mask(tmp_path / name)


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["other"] = np.zeros((16, 20))
    with pytest.raises(MaskError, match=r"bad\.h5 cannot be read: .*mask"):
        load_mask(tmp_path / "bad.h5")


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "Group"), ("mask.npy", "bytes"), (h5py.Empty("u1"), "Empty")],
    ids=["group", "text", "empty"],
)
def test_a_dataset_that_is_no_array_is_named(tmp_path, content, found):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        if content is None:
            file.create_group("mask")
        else:
            file["mask"] = content
    with pytest.raises(MaskError, match=rf"bad\.h5 is a {found}; expected an array \(H, W\)"):
        load_mask(tmp_path / "bad.h5")


@pytest.mark.parametrize("values", [np.zeros(16), np.zeros((2, 16, 16)), np.full((2, 2), "a")])
def test_a_mask_must_have_two_axes_and_numbers(values):
    with pytest.raises(MaskError, match=r"The mask array has shape .*expected \(H, W\) numbers"):
        load_mask(values)


def test_a_mask_that_leaves_no_pixel_is_refused():
    with pytest.raises(MaskError, match=r"leaves no pixel of \(16, 20\): nonzero means invalid"):
        load_mask(np.ones((16, 20), np.uint8))


def test_a_bad_mask_is_found_when_the_settings_are_made(tmp_path):
    with pytest.raises(SettingsError, match=r"'mask': Mask .*nowhere\.npy cannot be read"):
        DenoiseSettings(mask=tmp_path / "nowhere.npy")
