import re
import shutil
import uuid

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import httpx
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from composed_runs import ComposedRun
from live_path import SHAPE, Camera, poisson, wait_for
from ophyd import Signal
from ophyd_async.core import TriggerInfo, init_devices
from process_fixtures import open_node, replay
from router_fixtures import path_provider
from tiled.client import from_context, from_uri
from tiled_fixtures import in_tiled
from typer.testing import CliRunner

from bluesky_denoise import denoised_streams, reprocess
from bluesky_denoise.backup import BackupFile, RawBackup, read_backup, take_backup
from bluesky_denoise.cli import app
from bluesky_denoise.commands.terminal import console
from bluesky_denoise.errors import BackupError
from bluesky_denoise.restore import restore_run
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay


class Unreliable:
    """A raw writer whose server fails after some requests, and the backups that come of it."""

    def __init__(self, RE, tiled, directory):
        self.client = from_context(tiled.client.context)
        self.directory = directory
        self._http, self._send = self.client.context.http_client, None
        self._left = 10**6
        backup = RawBackup(directory)
        RE.subscribe(TiledWriter(self.client, batch_size=1, backup_dictionary=backup))
        self._send = self._http.send

    def fail_after(self, requests):
        self._left = requests
        self._http.send = self._maybe

    def _maybe(self, request, **kwargs):
        if request.method in ("POST", "PUT", "PATCH"):
            self._left -= 1
            if self._left < 0:
                return httpx.Response(400, request=request, text="broken")  # not tried again
        return self._send(request, **kwargs)

    def mend(self):
        self._http.send = self._send

    def path(self, uid):
        return self.directory / f"{uid}.jsonl"


@pytest.fixture
def unreliable(RE, tiled, tmp_path):
    writer = Unreliable(RE, tiled, tmp_path / "raw_backup")
    yield writer
    writer.mend()


@pytest.fixture
def kept(RE, raw, unreliable):
    """Return a function that takes a run which Tiled has not, or not whole; returns its uid."""

    def kept(*detectors, requests=0, plan=None):
        unreliable.fail_after(requests)
        (uid,) = RE(plan or bp.count(list(detectors) or [replay()], 3))
        unreliable.mend()
        return uid

    return kept


@pytest.fixture
def command(monkeypatch):
    """Return a function that runs ``bluesky-denoise restore``."""
    monkeypatch.setattr(console, "width", 250)

    def run(*arguments, uri, code=0):
        address, _, key = uri.partition("?api_key=")
        monkeypatch.setenv("TILED_API_KEY", key)
        typed = ["restore", *map(str, arguments), "--uri", address]
        result = CliRunner().invoke(app, typed)
        assert result.exit_code == code, result.output
        return result.output

    return run


def frames_of(raw, uid):
    uids = {d["uid"] for d in raw.by_name["descriptor"] if d["run_start"] == uid}
    return [e["data"]["det_image"] for e in raw.by_name["event"] if e["descriptor"] in uids]


def test_a_server_that_is_killed_during_a_run_gets_the_run_later(
    RE, raw, elsewhere, command, tmp_path, caplog
):
    client = from_uri(elsewhere.uri)
    backup = RawBackup(tmp_path / "raw backup")
    RE.subscribe(TiledWriter(client, batch_size=1, backup_dictionary=backup))
    RE.subscribe(lambda name, doc: doc["seq_num"] == 2 and elsewhere.stop(), "event")
    (uid,) = RE(bp.count([replay()], 4))
    client.context.close()
    assert f"`bluesky-denoise restore '{tmp_path}/raw backup/{uid}.jsonl' --uri" in caplog.text
    elsewhere.start()

    before = (tmp_path / "raw backup" / f"{uid}.jsonl").read_bytes()
    said = command(tmp_path / "raw backup", uri=elsewhere.uri, code=1)
    assert (
        f"Tiled has a part of run {uid}: 2 events of primary are there, and 4 in the file" in said
    )
    assert "With --replace the raw streams that are there (primary, 2 events) are deleted" in said
    assert (tmp_path / "raw backup" / f"{uid}.jsonl").read_bytes() == before

    said = command(tmp_path / "raw backup", "--replace", uri=elsewhere.uri)
    assert f"{uid}.jsonl: run {uid} is in Tiled, with 4 events of primary. The file is now" in said
    with (client := from_uri(elsewhere.uri)).context:
        run = client[uid]
        np.testing.assert_array_equal(run["primary"]["det_image"].read(), frames_of(raw, uid))
        assert run.metadata["stop"]["num_events"] == {"primary": 4}
    (left,) = (tmp_path / "raw backup").iterdir()
    assert (left.name, left.read_bytes()) == (f"{uid}.jsonl.restored", before)
    assert "There are no backup files" in command(
        tmp_path / "raw backup", uri=elsewhere.uri, code=1
    )
    assert "was in Tiled already" in command(left, uri=elsewhere.uri)
    assert left.read_bytes() == before


