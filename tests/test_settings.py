import math
import pickle
import re

import numpy as np
import pyarrow as pa
import pytest
from tiled.client.utils import ClientError

from bluesky_denoise.errors import DenoiseError, SettingsError
from bluesky_denoise.runs.results import audit_keys, number_keys
from bluesky_denoise.settings import DenoiseSettings, overridden

SERVER = "http://localhost:8000"
REGION = {"rows": [0, 4], "cols": [0, 4]}


def test_the_defaults_denoise_the_primary_stream_and_write_nothing():
    settings = DenoiseSettings()
    assert settings.streams == ("primary",)
    assert settings.data_keys is None
    assert settings.tiled_uri is None
    assert settings.frames_directory is None
    assert settings.tiled_layout == "stream"


def test_an_unknown_setting_is_refused_with_the_names_there_are():
    with pytest.raises(
        SettingsError, match=r"'exposure', perhaps 'exposure_s' is meant; known are: data_k"
    ):
        DenoiseSettings(exposure=1.0)
    with pytest.raises(SettingsError, match=r"unknown setting 'colour'; known are: data_keys, str"):
        DenoiseSettings(colour="grey")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exposure_s": 0}, r"'exposure_s': got 0; expected seconds, a number > 0 such as 0\.5,"),
        ({"exposure_s": "1s"}, r"'exposure_s': got '1s'; expected seconds, a number > 0"),
        ({"exposure_s": math.inf}, r"'exposure_s': got inf; expected seconds, a number > 0"),
        ({"data_keys": ""}, r"'data_keys': a name is empty; expected names of data keys"),
        ({"streams": ["a", " "]}, r"'streams': a name is empty; expected names of streams"),
        ({"exposure_keys": [""]}, r"'exposure_keys': a name is empty; expected names of data"),
        ({"frames_directory": " "}, r"'frames_directory': expected a path, or nothing \(got ' '"),
        ({"backup_directory": ""}, r"'backup_directory': expected a path, or nothing \(got ''"),
        ({"tiled_uri": "http://"}, r"'tiled_uri'.*expected an address such as http://"),
        ({"exposure_s": {"det": -1}}, r"'exposure_s\.det': got -1; expected seconds, a number"),
        ({"exposure_s": {"a": "1s", "b": 1}}, r"'exposure_s\.a': got '1s'; expected seconds"),
        ({"batch_size": 0}, r"'batch_size': got 0; expected a whole number > 0"),
        ({"queue_wait_s": -1}, r"'queue_wait_s': got -1; expected seconds, a number >= 0"),
        ({"tiled_layout": "both"}, r"'tiled_layout': got 'both'; expected 'stream' or 'run'"),
        ({"rate_range": [1]}, r"'rate_range': got \[1\]; expected two numbers, least and most"),
        ({"rate_range": {"det": [1]}}, r"'rate_range\.det': got \[1\]; expected two numbers"),
        ({"streams": ["a", 2, 3]}, r"'streams\.1': got 2, 'streams\.2': got 3; expected names"),
        ({"mask": {"det": None}}, r"'mask\.det': got None; expected an array \(H, W\), a file"),
        ({"tiled_uri": 3}, r"'tiled_uri'; expected an address such as http://localhost:8000$"),
        ({"tiled_uri": "http://[a"}, r"'tiled_uri': Invalid IPv6 URL; expected an address"),
        ({"rois": {"a": [1, 9, 1, 9]}}, r"'rois\.a': got \[1, 9, 1, 9\]; expected regions by"),
        ({"rois": {"a": {"rows": [1, 9]}}}, r"'rois\.a': got {'rows': \[1, 9\]}; expected region"),
        (
            {"rois": {"a": {"rows": [9, 1], "cols": [1, 9]}}},
            r"'rois\.a': The rows of a ROI are \(9, 1\); expected .* first < last \(got {'rows'",
        ),
        ({"tiled_uri": "localhost:8000"}, r"'tiled_uri'.*expected an address such as http://"),
        ({"tiled_uri": "http://localhost:80OO"}, r"the port of 'localhost:80OO' is no number"),
        ({"tiled_uri": "http://localhost:99999"}, r"the port of .* from 0 to 65535; expected an"),
        ({"rate_range": (5, 1)}, r"'rate_range'.*expected 0 <= least < most, not 5 and 1"),
        ({"rate_range": {"det": (-1, 1)}}, r"'rate_range'.*expected 0 <= least < most, not -1"),
        ({"rois": {"a" * 44: REGION}}, r"'rois'.*'a{44}' has 44 bytes; expected at most 43"),
        (
            {"rois": {"a": {"row": (1, 9), "cols": (1, 9)}}},
            r"'rois\.a\.row': got \(1, 9\); expected",
        ),
        ({"rois": {"ü_1": REGION}}, r"'rois'.*'ü_1' has 'ü', which Tiled refuses"),
        ({"rois": {"Peak": REGION, "peak": REGION}}, r"'rois'.*'Peak' and 'peak' are the same"),
        ({"data_keys": ["a" * 46]}, r"'data_keys'.*'a{46}' has 46 bytes; expected at most 45"),
        ({"data_keys": ["13SIM1"]}, r"'data_keys'.*'13SIM1' has '1', which Tiled refuses"),
        ({"data_keys": ["det", "Det"]}, r"'data_keys'.*'det' and 'Det' are the same"),
        (
            {"rois": {f"r{i}": REGION for i in range(48)}, "tiled_uri": SERVER},
            r"'tiled_layout'.*`rois` has 48 regions, .* columns for 47; leave some out",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_came(values, message):
    with pytest.raises(SettingsError, match=message) as caught:
        DenoiseSettings(**values)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, DenoiseError)


