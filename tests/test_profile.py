"""Somebody sits down at the simulated beamline, and types."""

import re
import signal
import sys
import threading
from configparser import ConfigParser
from types import SimpleNamespace

import bluesky.plans as bp
import pexpect
import pytest
import xarray
import yaml
from bluesky_tiled_plugins import TiledWriter
from live_path import free_port
from profile_sessions import PROFILES, RUN, environment, profile_copy, run, started
from tiled.client import from_uri

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.server import embedded_tiled
from bluesky_denoise.settings import DenoiseSettings

PROMPT = re.compile(r"In \[\d+\]: ")


class Prompt:
    """An IPython session: type a line, get what it prints until the next prompt."""

    def __init__(self, profile, **kwargs):
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "IPython", "--simple-prompt", "--colors=NoColor", f"--profile-dir={profile}"],
            env=environment(),
            encoding="utf-8",
            timeout=170,
            dimensions=(50, 250),
            # Ctrl-C reaches it also where the tests themselves run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **kwargs,
        )
        self.greeting = self._until_prompt()

    def type(self, lines):
        self.child.sendline(lines)  # an empty line ends a block
        return self._until_prompt()

    def press_ctrl_c_twice(self, line):
        """Type a line, and interrupt it once its run has begun."""
        self.child.sendline(line)
        self.child.expect("Persistent Unique Scan ID")
        asked = "A 'deferred pause' has been requested"
        # On a machine with much to do, the first can come before anybody listens.
        for _ in range(3):
            self.child.sendintr()
            if self.child.expect([asked, pexpect.TIMEOUT], timeout=20) == 0:
                break
        threading.Event().wait(0.2)  # to bluesky what is faster than a hand is one Ctrl-C
        self.child.sendintr()
        return self._until_prompt()

    def _until_prompt(self):
        self.child.expect(PROMPT)
        return self.child.before.replace("\r", "")

    def leave(self):
        """Leave it, and see that it has nothing to complain about; return its exit status."""
        self.child.sendline("exit()")
        self.child.expect(pexpect.EOF)
        assert "Error" not in self.child.before, self.child.before
        self.child.close()
        return self.child.exitstatus


