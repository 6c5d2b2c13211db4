"""What the startup files of a profile begin with."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.startup import newest_scan_id, profile_directory

SESSION = """
import atexit, threading
from concurrent.futures import ThreadPoolExecutor
from bluesky_denoise.startup import closed_at_exit

end = threading.Event()
worker = threading.Thread(target=end.wait)  # as that of a server: Python waits for it
worker.start()
session = closed_at_exit()
pool = ThreadPoolExecutor()  # as a Tiled server has one, to read arrays
session.callback(lambda pool=pool: print(pool.submit(lambda: "closed").result()))
session.callback(end.set)
del session, end  # IPython empties its namespace
atexit.register(lambda: print("at exit"))
import multiprocessing
fork = multiprocessing.get_context("fork")
child = fork.Process(target=print, args=("forked",), kwargs={"flush": True})
child.start()
child.join()
print("left")
"""


@pytest.fixture
def profile(tmp_path):
    (tmp_path / "profile_x" / "startup").mkdir(parents=True)
    (tmp_path / "profile_x" / "settings.yaml").touch()
    return tmp_path / "profile_x"


@pytest.mark.parametrize(
    ("starts", "number"),
    [
        ([], 0),
        ([None, {"time": 1.0}], 0),  # a container of derived runs, and a run without a number
        ([{"time": 1.0, "scan_id": 7}, {"time": 2.0, "scan_id": 1}], 1),
        ([{"time": 2.0, "scan_id": 8}, {"time": 1.0, "scan_id": 7}], 8),  # 7 was restored
    ],
)
def test_scans_are_numbered_on_from_the_newest(starts, number):
    runs = [SimpleNamespace(metadata={"start": start} if start else {}) for start in starts]
    values = SimpleNamespace(tail=lambda number: runs[-number:])
    assert newest_scan_id(SimpleNamespace(values=lambda: values)) == number


def test_a_startup_file_finds_its_profile(profile, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = profile_directory("settings.yaml", "profile_x/startup/00-base.py")
    assert found == profile.resolve()


def test_a_startup_file_without_a_name_finds_it_from_its_directory(profile, monkeypatch):
    monkeypatch.chdir(profile / "startup")
    assert profile_directory("settings.yaml") == profile.resolve()


def test_an_ipython_kernel_knows_its_profile(profile, tmp_path):
    code = (
        "from bluesky_denoise.startup import profile_directory as find; "
        "print('found', find('settings.yaml'))"
    )
    command = [sys.executable, "-m", "IPython", "--colors=NoColor", f"--profile-dir={profile}"]
    done = subprocess.run(
        [*command, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert f"found {profile.resolve()}" in done.stdout, done.stderr


def test_a_file_that_is_nowhere_is_named_with_the_places_looked_at(profile):
    with pytest.raises(SettingsError, match=r"no beamline.yaml in .*profile_x\. Startup files"):
        profile_directory("beamline.yaml", str(profile / "startup" / "00-base.py"))


@pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info[:3] <= (3, 12, 2),
    reason="python/cpython#113964: no thread can be started when a session is left",
)
def test_a_session_is_closed_before_python_waits_for_its_threads_and_ends_its_pools():
    done = subprocess.run(
        [sys.executable, "-c", SESSION], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["forked", "left", "closed", "at", "exit"]