def test_names_are_as_long_and_regions_as_many_as_tiled_takes(tiled):
    regions = {"a" * 43: REGION} | {f"r{i}": REGION for i in range(46)}
    settings = DenoiseSettings(data_keys=["b" * 45], rois=regions, tiled_uri=SERVER)
    rois = settings.rois_of(settings.data_keys)

    def columns(rois):
        keys = [*number_keys(rois, ""), *audit_keys(rois, "")]
        return pa.schema([(name, pa.float64()) for k in keys for name in (k, f"ts_{k}")])

    assert len(columns(rois)) < 1598 - 60
    tiled.client.create_appendable_table(schema=columns(rois), key="as long as may be")
    for longer in ({"b" * 46: {}}, {"b": {"a" * 44: REGION}}):
        with pytest.raises(ClientError, match="max bytes is 63"):
            tiled.client.create_appendable_table(schema=columns(longer))


WRONG = [None, True, "1s", "", -1, 0, 1.5, [1], [1, 2, 3], ["a", 2], {"det": "1s"}, {"det": None}]
WRONG += [{"det": [1]}, {"det": {"a": 3}}, {1: 2}, float("nan"), np.ones(2), object()]


@pytest.mark.parametrize("key", DenoiseSettings.model_fields)
def test_whatever_is_typed_for_a_setting_no_error_is_in_the_words_of_a_library(
    key, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # texts are paths, too
    refused = []
    for value in WRONG:
        try:
            DenoiseSettings(**{key: value})
        except SettingsError as error:
            refused.append(str(error))
    assert len(refused) > 8
    for told in refused:
        assert re.match(rf"DenoiseSettings: '{key}(\.\w+)*'(:|; expected)", told), told
        assert "expected" in told or "Tiled refuses" in told or "is no name" in told, told
        assert not re.search(r"Input should|constrained|lax|\[str|valid tuple|Field req", told), (
            told
        )


def test_all_wrong_keys_are_named_at_once():
    with pytest.raises(SettingsError, match=r"'batch_size'.*; 'queue_size'"):
        DenoiseSettings(batch_size=0, queue_size=0)


def test_one_name_stands_for_a_list_of_one():
    settings = DenoiseSettings(data_keys="det", streams="fly", exposure_keys="t")
    assert (settings.data_keys, settings.streams, settings.exposure_keys) == (
        ("det",),
        ("fly",),
        ("t",),
    )


def test_settings_cannot_be_changed_in_mid_run():
    with pytest.raises(ValueError, match="frozen"):
        DenoiseSettings().batch_size = 2


def test_an_exposure_is_for_all_keys_or_by_key():
    assert DenoiseSettings(exposure_s=0.5).exposure_of("any") == 0.5
    by_key = DenoiseSettings(exposure_s={"det": 0.1})
    assert by_key.exposure_of("det") == 0.1
    assert by_key.exposure_of("other") is None


# YAML


def test_a_file_is_read_with_its_paths_relative_to_it(tmp_path):
    np.save(tmp_path / "bad.npy", np.eye(16))
    path = tmp_path / "denoise.yaml"
    path.write_text("exposure_s: 0.5\nframes_directory: denoised\nmask: {det: bad.npy}\n")
    settings = DenoiseSettings.from_yaml(path)
    assert settings.exposure_s == 0.5
    assert settings.frames_directory == tmp_path / "denoised"
    assert settings.mask_of("det").sum() == 16
    assert settings.mask_of("other") is None


def test_a_time_with_a_colon_is_no_number_of_seconds(tmp_path):
    path = tmp_path / "denoise.yaml"
    path.write_text("exposure_s: 1:30\n")
    with pytest.raises(SettingsError, match=r"exposure_s.*'1:30'"):
        DenoiseSettings.from_yaml(path)


def test_weights_are_relative_to_the_file_and_their_names_are_not(tmp_path):
    path = tmp_path / "denoise.yaml"
    path.write_text("model: mine.safetensors\n")
    assert DenoiseSettings.from_yaml(path).model == str(tmp_path / "mine.safetensors")
    path.write_text("model: default\n")
    assert DenoiseSettings.from_yaml(path).model == "default"


def test_a_mask_that_is_not_there_is_told_once_with_the_file(tmp_path):
    path = tmp_path / "denoise.yaml"
    path.write_text("mask: bad.npy\n")
    with pytest.raises(SettingsError) as error:
        DenoiseSettings.from_yaml(path)
    assert str(error.value).startswith(f"{path}: 'mask': Mask {tmp_path}/bad.npy cannot be read")
    assert str(error.value).count(str(path)) == 1


@pytest.mark.parametrize("name", ["a#1", "why?"])
def test_a_directory_that_tiled_could_not_find_is_refused(tmp_path, name):
    with pytest.raises(
        SettingsError, match=r"has a # or a \?, after which Tiled would read no file"
    ):
        DenoiseSettings(frames_directory=tmp_path / name)
    assert not (tmp_path / name).exists()


def test_settings_within_another_file_have_paths_relative_to_it(tmp_path):
    np.save(tmp_path / "bad.npy", np.eye(16))
    settings = DenoiseSettings.from_values({"mask": "bad.npy"}, tmp_path, exposure_s=2.0)
    assert settings.mask_of("det").sum() == 16
    assert settings.exposure_s == 2.0
    assert settings.frames_directory is None
    with pytest.raises(SettingsError, match=r"^beamline\.yaml, denoise: unknown setting 'thread'"):
        DenoiseSettings.from_values({"thread": 1}, tmp_path, "beamline.yaml, denoise")


def test_the_file_of_a_profile_is_a_settings_file(tmp_path):
    path = tmp_path / "beamline.yaml"
    np.save(tmp_path / "bad.npy", np.eye(16))
    text = "tiled_uri: http://localhost:8000\nmotors: {}\ndenoise:\n  mask: bad.npy\n"
    path.write_text(text)
    settings = DenoiseSettings.from_yaml(path, exposure_s=2.0)
    assert settings.mask_of("det").sum() == 16
    assert settings.tiled_uri == "http://localhost:8000"
    assert settings.exposure_s == 2.0
    path.write_text(f"{text}  thread: 1\n")
    with pytest.raises(SettingsError, match=r"beamline\.yaml, denoise: unknown setting 'thread'"):
        DenoiseSettings.from_yaml(path)
    path.write_text("tiled_uri: null\ndenoise:\n")
    assert DenoiseSettings.from_yaml(path).tiled_uri is None
    path.write_text("denoise: [a]\n")
    with pytest.raises(SettingsError, match=r"beamline\.yaml, denoise.* holds list"):
        DenoiseSettings.from_yaml(path)


@pytest.mark.parametrize("key", ["streams", "data_keys"])
def test_nothing_to_denoise_is_refused(key):
    with pytest.raises(SettingsError, match=f"'{key}': expected one name at least"):
        DenoiseSettings(**{key: []})


def test_keywords_take_precedence_over_the_file(tmp_path):
    path = tmp_path / "denoise.yaml"
    path.write_text("exposure_s: 0.5\nbatch_size: 4\n")
    settings = DenoiseSettings.from_yaml(path, exposure_s=2.0)
    assert (settings.exposure_s, settings.batch_size) == (2.0, 4)


def test_an_empty_file_gives_the_defaults(tmp_path):
    path = tmp_path / "denoise.yaml"
    path.write_text("# nothing yet\n")
    assert DenoiseSettings.from_yaml(path) == DenoiseSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exposure: 1\n", r"denoise\.yaml: unknown setting 'exposure'"),
        ("batch_size: many\n", r"denoise\.yaml: 'batch_size'.*got 'many'"),
        (
            "exposure_s: yes\n",
            r"'exposure_s': true and false are no numbers; expected seconds.*True",
        ),
        ("exposure_s: {det: on}\n", r"'exposure_s': true and false are no numbers"),
        ("rate_range: [no, 5]\n", r"'rate_range': true and false are no numbers"),
        ("threads: true\n", r"'threads': true and false are no numbers; expected a whole number"),
        ("- a\n- b\n", r"denoise\.yaml holds list; expected `key: value` lines"),
        ("a: [\n", r"denoise\.yaml cannot be read"),
        (
            "rois:\n  a: {rows: [1, 9], cols: [1, 9]}\n  a: {rows: [2, 9], cols: [2, 9]}\n",
            r"(?s)cannot be read: 'a' is given first.*line 2.*and once more; leave one.*line 3",
        ),
    ],
)
def test_an_error_in_a_file_names_the_file_and_the_key(tmp_path, text, message):
    path = tmp_path / "denoise.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        DenoiseSettings.from_yaml(path)


