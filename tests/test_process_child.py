"""The child of the denoiser dies, and what becomes of the runs that it had."""

import os
import pickle
import re
import signal
import threading
import time

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from live_path import (
    settings,
    wait_for,
)
from process_fixtures import FRAMES, NOWHERE, finished, replay

import bluesky_denoise.process as process_module
from bluesky_denoise.backup import backup_files
from bluesky_denoise.child.open_runs import OpenRun, OpenRuns
from bluesky_denoise.errors import DenoiseError, DenoiseFailed
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.testing import DocumentCollector, assert_emitted


def test_a_child_that_is_killed_in_mid_run(RE, live, logged):
    det = replay()

    @bpp.run_decorator()
    def plan():
        for _ in range(2):
            yield from bps.trigger_and_read([det])
        wait_for(lambda: len(live.derived.by_name.get("event", [])) == 2, what="two events")
        os.kill(live.denoise.pid, signal.SIGKILL)
        for _ in range(3):
            yield from bps.trigger_and_read([det])

    before = live.denoise.pid
    (uid,) = RE(plan())
    reason = "the denoiser process died (exit -9)"
    with pytest.raises(DenoiseFailed, match=rf"as {re.escape(reason)}: {uid[:8]}\. .*catch-up"):
        live.denoise.wait(60)
    stream = live.check(uid, 2, exit_status="fail", reason=reason)
    np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:2] * 2)
    np.testing.assert_array_equal(stream["raw_seq_num"].read(), [1, 2])
    stop = live.derived.by_name["stop"][0]
    assert (stop["exit_status"], stop["reason"]) == ("fail", reason)
    assert stop["num_events"] == {"denoised": 2}
    told = f"{reason}; runs cut short: {uid[:8]}. `bluesky-denoise catch-up SETTINGS.yaml`"
    assert told in logged()
    assert live.denoise.pid != before
    assert live.raw.by_name["stop"][0]["exit_status"] == "success"

    (after,) = RE(bp.count([det], 2))
    live.check(after, 2)


def test_a_child_that_is_killed_before_all_is_in_tiled(RE, raw, tiled, shared):
    """The derived run has ended for all who watch; it is written by the next child."""
    derived = DocumentCollector()
    token = shared.subscribe(derived)
    RE.subscribe(shared)
    (uid,) = RE(bp.count([replay()], 3))
    finished(derived)
    os.kill(shared.pid, signal.SIGKILL)
    writer = TiledWriter(tiled.client, batch_size=1)
    for name, doc in raw.documents:
        writer(name, doc)
    shared.wait(60)
    shared.unsubscribe(token)
    derived.validate()
    assert_emitted(
        {k: derived.by_name[k] for k in ("start", "event", "stop")}, start=1, event=3, stop=1
    )
    stream = tiled.client[uid]["denoised"]
    assert stream.metadata["denoise"]["exit_status"] == "success"
    np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:3] * 2)


@pytest.mark.thorough
def test_a_killed_child_with_frames_inside_the_events_is_counted_right(
    RE, raw, monkeypatch, logged
):
    """And a child that dies again and again is not started for ever."""
    monkeypatch.setattr(process_module, "_MOST_RESTARTS", 1)
    derived, det = DocumentCollector(), replay()

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        wait_for(lambda: derived.by_name.get("event"), what="an event")
        os.kill(denoise.pid, signal.SIGKILL)
        yield from bps.trigger_and_read([det])

    with DenoiseProcess(settings()) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(plan())
        finished(derived)
        derived.validate()
        assert derived.by_name["stop"][0]["num_events"] == {"denoised": 1}
        with pytest.raises(DenoiseFailed):
            denoise.wait(60)
        wait_for(lambda: denoise._child_ready, what="the next child")
        os.kill(denoise.pid, signal.SIGKILL)
        wait_for(lambda: "Runs go on undenoised" in logged(), what="the end")
        denoise.wait(1)
        (uid,) = RE(bp.count([det], 2))
        with pytest.raises(DenoiseFailed, match=rf"did so too often .*: {uid[:8]}\."):
            denoise.wait(1)
        denoise.wait(1)  # it is told once
    raw.validate()
    assert_emitted(raw.by_name, start=2, descriptor=2, event=4, stop=2)


def test_a_run_of_which_all_had_come_when_its_child_died_keeps_its_end():
    runs = OpenRuns(frames_in_files=True)
    runs["raw"] = run = OpenRun({"uid": "raw", "time": 1.0})
    derived = compose_run(metadata={"original_run_uid": "raw"})
    documents = [("start", derived.start_doc), ("stop", derived.compose_stop())]
    for name, doc in documents:
        runs.follow(name, doc)
    assert runs.end_of(run, {}, "the denoiser process died") == (documents, [])


CONNECT = """
import json, os, sys
from multiprocessing.connection import Client
Client(json.loads(sys.argv[1]), authkey=bytes.fromhex(sys.stdin.readline()))
"""


@pytest.mark.parametrize("code", ["import os", CONNECT])
def test_a_child_that_dies_as_it_starts_is_told_of_and_leaves_no_thread(monkeypatch, code):
    monkeypatch.setattr("bluesky_denoise.child.connection._START", f"{code}\nos._exit(3)")
    before = set(threading.enumerate())
    with pytest.raises(DenoiseError, match=r"did not start|died as it started") as caught:
        DenoiseProcess(settings())
    assert "(exit 3)" in str(caught.value)
    wait_for(lambda: set(threading.enumerate()) <= before, what="the end of the thread")


