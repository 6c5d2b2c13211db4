import gc

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import Camera, poisson
from ophyd.sim import det as point_detector
from ophyd.sim import motor
from typer.testing import CliRunner

from bluesky_denoise.cli import app
from bluesky_denoise.errors import (
    DenoiseError,
    FrameShapeError,
    SettingsError,
    TiledUnavailable,
)
from bluesky_denoise.models.checkpoint import load_checkpoint
from bluesky_denoise.plans import paired_exposures
from bluesky_denoise.simulation import ReplayFrames, SceneFrames, diffraction_scene
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.training.commands import open_data
from bluesky_denoise.training.split import split
from bluesky_denoise.training.tiled_runs import (
    _check_positions,
    _Taken,
    catalog,
    read_run,
    read_two_runs,
)

SHAPE = (48, 64)


@pytest.fixture
def archived(RE, tiled):
    """Return a function that runs a plan, and returns the run from Tiled."""
    RE.subscribe(TiledWriter(tiled.client))

    def take(plan):
        (uid,) = RE(plan)
        return tiled.client[uid]

    return take


@pytest.fixture
def detector():
    frames = SceneFrames(diffraction_scene(SHAPE), position=lambda: motor.position)
    return ReplayDetector(name="det", frames=frames)


def test_a_run_of_paired_exposures_gives_pairs(archived, detector):
    plan = paired_exposures([detector], motor, -1, 1, num=3, short_s=0.05, long_s=1.0)
    source = read_run(archived(plan))
    assert len(source) == 3
    assert source.shape == SHAPE
    np.testing.assert_allclose(source.ratios, 20)
    assert source.about["exposure_s"] == 0.05
    assert source.about["long_exposure_s"] == 1.0
    # Poisson totals: the long frames have 20 times the photons of the short ones.
    short, long = int(source.counts.sum()), int(source.targets.sum())
    assert abs(long - 20 * short) < 5 * np.sqrt(long + 400 * short)
    assert short > 100


def test_the_exposure_of_a_run_that_scans_it_is_not_told(archived, detector):
    source = read_run(archived(bp.list_scan([detector], detector.cam.acquire_time, [0.5, 1.0])))
    assert "exposure_s" not in source.about
    assert len(source) == 2


def test_frames_in_files_are_read_as_well(archived, tmp_path):
    counts = np.random.default_rng(0).poisson(4.0, (4, 16, 20))
    frames = ReplayFrames(counts, 1.0)
    replay = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path)
    source = read_run(archived(bp.count([replay], 4)))
    assert source.kind == "thinned"
    np.testing.assert_array_equal(source.counts, counts)


def test_two_runs_of_the_same_points_give_pairs(archived):
    short = Camera(name="det", func=poisson(0, SHAPE, 1.0), exposure_s=0.1)
    long = Camera(name="det", func=poisson(1, SHAPE, 30.0), exposure_s=3.0)
    runs = [archived(bp.scan([camera], motor, -1, 1, 4)) for camera in (short, long)]
    source = read_two_runs(*runs)
    np.testing.assert_allclose(source.ratios, 30)
    assert source.name == "+".join(run.metadata["start"]["uid"][:8] for run in runs)
    away = archived(bp.scan([long], motor, -1, 2, 4))
    with pytest.raises(DenoiseError, match=r"motor is up to 1 away .* expected 0\.0666"):
        read_two_runs(runs[0], away)
    with pytest.raises(DenoiseError, match="was given as short and as long exposures"):
        read_two_runs(runs[0], runs[0])
    fewer = archived(bp.scan([long], motor, -1, 1, 3))
    with pytest.raises(FrameShapeError, match=r"short frames \(4, 48, 64\) and long frames \(3"):
        read_two_runs(runs[0], fewer)


def test_repeated_frames_of_a_run_are_targets_for_each_other(archived):
    camera = Camera(name="det", func=poisson(0, SHAPE, 2.0))
    source = read_run(archived(bp.count([camera], 5)), repeats=True)
    assert source.kind == "repeats"
    assert source.about["exposure_s"] == 0.5
    assert len(source) == 5


def test_repeats_of_different_exposures_are_refused(archived, detector):
    def plan():
        yield from bps.open_run()
        for seconds in (0.05, 1.0):
            yield from bps.mv(detector.cam.acquire_time, seconds)
            yield from bps.trigger(detector, wait=True)
            yield from bps.create()
            yield from bps.read(detector)
            yield from bps.read(detector.cam.acquire_time)
            yield from bps.save()
        yield from bps.close_run()

    run = archived(bpp.stage_wrapper(plan(), [detector]))
    with pytest.raises(DenoiseError, match=r"has exposures of 0\.05 to 1 s; repeats are equal"):
        read_run(run, repeats=True)


