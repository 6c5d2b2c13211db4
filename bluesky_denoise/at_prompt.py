"""What somebody at the prompt of an IPython profile sees: tables, plots, the live view."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import matplotlib

from bluesky_denoise.best_effort import DenoisedBestEffortCallback
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.sources.frame_keys import is_part
from bluesky_denoise.viewer import FrameViewer

__all__ = ["has_screen", "open_view", "tables_and_plots"]

_PICTURE = "live.png"


def has_screen() -> bool:
    """Tell whether plots can be shown: in Jupyter, or where there is a display."""
    if "ipykernel" in sys.modules or sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


class _WithoutTraceback(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        return ""


def tables_and_plots(RE: Any) -> DenoisedBestEffortCallback:
    """Print and plot each run, and the reason of a plan that fails.

    Parameters
    ----------
    RE : bluesky.RunEngine
        Is subscribed to.

    Returns
    -------
    DenoisedBestEffortCallback
        Without plots where there is no screen.
    """
    # IPython shows the traceback of a plan that fails; once is enough.
    once = logging.StreamHandler()
    once.setFormatter(_WithoutTraceback("%(message)s"))
    logging.getLogger("bluesky").addHandler(once)
    if not has_screen():
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    callback = DenoisedBestEffortCallback()
    if has_screen():
        plt.ion()
    else:
        callback.disable_plots()
    RE.subscribe(callback)
    return callback


def open_view(RE: Any, denoise: Any, data_key: str, roi: str | None) -> FrameViewer:
    """Open the live view; without a screen, say which picture it draws.

    Parameters
    ----------
    RE : bluesky.RunEngine
    denoise : DenoiseProcess
        Whose frames are shown.
    data_key :
        Of the denoised frames.
    roi :
        Name of the region whose intensity is traced; None: the denoised total.

    Raises
    ------
    SettingsError
        If there are no such frames, or no such region.
    """
    known = denoise.settings.data_keys
    # A device that has several images stands for them; which ones, a run tells.
    if known is not None and not any(is_part(data_key, name) for name in known):
        raise SettingsError(
            f"The view is to show {data_key!r}; what is denoised is {', '.join(known)}."
        )
    viewer = FrameViewer(data_key, roi=roi, save_to=None if has_screen() else _PICTURE)
    viewer.attach(RE, denoise)
    if not has_screen():
        print(f"There is no screen: {Path(_PICTURE).absolute()} is drawn anew with each frame.")
    return viewer