@pytest.mark.thorough
def test_denoised_streams_stay_where_raw_ones_are_replaced(
    RE, kept, unreliable, tiled, into_tiled, raw
):
    live = into_tiled()
    uid = kept(requests=6)
    live.wait(uid)
    run = tiled.client[uid]
    assert run.metadata.get("stop") is None
    before = run["denoised"]["det_image"].read()
    with pytest.raises(BackupError, match=r"\(primary, \d events\) are deleted"):
        restore_run(tiled.client, unreliable.path(uid))
    assert len(tiled.client[uid]["primary"]["time"].read()) < 3
    restore_run(tiled.client, unreliable.path(uid), replace=True)
    run = tiled.client[uid]
    assert sorted(run) == ["denoised", "primary"]
    np.testing.assert_array_equal(run["primary"]["det_image"].read(), frames_of(raw, uid))
    np.testing.assert_array_equal(run["denoised"]["det_image"].read(), before)
    run.validate(raise_on_error=True)


def test_several_files_are_restored_and_one_that_is_damaged_is_named(
    kept, unreliable, tiled, command
):
    uids = [kept(), kept(), kept()]
    damaged = unreliable.path(uids[1])
    lines = damaged.read_text().splitlines(keepends=True)
    damaged.write_text("".join([*lines[:2], lines[2][:50] + "\n", *lines[3:]]))
    before = damaged.read_bytes()
    said = command(unreliable.directory, uri=tiled.uri, code=1)
    assert re.search(r"files .* 3/3", said)
    assert re.search(
        rf"{uids[1]}.jsonl is damaged\. Nothing is written, .*: document 3, JSON", said
    )
    assert damaged.read_bytes() == before
    assert uids[1] not in tiled.client
    for uid in (uids[0], uids[2]):
        assert f"run {uid} is in Tiled, with 3 events of primary." in said
        assert tiled.client[uid].stop["exit_status"] == "success"
        assert not unreliable.path(uid).exists()


def test_a_file_without_an_end_is_restored_as_far_as_it_goes(kept, unreliable, tiled, raw):
    uid = kept()
    path = unreliable.path(uid)
    path.write_bytes(path.read_bytes()[:-10])  # the stop document is cut off
    told = restore_run(tiled.client, path)
    assert "with 3 events of primary, and without an end: the file has no stop document" in told
    run = tiled.client[uid]
    assert run.metadata.get("stop") is None
    np.testing.assert_array_equal(run["primary"]["det_image"].read(), frames_of(raw, uid))


def test_a_run_that_has_its_end_is_never_replaced(unreliable, tiled, kept, tmp_path):
    uid = kept()
    path, copy = unreliable.path(uid), tmp_path / "copy.jsonl"
    shutil.copy(path, copy)
    restore_run(tiled.client, path)
    more = [*read_backup(copy)]
    page = next(doc for name, doc in more if name == "event_page")
    more.insert(-1, ("event_page", {**page, "uid": ["another"], "seq_num": [4]}))
    other = BackupFile(tmp_path, "other")
    other.append(more)
    other.release()
    with pytest.raises(
        BackupError, match=r"its end, and yet 3 events of primary are there, and 4 in"
    ):
        restore_run(tiled.client, other.path, replace=True)
    assert "was in Tiled already" in restore_run(tiled.client, copy)
    assert len(tiled.client[uid]["primary"]["time"].read()) == 3
    assert other.path.exists()


