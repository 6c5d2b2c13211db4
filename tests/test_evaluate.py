import io
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from live_path import Camera, poisson
from rich.console import Console
from tiled.structures.core import Spec
from typer.testing import CliRunner

from bluesky_denoise.cli import app
from bluesky_denoise.commands.evaluate import _rich, _told
from bluesky_denoise.evaluation.awkward import CASES, awkward_scores
from bluesky_denoise.evaluation.coverage import (
    HALF_WIDTHS,
    measured_coverage,
    simulated_coverage,
)
from bluesky_denoise.evaluation.frame_sets import FrameSet, read_frame_set
from bluesky_denoise.evaluation.gates import GATES, judge
from bluesky_denoise.evaluation.known_sets import KnownSet, known_set
from bluesky_denoise.evaluation.measured_tables import thinned_table
from bluesky_denoise.evaluation.methods import baselines
from bluesky_denoise.evaluation.names import TAKEN_METHODS, told_apart
from bluesky_denoise.evaluation.peak_tables import region_table
from bluesky_denoise.evaluation.peaks import FITTED, MEASURED, OPTIMAL, SUMMED, PeakScore
from bluesky_denoise.evaluation.plots import result_plots
from bluesky_denoise.evaluation.regions import Satellites, region_scores, score_regions
from bluesky_denoise.evaluation.report import _measured_cards
from bluesky_denoise.evaluation.results import Evaluation, read_evaluations, write_json
from bluesky_denoise.evaluation.speed import speed_scores
from bluesky_denoise.evaluation.spots import GAUSSIAN
from bluesky_denoise.evaluation.table import Table
from bluesky_denoise.evaluation.tables import all_tables
from bluesky_denoise.evaluation.thinned import ThinnedScore
from bluesky_denoise.models.checkpoint import resolve_checkpoint
from bluesky_denoise.testing import UnitDenoiser
from bluesky_denoise.training.fit import FitSettings, fit


def quiet(items, what):
    return items


class Calibrated:
    """Adds Gaussian noise of a known size to rates that it is told, and states that size."""

    name = "calibrated"

    def __init__(self, stated=1.0, noise=0.2):
        self.stated, self.noise = stated, noise
        self.rng = np.random.default_rng(0)
        self.truth = None

    def denoise(self, counts, exposure_s, mask=None):
        truth = np.asarray(counts, float) if self.truth is None else self.truth
        found = UnitDenoiser().denoise(truth[None], 1.0, mask).rate[0]
        noise = self.noise * np.sqrt(truth + 0.05)
        return Answer((found + self.rng.normal(size=truth.shape) * noise), self.stated * noise)


class Answer:
    def __init__(self, rate, sigma):
        self.rate, self.sigma = rate, sigma

    def interval(self, confidence):
        half = HALF_WIDTHS[confidence] * self.sigma
        return self.rate - half, self.rate + half


@pytest.mark.parametrize(("stated", "covered"), [(1.0, (0.68, 0.90, 0.95)), (0.5, (0.38,))])
def test_coverage_of_a_calibrated_denoiser_is_what_it_states(monkeypatch, stated, covered):
    # The counts are the rates here: only the noise that is added is between them.
    monkeypatch.setattr("bluesky_denoise.evaluation.coverage.draw_counts", lambda rate, rng: rate)
    scores = simulated_coverage(Calibrated(stated), quiet, scenes=12)
    by_truth = [s for s in scores if s.binned_by == "truth"]
    assert len(by_truth) >= 6
    for score in by_truth:
        # 500 pixels and more: 2 %.
        np.testing.assert_allclose(score.covered[: len(covered)], covered, atol=0.06)
        assert score.pull_width == pytest.approx(1 / stated, rel=0.1)


