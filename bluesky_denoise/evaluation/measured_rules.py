"""Rules of the gates on measured and awkward frames, error bars of pixels, and speed."""

from collections.abc import Callable, Sequence

import numpy as np

from bluesky_denoise.evaluation.coverage import CONFIDENCES
from bluesky_denoise.evaluation.gate import Answer, Rule
from bluesky_denoise.evaluation.neighbours import NeighbourScore
from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.shift import ShiftScore
from bluesky_denoise.evaluation.table import give_or_take

__all__ = [
    "BM3D",
    "GAUSSIAN",
    "audit_flags",
    "awkward_frames",
    "flux",
    "held_out_deviance",
    "line_contrast",
    "line_error",
    "neighbour_error",
    "pixel_coverage",
    "speed",
    "spots_kept",
    "statistical_fit",
]

BM3D, GAUSSIAN = "Anscombe + BM3D", "best Gaussian"
MOST_TOLD = 4
"""Lost spots whose places are told; JSON has them all."""


def _held_out(rows: Sequence) -> list:
    """Return what a gate may judge: rows of series that were not trained on."""
    return [row for row in rows if row.held_out != "trained on"]


def statistical_fit(r: Evaluation) -> Answer | None:
    """Judge the deviance of held-out counts."""
    rows = [t for t in _held_out(r.thinned) if t.method == r.subject and t.fraction == 0.5]
    rows = [t for t in rows if np.isfinite(t.deviance)]
    if not rows:
        return None
    good = [t for t in rows if abs(t.deviance - 1) <= 0.02]
    worst = max(rows, key=lambda t: abs(t.deviance - 1))
    text = f"{len(good)} of {len(rows)} series; worst {worst.deviance:.3f} ({worst.set})"
    return text, len(good) == len(rows)


def flux(r: Evaluation) -> Answer | None:
    """Judge the total of a frame."""
    rows = [x for x in _held_out([*r.thinned, *r.neighbours]) if x.method == r.subject]
    rows = [x for x in rows if np.isfinite(x.flux)]
    if not rows:
        return None
    worst = max(abs(x.flux - 1) for x in rows)
    return f"within {worst:.1e}", worst <= 0.005


def audit_flags(r: Evaluation) -> Answer | None:
    """Judge the audit on series that were not trained on, and tell of the others."""
    if not any(x.failures for x in r.shift):
        return None
    rows = _held_out(r.shift)
    trained = [x for x in r.shift if x not in rows]
    parts = [_flags(rows)] if rows else []
    parts += [f"trained on, not judged: {_flags(trained)}"] if trained else []
    failures, flagged = sum(x.failures for x in rows), sum(x.flagged for x in rows)
    return "; ".join(parts), flagged >= 0.95 * failures if failures else None


def _flags(rows: Sequence[ShiftScore]) -> str:
    flagged, failures = sum(x.flagged for x in rows), sum(x.failures for x in rows)
    alarms, right = sum(x.alarms for x in rows), sum(x.right for x in rows)
    text = f"{flagged} of {failures}, on {len({x.set for x in rows})} series; "
    return text + f"{alarms} of {right} right ones flagged"


def line_error(r: Evaluation) -> Answer | None:
    """Judge the error on a weak line."""
    return _of_line(r, "error", lambda ours, bm3d: ours < bm3d)


def _of_line(r: Evaluation, name: str, good: Callable[[float, float], bool]) -> Answer | None:
    rows = [n for n in _held_out(r.neighbours) if np.isfinite(n.contrast)]
    pairs = []
    for ours in (n for n in rows if n.method == r.subject):
        other = [
            n for n in rows if (n.set, n.fraction, n.method) == (ours.set, ours.fraction, BM3D)
        ]
        pairs += [(ours, other[0])] if other else []
    if not pairs:
        return None

    def told(score: NeighbourScore) -> str:
        return f"{getattr(score, name):.4f}" + give_or_take(getattr(score, f"{name}_spread"), 4)

    parts = [f"{a.set}, {a.fraction:g} of 1 s: {told(a)} (BM3D {told(b)})" for a, b in pairs]
    met = all(good(getattr(a, name), getattr(b, name)) for a, b in pairs)
    return "; ".join(parts), met


def line_contrast(r: Evaluation) -> Answer | None:
    """Judge the contrast of a weak line."""
    return _of_line(r, "contrast", lambda ours, _: abs(ours - 1) <= 0.05)


