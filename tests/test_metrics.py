import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bluesky_denoise.evaluation.__main__ import evaluate
from bluesky_denoise.evaluation.baselines import (
    anscombe_bm3d,
    best_gaussian,
    gaussian,
    unbiased_inverse,
)
from bluesky_denoise.evaluation.metrics import (
    flux_ratio,
    line_contrast,
    noise_corrected_error,
    poisson_deviance,
    spot_intensities,
)
from bluesky_denoise.evaluation.neighbours import compare
from bluesky_denoise.evaluation.table import frame_sets, mean_scores, score_frame


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_corrected_error_of_a_raw_frame_is_one_and_of_the_truth_zero(rng):
    truth = np.full((300, 300), 4.0)
    raw, reference = rng.poisson(truth), rng.poisson(20 * truth)
    # 90,000 pixels: standard errors below 0.01.
    assert noise_corrected_error(raw, reference, 1 / 20) == pytest.approx(1, abs=0.03)
    assert noise_corrected_error(truth, reference, 1 / 20) == pytest.approx(0, abs=0.002)


def test_the_deviance_of_the_truth_is_one_at_many_counts(rng):
    truth = np.full((300, 300), 100.0)
    counts = rng.poisson(truth)
    # Expectation 1 + 1 / (6 lambda); standard error 0.005.
    assert poisson_deviance(truth, counts) == pytest.approx(1, abs=0.02)
    assert poisson_deviance(1.1 * truth, counts) > 1.5


def test_an_estimate_of_zero_under_a_count_has_a_finite_deviance():
    estimate, counts = np.ones((16, 16)), np.ones((16, 16))
    estimate[3, 3] = 0
    expected = 2 * (np.log(1e3 * 256 / 255) - 1 + 1e-3 * 255 / 256) / 256
    assert poisson_deviance(estimate, counts) == pytest.approx(expected)


def test_masked_pixels_are_in_no_metric(rng):
    counts = rng.poisson(5.0, (32, 32))
    mask = np.zeros((32, 32), bool)
    mask[:4] = True
    bad = np.where(mask, 1e9, counts)
    assert flux_ratio(bad, counts, mask) == 1
    assert poisson_deviance(bad + 0.5, counts, mask) < 1
    assert noise_corrected_error(bad, counts, 1.0, mask) == pytest.approx(-1)


def test_flux_of_empty_frames():
    empty = np.zeros((16, 16))
    assert flux_ratio(empty, empty) == 1
    assert flux_ratio(empty + 1, empty) == np.inf


def test_line_contrast_of_a_known_line():
    image = np.full((20, 100), 2.0)
    image[:, 46:55] = 3.0
    assert line_contrast(image, 50) == pytest.approx(0.5)


def test_spot_intensity_is_background_free():
    image = np.full((40, 40), 3.0)
    image[20, 21] += 70
    image[21, 21] += 30
    np.testing.assert_allclose(spot_intensities(image, np.array([[20, 21]])), [100.0])


def test_the_gaussian_ignores_masked_pixels_and_borders():
    counts = np.full((40, 50), 6.0)
    mask = np.zeros((40, 50), bool)
    mask[10:20] = True
    counts[mask] = 1e6
    blurred = gaussian(counts, 2.0, mask)
    np.testing.assert_allclose(blurred[~mask], 6.0)
    assert (blurred[mask] == 0).all()


def test_the_gaussian_has_the_width_asked_for():
    counts = np.zeros((65, 65))
    counts[32, 32] = 1
    offset = np.arange(65) - 32
    assert (gaussian(counts, 3.0).sum(0) * offset**2).sum() == pytest.approx(9, rel=0.01)


def test_the_best_gaussian_is_the_best_of_those_tried(rng):
    counts = rng.poisson(np.full((64, 64), 3.0))
    image, sigma = best_gaussian(counts, lambda e: float(((e - 3) ** 2).mean()), sigmas=(0, 1, 5))
    assert sigma == 5
    np.testing.assert_array_equal(image, gaussian(counts, 5))


