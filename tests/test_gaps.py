"""Events that a message bus has lost, and runs whose beginning was lost."""

import time
from functools import partial

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import Camera, paused_scan, poisson, rates, settings, values
from lossy_bus import filled
from ophyd.sim import motor
from tiers import thorough

from bluesky_denoise import DenoiseRouter, GapFiller
from bluesky_denoise.in_tiled.layouts import connect
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import DocumentCollector, validate_documents


@pytest.fixture
def saved(RE, raw, tiled):
    """Scan ten points into Tiled; return the documents."""
    camera = Camera(name="det", func=poisson(), exposure_s=0.5)
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    RE(bp.scan([camera], motor, -1, 1, 10))
    return raw.documents


def expected(documents):
    return np.stack([doc["data"]["det_image"] / 0.5 for name, doc in documents if name == "event"])


@pytest.mark.parametrize("gone", [{3, 4, 5}, {1}, {9, 10}, set(range(1, 11))])
def test_lost_events_come_from_tiled(saved, tiled, gone):
    derived = filled(saved, tiled.client, lambda name, doc: doc.get("seq_num") in gone)
    np.testing.assert_allclose(rates(derived, "det_image"), expected(saved))
    assert values(derived, "denoise_ok") == [True] * 10
    np.testing.assert_allclose(values(derived, "motor"), np.linspace(-1, 1, 10))


def test_a_point_that_was_taken_again_and_lost_comes_from_tiled_twice(RE, raw, tiled):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    paused_scan(RE, [Camera(name="det", func=poisson(), exposure_s=0.5)])
    derived = filled(raw.documents, tiled.client, lambda name, doc: doc.get("seq_num") == 2)
    assert values(derived, "raw_seq_num") == [1, 2, 2, 3]
    np.testing.assert_allclose(rates(derived, "det_image"), expected(raw.documents))


@pytest.mark.thorough
@pytest.mark.parametrize("gone", ["start", "descriptor"])
def test_a_run_whose_beginning_was_lost_is_denoised_from_tiled(saved, tiled, gone):
    derived = filled(saved, tiled.client, lambda name, doc: name == gone)
    np.testing.assert_allclose(rates(derived, "det_image"), expected(saved))


@pytest.fixture
def configured(RE, raw, tiled):
    """Take three frames of 1 s and two of 0.1 s into one run; return the documents."""
    frames = np.random.default_rng(1).poisson(5, (5, 16, 20))
    camera = ReplayDetector(name="det", frames=ReplayFrames(frames, 1.0), exposure_s=1.0)
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))

    @bpp.stage_decorator([camera])
    @bpp.run_decorator()
    def plan():
        yield from bps.repeat(lambda: bps.trigger_and_read([camera]), 3)
        yield from bps.configure(camera, {"cam.acquire_time": 0.1})
        yield from bps.repeat(lambda: bps.trigger_and_read([camera]), 2)

    RE(plan())
    assert [name for name, _ in raw.documents].count("descriptor") == 2
    return raw.documents


@pytest.mark.parametrize(
    "gone",
    [thorough((3,)), thorough((4,)), (2, 3, 4), thorough(("second",)), (3, "second")],
    ids=str,
)
def test_lost_events_have_the_exposure_of_their_time(configured, tiled, gone):
    second = [doc["uid"] for name, doc in configured if name == "descriptor"][1]

    def lost(name, doc):
        return doc.get("seq_num") in gone or (doc["uid"] == second and "second" in gone)

    derived = filled(configured, tiled.client, lost)
    assert values(derived, "raw_seq_num") == [1, 2, 3, 4, 5]
    assert values(derived, "det_image_exposure_s") == [1.0, 1.0, 1.0, 0.1, 0.1]
    assert values(derived, "denoise_ok") == [True] * 5


