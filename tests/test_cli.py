import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from live_path import UNIT, Camera, poisson, wait_for
from ophyd.sim import SynAxis
from tiled.client import from_context, from_uri

from bluesky_denoise import __version__
from bluesky_denoise.catalog import denoised_streams
from bluesky_denoise.cli import _denoised_keys, _moved_from
from bluesky_denoise.commands.catalog import _numbers
from bluesky_denoise.commands.terminal import console
from bluesky_denoise.in_tiled.archive import archived_documents
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.reprocessing import reprocess
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.server import embedded_tiled
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay
from bluesky_denoise.testing import UnitDenoiser
from bluesky_denoise.tiled_sink import TiledSink


def test_runs_are_listed_denoised_and_shown(command, uid, tiled, tmp_path, monkeypatch):
    assert re.search(rf"{uid[:8]} │ 1 +│ scan +│ lead +│ +│", command("runs"))
    assert "has no denoised stream" in command("show", uid[:8], code=1)
    assert "denoised as run" in command("reprocess", "settings.yaml", uid[:8])
    assert re.search(
        rf"{uid[:8]} .* denoised +│ unit +│ 3 +│ +│ success", command("runs", "-n", "1")
    )
    shown = command("show", uid[:8], "--event", "2", "--picture", "event[b].png")
    assert "picture: event[b].png" in shown
    assert "model: unit" in shown
    assert "frames not ok: 0" in shown
    assert " reason: " not in shown  # there is none
    assert re.search(r"event +┃ 2 ", shown)
    assert re.search(r"det_image_exposure_s +│ 0\.5", shown)
    for number in ("0", "4"):
        said = command("show", uid[:8], "--event", number, code=1)
        assert f"There is no event {number}; the stream denoised has 1 to 3" in said
    assert "has no 'denoised_7'; it has denoised (" in command(
        "show", uid[:8], "--stream", "denoised_7", code=1
    )
    assert (tmp_path / "event[b].png").stat().st_size > 10_000
    said = command("show", uid[:8], "--picture", "event.foo", code=1)
    assert "event.foo cannot be written" in said
    assert "Traceback" not in said
    begun = StoredStream(tiled.client[uid]["denoised"]).read_table()[:0]  # by a killed process
    monkeypatch.setattr(StoredStream, "read_table", lambda stored: begun)
    assert "The stream denoised has no events" in command("show", uid[:8], code=1)


def test_catch_up_denoises_what_lacks_a_denoised_stream_and_only_that(command, uid):
    assert f"{uid}: denoised as run" in command("catch-up", "settings.yaml", "-n", "1")
    told = command("catch-up", "settings.yaml", "-n", "1")
    assert "0 of the newest 1 runs" in told
    assert "None of them" not in told


def test_catch_up_tells_of_names_that_no_run_has(command, uid, tmp_path):
    settings = (tmp_path / "settings.yaml").read_text()
    for wrong, told in (("data_keys: [dett]", "of dett in primary"), ("streams: dark", "in dark")):
        (tmp_path / "wrong.yaml").write_text(f"{settings}{wrong}\n")
        said = command("catch-up", "wrong.yaml", "-n", "1")
        assert f"newest 1 runs are to be denoised.\nNone of them has frames {told}." in said


def test_a_run_that_has_the_same_result_is_left_alone(command, uid, tmp_path):
    assert f"{uid}: denoised as run" in command("reprocess", "settings.yaml", uid)
    assert f"{uid}: has this result already, as denoised" in command(
        "reprocess", "settings.yaml", uid
    )
    assert f"{uid}: denoised as run" in command("reprocess", "settings.yaml", uid, "--again")
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "other.yaml").write_text(f"{settings}exposure_s: 2.0\n")
    assert f"{uid}: denoised as run" in command("reprocess", "other.yaml", uid)


