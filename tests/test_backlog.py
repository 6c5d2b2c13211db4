"""Documents that wait for the denoiser, and what becomes of them when they are too many."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from event_model import pack_event_page, unpack_event_page
from live_path import SHAPE

from bluesky_denoise.child.backlog import Backlog


@pytest.fixture
def changed():
    condition = threading.Condition()
    with condition:
        yield condition


def event(number):
    data = {"det": np.full(SHAPE, number), "motor": 0.5, "trace": np.arange(3), "roi": [1]}
    return {"seq_num": number, "data": data}


def full_event(number):
    doc = event(number)
    stamps = dict.fromkeys(doc["data"], 0.0)
    return {**doc, "descriptor": "a", "uid": str(number), "time": 0.0} | {
        "timestamps": stamps,
        "filled": {},
    }


def skipped(batch):
    assert {skip for _, _, skip in batch} <= {"", "skipped: the queue of the denoiser was full"}
    return [bool(skip) for _, _, skip in batch]


def test_what_waits_can_be_given_up(changed):
    backlog = Backlog(changed, most=2, wait_s=0)
    for name, doc in (("start", {}), *(("event", event(i)) for i in range(3)), ("stop", {})):
        backlog.put(name, doc, frames=name == "event")
    assert backlog.with_frames == 2
    backlog.skip("closed")
    assert backlog.with_frames == 0
    backlog.put("event", event(3), frames=True)
    taken = backlog.take(9)
    full = "skipped: the queue of the denoiser was full"
    assert [skip for _, _, skip in taken] == ["", "closed", "closed", full, "", ""]
    images = [doc["data"]["det"] for name, doc, _ in taken if name == "event"]
    assert images[:3] == [None, None, None]
    assert images[3] is not None


def test_documents_come_out_in_the_order_in_which_they_were_put_in(changed):
    backlog = Backlog(changed, most=9, wait_s=0)
    documents = [("start", {"uid": "a"}), *(("event", event(i)) for i in range(4)), ("stop", {})]
    for name, doc in documents:
        backlog.put(name, doc, frames=name == "event")
    assert len(backlog) == 6
    taken = [*backlog.take(4), *backlog.take(9)]
    np.testing.assert_equal([(name, doc) for name, doc, _ in taken], documents)
    assert skipped(taken) == [False] * 6
    assert len(backlog) == 0


def test_what_finds_no_room_loses_its_frames_and_nothing_else(changed):
    backlog = Backlog(changed, most=1, wait_s=0)
    documents = [event(1), event(2)]
    for doc in documents:
        backlog.put("event", doc, frames=True)
    backlog.put("stop", {"exit_status": "success"}, frames=False)
    first, second, stop = backlog.take(9)
    bare = {"seq_num": 2, "data": documents[1]["data"] | {"det": None}}
    np.testing.assert_equal(first, ("event", documents[0], ""))
    assert second == ("event", bare, "skipped: the queue of the denoiser was full")
    assert stop == ("stop", {"exit_status": "success"}, "")
    assert documents[1]["data"]["det"].shape == SHAPE  # that of the others who have the document
    for number in (3, 4):
        backlog.put("event", event(number), frames=True)
    assert skipped(backlog.take(9)) == [False, True]


class Simulated(threading.Condition):
    """Waits on a clock of its own, `now`; each second that is waited for, something is done."""

    now = 0.0
    each_second = staticmethod(lambda: None)

    def wait_for(self, predicate, timeout=None):
        ends = self.now + timeout
        while not predicate() and self.now < ends:
            self.now = min(self.now + 1, ends)
            self.each_second()
        return predicate()


@pytest.fixture
def simulated(monkeypatch):
    condition = Simulated()
    clock = SimpleNamespace(monotonic=lambda: condition.now)
    monkeypatch.setattr("bluesky_denoise.child.backlog.time", clock)
    with condition:
        yield condition


def test_only_the_first_without_room_waits_and_frames_are_taken_again_at_half(simulated, logged):
    backlog = Backlog(simulated, most=4, wait_s=9)
    held = []
    for number in range(7):
        began = simulated.now
        backlog.put("event", event(number), frames=True)
        held.append(simulated.now - began)
    assert held == [0, 0, 0, 0, 9, 0, 0]
    assert logged().count("The denoiser is 4 events behind: frames are skipped") == 1
    assert skipped(backlog.take(1)) == [False]
    backlog.put("event", event(7), frames=True)  # three wait: more than half
    assert skipped(backlog.take(1)) == [False]
    backlog.put("event", event(8), frames=True)
    assert skipped(backlog.take(9)) == [False, False, True, True, True, True, False]


def test_a_denoiser_that_is_slow_holds_each_run_for_a_bounded_time_in_all(simulated, logged):
    """It takes one each second, while it is waited for."""
    backlog = Backlog(simulated, most=4, wait_s=3)
    taken, took = [], []
    simulated.each_second = lambda: taken.extend(backlog.take(1))
    for _ in range(2):
        backlog.put("start", {}, frames=False)
        taken += backlog.take(1)
        began = simulated.now
        for number in range(20):
            backlog.put("event", event(number), frames=True)
        took.append(simulated.now - began)
        backlog.put("stop", {}, frames=False)
        taken += backlog.take(99)
    assert took == [3, 3]
    assert [name for name, _, _ in taken] == 2 * ["start", *(20 * ["event"]), "stop"]
    assert skipped(taken) == 2 * [*(8 * [False]), *(13 * [True]), False]
    assert logged().count("events behind: frames are skipped") == 2  # once in each run


@pytest.mark.parametrize("name", ["event", "event_page"])
def test_a_frame_stays_as_it_came_where_its_detector_writes_the_next_one(changed, name):
    doc = full_event(1)
    buffer = doc["data"]["det"]
    doc = doc if name == "event" else pack_event_page(doc)
    backlog = Backlog(changed, most=99, wait_s=0)
    backlog.put(name, doc, frames=True)
    buffer[:] = 2
    ((_, taken, _),) = backlog.take(9)
    np.testing.assert_array_equal(np.squeeze(taken["data"]["det"]), np.full(SHAPE, 1))
    assert taken["data"]["roi"] == doc["data"]["roi"]
    assert taken["seq_num"] == doc["seq_num"]


def test_frames_may_fill_only_so_much_memory(changed, monkeypatch):
    size = sum(v.nbytes for v in event(0)["data"].values() if isinstance(v, np.ndarray))
    monkeypatch.setattr("bluesky_denoise.child.backlog._MOST_WAITING_BYTES", 4 * size)
    backlog = Backlog(changed, most=99, wait_s=0)
    for number in range(6):
        backlog.put("event", event(number), frames=True)
    assert skipped(backlog.take(1)) == [False]
    backlog.put("event", event(6), frames=True)  # three wait: more than half
    assert skipped(backlog.take(9)) == [False, False, False, True, True, True]
    backlog.put("event", event(7), frames=True)
    backlog.skip("closed")  # frees what the frames had
    for number in range(8, 11):
        backlog.put("event", event(number), frames=True)
    assert [skip for _, _, skip in backlog.take(9)] == ["closed", "", "", ""]


def test_frames_are_taken_again_when_half_of_the_memory_is_free(changed, monkeypatch):
    image = event(0)["data"]["det"].nbytes
    room = 4 * image + image // 2  # for the traces, which stay, too
    monkeypatch.setattr("bluesky_denoise.child.backlog._MOST_WAITING_BYTES", room)
    backlog = Backlog(changed, most=99, wait_s=0)
    for number in range(5):
        backlog.put("event", event(number), frames=True)
    backlog.take(1)
    backlog.put("event", event(5), frames=True)  # three wait: there is room, but half is taken
    assert skipped(backlog.take(9)) == [False, False, False, True, True]
    backlog.put("event", event(6), frames=True)
    large = {"seq_num": 7, "data": {"det": np.full((4, *SHAPE), 7)}}
    backlog.put("event", large, frames=True)  # half is free, and it needs more
    assert skipped(backlog.take(9)) == [False, True]


def test_frames_that_are_given_up_take_no_memory(changed, monkeypatch):
    image = event(0)["data"]["det"].nbytes
    room = 4 * image + image // 2
    monkeypatch.setattr("bluesky_denoise.child.backlog._MOST_WAITING_BYTES", room)
    backlog = Backlog(changed, most=99, wait_s=0)
    backlog.put("event", event(0), frames=True)
    backlog.skip("closed")
    for number in range(1, 5):
        backlog.put("event", event(number), frames=True)
    assert [skip for _, _, skip in backlog.take(9)] == ["closed", "", "", "", ""]


def test_frames_that_are_larger_than_all_that_may_wait_go_one_by_one(changed, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.child.backlog._MOST_WAITING_BYTES", 1)
    backlog = Backlog(changed, most=99, wait_s=0)
    for number in (1, 2):
        backlog.put("event", event(number), frames=True)
    assert skipped(backlog.take(9)) == [False, True]
    backlog.put("event", event(3), frames=True)
    assert skipped(backlog.take(9)) == [False]


@pytest.mark.parametrize("column", [list, np.stack, lambda frames: [f.tolist() for f in frames]])
def test_a_page_without_room_keeps_its_events(changed, column):
    backlog = Backlog(changed, most=1, wait_s=0)
    page = pack_event_page(*(full_event(number) for number in (1, 2)))
    page["data"]["det"] = column(page["data"]["det"])
    backlog.put("event", event(0), frames=True)
    backlog.put("event_page", page, frames=True)
    _, (_, left, skip) = backlog.take(9)
    assert skip
    events = list(unpack_event_page(left))
    assert [e["seq_num"] for e in events] == [1, 2]
    assert [e["data"]["det"] for e in events] == [None, None]
    assert [list(e["data"]["trace"]) for e in events] == [[0, 1, 2]] * 2
    assert [e["data"]["motor"] for e in events] == [0.5, 0.5]
    assert len(page["data"]["det"]) == 2
    assert np.shape(page["data"]["det"][0]) == SHAPE


@pytest.mark.parametrize("name", ["event", "stream_datum"])
def test_all_documents_that_bring_frames_take_room(changed, name):
    backlog = Backlog(changed, most=1, wait_s=0)
    for number in (1, 2):
        backlog.put(name, {**event(number), "indices": {"start": 0, "stop": 1}}, frames=True)
    assert skipped(backlog.take(9)) == [False, True]


def made_room(changed, make, wait_s=60):
    """Return how long a document waits for room that another thread makes, seconds."""
    backlog = Backlog(changed, most=1, wait_s=wait_s)
    backlog.put("event", event(1), frames=True)

    def later():
        with changed:
            make(backlog)

    thread = threading.Thread(target=later)
    thread.start()
    began = time.monotonic()
    backlog.put("event", event(2), frames=True)
    held = time.monotonic() - began
    thread.join()
    assert skipped(backlog.take(9)) == [False]
    return held


@pytest.mark.parametrize("wait_s", [60, 1e12, float("inf")])
def test_room_that_is_made_is_used_at_once(changed, wait_s):
    assert made_room(changed, lambda backlog: backlog.take(1), wait_s) < 30


def test_room_that_is_made_by_forgetting_all_is_used_at_once(changed):
    assert made_room(changed, Backlog.clear) < 30


def test_a_long_stream_datum_is_taken_piece_by_piece_and_its_rest_can_be_skipped(changed):
    backlog = Backlog(changed, most=1, wait_s=0)
    span = {"indices": {"start": 5, "stop": 15}, "seq_nums": {"start": 1, "stop": 11}}
    backlog.put("event", event(1), frames=True)
    assert skipped(backlog.take(9)) == [False]
    backlog.put("stream_datum", {"uid": "a", **span}, frames=True)
    backlog.put("stop", {}, frames=False)
    pieces = [*backlog.take(4), *backlog.take(4)]
    assert [(doc["indices"], doc["seq_nums"]) for _, doc, _ in pieces] == [
        ({"start": 5, "stop": 9}, {"start": 1, "stop": 5}),
        ({"start": 9, "stop": 13}, {"start": 5, "stop": 9}),
    ]
    assert backlog.with_frames == 1
    backlog.skip("closed")
    (_, rest, why), stop = backlog.take(4)
    assert (rest["indices"], why) == ({"start": 13, "stop": 15}, "closed")
    assert stop == ("stop", {}, "")
    assert span["indices"] == {"start": 5, "stop": 15}  # others have the document, too


def test_what_has_no_frames_takes_no_room(changed):
    backlog = Backlog(changed, most=2, wait_s=0)
    backlog.put("event", event(0), frames=True)
    for number in range(9):
        backlog.put("event", {"seq_num": number, "data": {"current": 1.0}}, frames=False)
    backlog.put("event", event(1), frames=True)
    backlog.put("event", event(2), frames=True)
    assert backlog.with_frames == 2
    assert skipped(backlog.take(99)) == [False] * 11 + [True]
    assert backlog.with_frames == 0
    backlog.put("start", {"data": [[1, 2], [3, 4]]}, frames=False)
    backlog.put("event", event(3), frames=False)  # images of another detector
    (_, start, _), (_, other, _) = backlog.take(9)
    assert start == {"data": [[1, 2], [3, 4]]}
    assert other["data"]["det"] is None
    assert other["data"]["motor"] == 0.5


def test_large_frames_are_taken_out_few_at_a_time(changed, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.child.backlog._MOST_BYTES", 256 << 10)
    backlog = Backlog(changed, most=99, wait_s=0)
    large = np.zeros((5, 64, 64), np.uint32)  # 80 KiB
    for number in range(9):
        backlog.put("event", {"seq_num": number, "data": {"det": large}}, frames=True)
    page = {"data": {"det": [large] * 5, "motor": [0.0] * 5}}
    backlog.put("event_page", page, frames=True)
    backlog.put("event", event(1), frames=True)
    assert [len(backlog.take(32)) for _ in range(4)] == [4, 4, 2, 1]
    backlog.put("event", {"seq_num": 1, "data": "malformed"}, frames=True)
    backlog.put("stream_datum", {"indices": None, "seq_nums": "malformed"}, frames=True)
    assert len(backlog.take(32)) == 2
