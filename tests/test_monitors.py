"""Signals that are monitored: their events come on threads of their own."""

import threading
import time
from contextlib import contextmanager, suppress

import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
from live_path import settings, wait_for
from ophyd import Signal
from ophyd.sim import SynAxis
from process_fixtures import FRAMES, replay
from tiled.client import from_uri

from bluesky_denoise.in_turn import InTurn
from bluesky_denoise.raw_runs import raw_writer
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser


@contextmanager
def changing(signal, every_s=0.002):
    """Let a signal change on a thread."""
    stop = threading.Event()

    def change():
        while not stop.wait(every_s):
            signal.put(signal.get() + 1.0)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_monitor_does_not_break_the_raw_writer(RE, tiled, raw, tmp_path):
    client, current = from_uri(tiled.uri), Signal(name="current", value=0.0)
    RE.subscribe(raw_writer(client, tmp_path / "raw"))
    with changing(current):
        (uid,) = RE(bpp.monitor_during_wrapper(bp.count([replay()], 3), [current]))
    assert not (tmp_path / "raw").exists()

    run, streams = client[uid], {d["uid"]: d["name"] for d in raw.by_name["descriptor"]}
    events = {name: [] for name in streams.values()}
    for event in raw.by_name["event"]:
        events[streams[event["descriptor"]]].append(event["data"])
    assert run.stop["exit_status"] == "success"
    seen = [data["current"] for data in events["current_monitor"]]
    assert len(seen) > 3
    np.testing.assert_array_equal(np.sort(run["current_monitor"]["current"].read()), np.sort(seen))
    frames = [data["det_image"] for data in events["primary"]]
    np.testing.assert_array_equal(run["primary"]["det_image"].read(), frames)
    client.context.close()


def test_an_event_is_in_tiled_as_soon_as_it_is_saved(RE, tiled, raw, tmp_path):
    RE.subscribe(raw_writer(tiled.client, tmp_path / "raw_backup"))
    seen = []

    def look(name, doc):
        run = tiled.client[raw.by_name["start"][0]["uid"]]
        seen.append(len(run["primary"].base["internal"].read(["seq_num"])))

    RE.subscribe(look, "event")
    RE(bp.count([SynAxis(name="motor")], 2))
    assert seen == [1, 2]


def test_a_monitor_takes_no_frame_from_the_denoiser(RE):
    """Its events come while a frame is denoised, and let no row go before it has its frame."""

    class Slow(UnitDenoiser):
        def denoise(self, *frames):
            time.sleep(0.02)
            return super().denoise(*frames)

    current, derived = Signal(name="current", value=0.0), DocumentCollector()
    router = DenoiseRouter(settings(), Slow())
    router.subscribe(derived)
    RE.subscribe(router)
    with changing(current):
        RE(bpp.monitor_during_wrapper(bp.count([replay()], 3), [current]))
    frames = [event["data"]["det_image"] for event in derived.by_name["event"]]
    np.testing.assert_array_equal(frames, FRAMES[:3] * 2)


def test_documents_of_several_threads_are_handed_on_one_at_a_time():
    inside, most, taken, all_wait = 0, 0, [], threading.Event()

    def take(name, doc):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        all_wait.wait(60)
        inside -= 1
        taken.append(doc["seq_num"])
        if doc["seq_num"] == 3:
            in_turn(name, {"seq_num": 3.5})  # what is called may cause another document
        if doc["seq_num"] == 5:
            raise ValueError("this one is not taken")

    def hand_over(number):
        with suppress(ValueError):
            in_turn("event", {"seq_num": number})

    in_turn = InTurn(take)
    threads = [threading.Thread(target=hand_over, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
        wait_for(lambda thread=thread: thread.ident in in_turn._threads)
    all_wait.set()
    for thread in threads:
        thread.join(10)
    assert most == 1
    assert taken == [0, 1, 2, 3, 3.5, 4, 5, 6, 7]
