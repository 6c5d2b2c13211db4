"""What is exported is read back, as silx and NeXpy read it."""

import json
import subprocess
import sys
from datetime import datetime
from unittest.mock import MagicMock

import bluesky.plans as bp
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from beamline import KEY, ROIS
from bluesky_tiled_plugins import TiledWriter
from conftest import run_engine
from live_path import UNIT, paused_scan
from nexusformat.nexus import nxload
from ophyd.sim import SynAxis, SynSignal

from bluesky_denoise import DenoiseSettings, denoised_streams, reprocess
from bluesky_denoise.errors import DenoiseError, SettingsError
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.nexus import _axes, export_nexus
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.views.picture import draw_event

COUNTS = np.random.default_rng(0).poisson(3.0, (20, 48, 48)).astype(np.uint16)
MASK = np.zeros((48, 48), bool)
MASK[3, 5:8] = True


@pytest.fixture(scope="module", params=["inline", "files"])
def run(request, tiled, tmp_path_factory):
    """Return a run of 20 events, denoised, with its frames in events or in files.

    Those in files are denoised under the name of the detector.
    """
    directory = tmp_path_factory.mktemp("nexus")
    frames = ReplayFrames(COUNTS, 1.0)
    if request.param == "inline":
        detector = ReplayDetector(name="det", frames=frames)
    else:
        detector = AreaDetectorReplay(name="det", frames=frames, directory=directory / "raw")
    motor = SynAxis(name="motor-x")  # as ophyd-async names them
    with run_engine() as RE:
        RE.subscribe(TiledWriter(tiled.client))
        (uid,) = RE(bp.scan([detector], motor, -1, 1, len(COUNTS), md={"sample": {"name": "lead"}}))
    settings = DenoiseSettings(
        model=UNIT,
        tiled_uri=tiled.uri,
        mask=MASK,
        rois=ROIS,
        data_keys=[KEY if request.param == "inline" else "det"],
        frames_directory=directory / "denoised",
        save_sigma=request.param == "files",
    )
    reprocess(tiled.client[uid], settings)
    return tiled.client[uid]


def test_the_file_has_what_nexus_asks_for_and_what_was_measured(run, tmp_path):
    done = []
    (denoised,) = denoised_streams(run)
    key = "det" if "det" in denoised.stream else KEY
    path = export_nexus(
        run, denoised, tmp_path / "run.nxs", progress=lambda *steps: done.append(steps)
    )
    assert done == [(16, 20), (20, 20)]
    assert [file.name for file in tmp_path.glob("run*")] == ["run.nxs"]
    with h5py.File(path) as file:
        assert file.attrs["NX_class"] == "NXroot"
        entry = file[file.attrs["default"]]
        assert entry.attrs["NX_class"] == "NXentry"
        assert entry["entry_identifier"].asstr()[()] == run.metadata["start"]["uid"]
        assert entry["sample/name"].asstr()[()] == "lead"
        for moment, document in (("start_time", "start"), ("end_time", "stop")):
            told = datetime.fromisoformat(entry[moment].asstr()[()])
            assert told.timestamp() == pytest.approx(run.metadata[document]["time"], abs=1e-5)
        shown = entry[entry.attrs["default"]]
        assert shown.attrs["NX_class"] == "NXdata"
        assert list(shown.attrs["axes"]) == ["motor_x", ".", "."]
        np.testing.assert_allclose(shown["motor_x"], np.linspace(-1, 1, 20))
        rate = shown[shown.attrs["signal"]]
        assert rate.attrs["units"] == "counts / s"
        np.testing.assert_array_equal(np.isnan(rate[:]), np.broadcast_to(MASK, COUNTS.shape))
        np.testing.assert_allclose(rate[:][:, ~MASK], COUNTS[:, ~MASK])
        assert (f"{rate.name}_errors" in file) == (f"{key}_sigma" in denoised.stream)
        if f"{key}_sigma" in denoised.stream:  # the unit denoiser's are roots of the counts
            errors = file[f"{rate.name}_errors"]
            assert errors.attrs["units"] == "counts / s"
            np.testing.assert_allclose(errors[:][:, ~MASK], np.sqrt(COUNTS[:, ~MASK]), rtol=2**-13)
        raw = entry[key]
        np.testing.assert_array_equal(raw[raw.attrs["signal"]], COUNTS)
        detector = entry[f"instrument/{key}"]
        np.testing.assert_array_equal(detector["pixel_mask"][:] == 1, MASK)
        np.testing.assert_array_equal(detector["data"], COUNTS)
        np.testing.assert_allclose(detector["count_time"], 1.0)
        assert detector["count_time"].attrs["units"] == "s"
        assert "units" not in shown["motor_x"].attrs
        numbers = entry["numbers"]
        assert numbers.attrs["signal"] == "satellite_intensity"
        assert np.isfinite(numbers["satellite_intensity_errors"]).all()
        assert entry["table/denoise_ok"][:].all()
        assert entry["denoise/model"].asstr()[()] == "unit"
        provenance = json.loads(entry["denoise/provenance/data"].asstr()[()])
        assert provenance["settings"]["model"] == UNIT
        assert json.loads(entry["bluesky/start"].asstr()[()])["plan_name"] == "scan"


