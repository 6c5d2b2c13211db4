"""Sessions that begin with the startup files of a profile."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROFILES = Path(__file__).parents[1] / "profiles"
RUN = """
from pathlib import Path
namespace = {{"__name__": "__main__"}}
for file in sorted(Path(r"{startup}").glob("*.py")):
    namespace["__file__"] = str(file)
    exec(compile(file.read_text(), file, "exec"), namespace)
"""


def profile_copy(tmp_path, name):
    """Copy a profile, so that IPython leaves its logs elsewhere."""
    ignored = shutil.ignore_patterns("log", "pid", "security", "db", "history.sqlite*")
    return Path(shutil.copytree(PROFILES / name, tmp_path / name, ignore=ignored))


def environment(**more):
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "TERM": "dumb",
        "MPLBACKEND": "Agg",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        # Nobody else on the network is asked for PVs.
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CA_ADDR_LIST": "127.0.0.1",
        **more,
    }


def started(tmp_path, profile, code, timeout_s=100, **more):
    """Run the startup files of a profile, one after another, and then code; return its output."""
    return run(tmp_path, RUN.format(startup=profile / "startup") + code, timeout_s, **more)


def run(tmp_path, code, timeout_s=100, **more):
    """Run code in a new process, with more in its environment; return its output."""
    script = tmp_path / "run.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**more),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
