"""Where in its file the frames of a Datum are."""

from collections.abc import Iterable, Mapping
from typing import Any

import event_model

__all__ = ["DatumFiles"]


class DatumFiles:
    """Keep the Datum documents of a run, and count the frames of each file.

    What they become, stream datums, are numbered through all files of a run, since Tiled puts
    those end to end. Here each file is read by itself.
    """

    def __init__(self) -> None:
        self._datums: dict[str, Mapping[str, Any]] = {}  # by id
        self._next: dict[tuple[str, str], int] = {}  # by resource and name of the frames

    def take(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document; others than Datum and DatumPage are not looked at."""
        if name == "datum":
            self._datums[doc["datum_id"]] = doc
        elif name == "datum_page":
            for datum in event_model.unpack_datum_page(doc):
                self._datums[datum["datum_id"]] = datum

    def forget(self, datum_ids: Iterable[str]) -> None:
        """Forget datums whose frames are not wanted."""
        for datum_id in datum_ids:
            self._datums.pop(datum_id, None)

    def in_file(self, stream_datum: Mapping[str, Any], name: str, indices: range) -> range:
        """Return the indices of the frames of one event in their file.

        Parameters
        ----------
        stream_datum :
            What a Datum has become.
        name :
            Of the frames.
        indices :
            Those of the stream datum.
        """
        datum = self._datums.pop(stream_datum["uid"], None)
        told = datum["datum_kwargs"] if datum else {}
        if datum is None or "indices" in told or "point_number" in told:
            return indices
        place = datum["resource"], name
        first = self._next.get(place, 0)
        # `frame` is the last of the event; without it there is one for each.
        last = told.get("frame", first)
        self._next[place] = last + 1
        return range(min(first, last), last + 1)
