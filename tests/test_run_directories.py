"""Frames of each run in a directory of its own, as that of its proposal."""

from pathlib import Path
from urllib.parse import unquote, urlparse

import bluesky.plans as bp
import h5py
import numpy as np
import pytest
from live_path import settings
from process_fixtures import replay

from bluesky_denoise import DenoiseRouter, DenoiseSettings
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.support.run_directories import directory_of_run
from bluesky_denoise.testing import DocumentCollector, validate_documents


@pytest.fixture
def derived(RE, tmp_path):
    """Subscribe a denoiser with such a setting; return its documents."""
    directory = tmp_path / "{cycle}" / "{proposal[id]}" / "denoised"
    router, derived = DenoiseRouter(settings(frames_directory=directory)), DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    return derived


def test_frames_go_into_the_directory_that_the_run_names(RE, derived, tmp_path):
    RE(bp.count([replay()], 2), cycle="2026-3", proposal={"id": 123456})
    validate_documents(derived.documents)
    (resource,) = derived.by_name["stream_resource"]
    path = Path(unquote(urlparse(resource["uri"]).path))
    assert path.is_relative_to(tmp_path / "2026-3" / "123456" / "denoised")
    with h5py.File(path) as file:
        frames = file[resource["parameters"]["dataset"]][()]
    assert len(frames) == 2
    assert np.isfinite(frames).all()


def test_a_directory_has_the_uid_of_the_raw_run(RE, tmp_path):
    router, derived = (
        DenoiseRouter(settings(frames_directory=tmp_path / "{uid}")),
        DocumentCollector(),
    )
    router.subscribe(derived)
    RE.subscribe(router)
    (uid,) = RE(bp.count([replay()], 1))
    assert [path.name for path in tmp_path.iterdir()] == [uid]


@pytest.mark.parametrize(
    "value", [123456, 0, np.int64(5), np.float32(0.5), "Ünï 1 %20"], ids=lambda value: repr(value)
)
def test_names_of_directories_are_texts_and_numbers_also_those_of_numpy(value):
    path = directory_of_run(Path("/data/{proposal}"), {"proposal": value})
    assert path == Path(f"/data/{value}")


@pytest.mark.parametrize(
    ("path", "start", "wanted"),
    [
        ("{scan_id:05d}", {"scan_id": 7}, "00007"),
        ("{sample:.3}", {"sample": "lead"}, "lea"),
        ("{scan_id:0{digits}d}", {"scan_id": 7, "digits": 3}, "007"),
        ("{temperature_k:.0f}K", {"temperature_k": 4.2}, "4K"),
        ("{sample!r}", {"sample": "lead"}, "'lead'"),
    ],
)
def test_how_a_name_is_written_may_be_given(tmp_path, path, start, wanted):
    directory = DenoiseSettings(frames_directory=tmp_path / path).frames_directory
    assert directory_of_run(directory, start) == tmp_path / wanted


def test_a_value_that_cannot_be_written_as_is_given_is_told():
    with pytest.raises(ValueError, match=r"does not fit /data/{scan_id:05d}: Unknown format code"):
        directory_of_run(Path("/data/{scan_id:05d}"), {"scan_id": "cold"})


@pytest.mark.parametrize("value", [" ", ".", "a/b", "a\\b", "a#b", "a?b", "a\0b", None, ["a"]])
def test_what_cannot_be_the_name_of_one_directory_is_refused(value):
    with pytest.raises(ValueError, match="names no directory"):
        directory_of_run(Path("/data/{proposal}"), {"proposal": value})


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"cycle": "2026-3"}, "the start document has no key 'proposal' for"),
        ({"cycle": "..", "proposal": {"id": 1}}, "cycle of the start document, '..', names no"),
        ({"cycle": "2026/3", "proposal": {"id": 1}}, "'2026/3', names no directory"),
        ({"cycle": {"year": 2026}, "proposal": {"id": 1}}, "{'year': 2026}, names no directory"),
        ({"cycle": "2026-3", "proposal": 1}, "the start document does not fit"),
    ],
    ids=["lacks it", "leads up", "leads down", "no name", "no mapping"],
)
def test_a_run_that_names_none_has_its_numbers_and_the_reason(
    RE, derived, tmp_path, metadata, reason
):
    RE(bp.count([replay()], 1), **metadata)
    validate_documents(derived.documents)
    (event,) = derived.by_name["event"]
    assert not event["data"]["denoise_ok"]
    assert reason in event["data"]["denoise_reason"]
    assert event["data"]["det_image_denoised_total"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("nowhere/{proposal}", "nowhere is no directory"),
        ("{proposal", "a brace that is meant is written twice"),
        ("proposal}", "a brace that is meant is written twice"),
        ("{}", "expected keys of start documents in braces"),
        ("{0}", "expected keys of start documents in braces"),
        ("{a b}", "expected keys of start documents in braces"),
        ("{scan_id:05q}", "can be written in the way that is given for scan_id"),
        ("{proposal[id]!z}", r"can be written in the way that is given for proposal\[id\]"),
    ],
)
def test_a_setting_that_can_be_no_directory_is_refused(tmp_path, directory, message):
    with pytest.raises(SettingsError, match=message):
        DenoiseSettings(frames_directory=tmp_path / directory)


def test_documents_wait_for_tiled_in_a_directory_that_all_runs_have(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    settings = DenoiseSettings(frames_directory=tmp_path / "{proposal}")
    assert settings.backup_path.is_relative_to(tmp_path / "home")


def test_braces_in_the_directory_for_backups_are_letters(tmp_path):
    assert DenoiseSettings(backup_directory=tmp_path / "{0}").backup_path == tmp_path / "{0}"


def test_braces_that_are_written_twice_and_formats_are_those_of_python():
    path = directory_of_run(Path("/data/{{x}}/scan_{scan_id:05d}"), {"scan_id": 7})
    assert path == Path("/data/{x}/scan_00007")
