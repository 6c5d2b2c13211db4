"""The columns in the table of a stream in Tiled, and which of its nodes are tables."""

import logging
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["Columns", "is_table"]

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
