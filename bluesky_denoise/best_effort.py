"""Tables and plots of denoised numbers that need to be told nothing."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from bluesky.callbacks import LiveTable
from bluesky.callbacks.best_effort import BestEffortCallback, hinted_fields

from bluesky_denoise.runs.derived_run import is_derived

__all__ = ["DenoisedBestEffortCallback", "NarrowLines"]

_CONTINUED = {"coarse_signals": "fine_signals"}
"""Streams that another one goes on from, in a table of its own."""
_TOLD = ("agreement", "total", "weak_peak")
"""Streams whose events are printed as a line."""
_WIDTH, _LEAST_WIDTH, _LINE = 12, 10, 80
"""Widest and narrowest column, and the width of the terminal, in characters."""
_NUMBER = re.compile(r"\b\d[\d.]*\b")
"""By numbers alone, two reasons do not differ."""


class NarrowLines:
    """Print the lines of a `LiveTable` with long headings broken over several lines.

    Pass one as ``out`` of a table. A table is otherwise as wide as the names of its columns,
    which wraps in a terminal from the second ROI on.

    Examples
    --------
    >>> LiveTable(["motor", "denoised_satellite_intensity"], out=NarrowLines())
    """

    def __init__(self) -> None:
        self._widths: list[int] = []

    def __call__(self, line: str) -> None:
        """Print one line, or several that stand for it."""
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows = [cells]
            if cells[0] == "seq_num":
                width = _width(len(cells) - 1)
                rows = _broken(cells, width)
                self._widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
                self._widths[1:] = [max(w, width) for w in self._widths[1:]]
                self.rule()
            for row in rows:
                print("|", " | ".join(map(str.rjust, row, self._widths)), "|")
            if cells[0] == "seq_num":
                self.rule()
        elif line.startswith("+"):
            return  # its own are as wide as the headings are long
        else:
            self.rule()
            self._widths = []
            print(line)

    def rule(self) -> None:
        """Print the line under a table, if there is one."""
        if self._widths:
            print("+", "+".join("-" * (width + 2) for width in self._widths), "+", sep="")


def _width(columns: int) -> int:
    """Return how wide columns may be for a line of them, behind that of `seq_num`, to fit."""
    left = _LINE - len("| seq_num |")
    return min(_WIDTH, max(_LEAST_WIDTH, left // max(columns, 1) - len("  |")))


def _broken(names: list[str], width: int) -> list[list[str]]:
    """Break names behind underscores, into rows that end at the same height."""
    columns = []
    for name in names:
        lines = [""]
        for part in name.replace("_", "_ ").split():
            if lines[-1] and len(lines[-1] + part) > width:
                lines.append("")
            lines[-1] += part
        columns.append(lines)
    height = max(map(len, columns))
    columns = [[""] * (height - len(lines)) + lines for lines in columns]
    return [list(row) for row in zip(*columns, strict=True)]


class DenoisedBestEffortCallback(BestEffortCallback):
    """Bluesky's `BestEffortCallback`, which also shows tables of other streams than primary.

    Subscribed to a RunEngine, it shows the denoised numbers that `denoised_scan` and its
    kin read, and plain scans as ever. Subscribed to a `DenoiseProcess` it shows the derived
    runs. Bluesky's own prints rows of the stream ``primary`` only, whatever the hints say.

    Of runs within each other the one that began last is shown.

    What a plan found or how well references agree is told in a line, and at the end of a
    run how many of its frames are not ok, and why.

    Examples
    --------
    >>> RE.subscribe(DenoisedBestEffortCallback())
    0
    """

    _shown: tuple[str, ...] = ("primary",)

    def start(self, doc: Mapping[str, Any]) -> None:
        """Find the stream to show in the hints; of a derived run, its own."""
        hints = doc.get("hints", {})
        dimensions = hints.get("dimensions", [])
        streams = {"denoised"} if is_derived(doc) else {stream for _, stream in dimensions}
        shown = streams.pop() if len(streams) == 1 else "primary"
        self._shown = shown, _CONTINUED.get(shown, shown)
        if dimensions and shown != "primary":
            hints = {**hints, "dimensions": [(fields, "primary") for fields, _ in dimensions]}
            doc = {**doc, "hints": hints}
        super().start(doc)

    def descriptor(self, doc: Mapping[str, Any]) -> None:
        """Pass the stream to show off as the primary one, the only one that gets a table."""
        if not self._is_shown_run(doc):
            return
        if doc["name"] == "primary" and "primary" not in self._shown:
            return
        if doc["name"] in _TOLD:
            fields = [key for key in hinted_fields(doc) if key not in self.all_dim_fields]
            self._told[doc["uid"]] = doc["name"], fields
        name = doc["name"]
        shown = name in self._shown
        if shown:
            doc = {**doc, "name": "primary"}
        with_table, self._table_enabled = self._table_enabled, False
        try:
            super().descriptor(doc)
        finally:
            self._table_enabled = with_table
        if shown and with_table:
            self._lines.rule()
            if len(set(self._shown)) > 1:
                print(f"{name}:")
            columns = dict.fromkeys([*self.all_dim_fields, *hinted_fields(doc)])
            table: Any = LiveTable(list(columns), separator_lines=False, out=self._lines)
            table("start", self._start_doc)
            table("descriptor", doc)
            self._table = table

    def event(self, doc: Mapping[str, Any]) -> Any:
        """Show a point, unless it has nothing but frames, or is of another run."""
        if doc["descriptor"] not in self._descriptors:
            return
        super().event(doc)
        if told := self._told.get(doc["descriptor"]):
            name, fields = told
            values = {key.removeprefix(f"{name}_"): doc["data"][key] for key in fields}
            print(f"{name}: {', '.join(f'{key} {_text(v)}' for key, v in values.items())}")
        for key, value in doc["data"].items():
            if key.endswith("denoise_ok"):
                self._frames += 1
                if not value:
                    told = doc["data"].get(f"{key.removesuffix('ok')}reason", "").rstrip(".")
                    reason = told or "no reason is given"
                    self._bad[_NUMBER.sub("", reason)].append(reason)

    def stop(self, doc: Mapping[str, Any]) -> None:
        """End the table, and tell of frames that are not ok."""
        if not self._is_shown_run(doc):
            return
        super().stop(doc)
        if self._bad:
            most = sorted(self._bad.values(), key=len, reverse=True)
            reasons = "; ".join(
                f"{len(alike)} {'for' if len(set(alike)) == 1 else 'such as'}: {alike[0]}"
                for alike in most[:3]
            )
            bad = sum(map(len, most))
            print(f"{bad} of {self._frames} denoised frames are not ok: {reasons}")

    def clear(self) -> None:
        """Forget the last run."""
        super().clear()
        self._told: dict[str, tuple[str, list[str]]] = {}
        self._frames = 0
        self._bad: defaultdict[str, list[str]] = defaultdict(list)  # by reason without numbers
        self._lines = NarrowLines()

    def _is_shown_run(self, doc: Mapping[str, Any]) -> bool:
        return self._start_doc is not None and doc["run_start"] == self._start_doc["uid"]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
