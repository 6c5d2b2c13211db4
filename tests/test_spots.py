import h5py
import numpy as np
import typer
from typer.testing import CliRunner

from bluesky_denoise.evaluation.spots import find_spots, kept


def spotty():
    counts = np.random.default_rng(0).poisson(2.0, (64, 80))
    counts[20, 30] += 60
    counts[40, 50] += 900
    counts[41, 50] += 500
    return counts


def test_spots_are_found_once_and_away_from_masks():
    counts, mask = spotty(), np.zeros((64, 80), bool)
    assert find_spots(counts, mask).tolist() == [[20, 30], [40, 50]]
    mask[20, 33] = True
    assert find_spots(counts, mask).tolist() == [[40, 50]]


def test_strong_sharp_spots_keep_their_counts(tmp_path):
    path = tmp_path / "stills.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = spotty()[None].astype(np.uint16)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(kept)
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == 0, result.output
    strong = next(line for line in result.output.splitlines() if "20 to inf" in line)
    # 37 standard deviations in two pixels: no reason to move a hundredth of them.
    assert 0.99 < float(strong.split("│")[3]) < 1.01
