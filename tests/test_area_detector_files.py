"""Files of an areaDetector that speaks EPICS: TIFF, one HDF5 file a frame, a layout of its own."""

import json

import numpy as np
import pytest
from profile_sessions import run
from test_area_detector import ioc

from bluesky_denoise.server import embedded_tiled

SESSION = """
import json
import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from ophyd import Component, DetectorBase, SingleTrigger
from ophyd.areadetector.cam import CamBase
from ophyd.areadetector.filestore_mixins import (
    FileStoreHDF5IterativeWrite, FileStoreHDF5SingleIterativeWrite, FileStoreTIFFIterativeWrite
)
from ophyd.areadetector.plugins import HDF5Plugin_V34, TIFFPlugin_V34
from tiled.client import from_uri

from bluesky_denoise import (
    DenoiseProcess,
    DenoiseSettings,
    denoised_streams,
    raw_writer,
    reprocess,
)

WHERE, URI = {where!r}, {uri!r}


class Elsewhere:
    def _generate_resource(self, resource_kwargs):
        super()._generate_resource({{**resource_kwargs, "dataset": "/entry/instrument/data"}})


def detector(name, suffix, *kinds):
    class Writer(*kinds):
        def get_frames_per_point(self):
            return self.parent.cam.num_images.get()

    class Detector(SingleTrigger, DetectorBase):
        cam = Component(CamBase, "cam1:")
        writer = Component(Writer, suffix, write_path_template=WHERE + "/raw/")

    made = Detector("SIM:", name=name, read_attrs=["writer"], configuration_attrs=["cam"])
    made.cam.configuration_attrs = ["acquire_time"]
    made.wait_for_connection(timeout=20)
    return made


def main():
    cat, RE = from_uri(URI), RunEngine()
    settings = DenoiseSettings(
        model="bluesky_denoise.testing:UnitDenoiser", tiled_uri=URI, frames_directory=WHERE + "/out"
    )
    denoise = DenoiseProcess(settings)
    RE.subscribe(raw_writer(cat, WHERE + "/raw_backup"))
    RE.subscribe(denoise)
    detectors = [
        detector("tiff", "TIFF1:", TIFFPlugin_V34, FileStoreTIFFIterativeWrite),
        detector("single", "HDF1:", Elsewhere, HDF5Plugin_V34, FileStoreHDF5SingleIterativeWrite),
        detector("whole", "HDF1:", Elsewhere, HDF5Plugin_V34, FileStoreHDF5IterativeWrite),
    ]
    detectors[0].cam.acquire_time.set(0.125).wait(10)
    detectors[1].writer.warmup()
    for det in detectors:
        if det.name == "whole":
            det.writer.stage_sigs.update(swmr_mode="On", num_frames_flush=1)
            det.writer.stage_sigs.move_to_end("capture")
        det.cam.num_images.set(3).wait(10)
        (uid,) = RE(bp.count([det], 2))
        assert denoise.wait(60) is None
        reprocess(cat[uid], settings)
        raw = cat[uid]["primary"][det.name + "_image"].read()
        counts = raw.astype(np.float32)  # of which flagged pixels are rounded
        again, live = [found.stream for found in denoised_streams(cat[uid])]
        print("told", json.dumps({{
            "files": det.name, "shape": raw.shape, "sum": int(raw[raw < 2**32 - 1].sum()),
            "reasons": list(live["denoise_reason"].read()),
            "same": [
                bool((found[det.name + "_image"].read() * np.float32(0.125) == counts).all())
                for found in (again, live)
            ],
        }}), flush=True)
    denoise.close()
    cat.context.close()


if __name__ == "__main__":
    main()
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_all_that_the_plugins_write_is_denoised_beside_the_scan_and_from_tiled(tmp_path):
    (tmp_path / "raw").mkdir()
    with (
        embedded_tiled(tmp_path / "tiled", readable=tmp_path) as uri,
        ioc("--dataset=/entry/instrument/data") as where,
    ):
        printed = run(tmp_path, SESSION.format(where=str(tmp_path), uri=uri), **where)
    lines = [line.removeprefix("told ") for line in printed.splitlines() if "told {" in line]
    told = [json.loads(line) for line in lines]
    assert [(one["files"], one["shape"]) for one in told] == [
        (files, [2, 3, 195, 487]) for files in ("tiff", "single", "whole")
    ]
    for one in told:
        assert one["reasons"] == ["", ""]
        assert one["same"] == [True, True]
        assert one["sum"] > 1000 * np.prod(one["shape"][:2])
