"""A message bus that loses documents, and scans that are sent over it."""

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from live_path import settings, values
from ophyd.sim import motor
from ophyd_async.core import StaticPathProvider, TriggerInfo, UUIDFilenameProvider, init_devices

from bluesky_denoise import DenoiseRouter, GapFiller
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay
from bluesky_denoise.testing import DocumentCollector, validate_documents


def filled(documents, client, lost):
    """Send what is not lost through a gap filler."""
    derived = DocumentCollector()
    router = DenoiseRouter(settings())
    router.subscribe(derived)
    filler = GapFiller(router, client, patience_s=0.2)
    for name, doc in documents:
        if not lost(name, doc):
            filler(name, doc)
    validate_documents(derived.documents)
    assert [filler._runs, filler._run_of, filler._datums] == [{}, {}, {}]
    return derived


class Counting:
    """A frame generator whose every pixel is the number of the frame."""

    shape = (16, 20)

    def __init__(self, first=1):
        self._next = first

    def __call__(self, exposure_s):
        self._next += 1
        return np.full(self.shape, self._next - 1, np.uint16)


def in_files(directory, name="det", first=1):
    """Return an ophyd-async detector, whose frames are announced by stream datums."""
    with init_devices():
        where = StaticPathProvider(UUIDFilenameProvider(), directory)
        camera = AsyncReplayDetector(where, Counting(first), name=name)
    return camera


def classic(directory):
    """Return an areaDetector of ophyd, whose frames are announced by datums."""
    return AreaDetectorReplay(name="det", frames=Counting(), exposure_s=1.0, directory=directory)


def taken(RE, raw, tiled, plan):
    """Run a plan into Tiled, and resume it when it pauses; return the documents."""
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    try:
        RE(plan)
    except RunEngineInterrupted:
        RE.resume()
    return raw.documents


def fly(cameras, pause_after=None):
    """Fly in four rows of two frames; one of them may be taken again after a pause."""

    @bpp.stage_decorator(cameras)
    @bpp.run_decorator()
    def plan():
        for row in (1, 2, 3, 4):
            yield from bps.checkpoint()
            for camera in cameras:
                info = TriggerInfo(number_of_events=2, livetime=1.0)
                yield from bps.prepare(camera, info, wait=True)
            if row == 1:
                yield from bps.declare_stream(*cameras, name="primary", collect=True)
            yield from bps.kickoff_all(*cameras, wait=True)
            yield from bps.complete_all(*cameras, wait=True)
            yield from bps.collect(*cameras, name="primary")
            if row == pause_after:
                yield from bps.pause()

    return plan()


def step(detectors, pause_after=None):
    """Take five points; one of them may be taken again after a pause."""

    @bpp.stage_decorator(detectors)
    @bpp.run_decorator()
    def plan():
        for number in (1, 2, 3, 4, 5):
            yield from bps.checkpoint()
            yield from bps.mv(motor, number)
            yield from bps.trigger_and_read([*detectors, motor])
            if number == pause_after:
                yield from bps.pause()

    return plan()


def nth(documents, kind, *numbers, of=""):
    """Return a function that loses documents of a kind by their order, from 1.

    Stream resources and stream datums are those of a data key, if one is given.
    """
    keys = {doc["uid"]: doc["data_key"] for name, doc in documents if name == "stream_resource"}
    known = [
        doc
        for name, doc in documents
        if name == kind and of in ("", keys.get(doc.get("stream_resource", doc.get("uid"))))
    ]
    gone = [known[number - 1] for number in numbers]
    return lambda name, doc: name == kind and any(doc is one for one in gone)


def means(derived, key="det"):
    """Return the mean counts of the frames, by which they are told."""
    return [value / 320 for value in values(derived, f"{key}_raw_total")]


def no_tiled():
    raise AssertionError("nothing was lost: Tiled is not needed")