def test_coverage_on_measured_frames_allows_for_the_noise_of_the_reference():
    rng = np.random.default_rng(0)
    rate = np.full((160, 160), 8.0)
    frames = FrameSet(
        "flat",
        rng.poisson(rate, (5, 160, 160)),
        np.zeros((160, 160), bool),
        KnownSet("yes", targets=(2,)),
    )
    denoiser = Calibrated()
    denoiser.truth = rate
    scores = measured_coverage(frames, denoiser, quiet, fractions=(1.0,))
    assert [s.low for s in scores] == [5.0]
    # 6400 pixels: half a percent; Poisson is not quite Gaussian at 32 counts.
    np.testing.assert_allclose(scores[0].covered, (0.68, 0.90, 0.95), atol=0.02)


@pytest.mark.parametrize("level", [0.3, 0.45, 0.6, 3.0])
def test_coverage_of_a_right_denoiser_is_right_where_its_reference_is_just_bright_enough(level):
    # The sum of 20 neighbours is 6 to 60 counts in a pixel; from 10 it is compared with.
    frames = FrameSet(
        "flat",
        np.random.default_rng(0).poisson(level, (21, 160, 160)),
        np.zeros((160, 160), bool),
        KnownSet("yes", targets=range(8, 12)),
    )
    denoiser = Calibrated(noise=0.03)
    denoiser.truth = np.full((160, 160), level)
    scores = measured_coverage(frames, denoiser, quiet, fractions=(1.0,))
    assert len(scores) == (level > 0.4)
    for score in scores:
        # 7000 pixels and more: 0.6 %.
        np.testing.assert_allclose(score.covered, (0.68, 0.90, 0.95), atol=0.02)


def test_coverage_is_drawn_tabled_and_judged(monkeypatch, tmp_path):
    monkeypatch.setattr("bluesky_denoise.evaluation.coverage.draw_counts", lambda rate, rng: rate)
    result = Evaluation("calibrated", {"sha256": "0"})
    result.coverage = simulated_coverage(Calibrated(), quiet, scenes=8)
    (table,) = all_tables(result)
    assert table.key == "coverage"
    ((key, _, figure),) = result_plots(result)
    assert key == "coverage"
    assert len(figure.axes) == 3
    (gate,) = judge(result)
    by_estimate = [c for c in result.coverage if c.binned_by == "estimate"]
    assert f" of {len(by_estimate)} bins from 0.05 counts" in gate.figure
    write_json(result, tmp_path / "scores.json", [gate])
    assert read_evaluations([tmp_path / "scores.json"]).coverage == result.coverage


def test_a_denoiser_without_errors_has_no_coverage():
    assert simulated_coverage(Stack(), quiet, scenes=1) == []


class Stack(UnitDenoiser):
    """Takes single frames too, as a denoiser does."""

    def denoise(self, counts, exposure_s, mask=None):
        counts = np.asarray(counts)
        found = super().denoise(counts.reshape(-1, *counts.shape[-2:]), exposure_s, mask)
        return type(found)(rate=found.rate.reshape(counts.shape))


def test_regions_are_measured_without_bias_and_their_pulls_have_unit_width():
    raw = {s.intensity: s for s in region_scores(Stack(), quiet, draws=4)}["measure_roi"]
    # 144 regions: slope to 3 %, width of pulls to 6 %.
    assert raw.slope == pytest.approx(1, abs=4 * raw.slope_error)
    assert raw.pull_width == pytest.approx(1, abs=0.25)
    assert raw.covered["95"] > 0.85
    assert raw.regions == 144


def scores_of_errors(**errors):
    """Score satellites that are found with these errors, in those of the raw sum."""
    truth, scale = np.array([10.0, 30.0, 90.0, 270.0]), np.array([2.0, 3.0, 5.0, 10.0])
    off = {name: truth + scale * by for name, by in errors.items()}
    stated = Satellites(**off, truth=truth, expected=truth, error=2 * scale, plain_error=scale)
    return {s.intensity: s for s in score_regions(stated)}


