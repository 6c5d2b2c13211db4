"""The profile of a beamline, with a detector and a motor that speak EPICS."""

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from live_path import UNIT, free_port
from profile_sessions import environment, profile_copy, started
from tiers import thorough
from tiled.client import from_uri

from bluesky_denoise.server import embedded_tiled

IOC = Path(__file__).parent / "area_detector_ioc.py"
LAYERS = {
    "ophyd": {"layer": "ophyd", "prefix": "SIM:"},
    "ophyd-async": {"layer": "ophyd-async", "kind": "adpilatus", "prefix": "ca://SIM:"},
}
SCAN = """
globals().update(namespace)
if hasattr(pilatus, "hdf5"):
    pilatus.hdf5.warmup()
viewer = watch()
viewer.save_to = "seen.png"
plan = denoised_scan([pilatus], theta, -1, 1, 3, denoised=denoised)
RE(short_exposure_wrapper(plan, [pilatus], 2.5))
denoise.wait(60)
viewer.close()
print("theta is at", theta.position, "view of", viewer.data_key, viewer.drawn > 0)
"""


@contextmanager
def ioc(*options):
    """Run an IOC that nobody else finds; yield what its clients need to know."""
    where = {"EPICS_CA_SERVER_PORT": str(free_port())}
    with subprocess.Popen(
        [sys.executable, str(IOC), "SIM:", *options],
        env=environment(**where),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield where
        finally:
            process.kill()


def beamline(tmp_path, uri, detector, **settings):
    """Return a profile that somebody has edited."""
    profile = profile_copy(tmp_path, "profile_area_detector")
    (tmp_path / "raw").mkdir()
    # Here the files that the IOC writes are under another path.
    (tmp_path / "mounted").symlink_to(tmp_path / "raw")
    paths = {"write_path": f"{tmp_path}/raw/", "read_path": f"{tmp_path}/mounted/"}
    edited = {
        "tiled_uri": uri,
        "timeout_s": 20,
        "motors": {"theta": "SIM:m1"},
        "detectors": {"pilatus": {**paths, **detector}},
        "denoise": {
            "data_keys": ["pilatus"],
            "frames_directory": str(tmp_path / "denoised"),
            "read_timeout_s": 1.0,
            "rois": {"satellite": {"rows": [80, 105], "cols": [200, 233], "background_px": 4}},
            **settings,
        },
    }
    (profile / "beamline.yaml").write_text(yaml.safe_dump(edited))
    return profile


def scanned(tmp_path, layer, code, *options, **settings):
    """Run code at the prompt of the profile; return what it prints, and the run in Tiled."""
    with embedded_tiled(tmp_path / "tiled", readable=tmp_path) as uri, ioc(*options) as where:
        profile = beamline(tmp_path, uri, LAYERS[layer], **settings)
        printed = started(tmp_path, profile, code, **where)
        client = from_uri(uri)
        with client.context:
            (run,) = client.values()
            read = {name: run[name].base for name in run}
            numbers = read["denoised"]["internal"].read()
            raw_key = "pilatus_image" if layer == "ophyd" else "pilatus"
            frames = {
                name: read[name][key].read()
                for name, key in (("primary", raw_key), ("denoised", "pilatus"))
            }
            assert "/mounted/" in str(read["primary"][raw_key].data_sources())
            return printed, run.metadata["start"], set(run), frames, numbers


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["ophyd", thorough("ophyd-async")])
def test_a_short_scan_of_an_epics_detector_is_denoised(tmp_path, layer):
    printed, start, streams, frames, numbers = scanned(tmp_path, layer, SCAN)
    assert streams == {"primary", "denoised", "signals"}
    raw, rates = frames["primary"], frames["denoised"]
    assert raw.shape == rates.shape == (3, 1, 195, 487)
    assert list(numbers["pilatus_exposure_s"]) == [0.4] * 3
    assert list(numbers["theta"]) == [-1, 0, 1]
    assert numbers["pilatus_raw_total"].sum() == raw[raw < 2**32 - 1].sum()
    assert start["exposures"] == {"pilatus": {"full_s": 1.0, "short_s": 0.4, "factor": 2.5}}
    assert "denoised_" in printed  # the table
    assert re.search(r"theta is at 1\S* view of pilatus True", printed)
    assert (tmp_path / "seen.png").stat().st_size > 10_000
    primed = "detector pilatus: its HDF5 plugin has seen no frame since" not in printed
    assert primed == (layer == "ophyd-async")  # there, the size comes from the camera


@pytest.mark.thorough
@pytest.mark.slow
def test_frames_that_cannot_be_read_during_the_run_are_told_with_what_to_do(tmp_path):
    count = """
globals().update(namespace)
pilatus.hdf5.warmup()
pilatus.cam.acquire_time.set(0.3).wait(5)
RE(bp.count([pilatus], 5))
denoise.wait(60)
"""
    printed, _, _, frames, numbers = scanned(tmp_path, "ophyd", count, "--no-swmr", model=UNIT)
    assert "detector pilatus: its HDF5 plugin has no SWMR mode" in printed
    assert frames["primary"].shape == (5, 1, 195, 487)
    reasons = list(numbers["denoise_reason"])
    late = [reason for reason in reasons if "is not readable" in reason]
    assert late == reasons[: len(late)]  # what was read when the file was closed is denoised
    assert late
    assert all("areaDetector: SWMRMode On, NumFramesFlush 1" in reason for reason in late)
    done = ~np.isnan(frames["denoised"]).all((1, 2, 3))
    assert list(done) == [reason not in late for reason in reasons]
