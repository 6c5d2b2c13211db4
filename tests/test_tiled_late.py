"""A raw run that is late or never comes, and what is kept for a replay."""

import re

import bluesky.plans as bp
import httpx
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import SHAPE, free_port, is_whole, python_path, settings, wait_for
from ophyd import Signal
from tiled.client.container import Container
from tiled_fixtures import FRAMES, INLINE, Live, check_documents, in_tiled

from bluesky_denoise import DenoiseProcess
from bluesky_denoise.backup import BackupFile, backup_files
from bluesky_denoise.errors import DenoiseError, TiledUnavailable
from bluesky_denoise.in_tiled.layouts import connect
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser
from bluesky_denoise.tiled_sink import TiledSink, replay_backup


def test_a_raw_run_that_is_not_there_yet_is_waited_for(RE, raw, tiled, into_tiled, det):
    one = into_tiled()
    (uid,) = RE(bp.count([det], 2))
    assert uid not in tiled.client
    assert one.written == []
    writer = TiledWriter(tiled.client, batch_size=1)
    for name, doc in raw.documents:
        writer(name, doc)
    one.wait(uid)
    check_documents(in_tiled(tiled, uid), {"primary": 2, "denoised": 2})


def test_a_derived_run_that_waits_in_memory_is_kept_when_the_denoiser_is_closed(
    RE, tiled, det, tmp_path
):
    backup = tmp_path / "backup"
    one = Live(tiled_uri=tiled.uri, backup_directory=backup, node_timeout_s=1000)
    RE.subscribe(one.router)
    RE(bp.count([det], 1))
    (run,) = wait_for(lambda: [r for r in one.sink._runs.values() if r.stopped], what="the run")
    assert backup_files(backup) == []
    run.since -= 100  # or the raw run is waited for some seconds more
    (path,) = one.sink.close(30)
    assert is_whole(path)


def test_a_raw_run_that_never_comes_is_kept_and_can_be_replayed(
    RE, raw, tiled, det, tmp_path, logged
):
    one = Live(
        tiled_uri=tiled.uri,
        frames_directory=tmp_path / "denoised",
        backup_directory=tmp_path / "backup",
        node_timeout_s=0.3,
    )
    RE.subscribe(one.router)
    (uid,) = RE(bp.count([det], 2))
    (path,) = wait_for(lambda: backup_files(tmp_path / "backup"), what="the backup")
    wait_for(lambda: is_whole(path), what="all documents")
    assert [run._waiting for run in one.sink._runs.values()] == [[]]  # in the file, not in memory
    assert replay_backup(one.settings) == []
    assert f"Backup {path} is left alone: the session that writes it still runs" in logged()
    assert is_whole(path)
    assert one.sink.close(30) == [path]
    assert one.written == []
    assert re.search(rf"Run {uid} is not in Tiled at .*; is a TiledWriter subscribed to", logged())
    writer = TiledWriter(tiled.client, batch_size=1)
    for name, doc in raw.documents:
        writer(name, doc)
    assert replay_backup(one.settings) == [uid]
    run = in_tiled(tiled, uid)
    np.testing.assert_array_equal(run["denoised"]["det_image"].read(), FRAMES[:2] * 2)
    check_documents(run, {"primary": 2, "denoised": 2})
    assert backup_files(tmp_path / "backup") == []
    assert replay_backup(one.settings) == []