def test_a_nexus_reader_finds_the_plot_by_itself(run, tmp_path):
    path = export_nexus(run, denoised_streams(run)[0], tmp_path / "run.nxs")
    root = nxload(path)
    plot = root.get_default()
    assert plot.nxsignal.nxname == "rate"
    assert plot.nxsignal.shape == COUNTS.shape
    assert plot.nxaxes[0].nxname == "motor_x"
    assert root["entry/numbers"].nxerrors is not None


def test_an_event_is_drawn_with_its_standard_errors_where_there_are_some(run, tmp_path):
    (denoised,) = denoised_streams(run)
    draw_event(run, denoised, 3, tmp_path / "event.png")
    height, width, _ = plt.imread(tmp_path / "event.png").shape
    panels = 4 if "det_sigma" in denoised.stream else 3
    # Panels are about square.
    assert width / height > 0.7 * panels


def test_a_file_that_exists_is_not_written_over(run, tmp_path):
    path = tmp_path / "run.nxs"
    path.write_text("mine")
    with pytest.raises(SettingsError, match=r"run\.nxs exists; remove it"):
        export_nexus(run, denoised_streams(run)[0], path)
    assert path.read_text() == "mine"
    with pytest.raises(SettingsError, match="is a folder; expected the name of a file"):
        export_nexus(run, denoised_streams(run)[0], tmp_path)


def test_the_folder_of_the_file_is_made(run, tmp_path):
    path = export_nexus(run, "denoised", tmp_path / "of May" / "nexus" / "run.nxs")
    assert [file.name for file in path.parent.iterdir()] == ["run.nxs"]


