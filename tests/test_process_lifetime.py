"""A denoiser from its beginning to its end."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import bluesky.plans as bp
import h5py
import numpy as np
import psutil
import pytest
from live_path import NO_PROXY, python_path, settings, wait_for
from process_fixtures import FRAMES, IDLE, NOWHERE, replay
from tiers import thorough

from bluesky_denoise.backup import backup_files, read_backup
from bluesky_denoise.child.worker import _LogToParent, _open_sink, _Pipe, _portable, _Worker
from bluesky_denoise.errors import DenoiseError, ModelNotFound, SettingsError
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.testing import DocumentCollector, assert_emitted, validate_documents

# It begins and ends


def test_a_wrong_model_is_told_when_it_is_built():
    message = r"Setting `model`, 'nowhere.module:Denoiser': No module named"
    with pytest.raises(ModelNotFound, match=message):
        DenoiseProcess(model="nowhere.module:Denoiser")


@pytest.mark.thorough
def test_the_child_finds_modules_as_this_process_does(tmp_path, monkeypatch):
    """Those that the working directory hides, too, and whatever the length of a folder's name."""
    (tmp_path / "secrets.py").write_text("raise SystemExit('not of the standard library')")
    (tmp_path / "elsewhere").mkdir()
    module = "from bluesky_denoise.testing import UnitDenoiser as Mine"
    (tmp_path / "elsewhere" / "my_denoiser.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path, str(tmp_path / "elsewhere")])
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(long))
    with DenoiseProcess(settings(model="my_denoiser:Mine")) as denoise:
        assert denoise.provenance["model"] == "unit"


def test_a_directory_that_cannot_be_written_is_told_when_it_is_built(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"'frames_directory': .* cannot be written to"):
        DenoiseProcess(frames_directory=tmp_path / "file" / "denoised")


def test_a_wrong_key_is_told_when_it_is_built(tiled):
    address = tiled.uri.partition("?")[0]
    with pytest.raises(SettingsError, match=r"refuses to be written to \(401\)\. Check") as caught:
        DenoiseProcess(settings(tiled_uri=f"{address}?api_key=wr0ng"))
    assert "wr0ng" not in str(caught.value)


def test_a_missing_key_is_told_when_it_is_built(tiled, monkeypatch):
    monkeypatch.delenv("TILED_API_KEY", raising=False)
    with pytest.raises(SettingsError, match=r"wants an API key, and was given none\. Set"):
        DenoiseProcess(settings(tiled_uri=tiled.uri.partition("?")[0]))


@pytest.mark.thorough
@pytest.mark.parametrize("home", ["file", "home"])
def test_a_home_in_which_nothing_can_wait_for_tiled_is_warned_of(
    tmp_path, monkeypatch, caplog, home
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / home))
    if home == "file":
        DenoiseProcess(settings(tiled_uri=NOWHERE)).close()
    else:  # what the child does, in this process
        assert _open_sink(settings(tiled_uri=NOWHERE), print).close() == []
    backup = tmp_path / home / "bluesky_denoise" / "backup"
    told = f"for {backup} cannot be written to (Not a directory). Set `backup_directory`."
    assert (told in caplog.text) == (home == "file")
    assert "be reached (ConnectError: [Errno 111] Connection refused); what is" in caplog.text
    assert "secret" not in caplog.text