def test_runs_that_wait_as_the_last_child_dies_are_named(RE, idle_child, monkeypatch):
    monkeypatch.setattr(process_module, "_MOST_RESTARTS", 1)
    with DenoiseProcess(settings()) as denoise:
        denoise._restarts.append(time.monotonic())
        RE.subscribe(denoise)
        os.kill(denoise.pid, signal.SIGSTOP)
        uids = [RE(bp.count([replay()], 1))[0] for _ in range(3)]
        os.kill(denoise.pid, signal.SIGKILL)
        with pytest.raises(DenoiseFailed) as caught:
            denoise.wait(60)
        assert all(uid[:8] in str(caught.value) for uid in uids)


def test_a_child_that_cannot_be_started_again_is_not_said_to_die_often(
    RE, idle_child, monkeypatch, logged
):
    def no_memory(*args):
        raise OSError("Cannot allocate memory")

    with DenoiseProcess(settings()) as denoise:
        RE.subscribe(denoise)
        monkeypatch.setattr(process_module, "Child", no_memory)
        os.kill(denoise.pid, signal.SIGKILL)
        wait_for(lambda: "Runs go on undenoised" in logged(), what="the end")
        wait_for(lambda: denoise.closed, what="the end")
        (uid,) = RE(bp.count([replay()], 1))
        reason = r"could not be started again \(OSError: Cannot allocate memory\)"
        with pytest.raises(DenoiseFailed, match=rf"died .*, and {reason} .*: {uid[:8]}\."):
            denoise.wait(1)


@pytest.mark.thorough
def test_a_run_whose_child_died_goes_once_to_the_next_but_one_if_the_next_dies_of_it(
    RE, monkeypatch
):
    sent, send = [], process_module.Child.send

    def send_to_one_that_has_died(child, message):
        if message[0] == "abandoned":
            sent.append(child.pid)
            if len(sent) == 1:
                os.kill(child.pid, signal.SIGKILL)
                raise BrokenPipeError
        send(child, message)

    monkeypatch.setattr(process_module.Child, "send", send_to_one_that_has_died)
    with DenoiseProcess(settings()) as denoise:
        RE.subscribe(denoise)

        @bpp.run_decorator()
        def plan():
            yield from bps.trigger_and_read([replay()])
            wait_for(lambda: all(run.sent for run in denoise._open.values()), what="the start")
            os.kill(denoise.pid, signal.SIGKILL)

        RE(plan())
        with pytest.raises(DenoiseFailed):
            denoise.wait(60)
    assert len(sent) == len(set(sent)) == 2


@pytest.mark.thorough
def test_results_that_cannot_be_read_cost_their_run_alone(RE, monkeypatch, logged):
    derived, receive, broken = DocumentCollector(), process_module.Child.receive, []

    def receive_all_but_the_first(child):
        kind, content = receive(child)
        if kind == "ready" and content and not broken:
            broken.append(content)
            raise pickle.UnpicklingError("no such class")
        return kind, content

    monkeypatch.setattr(process_module.Child, "receive", receive_all_but_the_first)
    with DenoiseProcess(settings()) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        (lost,) = RE(bp.count([replay()], 1))
        with pytest.raises(DenoiseFailed, match=f"died .*: {lost[:8]}"):
            denoise.wait(60)
        RE(bp.count([replay()], 2))
        denoise.wait(60)
    assert "What the denoiser sent cannot be read" in logged()
    assert [doc["exit_status"] for doc in derived.by_name["stop"]][-1] == "success"
    assert derived.by_name["stop"][-1]["num_events"] == {"denoised": 2}


def test_a_child_that_cannot_go_on_ends_its_runs_and_says_why(RE, live, logged):
    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([replay()])
        wait_for(lambda: live.derived.by_name.get("event"), what="an event")
        live.denoise._child._connection.send_bytes(b"what nobody can read")
        finished(live.derived)

    (uid,) = RE(plan())
    reason = "the denoiser failed (UnpicklingError: invalid load key, 'w'.)"
    live.check(uid, 1, exit_status="fail", reason=reason)
    assert "The denoiser cannot go on" in logged()


@pytest.mark.thorough
@pytest.mark.parametrize("with_an_event", [True, False])
def test_a_run_whose_child_died_ends_once_however_many_die_after(
    RE, tmp_path, gate, with_an_event, monkeypatch
):
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    derived, det = DocumentCollector(), replay()
    options = settings(
        model="child_denoisers:Gated", tiled_uri=NOWHERE, backup_directory=tmp_path / "backup"
    )
    if with_an_event:
        gate.touch()
        options = options.model_copy(update={"frames_directory": tmp_path / "denoised"})

    def kill():
        before = denoise.pid
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: denoise.pid != before and denoise._child_ready, what="the next child")

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        if with_an_event:
            wait_for(lambda: derived.by_name.get("event"), what="an event")
        else:
            wait_for(lambda: all(run.sent for run in denoise._open.values()), what="the start")
        kill()
        yield from bps.trigger_and_read([det])

    with DenoiseProcess(options) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(plan())
        kill()
    derived.validate()
    assert len(derived.by_name["start"]) == len(derived.by_name["stop"]) == 1
    assert len(derived.by_name.get("event", [])) == with_an_event
    (path,) = backup_files(options.backup_path)
    assert path.stem == derived.by_name["start"][0]["uid"]
