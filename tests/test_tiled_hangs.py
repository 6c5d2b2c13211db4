"""A Tiled server that takes requests and does not answer, and one run that it never takes."""

import signal
import threading

import bluesky.plans as bp
import httpx
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import is_whole, python_path, settings, wait_for
from process_fixtures import FRAMES, replay
from tiled.client import from_uri

from bluesky_denoise import DenoiseProcess
from bluesky_denoise.backup import BackupFile, backup_files, read_backup
from bluesky_denoise.errors import TiledUnavailable
from bluesky_denoise.in_tiled.layouts import connect, is_away
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser
from bluesky_denoise.tiled_sink import TiledSink, replay_backup


def test_a_tiled_that_hangs_holds_up_neither_scans_nor_results_and_all_comes_when_it_is_back(
    RE, raw, elsewhere, tmp_path, monkeypatch, logged
):
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    options = settings(
        model="child_denoisers:Hasty", tiled_uri=elsewhere.uri, backup_directory=tmp_path / "backup"
    )
    derived = DocumentCollector()
    with DenoiseProcess(options, node_timeout_s=0.5) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        elsewhere.process.send_signal(signal.SIGSTOP)
        try:
            uids = RE(bp.count([replay()], 2))
            with pytest.raises(TiledUnavailable, match=r"Tiled does not answer \(ReadTimeout\)\."):
                denoise.wait(60)
            uids += RE(bp.count([replay()], 2))
            wait_for(lambda: uids[1] in denoise._untold._refused, what="word of the second run")
            assert len(derived.by_name["stop"]) == 2
            kept = backup_files(tmp_path / "backup")
            assert [is_whole(path) for path in kept] == [True, True]
        finally:
            elsewhere.process.send_signal(signal.SIGCONT)
        client = from_uri(elsewhere.uri)
        writer = TiledWriter(client, batch_size=1)
        for name, doc in raw.documents:
            writer(name, doc)
        wait_for(lambda: not backup_files(tmp_path / "backup"), what="all that was kept")
        wait_for(lambda: not denoise._untold._refused, what="word that it is there")
        denoise.wait(1)
    with client.context:
        for uid in uids:
            stream = client[uid]["denoised"]
            assert list(stream["raw_seq_num"].read()) == [1, 2]
            np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:2] * 2)
    assert logged().count("cannot be written to Tiled") == 2


@pytest.fixture
def derived(RE, raw, tiled, tmp_path):
    """Return the documents of two derived runs, whose raw runs are in Tiled."""
    router, derived = DenoiseRouter(settings(), UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    for callback in (TiledWriter(tiled.client, batch_size=1), router):
        RE.subscribe(callback)
    runs = []
    for _ in range(2):
        before = len(derived.documents)
        RE(bp.count([replay()], 2))
        runs.append(derived.documents[before:])
    return runs


@pytest.mark.thorough
@pytest.mark.parametrize("layout", ["stream", "run"])
def test_runs_that_are_in_tiled_in_part_go_on_when_the_connection_was_lost(
    derived, tiled, tmp_path, layout
):
    def lost(request, **kwargs):
        raise httpx.ConnectError("the server is away for a moment", request=request)

    options = settings(
        tiled_uri=tiled.uri, tiled_layout=layout, backup_directory=tmp_path / "backup"
    )
    written = []
    sink = TiledSink(options, written.append)
    begun = [name for name, _ in derived[0]].index("event") + 1
    for documents in derived:
        for name, doc in documents[:begun]:
            sink(name, doc)
    runs = wait_for(lambda: len(sink._runs) == 2 and [*sink._runs.values()], what="both runs")
    wait_for(lambda: not any(run.to_write for run in runs), what="what has come of them")
    sink._client.context.http_client.send = lost
    for number, documents in enumerate(derived, 1):  # the second is idle when it is lost
        for name, doc in documents[begun:]:
            sink(name, doc)
        wait_for(lambda number=number: len(written) == number, what="all of a run")
    assert sink.close(30) == []
    client = connect(options)
    with client.context:
        for documents in derived:
            start = documents[0][1]
            stream = client[start["uid" if layout == "run" else "original_run_uid"]]["denoised"]
            assert list(stream["raw_seq_num"].read()) == [1, 2]
            np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:2] * 2)


