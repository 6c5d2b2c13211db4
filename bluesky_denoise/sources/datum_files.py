"""Which event the frames of a Datum belong to, and where in its file they are."""

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["DatumFiles"]


class DatumFiles:
    """Keep the Datum documents of a run, with their events, and count the frames of each file.

    What they become, stream datums, are numbered through all files of a run, since Tiled puts
    those end to end, and not by their events. Here each file is read by itself. It may hold frames
    of several streams, and such that no event has.
    """

    def __init__(self) -> None:
        self._datums: dict[str, Mapping[str, Any]] = {}  # by id
        self._seq_nums: dict[str, int] = {}  # of the events of those whose frames are wanted
        self._next: dict[tuple[str, str], int] = {}  # by resource and data key

    def take(self, datum: Mapping[str, Any]) -> None:
        """Take a Datum document."""
        self._datums[datum["datum_id"]] = datum

    def note(self, event: Mapping[str, Any], wanted: Collection[str]) -> None:
        """Note the datums of an event, of any stream, and forget those that are not wanted.

        Parameters
        ----------
        event :
            As the detectors sent it.
        wanted :
            Data keys whose frames are wanted.
        """
        for key, value in event["data"].items():
            if not isinstance(value, str):
                continue
            if key in wanted:
                self._seq_nums[value] = event["seq_num"]
            elif (datum := self._datums.pop(value, None)) is not None:
                self._count(datum, key)

    def awaits(self, seq_num: int) -> bool:
        """Tell whether an event has a datum that has not been placed."""
        return seq_num in self._seq_nums.values()

    def place(self, stream_datum: Mapping[str, Any], data_key: str) -> tuple[int, range] | None:
        """Return the number of the event, and the indices of its frames in their file.

        Parameters
        ----------
        stream_datum :
            What a Datum has become; any other gives None.
        data_key :
            Of the frames.
        """
        seq_num = self._seq_nums.pop(stream_datum["uid"], None)
        if seq_num is None:
            return None
        datum = self._datums.pop(stream_datum["uid"], None)
        span = self._count(datum, data_key) if datum else None
        if span is None:
            span = range(stream_datum["indices"]["start"], stream_datum["indices"]["stop"])
        return seq_num, span

    def _count(self, datum: Mapping[str, Any], data_key: str) -> range | None:
        """Return the indices that follow from those before; None if the datum tells its own."""
        told = datum["datum_kwargs"]
        if "indices" in told or "point_number" in told:
            return None
        place = datum["resource"], data_key
        first = self._next.get(place, 0)
        # `frame` is the last of the event; without it there is one for each.
        last = told.get("frame", first)
        self._next[place] = last + 1
        return range(min(first, last), last + 1)
