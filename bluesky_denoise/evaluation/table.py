"""A table of text, for the terminal, for HTML and for Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Table", "give_or_take", "markdown", "number", "times", "without_repeats"]


@dataclass(frozen=True)
class Table:
    """One table; cells are text."""

    title: str
    note: str
    """What the columns mean."""
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    groups: int = 1
    """So many first columns are shown only where they change."""
    key: str = ""
    """Short name, for the report's links."""


def markdown(table: Table) -> str:
    """Return a table in Markdown, without its title."""
    lines = [" | ".join(table.columns), " | ".join("---" for _ in table.columns)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in table.rows]
    return "\n".join(f"| {line} |" for line in lines)


def without_repeats(table: Table) -> Iterable[tuple[str, ...]]:
    """Yield the rows, with a group's cells blank where they have not changed."""
    before: tuple[str, ...] = ()
    for row in table.rows:
        shown, same = [], True
        for i, cell in enumerate(row):
            same = same and i < table.groups and i < len(before) and before[i] == cell
            shown.append("" if same else cell)
        before = row
        yield tuple(shown)


def number(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits."""
    if not np.isfinite(value):
        return "" if np.isnan(value) else "-"
    return f"{value:.{digits}g}"


def give_or_take(error: float, digits: int) -> str:
    """Write a standard error, with so many digits behind the point, to go behind its number."""
    return f" ± {error:.{digits}f}" if np.isfinite(error) else ""


def times(value: float) -> str:
    """Write a ratio; 0 means that it was never reached."""
    return "never" if value == 0 else number(value)