def test_what_a_file_lacks_is_told_and_not_deleted_in_tiled(kept, unreliable, tiled, tmp_path):
    """As where the disk of the backups was full for a while."""
    uid = kept(requests=7)
    documents = list(read_backup(unreliable.path(uid)))
    there = set(tiled.client[uid]["primary"]["seq_num"].read())
    assert there
    gap = BackupFile(tmp_path, "gap")
    gap.append([item for item in documents if item[1].get("seq_num") != [min(there)]])
    gap.release()
    with pytest.raises(BackupError, match=r"in primary, what the file lacks, and would lose it"):
        restore_run(tiled.client, gap.path, replace=True)
    assert set(tiled.client[uid]["primary"]["seq_num"].read()) == there
    tiled.client.delete_contents(uid, recursive=True, external_only=False)
    told = restore_run(tiled.client, gap.path)
    assert "with 2 events of primary; 1 more of primary are not in the file" in told


def test_rows_of_a_fly_scan_that_a_file_lacks_are_not_deleted_in_tiled(tiled, tmp_path):
    run = ComposedRun(tmp_path, motor=False, det=([1, *SHAPE], "STREAM:"))
    rows = run.files("det", run.file("frames.h5", np.ones((4, *SHAPE), np.uint16)))
    rows(1, 2)
    rows(3, 4)
    write = TiledWriter(tiled.client, batch_size=1)
    for item in run.documents:
        write(*item)
    *documents, last, stop = run.ended()
    assert last[0] == "stream_datum"
    gap = BackupFile(tmp_path, "gap")
    gap.append([*documents, stop])
    gap.release()
    with pytest.raises(BackupError, match=r"in primary, what the file lacks, and would lose it"):
        restore_run(tiled.client, gap.path, replace=True)
    assert tiled.client[run.run.start_doc["uid"]]["primary"]["det"].shape[0] == 4


def test_all_events_of_a_stream_whose_configuration_changed_are_restored(tiled, tmp_path):
    run = ComposedRun(tmp_path)
    run.event()
    run.event(run.begin("primary"))
    file = BackupFile(tmp_path, "run")
    file.append(run.ended())
    file.release()
    assert "with 2 events of primary. " in restore_run(tiled.client, file.path)
    assert len(tiled.client[run.run.start_doc["uid"]]["primary"]["motor"].read()) == 2


@pytest.mark.parametrize(("times", "there"), [(0, 2), (2, 4)], ids=["lost", "written twice"])
def test_an_event_that_is_not_once_in_tiled_is_told_and_the_file_stays(
    tiled, tmp_path, monkeypatch, times, there
):
    def writer(*given, **options):
        write = TiledWriter(*given, **options)

        def write_most(name, doc):
            for _ in range(times if doc.get("seq_num") == 2 else 1):
                write(name, doc)

        return write_most

    monkeypatch.setattr("bluesky_denoise.restore.TiledWriter", writer)
    run = ComposedRun(tmp_path)
    for _ in range(3):
        run.event()
    file = BackupFile(tmp_path, "run")
    file.append(run.ended())
    file.release()
    told = (
        rf"not in Tiled as it should be: {there} events of primary are there, and 3 in the file\."
    )
    with pytest.raises(BackupError, match=told):
        restore_run(tiled.client, file.path)
    assert file.path.exists()


def test_frames_that_are_no_more_in_tiled_are_missed(tiled, tmp_path):
    run = ComposedRun(tmp_path, motor=False, det=([1, *SHAPE], "STREAM:"))
    run.files("det", run.file("frames.h5", np.ones((2, *SHAPE), np.uint16)))(1, 2)
    file = BackupFile(tmp_path, "run")
    file.append(run.ended())
    file.release()
    shutil.copy(file.path, tmp_path / "copy.jsonl")
    restore_run(tiled.client, file.path)
    stream = tiled.client[run.run.start_doc["uid"]]["primary"]
    stream.base.delete_contents(["det"], recursive=True, external_only=False)
    with pytest.raises(BackupError, match="its end, and yet det of primary is not complete"):
        restore_run(tiled.client, tmp_path / "copy.jsonl")