@pytest.mark.thorough
def test_denoising_again_that_was_killed_goes_on_where_it_was(
    command, uid, tiled, tmp_path, monkeypatch
):
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "slow.yaml").write_text(settings.replace(UNIT, "child_denoisers:StuckAtTheThird"))
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    monkeypatch.setenv("DENOISE_TEST_GATE", str(tmp_path / "gate"))
    child = subprocess.Popen(
        [sys.executable, "-m", "bluesky_denoise.cli", "reprocess", "slow.yaml", uid],
        env={**os.environ, "PYTHONPATH": path},
    )
    wait_for(lambda: begun(tiled.client[uid]) == 2, 60, "two events of the killed process")
    child.kill()
    child.wait()
    (left,) = denoised_streams(tiled.client[uid])
    assert (left.exit_status, left.num_events) == (None, None)
    assert "running" in command("runs", "-n", "1")

    (tmp_path / "gate").touch()
    output = command("reprocess", "slow.yaml", uid)
    assert f"{uid}: denoised was interrupted" in output
    assert re.search(rf"{uid}: denoised as run \S+, 2 events taken over", output)
    done, left = denoised_streams(tiled.client[uid])
    assert (left.exit_status, left.reason) == ("fail", "interrupted before its end")
    assert (done.name, done.exit_status, done.num_events) == ("denoised_2", "success", 3)
    counts = tiled.client[uid]["primary"]["det_image"].read()
    np.testing.assert_allclose(done.stream["det_image"].read(), counts / 0.5)
    assert "has this result already, as denoised_2" in command("reprocess", "slow.yaml", uid)


def begun(run):
    streams = denoised_streams(run)
    node = streams[0].stream.base if streams else {}
    return len(node["internal"].read(["seq_num"])) if "internal" in node else 0


def test_runs_are_exported_to_files(command, uid, tmp_path):
    assert "has no denoised stream" in command("export", uid, code=1)
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "sigma.yaml").write_text(f"{settings}save_sigma: true\ndata_keys: det\n")
    command("reprocess", "sigma.yaml", uid)
    output = command("export", uid[:8], "--directory", "out")
    assert f"{uid}: in out/{uid[:8]}_denoised.nxs\n" in output  # and no word of raw frames
    with h5py.File(tmp_path / "out" / f"{uid[:8]}_denoised.nxs") as file:
        assert file["entry/det_denoised/rate"].shape == (3, 32, 40)
    output = command("export", uid[:8], "--directory", "out", code=1)
    assert "exists; remove it" in output


def test_runs_are_searched_by_model_and_by_flag(command, uid, tmp_path):
    listed = ("runs", "--sample", "lead")  # other tests have left many more
    command("reprocess", "settings.yaml", uid)
    assert uid[:8] in command(*listed, "--model", "unit")
    assert uid[:8] in command(*listed, "--model", "00000000")  # the sha256 of its weights
    assert uid[:8] not in command(*listed, "--model", "vdsr")
    assert uid[:8] not in command(*listed, "--flagged")
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "broken.yaml").write_text(settings.replace(UNIT, "child_denoisers:Broken"))
    command("reprocess", "broken.yaml", uid, code=None)
    assert re.search(rf"{uid[:8]} .* denoised_2 +│ .* │ 3 +│ 3 +│", command(*listed, "--flagged"))


@pytest.mark.thorough
def test_a_raw_run_without_its_end_is_told_however_well_its_denoising_ended(
    RE, command, into_tiled, tiled
):
    """As where Tiled did not take all of it."""
    write = TiledWriter(tiled.client, batch_size=1)
    RE.subscribe(lambda name, doc: None if name == "stop" else write(name, doc))
    camera = Camera(name="det", func=poisson(), exposure_s=0.5)
    (bare,) = RE(bp.count([camera], 2))
    assert re.search(rf"{bare[:8]} .*│ +the raw run has no end", command("runs", "-n", "1"))
    live = into_tiled()
    (uid,) = RE(bp.count([camera], 2))
    live.wait(uid)
    listed = command("runs", "-n", "1")
    assert re.search(rf"{uid[:8]} .*│ 2 +│ +│ success, the raw run has no end", listed)
    assert "raw run: has no end in Tiled" in command("show", uid)
    assert "no end in Tiled; the 2 events" in command("reprocess", "settings.yaml", bare, code=1)
    for run in (bare, uid):
        told = command("reprocess", "settings.yaml", run)
        assert "has this result already, as denoised" in told


@pytest.mark.thorough
def test_a_stream_that_was_cut_short_is_flagged_and_another_shown(command, uid, tiled):
    command("reprocess", "settings.yaml", uid)
    settings = DenoiseSettings(model=UNIT, tiled_uri=tiled.uri)
    router, sink = DenoiseRouter(settings), TiledSink(settings)
    router.subscribe(sink)
    for name, doc in list(archived_documents(tiled.client[uid]))[:-2]:
        router(name, doc)
    router.close("the child died")
    assert sink.close() == []
    listed = command("runs", "--sample", "lead", "--flagged")
    assert re.search(rf"{uid[:8]} .* denoised_2 +│ unit +│ 2 of 3 +│ +│ fail ", listed)
    assert "denoised_2" not in command("show", uid)
    assert command("runs", "-n", "1").count(uid[:8]) == 1  # beside the first of its streams


