"""An IPython session whose runs are saved and denoised.

    ipython -i callbacks/in_process.py settings.yaml

Then make your detector and motor, or import them, and type, if they are ``det`` and ``motor``:
``RE(scan([det], motor, -1, 1, 21))``, ``denoise.wait()``, ``cat[-1]["denoised"]``.
"""

import sys

from bluesky import RunEngine
from bluesky.plans import count, scan  # noqa: F401 (for the prompt)
from tiled.client import from_uri

from bluesky_denoise import DenoiseProcess, DenoiseSettings, raw_writer
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.in_tiled.layouts import why_not_opened

if len(sys.argv) != 2:
    sys.exit("Give the file of settings: ipython -i callbacks/in_process.py settings.yaml")
try:
    settings = DenoiseSettings.from_yaml(sys.argv[1])
except DenoiseError as error:
    sys.exit(str(error))
if settings.tiled_uri is None:
    sys.exit(f"{sys.argv[1]} names no Tiled server; add `tiled_uri`.")
key = settings.tiled_api_key
try:
    cat = from_uri(settings.tiled_uri, api_key=key.get_secret_value() if key else None)
except Exception as error:
    why = why_not_opened(error, f"as `tiled_uri` in {sys.argv[1]}")
    sys.exit(f"Tiled at {settings.tiled_uri} cannot be opened: {why}")

RE = RunEngine()
# Raw data first, and on its own; what Tiled does not take is kept, and the scan goes on.
try:
    RE.subscribe(raw_writer(cat, settings.backup_path / "raw"))
except DenoiseError as error:
    sys.exit(f"{error} It is below `backup_directory` in {sys.argv[1]}.")
try:
    denoise = DenoiseProcess(settings)
except DenoiseError as error:
    sys.exit(str(error))
RE.subscribe(denoise)
