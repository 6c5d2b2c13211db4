"""The table of a stream in Tiled, which is several where it has more columns than one may have."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Columns", "is_table", "parts_of", "read_table"]

logger = logging.getLogger(__name__)

_KEY = re.compile(r"internal(_\d+)?")
"""`TiledWriter` begins `internal_0`, `internal_1`, ... from 1025 columns on."""
_CAST = {"number": float, "integer": int, "boolean": bool, "string": str}


class Columns:
    """The columns of readings in the table of a derived stream, each of one kind.

    Parameters
    ----------
    descriptor :
        The derived descriptor.
    where :
        Names the stream in the log.
    """

    def __init__(self, descriptor: Mapping[str, Any], where: str) -> None:
        specs = descriptor["data_keys"]
        self.kinds = {k: _kind_of(k, descriptor) for k in specs if specs[k]["dtype"] != "array"}
        """By data key: number, integer, boolean or string."""
        self._where, self._odd = where, set[str]()

    def values(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the readings of an event as their columns have them; None where there is none.

        One of another kind is left out, which is told once for each column.
        """
        return {key: self._value(key, event) for key in self.kinds}

    def _value(self, key: str, event: Mapping[str, Any]) -> Any:
        value, kind = event["data"].get(key), self.kinds[key]
        try:
            return None if value is None else _CAST[kind](value)
        except (TypeError, ValueError, OverflowError):
            if key not in self._odd:
                logger.warning(
                    "%s: %s of event %d is %.80r, and its descriptor says %s; such readings are "
                    "left out",
                    *(self._where, key, event["seq_num"], value, kind),
                )
            self._odd.add(key)
            return None


def _kind_of(key: str, descriptor: Mapping[str, Any]) -> str:
    """Return the kind of a column: what a device says is an integer may become a fraction.

    ophyd tells the kind of a signal by its first value.
    """
    kind = descriptor["data_keys"][key]["dtype"]
    ours = key in descriptor.get("object_keys", {}).get("denoiser", ())
    return "number" if kind == "integer" and not ours else kind


def is_table(key: str, node: Any) -> bool:
    """Tell whether a node of a stream is its table, or a part of it; a detector may be called so.

    Parameters
    ----------
    key :
        The key of the node in the stream.
    node :
        Tiled client of the node.
    """
    return _KEY.fullmatch(key) is not None and hasattr(node, "columns")


def parts_of(node: Any) -> list[Any]:
    """Return the parts of a stream's table, mostly one; without events none.

    Parameters
    ----------
    node :
        Tiled client of the stream's node, ``stream.base``.
    """
    return [child for key, child in node.items() if is_table(key, child)]  # one request


def read_table(node: Any, columns: Sequence[str] | None = None) -> Any:
    """Read the table of a stream, its parts side by side.

    Parameters
    ----------
    node :
        Tiled client of the stream's node, ``stream.base``.
    columns :
        Read only these, from the parts that have them; None: all.

    Returns
    -------
    pandas.DataFrame
        A row for each event that all parts have, also where the answer to a row was lost and
        `TiledWriter` has sent it again; None if the stream has no events.
    """
    parts = parts_of(node)
    if not any("seq_num" in part.columns for part in parts):  # no part, or not all of them yet
        return None
    if len(parts) == 1:
        return _read_part(parts[0], columns)
    wanted = [None if columns is None else [c for c in columns if c in p.columns] for p in parts]
    read = [_read_part(part, some) for part, some in zip(parts, wanted, strict=True) if some != []]
    rows = sorted({len(table) for table in read})
    if len(rows) > 1:  # an event is being written, or was in a part twice: an answer was lost
        logger.warning(
            "The parts of the table of %s have from %d to %d rows; the first %d are read",
            *("/".join(node.path_parts), rows[0], rows[-1], rows[0]),
        )
    import pandas  # heavy, and mostly not needed

    joined = pandas.concat([table[: rows[0]].reset_index(drop=True) for table in read], axis=1)
    return joined if columns is None else joined[list(columns)]


def _read_part(part: Any, columns: Sequence[str] | None) -> Any:
    """Read a part of a table, each event once if the part can tell them apart."""
    event = ["seq_num", "time"]  # a point that is taken again has its number, and a later time
    if not set(event) <= set(part.columns):
        return part.read(columns)
    table = part.read(None if columns is None else [*columns, *(set(event) - set(columns))])
    table = table[~table.duplicated(event)].reset_index(drop=True)
    return table if columns is None else table[list(columns)]