def test_pulls_are_above_zero_where_too_much_is_found():
    scores = scores_of_errors(found=[2, 2, 6, 6], plain=1, denoised=1)
    assert scores["measure_roi"].pull_mean == pytest.approx(2)
    assert scores["measure_roi"].pull_width == pytest.approx(1)


def test_slopes_are_of_found_counts_and_without_their_noise():
    denoised, found = np.array([1, 3, 9, 27]), np.array([1.5, 4.5, 10.8, 16.2])
    scores = scores_of_errors(found=found, plain=1, denoised=denoised)
    assert scores["measure_roi"].slope == pytest.approx(1)
    assert scores["measure_roi"].found_slope > 1.3
    assert scores["measure_roi"].found_slope_error > 0.005
    assert scores["denoised sum"].slope == scores["denoised sum"].found_slope > 1.3
    (table,) = all_tables(Evaluation("ours", regions=list(scores.values())))
    ours, raw, _ = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert ours["slope"].startswith(f"{scores['measure_roi'].found_slope:.3f} ± ")
    assert ours["slope, without noise"] == "1.000 ± 0.000"
    assert raw["slope, without noise"] == ""


def test_scores_that_there_are_not_are_blank_in_tables_and_in_no_card():
    dark = ThinnedScore("dark", "yes", 0.1, 0.0, "ours", *[np.nan] * 4)
    lit = ThinnedScore("lit", "yes", 0.1, 3.0, "ours", 1.0, 0.0, 0.25, 1.0)
    assert thinned_table(Evaluation("ours", thinned=[dark])).rows[0][4:] == ("",) * 4
    ((left, told),) = _measured_cards(Evaluation("ours", thinned=[dark, lit]))
    assert left == "25.0%"
    assert told.endswith("median of 1 series")
    assert _measured_cards(Evaluation("ours", thinned=[dark])) == []
    # Scores that were written before there was a slope of found counts.
    found = scores_of_errors(found=1, plain=1, denoised=1)["measure_roi"]
    old = replace(found, found_slope=np.nan, found_slope_error=np.nan)
    assert region_table(Evaluation("ours", regions=[old])).rows[0][2] == ""


def test_a_file_that_cannot_be_written_at_the_end_keeps_no_other_from_it(tmp_path):
    failed, shown = [], Console(file=io.StringIO())
    for name in (".", "scores.json"):
        with _told(f"Scores: {name}", failed, shown):
            write_json(Evaluation("ours"), tmp_path / name, [])
    assert shown.file.getvalue() == "Scores: scores.json\n"
    (told,) = failed
    assert told.startswith("Scores: . cannot be written: ")


def test_error_ratios_are_of_root_mean_squares_in_errors_of_the_raw_sum():
    scores = scores_of_errors(found=[1, -1, 1, -1], plain=[4, 0, 0, 0], denoised=[0, 0, 0, 12])
    assert [s.error_ratio for s in scores.values()] == pytest.approx([0.5, 1, 3])


