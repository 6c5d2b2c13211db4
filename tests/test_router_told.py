"""What the log says of frames that are not denoised."""

import re

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import pytest
from live_path import Camera, poisson
from ophyd import Signal
from ophyd.sim import SynAxis


def test_a_key_that_is_not_in_the_run_is_warned_of_with_those_there_are(RE, raw, build, caplog):
    _, derived = build(data_keys=["nothing"])
    RE(bp.scan([Camera(name="det", func=poisson())], SynAxis(name="motor"), 0, 1, 2))
    assert not derived.documents
    assert re.search(
        r"stream primary goes on undenoised: it has none of the data keys or detectors nothing "
        r"that `data_keys` names; it has .*motor.*\. Frames are in det_image\.$",
        caplog.text,
        re.MULTILINE,
    )


@pytest.mark.parametrize(("taken", "level"), [("ab", "WARNING"), ("a", "INFO")])
def test_one_misspelt_key_of_several_is_told_once_in_a_run(RE, raw, build, caplog, taken, level):
    caplog.set_level("INFO", "bluesky_denoise")
    _, derived = build(data_keys=["a_image", "b_imag"], streams=("primary", "dark"))
    cameras = [Camera(name=name, func=poisson()) for name in taken]

    @bpp.run_decorator()
    def plan():
        for stream in ("primary", "dark"):
            yield from bps.trigger_and_read(cameras, stream)

    for _ in range(2):
        RE(plan())
    assert len(derived.by_name["event"]) == 4
    told = [r for r in caplog.records if "no frames of b_imag, which `data_keys`" in r.message]
    assert [record.levelname for record in told] == [level] * 2
    expected = {
        "ab": "images are a_image, b_image; not denoised: b_image; perhaps b_image is meant.",
        "a": "the images are a_image.",
    }
    assert all(record.message.endswith(expected[taken]) for record in told)


def test_a_run_without_the_detector_is_not_warned_of(RE, raw, build, caplog):
    build(data_keys=["det_image"])
    RE(bp.scan([Signal(name="diode", value=1.0)], SynAxis(name="motor"), 0, 1, 2))
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == []
    RE(bp.count([Signal(name="det", value=1.0)], 1))  # it has lost its frames
    (warned,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "none of the data keys or detectors det_image" in warned


def test_a_run_with_frames_in_none_of_the_streams_is_told(RE, raw, build, logged):
    _, derived = build(streams=["primari"])
    RE(bp.count([SynAxis(name="motor")], 1))
    assert logged() == ""
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    assert not derived.documents
    assert "is not denoised: it has frames in primary, and setting `streams` names primari" in (
        logged()
    )


@pytest.mark.parametrize(
    ("beside", "data_keys", "level"),
    [("b", None, "WARNING"), ("a", None, "INFO"), ("b", ["a"], None)],
    ids=["another detector", "the same detector", "none that is asked for"],
)
def test_frames_of_other_streams_are_told_once_in_a_run(
    RE, raw, build, caplog, beside, data_keys, level
):
    caplog.set_level("INFO", "bluesky_denoise")
    cameras = {name: Camera(name=name, func=poisson()) for name in "ab"}
    cameras[beside].trigger()  # a baseline only reads
    _, derived = build(data_keys=data_keys)
    plan = bpp.baseline_decorator([cameras[beside]])(bp.count)
    RE(plan([cameras["a"]], 2))
    assert len(derived.by_name["event"]) == 2
    told = [r for r in caplog.records if "not denoised" in r.message]
    assert [record.levelname for record in told] == ([level] if level else [])
    expected = f"not denoised are frames of {beside}_image in baseline; setting `streams` names"
    assert all(f"{expected} primary." in record.message for record in told)
