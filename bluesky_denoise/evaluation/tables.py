"""All scores of an evaluation as tables."""

from collections.abc import Sequence

from bluesky_denoise.evaluation.gate import Gate
from bluesky_denoise.evaluation.measured_tables import (
    awkward_table,
    coverage_table,
    neighbour_table,
    shift_table,
    speed_table,
    spot_table,
    thinned_table,
)
from bluesky_denoise.evaluation.peak_tables import (
    false_peak_table,
    limit_table,
    peak_table,
    ratio_table,
    region_table,
)
from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.table import Table

__all__ = ["KEYS", "all_tables", "gate_table"]

VERDICT = {True: "met", False: "missed", None: ""}

_MAKERS = (
    thinned_table,
    neighbour_table,
    spot_table,
    ratio_table,
    peak_table,
    limit_table,
    false_peak_table,
    region_table,
    coverage_table,
    shift_table,
    awkward_table,
    speed_table,
)
KEYS = tuple(make(Evaluation("")).key for make in _MAKERS)
"""Keys of all tables, in their order."""


def gate_table(gates: Sequence[Gate]) -> Table:
    """Return the gates with their figures."""
    rows = [(g.check, g.metric, g.limit, g.figure, VERDICT[g.met]) for g in gates]
    return Table(
        "Gates",
        "What a sceptic asks, and what was found. Without a verdict: what has no limit, and what "
        "rests on frames that were trained on.",
        ("check", "metric", "limit", "found", "gate"),
        rows,
        key="gates",
    )


def all_tables(result: Evaluation) -> list[Table]:
    """Return every table that has rows."""
    tables = (make(result) for make in _MAKERS)
    return [table for table in tables if table.rows]
