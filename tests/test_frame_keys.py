import pytest

from bluesky_denoise.errors import FrameShapeError
from bluesky_denoise.sources.frame_keys import (
    also_called,
    check_frame_shape,
    frame_keys,
    is_frame_key,
    is_part,
    is_sigma,
    raw_key,
    under_names,
)

IMAGE = {"dtype": "array", "shape": [16, 20], "source": "sim"}
NUMBER = {"dtype": "number", "shape": [], "source": "sim"}


def descriptor(**devices):
    keys = {key: spec for owned in devices.values() for key, spec in owned.items()}
    return {
        "data_keys": keys,
        "object_keys": {device: list(owned) for device, owned in devices.items()},
    }


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"dtype": "array", "shape": [16, 20]}, True),
        ({"dtype": "array", "shape": [1, 195, 487]}, True),
        ({"dtype": "array", "shape": [None, 195, 487]}, True),
        ({"dtype": "array", "shape": [None, None], "external": "STREAM:"}, True),
        ({"dtype": "array", "shape": [15, 20]}, False),
        ({"dtype": "array", "shape": [1000]}, False),
        ({"dtype": "array", "shape": [1], "external": "STREAM:"}, False),
        ({"dtype": "number", "shape": []}, False),
    ],
)
def test_detector_frames_are_told_from_other_data(spec, found):
    assert is_frame_key(spec) is found


def test_a_key_that_is_asked_for_but_holds_no_frames_is_refused():
    with pytest.raises(FrameShapeError, match=r"'det' has shape \[7\]; expected frames \(H, W\)"):
        check_frame_shape({"dtype": "array", "shape": [7]}, "det")
    check_frame_shape({"dtype": "array", "shape": [16, 20]}, "det")
    with pytest.raises(FrameShapeError, match=r"'det' has shape \[2, 3, 16, 20\]; expected frames"):
        check_frame_shape({"dtype": "array", "shape": [2, 3, 16, 20], "external": "x"}, "det")
    check_frame_shape({"dtype": "array", "shape": [1, 3, 16, 20]}, "det")
    check_frame_shape({"dtype": "array", "shape": [0], "external": "FILESTORE:"}, "det")


@pytest.mark.parametrize("shape", [[48, 40, 3], [48, 40, 4], [1, 48, 40, 3]], ids=str)
def test_colours_are_no_frames(shape):
    with pytest.raises(FrameShapeError, match=r"'det' has shape .*, which is colours; expected"):
        check_frame_shape({"dtype": "array", "shape": shape}, "det")
    check_frame_shape({"dtype": "array", "shape": [3, 48, 40]}, "det")
    check_frame_shape({"dtype": "array", "shape": [None, 48, None]}, "det")


SMALL = {"dtype": "array", "shape": [3, 1, 1280], "source": "sim"}
MATRIX = {"dtype": "array", "shape": [3, 3], "source": "sim"}
DET = {"det_image": IMAGE, "det_stats1_total": NUMBER}
STEREO = {"eyes_left": IMAGE, "eyes_right": IMAGE}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, {k: k for k in ("det_image", "eyes_left", "eyes_right", "mixed_image")}),
        (["det_image"], {"det_image": "det_image"}),
        (["det"], {"det": "det_image"}),
        (["det", "det_image"], {"det_image": "det_image"}),
        (["strip"], {"strip": "strip_image"}),
        (["mixed"], {"mixed": "mixed_image"}),
        (["eyes"], {"eyes_left": "eyes_left", "eyes_right": "eyes_right"}),
        (["eyes_right", "det"], {"eyes_right": "eyes_right", "det": "det_image"}),
        (["eyes_right", "eyes"], {"eyes_right": "eyes_right", "eyes_left": "eyes_left"}),
        (["motor"], {"motor": "motor"}),
        (["nothing"], {}),
    ],
)
def test_frames_are_asked_for_by_data_key_or_by_device(wanted, found):
    strip = {"strip_image": SMALL, "strip_matrix": MATRIX}
    mixed = {"mixed_profiles": SMALL, "mixed_image": IMAGE}
    stream = descriptor(det=DET, eyes=STEREO, motor={"motor": NUMBER}, strip=strip, mixed=mixed)
    assert list(frame_keys(stream, wanted).items()) == list(found.items())


def test_a_device_whose_data_key_has_its_name_is_that_data_key():
    stream = descriptor(det={"det": IMAGE, "det_other": IMAGE})
    assert frame_keys(stream, ["det"]) == {"det": "det"}


def test_frames_are_also_called_by_their_key_and_by_the_device_that_has_no_others():
    one, two = descriptor(det=DET), descriptor(eyes=STEREO)
    assert also_called(one, "det_image", "det_image") == ["det"]
    assert also_called(one, "det", "det_image") == ["det_image"]
    assert also_called(two, "eyes_left", "eyes_left") == []


def test_under_the_name_of_its_device_a_data_key_tells_which_it_is():
    stream = descriptor(det=DET)
    named = under_names(stream, {"det": "det_image"})
    assert named["object_keys"] == {"det": ["det", "det_stats1_total"]}
    assert raw_key("det", named["data_keys"]["det"]) == "det_image"
    assert raw_key("det_stats1_total", named["data_keys"]["det_stats1_total"]) == "det_stats1_total"
    assert stream == descriptor(det=DET)
    assert under_names(stream, {"det_image": "det_image"}) is stream


@pytest.mark.parametrize(
    ("key", "of_device"),
    [("det", True), ("det_image", True), ("det-sum", True), ("det10", False), ("diode", False)],
)
def test_data_keys_of_a_device_begin_with_its_name(key, of_device):
    assert is_part(key, "det") is of_device


def test_standard_errors_are_told_from_frames_of_a_detector_that_is_called_so():
    keys = {"a", "a_exposure_s", "a_sigma", "b", "b_exposure_s", "b_sigma", "b_sigma_exposure_s"}
    keys |= {"c_sigma_image", "c_sigma_image_sigma", "d_sigma", "_sigma"}
    assert {key for key in keys if is_sigma(key, keys)} == {"a_sigma", "c_sigma_image_sigma"}