def test_who_has_no_home_is_told_where_to_set_one(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    # As for a user whom the system does not know.
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(SettingsError, match=r"no home directory.*Set HOME, or `backup_directory`"):
        settings(tiled_uri=NOWHERE).backup_path  # noqa: B018
    assert settings(backup_directory=tmp_path).backup_path == tmp_path


@pytest.fixture
def secret(monkeypatch):
    """Return a key that the denoisers of `child_denoisers` know."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setenv("DENOISE_TEST_SECRET", "k3yt0k33p")
    return "k3yt0k33p"


def test_whatever_the_child_fails_with_its_key_is_not_told(secret):
    with pytest.raises(ValueError, match=r"the secret is \*\*\*"):
        DenoiseProcess(settings(model="child_denoisers:blabbing", tiled_api_key=secret))


def test_whatever_the_child_logs_or_notes_its_key_is_not_told(RE, secret, logged):
    derived = DocumentCollector()
    with DenoiseProcess(
        settings(model="child_denoisers:Talkative", tiled_api_key=secret)
    ) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(bp.count([replay()], 1))
        denoise.wait(60)
    (event,) = derived.by_name["event"]
    assert event["data"]["denoise_reason"] == "det_image: ValueError: the secret is ***"
    assert "The secret is ***" in logged()
    assert secret not in logged()


@pytest.mark.parametrize(
    ("layout", "where"), [thorough("stream", "the raw runs"), ("run", "denoised elsewhere")]
)
def test_it_says_where_in_tiled_results_go(tiled, tmp_path, logged, layout, where):
    options = {"tiled_uri": tiled.uri, "tiled_layout": layout}
    options |= {"tiled_container": "denoised elsewhere", "frames_directory": tmp_path}
    with DenoiseProcess(settings(**options)):
        address = tiled.uri.partition("?")[0]
        assert f"Tiled at {address}, into {where}; frames are saved in {tmp_path}" in logged()
    assert "Nothing is written" not in logged()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("with_directory", "frames"),
    [(True, "saved in {}"), (False, "not saved (`frames_directory` is not set either)")],
)
def test_it_warns_once_where_nothing_goes_to_tiled(tmp_path, caplog, with_directory, frames):
    options = settings(frames_directory=tmp_path if with_directory else None)
    if with_directory:
        DenoiseProcess(options).close()
    else:  # what the child does, in this process
        assert _open_sink(options, print) is None
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warned == [
        "Nothing is written to Tiled, for `tiled_uri` is not set: denoised frames are "
        f"{frames.format(tmp_path)}, and all other results go only to callbacks that `subscribe` "
        "to the denoiser."
    ]


def test_the_child_yields_to_the_run_engine(shared):
    child = psutil.Process(shared.pid)
    assert child.nice() == min(psutil.Process().nice() + 5, 19)
    group = Path(f"/proc/{child.pid}/autogroup")
    if group.exists():  # sessions share cores first, and this one is of a session of its own
        assert group.read_text().endswith("nice 5\n")


@pytest.mark.thorough
def test_a_closed_process_takes_no_more_documents(RE, raw, tmp_path):
    derived = DocumentCollector()
    denoise = DenoiseProcess(settings(frames_directory=tmp_path))
    denoise.subscribe(derived)
    RE.subscribe(denoise)
    RE(bp.count([replay()], 3))
    denoise.close()
    denoise.close()
    assert_emitted(
        derived.by_name,
        **{"start": 1, "descriptor": 1, "stream_resource": 1},
        **{"stream_datum": len(derived.by_name["stream_datum"]), "event": 3, "stop": 1},
    )
    assert not psutil.pid_exists(denoise.pid)
    RE(bp.count([replay()], 3))
    denoise.wait(1)
    assert len(derived.by_name["stop"]) == 1
    assert len(raw.by_name["stop"]) == 2


def children():
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.thorough
def test_a_close_that_was_interrupted_goes_on_when_it_is_called_again(RE, gate, ctrl_c):
    derived = DocumentCollector()
    denoise = DenoiseProcess(settings(model="child_denoisers:Gated"))
    denoise.subscribe(derived)
    RE.subscribe(denoise)
    RE(bp.count([replay()], 3))
    ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        denoise.close()
    gate.touch()
    denoise.close()
    assert [event["data"]["denoise_ok"] for event in derived.by_name["event"]] == [True] * 3
    assert derived.by_name["stop"][0]["exit_status"] == "success"
    assert not psutil.pid_exists(denoise.pid)


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", IDLE], ids=["early", "late"])
def test_ctrl_c_while_it_is_built_leaves_neither_a_child_nor_a_thread(monkeypatch, ctrl_c, code):
    def interrupted(function):
        raise KeyboardInterrupt

    monkeypatch.setattr("bluesky_denoise.child.connection._START", code)
    threads, others = set(threading.enumerate()), children()
    if code == IDLE:  # the last of what is done
        monkeypatch.setattr("bluesky_denoise.process.atexit.register", interrupted)
    else:
        ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        DenoiseProcess(settings())
    wait_for(lambda: set(threading.enumerate()) <= threads, 5, what="the end of the threads")
    assert children() == others


def test_what_a_child_has_left_of_a_run_goes_to_the_next_before_the_end_of_that_run(idle_child):
    """Else `wait` would return before it is in Tiled."""
    denoise = DenoiseProcess(settings())
    left = [("start", {"uid": "derived", "original_run_uid": "raw"})]
    with denoise._changed:
        denoise._abandoned.append(left)
        denoise._backlog.put("stop", {"run_start": "raw"}, frames=False)
        messages = [denoise._next_message() for _ in range(2)]
    denoise.close(0.1)
    assert messages == [("abandoned", left), ("documents", [("stop", {"run_start": "raw"}, "")])]


def test_an_error_that_cannot_be_sent_is_told_as_text():
    class Local(Exception):
        pass

    error = _portable(Local("the key is k3y"), lambda text: text.replace("k3y", "***"))
    assert (type(error), str(error)) == (RuntimeError, "Local: the key is ***")


def test_results_go_in_messages_of_bounded_length_each_once():
    worker, sent = object.__new__(_Worker), []
    worker._pipe = SimpleNamespace(send=lambda kind, content: sent.append((kind, content)))
    worker._sink, worker._ended, worker._most_at_once = None, [], 4
    worker._documents = documents = [("event", {"seq_num": number}) for number in range(10)]
    worker._hand_on("ready")
    expected = ("documents", documents[:4]), ("documents", documents[4:6]), ("ready", documents[6:])
    assert sent == [*expected]


def test_messages_of_several_threads_of_the_child_do_not_mix():
    inside, most = [], []

    class Slow:
        def send_bytes(self, data):
            inside.append(data)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(data)

    pipe = _Pipe(Slow())
    threads = [threading.Thread(target=pipe.send, args=("log", n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_what_the_child_logs_when_its_parent_is_gone_is_no_error():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours:
        _LogToParent(_Pipe(ours), str).emit(logging.makeLogRecord({"msg": "all is kept"}))


@pytest.mark.thorough
def test_a_child_that_is_being_started_again_has_ended_for_all_who_close_the_denoiser(gate, logged):
    others = children()
    gate.touch()
    denoise = DenoiseProcess(settings(model="child_denoisers:loaded_late"))
    gate.unlink()
    first = denoise.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: children() - others - {first}, what="the next child")
    closing = threading.Thread(target=denoise.close, args=(0.5,))
    closing.start()
    wait_for(lambda: denoise.closed)
    denoise.close()
    assert children() == others
    assert "could not be started again" not in logged()
    closing.join()


SCRIPT = """
import signal, sys, time
import bluesky.plans as bp, bluesky.plan_stubs as bps
from bluesky import RunEngine
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.testing import DocumentCollector
from live_path import settings, wait_for
from process_fixtures import NOWHERE, replay

RE, det, derived = RunEngine(), replay(), DocumentCollector()
options = settings(frames_directory=sys.argv[1], **eval(sys.argv[2]))
denoise = DenoiseProcess(options)
denoise.subscribe(derived)
RE.subscribe(denoise)
# A shell starts what it puts into the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def start_script(tmp_path, code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + code, str(tmp_path / "denoised"), repr(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **NO_PROXY, "PYTHONPATH": python_path()},
    )


