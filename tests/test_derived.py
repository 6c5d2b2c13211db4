import re

import bluesky.plans as bp
import h5py
import numpy as np
import pytest
from live_path import SHAPE, Camera, by_stream, poisson, rates, settings, values
from ophyd import Signal
from ophyd.sim import SynAxis, SynSignal

from bluesky_denoise import __version__
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser


@pytest.fixture
def det():
    counts = np.random.default_rng(1).poisson(5, (5, *SHAPE)).astype(np.uint16)
    return ReplayDetector(name="det", frames=ReplayFrames(counts, 0.5), exposure_s=0.5)


@pytest.fixture
def derive(RE, raw, tmp_path):
    """Return a function that runs a plan, and gives the documents of its derived run."""

    def derive(plan, **options):
        options = {"frames_directory": tmp_path / "denoised", **options}
        router, derived = DenoiseRouter(settings(**options), UnitDenoiser()), DocumentCollector()
        router.subscribe(derived)
        token = RE.subscribe(router)
        RE(plan)
        RE.unsubscribe(token)
        derived.validate()
        return derived

    return derive


def test_the_start_carries_the_metadata_of_the_scan_and_where_the_results_are_from(
    RE, raw, derive, det
):
    RE.md["beamline"] = "I07"
    motor = SynAxis(name="motor")
    derived = derive(bp.scan([det], motor, 0, 1, 3, md={"sample": {"name": "lead"}}))
    start, original = derived.by_name["start"][0], raw.by_name["start"][0]
    assert start["original_run_uid"] == original["uid"]
    assert start["uid"] != original["uid"]
    assert start["time"] >= original["time"]
    for key in ("scan_id", "plan_name", "plan_args", "motors", "sample", "beamline"):
        assert start[key] == original[key]
    assert start["hints"] == {"dimensions": [[["motor"], "denoised"]]}
    assert start["denoise"] == {
        "version": __version__,
        "model": "unit",
        "weights_sha256": "0" * 64,
        "device": "cpu",
        "settings": {
            "streams": ["primary"],
            "exposure_keys": [],
            "model": "bluesky_denoise.testing:UnitDenoiser",
            "audit": True,
            "save_sigma": False,
        },
    }


def test_the_descriptor_says_what_the_frames_and_numbers_are(RE, raw, derive, det):
    derived = derive(bp.scan([det], SynAxis(name="motor"), 0, 1, 3))
    descriptor = derived.by_name["descriptor"][0]
    keys = descriptor["data_keys"]
    assert descriptor["name"] == "denoised"
    assert keys["det_image"] == {
        "dtype": "array",
        "dtype_numpy": "<f4",
        "shape": [*SHAPE],
        "units": "counts / s",
        "source": "denoise:unit",
        "external": "STREAM:",
    }
    assert keys["det_image_raw_total"]["units"] == "counts"
    assert keys["det_image_denoised_total"]["units"] == "counts / s"
    assert keys["det_image_exposure_s"]["units"] == "s"
    assert keys["latency_s"]["units"] == "s"
    assert keys["raw_seq_num"]["dtype"] == "integer"
    assert keys["denoise_ok"]["dtype"] == "boolean"
    raw_keys = raw.by_name["descriptor"][0]["data_keys"]
    for key in ("motor", "motor_setpoint", "det_stats1_total"):
        assert keys[key]["source"] == raw_keys[key]["source"]
    owners = descriptor["object_keys"]
    assert owners["motor"] == ["motor", "motor_setpoint"]
    assert set(owners["det"]) == {"det_image", "det_stats1_total"}
    assert {"raw_seq_num", "latency_s", "denoise_ok"} < set(owners["denoiser"])
    assert sorted(k for ks in owners.values() for k in ks) == sorted(keys)
    assert descriptor["hints"]["motor"] == {"fields": ["motor"]}
    assert descriptor["hints"]["det"] == {"fields": ["det_stats1_total"]}
    assert "det_image_denoised_total" in descriptor["hints"]["denoiser"]["fields"]
    assert descriptor["configuration"]["denoiser"]["data"] == {
        "denoiser_model": "unit",
        "denoiser_weights_sha256": "0" * 64,
        "denoiser_device": "cpu",
        "denoiser_version": __version__,
    }


def test_each_raw_event_has_one_with_its_time_and_scalars(RE, raw, derive, det):
    derived = derive(bp.scan([det], SynAxis(name="motor"), 0, 1, 5))
    events = by_stream(derived)
    assert len(events) == 5
    for one, original in zip(events, raw.by_name["event"], strict=True):
        assert one["time"] == original["time"]
        assert one["data"]["raw_seq_num"] == original["seq_num"]
        for key in ("motor", "motor_setpoint", "det_stats1_total"):
            assert one["data"][key] == original["data"][key]
            assert one["timestamps"][key] == original["timestamps"][key]
        frame = original["data"]["det_image"]
        assert one["data"]["det_image_raw_total"] == frame.sum()
        assert one["data"]["det_image_denoised_total"] == pytest.approx(2.0 * frame.sum())
        assert 0 < one["data"]["latency_s"] < 60
        assert one["data"]["denoise_ok"] is True
        assert one["data"]["denoise_reason"] == ""