def out_of_order(monkeypatch, uid, answer):
    """Let requests that concern one run have another answer than Tiled's, or none."""

    def connected(options):
        client = connect(options)
        send = client.context.http_client.send

        def send_some(request, **kwargs):
            if uid in request.url.path:
                if answer is None:
                    raise httpx.ReadTimeout("timed out", request=request)
                return httpx.Response(answer, request=request)
            return send(request, **kwargs)

        client.context.http_client.send = send_some
        return client

    monkeypatch.setattr("bluesky_denoise.tiled_sink.connect", connected)


@pytest.mark.thorough
@pytest.mark.parametrize("answer", [500, None], ids=["500", "no answer"])
def test_a_run_that_tiled_never_takes_is_told_once_and_holds_up_no_other(
    tiled, derived, tmp_path, monkeypatch, answer
):
    bad, good = derived
    bad_uid, good_uid = (run[0][1]["original_run_uid"] for run in derived)
    out_of_order(monkeypatch, bad_uid, answer)
    options = settings(
        tiled_uri=tiled.uri, backup_directory=tmp_path / "backup", node_timeout_s=0.2
    )
    written, told = [], []
    sink = TiledSink(options, written.append, lambda *kept: told.append(kept))
    for name, doc in bad:
        sink(name, doc)
    wait_for(lambda: backup_files(options.backup_path), what="the backup")
    for name, doc in good:
        sink(name, doc)
    wait_for(lambda: written == [good_uid], what="the other run")
    wait_for(lambda: told, what="word of the first")
    pauses = {run.pause_s for run in sink._runs.values()}
    wait_for(lambda: pauses.isdisjoint(r.pause_s for r in sink._runs.values()), what="an attempt")
    (path,) = sink.close(30)
    ((uid, reason),) = told
    assert uid == bad_uid
    assert ("Server error '500" in reason) is (answer == 500)
    assert ("(ReadTimeout)" in reason) is (answer is None)
    assert reason.endswith(". It is tried again until the denoiser is closed")
    assert written == [good_uid]
    assert list(read_backup(path))[-1][0] == "stop"


@pytest.mark.thorough
def test_a_replay_goes_on_past_runs_that_tiled_never_takes_and_damaged_files(
    tiled, derived, tmp_path, monkeypatch
):
    bad, good = derived
    out_of_order(monkeypatch, bad[0][1]["original_run_uid"], 500)
    options = settings(tiled_uri=tiled.uri, backup_directory=tmp_path / "backup")
    for name, documents in (("bad", bad), ("good", good)):
        file = BackupFile(options.backup_path, name)
        file.append(documents)
        file.release()
    (options.backup_path / "damaged.jsonl").write_text("{\n")
    with pytest.raises(TiledUnavailable) as caught:
        replay_backup(options)
    assert str(caught.value).startswith(f"1 runs were written, 2 are still in {tmp_path}")
    assert "bad.jsonl: HTTPStatusError: Server error '500" in str(caught.value)
    assert "damaged.jsonl: JSONDecodeError" in str(caught.value)
    assert {path.stem for path in backup_files(options.backup_path)} == {"bad", "damaged"}
    assert "denoised" in tiled.client[good[0][1]["original_run_uid"]]


@pytest.mark.parametrize(
    ("error", "away"),
    [(httpx.ConnectError("refused"), True), (httpx.ReadTimeout("timed out"), True)]
    + [(status, status in (502, 503, 504)) for status in (404, 500, 502, 503, 504)]
    + [(KeyError("stream"), False)],
)
def test_a_server_that_is_away_is_told_from_one_that_has_trouble_with_a_run(error, away):
    if isinstance(error, int):
        response = httpx.Response(error, request=httpx.Request("POST", "http://tiled/api/v1"))
        error = httpx.HTTPStatusError("", request=response.request, response=response)
    assert is_away(error) is away