@pytest.mark.thorough
@pytest.mark.parametrize("found", [True, False], ids=["in Tiled", "nowhere"])
def test_a_stream_whose_descriptor_was_lost_leaves_the_others_alone(RE, raw, tiled, found):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    camera = Camera(name="det", func=poisson(), exposure_s=0.5)

    @bpp.stage_decorator([camera])
    @bpp.run_decorator()
    def plan():
        for _ in range(3):
            yield from bps.trigger_and_read([camera])
            yield from bps.trigger_and_read([camera], name="dark")

    RE(plan())
    derived = DocumentCollector()
    router = DenoiseRouter(settings(streams=("primary", "dark")))
    router.subscribe(derived)
    filler = GapFiller(router, tiled.client if found else None, patience_s=0.2)
    for name, doc in raw.documents:
        if not (name == "descriptor" and doc["name"] == "dark"):
            filler(name, doc)
    validate_documents(derived.documents)
    streams = {"denoised": 3} | ({"denoised_dark": 3} if found else {})
    assert derived.by_name["stop"][0]["num_events"] == streams


def test_what_is_not_in_tiled_either_is_recorded_as_lost(saved):
    derived = filled(saved, None, lambda name, doc: doc.get("seq_num") in {3, 4})
    assert values(derived, "denoise_ok") == [n not in (3, 4) for n in range(1, 11)]
    reasons = values(derived, "denoise_reason")
    assert reasons[2] == reasons[3] == "lost on the message bus, and not in Tiled"
    assert np.isnan(rates(derived, "det_image")[2:4]).all()


@pytest.mark.thorough
def test_a_tiled_that_cannot_be_reached_is_told(saved, caplog):
    catalog = partial(connect, settings(tiled_uri="http://127.0.0.1:9"))
    derived = filled(saved, catalog, lambda name, doc: doc.get("seq_num") == 3)
    told = "lost on the message bus, and not to be read from Tiled (Connect"
    assert told in values(derived, "denoise_reason")[2]
    assert "the others are not to be read from Tiled" in caplog.text
    filler = GapFiller(DenoiseRouter(settings()), catalog, patience_s=0.2)
    filler("stop", saved[-1][1])  # the start was lost
    assert "and Tiled cannot be read (Connect" in caplog.text


def test_a_catalog_is_opened_when_a_gap_needs_it(saved, tiled):
    opened = []

    def catalog():
        opened.append(True)
        return tiled.client

    assert len(values(filled(saved, catalog, lambda name, doc: False), "denoise_ok")) == 10
    assert not opened
    gone = {3, 7}
    derived = filled(saved, catalog, lambda name, doc: doc.get("seq_num") in gone)
    np.testing.assert_array_equal(rates(derived, "det_image"), expected(saved))
    assert opened == [True]


def test_lost_events_of_a_detector_that_writes_files_come_from_tiled(RE, raw, tiled, tmp_path):
    frames = np.random.default_rng(1).poisson(5, (6, 16, 20)).astype(np.uint16)
    camera = AreaDetectorReplay(
        name="det", frames=ReplayFrames(frames, 0.5), exposure_s=0.5, directory=tmp_path
    )
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    RE(bp.scan([camera], motor, -1, 1, 6))

    def lost(name, doc):
        datum = name == "datum" and doc["datum_kwargs"]["point_number"] == 2
        return datum or (name == "event" and doc["seq_num"] == 3)

    derived = filled(raw.documents, tiled.client, lost)
    assert values(derived, "denoise_ok") == [True] * 6
    np.testing.assert_allclose(rates(derived, "det_image")[:, 0], frames / 0.5)


def test_a_gap_in_a_stream_that_is_not_denoised_is_not_waited_for(RE, raw):
    camera = Camera(name="det", func=poisson(), exposure_s=0.5)

    @bpp.run_decorator()
    def plan():
        for _ in range(3):
            yield from bps.trigger_and_read([camera], "other")
        yield from bps.trigger_and_read([camera])

    RE(plan())
    other = next(d["uid"] for d in raw.by_name["descriptor"] if d["name"] == "other")
    filler = GapFiller(DenoiseRouter(settings()), {}, patience_s=60)
    began = time.monotonic()
    for name, doc in raw.documents:
        if doc.get("descriptor") != other or doc["seq_num"] != 2:
            filler(name, doc)
    assert time.monotonic() - began < 30