def test_runs_are_searched_by_sample_and_scan_id(command, uid):
    assert uid[:8] in command("runs", "--sample", "lead", "--scan-id", "1", "-n", "100")
    assert uid[:8] not in command("runs", "--sample", "gold")
    assert uid[:8] not in command("runs", "--sample", "lead", "--scan-id", "7", "-n", "100")


def test_a_run_without_a_denoised_stream_does_not_end_the_export_of_others(
    RE, command, uid, tmp_path
):
    command("reprocess", "settings.yaml", uid)
    (bare,) = RE(bp.count([Camera(name="det", func=poisson(), exposure_s=0.5)]))
    output = command("export", bare, uid, "--directory", "out", code=1)
    assert f"{bare}: Run {bare} has no denoised stream" in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{uid[:8]}_denoised.nxs"]


@pytest.mark.thorough
def test_derived_runs_of_their_own_are_chosen_by_their_uids(command, uid, tiled, tmp_path):
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "own.yaml").write_text(f"{settings}tiled_layout: run\n")
    for _ in range(2):
        command("reprocess", "own.yaml", uid, "--again")
    newer, older = denoised_streams(tiled.client[uid])
    assert newer.name == older.name
    assert f"run_uid: {older.run_uid}" in command("show", uid, "--stream", older.run_uid[:8])
    said = command("show", uid, "--stream", "denoised_9", code=1)
    assert f"it has denoised ({newer.run_uid[:8]}), denoised ({older.run_uid[:8]})" in said


def test_derived_runs_of_all_runs_are_looked_for_in_a_container_that_is_opened_once(
    RE, command, uid, monkeypatch
):
    (newer,) = RE(bp.count([SynAxis(name="x")]))
    opened = []
    monkeypatch.setattr(
        "bluesky_denoise.catalog.from_context",
        lambda *given, **named: opened.append(named) or from_context(*given, **named),
    )
    listed = command("runs", "-n", "2")
    assert uid[:8] in listed
    assert newer[:8] in listed
    assert opened == [{"node_path_parts": ["denoised"]}]


@pytest.mark.thorough
def test_derived_runs_in_another_container_are_found(command, uid, tmp_path):
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "own.yaml").write_text(
        f"{settings}tiled_layout: run\ntiled_container: derived/by model\n"
    )
    assert f"{uid}: denoised as run" in command("catch-up", "own.yaml", "-n", "1")
    assert "0 of the newest" in command("catch-up", "own.yaml", "-n", "1")
    assert "has this result already" in command("reprocess", "own.yaml", uid)
    assert "has no denoised stream" in command("show", uid, code=1)
    place = ("--container", "derived/by model")
    assert "success" in command("runs", "-n", "1", *place)
    assert "exit_status: success" in command("show", uid, *place)
    assert "in out" in command("export", uid, "--directory", "out", *place)


def test_samples_are_listed_as_they_are_written_and_found_either_way(RE, command, uid):
    camera = Camera(name="det", func=poisson(shape=(32, 40)), exposure_s=0.5)
    name = "LSCO [annealed] [/3]"
    samples = (name, {"name": name}, name)
    uids = [RE(bp.count([camera], md={"sample": sample}))[0] for sample in samples]
    assert command("runs", "-n", "3").count(name) == 3
    listed = command("runs", "--sample", name)
    assert listed.count(name) == 3
    assert re.findall(r"│ (\w{8}) │", listed) == [uid[:8] for uid in reversed(uids)]
    assert "There is no one run '[/x]'" in command("show", "[/x]", code=1)


def test_a_stream_without_events_says_why(command, uid, tiled, tmp_path):
    other = np.zeros((8, 8))
    np.save(tmp_path / "mask.npy", other)
    settings = DenoiseSettings(model=UNIT, tiled_uri=tiled.uri, mask=other)
    router, sink = DenoiseRouter(settings), TiledSink(settings)
    router.subscribe(sink)
    for name, doc in archived_documents(tiled.client[uid]):
        router(name, doc)
    assert sink.close() == []
    said = " ".join(command("show", uid[:8], code=1).split())
    assert "The stream denoised has no events. The mask of 'det_image' has shape (8, 8)" in said
    assert f"{uid}: denoised as run" in command("catch-up", "settings.yaml", "-n", "1")


