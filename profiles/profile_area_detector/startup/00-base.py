"""RunEngine and catalog."""

from pathlib import Path

from bluesky import RunEngine
from tiled.client import from_uri

from bluesky_denoise import raw_writer
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.startup import closed_at_exit, newest_scan_id, profile_directory
from bluesky_denoise.support.yaml_files import read_yaml

PROFILE = profile_directory("beamline.yaml", globals().get("__file__"))
BEAMLINE_FILE = PROFILE / "beamline.yaml"
BEAMLINE = read_yaml(BEAMLINE_FILE) or {}
_unknown = set(BEAMLINE) - {"tiled_uri", "motors", "detectors", "timeout_s", "denoise"}
if _unknown:
    raise SettingsError(f"{BEAMLINE_FILE} has unknown keys: {', '.join(map(str, _unknown))}.")

_session = closed_at_exit()

RE = RunEngine({})
cat = None
if BEAMLINE.get("tiled_uri"):
    try:
        cat = from_uri(BEAMLINE["tiled_uri"])
    except Exception as error:
        address = BEAMLINE["tiled_uri"].partition("?")[0]
        raise SettingsError(
            f"{BEAMLINE_FILE}, `tiled_uri`: Tiled at {address} cannot be opened "
            f"({type(error).__name__}: {error}). Without it there is no session: start "
            "it, correct the address or TILED_API_KEY, or leave `tiled_uri` out."
        ) from None
    RE.md["scan_id"] = newest_scan_id(cat)
    # A server error must not end a scan: what Tiled does not take is kept there.
    RE.subscribe(raw_writer(cat, PROFILE / "raw_backup"))
