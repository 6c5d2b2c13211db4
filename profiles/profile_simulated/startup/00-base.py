"""RunEngine, catalog, data directory: what every session has."""
# ruff: noqa: F821 (`get_ipython` is IPython's)

import logging
import os
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import yaml
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri

from bluesky_denoise.server import embedded_tiled

logging.getLogger("bluesky_denoise").setLevel(logging.WARNING)

# The queue server runs these files without `__file__`, from the directory they are in.
PROFILE = Path(globals().get("__file__", Path.cwd() / "x")).resolve().parents[1]
if not (PROFILE / "settings.yaml").is_file():
    PROFILE = Path(get_ipython().profile_dir.location).resolve()
SETTINGS = yaml.safe_load((PROFILE / "settings.yaml").read_text())

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
if SETTINGS["data_directory"]:
    DATA = Path(SETTINGS["data_directory"]).expanduser().absolute()
else:
    DATA = Path(_session.enter_context(tempfile.TemporaryDirectory(prefix="bluesky_denoise_")))

TILED_URI = _session.enter_context(embedded_tiled(DATA, port=SETTINGS["tiled_port"]))
WEB_PAGE = TILED_URI.replace("/api/v1?", "/ui/browse/?")
cat = from_uri(TILED_URI)

RE = RunEngine({})
RE.subscribe(TiledWriter(cat, batch_size=1))
