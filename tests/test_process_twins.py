"""Denoisers that get the same runs, as where a cell of a notebook was run again."""

import bluesky.plans as bp
from bluesky_tiled_plugins import TiledWriter
from live_path import settings
from process_fixtures import replay

from bluesky_denoise.catalog import denoised_streams
from bluesky_denoise.process import DenoiseProcess


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
