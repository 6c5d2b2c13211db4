"""Denoisers and writers of raw runs that are there twice, as where a cell was run again."""

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import settings
from ophyd.sim import motor
from process_fixtures import replay
from test_as_typed import DETECTORS
from tiers import thorough

from bluesky_denoise.catalog import denoised_streams
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.raw_runs import raw_writer


def test_a_denoiser_that_another_one_is_beside_says_so_and_closes_it(RE, tiled, tmp_path, logged):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    options = settings(tiled_uri=tiled.uri, frames_directory=tmp_path)
    left = DenoiseProcess(options)
    with DenoiseProcess(options) as denoise:
        RE.subscribe(left)
        RE.subscribe(denoise)
        (uid,) = RE(bp.count([replay()], 2))
        RE(bp.count([replay()], 2))
        told = f"Run {uid:.8} is denoised by {left!r}, too, into a stream of its own"
        assert logged().count(told) == logged().count("close_others") == 1
        for each in (left, denoise):
            each.wait(60)
        assert len(denoised_streams(tiled.client[uid])) == 2
        denoise.close_others()
        assert left.closed
        assert not denoise.closed
        (uid,) = RE(bp.count([replay()], 2))
        denoise.wait(60)
        assert len(denoised_streams(tiled.client[uid])) == 1


@pytest.mark.thorough
def test_denoisers_of_a_detector_each_are_meant(RE, logged):
    with (
        DenoiseProcess(settings(data_keys=["det"])) as one,
        DenoiseProcess(settings(data_keys=["other"])) as two,
        DenoiseProcess(settings(data_keys=["third", "other"])) as beside_two,
    ):
        for each in (one, two, beside_two):
            RE.subscribe(each)
        RE(bp.count([replay(), replay("other"), replay("third")], 1))
        for each in (one, two, beside_two):
            each.wait(60)
        assert logged().count("is denoised by") == 1
        assert f"is denoised by {two!r}, too" in logged()
        beside_two.close_others()
        assert [one.closed, two.closed, beside_two.closed] == [False, True, False]


@bpp.set_run_key_decorator("outer")
@bpp.run_decorator()
def around_another(det):
    yield from bps.trigger_and_read([motor])
    yield from bpp.set_run_key_wrapper(bp.count([det], 2), "inner")
    yield from bps.trigger_and_read([motor])


@pytest.mark.parametrize(
    "kind", ["AreaDetectorReplay", thorough("ReplayDetector"), thorough("AsyncReplayDetector")]
)
def test_a_raw_writer_that_another_one_is_beside_leaves_runs_alone(
    RE, tiled, tmp_path, logged, kind
):
    det, client = DETECTORS[kind](tmp_path), tiled.client
    first, again = (raw_writer(client, tmp_path / name) for name in ("first", "again"))
    token = RE.subscribe(first)
    RE.subscribe(again)
    outer, inner = RE(around_another(det))
    told = f"Run {outer:.8} is written to {client.uri} by another raw_writer"
    assert logged().count(told) == logged().count("raw_writer") == 1
    RE.unsubscribe(token)
    (alone,) = RE(bp.count([det], 3))

    (key,) = (key for key in client[inner]["primary"] if client[inner]["primary"][key].ndim > 2)
    for uid, points in ((inner, 2), (alone, 3)):
        assert len(client[uid]["primary"][key].read()) == points
    assert len(client[outer]["primary"]["motor"].read()) == 2
    for uid in (outer, inner, alone):
        assert client[uid].stop["exit_status"] == "success"
    assert not list(tmp_path.glob("*/*.jsonl"))


def test_a_raw_writer_leaves_runs_of_other_containers_to_none(RE, tiled, tmp_path, logged):
    containers = [tiled.client.create_container() for _ in range(2)]
    for i, container in enumerate(containers):
        RE.subscribe(raw_writer(container, tmp_path / str(i)))
    (uid,) = RE(bp.count([motor], 2))
    for container in containers:
        assert container[uid].stop["num_events"] == {"primary": 2}
    assert "raw_writer" not in logged()


def test_a_run_that_is_told_again_later_is_written_by_whom_it_is_told(RE, raw, tiled, tmp_path):
    # Both stay alive: one that is gone is no writer of anything.
    first, second = (raw_writer(tiled.client, tmp_path / name) for name in ("first", "second"))
    (uid,) = RE(bp.count([motor], 2), first)
    tiled.client.delete_contents(uid, recursive=True, external_only=False)
    for name, doc in raw.documents:
        second(name, doc)
    assert tiled.client[uid].stop["num_events"] == {"primary": 2}
