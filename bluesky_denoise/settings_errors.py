"""What is wrong with settings, in words for whoever has typed them."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError, ValidationInfo

__all__ = ["EXPECTED", "expected", "explain"]

_COUNT, _TEXT, _SWITCH, _PATH = "a whole number > 0", "a text", "true or false", "a path"

EXPECTED = {
    "data_keys": "names of data keys or detectors, such as [pilatus_image]",
    "streams": "names of streams, such as [primary]",
    "exposure_s": "seconds, a number > 0 such as 0.5, or one by data key, {pilatus_image: 0.5}",
    "exposure_keys": "names of data keys, such as [pilatus_cam_acquire_time]",
    "mask": "an array (H, W), a file, or one of them by data key, {pilatus_image: mask.npy}",
    "rois": "regions by name, each of first and one after last rows and cols, "
    "{satellite: {rows: [80, 96], cols: [200, 216]}}, or such regions by data key",
    "model": f"{_TEXT}: a name of weights, the path of a .safetensors file, or package.module:name",
    "device": f"{_TEXT}: cpu, cuda or cuda:1",
    "threads": _COUNT,
    "tiled_uri": "an address such as http://localhost:8000",
    "tiled_api_key": _TEXT,
    "tiled_layout": "'stream' or 'run'",
    "tiled_container": f"{_TEXT}: the path of a container, such as denoised",
    "frames_directory": _PATH,
    "save_sigma": _SWITCH,
    "backup_directory": _PATH,
    "audit": _SWITCH,
    "rate_range": "two numbers, least and most counts / s in a pixel, such as [0.01, 50], or both "
    "by data key, {pilatus_image: [0.01, 50]}",
    "batch_size": _COUNT,
    "queue_size": _COUNT,
    "queue_wait_s": "seconds, a number >= 0",
    "read_timeout_s": "seconds, a number > 0",
    "node_timeout_s": "seconds, a number > 0",
}
"""By setting, what may be typed."""

_MOST_SHOWN = 80
"""Letters of a value."""


def expected(info: ValidationInfo) -> str:
    """Return what may be typed for the setting that is validated."""
    return EXPECTED[str(info.field_name)]


def explain(error: ValidationError, values: Mapping[str, Any], where: str) -> str:
    """Say for each wrong setting what came, what was expected, and where.

    Parameters
    ----------
    error :
        As pydantic raises it: in its own words, one item for each way to read a value.
    values :
        The settings as they were typed.
    where :
        What the settings are of, such as the name of their file.
    """
    items: dict[str, list[Mapping[str, Any]]] = {}
    for item in error.errors(include_url=False):
        items.setdefault(str((*item["loc"], "settings")[0]), []).append(item)
    return f"{where}: " + "; ".join(_line(name, found, values) for name, found in items.items())


def _line(name: str, items: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> str:
    if items[0]["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, EXPECTED, 1)
        meant = f", perhaps {near[0]!r} is meant" if near else ""
        return f"unknown setting {name!r}{meant}; known are: {', '.join(EXPECTED)}"
    # Of the ways to read a value, the one that got furthest is meant.
    typed = [(_typed(item["loc"], values), item) for item in items]
    furthest = max(len(path) for path, _ in typed)
    wrong = {".".join(path): item for path, item in typed if len(path) == furthest}
    told = []
    for key, item in wrong.items():
        secret = not item["loc"] or "api_key" in name or "uri" in name
        came = "" if secret else f"got {' '.join(repr(item['input']).split()):.{_MOST_SHOWN}}"
        if item["type"] == "value_error":  # our own words
            why = item["msg"].removeprefix("Value error, ").rstrip(".")
            told.append(f"{key or name!r}: {why}" + (f" ({came})" if came else ""))
        else:
            told.append(f"{key!r}: {came}".rstrip(": "))
    own = any(item["type"] == "value_error" for item in wrong.values())
    return "; ".join(told) if own else f"{', '.join(told)}; expected {EXPECTED[name]}"


def _typed(place: tuple[Any, ...], values: Any) -> list[str]:
    """Return the keys that lead to a place, without what pydantic puts among them."""
    path = []
    for part in place:
        try:
            values = values[part]
        except (LookupError, TypeError):
            continue
        path.append(str(part))
    return path
