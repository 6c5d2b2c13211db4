import re
import subprocess
import sys
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import pytest
from bluesky.utils import FailedStatus
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer
from ophyd.sim import SynAxis
from ophyd_async.core import (
    StaticPathProvider,
    TriggerInfo,
    UUIDFilenameProvider,
    init_devices,
)

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.simulation import (
    ReplayFrames,
    SceneFrames,
    diffraction_scene,
)
from bluesky_denoise.simulation.frame_writer import DATASET
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import (
    AreaDetectorReplay,
    ReplayDetector,
    SimulatedMotor,
)
from bluesky_denoise.testing import DocumentCollector, assert_emitted

SHAPE = (16, 20)


@pytest.fixture
def collector(RE):
    collector = DocumentCollector()
    RE.subscribe(collector)
    return collector


@pytest.fixture
def counts():
    return np.random.default_rng(1).poisson(5, (7, *SHAPE)).astype(np.uint16)


@pytest.fixture
def frames(counts):
    return ReplayFrames(counts, exposure_s=1.0)


@pytest.fixture
def async_det(RE, frames, tmp_path):
    with init_devices():
        det = AsyncReplayDetector(StaticPathProvider(UUIDFilenameProvider(), tmp_path), frames)
    return det


def read_while_written(path, first, stop):
    with h5py.File(path, "r", swmr=True) as file:
        return file[DATASET][first:stop]


# Frames in the events


def test_a_count_of_the_replay_detector_carries_the_frames_in_its_events(RE, collector, counts):
    det = ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0))
    RE(bp.count([det], 3))
    collector.validate()
    assert_emitted(collector.by_name, start=1, descriptor=1, event=3, stop=1)
    for event, expected in zip(collector.by_name["event"], counts, strict=False):
        np.testing.assert_array_equal(event["data"]["det_image"], expected)
        assert event["data"]["det_stats1_total"] == expected.sum()


def test_the_replay_detector_describes_its_frames_and_hints_their_sum(RE, collector, frames):
    det = ReplayDetector(name="det", frames=frames, exposure_s=0.5)
    RE(bp.count([det]))
    (descriptor,) = collector.by_name["descriptor"]
    key = descriptor["data_keys"]["det_image"]
    assert key["shape"] == list(SHAPE)
    assert key["dtype"] == "array"
    assert key["dtype_numpy"] == "<u4"
    assert key["source"] == "SIM:det_image"
    assert descriptor["hints"]["det"]["fields"] == ["det_stats1_total"]


def test_the_exposure_is_in_the_configuration_and_the_image_is_not(RE, collector, frames):
    det = ReplayDetector(name="det", frames=frames, exposure_s=0.5)
    RE(bp.count([det]))
    (descriptor,) = collector.by_name["descriptor"]
    assert descriptor["configuration"]["det"]["data"] == {"det_cam_acquire_time": 0.5}
    assert descriptor["configuration"]["det"]["data_keys"]["det_cam_acquire_time"]["units"] == "s"


def test_a_plan_sets_the_exposure_between_runs(RE, collector, counts):
    det = ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0))

    def plan():
        for exposure_s in (1.0, 2.0):
            yield from bps.mv(det.cam.acquire_time, exposure_s)
            yield from bp.count([det])

    RE(plan())
    collector.validate()
    told = [d["configuration"]["det"]["data"] for d in collector.by_name["descriptor"]]
    assert told == [{"det_cam_acquire_time": 1.0}, {"det_cam_acquire_time": 2.0}]
    long = collector.by_name["event"][1]["data"]["det_image"]
    np.testing.assert_array_equal(long, counts[1] + counts[2])


def test_a_plan_configures_the_exposure_within_a_run(RE, collector, frames):
    det = ReplayDetector(name="det", frames=frames)

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        yield from bps.configure(det, {"cam.acquire_time": 2.0})
        yield from bps.trigger_and_read([det])

    RE(plan())
    collector.validate()
    assert_emitted(collector.by_name, start=1, descriptor=2, event=2, stop=1)
    told = [d["configuration"]["det"]["data"] for d in collector.by_name["descriptor"]]
    assert told == [{"det_cam_acquire_time": 1.0}, {"det_cam_acquire_time": 2.0}]


