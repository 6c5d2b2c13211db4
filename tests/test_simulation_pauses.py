"""Simulated detectors that take as long as they expose: pauses, and runs that end within one."""

import threading

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import h5py
import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices

from bluesky_denoise.simulation.frame_writer import DATASET
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector

EXPOSURE_S = 0.1


class Numbered:
    """Frames whose pixels all hold their number. Making one of them pauses a RunEngine."""

    shape = (16, 16)

    def __init__(self, RE, pauses_at):
        self._RE, self.pauses_at, self.made = RE, pauses_at, 0
        self.takes_s = 0.0

    def __call__(self, exposure_s):
        self.made += 1
        threading.Event().wait(self.takes_s)
        if self.made == self.pauses_at:
            threading.Thread(target=self._RE.request_pause).start()
        return np.full(self.shape, self.made, np.uint32)


@pytest.fixture(params=["in events", "ophyd", "ophyd-async"])
def det(request, RE, tmp_path):
    """Return a detector that is interrupted in its second point."""
    images = 2 if request.param == "ophyd" else 1
    frames = Numbered(RE, pauses_at=2 * images)
    options = {"frames": frames, "exposure_s": EXPOSURE_S, "realtime": True, "name": "det"}
    if request.param == "in events":
        return ReplayDetector(**options)
    if request.param == "ophyd":
        return AreaDetectorReplay(directory=tmp_path, num_images=images, **options)
    provider = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
    with init_devices():
        detector = AsyncReplayDetector(provider, **options)
    return detector


def points_of(client, uid, det):
    """Return what a run has in Tiled: for each point, the numbers of its frames."""
    primary = client[uid]["primary"]
    key = "det" if isinstance(det, AsyncReplayDetector) else "det_image"
    frames = primary[key].read()
    points = frames[..., 0, 0].reshape(len(frames), -1)
    if key == "det_image":
        totals = primary["det_stats1_total"].read()
        np.testing.assert_array_equal(totals, frames[0].size / points.shape[1] * points.sum(axis=1))
    return points.tolist()


def numbered(first, points, det):
    """Return the numbers of the frames of points that follow each other."""
    images = 2 if isinstance(det, AreaDetectorReplay) else 1
    return np.arange(first, first + points * images).reshape(points, images).tolist()


def frames_in_files(directory):
    """Return how many frames each file has."""
    counts = []
    for path in directory.glob("*.h5"):
        with h5py.File(path) as file:
            counts.append(len(file[DATASET]))
    return sorted(counts)


def interrupted(RE, plan, ends_within_the_pause):
    with pytest.raises(RunEngineInterrupted):
        RE(plan)
    if ends_within_the_pause:
        threading.Event().wait(3 * EXPOSURE_S)


LATE = pytest.mark.parametrize("late", [False, True], ids=["at once", "after the exposure"])


@LATE
def test_after_a_pause_within_an_exposure_each_point_has_its_own_frames(
    RE, tiled, det, tmp_path, late
):
    RE.subscribe(TiledWriter(tiled.client))
    interrupted(RE, bp.count([det], 3), late)
    made = det.frames.made
    (uid,) = RE.resume()
    expected = numbered(1, 1, det) + numbered(made + 1, 2, det)
    assert points_of(tiled.client, uid, det) == expected
    files = [] if isinstance(det, ReplayDetector) else [np.size(expected)]
    assert frames_in_files(tmp_path) == files


@pytest.mark.thorough
@LATE
def test_a_run_that_is_aborted_within_an_exposure_leaves_nothing_to_the_next(
    RE, tiled, det, tmp_path, late
):
    RE.subscribe(TiledWriter(tiled.client))
    interrupted(RE, bp.count([det], 3), late)
    (aborted,) = RE.abort()
    made = det.frames.made
    (uid,) = RE(bp.count([det], 2))
    assert points_of(tiled.client, aborted, det) == numbered(1, 1, det)
    assert points_of(tiled.client, uid, det) == numbered(made + 1, 2, det)
    files = [] if isinstance(det, ReplayDetector) else [made // 2, 2 * (made // 2)]
    assert frames_in_files(tmp_path) == files


@pytest.mark.parametrize("takes_s", [0.0, 0.05])
def test_a_pause_between_trigger_and_wait_holds_nothing_up(RE, raw, det, takes_s):
    def plan():
        yield from bps.stage(det)
        yield from bps.open_run()
        yield from bps.checkpoint()
        yield from bps.trigger(det, group="exposure")
        yield from bps.pause()
        yield from bps.wait("exposure")
        yield from bps.create()
        yield from bps.read(det)
        yield from bps.save()
        yield from bps.close_run()
        yield from bps.unstage(det)

    det.frames.pauses_at, det.frames.takes_s = None, takes_s
    with pytest.raises(RunEngineInterrupted):
        RE(plan())
    RE.resume()
    assert raw.by_name["stop"][0]["num_events"] == {"primary": 1}
