"""RunEngine, catalog, data directory: what every session has."""

import logging
import os
import tempfile
from pathlib import Path

from bluesky import RunEngine
from tiled.client import from_uri

from bluesky_denoise import raw_writer
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.server import embedded_tiled
from bluesky_denoise.startup import closed_at_exit, newest_scan_id, profile_directory
from bluesky_denoise.support.yaml_files import read_yaml

logging.getLogger("bluesky_denoise").setLevel(logging.WARNING)

PROFILE = profile_directory("settings.yaml", globals().get("__file__"))
SETTINGS_FILE = PROFILE / "settings.yaml"
SETTINGS = read_yaml(SETTINGS_FILE) or {}
_known = {
    *("data_directory", "tiled_port", "scene", "rocking_width", "exposure_s", "realtime"),
    "denoise",
}
_unknown, _missing = sorted(map(str, set(SETTINGS) - _known)), sorted(_known - set(SETTINGS))
if _unknown or _missing:
    raise SettingsError(
        f"{SETTINGS_FILE} has unknown keys: {', '.join(_unknown) or 'none'}; and lacks: "
        f"{', '.join(_missing) or 'none'}."
    )

_session = closed_at_exit()
if SETTINGS["data_directory"]:
    # As the Tiled server has it, so that frames are found by whatever path the directory is served.
    DATA = (PROFILE / Path(SETTINGS["data_directory"]).expanduser()).resolve()
else:
    DATA = Path(_session.enter_context(tempfile.TemporaryDirectory(prefix="bluesky_denoise_")))

TILED_URI = _session.enter_context(embedded_tiled(DATA, port=SETTINGS["tiled_port"]))
WEB_PAGE = TILED_URI.replace("/api/v1?", "/ui/browse/?")
cat = from_uri(TILED_URI)

RE = RunEngine({"scan_id": newest_scan_id(cat)})
RE.subscribe(raw_writer(cat, DATA / "raw_backup"))
