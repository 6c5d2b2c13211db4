"""What a message bus has lost of runs, read from Tiled, where it may come late."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from bluesky_denoise.bus.received import ReceivedStream
from bluesky_denoise.in_tiled.archive import ArchivedStream

__all__ = ["Descriptors", "LostEvents"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
"""Between two looks at Tiled."""
_HASTE_S = 0.5
"""Seconds that Tiled is waited for where it has been waited for in vain."""

Descriptors = dict[str, dict[str, Any]]
"""By uid."""


class LostEvents:
    """Read events of runs from Tiled, with their frames, as soon as they are there.

    Parameters
    ----------
    client :
        The Tiled catalog that raw runs are written to, or a function that opens it when it is
        needed; None: nothing is ever found.
    patience_s :
        How long what is missing may take to appear in Tiled, seconds.
    redact :
        Takes secrets out of messages.
    """

    def __init__(self, client: Any, patience_s: float, redact: Callable[[str], str]) -> None:
        self._client, self._patience_s, self._redact = client, patience_s, redact

    @property
    def has_client(self) -> bool:
        """Whether there is a Tiled to look into."""
        return self._client is not None

    def catalog(self) -> Any:
        """Return the client, which is opened now if it was not before."""
        client = self._client
        if callable(client):  # on two threads, here and of `LostStops`, so not looked at twice
            self._client = client = client()
        return client

    def in_short(self, error: Exception) -> str:
        """Return the first line of an error."""
        return self._redact(f"{type(error).__name__}: {error}".partition("\n")[0])

    def wait_for(self, uid: str, wanted: Mapping[str, int]) -> None:
        """Wait for so many events of each stream of a run, as long as there is patience."""
        pauses = _Pauses(self._patience_s)
        while not self._has_come(uid, wanted) and not pauses.over():
            pass

    def _has_come(self, uid: str, wanted: Mapping[str, int]) -> bool:
        """Tell whether the last events of some streams are in Tiled, with their frames."""
        try:
            run = self.catalog()[uid]
            return all(
                any(ArchivedStream(run, name).events(number, number))
                for name, number in wanted.items()
                if number
            )
        except Exception:  # or it cannot be told
            return False

    def search(
        self, uid: str, stream: ReceivedStream, first: int, last: int
    ) -> tuple[Descriptors, list[dict[str, Any]], str]:
        """Fetch events, and wait for them less if the last time was in vain."""
        patience_s = min(self._patience_s, _HASTE_S) if stream.in_vain else self._patience_s
        fetched = self.fetch(uid, stream, first, last, patience_s)
        stream.in_vain = len({event["seq_num"] for event in fetched[1]}) < last - first + 1
        return fetched

    def fetch(
        self, uid: str, stream: ReceivedStream, first: int, last: int, patience_s: float
    ) -> tuple[Descriptors, list[dict[str, Any]], str]:
        """Return the descriptors by uid, the events that are in Tiled, why others are not.

        Parameters
        ----------
        uid, stream :
            Of the run, and what has come of its stream; they are newer than that.
        first, last :
            Numbers of the events.
        patience_s :
            How long they may take to appear, seconds.
        """
        descriptors: Descriptors = {}
        events: list[dict[str, Any]] = []
        why = "not in Tiled"
        if self._client is None:
            return descriptors, events, why
        pauses = _Pauses(patience_s)
        while True:
            try:
                archived = ArchivedStream(self.catalog()[uid], stream.name)
                found = [
                    event
                    for event in archived.events(first, last)
                    if (event["time"], event["seq_num"]) > stream.newest
                    and event["data"].keys() >= set(stream.keys)  # files come after the table
                ]
                descriptors = {doc["uid"]: doc for doc in archived.descriptors()}
                events, why = found, "not in Tiled"
            except KeyError:
                why = "not in Tiled"
            except Exception as error:
                why = f"not to be read from Tiled ({self.in_short(error)})"
            if len({event["seq_num"] for event in events}) == last - first + 1 or pauses.over():
                return descriptors, events, why


class _Pauses:
    """Pauses between looks at Tiled, each twice as long as the last, until patience is over."""

    def __init__(self, patience_s: float) -> None:
        self._deadline, self._next_s = time.monotonic() + patience_s, _FIRST_PAUSE_S

    def over(self) -> bool:
        """Pause, unless there is no time left."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            return True
        time.sleep(min(self._next_s, left_s))
        self._next_s = min(2 * self._next_s, _LONGEST_PAUSE_S)
        return False