def test_strings_integers_and_booleans_of_the_raw_event_are_kept(derive):
    scalars = [
        SynSignal(name="name", func=lambda: "lead"),
        SynSignal(name="number", func=lambda: 7),
        SynSignal(name="shut", func=lambda: True),
    ]
    derived = derive(bp.count([Camera(name="det", func=poisson()), *scalars], 2))
    assert values(derived, "name") == ["lead", "lead"]
    assert values(derived, "number") == [7, 7]
    assert values(derived, "shut") == [True, True]


def test_a_reading_that_is_called_as_a_number_of_ours_stays_in_the_raw_stream(derive, det, logged):
    names = ("raw_seq_num", "Denoise_OK", "x", "ts_x", "Time")  # in Tiled is a column `ts_x`, too
    others = [Signal(name=name, value=value) for value, name in enumerate(names)]
    derived = derive(bp.count([det, *others], 2))
    assert values(derived, "raw_seq_num") == [1, 2]
    descriptor = derived.by_name["descriptor"][0]
    assert "raw_seq_num" in descriptor["object_keys"]["denoiser"]
    assert set(names) & descriptor["object_keys"].keys() == {"x"}
    assert set(names) & descriptor["data_keys"].keys() == {"raw_seq_num", "x"}
    told = "the readings 'Denoise_OK', 'Time', 'raw_seq_num', 'ts_x' are in the raw stream alone"
    assert told in logged()
    assert logged().count("raw stream alone") == 1


def test_small_arrays_of_the_raw_event_are_left_out(derive):
    spectrum = SynSignal(name="spectrum", func=lambda: np.arange(40.0))
    derived = derive(bp.count([Camera(name="det", func=poisson()), spectrum], 2))
    assert "spectrum" not in derived.by_name["descriptor"][0]["data_keys"]
    assert "spectrum" not in by_stream(derived)[0]["data"]


def test_the_stop_tells_how_many_events_there_are_and_how_the_raw_run_ended(raw, derive, det):
    derived = derive(bp.count([det], 4))
    stop = derived.by_name["stop"][0]
    assert stop["num_events"] == {"denoised": 4}
    assert stop["exit_status"] == "success"
    assert stop["run_start"] == derived.by_name["start"][0]["uid"]


def test_frames_lie_in_one_file_by_date_that_says_which_run_they_are_of(raw, derive, det, tmp_path):
    derived = derive(bp.count([det], 4))
    start = derived.by_name["start"][0]
    resource = derived.by_name["stream_resource"][0]
    (path,) = (tmp_path / "denoised").rglob("*.h5")
    assert resource["uri"] == f"file://localhost{path}"
    assert re.fullmatch(
        rf"\d{{4}}/\d\d/\d\d/{start['original_run_uid'][:8]}_denoised_{start['uid'][:8]}\.h5",
        str(path.relative_to(tmp_path / "denoised")),
    )
    with h5py.File(path) as file:
        assert file.attrs["original_run_uid"] == start["original_run_uid"]
        assert file.attrs["run_uid"] == start["uid"]
        dataset = file[resource["parameters"]["dataset"]]
        assert dataset.shape == (4, *SHAPE)
        assert dataset.dtype == np.float32
        assert dataset.chunks == tuple(resource["parameters"]["chunk_shape"]) == (1, *SHAPE)


def test_frames_can_be_read_as_soon_as_their_document_is_there(RE, det, tmp_path):
    router = DenoiseRouter(settings(frames_directory=tmp_path), UnitDenoiser())
    derived, seen = DocumentCollector(), []

    def read(name, doc):
        derived(name, doc)
        if name == "stream_datum":
            frames = rates(derived, "det_image")
            seen.append((doc["indices"]["stop"], len(frames), float(frames[-1].sum())))

    router.subscribe(read)
    RE.subscribe(router)
    RE(bp.count([det], 3))
    assert [promised for promised, _, _ in seen] == [1, 2, 3]
    assert [there for _, there, _ in seen] == [1, 2, 3]
    assert all(total > 0 for _, _, total in seen)


def test_one_stream_datum_covers_a_batch(RE, raw, det, tmp_path):
    RE(bp.count([det], 10))
    router = DenoiseRouter(settings(frames_directory=tmp_path, batch_size=4), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    router.feed(raw.documents)
    derived.validate()
    spans = [(d["indices"]["start"], d["indices"]["stop"]) for d in derived.by_name["stream_datum"]]
    assert spans == [(0, 4), (4, 8), (8, 10)]


def test_two_runs_have_two_files(derive, det, tmp_path):
    derive(bp.count([det], 1))
    derive(bp.count([det], 1))
    assert len(list((tmp_path / "denoised").rglob("*.h5"))) == 2


def test_frames_inside_the_events_have_the_same_values_as_in_files(RE, raw, det, tmp_path):
    RE(bp.count([det], 4))
    read = []
    for options in ({"frames_directory": tmp_path}, {}):
        router, derived = DenoiseRouter(settings(**options), UnitDenoiser()), DocumentCollector()
        router.subscribe(derived)
        router.feed(raw.documents)
        derived.validate()
        read.append(rates(derived, "det_image"))
    np.testing.assert_array_equal(*read)
    assert "external" not in derived.by_name["descriptor"][0]["data_keys"]["det_image"]
    assert "stream_resource" not in derived.by_name


def test_no_file_stays_open_after_the_run(derive, det, tmp_path):
    import psutil

    derive(bp.count([det], 2))
    left = [f.path for f in psutil.Process().open_files() if f.path.startswith(str(tmp_path))]
    assert left == []