def test_a_reading_that_is_called_an_error_is_shown_as_one_where_it_is_a_number():
    row = {"time": 1.0, "ts_a": 2.0, "lock": "open", "lock_error": "[/x]", "beam": None}
    row |= {"a": 5.25, "a_error": 0.125, "b": 2.0, "b_error": 3.0, "c": 7.0, "d": float("nan")}
    table = _numbers(
        pd.Series(row), 3, {"a": {"units": "mm"}, "a_error": {"units": "mm"}, "b": {"units": "px"}}
    )
    told = zip(*(column.cells for column in table.columns), strict=True)
    assert list(told) == [
        ("lock", "open", ""),
        ("lock_error", r"\[/x]", ""),
        ("a", "5.25", "0.125"),
        ("b", "2", ""),
        ("b_error", "3", ""),
        ("c", "7", ""),
    ]
    assert [column.header for column in table.columns] == ["event", "3", "±"]


def test_uids_can_be_typed_again_from_a_narrow_terminal(command, uid, monkeypatch):
    monkeypatch.setattr(console, "width", 80)
    assert f"│ {uid[:8]} │" in command("runs", "-n", "1")


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_forwarded_commands_show_their_own_help(command, name):
    shown = command(name, "--help")
    assert f"Usage: bluesky-denoise {name}" in shown
    assert "--install-completion" not in shown


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("reprocess", "and of one that was begun only the frames that lack are denoised."),
        ("finetune", "no better than those they were made from are not written"),
    ],
)
def test_sentences_of_the_help_are_not_broken_off(command, monkeypatch, name, sentence):
    monkeypatch.setenv("COLUMNS", "300")
    assert sentence in command(name, "--help")


def test_the_version_is_told(command):
    assert command("--version") == f"bluesky-denoise {__version__}\n"


@pytest.mark.thorough
def test_a_stream_whose_frames_could_not_be_saved_shows_its_numbers(command, uid, tmp_path):
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "gone.yaml").write_text(settings.replace("denoised\n", "gone\n"))
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / f"{datetime.now():%Y}").write_text("no directory")
    command("reprocess", "gone.yaml", uid)
    shown = command("show", uid[:8])
    assert "picture: none. There are no denoised frames of denoised in Tiled to draw." in shown
    assert re.search(r"det_image_raw_total +│ \d", shown)
    assert not (tmp_path / "denoised.png").exists()


