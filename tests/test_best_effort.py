"""What somebody at the prompt sees of a run, in a terminal of 80 columns."""

import re
import sys
from unittest.mock import MagicMock

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import pytest
from beamline import denoised_here, detector
from bluesky import plans as bp
from bluesky.callbacks import LiveTable
from ophyd import Signal
from ophyd.sim import det1

from bluesky_denoise import at_prompt
from bluesky_denoise.at_prompt import has_screen
from bluesky_denoise.best_effort import DenoisedBestEffortCallback, NarrowLines
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import (
    adaptive_exposure_scan,
    denoised_count,
    denoised_scan,
    find_weak_peak,
)
from bluesky_denoise.roi import ROI
from bluesky_denoise.testing import UnitDenoiser

SPOT = ROI(rows=(15, 32), cols=(16, 34), background_px=4)
STREAMS = ("primary", "reference")


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=0.5)


@pytest.fixture
def denoised(RE):
    bec = DenoisedBestEffortCallback()
    bec.disable_plots()
    RE.subscribe(bec)
    rois = {"satellite_1": SPOT, "satellite_2": SPOT}
    return denoised_here(RE, UnitDenoiser(), streams=STREAMS, rois=rois, timeout_s=2)


def rows(shown):
    """Return the first column of the rows that have numbers, tables one after another."""
    cells = [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("|")]
    return [int(cell) for cell in cells if cell.isdigit()]


def test_the_view_shows_one_of_the_images_of_a_device(monkeypatch):
    viewer, denoise = MagicMock(), MagicMock()
    monkeypatch.setattr(at_prompt, "FrameViewer", viewer)
    denoise.settings.data_keys = ["station"]
    at_prompt.open_view(None, denoise, "station_saxs_image", None)
    assert viewer.call_args.args == ("station_saxs_image",)
    with pytest.raises(SettingsError, match="what is denoised is station"):
        at_prompt.open_view(None, denoise, "saxs_image", None)


@pytest.mark.parametrize(
    ("platform", "variable", "seen"),
    [
        ("linux", None, False),
        ("linux", "DISPLAY", True),
        ("linux", "WAYLAND_DISPLAY", True),
        ("darwin", None, True),
        ("win32", None, True),
    ],
)
def test_a_desktop_has_a_screen(monkeypatch, platform, variable, seen):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, ":0")
    monkeypatch.setattr(sys, "platform", platform)
    assert has_screen() is seen


def test_a_table_of_two_regions_fits_into_80_columns(RE, det, motor, denoised, capsys):
    RE(denoised_scan([det], motor, -1, 1, 3, denoised=denoised))
    table = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "|+" and line]
    assert {len(line) for line in table} == {71}
    heads = zip(*(line.strip("|").split("|") for line in table[1:4]), strict=True)
    names = ["".join(part.strip() for part in head) for head in heads]
    regions = [f"denoised_satellite_{i}_intensity" for i in (1, 2)]
    assert names == ["seq_num", "time", "motor", *regions]
    assert [line[0] for line in table] == list("+|||+|||+")


def test_the_fine_scan_gets_a_table_too_and_what_was_found_is_told(RE, motor, denoised, capsys):
    det = detector(motor, exposure_s=0.5, width=0.6)
    args = ([det], denoised, "satellite_1", motor, -3, 3, 7)
    RE(find_weak_peak(*args, exposure_s=5.0, fine_num=5))
    shown = capsys.readouterr().out
    assert rows(shown) == [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5]
    assert re.findall(r"^(\w+):\n\+--", shown, re.M) == ["coarse_signals", "fine_signals"]
    assert "weak_peak: satellite_1_peak_found True, satellite_1_peak_center " in shown


def test_what_an_adaptive_scan_saved_is_told(RE, det, motor, denoised, capsys):
    args = ([det], denoised, "satellite_1", motor, 0, 0.1, 2)
    RE(adaptive_exposure_scan(*args, relative_error=0.5, max_frames=9, exposure_s=1.0))
    shown = capsys.readouterr().out
    assert rows(shown) == [1, 2]  # points, not frames
    assert "total: satellite_1_total_exposure_s 2, satellite_1_total_fixed_exposure_s 2" in shown
    table = [line for line in shown.splitlines() if line[:1] in "|+" and line]
    assert {len(line) for line in table} == {76}


def test_the_agreement_with_references_is_told_as_it_comes(RE, det, motor, denoised, capsys):
    asked = {"denoised": denoised, "reference_every": 2, "reference_s": 2.0}
    RE(denoised_scan([det], motor, -1, 1, 3, **asked))
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("agreement: satellite_1_pull ")]
    assert len(told) == 2
    assert "motor" not in told[0]
    assert lines.index(told[0]) < next(i for i, x in enumerate(lines) if x.startswith("|       2"))


def test_frames_that_are_not_ok_are_told_of_with_the_reason(RE, det, denoised, capsys):
    RE(denoised_count([det], 3, denoised=denoised))
    assert "not ok" not in capsys.readouterr().out

    class Negative:
        shape = det.frames.shape

        def __call__(self, exposure_s):
            return det_frames(exposure_s).astype(float) - 0.5

    det_frames, det.frames = det.frames, Negative()
    RE(denoised_count([det], 3, denoised=denoised))
    told = r"3 of 3 denoised frames are not ok: 3 such as: det_image: \d+ pixels in or around the"
    assert re.search(rf"^{told} region .*mask$", capsys.readouterr().out, re.MULTILINE)


def test_frames_that_lack_for_reasons_that_differ_in_numbers_are_counted_together(
    RE, denoised, capsys
):
    ok, reason = Signal(name="my_denoise_ok", value=False), Signal(name="my_denoise_reason")

    def plan():
        yield from bps.open_run()
        for number in (1, 2, 3):
            yield from bps.mv(reason, f"my: event {number} of run abcd will not be denoised.")
            yield from bps.trigger_and_read([ok, reason])
        yield from bps.close_run()

    RE(plan())
    told = (
        "3 of 3 denoised frames are not ok: 3 such as: my: event 1 of run abcd will not be denoised"
    )
    assert told in capsys.readouterr().out.splitlines()


def test_of_runs_within_each_other_the_inner_one_is_shown(RE, det, motor, denoised, capsys, caplog):
    @bpp.set_run_key_decorator("outer")
    @bpp.run_decorator()
    def outer():
        yield from bps.trigger_and_read([motor])
        inner = denoised_scan([det], motor, 0, 0.2, 3, denoised=denoised)
        yield from bpp.set_run_key_wrapper(inner, "inner")
        yield from bps.trigger_and_read([motor])

    RE(outer())
    assert rows(capsys.readouterr().out)[-3:] == [1, 2, 3]
    assert "exception" not in caplog.text


def test_plain_scans_are_shown_as_ever(RE, motor, denoised, capsys):
    RE(bp.scan([det1], motor, -1, 1, 4))
    shown = capsys.readouterr().out
    assert rows(shown) == [1, 2, 3, 4]
    assert "| seq_num |         time |        motor |         det1 |" in shown


def test_a_table_without_bluesky_s_callback_can_be_narrow(RE, motor, capsys):
    RE(bp.scan([det1], motor, -1, 1, 2), LiveTable(["motor", "det1"], out=NarrowLines()))
    shown = capsys.readouterr().out
    assert rows(shown) == [1, 2]
    assert shown.count("+---------+--------------+") == 3
