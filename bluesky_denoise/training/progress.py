"""Where a fit is, and what it has seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bluesky_denoise.training.data import Batch

__all__ = ["Progress", "Seen"]


@dataclass(frozen=True)
class Progress:
    """Where a fit is."""

    step: int
    """Number of the step, from 0."""
    loss: float
    """Its loss."""
    validation: float
    """Latest score on held-out counts: see ``LEGEND``. NaN before the first."""
    error_bars: float = 0.0
    """Share of the fit of error bars that is done, 0 to 1; it follows the last step."""


@dataclass
class Seen:
    """What goes into the card, and must survive a kill."""

    validation: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and score."""
    mean_counts: list[float] = field(default_factory=lambda: [float("inf"), 0.0])
    """Least and largest mean of a training frame, counts per pixel; of lit frames."""
    largest_counts: float = 0.0
    """Brightest pixel."""

    @classmethod
    def after(cls, card: Mapping[str, Any] | None) -> "Seen":
        """Start with the range of counts of the weights that are started from, if any."""
        known = (card or {}).get("input")
        if not known:
            return cls()
        low, high = known["mean_counts_per_pixel"]
        lit = [low, high] if high > 0 else cls().mean_counts
        return cls(mean_counts=lit, largest_counts=known["largest_counts_in_a_pixel"])

    @property
    def latest(self) -> float:
        """Latest score; NaN before the first."""
        return self.validation[-1][1] if self.validation else np.nan

    def add(self, batch: Batch) -> None:
        """Widen the range of counts to a batch."""
        valid = np.maximum((~batch.mask).sum((1, 2)), 1)
        means = batch.counts.sum((1, 2), dtype=np.float64) / valid
        lit = means[means > 0]
        if len(lit):
            low, high = self.mean_counts
            self.mean_counts = [min(low, float(lit.min())), max(high, float(lit.max()))]
        self.largest_counts = max(self.largest_counts, float(batch.counts.max()))

    def counts(self) -> dict[str, Any]:
        """Return the range of counts for the card."""
        low, high = self.mean_counts
        return {
            "mean_counts_per_pixel": [min(low, high), high],  # both 0 if all was dark
            "largest_counts_in_a_pixel": self.largest_counts,
        }

    def scores(self) -> dict[str, Any]:
        """Return the best and the last score for the card."""
        finite = [entry for entry in self.validation if np.isfinite(entry[1])]
        scores = [{"step": step, "percent": round(score, 3)} for step, score in finite]
        return {
            "best": min(scores, key=lambda entry: entry["percent"], default=None),
            "last": scores[-1] if scores else None,
        }