@pytest.mark.thorough
def test_what_could_not_be_denoised_is_drawn_raw_and_exported_without_a_mask(
    command, uid, tmp_path
):
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "broken.yaml").write_text(settings.replace(UNIT, "child_denoisers:Broken"))
    command("reprocess", "broken.yaml", uid, code=None)
    # An ending is what matplotlib would add.
    assert "picture: raw.png" in command("show", uid[:8], "--picture", "raw")
    height, width, _ = (picture := plt.imread(tmp_path / "raw.png")).shape
    panels = [
        picture[height // 3 : -height // 3, i * width // 3 :][:, : width // 4] for i in (0, 1)
    ]
    colours = [len(np.unique(panel.reshape(-1, 4), axis=0)) for panel in panels]
    assert colours[0] > colours[1] + 5  # those of counts 0 to about 13
    command("export", uid, "--directory", "out")
    with h5py.File(tmp_path / "out" / f"{uid[:8]}_denoised.nxs") as file:
        assert "pixel_mask" not in file["entry/instrument/det_image"]
        assert file["entry/det_image/counts"].shape == (3, 32, 40)


@pytest.mark.thorough
def test_a_motor_that_is_called_an_error_is_shown(RE, command, tmp_path, tiled):
    RE.subscribe(TiledWriter(tiled.client))
    camera = Camera(name="det", func=poisson(shape=(32, 40)), exposure_s=0.5)
    (uid,) = RE(bp.scan([camera], SynAxis(name="following_error"), 2, 4, 3))
    command("reprocess", "settings.yaml", uid)
    shown = command("show", uid[:8])
    assert re.search(r"following_error +│ 2 ", shown)
    assert "following_error_setpoint" in shown


@pytest.mark.thorough
def test_an_error_in_other_units_is_not_shown_as_that_of_its_number(command, uid, tmp_path):
    settings = (tmp_path / "settings.yaml").read_text()
    roi = "rois:\n  spot: {rows: [8, 20], cols: [8, 20], background_px: 4}\n"
    (tmp_path / "spot.yaml").write_text(settings + roi)
    command("reprocess", "spot.yaml", uid)
    shown = command("show", uid[:8])
    assert re.search(r"spot_intensity +│ \S+ +│ \S+", shown)
    assert re.search(r"spot_background +│ \S+ +│ +│", shown)  # counts / s / pixel
    assert re.search(r"spot_background_error +│ \S+ +│ +│", shown)  # counts / s


@pytest.mark.thorough
def test_what_is_exported_before_its_raw_frames_came_says_so(RE, command, tiled, tmp_path):
    options = {"tiled_uri": tiled.uri, "model": UNIT, "frames_directory": tmp_path / "denoised"}
    settings = DenoiseSettings(**options, data_keys=["det_image"])
    router, sink = DenoiseRouter(settings, UnitDenoiser()), TiledSink(settings)
    router.subscribe(sink)
    RE.subscribe(TiledWriter(tiled.client, batch_size=1000))  # the raw events wait
    RE.subscribe(router)

    def plan():
        yield from bps.open_run()
        yield from bps.trigger_and_read([camera])
        yield from bps.pause()
        yield from bps.close_run()

    camera = Camera(name="det", func=poisson(shape=(32, 40)), exposure_s=0.5)
    with pytest.raises(RunEngineInterrupted):
        RE(plan())
    uid = tiled.client.keys().last()
    wait_for(lambda: begun(tiled.client[uid]), what="the denoised event")
    output = command("export", uid)
    assert f"{uid[:8]}_denoised.nxs, without raw frames of det_image, which are not there yet" in (
        output
    )
    RE.resume()
    assert sink.close() == []
    path = tmp_path / f"{uid[:8]}_denoised.nxs"
    path.unlink()
    assert "without raw frames" not in command("export", uid)
    path.unlink()
    tiled.client[uid].delete_contents(["primary"], recursive=True, external_only=False)
    assert "of det_image, which are not there in Tiled" in command("export", uid)


@pytest.fixture
def in_files(tmp_path):
    """Return a detector whose frames are in files."""
    frames = ReplayFrames(np.ones((3, 32, 40), np.uint16), 1.0)
    return AreaDetectorReplay(name="det", frames=frames, directory=tmp_path / "raw")


@pytest.mark.thorough
def test_a_directory_that_was_moved_is_told_in_a_line(RE, command, in_files, tmp_path, capfd):
    before, after = tmp_path / "data of May", tmp_path / "moved"
    with embedded_tiled(before, readable=tmp_path) as uri:
        client = from_uri(uri)
        with client.context:
            RE.subscribe(TiledWriter(client, batch_size=1))
            (uid,) = RE(bp.count([in_files], 3))
            options = {"tiled_uri": uri, "frames_directory": before / "denoised", "model": UNIT}
            reprocess(client[uid], DenoiseSettings(**options, data_keys=["det"]))
    (tmp_path / "link").symlink_to(before)
    for same in (before, tmp_path / "link", before / ".." / before.name):
        assert _moved_from(same) is None
    shutil.move(before, after)
    said = command("serve", str(after), "--port", "0")
    assert f"This directory was moved, or copied, from {before}, and its catalog" in said
    assert "Traceback" not in said + capfd.readouterr().err


def test_a_directory_is_served_again_under_the_key_that_is_given(command, tmp_path):
    with embedded_tiled(tmp_path / "mine"):
        pass
    assert "?api_key=k3y" in command("serve", "mine", "--port", "0", "--api-key", "k3y")


@pytest.mark.thorough
def test_frames_under_the_name_of_their_detector_are_told_where_they_are_served(
    RE, in_files, tiled, tmp_path
):
    RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(bp.count([in_files], 3))
    assert _denoised_keys(tiled.client[uid]) == []
    options = {"tiled_uri": tiled.uri, "frames_directory": tmp_path / "denoised", "model": UNIT}
    reprocess(tiled.client[uid], DenoiseSettings(**options, data_keys=["det"], save_sigma=True))
    assert _denoised_keys(tiled.client[uid]) == ["det"]


def test_lines_are_not_folded_where_there_is_no_terminal():
    code = "from bluesky_denoise.commands.terminal import console; console.print('x' * 200)"
    surroundings = {**os.environ, "COLUMNS": "80"}
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, env=surroundings).split() == [b"x" * 200]