CHANGED_EXPOSURE = """
bps, det = namespace["bps"], namespace["det"]
def changed():
    yield from bps.open_run()
    yield from bps.trigger_and_read([det])
    yield from bps.mv(det.cam.acquire_time, 0.5)
    yield from bps.trigger_and_read([det])
    yield from bps.close_run()
RE(changed())
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_the_startup_files_run_one_after_another_as_the_queue_server_runs_them(tmp_path, RE):
    profile = profile_copy(tmp_path, "profile_simulated")
    with embedded_tiled(profile / "kept") as uri:  # a session before
        client = from_uri(uri)
        with client.context:
            RE.subscribe(TiledWriter(client, batch_size=1))
            RE.md["scan_id"] = 41
            RE(bp.count([], 1))
    edited = yaml.safe_load((profile / "settings.yaml").read_text())
    edited["data_directory"] = "kept"
    edited["denoise"] |= {"frames_directory": "kept/frames", "save_sigma": True}
    edited["scene"] = {"shape": [64, 64]}  # in which a region reaches over the edge
    (profile / "settings.yaml").write_text(yaml.safe_dump(edited))
    code = (
        "RE = namespace['RE']\n"
        "RE(namespace['short_scan'](num=2))\n"
        "namespace['denoise'].wait(60)\n"
        "print('events', len(namespace['cat'][-1]['denoised'].read().time))\n"
        "print('scan_id', namespace['cat'][-1].metadata['start']['scan_id'])\n"
        "namespace['cat'].v2[-1]['denoised']\n"
        "namespace['web']()\n"
        "namespace['web'](data_key='nope')\n"
        "RE(namespace['count']([namespace['motor']]))\n"
        "namespace['web']()\n"
        f"{CHANGED_EXPOSURE}"
        "namespace['denoise'].wait(60)\n"
        "denoised = namespace['cat'].v3[-1]['denoised'].read()\n"
        "print('exposures', denoised['det_image_exposure_s'].values.tolist())\n"
        "try:\n    namespace['watch'](data_key='nope')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    printed = started(tmp_path, profile, code, timeout_s=150)
    assert "events 2" in printed
    assert "scan_id 43" in printed
    assert "exposures [1.0, 0.5]" in printed
    assert re.search(r"^http://\S+/ui/browse/([\w-]{36})/denoised/det_image\?api", printed, re.M)
    assert re.search(r"No nope has been denoised in run \w{8}\.", printed)
    assert re.search(r"\w{8} has no stream `denoised`, or not yet; its streams: pri", printed)
    assert "The view is to show 'nope'; what is denoised is det_image." in printed
    assert len(list((profile / "kept" / "frames").rglob("*_denoised_*.h5"))) == 2
    assert "Try, in this order" not in printed  # nobody sits there


def begun(profile, name, **namespace):
    """Run one startup file of a profile in this process; return what is there then."""
    file = profile / "startup" / name
    namespace |= {"__file__": str(file)}
    exec(compile(file.read_text(), file, "exec"), namespace)
    return namespace


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "told"),
    [
        (
            *("profile_simulated", "settings.yaml", "exposure_s", "exposure"),
            "settings.yaml has unknown keys: exposure; and lacks: exposure_s.",
        ),
        (
            *("profile_area_detector", "beamline.yaml", "motors", "motor"),
            "beamline.yaml has unknown keys: motor.",
        ),
    ],
)
def test_a_wrong_key_in_the_file_of_a_profile_is_named_with_the_file(
    tmp_path, caplog, name, file, old, new, told
):
    caplog.set_level("WARNING", "bluesky_denoise")  # as the profile does, until the test ends
    profile = profile_copy(tmp_path, name)
    path = profile / file
    path.write_text(path.read_text().replace(f"{old}:", f"{new}:"))
    with pytest.raises(SettingsError) as error:
        begun(profile, "00-base.py")
    assert str(error.value) == f"{profile}/{told}"


@pytest.mark.parametrize(
    ("part", "wrong", "told"),
    [
        ("scene", {"background_cp": 1}, r"scene: .* unexpected keyword argument 'background_cp'\."),
        ("denoise", {"thread": 1}, "denoise: unknown setting 'thread'"),
    ],
)
def test_a_wrong_key_within_the_settings_of_a_profile_is_named_with_the_file(
    tmp_path, part, wrong, told
):
    path = PROFILES / "profile_simulated" / "settings.yaml"
    settings = {**yaml.safe_load(path.read_text()), part: wrong}
    namespace = {"SETTINGS": settings, "SETTINGS_FILE": path, "PROFILE": tmp_path, "DATA": tmp_path}
    with pytest.raises(SettingsError, match=f"^{path}, {told}"):
        begun(path.parent, "10-devices.py", TILED_URI="http://localhost", **namespace)


def test_the_area_detector_profile_says_what_is_wrong_with_each_device(tmp_path):
    profile = profile_copy(tmp_path, "profile_area_detector")
    edited = yaml.safe_load((profile / "beamline.yaml").read_text())
    edited["timeout_s"] = 0.2
    edited["motors"] = {"theta": "XF00ID-OP:1{Ax:Th}Mtr"}
    where = {"prefix": "XF00ID-ES{Det:1}", "write_path": "/data/"}
    edited["detectors"] = {
        "pilatus": {"layer": "ophyd", **where},
        "eiger": {"layer": "ophyd-async", "kind": "adpilatus", **where},
        "other": {"layer": "tango", **where},
        "third": {"layer": "ophyd", "prefix": "X"},
        "fourth": {"layer": "ophyd-async", "kind": "adeiger", **where},
    }
    (profile / "beamline.yaml").write_text(yaml.safe_dump(edited))
    printed = started(tmp_path, profile, "print(namespace['denoise'])\n")
    for name in ("motor theta", "detector pilatus", "detector eiger"):
        assert re.search(
            rf"{name}: (\w+: .*|NotConnectedError: \n(.*\n){{9}}    ... and \d+ lines more)"
            r"\n  Is the prefix right, the IOC running",
            printed,
        )
    assert "could not connect within 0.2-second timeout" in printed  # while it is built, too
    assert "detector other: layer is 'tango'; expected one of ophyd, ophyd-async." in printed
    assert re.search(r"third: TypeError: .*'write_path'\n  beamline.yaml lacks a line", printed)
    assert re.search(r"fourth: KeyError: .*kind is 'adeiger'; expected one of admerlin, ", printed)
    assert printed.splitlines()[-1] == "None"


def test_a_package_that_a_detector_lacks_is_told_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ophyd_async.core", None)
    monkeypatch.setattr("ophyd.signal.EpicsSignalBase.set_defaults", lambda **given: None)
    profile = profile_copy(tmp_path, "profile_area_detector")
    eiger = {"layer": "ophyd-async", "kind": "adpilatus", "prefix": "X", "write_path": "/data/"}
    begun(profile, "10-devices.py", BEAMLINE={"detectors": {"eiger": eiger}})
    assert "\n  Install it, `pip install ophyd-async`, or the extra" in capsys.readouterr().out


def test_the_extra_of_the_area_detector_profile_has_what_it_imports():
    config = ConfigParser()
    config.read(PROFILES.parent / "setup.cfg")
    extras = config["options.extras_require"]
    lines = [*config["options"]["install_requires"].split(), *extras["beamline"].split()]
    nested = re.search(r"\[(.*)\]", extras["beamline"])[1].split(",")
    lines += [line for name in nested for line in extras[name].split()]
    projects = {re.split(r"[\[><=,]", line)[0] for line in lines}
    assert projects >= {"aioca", "ipython", "matplotlib", "ophyd-async", "pyepics", "tiled"}


def test_a_tiled_that_does_not_answer_is_told_with_the_line_to_look_at(tmp_path, monkeypatch):
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    profile = profile_copy(tmp_path, "profile_area_detector")
    address = f"http://127.0.0.1:{free_port()}"
    beamline = {"tiled_uri": f"{address}?api_key=secret"}
    (profile / "beamline.yaml").write_text(yaml.safe_dump(beamline))
    with pytest.raises(SettingsError) as caught:
        begun(profile, "00-base.py")
    assert f"beamline.yaml, `tiled_uri`: Tiled at {address} cannot be opened" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.thorough
def test_what_is_left_empty_in_the_area_detector_profile_is_not_there(tmp_path):
    cases = {
        "empty keys": "motors:\ndetectors:\ndenoise:\ntiled_uri:\n",
        "empty file": "",
        "a detector without a line": "detectors:\n  pilatus:\n",
    }
    code = ""
    for name, edited in cases.items():
        (tmp_path / name).mkdir()
        profile = profile_copy(tmp_path / name, "profile_area_detector")
        (profile / "beamline.yaml").write_text(edited)
        code += RUN.format(startup=profile / "startup")
        code += f"print({name!r}, *map(namespace.get, ('cat', 'denoise')), namespace['RE'].state)\n"
    printed = run(tmp_path, code)
    for name in cases:
        assert f"{name} None None idle\n" in printed
    assert re.search(r"pilatus: TypeError: .*\n  beamline.yaml lacks a line", printed)


def test_the_area_detector_profile_says_that_nothing_is_saved(RE, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    profile = profile_copy(tmp_path, "profile_area_detector")
    names = {"_found": {"theta": None}, "_detectors": {}, "denoise": None, "denoised": None}
    begun(profile, "30-live.py", RE=RE, cat=None, BEAMLINE_FILE="beamline.yaml", **names)
    printed = capsys.readouterr().out
    assert "A session with RE;\nbeamline.yaml names what there is." in printed
    assert "names no Tiled server: runs are saved nowhere." in printed


def test_a_stream_that_failed_before_its_first_event_has_none_for_the_queue_server(tmp_path):
    profile = profile_copy(tmp_path, "profile_simulated")
    taken = {"primary": xarray.Dataset({"time": [1.0, 2.0]}), "denoised": xarray.Dataset()}
    run = {name: SimpleNamespace(read=lambda _, d=data: d) for name, data in taken.items()}
    denoise = SimpleNamespace(wait=lambda _: None)
    namespace = begun(profile, "20-plans.py", cat={"uid": run}, denoise=denoise)
    assert namespace["denoised_events"]("uid") == {"primary": 2, "denoised": 0}


def test_the_area_detector_profile_creates_nothing_until_it_is_edited(tmp_path):
    profile = profile_copy(tmp_path, "profile_area_detector")
    edited = yaml.safe_load((profile / "beamline.yaml").read_text())
    assert edited["detectors"] == {}
    assert edited["motors"] == {}
    for file in sorted((profile / "startup").glob("*.py")):
        compile(file.read_text(), file, "exec")
    DenoiseSettings.from_values(edited["denoise"], profile)
