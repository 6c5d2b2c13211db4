"""The writer of raw runs, as sessions of this package subscribe it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bluesky_tiled_plugins import TiledWriter

from bluesky_denoise.backup import RawBackup
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.in_turn import InTurn
from bluesky_denoise.sources.resources import RESOURCE_PATCHES

__all__ = ["raw_writer"]


def raw_writer(
    client: Any, backup_directory: str | Path
) -> Callable[[str, Mapping[str, Any]], None]:
    """Return what writes raw runs to Tiled, and ends no scan where Tiled fails.

    Bluesky's `TiledWriter`, in a way in which nothing gets lost: each event is in Tiled as soon as
    it is saved; a run that Tiled does not take is kept in a file (`RawBackup`); documents of
    monitors, which come on threads of their own, wait for their turn (`InTurn`); and files of an
    ophyd areaDetector, one for each frame, are found (`RESOURCE_PATCHES`).

    Parameters
    ----------
    client :
        Tiled client of the container of raw runs.
    backup_directory :
        Made with the first run that is kept, which `bluesky-denoise restore` brings in.

    Raises
    ------
    SettingsError
        If the client is none, such as an address, or nothing can be written to the directory.

    Examples
    --------
    >>> RE.subscribe(raw_writer(cat, "raw_backup"))
    0
    """
    if not hasattr(client, "create_container"):
        raise SettingsError(
            f"Raw runs were to go to a {type(client).__name__}; expected a client of Tiled, such "
            "as `from_uri(ADDRESS)`."
        )
    backup = RawBackup(backup_directory)
    return InTurn(
        TiledWriter(client, batch_size=1, patches=RESOURCE_PATCHES, backup_dictionary=backup)
    )
