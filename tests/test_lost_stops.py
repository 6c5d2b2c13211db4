"""Runs whose end a message bus has lost."""

import threading
import time

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import settings
from lossy_bus import in_files, no_tiled, step, taken
from ophyd.sim import motor

from bluesky_denoise import DenoiseRouter, GapFiller
from bluesky_denoise.testing import DocumentCollector, validate_documents


class Bus:
    """A gap filler behind a bus, and the derived documents."""

    def __init__(self, client):
        self.derived = DocumentCollector()
        self.router = DenoiseRouter(settings())
        self.router.subscribe(self.derived)
        self.filler = GapFiller(self.router, client, patience_s=0.2)

    def send(self, documents, lost=lambda name, doc: False):
        for name, doc in documents:
            if not lost(name, doc):
                self.filler(name, doc)
            if name == "start":
                self.filler._stops.wait(30)  # the documents of a real scan take some time

    def numbers(self):
        """Return by raw run the numbers of the events that are denoised, and how it ended."""
        found, came = {}, self.derived.by_name
        for start in came["start"]:
            uid, raw_uid = start["uid"], start["original_run_uid"]
            assert raw_uid not in found, "a run is denoised twice"
            own = {d["uid"] for d in came["descriptor"] if d["run_start"] == uid}
            data = [e["data"] for e in came["event"] if e["descriptor"] in own]
            ended = [d["exit_status"] for d in came.get("stop", []) if d["run_start"] == uid]
            found[raw_uid] = [one["raw_seq_num"] for one in data if one["denoise_ok"]], ended
        if all(ended for _, ended in found.values()):
            validate_documents(self.derived.documents)
        return found


@pytest.fixture
def two_runs(RE, raw, tiled, camera):
    """Scan ten points into Tiled, twice; return the uids and the documents."""
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    uids = [RE(bp.scan([camera], motor, -1, 1, 10))[0] for _ in range(2)]
    return uids, raw.documents


def end_of(documents, uid):
    """Return a function that loses the end of a run, from its eighth event on."""
    own = {
        doc["uid"] for name, doc in documents if name == "descriptor" and doc["run_start"] == uid
    }

    def lost(name, doc):
        late = name == "event" and doc["descriptor"] in own and doc["seq_num"] > 7
        return late or (name == "stop" and doc["run_start"] == uid)

    return lost


def stops_of(documents, uid):
    return [doc for name, doc in documents if name == "stop" and doc["run_start"] == uid]


ALL = (list(range(1, 11)), ["success"])


def test_a_run_whose_end_was_lost_is_completed_when_the_next_begins(two_runs, tiled, caplog):
    (first, second), documents = two_runs
    bus = Bus(tiled.client)
    bus.send(documents, end_of(documents, first))
    assert bus.numbers() == {first: ALL, second: ALL}
    assert f"Run {first:.8}: its stop was lost on the bus; it came from Tiled" in caplog.text
    bus.send([("stop", raw_stop) for raw_stop in stops_of(documents, first)])  # it was only late
    assert bus.numbers() == {first: ALL, second: ALL}
    assert not bus.filler._runs


@pytest.mark.thorough
def test_a_run_whose_end_was_lost_is_completed_when_the_callback_is_closed(two_runs, tiled):
    (first, second), documents = two_runs
    bus = Bus(lambda: tiled.client)
    bus.send(documents, end_of(documents, second))
    assert bus.numbers() == {first: ALL, second: (list(range(1, 8)), [])}
    bus.filler.close()
    assert bus.numbers() == {first: ALL, second: ALL}


def test_a_run_that_goes_on_while_others_begin_is_left_alone(RE, raw, tiled, camera, caplog):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    inner = bpp.set_run_key_wrapper(bp.count([camera], 2), "inner")

    @bpp.set_run_key_decorator("outer")
    @bpp.run_decorator()
    def outer():
        yield from bps.trigger_and_read([camera])
        yield from inner
        yield from bps.trigger_and_read([camera])

    outer_uid, inner_uid = RE(outer())
    bus = Bus(tiled.client)
    documents = raw.documents
    second = next(i for i, (name, doc) in enumerate(documents) if doc["uid"] == inner_uid)
    # Both have ended in Tiled when the start of the inner one is seen: this callback is slow.
    bus.send(documents[: second + 1])
    assert list(bus.filler._runs) == [outer_uid, inner_uid]
    bus.send(documents[second + 1 :])
    assert bus.numbers() == {outer_uid: ([1, 2], ["success"]), inner_uid: ([1, 2], ["success"])}
    assert "lost on the bus" not in caplog.text


@pytest.mark.thorough
def test_a_run_without_an_end_in_tiled_stays_open(two_runs, tiled, caplog):
    (first, second), documents = two_runs
    bus = Bus({})
    bus.send(documents, end_of(documents, first))
    bus.filler.close()
    assert bus.numbers() == {first: (list(range(1, 8)), []), second: ALL}
    bus.router.close()
    assert bus.numbers()[first][1] == ["fail"]


@pytest.mark.thorough
def test_a_server_that_hangs_is_not_waited_for(two_runs, caplog):
    (first, second), documents = two_runs
    answer = threading.Event()

    def hangs():
        answer.wait(60)
        raise ConnectionError("no answer")

    bus = Bus(hangs)
    lost = end_of(documents, first)
    began = time.monotonic()
    for name, doc in documents:
        if not lost(name, doc):
            bus.filler(name, doc)
    bus.filler.close(0.1)
    assert time.monotonic() - began < 30
    assert bus.numbers() == {first: (list(range(1, 8)), []), second: ALL}
    answer.set()
    bus.filler._stops.wait(10)
    assert "Tiled cannot be asked whether runs that are open have ended (Conn" in caplog.text


def test_results_that_come_back_over_the_bus_are_left_alone(RE, raw, tiled, tmp_path):
    documents = taken(RE, raw, tiled, step([in_files(tmp_path)]))
    echo = {"uid": "echo", "time": 0.0, "original_run_uid": "earlier", "denoise": {}}
    bus = Bus(no_tiled)
    bus.send([documents[0], ("start", echo)])
    for name, doc in documents[1:]:
        if name == "stream_resource":  # `run_start` is optional: it is the youngest run's
            doc = {key: value for key, value in doc.items() if key != "run_start"}
        bus.send([(name, doc)])
    (found,) = bus.numbers().values()
    assert found == ([1, 2, 3, 4, 5], ["success"])
    assert np.isfinite(bus.derived.by_name["event"][0]["data"]["det_raw_total"])
    assert not bus.filler._runs
