"""Colours and style that all pictures of an evaluation share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bluesky_denoise.evaluation.peaks import FITTED, MEASURED, OPTIMAL, SUMMED

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

__all__ = ["COLOURS", "OTHERS", "OURS", "STYLE", "colour"]

COLOURS = {
    "raw": "#8a8f98",
    FITTED: "#8a8f98",
    OPTIMAL: "#1f2933",
    SUMMED: "#c3c7cd",
    "best Gaussian": "#e8a33d",
    "non-local means": "#4fa37a",
    "Anscombe + BM3D": "#3b78c2",
    MEASURED: "#7b2d8b",
}
OURS = "#d0342c"
OTHERS = ("#9467bd", "#8c564b", "#17becf", "#bcbd22")
STYLE: "dict[RcKeyType, Any]" = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def colour(method: str, subject: str, all_methods: Sequence[str]) -> str:
    """Return the colour of a method, the same in all plots."""
    if method == subject:
        return OURS
    if method in COLOURS:
        return COLOURS[method]
    others = [m for m in all_methods if m not in COLOURS and m != subject]
    return OTHERS[others.index(method) % len(OTHERS)]
