"""Stop documents that a message bus has lost, asked of Tiled on a thread."""

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["LostStops"]

logger = logging.getLogger(__name__)


class LostStops:
    """Ask Tiled how runs have ended, whose stop documents may be lost.

    A server that hangs holds up the thread alone; while it does, nothing more is asked.

    Parameters
    ----------
    catalog :
        Returns the Tiled catalog of raw runs; called on the thread.
    explain :
        Says in a line what an error of Tiled is.
    """

    def __init__(self, catalog: Callable[[], Any], explain: Callable[[Exception], str]) -> None:
        self._catalog, self._explain = catalog, explain
        self._found: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, uids: Sequence[str], before: float = math.inf) -> None:
        """Begin to ask for the stops of runs, if nothing is asked for already; returns at once.

        Parameters
        ----------
        uids :
            Of the runs.
        before :
            Those that ended later are left out: what the bus has of them may be on its way.
            Seconds since 1970.
        """
        if not uids or (self._thread and self._thread.is_alive()):
            return
        self._thread = threading.Thread(
            target=self._look, args=(uids, before), name="denoise-lost-stops", daemon=True
        )
        self._thread.start()

    def wait(self, timeout: float) -> None:
        """Wait until all that was asked is answered, for so many seconds at most."""
        if self._thread:
            self._thread.join(timeout)

    def found(self) -> Iterator[dict[str, Any]]:
        """Yield the stop documents that have come since."""
        while not self._found.empty():
            yield self._found.get()

    def _look(self, uids: Sequence[str], before: float) -> None:
        for uid in uids:
            try:
                stop = self._catalog()[uid].metadata.get("stop")
            except KeyError:
                continue  # not in Tiled, or not yet
            except Exception as error:
                logger.warning(
                    "Tiled cannot be asked whether runs that are open have ended (%s); it is asked "
                    "again when another run begins",
                    self._explain(error),
                )
                return
            if stop and stop["time"] <= before:
                self._found.put(dict(stop))
