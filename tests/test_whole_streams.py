"""Which denoised stream of a run is meant, and whether it has all that it can have."""

from unittest.mock import MagicMock

import pandas as pd
import pytest

from bluesky_denoise import catalog
from bluesky_denoise.catalog import (
    FROM_ARCHIVE,
    NO_END,
    DenoisedStream,
    ended_well,
    find_stream,
    is_whole,
    is_whole_so_far,
)
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.in_tiled.stored_stream import StoredStream

DISK = "'det' could not be saved in /data: No space left on device"


def stream(exit_status="success", name="denoised", uid="a" * 8, events=3, reason="", **provenance):
    """Return a stream without its node."""
    about = {"model": "unit", "weights_sha256": "0", "version": "1", "reason": reason}
    return DenoisedStream(
        **about,
        **{"name": name, "stream": MagicMock(), "time": 1.0, "exit_status": exit_status},
        **{"num_events": events, "run_uid": uid, "provenance": provenance},
    )


@pytest.fixture
def read(monkeypatch):
    """Return a function for what the table of a stream has."""

    def read(ok=(True, True, True), reasons=("", "", "")):
        table = pd.DataFrame({"denoise_ok": list(ok), "denoise_reason": list(reasons)})
        monkeypatch.setattr(StoredStream, "read_table", lambda stored, columns=None: table)

    read()
    return read


def test_of_several_streams_the_newest_that_was_not_cut_short_is_meant(monkeypatch):
    run = MagicMock(metadata={"start": {"uid": "raw"}})
    found = [
        stream(None, "denoised_3", "abcd1111"),
        stream("fail", "denoised_2", "abcd2222"),
        stream("abort", "denoised", "beef3333"),
        stream("success", "denoised", "feed4444"),
    ]
    monkeypatch.setattr(catalog, "denoised_streams", lambda run, container: found)
    monkeypatch.setattr(catalog, "as_tiled_run", lambda run: run)
    assert find_stream(run) is found[2]
    named = {"denoised": 2, "denoised_2": 1, "feed": 3, "abcd": 0, "abcd2": 1, "beef3333": 2}
    assert {name: found.index(find_stream(run, name)) for name in named} == named
    told = r"has no '{}'; it has denoised_3 \(abcd1111\), .*, denoised \(feed4444\)\."
    for name in ("", "dark", "4444"):
        with pytest.raises(DenoiseError, match=told.format(name)):
            find_stream(run, name)
    del found[2:]
    assert find_stream(run) is found[0]
    found.clear()
    with pytest.raises(DenoiseError, match="Run raw has no denoised stream"):
        find_stream(run)


@pytest.mark.parametrize(
    ("exit_status", "reason", "raw", "well"),
    [
        (None, "", {"exit_status": "success"}, False),
        ("success", "", {"exit_status": "success"}, True),
        ("abort", "by hand", {"exit_status": "abort"}, True),
        ("fail", "no mask", {"exit_status": "success", "reason": "no mask"}, False),
        ("fail", "no mask", {"exit_status": "fail", "reason": "no beam"}, False),
        ("fail", "no beam", {"exit_status": "fail", "reason": "; no beam; "}, True),
        ("fail", "", {"exit_status": "fail", "reason": None}, True),
        ("fail", "", {}, False),
    ],
)
def test_a_stream_has_ended_well_that_ended_as_its_scan(exit_status, reason, raw, well):
    assert ended_well(exit_status, reason, raw) == well


@pytest.mark.parametrize(
    ("events", "numbers", "archive", "whole"),
    [
        (3, {"primary": 3}, False, True),
        (2, {"primary": 3}, False, False),
        (2, {"primary": 3}, True, True),  # all that Tiled has
        (4, {"primary": 3, "dark": 5}, False, True),  # a point was taken again
        (0, {"dark": 5}, False, True),
        (0, None, False, True),
    ],
)
def test_a_stream_is_whole_that_has_each_raw_event(read, events, numbers, archive, whole):
    found = stream(events=events, **{FROM_ARCHIVE: archive})
    assert is_whole(found, {"exit_status": "success", "num_events": numbers}) == whole
    assert not is_whole(stream(None, events=events), {"num_events": numbers})


@pytest.mark.parametrize(
    ("reason", "archive", "whole"),
    [
        ("the queue was full", False, False),
        ("the queue was full", True, True),
        (DISK, True, False),
        ("MemoryError: no memory", True, False),
    ],
)
def test_a_frame_lacks_that_may_be_denoised_another_time(read, reason, archive, whole):
    read((True, False, True), ("", reason, ""))
    assert is_whole(stream(**{FROM_ARCHIVE: archive}), {"num_events": {"primary": 3}}) == whole


@pytest.mark.parametrize(
    ("exit_status", "reason", "done", "whole"),
    [
        ("success", "", 3, True),
        ("success", "", 2, False),
        (None, "", 3, False),
        ("fail", f"{NO_END}; the 3 events that are there are denoised", 3, True),
        ("fail", f"{NO_END}; the 2 events that are there are denoised", 2, False),
        ("fail", "interrupted before its end", 3, False),
    ],
)
def test_of_a_run_without_an_end_a_stream_is_whole_that_has_what_there_is(
    read, monkeypatch, exit_status, reason, done, whole
):
    monkeypatch.setattr(catalog, "events_of", lambda run, found: (done, 3))
    assert is_whole_so_far(None, stream(exit_status, reason=reason)) == whole
