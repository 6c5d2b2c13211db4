"""Streams of more columns than bluesky's `TiledWriter` puts into one table."""

import re

import bluesky.plans as bp
import h5py
import numpy as np
import pyarrow as pa
import pytest
from bluesky_tiled_plugins.writing import tiled_writer
from live_path import UNIT, paused_scan
from ophyd.sim import SynAxis
from tiers import thorough
from tiled_fixtures import FRAMES

from bluesky_denoise import DenoiseSettings, denoised_streams, reprocess
from bluesky_denoise.catalog import events_of, frames_not_ok, is_complete
from bluesky_denoise.errors import TiledUnavailable
from bluesky_denoise.in_tiled.archive import ArchivedStream, archived_documents
from bluesky_denoise.in_tiled.layouts import connect, open_writer
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.reprocessing import StoredResults, has_result
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser
from bluesky_denoise.tiled_sink import TiledSink

SPOT = {"rows": (4, 12), "cols": (4, 14), "background_px": 2}


@pytest.fixture
def most(monkeypatch):
    """Return a function for the most columns of a table, so that it is quick to fill several."""
    return lambda columns: monkeypatch.setattr(tiled_writer, "MAX_TABLE_COLUMNS", columns)


@pytest.fixture
def settings(tiled, tmp_path):
    """Return settings for derived runs of their own."""
    return DenoiseSettings(
        model=UNIT,
        tiled_uri=tiled.uri,
        tiled_layout="run",
        frames_directory=tmp_path / "denoised",
        rois={"spot": SPOT},
    )


@pytest.fixture
def run(RE, tiled, written, det, motor, most):
    """Return a run of three points, whose table is split."""
    most(8)
    (uid,) = RE(bp.scan([det], motor, -1, 1, 3, md={"sample": "split"}))
    most(32)
    return tiled.client[uid]


@pytest.mark.thorough
@pytest.mark.parametrize(("others", "parts"), [(0, 1), (260, 2)])
def test_readings_and_exposures_are_found_in_all_tables_of_a_raw_stream(
    RE, tiled, written, det, others, parts
):
    det.cam.kind = det.cam.acquire_time.kind = "normal"
    moved = [SynAxis(name=f"m{i}") for i in range(others)]  # of two readings each
    (uid,) = RE(bp.list_scan([det, *moved], det.cam.acquire_time, [0.5, 1.0]))
    stream = tiled.client[uid]["primary"].base
    assert len(StoredStream(stream).parts) == parts
    events = list(ArchivedStream(tiled.client[uid], "primary").events())
    assert [event["seq_num"] for event in events] == [1, 2]
    assert [event["data"]["det_cam_acquire_time"] for event in events] == [0.5, 1.0]
    keys = stream.metadata["data_keys"].keys()
    assert all(event["data"].keys() == event["timestamps"].keys() == keys for event in events)


def skipped(run, settings, number):
    """Denoise a run as beside a scan that was too fast for one of its frames."""
    router, sink = DenoiseRouter(settings, UnitDenoiser()), TiledSink(settings)
    router.subscribe(sink)
    for name, doc in archived_documents(run):
        lost = name == "event" and doc["seq_num"] == number
        router.accept(name, doc, skipped="the queue was full" if lost else "")
        router.flush()
    assert sink.close() == []
    return router.provenance


@pytest.mark.thorough
def test_frames_that_lack_are_told_and_the_others_are_taken_over(run, settings, command):
    provenance, uid = skipped(run, settings, 2), run.metadata["start"]["uid"]
    (found,) = denoised_streams(run)
    assert len(StoredStream(found.stream).parts) == 2
    assert (frames_not_ok(found), events_of(run, found)) == (1, (3, 3))
    assert not is_complete(run)
    assert has_result(run, provenance) == ""
    listed = command("runs", "--sample", "split", "--flagged")  # other tests have left many more
    assert re.search(rf"{uid[:8]} .* denoised +│ unit +│ 3 +│ 1 +│", listed)
    known = StoredResults(run, provenance)
    assert known.seq_nums("primary") == {1, 3}
    reprocess(run, settings, known=known)
    new, old = (StoredStream(found.stream).read_table() for found in denoised_streams(run))
    assert list(new["denoise_ok"]) == [True] * 3
    np.testing.assert_array_equal(new["spot_intensity"][::2], old["spot_intensity"][::2])
    assert is_complete(run)
    assert has_result(run, provenance) == "denoised"