def test_what_is_merged_into_a_mapping_may_be_overridden_there(tmp_path):
    path = tmp_path / "denoise.yaml"
    path.write_text(
        "rois:\n  a: &a {rows: [1, 9], cols: [1, 9]}\n  b: &b {<<: *a, cols: [3, 5]}\n"
        "  c: {<<: *b, rows: [2, 4]}\n"
    )
    rois = DenoiseSettings.from_yaml(path).rois["*"]
    assert (rois["b"].rows, rois["b"].cols) == ((1, 9), (3, 5))
    assert (rois["c"].rows, rois["c"].cols) == ((2, 4), (3, 5))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.yaml cannot be read: .*No such file"):
        DenoiseSettings.from_yaml(tmp_path / "nowhere.yaml")


# Secrets


def test_the_key_is_taken_out_of_the_address():
    settings = DenoiseSettings(tiled_uri="http://localhost:8000/api/v1?api_key=secret&a=1")
    assert settings.tiled_uri == "http://localhost:8000/api/v1?a=1"
    assert settings.tiled_api_key.get_secret_value() == "secret"
    shown = f"{settings!r} {settings} {settings.describe()} {settings.model_dump_json()}"
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (
            "http://localhost:8000/ui/browse/1f/denoised?api_key=secret",
            "http://localhost:8000/api/v1",
        ),
        ("http://localhost/tiled/ui", "http://localhost/tiled/api/v1"),
        ("http://localhost/api/v1/metadata/ui/", "http://localhost/api/v1/metadata/ui/"),
        ("http://localhost/gui/", "http://localhost/gui/"),
    ],
)
def test_a_page_of_the_browser_stands_for_its_server(typed, meant):
    assert DenoiseSettings(tiled_uri=typed).tiled_uri == meant


