"""What the startup files of an IPython profile, or of the queue server, begin with."""

import concurrent.futures.thread  # noqa: F401  (what is registered after it is called before it)
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bluesky_denoise.errors import SettingsError

__all__ = ["closed_at_exit", "newest_scan_id", "profile_directory"]


def profile_directory(holding: str, startup_file: str | None = None) -> Path:
    """Return the directory of the profile whose startup files are running.

    Parameters
    ----------
    holding :
        A file that lies in it, such as ``"settings.yaml"``.
    startup_file :
        ``globals().get("__file__")`` of a startup file; None: the queue server runs them
        without, in their own directory, or in an IPython kernel that knows its profile.

    Returns
    -------
    pathlib.Path
        Absolute.

    Raises
    ------
    SettingsError
        If the file is in none of these directories.
    """
    places = [Path(startup_file or Path.cwd() / "file").resolve().parents[1]]
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        places.append(Path(shell.profile_dir.location).resolve())
    for place in places:
        if (place / holding).is_file():
            return place
    raise SettingsError(
        f"There is no {holding} in {' or '.join(map(str, places))}. Startup files are run from "
        "the `startup` directory of their profile, beside which it lies."
    )


def newest_scan_id(catalog: Any) -> int:
    """Return the number of the newest run that a catalog keeps, from which scans are numbered on.

    An older one may have been brought in after it.

    Parameters
    ----------
    catalog :
        Tiled client of a container of runs.

    Returns
    -------
    int
        0 if there is none.
    """
    last = [run.metadata.get("start") for run in catalog.values().tail(9)]
    newest: Mapping[str, Any] = max(filter(None, last), key=lambda start: start["time"], default={})
    return newest.get("scan_id") or 0


def closed_at_exit() -> ExitStack:
    """Return a stack of contexts and callbacks that is closed when the prompt is left.

    `atexit` is too late to end threads: Python waits for them before. Before even that it ends
    the pools of concurrent.futures, without which a Tiled server in this process reads nothing;
    so the stack is closed first of all, by what concurrent.futures itself is called by. IPython
    empties the namespace before it leaves, so nothing may be looked up in it by then.
    """
    stack, here = ExitStack(), os.getpid()

    def close() -> None:
        if os.getpid() == here:  # a forked child has all that is registered, too
            stack.close()

    threading._register_atexit(close)  # type: ignore[attr-defined]  # there is no public one
    return stack