@pytest.mark.thorough
def test_a_number_that_is_whole_at_first_is_no_obstacle(RE, unreliable, tiled):
    """Tiled refuses it in a run that is written event by event."""
    position = Signal(name="position", value=1)

    def move(number):
        position.put([1, 2, 2.5][number])

    RE.subscribe(lambda name, doc: doc["seq_num"] < 3 and move(doc["seq_num"]), "event")
    (uid,) = RE(bp.count([position, replay()], 3))
    assert unreliable.path(uid).exists()
    restore_run(tiled.client, unreliable.path(uid), replace=True)
    assert list(tiled.client[uid]["primary"]["position"].read()) == [1, 2, 2.5]


@pytest.mark.parametrize("requests", [0, 7], ids=["nothing is there", "a part is there"])
def test_frames_in_files_are_registered_again(kept, unreliable, tiled, tmp_path, requests):
    counts = np.random.default_rng(0).poisson(3.0, (3, *SHAPE)).astype(np.uint16)
    frames = ReplayFrames(counts, 1.0)
    detector = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path / "frames")
    uid = kept(detector, Signal(name="number", value=np.int64(3)), requests=requests)
    assert (uid in tiled.client) == bool(requests)
    told = restore_run(tiled.client, unreliable.path(uid), replace=bool(requests))
    assert "3 events of primary" in told
    stream = tiled.client[uid]["primary"]
    np.testing.assert_array_equal(stream["det_image"].read().reshape(counts.shape), counts)
    assert list(stream["number"].read()) == [3, 3, 3]


@pytest.mark.parametrize("requests", [0, 4], ids=["nothing is there", "a part is there"])
def test_a_fly_scan_without_events_is_restored(kept, unreliable, tiled, tmp_path, requests):
    counts = np.random.default_rng(0).poisson(3.0, (6, *SHAPE)).astype(np.uint16)
    with init_devices():
        det = AsyncReplayDetector(path_provider(tmp_path), ReplayFrames(counts, 0.5))

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def fly():
        three = TriggerInfo(number_of_events=3, livetime=0.5)
        yield from bps.prepare(det, three, wait=True)
        yield from bps.declare_stream(det, name="main")
        for _ in range(2):
            yield from bps.prepare(det, three, wait=True)
            yield from bps.kickoff(det, wait=True)
            yield from bps.complete(det, wait=True)
            yield from bps.collect(det, return_payload=False, name="main")

    uid = kept(plan=fly(), requests=requests)
    assert (uid in tiled.client) == bool(requests)
    told = restore_run(tiled.client, unreliable.path(uid), replace=bool(requests))
    assert told.startswith(f"run {uid} is in Tiled, with 6 events of main. ")
    frames = tiled.client[uid]["main"]["det"].read()
    np.testing.assert_array_equal(frames.reshape(counts.shape), counts)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "holds no whole document"),
        ('{"name": "stop", "doc": {}}\n', "begins with a document 'stop'; expected the start"),
        ("no backup\n", "is damaged. Nothing is written, .*: document 1, JSONDecodeError"),
        (
            '{"name": "start", "doc": {"uid": "a", "time": 1, "original_run_uid": "b", '
            '"denoise": {}}}\n',
            "of denoised run a: `bluesky-denoise replay-backup` brings that in",
        ),
        (
            '{"name": "start", "doc": {"uid": "a", "time": 1}}\n'
            '{"name": "event", "doc": {"uid": "b", "descriptor": "c"}}\n',
            "is damaged. Nothing is written, .*: document 2, ",
        ),
        (
            '{"name": "start", "doc": {"uid": "a", "time": 1}}\n'
            '{"name": "start", "doc": {"uid": "b", "time": 1}}\n',
            "has a second start, of run b; expected one run. Nothing is written",
        ),
    ],
    ids=["empty", "no start", "no JSON", "denoised", "no descriptor", "two runs"],
)
def test_a_file_of_another_kind_is_refused(tiled, tmp_path, lines, message):
    path = tmp_path / "a.jsonl"
    path.write_text(lines)
    with pytest.raises(BackupError, match=message):
        restore_run(tiled.client, path)
    assert "a" not in list(tiled.client)
    assert path.read_text() == lines