def test_the_key_of_the_environment_is_used_where_the_address_has_none(monkeypatch):
    monkeypatch.setenv("TILED_API_KEY", "from-environment")
    assert (
        DenoiseSettings(tiled_uri="http://localhost").tiled_api_key.get_secret_value()
        == "from-environment"
    )
    with_key = DenoiseSettings(tiled_uri="http://localhost?api_key=own")
    assert with_key.tiled_api_key.get_secret_value() == "own"
    other = DenoiseSettings(tiled_uri="http://other?api_key=its", tiled_api_key="of another")
    assert other.tiled_api_key.get_secret_value() == "its"
    assert DenoiseSettings().tiled_api_key is None


def test_the_key_of_a_server_does_not_go_to_another(tmp_path, monkeypatch):
    monkeypatch.delenv("TILED_API_KEY", raising=False)
    path = tmp_path / "settings.yaml"
    path.write_text("tiled_uri: http://a\ntiled_api_key: secret\n")
    assert DenoiseSettings.from_yaml(path, threads=1).tiled_api_key.get_secret_value() == "secret"
    assert DenoiseSettings.from_yaml(path, tiled_uri="http://b").tiled_api_key is None
    given = {"tiled_uri": "http://a", "tiled_api_key": "secret", "threads": 1}
    assert overridden(given, {"tiled_uri": "http://b"}) == {"tiled_uri": "http://b", "threads": 1}
    its = {"tiled_uri": "http://b", "tiled_api_key": "its"}
    assert overridden(given, its) == {**its, "threads": 1}