def test_a_stream_of_several_tables_is_shown_and_exported(run, settings, command, tmp_path):
    reprocess(run, settings)
    uid = run.metadata["start"]["uid"]
    shown = command("show", uid, "--event", "3", "--picture", "event.png")
    for told in ("frames not ok: 0", "picture: event.png"):
        assert told in shown
    for key in ("motor", "spot_intensity", "raw_seq_num"):
        assert re.search(rf"{key} +│ \d", shown)
    command("export", uid)
    (found,) = denoised_streams(run)
    with h5py.File(tmp_path / f"{uid[:8]}_denoised.nxs") as file:
        np.testing.assert_array_equal(file["entry/det_image/counts"], FRAMES[:3])
        np.testing.assert_allclose(file["entry/table/motor"], [-1, 0, 1])
        scalars = set(found.stream.base.metadata["data_keys"]) - {"det_image"}
        assert set(file["entry/table"]) == scalars | {"time"}


@pytest.mark.thorough
def test_a_point_that_was_taken_again_is_beside_its_own_raw_frame(
    RE, tiled, written, det, motor, most, settings, command, tmp_path
):
    most(8)
    (uid,) = paused_scan(RE, [det, motor])
    most(32)
    run = tiled.client[uid]
    reprocess(run, settings)
    table = StoredStream(denoised_streams(run)[0].stream).read_table()
    assert list(table["raw_seq_num"]) == [1, 2, 2, 3]
    assert StoredResults(run, denoised_streams(run)[0].provenance).seq_nums("primary") == {1, 3}
    command("export", uid)
    with h5py.File(tmp_path / f"{uid[:8]}_denoised.nxs") as file:
        counts, rate = file["entry/det_image/counts"][:], file["entry/det_image_denoised/rate"][:]
    np.testing.assert_array_equal(rate, counts * np.float32(2))
    assert len(np.unique(counts, axis=0)) == 4


@pytest.mark.parametrize("twice", [0, thorough(1)])
def test_a_row_that_is_twice_in_one_of_the_tables_is_written_anew(run, settings, twice):
    router, derived = DenoiseRouter(settings, UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    for name, doc in archived_documents(run):
        router(name, doc)
    client = connect(settings)
    send = client.context.http_client.send
    appends = iter(range(2))

    def send_again(request, **kwargs):
        is_row = request.method == "PATCH" and "/table/" in request.url.path
        if is_row and next(appends, None) == twice:
            send(request, **kwargs)
        return send(request, **kwargs)

    with client.context:
        client.context.http_client.send = send_again
        with pytest.raises(TiledUnavailable, match=r"1 of 4 rows of 'denoised' .* twice"):
            open_writer(client, settings).write(derived.documents)
        open_writer(client, settings).write(derived.documents)
    assert len(StoredStream(denoised_streams(run)[0].stream).read_table()) == 3


@pytest.mark.thorough
def test_rows_that_one_table_lacks_are_not_read(run, caplog):
    stream = run["primary"].base
    other = next(part for part in StoredStream(stream).parts if "seq_num" not in part.columns)
    other.append_partition(0, pa.Table.from_pandas(other.read()[:1], preserve_index=False))
    assert list(StoredStream(stream).read_table()["seq_num"]) == [1, 2, 3]
    assert "primary have from 3 to 4 rows; the first 3 are read" in caplog.text


@pytest.fixture
def requests(tiled, monkeypatch):
    """Return the addresses of requests, as they are made."""
    asked = []
    http = tiled.client.context.http_client
    send = http.send

    def note(request, **kwargs):
        asked.append(request.url)
        return send(request, **kwargs)

    monkeypatch.setattr(http, "send", note)
    return asked


@pytest.mark.thorough
def test_columns_are_asked_of_the_tables_that_have_them(run, requests):
    stream = run["primary"].base
    of_parts = [part.columns for part in StoredStream(stream).parts]
    assert len(of_parts) == 2
    wanted = [of_parts[1][0], of_parts[0][0], of_parts[0][1]]
    requests.clear()
    assert list(StoredStream(stream).read_table(wanted[:1])) == wanted[:1]
    assert len(requests) == 2  # what there is, and one table
    requests.clear()
    assert list(StoredStream(stream).read_table(wanted)) == wanted
    assert len(requests) == 3


@pytest.mark.thorough
def test_one_table_is_read_in_two_requests(RE, tiled, written, det, requests):
    (uid,) = RE(bp.count([det], 2))
    stream = tiled.client[uid]["primary"].base
    requests.clear()
    assert list(StoredStream(stream).read_table(["seq_num"])) == ["seq_num"]
    assert len(requests) == 2


@pytest.mark.thorough
def test_a_detector_may_be_called_as_a_table_is(RE, tiled, written, det, settings):
    det.image.name = "internal_0"
    (uid,) = RE(bp.count([det], 2))
    run = tiled.client[uid]
    reprocess(run, settings)
    (found,) = denoised_streams(run)
    np.testing.assert_array_equal(found.stream["internal_0"].read(), FRAMES[:2] * 2)
    assert is_complete(run)