def test_a_raw_run_that_does_not_come_is_told_once_and_written_when_it_does(
    RE, raw, tiled, det, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", python_path())
    options = settings(
        tiled_uri=tiled.uri, backup_directory=tmp_path / "backup", node_timeout_s=0.3
    )
    with DenoiseProcess(options) as denoise:
        RE.subscribe(denoise)
        (uid,) = RE(bp.count([det], 2))
        with pytest.raises(TiledUnavailable, match=rf"{uid:.8}\. Run {uid} is not in Tiled at"):
            denoise.wait(60)
        late = list(raw.documents)
        token = RE.subscribe(TiledWriter(tiled.client, batch_size=1))
        (other,) = RE(bp.count([det], 2))
        denoise.wait(60)
        check_documents(in_tiled(tiled, other), {"primary": 2, "denoised": 2})
        RE.unsubscribe(token)
        writer = TiledWriter(tiled.client, batch_size=1)
        for name, doc in late:
            writer(name, doc)
        wait_for(lambda: "denoised" in in_tiled(tiled, uid), what="the denoised stream")
        wait_for(lambda: not backup_files(tmp_path / "backup"), what="the end of the backup")
    check_documents(in_tiled(tiled, uid), {"primary": 2, "denoised": 2})


def test_where_nothing_answers_one_attempt_speaks_for_all_runs(RE, det, tmp_path, monkeypatch):
    attempts = []

    def attempt(options):
        attempts.append(options)
        return connect(options)

    monkeypatch.setattr("bluesky_denoise.tiled_sink.connect", attempt)
    backup = tmp_path / "backup"
    one = Live(tiled_uri=f"http://127.0.0.1:{free_port()}/api/v1", backup_directory=backup)
    RE.subscribe(one.router)
    for _ in range(20):
        RE(bp.count([det], 1))
    wait_for(lambda: len(backup_files(backup)) == 20, what="all backups")
    assert len(attempts) < 10
    wait_for(lambda: all(map(is_whole, backup_files(backup))), what="all documents")
    assert len(one.sink.close(30)) == 20


def test_frames_that_came_before_a_table_that_failed_are_completed(
    RE, tiled, written, into_tiled, det, monkeypatch
):
    made, create = [], Container.create_appendable_table

    def fail_once(self, *args, **kwargs):
        if self.uri.endswith("/denoised"):
            made.append(self.uri)
            if len(made) == 1:
                raise httpx.ConnectError("the server is away for a moment")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(Container, "create_appendable_table", fail_once)
    one = into_tiled(INLINE)
    (uid,) = RE(bp.count([det], 4))
    one.wait(uid)
    assert len(made) == 2
    run = in_tiled(tiled, uid)
    np.testing.assert_array_equal(run["denoised"]["det_image"].read(), FRAMES[:4] * 2)


@pytest.mark.parametrize("layout", ["stream", "run"])
def test_a_signal_that_said_it_was_an_integer_keeps_its_fractions(
    RE, tiled, into_tiled, det, layout
):
    RE.subscribe(TiledWriter(tiled.client))  # finds the kind from all values, not from the first
    one = into_tiled(tiled_layout=layout)
    signal = Signal(name="energy", value=0)  # ophyd takes it for an integer
    other = Signal(name="internal", value=3)  # as the table is
    (uid,) = RE(bp.list_scan([det, other], signal, [0, 0.5, 1.5]))
    one.wait(uid)
    if layout == "stream":
        stream = in_tiled(tiled, uid)["denoised"]
    else:
        (derived,) = one.derived.by_name["start"]
        stream = in_tiled(tiled, derived["uid"], "denoised")["denoised"]
    np.testing.assert_array_equal(stream["energy"].read(), [0, 0.5, 1.5])
    np.testing.assert_array_equal(stream["internal"].read(), [3, 3, 3])
    assert stream["raw_seq_num"].read().dtype == np.int64


@pytest.mark.thorough
@pytest.mark.parametrize("layout", ["stream", "run"])
def test_what_was_written_in_part_or_doubled_is_completed_by_a_replay(
    RE, raw, tiled, written, det, tmp_path, layout
):
    from bluesky_denoise.in_tiled.layouts import open_writer

    options = settings(
        tiled_uri=tiled.uri, tiled_layout=layout, backup_directory=tmp_path / "backup"
    )
    router, derived = DenoiseRouter(options, UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    (uid,) = RE(bp.count([det], 3))
    client = connect(options)
    send = client.context.http_client.send
    answers = iter(["", "lost"])

    def lose_an_answer(request, **kwargs):
        response = send(request, **kwargs)
        if request.method == "PATCH" and "/table/" in request.url.path and next(answers, ""):
            raise httpx.ReadError("the answer was lost", request=request)
        return response

    with client.context:
        if layout == "stream":
            open_writer(client, options).write(derived.documents[:4])
        else:
            client.context.http_client.send = lose_an_answer
            with pytest.raises(TiledUnavailable, match=r"1 of 4 rows of 'denoised' .* twice"):
                open_writer(client, options).write(derived.documents)
    BackupFile(tmp_path / "backup", "run").append(derived.documents)
    assert replay_backup(options) == [uid]
    run = in_tiled(tiled, uid)
    if layout == "run":
        run = in_tiled(tiled, derived.by_name["start"][0]["uid"], "denoised")
    np.testing.assert_array_equal(run["denoised"]["det_image"].read(), FRAMES[:3] * 2)
    np.testing.assert_array_equal(run["denoised"]["raw_seq_num"].read(), [1, 2, 3])
    check_documents(run, {"denoised": 3} | ({"primary": 3} if layout == "stream" else {}))


def test_an_empty_backup_does_not_keep_the_others_from_being_replayed(
    RE, raw, tiled, written, det, tmp_path
):
    options = settings(tiled_uri=tiled.uri, backup_directory=tmp_path / "backup")
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "cut.jsonl").write_text('{"name": "sta')
    router, derived = DenoiseRouter(options, UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    (uid,) = RE(bp.count([det], 2))
    BackupFile(tmp_path / "backup", "run").append(derived.documents)
    assert replay_backup(options) == [uid]
    assert in_tiled(tiled, uid)["denoised"]["det_image"].shape == (2, *SHAPE)


def test_a_replay_goes_on_past_a_run_that_is_not_in_tiled(RE, tiled, det, tmp_path, logged):
    options = settings(tiled_uri=tiled.uri, backup_directory=tmp_path / "backup")
    router, derived = DenoiseRouter(options, UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    (nowhere,) = RE(bp.count([det], 2))
    lacks = BackupFile(tmp_path / "backup", "lacks")
    lacks.append(derived.documents)
    lacks.release()
    number = len(derived.documents)
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.count([det], 2))
    BackupFile(tmp_path / "backup", "later").append(derived.documents[number:])
    with pytest.raises(TiledUnavailable) as told:
        replay_backup(options)
    assert str(told.value).startswith(
        f"1 runs were written, 1 are still in {tmp_path / 'backup'}: "
        f"lacks.jsonl: NodeMissing: Run {nowhere} is not in Tiled at "
    )
    assert backup_files(tmp_path / "backup") == [lacks.path]
    assert in_tiled(tiled, uid)["denoised"]["det_image"].shape == (2, *SHAPE)


@pytest.mark.thorough
def test_a_run_that_can_neither_be_written_nor_kept_is_no_concern_of_another(
    RE, tiled, written, det, tmp_path, logged
):
    options = settings(
        tiled_uri=tiled.uri, backup_directory=tmp_path / "backup", node_timeout_s=0.1
    )
    router, derived = DenoiseRouter(options, UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    RE(bp.count([det], 1))
    bad = list(derived.documents)
    (uid,) = RE(bp.count([det], 2))
    good = derived.documents[len(bad) :]
    for name, doc in bad:
        if name == "event":
            doc["data"]["latency_s"] = endless = []
            endless.append(endless)

    done = []

    def written(raw_uid):
        with pytest.raises(DenoiseError, match="a function that was given to a TiledSink"):
            sink.close()  # would wait for itself
        done.append(raw_uid)

    sink = TiledSink(options, written)
    first = next(i for i, (name, _) in enumerate(good) if name == "event")
    for name, doc in good[: first + 1]:
        sink(name, doc)
    wait_for(lambda: [r for r in sink._runs.values() if not r.to_write], what="the first event")
    for name, doc in bad:
        sink(name, doc)
    kept_not = f"Derived run {bad[0][1]['uid']:.8} cannot be kept in"
    wait_for(lambda: kept_not in logged(), what="the failure")
    for name, doc in good[first + 1 :]:
        sink(name, doc)
    wait_for(lambda: done == [uid], what="the other run")
    np.testing.assert_array_equal(in_tiled(tiled, uid)["denoised"]["raw_seq_num"].read(), [1, 2])
    assert f"Derived run {good[0][1]['uid']:.8}" not in logged()
    assert sink.close(30) == []


def test_a_backup_that_cannot_be_written_does_not_stop_what_follows(
    RE, raw, tiled, det, tmp_path, logged
):
    """The disk of the backups fails; a later run is written to Tiled all the same."""
    (tmp_path / "backup").mkdir()
    one = Live(
        tiled_uri=tiled.uri,
        frames_directory=tmp_path / "denoised",
        backup_directory=tmp_path / "backup",
        node_timeout_s=0.1,
    )
    (tmp_path / "backup").rmdir()
    (tmp_path / "backup").write_text("not a directory")
    RE.subscribe(one.router)
    RE(bp.count([det], 1))  # has no node
    wait_for(lambda: "cannot be kept" in logged(), what="the failure")
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.count([det], 2))
    one.wait(uid)
    assert in_tiled(tiled, uid)["denoised"]["det_image"].shape == (2, *SHAPE)
    one.sink.close(30)
    assert not one.sink._thread.is_alive()
    assert logged().count("cannot be kept in") == 1  # however often it was tried
    lost = f"of run {raw.by_name['start'][0]['uid']:.8}: its last 6 documents could not be kept"
    assert lost in logged()
    assert "`bluesky-denoise catch-up` denoises such a run again" in logged()