@pytest.mark.parametrize("letters", [4, 8])
def test_a_run_whose_uid_is_short_is_not_taken_for_one_that_begins_so(tiled, tmp_path, letters):
    uid = str(uuid.uuid4())
    short = uid[:letters]
    open_node(tiled, {"uid": uid, "time": 1.0})
    file = BackupFile(tmp_path, "short")
    file.append([("start", {"uid": short, "time": 2.0})])
    stop = {"uid": "end", "run_start": short, "time": 3.0, "exit_status": "success"}
    file.append([("stop", stop)])
    file.release()
    shutil.copy(file.path, tmp_path / "copy.jsonl")
    told = restore_run(tiled.client, file.path)
    assert told.startswith(f"run {short} is in Tiled, with no events. ")
    assert "was in Tiled already" in restore_run(tiled.client, tmp_path / "copy.jsonl")
    assert tiled.client[uid].metadata.get("stop") is None


def test_a_file_that_a_session_still_writes_is_left_to_it(kept, unreliable, tiled):
    uid = kept()
    with take_backup(unreliable.path(uid)) as ours:
        assert ours
        with pytest.raises(BackupError, match=r"is held by a session that runs"):
            restore_run(tiled.client, unreliable.path(uid))
    assert uid not in tiled.client


def test_files_that_there_are_not_are_named(command, tiled, tmp_path):
    said = command(tmp_path / "nowhere.jsonl", uri=tiled.uri, code=1)
    assert "No such file or directory" in said


def test_what_tiled_does_not_take_stays_in_its_file(kept, unreliable, tiled):
    uid = kept(Camera(name="det", func=poisson()))
    unreliable.fail_after(2)
    with pytest.raises(BackupError, match=rf"Run {uid} cannot be written to Tiled.*400"):
        restore_run(unreliable.client, unreliable.path(uid))
    unreliable.mend()
    restore_run(tiled.client, unreliable.path(uid), replace=True)
    assert tiled.client[uid].stop["exit_status"] == "success"


@pytest.mark.thorough
def test_a_raw_stream_with_the_name_of_a_denoised_one_is_refused_until_that_is_deleted(
    RE, kept, unreliable, tiled, into_tiled, command
):
    live, det = into_tiled(), replay()
    number = Signal(name="number", value=1)

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        (start,) = live.derived.by_name["start"]
        wait_for(lambda: "denoised" in in_tiled(tiled, start["original_run_uid"]))
        yield from bps.trigger_and_read([number], name="denoised")
        yield from bps.trigger_and_read([det])

    uid = kept(requests=10**6, plan=plan())  # Tiled refuses the second stream itself
    live.wait(uid)
    path, run = unreliable.path(uid), in_tiled(tiled, uid)
    before = path.read_bytes()
    rates = run["denoised"]["det_image"].read()
    said = command(path, "--replace", uri=tiled.uri, code=1)
    assert "The file has raw streams ['denoised'], and Tiled has denoised frames of run" in said
    assert path.read_bytes() == before
    np.testing.assert_array_equal(in_tiled(tiled, uid)["denoised"]["det_image"].read(), rates)

    (told,) = re.findall(r"`(cat\[.*?\))`", said)
    eval(told, {"cat": tiled.client})
    restore_run(tiled.client, path, replace=True)
    run = in_tiled(tiled, uid)
    assert run["denoised"]["number"].read().tolist() == [1]
    reprocess(run, live.settings)
    assert [stream.name for stream in denoised_streams(in_tiled(tiled, uid))] == ["denoised_2"]