@pytest.mark.parametrize(
    "values",
    [
        {"tiled_uri": "ftp://localhost?api_key=secret"},
        {"tiled_uri": "http://[broken?api_key=secret"},
        {"tiled_uri": "http://user:secret@localhost:8000"},
        {"tiled_uri": "user:secret@localhost:8000"},
        {"tiled_uri": "http://localhost", "tiled_api_key": ["secret"]},
        {"tiled_uri": "http://localhost?api_key=secret", "unknown": 1, "batch_size": 0},
    ],
)
def test_no_error_shows_the_key(values):
    with pytest.raises(SettingsError) as caught:
        DenoiseSettings(**values)
    assert "secret" not in str(caught.value)


def test_settings_travel_to_another_process_whole(tmp_path):
    settings = DenoiseSettings(
        tiled_uri="http://localhost?api_key=secret",
        mask={"det": np.eye(16)},
        exposure_s={"det": 0.1},
        frames_directory=tmp_path,
    )
    copied = pickle.loads(pickle.dumps(settings))
    assert copied.tiled_api_key.get_secret_value() == "secret"
    np.testing.assert_array_equal(copied.mask_of("det"), np.eye(16, dtype=bool))
    assert copied.frames_directory == tmp_path


# Directories


def test_a_directory_may_be_missing_and_is_not_made_by_what_is_only_set(tmp_path):
    settings = DenoiseSettings(frames_directory=tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    assert settings.backup_path == tmp_path / "a" / "b" / "backup"


@pytest.mark.parametrize("key", ["frames_directory", "backup_directory"])
def test_a_directory_is_named_without_dots_and_keeps_its_links(tmp_path, key):
    for name in ("config", "share", "other/sub"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("share", target_is_directory=True)
    (tmp_path / "away").symlink_to("other/sub", target_is_directory=True)
    path = tmp_path / "config" / "denoise.yaml"
    for given, meant in (
        ("../share/a", "share/a"),
        ("../link/a", "link/a"),
        ("../away/../a", "other/a"),  # as the kernel takes it
    ):
        path.write_text(f"{key}: {given}\n")
        assert str(getattr(DenoiseSettings.from_yaml(path), key)) == str(tmp_path / meant)


@pytest.mark.parametrize("key", ["frames_directory", "backup_directory"])
def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path, key):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=rf"'{key}': .*file/sub cannot be written to: Not a d"):
        DenoiseSettings(**{key: tmp_path / "file" / "sub"})
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SettingsError, match=rf"'{key}': .*link/sub cannot be written to: No such"):
        DenoiseSettings(**{key: tmp_path / "link" / "sub"})