def test_frames_of_earlier_events_are_not_overwritten(RE, collector, frames):
    det = ReplayDetector(name="det", frames=frames)
    RE(bp.count([det], 2))
    first, second = (event["data"]["det_image"] for event in collector.by_name["event"])
    assert (first != second).any()


def test_a_real_time_trigger_takes_the_exposure(RE, collector, frames):
    det = ReplayDetector(name="det", frames=frames, exposure_s=0.2, realtime=True)
    RE(bp.count([det]))
    (start,), (event,) = collector.by_name["start"], collector.by_name["event"]
    assert event["time"] - start["time"] >= 0.2


def test_an_exposure_that_cannot_be_made_fails_the_trigger(RE, frames):
    det = ReplayDetector(name="det", frames=frames, exposure_s=1.5)
    with pytest.raises(SettingsError, match=r"1.5 s cannot be made"):
        RE(bp.count([det]))
    det.realtime = True
    with pytest.raises(FailedStatus) as failed:
        RE(bp.count([det]))
    assert "1.5 s cannot be made" in str(failed.value.__cause__ or failed.value)


def test_an_acquire_time_of_nothing_is_refused(frames):
    det = ReplayDetector(name="det", frames=frames)
    with pytest.raises(SettingsError, match=r"det_cam_acquire_time was set to 0"):
        det.cam.acquire_time.put(0)


def test_satellites_brighten_when_the_motor_comes_to_them(RE, collector):
    scene = diffraction_scene((48, 64))
    motor = SynAxis(name="motor")
    frames = SceneFrames(scene, position=lambda: motor.position, width=0.3)
    det = ReplayDetector(name="det", frames=frames)
    RE(bp.scan([det], motor, -1, 1, 3))
    collector.validate()
    totals = [event["data"]["det_stats1_total"] for event in collector.by_name["event"]]
    assert totals[1] > 3 * max(totals[0], totals[2])


# Frames in a file, through Resource and Datum


def read_datum(collector, event, key):
    datum_id = event["data"][key]
    (datum,) = [d for d in collector.by_name["datum"] if d["datum_id"] == datum_id]
    (resource,) = [r for r in collector.by_name["resource"] if r["uid"] == datum["resource"]]
    n = resource["resource_kwargs"]["frame_per_point"]
    first = datum["datum_kwargs"]["point_number"] * n
    return read_while_written(Path(resource["root"]) / resource["resource_path"], first, first + n)


@pytest.mark.parametrize("num_images", [1, 2])
def test_frames_of_the_area_detector_are_in_its_file_when_their_event_comes(
    RE, collector, counts, tmp_path, num_images
):
    det = AreaDetectorReplay(
        name="det",
        frames=ReplayFrames(counts, 1.0),
        directory=tmp_path / "new" / "folder",
        num_images=num_images,
    )
    seen = []

    def read_now(name, doc):
        if name == "event":
            seen.append(read_datum(collector, doc, "det_image"))

    RE.subscribe(read_now)
    RE(bp.count([det], 3))
    collector.validate()
    assert_emitted(collector.by_name, start=1, descriptor=1, resource=1, datum=3, event=3, stop=1)
    np.testing.assert_array_equal(
        np.stack(seen), counts[: 3 * num_images].reshape(3, num_images, *SHAPE)
    )
    (descriptor,) = collector.by_name["descriptor"]
    assert descriptor["data_keys"]["det_image"]["external"] == "FILESTORE:"
    assert descriptor["data_keys"]["det_image"]["shape"] == [num_images, *SHAPE]
    assert descriptor["data_keys"]["det_image"]["dtype_numpy"] == "<u4"
    assert descriptor["configuration"]["det"]["data"] == {
        "det_cam_acquire_time": 1.0,
        "det_cam_num_images": num_images,
    }
    for event in collector.by_name["event"]:
        assert event["filled"] == {"det_image": False}


