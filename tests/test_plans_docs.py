import re
import runpy
from pathlib import Path

import bluesky.plans as bp
import matplotlib as mpl
import pytest
import yaml
from beamline import ROIS, denoised_here, detector
from bluesky_tiled_plugins import TiledWriter
from live_path import UNIT
from ophyd.sim import SynAxis
from tiers import thorough

from bluesky_denoise.best_effort import DenoisedBestEffortCallback
from bluesky_denoise.testing import UnitDenoiser

ROOT = Path(__file__).parents[1]
OURS = {
    "plans.md",
    "how-to-short-exposures.md",
    "how-to-adaptive-exposure.md",
    "how-to-weak-peak.md",
    "how-to-pairs-and-references.md",
    "how-to-unchanged-plans.md",
    "how-to-live-view.md",
    "how-to-agent.md",
}


def test_the_code_on_the_page_about_archives_runs(RE, tiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RE.subscribe(TiledWriter(tiled.client))
    RE(bp.count([detector()], 2))
    settings = {"model": UNIT, "tiled_uri": tiled.uri, "frames_directory": str(tmp_path)}
    Path("settings.yaml").write_text(yaml.safe_dump(settings))
    namespace = {"cat": tiled.client}
    page = ROOT / "docs" / "how-to-archive.md"
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(compile(block, page.name, "exec"), namespace)
    assert (tmp_path / "run.nxs").stat().st_size > 10_000


@pytest.fixture
def beamline(RE):
    """Return what the profile gives to the code on the pages."""
    mpl.use("Agg")
    motor = SynAxis(name="motor")
    rois = {"satellite_1": ROIS["satellite"], "satellite_2": ROIS["satellite"]}
    streams = ("primary", "reference", "short")
    denoised = denoised_here(RE, UnitDenoiser(), rois=rois, streams=streams)
    return {
        "RE": RE,
        "motor": motor,
        "det": detector(motor, exposure_s=1.0),
        "denoised": denoised,
        "denoise": denoised.router,
        "rois": rois,
    }


def test_the_first_plan_prints_the_table_on_the_page(RE, beamline, capsys):
    callback = DenoisedBestEffortCallback()
    callback.disable_plots()
    RE.subscribe(callback)
    page = (ROOT / "docs" / "plans.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], beamline)
    shown = re.search(r"```text\n(.*?)```", page, re.S)[1].splitlines()
    printed = [line for line in capsys.readouterr().out.splitlines() if line[:1] in ("+", "|")]
    assert printed[:5] == shown[:5]
    assert len(printed) == len(shown)


@pytest.mark.parametrize("page", sorted(OURS))
def test_the_code_on_the_page_runs(page, beamline):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), beamline)


def test_links_between_the_pages_lead_somewhere():
    for page in OURS:
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", (ROOT / "docs" / page).read_text()):
            assert (ROOT / "docs" / link).is_file(), f"{page} links to {link}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "shown"),
    [
        ("04_adaptive_exposure", r"exposed [\d.]+ s instead of [\d.]+ s"),
        thorough("05_find_weak_peak", r"peak at 0\.[2-5]\d, \d+\.\d sigma"),
        thorough(
            "07_adaptive_agent", r"25 frames of 0.2 s; brightest at x = 0\.[2-6]\d, y = -0\.[0-5]\d"
        ),
        thorough("06_paired_exposures", r"motor \+1\.0 +1\.00 s +4\d+\.\d counts / s"),
    ],
)
def test_the_examples_say_what_they_should(example, shown, capfd):
    runpy.run_path(str(ROOT / "examples" / f"{example}.py"), run_name="__main__")
    assert re.search(shown, capfd.readouterr().out)