def test_awkward_frames_that_are_kept_pass_and_broken_ones_do_not(monkeypatch):
    left_out = ("4362 x 4148 pixels", "negative pedestal")
    small = {name: case for name, case in CASES.items() if name not in left_out}
    monkeypatch.setattr("bluesky_denoise.evaluation.awkward.CASES", small)
    assert all(s.passed for s in awkward_scores(Stack(), quiet))

    class Doubles(Stack):
        def denoise(self, counts, exposure_s, mask=None):
            return super().denoise(2 * np.asarray(counts, float), exposure_s, mask)

    assert not any(s.passed for s in awkward_scores(Doubles(), quiet) if "photon" in s.case)


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(0)
    level = 30 + 2 * np.cos(np.linspace(0, 5, 64))[:, None] * np.ones(96)
    level[:, 46:51] += 4
    with h5py.File(tmp_path / "photons.h5", "w") as file:
        file["frames"] = rng.poisson(level, (5, 64, 96)).astype(np.uint16)
        file["mask"] = np.zeros((64, 96), np.uint8)
    with h5py.File(tmp_path / "panel.h5", "w") as file:
        file["frames"] = (2000 + rng.poisson(level, (1, 64, 96))).astype(np.uint16)
    return tmp_path


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "bluesky_denoise.evaluation.run.speed_scores", partial(speed_scores, rounds=1)
    )

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["evaluate", "--device", "cpu", "--no-bm3d", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    return run


@pytest.fixture
def untimed(evaluate, monkeypatch):
    """Return `evaluate` without the process that times, which takes most of the time."""
    monkeypatch.setattr("bluesky_denoise.evaluation.run.speed_scores", lambda *args, **options: [])
    return evaluate


def test_a_folder_is_scored_with_json_and_a_report_in_one_file(evaluate, scans, monkeypatch):
    other = scans / "old"
    other.mkdir()
    shutil.copy(scans / "photons.h5", other)
    for path in resolve_checkpoint("default").parent.glob("default.*"):
        shutil.copy(path, other)
    typed = [".", "--networks", "old/default.safetensors", "--uri", "http://x?api_key=SECRET"]
    typed += ["--frames", "1", "--json", "scores.json", "--report", "report.html"]
    monkeypatch.setattr("sys.argv", ["bluesky-denoise", "evaluate", *typed])
    output = evaluate(*typed)
    assert "Left out: panel.h5: Frame 0 cannot be thinned" in output
    scores = json.loads((scans / "scores.json").read_text())
    assert scores["about"]["command"] == (
        "bluesky-denoise evaluate . --networks old/default.safetensors --uri http://x "
        "--frames 1 --json scores.json --report report.html"
    )
    # Neither files nor weights of one name are taken for one.
    sets, methods = {"photons.h5", "old/photons"}, ("raw", "default", "old/default")
    errors = {(s["method"], s["fraction"], s["set"]): s["error"] for s in scores["thinned"]}
    assert len(errors) == len(scores["thinned"]) == 5 * 3 * 2
    for name in sets:
        raw, ours, same = (errors[method, 0.5, name] for method in methods)
        assert raw == pytest.approx(1, abs=0.1)
        assert ours == same < 0.2
    assert {s["set"] for s in scores["neighbours"]} == sets
    gates = {g["metric"]: g for g in scores["gates"]}
    assert gates["total of a frame over that of the raw one"]["met"]
    page = (scans / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    again = read_evaluations([scans / "scores.json"])
    assert [g.figure for g in judge(again)] == [g["figure"] for g in scores["gates"]]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/scan.h5", "b/other.h5"], ["scan", "other"]),
        (["a/scan.h5", "b/scan.h5"], ["a/scan", "b/scan"]),
        (["a/1/scan.h5", "b/1/scan.h5", "b/2/x.h5"], ["a/1/scan", "b/1/scan", "x"]),
        (["a/scan.h5", "a/scan.hdf5"], ["scan.h5", "scan.hdf5"]),
        (["default", "old/default.safetensors"], ["default", "old/default"]),
        (["mine.safetensors", "old/mine.safetensors"], ["mine.safetensors", "old/mine"]),
        (["raw.safetensors", "x/taken.h5"], ["raw.safetensors", "x/taken"]),
    ],
    ids=str,
)
def test_files_of_one_name_are_told_apart(paths, names):
    taken = ["taken", *(method.name for method in baselines())]
    assert told_apart([Path(path) for path in paths], taken) == names


def test_every_method_has_a_name_that_no_weights_get():
    measured = {OPTIMAL, FITTED, SUMMED, MEASURED, GAUSSIAN.name}
    assert measured | {method.name for method in baselines()} < set(TAKEN_METHODS)


@pytest.mark.parametrize("option", ["--json", "--report"])
@pytest.mark.parametrize("place", ["photons.h5/scores", "."])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_scored(
    evaluate, scans, option, place
):
    output = evaluate("photons.h5", option, place, code=1)
    assert re.search(rf"Error: {place} cannot be written: .*Give a file", output)
    assert "Measured frames" not in output


