"""Denoise runs that are in Tiled already; the result goes beside what is there.

python callbacks/replay.py settings.yaml UID [UID ...]
"""

import sys

from bluesky_denoise.cli import app

if __name__ == "__main__":
    app(["reprocess", *sys.argv[1:]])