def neighbour_error(r: Evaluation) -> Answer | None:
    """Judge single frames against their neighbours."""
    rows = [n for n in _held_out(r.neighbours) if not np.isfinite(n.contrast)]
    found = {(n.set, n.fraction, n.method): n.error for n in rows}
    ours = {key[:2]: value for key, value in found.items() if key[2] == r.subject}
    ours = {key: value for key, value in ours.items() if (*key, BM3D) in found}
    if not ours:
        return None
    parts = [f"{s}, {f:g}: {v:.4f} (BM3D {found[s, f, BM3D]:.4f})" for (s, f), v in ours.items()]
    return "; ".join(parts), all(v < found[*key, BM3D] for key, v in ours.items())


def held_out_deviance(against: str) -> Rule:
    """Compare the deviance of held-out counts."""

    def rule(r: Evaluation) -> Answer | None:
        found = {(t.set, t.fraction, t.method): t.against_gaussian for t in _held_out(r.thinned)}
        ours = {key[:2]: value for key, value in found.items() if key[2] == r.subject}
        ours = {key: value for key, value in ours.items() if (*key, against) in found}
        if not ours:
            return None
        excess = {key: (1 + v) / (1 + found[*key, against]) - 1 for key, v in ours.items()}
        good = sum(v < 0 for v in excess.values())
        (name, fraction), worst = max(excess.items(), key=lambda item: item[1])
        text = f"{good} of {len(excess)}; worst {worst:+.1%} ({name}, {fraction:g} of the photons)"
        return text, good == len(excess)

    return rule


def spots_kept(r: Evaluation) -> Answer | None:
    """Judge sharp spots; those that were trained on are told, where there are no others."""
    rows = [s for s in r.spots if s.method == r.subject]
    judged = _held_out(rows)
    rows = judged or rows
    if not rows:
        return None
    classes = dict.fromkeys(s.significance for s in rows)
    kept = {c: [s.kept for s in rows if s.significance == c] for c in classes}
    total = sum(s.kept * s.spots for s in rows) / sum(s.spots for s in rows)
    lost = sum(s.lost for s in rows)
    # Of several series, the one that is farthest off.
    worst = {c: max(values, key=lambda value: abs(value - 1)) for c, values in kept.items()}
    text = ", ".join(f"{name} sd: {value:.3f}" for name, value in worst.items())
    places = [f"{s.set} frame {i} at {row}, {col}" for s in rows for i, row, col in s.lost_at]
    where = f": {'; '.join(places)}" if 0 < len(places) <= MOST_TOLD else ""
    text = f"{total:.3f} by spot, {lost} of {sum(s.spots for s in rows)} lost{where} ({text})"
    if not judged:
        return f"trained on, not judged: {text}", None
    return text, lost == 0 and all(abs(value - 1) <= 0.02 for value in worst.values())


def awkward_frames(r: Evaluation) -> Answer | None:
    """Judge awkward frames."""
    if not r.awkward:
        return None
    failed = [a.case for a in r.awkward if not a.passed]
    text = f"{len(r.awkward) - len(failed)} of {len(r.awkward)}"
    return text + (f"; failed: {', '.join(failed)}" if failed else ""), not failed


def speed(method: str, times: float) -> Rule:
    """Compare times."""

    def rule(r: Evaluation) -> Answer | None:
        found = [s.times_longer for s in r.speed if s.method.startswith(method)]
        return (f"{found[0]:.3g} times", found[0] >= times) if found else None

    return rule


def pixel_coverage(measured: bool) -> Rule:
    """Judge the intervals of pixels."""

    def rule(r: Evaluation) -> Answer | None:
        rows = [c for c in r.coverage if c.binned_by == "estimate"]
        rows = [c for c in rows if (c.scenes != "simulated") == measured]
        if not rows:
            return None
        off = {c: float(np.abs(np.subtract(c.covered, CONFIDENCES)).max()) for c in rows}
        worst = max(off, key=lambda c: off[c])
        good = sum(value <= 0.03 for value in off.values())
        text = f"{good} of {len(rows)} bins from {rows[0].low:g} counts; worst off by "
        text += f"{100 * off[worst]:.0f} points ({worst.scenes}, {worst.low:g} to {worst.high:g})"
        return text, good == len(rows)

    return rule
