"""The writer of raw runs, as sessions of this package subscribe it."""

import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bluesky_tiled_plugins import TiledWriter

from bluesky_denoise.backup import RawBackup
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.in_turn import InTurn
from bluesky_denoise.sources.resources import RESOURCE_PATCHES

__all__ = ["raw_writer"]

logger = logging.getLogger(__name__)

_OPEN: "weakref.WeakValueDictionary[tuple[str, str], _OneOfAll]" = weakref.WeakValueDictionary()
"""By address of the container and uid, who writes the open runs of this Python."""


def raw_writer(
    client: Any, backup_directory: str | Path
) -> Callable[[str, Mapping[str, Any]], None]:
    """Return what writes raw runs to Tiled, and ends no scan where Tiled fails.

    Bluesky's `TiledWriter`, in a way in which nothing gets lost: each event is in Tiled as soon as
    it is saved; a run that Tiled does not take is kept in a file (`RawBackup`); documents of
    monitors, which come on threads of their own, wait for their turn (`InTurn`); and files of an
    ophyd areaDetector, one for each frame, are found (`RESOURCE_PATCHES`). Of several for the same
    container, as after a cell of a notebook was run again, one alone writes each run.

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
    write = TiledWriter(client, batch_size=1, patches=RESOURCE_PATCHES, backup_dictionary=backup)
    return InTurn(_OneOfAll(write, str(client.uri)))


class _OneOfAll:
    """Write the runs that no other writer of this Python has begun to write there.

    Tiled takes a run once: a second writer would keep each in a file, and report an error.
    """

    def __init__(self, write: Callable[[str, Mapping[str, Any]], Any], where: str) -> None:
        self._write = write
        self._where = where
        self._left: dict[str, str] = {}
        """Uids of runs that are left to another, of their descriptors and resources: the run's."""
        self._told = False

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a raw run."""
        if name == "start":
            if _OPEN.setdefault((self._where, doc["uid"]), self) is not self:
                self._left[doc["uid"]] = doc["uid"]
                self._tell(doc["uid"])
                return
        elif run := self._left_run(doc):
            if name == "stop":
                self._left = {uid: of for uid, of in self._left.items() if of != run}
            elif name in ("descriptor", "resource"):
                self._left[doc["uid"]] = run
            return
        self._write(name, doc)
        if name == "stop":
            _OPEN.pop((self._where, doc["run_start"]), None)

    def _left_run(self, doc: Mapping[str, Any]) -> str:
        """Return the uid of the run of a document, if that is left to another writer."""
        earlier = (doc[key] for key in ("run_start", "descriptor", "resource") if doc.get(key))
        return self._left.get(next(earlier, ""), "")

    def _tell(self, uid: str) -> None:
        if self._told:
            return
        self._told = True
        logger.warning(
            "Run %.8s is written to %s by another raw_writer of this session, as where a cell was "
            "run again; this one leaves such runs alone. To have one: `RE.unsubscribe(token)`, "
            "with the token that `RE.subscribe` gave",
            *(uid, self._where),
        )
