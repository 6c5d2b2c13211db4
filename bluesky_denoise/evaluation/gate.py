"""A gate: one question about an evaluation, and its answer."""

from collections.abc import Callable
from dataclasses import dataclass

from bluesky_denoise.evaluation.results import Evaluation

__all__ = ["Answer", "Gate", "Rule"]


@dataclass(frozen=True)
class Gate:
    """One question, and its answer."""

    check: str
    metric: str
    limit: str
    figure: str
    """What was found, in words and numbers."""
    met: bool | None
    """None where the figure is only told: no limit, or only frames that were trained on."""


Answer = tuple[str, bool | None]
Rule = Callable[[Evaluation], Answer | None]
"""Figure, and whether the gate is met; None as a whole where this evaluation does not tell."""