def test_each_stage_of_the_area_detector_opens_a_file_of_its_own(RE, collector, frames, tmp_path):
    det = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path)
    RE(bp.count([det]))
    RE(bp.count([det]))
    collector.validate()
    assert len(collector.by_name["resource"]) == 2
    assert len(list(tmp_path.glob("*.h5"))) == 2


def test_the_sum_of_a_point_is_that_of_all_its_images(RE, collector, counts, tmp_path):
    det = AreaDetectorReplay(
        name="det", frames=ReplayFrames(counts, 1.0), directory=tmp_path, num_images=3
    )
    RE(bp.count([det]))
    (event,) = collector.by_name["event"]
    assert event["data"]["det_stats1_total"] == counts[:3].sum()


def test_the_area_detector_must_be_staged_and_triggered_first(frames, tmp_path):
    det = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path)
    with pytest.raises(SettingsError, match=r"stage it before it is triggered"):
        det.trigger()
    with pytest.raises(SettingsError, match=r"trigger it before it is read"):
        det.read()


@pytest.mark.parametrize("num_images", [1, 2])
def test_the_normalizer_of_tiled_knows_the_documents_of_the_area_detector(
    RE, collector, frames, tmp_path, num_images
):
    det = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path, num_images=num_images)
    RE(bp.count([det], 3))
    normalized = DocumentCollector()
    normalizer = RunNormalizer()
    normalizer.subscribe(normalized)
    for name, doc in collector.documents:
        normalizer(name, doc)
    (resource,) = normalized.by_name["stream_resource"]
    assert resource["mimetype"] == "application/x-hdf5"
    assert resource["parameters"]["dataset"] == DATASET
    assert resource["parameters"]["multiplier"] == num_images
    indices = [d["indices"] for d in normalized.by_name["stream_datum"]]
    assert indices == [{"start": i, "stop": i + 1} for i in range(3)]


# Frames in a file, through StreamResource and StreamDatum


def stream_reader(seen):
    """Read each frame in the moment in which its StreamDatum comes."""
    paths = {}

    def read_now(name, doc):
        if name == "stream_resource":
            paths[doc["uid"]] = doc["uri"].removeprefix("file://localhost")
        elif name == "stream_datum":
            path = paths[doc["stream_resource"]]
            seen.extend(read_while_written(path, doc["indices"]["start"], doc["indices"]["stop"]))

    return read_now


def test_frames_of_the_async_detector_are_in_its_file_when_their_datum_comes(
    RE, collector, counts, async_det
):
    seen = []
    RE.subscribe(stream_reader(seen))
    RE(bp.count([async_det], 4))
    collector.validate()
    assert_emitted(
        collector.by_name,
        start=1,
        descriptor=1,
        stream_resource=1,
        stream_datum=4,
        event=4,
        stop=1,
    )
    np.testing.assert_array_equal(np.stack(seen), counts[:4])


def test_the_async_detector_tells_its_exposure_as_an_area_detector_does(RE, collector, async_det):
    def plan():
        yield from bps.mv(async_det.driver.acquire_time, 2.0)
        yield from bp.count([async_det])

    RE(plan())
    (descriptor,) = collector.by_name["descriptor"]
    assert descriptor["configuration"]["det"]["data"] == {
        "det-driver-acquire_time": 2.0,
        "det-driver-acquire_period": 2.0,
    }
    key = descriptor["data_keys"]["det"]
    assert key["shape"] == [1, *SHAPE]
    assert key["dtype_numpy"] == "<u4"
    assert key["external"] == "STREAM:"
    assert descriptor["hints"] == {"det": {"fields": ["det"]}}


def test_the_async_detector_scans_a_motor(RE, collector, async_det):
    RE(bp.scan([async_det], SynAxis(name="motor"), -1, 1, 3))
    collector.validate()
    assert collector.by_name["stop"][0]["num_events"] == {"primary": 3}
    assert [e["data"]["motor"] for e in collector.by_name["event"]] == [-1, 0, 1]