def test_backups_lie_in_the_data_directory_of_the_user_without_others(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert DenoiseSettings().backup_path == tmp_path / "bluesky_denoise" / "backup"
    own = DenoiseSettings(backup_directory=tmp_path / "mine", frames_directory=tmp_path / "f")
    assert own.backup_path == tmp_path / "mine"


# Provenance


def test_the_description_holds_what_shapes_the_result_and_no_more():
    settings = DenoiseSettings(
        data_keys=["det"], exposure_s=0.1, mask=np.zeros((16, 20)), tiled_uri="http://localhost"
    )
    assert settings.describe() == {
        "data_keys": ["det"],
        "streams": ["primary"],
        "exposure_s": 0.1,
        "exposure_keys": [],
        "model": "default",
        "mask": settings.describe()["mask"],
        "audit": True,
        "save_sigma": False,
    }


def test_a_mask_of_another_kind_is_refused_in_a_sentence():
    with pytest.raises(SettingsError, match=r"'mask': expected an array \(H, W\), a file, or") as e:
        DenoiseSettings(mask=[[0, 1], [0, 0]])
    assert "lax-or-strict" not in str(e.value)
    with pytest.raises(SettingsError, match=r"'mask': expected an array"):
        DenoiseSettings(mask={"det": 3})


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "denoise.yaml"
    path.write_bytes(b"model: gr\xfcn\n")
    with pytest.raises(
        SettingsError, match=r"denoise\.yaml cannot be read: unacceptable character"
    ):
        DenoiseSettings.from_yaml(path)
    path.write_bytes("tiled_container: gr\u00fcn\n".encode("utf-16"))  # not in that of the locale
    assert DenoiseSettings.from_yaml(path).tiled_container == "gr\u00fcn"
    path.write_text("3: 4\n")
    with pytest.raises(SettingsError, match=r"denoise\.yaml: unknown setting '3'"):
        DenoiseSettings.from_yaml(path)


def test_another_mask_of_the_same_shape_is_another_setting():
    masks = [np.zeros((16, 20)), np.eye(16, 20), np.eye(16, 20, 1)]
    told = [DenoiseSettings(mask=mask).describe()["mask"] for mask in masks]
    assert len(set(told)) == 3
    assert all(text.startswith("array of shape (16, 20), sha256 ") for text in told)
    assert DenoiseSettings(mask={"det": masks[1]}).describe()["mask"] == {"det": told[1]}


def test_settings_are_compared_with_the_pixels_of_their_masks():
    def masked(mask):
        return DenoiseSettings(mask=mask)

    assert masked(np.eye(16)) == masked(np.eye(16))
    assert masked({"det": np.eye(16)}) == masked({"det": np.eye(16)})
    assert masked(np.eye(16)) != masked(np.eye(16, k=1))
    assert masked(np.eye(16)) != masked({"det": np.eye(16)}) != masked(None)
    assert DenoiseSettings() == DenoiseSettings() != DenoiseSettings(threads=1)
    assert DenoiseSettings() != "settings"


def test_regions_of_no_data_key_may_be_left_empty():
    rois = {"*": None, "spot": {"rows": [1, 9], "cols": [1, 9]}}
    assert DenoiseSettings(rois=rois).rois["*"]["spot"].rows == (1, 9)
