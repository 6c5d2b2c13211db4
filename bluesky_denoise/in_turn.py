"""Documents handed on one at a time, whatever threads they come from."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["InTurn"]


class InTurn:
    """Call a function with one document at a time, in the order in which they come.

    The events of a monitored signal come on the thread that sees it change, beside those of the
    plan. A `TiledWriter` that is called twice at once fails: Tiled then has a part of the raw
    run, or the scan ends. Here a thread waits for its turn.

    Parameters
    ----------
    callback :
        Called with ``(name, doc)``.

    Examples
    --------
    >>> RE.subscribe(InTurn(TiledWriter(cat, backup_dictionary=RawBackup("raw_backup"))))
    """

    def __init__(self, callback: Callable[[str, Mapping[str, Any]], Any]) -> None:
        self._callback = callback
        self._changed = threading.Condition()
        # A lock would let the stop of a run overtake an event that waits.
        self._threads: deque[int] = deque()

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Hand on a document."""
        thread = threading.get_ident()
        with self._changed:
            # What is called may change a signal that is monitored.
            is_inside = bool(self._threads) and self._threads[0] == thread
            if not is_inside:
                self._threads.append(thread)
        if is_inside:
            self._callback(name, doc)
            return
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._threads[0] == thread)
            self._callback(name, doc)
        finally:
            with self._changed:
                self._threads.remove(thread)
                self._changed.notify_all()