@pytest.mark.thorough
def test_frames_have_the_exposure_that_was_configured_at_their_time(archived):
    frames = ReplayFrames(np.random.default_rng(0).poisson(5.0, (4, *SHAPE)), 1.0)
    detector = ReplayDetector(name="det", frames=frames)

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def plan():
        for seconds in (1.0, 0.5):
            yield from bps.configure(detector, {"cam.acquire_time": seconds})
            yield from bps.repeat(lambda: bps.trigger_and_read([detector]), 2)

    run = archived(plan())
    assert read_run(run).about["exposure_s"] == [0.5, 1.0]
    with pytest.raises(DenoiseError, match=r"has exposures of 0\.5 to 1 s; repeats are equal"):
        read_run(run, repeats=True)


@pytest.mark.thorough
def test_held_out_runs_are_not_the_half_of_a_pair_that_is_trained_on(archived):
    frames = ReplayFrames(np.random.default_rng(0).poisson(5.0, (6, *SHAPE)), 0.4)
    detector = ReplayDetector(name="det", frames=frames)
    runs = []
    for seconds in (0.1, 0.4):
        detector.cam.acquire_time.put(seconds)
        runs.append(archived(bp.count([detector], 3)))
    pairs = read_two_runs(*runs)
    mask = np.zeros(SHAPE, bool)
    mask[0] = True
    for run in runs:
        with pytest.raises(SettingsError, match=r"held out \(\w+\+\w+ has frames of it\)"):
            split([pairs], [read_run(run, mask=mask)])


def test_the_frames_of_a_point_are_kept_together(archived, tmp_path):
    frames = ReplayFrames(np.random.default_rng(0).poisson(3.0, (12, *SHAPE)), 1.0)
    camera = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path, num_images=3)
    assert read_run(archived(bp.count([camera], 4))).per_point == 3
    assert read_run(archived(bp.count([camera], 1))).per_point == 1


def test_a_run_without_frames_is_refused(archived):
    run = archived(bp.count([point_detector], 2))
    with pytest.raises(DenoiseError, match="has frames under no key; name one as data key"):
        read_run(run)
    with pytest.raises(DenoiseError, match="has the streams primary; expected a and b, or c"):
        read_run(run, short="a", long="b", single="c")
    with pytest.raises(DenoiseError, match="has the streams none; expected short and long, or pri"):
        read_run(archived(bpp.run_wrapper(bps.null())))


def test_the_address_of_a_web_page_stands_for_its_server(tiled):
    page = tiled.uri.replace("/api/v1?", "/ui/browse/?")
    with catalog(page) as client:
        assert client.uri == tiled.client.uri


# The client of tiled that is refused leaves its sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
def test_a_key_that_is_wrong_is_told(tiled, monkeypatch):
    monkeypatch.setenv("TILED_API_KEY", "wrong")
    told = r"it wants an API key that is right\. Put it into TILED_API_KEY\."
    with pytest.raises(TiledUnavailable, match=told), catalog(tiled.uri.partition("?")[0]):
        pass
    gc.collect()


def test_a_server_that_is_not_there_is_named():
    told = r"http://127\.0\.0\.1:9 cannot be opened: .*Give its address as --uri"
    with pytest.raises(TiledUnavailable, match=told), catalog("http://127.0.0.1:9"):
        pass


@pytest.fixture
def command(tiled, tmp_path, monkeypatch):
    """Return a function that runs bluesky-denoise against the server of the tests."""
    address, _, key = tiled.uri.partition("?api_key=")
    monkeypatch.setenv("TILED_API_KEY", key)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("bluesky_denoise.training.fit.WINDOWS", 2)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [*arguments, "--uri", address, "--device", "cpu"])
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return " ".join(result.output.split())

    return run


@pytest.mark.parametrize("given", ["tiled:", "tiled:1a2b+"])
def test_a_uid_that_is_empty_is_told(command, tmp_path, given):
    said = command("train", str(tmp_path / "a.safetensors"), given, code=1)
    assert f"'{given}' names no run; expected tiled:UID" in said


def test_the_command_trains_on_runs_and_writes_down_which(archived, detector, command, tmp_path):
    plan = paired_exposures([detector], motor, -1, 1, num=3, short_s=0.05, long_s=1.0)
    uid = archived(plan).metadata["start"]["uid"]
    output = tmp_path / "mine[v2].safetensors"  # no markup
    said = command("train", str(output), f"tiled:{uid}", "--steps", "1")
    assert f"Weights: {output}" in said
    (entry,) = load_checkpoint(output)[1]["training"]["data"]
    assert entry["run"] == uid[:8]
    assert entry["pairs"] == "measured pairs"
    assert (entry["exposure_s"], entry["long_exposure_s"]) == (0.05, 1.0)