def test_a_stream_without_a_table_or_without_a_row_is_refused(run, tmp_path, monkeypatch):
    for table in (None, StoredStream(run["denoised"]).read_table()[:0]):
        monkeypatch.setattr(StoredStream, "read_table", lambda stored, found=table: found)
        with pytest.raises(SettingsError, match="'denoised' has no events; nothing to export"):
            export_nexus(run, "denoised", tmp_path / "run.nxs")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_could_not_be_finished_is_not_left_behind(run, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_nexus(run, denoised_streams(run)[0], tmp_path / "run.nxs", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_a_disk_that_is_full_is_told_and_the_process_lives_on(run, tiled, tmp_path):
    code = (
        "import resource, sys\n"
        "from tiled.client import from_uri\n"
        "from bluesky_denoise import export_nexus\n"
        "run = from_uri(sys.argv[1])[sys.argv[2]]\n"
        "for room in (0, 1000, 30_000, 60_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        export_nexus(run, 'denoised', 'run.nxs')\n"
        "    except OSError as error:\n"
        "        print(error)\n"
        "with run.context:\n"
        "    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiled.uri, run.metadata["start"]["uid"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["run.nxs cannot be written: File too large"] * 4
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("run*")) == []


def test_the_name_of_the_stream_will_do(run, tmp_path):
    path = export_nexus(run, "denoised", tmp_path / "run.nxs")
    with h5py.File(path) as file:
        assert file["entry/denoise/run_uid"].asstr()[()] == denoised_streams(run)[0].run_uid
    with pytest.raises(DenoiseError, match=r"has no 'primary'; it has denoised \("):
        export_nexus(run, "primary", tmp_path / "other.nxs")
    with pytest.raises(SettingsError, match=r"expected one of `denoised_streams\(run\)`, or the"):
        export_nexus(run, run["denoised"], tmp_path / "other.nxs")


def test_a_raw_stream_is_told_from_the_name_of_the_denoised_one(run):
    from dataclasses import replace

    (denoised,) = denoised_streams(run)
    named = {
        "denoised": "primary",
        "denoised_3": "primary",
        "denoised_dark": "dark",
        "denoised_scan2_2": "scan2",
    }
    old = replace(denoised, provenance={})  # before it was recorded
    assert {name: replace(old, name=name).raw_stream for name in named} == named
    assert replace(denoised, name="denoised_7").raw_stream == "primary"


@pytest.mark.parametrize("name", ["rate", "title"])
def test_names_that_are_taken_get_another(tiled, tmp_path, name):
    detector = ReplayDetector(name="det", frames=ReplayFrames(COUNTS, 1.0))
    others = [SynAxis(name="x-y"), SynAxis(name="x_y")]
    with run_engine() as RE:
        RE.subscribe(TiledWriter(tiled.client))
        (uid,) = RE(bp.scan([detector, *others], SynAxis(name=name), -1, 1, 3))
    run = tiled.client[uid]
    reprocess(run, DenoiseSettings(model=UNIT, tiled_uri=tiled.uri))
    root = nxload(str(export_nexus(run, denoised_streams(run)[0], tmp_path / "run.nxs")))
    plotted = root.plottable_data
    assert plotted.nxsignal.shape == (3, 48, 48)
    np.testing.assert_allclose(plotted.nxaxes[0].nxdata, [-1, 0, 1])
    assert {"x_y", "x_y_"} <= set(root["entry/table"])


def test_the_raw_frames_are_those_of_the_denoised_ones_after_a_pause(tiled, tmp_path):
    detector = ReplayDetector(name="det", frames=ReplayFrames(COUNTS, 1.0))
    with run_engine() as RE:
        RE.subscribe(TiledWriter(tiled.client))
        (uid,) = paused_scan(RE, [detector])
    run = tiled.client[uid]
    reprocess(run, DenoiseSettings(model=UNIT, tiled_uri=tiled.uri))
    (denoised,) = denoised_streams(run)
    np.testing.assert_array_equal(denoised.stream["raw_seq_num"].read(), [1, 2, 2, 3])
    with h5py.File(export_nexus(run, denoised, tmp_path / "run.nxs")) as file:
        counts = file["entry/det_image/counts"][:]
        rates = file["entry/det_image_denoised/rate"][:]
    np.testing.assert_array_equal(counts, rates)  # its rate is the counts, in 1 s


def test_texts_are_exported_without_the_nul_that_hdf5_does_not_take(RE, tiled, tmp_path):
    detector = ReplayDetector(name="det", frames=ReplayFrames(COUNTS[:1], 1.0))
    shutter = SynSignal(name="shutter", func=lambda: "open\0\0")
    RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(bp.count([detector, shutter]), sample="le\0ad", plan_name="fi\0rst")
    reprocess(tiled.client[uid], DenoiseSettings(model=UNIT, tiled_uri=tiled.uri))
    run = tiled.client[uid]
    with h5py.File(export_nexus(run, "denoised", tmp_path / "run.nxs")) as file:
        assert file["entry/sample/name"].asstr()[()] == "lead"
        assert list(file["entry/table/shutter"].asstr()) == ["open"]
        assert file["entry/title"].asstr()[()] == "first 1"
        assert json.loads(file["entry/bluesky/start"].asstr()[()])["sample"] == "le\0ad"


def test_a_run_that_says_that_it_has_no_motors_is_exported(RE, tiled, tmp_path):
    detector = ReplayDetector(name="det", frames=ReplayFrames(COUNTS[:2], 1.0))
    RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(bp.count([detector], 2), motors=None)
    reprocess(tiled.client[uid], DenoiseSettings(model=UNIT, tiled_uri=tiled.uri))
    run = tiled.client[uid]
    (denoised,) = denoised_streams(run)
    with h5py.File(export_nexus(run, denoised, tmp_path / "run.nxs")) as file:
        entry = file[file.attrs["default"]]
        assert list(entry[entry.attrs["default"]].attrs["axes"]) == ["raw_seq_num", ".", "."]


@pytest.mark.parametrize(
    ("motors", "dimensions", "moved"),
    [
        (None, None, ["raw_seq_num"]),
        (("x", "away"), [[["y", "away"], "primary"], [["x"], "primary"]], ["y", "x"]),
        (["mode", "on"], None, ["raw_seq_num"]),
        ([["x"]], [[["y"], "primary", "as this plan has it"]], ["y"]),
    ],
)
def test_what_was_moved_is_told_by_hints_and_motors_however_they_are_written(
    motors, dimensions, moved
):
    columns = {key: np.arange(2.0) for key in ("raw_seq_num", "x", "y")}
    columns |= {"mode": np.array(["a", "b"], object), "on": np.array([True, False])}
    denoised = MagicMock()
    denoised.stream.base.metadata = {"data_keys": {"x": {"units": "mm"}, "y": {"units": None}}}
    found = _axes({"motors": motors, "hints": {"dimensions": dimensions}}, columns, denoised)
    assert list(found) == moved
    units = {"x": "mm", "y": "", "raw_seq_num": ""}
    assert all(found[key][0] is columns[key] and found[key][1] == units[key] for key in moved)
