"""Wherever settings are taken, a file of them is."""

import pytest
from derived_by_hand import Derived
from live_path import UNIT, archived

from bluesky_denoise import (
    DenoisedSignals,
    DenoiseProcess,
    DenoiseRouter,
    TiledSink,
    denoised_streams,
    replay_backup,
    reprocess,
)
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.trial import try_settings

TAKERS = {
    "DenoiseProcess": DenoiseProcess,
    "DenoiseRouter": DenoiseRouter,
    "DenoisedSignals": lambda file: DenoisedSignals(Derived(), settings=file),
    "TiledSink": TiledSink,
    "replay_backup": replay_backup,
    "reprocess": lambda file: reprocess(None, file),
    "try_settings": lambda file: try_settings(None, file),
}


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
def test_whatever_takes_settings_takes_a_file_of_them(take):
    with pytest.raises(SettingsError, match=r"Settings file nowhere\.yaml cannot be read"):
        take("nowhere.yaml")
    with pytest.raises(SettingsError, match="Settings of a dict were given; expected"):
        take({"model": UNIT})


def test_an_archived_run_is_denoised_with_the_settings_of_a_file(RE, tiled, camera, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"{{tiled_uri: '{tiled.uri}', model: '{UNIT}', rois: {{a: {{rows: [0, 9], "
        "cols: [0, 9]}}}"
    )
    run = archived(RE, tiled, camera)
    uid = reprocess(run, file)
    assert [stream.run_uid for stream in denoised_streams(run)] == [uid]
    assert replay_backup(file) == []
    assert DenoisedSignals(Derived(), settings=file).rois == ("a",)
