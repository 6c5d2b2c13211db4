"""A denoiser over many runs: what it leaves behind."""

import os
from collections import Counter

import bluesky.plans as bp
import numpy as np
import psutil
import pytest
from live_path import is_whole, settings, wait_for
from process_fixtures import NOWHERE, open_node, replay

from bluesky_denoise.backup import backup_files
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import DocumentCollector

try:
    import resource
except ImportError:
    resource = None


def resources(*pids):
    """Return the memory, MB, and the number of open files of processes."""
    processes = [psutil.Process(pid) for pid in pids]
    return [(p.memory_info().rss / 1e6, p.num_fds()) for p in processes]


@pytest.mark.thorough
def test_two_hundred_runs_leave_no_memory_and_no_files_behind(RE, tmp_path):
    """Each run brings 1 MB of frames: one in ten that stayed would show."""
    counts = np.ones((2, 256, 256), np.uint16)
    det = ReplayDetector(name="det", frames=ReplayFrames(counts, 0.5), exposure_s=0.5)
    ended, taken = [], Counter()

    def raw(name, doc):
        taken[name] += 1
        assert name != "event" or np.array_equal(doc["data"]["det_image"], counts[0])

    with DenoiseProcess(settings(frames_directory=tmp_path / "denoised")) as denoise:
        denoise.subscribe(lambda name, doc: ended.append(doc["num_events"]), "stop")
        RE.subscribe(denoise)
        RE.subscribe(raw)
        measured = []
        for number in range(1, 201):
            RE(bp.count([det], 4))
            denoise.wait(60)  # so that the queue is never what is measured
            if number in (40, 200):
                measured.append(resources(os.getpid(), denoise.pid))
        assert ended == [{"denoised": 4}] * 200
        assert taken == {"start": 200, "descriptor": 200, "event": 800, "stop": 200}
        assert not denoise._open
        assert not denoise._open._raw_of
    for before, after in zip(*measured, strict=True):
        assert after[0] - before[0] < 16
        assert after[1] <= before[1]


@pytest.mark.thorough
@pytest.mark.skipif(resource is None, reason="Windows has no such limit")
def test_backups_of_more_runs_than_files_may_be_open_here_are_kept(RE, tmp_path, monkeypatch):
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    backup, (soft, hard) = tmp_path / "backup", resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        denoise = DenoiseProcess(settings(tiled_uri=NOWHERE, backup_directory=backup))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with denoise:
        RE.subscribe(denoise)
        for _ in range(80):
            RE(bp.count([replay()], 1))
        wait_for(lambda: len(backup_files(backup)) == 80, what="all backups")
    assert all(map(is_whole, backup_files(backup)))


@pytest.mark.thorough
def test_many_runs_in_tiled_leave_no_files_and_no_state_behind(RE, raw, tiled, shared):
    derived = DocumentCollector()
    token = shared.subscribe(derived)
    RE.subscribe(shared)
    RE.subscribe(lambda name, doc: open_node(tiled, doc), "start")
    measured, det = [], replay()
    for number in range(12):
        RE(bp.count([det], 1))
        if number in (4, 11):
            shared.wait(60)
            measured.append(resources(shared.pid))
    shared.unsubscribe(token)
    assert len(derived.by_name["stop"]) == 12
    assert not shared._open
    assert measured[1][0][1] <= measured[0][0][1]