def test_what_weights_have_seen_is_named_and_not_judged(untimed, scans, tmp_path):
    quick = FitSettings(steps=1, pixels=32**2, sides_px=(32,))
    before = fit(tmp_path / "before.safetensors", [scans / "photons.h5"], quick, device="cpu")
    with h5py.File(scans / "other.h5", "w") as file:
        file["frames"] = np.random.default_rng(1).poisson(5.0, (2, 64, 96)).astype(np.uint32)
    mine = fit(
        tmp_path / "mine.safetensors",
        [scans / "other.h5"],
        quick,
        start_from=str(before),
        device="cpu",
    )
    (scans / "new.h5").write_bytes((scans / "photons.h5").read_bytes())
    with h5py.File(scans / "new.h5", "a") as file:
        file["frames"][0, 0, 0] += 1
    untimed(".", "--model", str(mine), "--json", "scores.json", "--frames", "1")
    scores = json.loads((scans / "scores.json").read_text())
    seen = {row["set"]: row["held_out"] for row in scores["thinned"]}
    assert seen == {"photons": "trained on", "other": "trained on", "new": "unknown"}
    (judged,) = (gate["figure"] for gate in scores["gates"] if gate["check"] == "statistical fit")
    assert "of 1 series" in judged


def test_scores_do_not_take_the_place_of_a_card(evaluate, scans):
    for path in resolve_checkpoint("default").parent.glob("default.*"):
        shutil.copy(path, scans / f"mine{path.suffix}")
    card = (scans / "mine.json").read_text()
    output = evaluate("photons.h5", "--model", "mine.safetensors", "--json", "mine.json", code=1)
    assert "mine.json is the place of the card of weights mine.safetensors" in output
    assert (scans / "mine.json").read_text() == card
    same = ["--json", "one.txt", "--report", "./one.txt"]
    assert "one.txt is to be both JSON and report" in evaluate("photons.h5", *same, code=1)


def test_names_in_tables_are_no_markup():
    shown = Console(file=io.StringIO(), width=80)
    rows = [("run[a]", "1"), ("run[/b]", "2")]
    shown.print(_rich(Table("Series", "", ("series", "number"), rows), "default"))
    assert all(name in shown.file.getvalue() for name, _ in rows)


def test_only_the_series_itself_has_been_trained_on():
    assert known_set("ceria", (1, 512, 640)).held_out == "trained on"
    assert known_set("ceria", (60, 160, 180)).held_out == "unknown"
    for path in sorted(Path("training_data").glob("*.h5")):
        assert read_frame_set(path).known.held_out == "trained on", path


def test_places_that_can_be_written_are_left_as_they_were(evaluate, scans):
    (scans / "old.json").write_text("old")
    evaluate("photons.h5", "--json", "old.json", "--report", "new.html", "--model", "no", code=1)
    assert (scans / "old.json").read_text() == "old"
    assert not (scans / "new.html").exists()


@pytest.mark.parametrize(
    "wrong", [["--frames", "-1"], ["--train-paper", "0"], ["--effort", "-1"]], ids=" ".join
)
def test_options_out_of_range_are_refused(evaluate, wrong):
    assert f"Invalid value for '{wrong[0]}'" in evaluate(*wrong, code=2)


def test_no_weights_are_compared_with_themselves(evaluate):
    output = evaluate("--networks", "a/x.safetensors", "--networks", "a/x.safetensors", code=1)
    assert "The weights a/x.safetensors are given twice; expected each once." in output


def test_a_mask_is_for_all_frames_that_are_given(evaluate, scans):
    np.save("mask.npy", np.zeros((64, 64), bool))
    output = evaluate(".", "--mask", "mask.npy", code=1)
    assert "photons.h5 has a mask (64, 96); the one given is (64, 64)." in output
    output = evaluate("--mask", "mask.npy", code=1)
    assert "The mask mask.npy is for frames of your own; give them as DATA." in output


