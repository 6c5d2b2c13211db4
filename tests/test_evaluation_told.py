"""How scores are told: tables, documents, the card of the weights, the report."""

import io
import json
import locale
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.evaluation.pictures import frame_picture
from bluesky_denoise.evaluation.report import write_report
from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.run import Gallery
from bluesky_denoise.evaluation.speed import SpeedScore
from bluesky_denoise.evaluation.table import Table, markdown, without_repeats
from bluesky_denoise.evaluation.trust import fill, write_figures


def test_tables_hide_repeats_and_are_written_in_markdown():
    table = Table("t", "", ("a", "b"), [("x", "1"), ("x", "2"), ("y", "2")], groups=1)
    assert list(without_repeats(table)) == [("x", "1"), ("", "2"), ("y", "2")]
    assert markdown(table).splitlines()[2] == "| x | 1 |"


def test_figures_go_between_the_markers_of_a_document_and_missed_gates_are_named():
    result = Evaluation("ours", {"sha256": "abc", "command": "bluesky-denoise evaluate"})
    result.speed = [SpeedScore("Anscombe + BM3D", 42.0, "195 x 487")]
    text = "before\n<!-- begin gates -->\nold\n<!-- end gates -->\nafter\n"
    found = fill(text, [result])
    assert found.startswith("before\n<!-- begin gates -->\n`bluesky-denoise evaluate`")
    assert "| speed | time of BM3D over ours | ≥ 100 | 42 times | missed |" in found
    assert "- speed (time of BM3D over ours: 42 times)" in found
    assert "old" not in found
    assert fill(found, [result]) == found
    assert "Not measured" in fill("<!-- begin spots -->\n<!-- end spots -->", [result])
    with pytest.raises(SettingsError, match="no table 'spot'; there are gates, thinned"):
        fill("<!-- begin spot -->\n<!-- end spot -->", [result])


def test_a_document_tells_a_command_without_folders_of_a_machine():
    result = Evaluation(
        "ours", {"command": "bluesky-denoise evaluate /home/me/scans --json a/b.json"}
    )
    result.speed = [SpeedScore("Anscombe + BM3D", 42.0, "195 x 487")]
    found = fill("<!-- begin speed -->\n<!-- end speed -->", [result])
    assert "`bluesky-denoise evaluate scans --json a/b.json`" in found


def test_the_card_of_weights_gets_the_gates_of_its_own_evaluations_alone(tmp_path):
    command = "bluesky-denoise evaluate '/home/me/long scans' --json out/mine.json"
    told = {"sha256": "abc", "command": command, "data": "d", "date": "today"}
    result = Evaluation("ours", told, speed=[SpeedScore("Anscombe + BM3D", 42.0, "195 x 487")])
    (tmp_path / "scores.json").write_text(json.dumps(asdict(result)))
    card = tmp_path / "ours.json"
    card.write_text('{"sha256": "abc", "metrics": {"old": {}}, "notes": "kept"}')
    write_figures(tmp_path, [tmp_path / "scores.json"], card)
    written = json.loads(card.read_text())
    assert written["notes"] == "kept"
    (figures,) = written["metrics"].values()
    # Folders of a machine are of no use to others.
    assert figures["command"] == "bluesky-denoise evaluate 'long scans' --json out/mine.json"
    (gate,) = figures["gates"]
    assert (gate["check"], gate["figure"], gate["met"]) == ("speed", "42 times", False)
    card.write_text('{"sha256": "of others"}')
    with pytest.raises(SettingsError, match=r"of d are of weights abc; the card is of of ot"):
        write_figures(tmp_path, [tmp_path / "scores.json"], card)


@pytest.mark.parametrize("masked", [np.s_[:, :150], np.s_[55:, :], np.s_[30:50, :]])
@pytest.mark.parametrize("spot", [0.0, 5000.0])
def test_frames_that_are_mostly_masked_are_drawn(masked, spot):
    counts = np.random.default_rng(0).poisson(2.0, (80, 200)).astype(float)
    counts[60, 170] += spot
    mask = np.zeros(counts.shape, bool)
    mask[masked] = True
    figure = frame_picture({"raw": counts, "ours": np.where(mask, np.nan, counts)}, mask)
    figure.canvas.draw()
    closer = figure.axes[-1]
    first, last = closer.get_xlim()
    assert 0 <= first < last <= 199
    assert np.isfinite(closer.get_ylim()).all()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        *(((24, 400), kind) for kind in ("lit", "masked", "dark", "not finite")),
        *((shape, "lit") for shape in ((64, 24), (16, 16))),
        *(((64, 1), kind) for kind in ("masked", "not finite")),
    ],
)
def test_frames_of_any_shape_are_drawn(shape, kind):
    counts = np.random.default_rng(0).poisson(2.0, shape).astype(float)
    if kind == "dark":
        counts[:] = 0
    if kind == "not finite":
        counts[::5] = np.nan
        counts[1::5] = np.inf
    mask = np.full(shape, kind == "masked")
    figure = frame_picture({"raw": np.nan_to_num(counts), "long": counts}, mask)
    figure.savefig(io.BytesIO())
    first, last = figure.axes[-1].get_xlim()
    assert 0 <= first < last <= shape[1] - 0.5


def test_each_peak_of_a_large_frame_can_be_seen_in_the_report():
    rng = np.random.default_rng(1)
    counts = np.full((1679, 1475), 1.0)
    counts[-100:] = 10_000  # so much of it that the scale ends there
    peaks = rng.integers(20, 1450, (100, 2))
    for row, col in peaks:
        counts[row - 1 : row + 2, col - 1 : col + 2] = 10_000
    picture = io.BytesIO()
    images = {"raw": counts, "long": counts}
    figure = frame_picture(images, np.zeros(counts.shape, bool))
    figure.savefig(picture, dpi=figure.dpi)
    picture.seek(0)
    pixels = plt.imread(picture)  # (H, W, RGBA), 0 to 1
    axes = next(axes for axes in figure.axes if axes.images)
    for row, col in peaks:
        x, y = axes.transData.transform((col, row)).round().astype(int)
        y = len(pixels) - 1 - y
        assert (pixels[y - 2 : y + 3, x - 2 : x + 3, 1] > 0.9).any()  # pale yellow, of magma


def test_a_report_is_in_utf_8_whatever_the_locale(tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        write_report(Evaluation("ours µ", {}), [], Gallery(), tmp_path / "report.html")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ours µ" in text