def test_the_async_detector_flies(RE, collector, counts, async_det):
    seen = []
    RE.subscribe(stream_reader(seen))

    @bpp.stage_decorator([async_det])
    @bpp.run_decorator()
    def fly():
        yield from bps.prepare(async_det, TriggerInfo(number_of_events=5, livetime=1.0), wait=True)
        yield from bps.declare_stream(async_det, name="primary", collect=True)
        yield from bps.kickoff(async_det, wait=True)
        yield from bps.collect_while_completing(
            [async_det], [async_det], flush_period=0.05, stream_name="primary"
        )

    RE(fly())
    collector.validate()
    assert "event" not in collector.by_name
    assert collector.by_name["stop"][0]["num_events"] == {"primary": 5}
    np.testing.assert_array_equal(np.stack(seen), counts[:5])


def test_several_frames_may_belong_to_one_event_of_the_async_detector(
    RE, collector, counts, async_det
):
    @bpp.stage_decorator([async_det])
    @bpp.run_decorator()
    def plan():
        yield from bps.prepare(async_det, TriggerInfo(collections_per_event=3), wait=True)
        yield from bps.trigger_and_read([async_det])
        yield from bps.trigger_and_read([async_det])

    RE(plan())
    collector.validate()
    (descriptor,) = collector.by_name["descriptor"]
    assert descriptor["data_keys"]["det"]["shape"] == [3, *SHAPE]
    (resource,) = collector.by_name["stream_resource"]
    path = resource["uri"].removeprefix("file://localhost")
    np.testing.assert_array_equal(read_while_written(path, 0, None), counts[:6])


def test_a_real_time_async_detector_takes_the_exposures(RE, collector, frames, tmp_path):
    with init_devices():
        det = AsyncReplayDetector(
            StaticPathProvider(UUIDFilenameProvider(), tmp_path),
            frames,
            exposure_s=0.1,
            realtime=True,
        )
    RE(bp.count([det], 2))
    collector.validate()
    first = collector.by_name["start"][0]["time"]
    assert collector.by_name["event"][1]["time"] - first >= 0.2


def test_an_exposure_that_cannot_be_made_fails_the_async_trigger_at_once(RE, async_det):
    def plan(exposure_s):
        yield from bps.mv(async_det.driver.acquire_time, exposure_s)
        yield from bp.count([async_det])

    for exposure_s, reason in ((1.5, r"1.5 s cannot be made"), (0.0, r"expected more than 0")):
        with pytest.raises(FailedStatus) as failed:
            RE(plan(exposure_s))
        with pytest.raises(SettingsError, match=reason):
            raise failed.value.__cause__


def test_simulation_and_testing_import_neither_torch_nor_ophyd():
    code = (
        "import sys, bluesky_denoise.simulation, bluesky_denoise.testing;"
        "print([m for m in ('torch', 'tiled', 'ophyd', 'ophyd_async') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_detectors_import_without_torch():
    code = (
        "import sys, bluesky_denoise.simulation.ophyd_devices,"
        " bluesky_denoise.simulation.ophyd_async_devices;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_code_of_the_page_on_the_simulated_beamline_runs(RE, tmp_path, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "simulated-beamline.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    # The page's RunEngine is the fixture's, whose loop is closed after the test.
    monkeypatch.setattr("bluesky.RunEngine", lambda: RE)
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert len(list((tmp_path / "data").glob("*.h5"))) == 2


def test_positions_of_a_simulated_motor_are_floats_wherever_it_stands(RE, raw):
    axis = SimulatedMotor(name="axis")
    RE(bp.count([axis]))
    RE(bp.list_scan([axis], axis, [1, -2]))
    RE(bp.count([SimulatedMotor(name="axis", value=3)]))
    positions = [e["data"][k] for e in raw.by_name["event"] for k in ("axis", "axis_setpoint")]
    assert positions == [0, 0, 1, 1, -2, -2, 3, 3]
    assert {type(position) for position in positions} == {float}