def test_the_key_of_tiled_is_in_no_error(evaluate):
    output = evaluate("abcd1234", "--uri", "http://localhost:1/api/v1?api_key=SECRET", code=1)
    assert "Tiled at http://localhost:1/api/v1 cannot be opened" in output
    assert "SECRET" not in output


def test_a_run_in_tiled_is_scored(untimed, RE, tiled, monkeypatch):
    import bluesky.plans as bp
    from bluesky_tiled_plugins import TiledWriter
    from ophyd.sim import motor

    address, _, key = tiled.uri.partition("?api_key=")
    monkeypatch.setenv("TILED_API_KEY", key)
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    camera = Camera(name="det", func=poisson(shape=(64, 80)), exposure_s=0.5)
    (uid,) = RE(bp.scan([camera], motor, -1, 1, 3))
    output = untimed(uid, "--uri", address)
    assert uid[:8] in output
    assert "Poisson deviance per degree of freedom" in output
    np.save("mask.npy", np.zeros((80, 64), bool))
    output = untimed(f"tiled:{uid}", "--uri", address, "--mask", "mask.npy", code=1)
    assert f"{uid[:8]} has frames (3, 64, 80) and mask (80, 64)" in output
    output = untimed(f"tiled:{uid}", "--uri", address, "--data-key", "cam", code=1)
    assert f"run {uid[:8]} has frames under det_image, not under cam" in output
    output = untimed("tiled:abcd1234", "--uri", address, code=1)
    assert f"There is no run 'abcd1234' in the catalog at {address}" in output
    damaged = tiled.client.create_container(
        "damaged",
        metadata={"start": {"uid": "abcd1234-0000"}},
        specs=[Spec("BlueskyRun", version="3.0")],
    )
    output = untimed("tiled:abcd1234-0000", "--uri", address, code=1)
    assert "Run abcd1234 has the streams none; expected primary." in output
    damaged.create_container("primary")
    output = untimed("tiled:abcd1234-0000", "--uri", address, code=1)
    assert "Error: The frames of run abcd1234-0000 cannot be read: " in output


def test_what_cannot_be_read_is_named(evaluate, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no frames at empty; expected a file, or a folder" in evaluate("empty", code=1)
    assert "'nosuch.h5' is no file or folder here" in evaluate("nosuch.h5", code=1)
    (tmp_path / "broken.h5").write_bytes(b"rubbish")
    output = evaluate("broken.h5", code=1)
    assert "No frames could be scored. broken.h5: broken.h5 cannot be read as HDF5" in output
    assert "There are no weights 'best'" in evaluate("empty", "--model", "best", code=1)


def test_scores_of_other_weights_are_not_mixed(tmp_path):
    for name in "ab":
        write_json(Evaluation(name, {"sha256": name}), tmp_path / f"{name}.json", [])
    with pytest.raises(ValueError, match="other weights"):
        read_evaluations([tmp_path / "a.json", tmp_path / "b.json"])


def test_a_gate_without_figures_is_not_answered():
    assert judge(Evaluation("nothing")) == []
    assert len({metric for _, metric, *_ in GATES}) == len(GATES)


def test_the_worst_strength_decides_the_gate_of_biases():
    def score(strength, bias):
        some = dict.fromkeys(("intensity_error", "sum_bias", "shift_row", "shift_col"), 0.0)
        rest = dict.fromkeys(("position_error", "width_row", "width_col"), 1.0)
        return PeakScore(
            "measure_roi",
            "round",
            strength,
            90,
            intensity_bias=bias,
            bias_error=0.01,
            **some,
            **rest,
        )

    result = Evaluation("ours", peaks=[score(5.0, 0.04), score(10.0, -0.06), score(20.0, 0.001)])
    weak, strong = (g for g in reversed(judge(result)) if "bias of measure_roi" in g.metric)
    assert weak.met
    assert not strong.met
    assert strong.figure == "10: -6.0% ± 1.0%, 20: +0.1% ± 1.0%"