def test_ctrl_c_leaves_the_child_alone_and_the_end_of_the_session_finishes_its_work(tmp_path):
    code = """
try:
    print(denoise.pid, flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    RE(bp.count([det], 3))
    print("counted", denoise.pid, flush=True)
"""
    script = start_script(tmp_path, code)
    child = int(script.stdout.readline())
    os.killpg(script.pid, signal.SIGINT)
    assert script.stdout.readline() == f"counted {child}\n"
    assert script.wait(60) == 0
    script.communicate()
    assert not psutil.pid_exists(child)
    (path,) = (tmp_path / "denoised").rglob("*.h5")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["denoised/det_image"][()], FRAMES[:3] * 2)


def test_a_parent_that_is_killed_leaves_no_child_and_no_open_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    code = """
def plan():
    yield from bps.open_run()
    for _ in range(2):
        yield from bps.trigger_and_read([det])
    wait_for(lambda: len(derived.by_name.get("event", [])) == 2)
    print(denoise.pid, flush=True)
    sys.stdin.read()
RE(plan())
"""
    script = start_script(
        tmp_path, code, tiled_uri=NOWHERE, backup_directory=str(tmp_path / "backup")
    )
    child = psutil.Process(int(script.stdout.readline()))
    os.kill(script.pid, signal.SIGKILL)
    script.communicate()
    wait_for(lambda: not child.is_running(), 60, "the end of the child")
    (path,) = (tmp_path / "denoised").rglob("*.h5")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["denoised/det_image"][()], FRAMES[:2] * 2)
    (backup,) = backup_files(tmp_path / "backup")
    kept = list(read_backup(backup))
    validate_documents(kept)
    assert kept[-1][1]["exit_status"] == "fail"
    assert kept[-1][1]["reason"] == "the process that runs the RunEngine ended"


def test_importing_the_package_imports_neither_torch_nor_tiled():
    code = (
        "import sys, bluesky_denoise;"
        "print([m for m in ('torch', 'tiled', 'h5py', 'ophyd') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_parent_of_a_denoiser_imports_no_torch(RE):
    code = "import sys, bluesky_denoise.process;print([m for m in ('torch',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_key_of_the_settings_does_not_go_to_another_server(idle_child, monkeypatch):
    monkeypatch.delenv("TILED_API_KEY", raising=False)
    given = settings(tiled_uri=NOWHERE, tiled_api_key="secret")
    with DenoiseProcess(given, tiled_uri=None) as denoise:
        assert denoise.settings.tiled_api_key is None
    assert given.tiled_api_key.get_secret_value() == "secret"


@pytest.mark.thorough
def test_a_callback_of_the_results_cannot_wait_for_them(RE):
    refused = []

    def at_the_end(name, doc):
        for method in (denoise.wait, denoise.close):
            with pytest.raises(DenoiseError, match="a function that was given to `subscribe`"):
                method()
            refused.append(method)

    with DenoiseProcess(settings()) as denoise:
        denoise.subscribe(at_the_end, "stop")
        RE.subscribe(denoise)
        RE(bp.count([replay()], 1))
        denoise.wait(60)
    assert len(refused) == 2
