"""What lies in a stream of Tiled, raw or denoised: a table, in one part or several, and arrays."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from bluesky_denoise.in_tiled.event_array import EventArray, is_array
from bluesky_denoise.in_tiled.stream_table import is_table

__all__ = ["StoredStream"]

logger = logging.getLogger(__name__)


class StoredStream:
    """A stream as it lies in Tiled, which is asked once, at first use, what there is in it.

    Parameters
    ----------
    stream :
        Tiled client of the stream, such as ``run["primary"]``, or of its node, the ``base`` of it.
    """

    def __init__(self, stream: Any) -> None:
        self.node = getattr(stream, "base", stream)
        """Tiled client of the node; to the stream's own, each column would be a request."""

    @cached_property
    def _children(self) -> dict[str, Any]:
        return dict(self.node.items())  # one request

    @property
    def metadata(self) -> Any:
        """Of the stream."""
        return self.node.metadata

    @property
    def parts(self) -> list[Any]:
        """Tiled clients of the parts of the table, mostly one; without events none.

        They are several where there are more columns than one table may have.
        """
        return [child for key, child in self._children.items() if is_table(key, child)]

    @property
    def nodes(self) -> dict[str, Any]:
        """Tiled clients of all that is no table, by key: arrays, and files of unknown kinds."""
        return {key: child for key, child in self._children.items() if not is_table(key, child)}

    @property
    def arrays(self) -> dict[str, Any]:
        """Tiled clients of the arrays, by key."""
        return {key: node for key, node in self.nodes.items() if is_array(node)}

    def frames(self, key: str) -> EventArray:
        """Return the frames of a data key by their events.

        Raises
        ------
        DenoiseError
            If Tiled has files that it cannot look into.
        """
        return EventArray(key, self.nodes[key], self.metadata["data_keys"].get(key, {}))

    def read_table(self, columns: Sequence[str] | None = None) -> Any:
        """Read the table, its parts side by side.

        Parameters
        ----------
        columns :
            Read only these, from the parts that have them; None: all.

        Returns
        -------
        pandas.DataFrame
            A row for each event that all parts have, also where the answer to a row was lost and
            `TiledWriter` has sent it again; None if the stream has no events.
        """
        parts = self.parts
        if not any("seq_num" in part.columns for part in parts):  # none, or not all of them yet
            return None
        if len(parts) == 1:
            return _read_part(parts[0], columns)
        wanted = [
            None if columns is None else [c for c in columns if c in p.columns] for p in parts
        ]
        pairs = zip(parts, wanted, strict=True)
        read = [_read_part(part, some) for part, some in pairs if some != []]
        rows = sorted({len(table) for table in read})
        if len(rows) > 1:  # an event is being written, or was in a part twice: an answer was lost
            logger.warning(
                "The parts of the table of %s have from %d to %d rows; the first %d are read",
                *("/".join(self.node.path_parts), rows[0], rows[-1], rows[0]),
            )
        import pandas  # heavy, and mostly not needed

        joined = pandas.concat([table[: rows[0]].reset_index(drop=True) for table in read], axis=1)
        return joined if columns is None else joined[list(columns)]

    def count_events(self) -> int:
        """Return how many events there are; without a table, for how many there are frames."""
        table = self.read_table(["seq_num"])
        if table is not None:
            return len(table)
        return min((len(self.frames(key)) for key in self.arrays), default=0)

    def read_a_pixel(self) -> bool:
        """Read a pixel of each array, and tell whether there is an array.

        A server takes the address of any file, and finds out only when the frames are read that
        it may not read there: whatever Tiled raises then is raised.
        """
        for array in self.arrays.values():
            array[(slice(0, 1),) * array.ndim]
        return bool(self.arrays)


def _read_part(part: Any, columns: Sequence[str] | None) -> Any:
    """Read a part of a table, each event once if the part can tell them apart."""
    event = ["seq_num", "time"]  # a point that is taken again has its number, and a later time
    if not set(event) <= set(part.columns):
        return part.read(columns)
    table = part.read(None if columns is None else [*columns, *(set(event) - set(columns))])
    table = table[~table.duplicated(event)].reset_index(drop=True)
    return table if columns is None else table[list(columns)]
