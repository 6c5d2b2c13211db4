"""RunEngine and catalog."""
# ruff: noqa: F821 (`get_ipython` is IPython's)

import threading
from contextlib import ExitStack
from pathlib import Path

import yaml
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri

# The queue server runs these files without `__file__`, from the directory they are in.
PROFILE = Path(globals().get("__file__", Path.cwd() / "x")).resolve().parents[1]
if not (PROFILE / "beamline.yaml").is_file():
    PROFILE = Path(get_ipython().profile_dir.location).resolve()
BEAMLINE = yaml.safe_load((PROFILE / "beamline.yaml").read_text())

_session = ExitStack()


def _close_at_exit(session, main_thread):
    """Close the session when the prompt is left: `atexit` is too late to end threads.

    IPython empties the namespace before, so nothing here is looked up in it.
    """
    main_thread.join()
    session.close()


threading.Thread(
    target=_close_at_exit, args=(_session, threading.main_thread()), name="close-session"
).start()

RE = RunEngine({})
cat = None
if BEAMLINE["tiled_uri"]:
    cat = from_uri(BEAMLINE["tiled_uri"])
    RE.subscribe(TiledWriter(cat))