def test_the_inverse_of_the_anscombe_transform_is_unbiased(rng):
    for level in (0.5, 2.0, 10.0, 300.0):
        mean = np.mean(2 * np.sqrt(rng.poisson(level, 400_000) + 0.375))
        # The closed form errs by up to 0.03 at half a count.
        assert unbiased_inverse(mean) == pytest.approx(level, abs=0.03, rel=0.005)


@pytest.mark.filterwarnings("ignore")
def test_bm3d_beats_the_raw_frame_tenfold_on_a_smooth_scene(rng):
    pytest.importorskip("bm3d")
    truth = 20 + 5 * np.cos(np.linspace(0, 3, 48))[:, None] * np.ones(48)
    counts = rng.poisson(truth)
    mask = np.zeros(truth.shape, bool)
    mask[20:23] = True
    found = anscombe_bm3d(np.where(mask, 0, counts), mask)
    assert (found[mask] == 0).all()
    error = np.mean((found - truth)[~mask] ** 2)
    assert error < 0.1 * np.mean((counts - truth)[~mask] ** 2)


def test_scores_of_a_frame_rank_the_truth_first(rng):
    truth = np.full((96, 96), 50.0)
    truth[40:44] = 500.0
    mask = np.zeros(truth.shape, bool)
    counts = rng.poisson(truth)
    scores = mean_scores(
        list(score_frame(counts, mask, 0.1, {"truth": lambda *_: truth / 10}, rng))
    )
    assert list(scores) == ["raw", "best Gaussian", "truth"]
    assert scores["raw"].deviance > 0
    assert scores["best Gaussian"].deviance == 0
    assert scores["truth"].deviance < 0
    assert scores["truth"].error == pytest.approx(0, abs=0.02)
    assert scores["raw"].error == pytest.approx(1, abs=0.1)


def test_frames_of_a_file_are_spread_and_cut_to_the_middle(tmp_path):
    frames = np.arange(9)[:, None, None] + np.zeros((9, 20, 30), np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"] = frames
        file["mask"] = np.eye(20, 30, dtype=np.uint8)
    counts, mask = frame_sets(tmp_path / "a.h5", 3, (16, 64))
    assert counts[:, 0, 0].tolist() == [0, 4, 8]
    assert frame_sets(tmp_path / "a.h5", 2, (16, 64), first=6)[0][:, 0, 0].tolist() == [6, 8]
    assert counts.shape == (3, 16, 30)
    np.testing.assert_array_equal(mask, np.eye(20, 30, dtype=bool)[2:18])


def app(command):
    typer_app = typer.Typer(pretty_exceptions_enable=False)
    typer_app.command()(command)
    return typer_app


@pytest.fixture
def scans(tmp_path, rng):
    level = 3 + 2 * np.cos(np.linspace(0, 5, 64))[:, None] * np.ones(96)
    level[:, 46:51] += 4
    with h5py.File(tmp_path / "photons.h5", "w") as file:
        file["frames"] = rng.poisson(level, (5, 64, 96)).astype(np.uint16)
        file["mask"] = np.zeros((64, 96), np.uint8)
    with h5py.File(tmp_path / "panel.h5", "w") as file:
        file["frames"] = (2000 + rng.poisson(level, (1, 64, 96))).astype(np.uint16)
    return tmp_path


def test_the_table_scores_counting_detectors_and_leaves_out_others(scans):
    result = CliRunner().invoke(app(evaluate), [str(scans), "--fraction", "0.2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "panel.h5 left out: Neighbouring pixels" in result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if "│ photons" in line]
    methods = {row[2].strip(): float(row[4]) for row in rows}
    assert methods["raw"] == pytest.approx(1, abs=0.1)
    assert methods["default"] < 0.15


def test_frames_are_compared_with_their_neighbours(scans):
    arguments = ["--first", "2", "--last", "2", "--around", "2", "--line", "48"]
    result = CliRunner().invoke(app(compare), [str(scans / "photons.h5"), *arguments])
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if line.startswith("│")]
    scores = {row[0].strip(): [float(x) for x in row[1:]] for row in rows}
    # A single frame of 6144 pixels: standard errors of a few percent.
    assert scores["raw"][0] == pytest.approx(1, abs=0.15)
    assert scores["default"][0] < 0.2
    assert scores["default"][2] == pytest.approx(1, abs=1e-5)