def test_short_and_long_runs_are_joined_by_a_plus(archived, tiled, tmp_path):
    cameras = [
        Camera(name="det", func=poisson(i, SHAPE, 50 * s), exposure_s=s)
        for i, s in enumerate((0.1, 0.4))
    ]
    uids = [archived(bp.count([c], 3)).metadata["start"]["uid"] for c in cameras]
    mask = np.zeros(SHAPE, np.uint8)
    mask[:5] = 1
    np.save(tmp_path / "mask.npy", mask)
    (source,) = open_data(
        [f"tiled:{uids[0]}+{uids[1][:8]}"], tiled.uri, mask=str(tmp_path / "mask.npy")
    )
    np.testing.assert_allclose(source.ratios, 4)
    np.testing.assert_array_equal(source.mask, mask != 0)


@pytest.mark.parametrize("uid", ["0000", "00000000-0000"])
def test_a_run_that_is_not_there_is_one_line_of_error(command, tmp_path, uid):
    said = command("train", str(tmp_path / "a.safetensors"), f"tiled:{uid}", code=1)
    assert f"Error: There is no run '{uid}' in the catalog at http" in said


def test_the_command_takes_what_decides_the_weights_and_the_precision(command, tmp_path):
    output = tmp_path / "mine.safetensors"
    said = ["--pixels", "9216", "--learning-rate", "0.001", "--spread-weight", "3"]
    command("train", str(output), "--steps", "1", *said, "--mixed-precision")
    made = load_checkpoint(output)[1]["training"]
    settings = made["settings"]
    assert settings["pixels"] == 9216
    assert settings["learning_rate"] == 0.001
    assert settings["spread_weight"] == 3.0
    assert made["mixed_precision"] is True


@pytest.mark.parametrize(
    "wrong",
    [
        ["--threads", "0"],
        ["--seed", "-1"],
        ["--seed", "99999999999999999999999"],
        ["--workers", "-1"],
        ["--learning-rate", "0"],
        ["--pixels", "-5"],
    ],
    ids=" ".join,
)
def test_numbers_out_of_range_are_refused(command, tmp_path, wrong):
    said = command("train", str(tmp_path / "a.safetensors"), "--steps", "1", *wrong, code=2)
    assert f"Invalid value for '{wrong[0]}'" in said


def test_the_key_of_tiled_is_in_no_card_and_in_no_error(tiled, tmp_path, monkeypatch):
    secret = tiled.uri.partition("api_key=")[2]
    assert secret
    monkeypatch.setattr("bluesky_denoise.training.fit.WINDOWS", 2)
    output = tmp_path / "mine.safetensors"
    typed = ["train", str(output), "--steps", "1", "--device", "cpu", "--uri", tiled.uri]
    monkeypatch.setattr("sys.argv", ["bluesky-denoise", *typed])
    assert CliRunner().invoke(app, typed).exit_code == 0
    command = load_checkpoint(output)[1]["command"]
    assert tiled.uri.partition("?")[0] in command
    assert secret not in command
    for run in ("0000", "0000+1111+2222"):
        said = CliRunner().invoke(app, [*typed, f"tiled:{run}"])
        assert said.exit_code == 1
        assert secret not in said.output


def test_three_runs_are_refused(command, archived, tmp_path):
    camera = Camera(name="det", func=poisson(0, SHAPE), exposure_s=0.1)
    uid = archived(bp.count([camera], 2)).metadata["start"]["uid"]
    said = command("train", str(tmp_path / "a.safetensors"), "tiled:" + "+".join([uid] * 3), code=1)
    assert "names 3 runs; expected one, or SHORT_UID+LONG_UID" in said


def test_a_slow_motor_that_jitters_is_at_the_same_points():
    rng = np.random.default_rng(3)
    slow = np.arange(5.0).repeat(5)
    there, back = (slow + rng.normal(0, 1e-4, 25) for _ in range(2))
    frames, exposures = np.ones((25, 1, 4, 4), int), np.ones(25)
    short, long = (_Taken(frames, exposures, {"slow": x}, "det") for x in (there, back))
    _check_positions("grid", short, long)
    moved = _Taken(frames, exposures, {"slow": back + 0.2}, "det")
    with pytest.raises(DenoiseError, match="a tenth of a step"):
        _check_positions("grid", short, moved)