def test_a_close_that_was_interrupted_keeps_all_and_goes_on_when_it_is_called_again(
    derived, tmp_path, monkeypatch, ctrl_c
):
    documents, begun, answered = derived[0], threading.Event(), threading.Event()

    class Hanging:
        def write(self, documents):
            begun.set()
            answered.wait(60)

    monkeypatch.setattr("bluesky_denoise.tiled_sink.connect", lambda options: None)
    monkeypatch.setattr("bluesky_denoise.tiled_sink.open_writer", lambda *of: Hanging())
    sink = TiledSink(settings(backup_directory=tmp_path / "backup"))
    for name, doc in documents:
        sink(name, doc)
    assert begun.wait(60)
    ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        sink.close()
    (path,) = backup_files(tmp_path / "backup")
    assert [doc["uid"] for _, doc in read_backup(path)] == [doc["uid"] for _, doc in documents]
    threading.Timer(0.1, answered.set).start()
    assert sink.close() == [path]
    assert answered.is_set()
    sink._thread.join(60)
    assert not sink._thread.is_alive()


@pytest.mark.thorough
@pytest.mark.parametrize("answer", [None, httpx.ReadTimeout("timed out")], ids=["taken", "not"])
def test_what_a_hanging_request_manages_at_the_end_changes_no_document_of_the_backup(
    derived, tmp_path, monkeypatch, answer
):
    """The writer has the first documents only, when the rest is backed up and it goes on."""
    documents, append = derived[0], BackupFile.append
    begun, answered = threading.Event(), threading.Event()

    class Hanging:
        def write(self, documents):
            begun.set()
            answered.wait(60)
            if answer:
                raise answer

    def append_while_it_goes_on(file, items):
        answered.set()
        threading.Event().wait(0.2)
        append(file, items)

    monkeypatch.setattr("bluesky_denoise.tiled_sink.connect", lambda options: None)
    monkeypatch.setattr("bluesky_denoise.tiled_sink.open_writer", lambda *of: Hanging())
    monkeypatch.setattr(BackupFile, "append", append_while_it_goes_on)
    sink = TiledSink(settings(backup_directory=tmp_path / "backup"))
    for name, doc in documents[:3]:
        sink(name, doc)
    assert begun.wait(60)
    for name, doc in documents[3:]:
        sink(name, doc)
    (path,) = sink.close(0.1)
    sink._thread.join(60)
    assert not sink._thread.is_alive()
    assert [doc["uid"] for _, doc in read_backup(path)] == [doc["uid"] for _, doc in documents]


def test_frames_that_come_while_a_request_hangs_take_no_more_memory_than_there_is(
    tiled, derived, tmp_path, monkeypatch, logged
):
    asked, answered, written = threading.Event(), threading.Event(), []

    def connected(options):
        client = connect(options)
        send = client.context.http_client.send

        def send_late(request, **kwargs):
            if request.method != "GET":
                asked.set()
                answered.wait(60)
            return send(request, **kwargs)

        client.context.http_client.send = send_late
        return client

    monkeypatch.setattr("bluesky_denoise.tiled_sink.connect", connected)
    options = settings(tiled_uri=tiled.uri, backup_directory=tmp_path / "backup")
    sink = TiledSink(options, written.append)
    first, second = (i for i, (name, _) in enumerate(derived[0]) if name == "event")
    for name, doc in derived[0][:first]:
        sink(name, doc)
    assert asked.wait(60)
    frame_bytes = 4 * FRAMES[0].size
    monkeypatch.setattr("bluesky_denoise.tiled_sink._MOST_BYTES", 2 * frame_bytes - 1)
    for name, doc in derived[0][first:second]:
        sink(name, doc)
    assert backup_files(options.backup_path) == []
    for name, doc in derived[0][second:]:
        sink(name, doc)
    (path,) = backup_files(options.backup_path)
    assert [name for name, _ in read_backup(path)].count("event") == 2
    answered.set()
    wait_for(lambda: written, what="the run")
    assert sink.close(30) == []
    stream = tiled.client[written[0]]["denoised"]
    np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:2] * 2)
    np.testing.assert_array_equal(stream["raw_seq_num"].read(), [1, 2])
    assert "(Tiled takes more time than there is memory for). Its documents are kept" in logged()
