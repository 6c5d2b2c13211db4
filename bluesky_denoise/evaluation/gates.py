"""What a sceptic asks of a denoiser: each gate with its metric, its limit, and the figure found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.coverage import CONFIDENCES
from bluesky_denoise.evaluation.detection import EYE, FILTER
from bluesky_denoise.evaluation.peaks import MEASURED
from bluesky_denoise.evaluation.results import Evaluation

__all__ = ["GATES", "Gate", "judge"]

BM3D, GAUSSIAN = "Anscombe + BM3D", "best Gaussian"


@dataclass(frozen=True)
class Gate:
    """One question, and its answer."""

    check: str
    metric: str
    limit: str
    figure: str
    """What was found, in words and numbers."""
    met: bool | None
    """None where there is no limit, and the figure is only told."""


Answer = tuple[str, bool | None]
Rule = Callable[[Evaluation], Answer | None]
"""Figure, and whether the gate is met; None where this evaluation does not tell."""


def judge(result: Evaluation) -> list[Gate]:
    """Answer every gate that an evaluation tells something about."""
    gates = []
    for check, metric, limit, rule in GATES:
        answer = rule(result)
        if answer is not None:
            gates.append(Gate(check, metric, limit, *answer))
    return gates


def _held_out(rows: Sequence) -> list:
    return [row for row in rows if row.held_out != "trained on"]


def _deviance(r: Evaluation) -> Answer | None:
    rows = [t for t in _held_out(r.thinned) if t.method == r.subject and t.fraction == 0.5]
    rows = [t for t in rows if np.isfinite(t.deviance)]
    if not rows:
        return None
    good = [t for t in rows if abs(t.deviance - 1) <= 0.02]
    worst = max(rows, key=lambda t: abs(t.deviance - 1))
    text = f"{len(good)} of {len(rows)} series; worst {worst.deviance:.3f} ({worst.set})"
    return text, len(good) == len(rows)


def _bias(strong: bool) -> Rule:
    """Average over the shapes at each strength; the worst strength decides."""

    def rule(r: Evaluation) -> Answer | None:
        rows = [p for p in r.peaks if p.method == MEASURED and (p.strength > 9.9) == strong]
        if not rows:
            return None
        parts, met = [], True
        for strength in sorted({p.strength for p in rows}):
            of = [p for p in rows if p.strength == strength]
            weights = np.array([p.bias_error for p in of]) ** -2.0
            bias = float(np.average([p.intensity_bias for p in of], weights=weights))
            parts.append(f"{strength:.0f}: {bias:+.1%} ± {weights.sum() ** -0.5:.1%}")
            met &= abs(bias) < (0.02 if strong else 0.05)
        return ", ".join(parts), met

    return rule


def _sum_bias(strong: bool) -> Rule:
    def rule(r: Evaluation) -> Answer | None:
        rows = [p for p in r.peaks if p.method == r.subject]
        rows = [p for p in rows if (p.strength > 9.9 if strong else p.strength < 5.1)]
        if not rows:
            return None
        biases = [p.sum_bias for p in rows]
        text = f"{np.mean(biases):+.1%} on average, {min(biases):+.1%} to {max(biases):+.1%}"
        return text, max(abs(b) for b in biases) < (0.02 if strong else 0.05)

    return rule


def _flux(r: Evaluation) -> Answer | None:
    rows = [x for x in (*r.thinned, *r.neighbours) if x.method == r.subject]
    if not rows:
        return None
    worst = max(abs(x.flux - 1) for x in rows)
    return f"within {worst:.1e}", worst <= 0.005


def _of_strong_peaks(r: Evaluation, *names: str) -> list[float]:
    """Average over strengths from 10 on, for each class and each quantity."""
    rows = [p for p in r.peaks if p.method == r.subject and p.strength > 9.9]
    shapes = sorted({p.shape for p in rows})
    return [
        float(np.mean([getattr(p, name) for p in rows if p.shape == shape]))
        for shape in shapes
        for name in names
    ]


def _position(r: Evaluation) -> Answer | None:
    shifts = _of_strong_peaks(r, "position_bias")
    return (f"{max(shifts):.2f} px", max(shifts) <= 0.1) if shifts else None


def _width(r: Evaluation) -> Answer | None:
    widths = _of_strong_peaks(r, "width_row", "width_col")
    if not widths:
        return None
    return f"{min(widths):.2f} to {max(widths):.2f}", all(abs(w - 1) <= 0.05 for w in widths)


def _false(r: Evaluation) -> Answer | None:
    found = {(f.method, f.counts_per_pixel, f.threshold): f.per_megapixel for f in r.false_peaks}
    ours = {key[1:]: value for key, value in found.items() if key[0] == r.subject}
    if not ours:
        return None
    raw = {key: found["raw", *key] for key in ours}
    text = f"at most {max(ours.values()):.1f}; raw {min(raw.values()):.0f} to "
    text += f"{max(raw.values()):.0f}"
    return text, all(ours[key] <= raw[key] for key in ours)


def _missed(r: Evaluation) -> Answer | None:
    limits = [x for x in r.limits if x.how == FILTER]
    ours = [x for x in limits if x.method == r.subject]
    if not ours:
        return None
    raw = {x.shape: x for x in limits if x.method == "raw"}
    parts = [f"{x.shape} {x.half:.1f} / {x.most:.1f}" for x in ours]
    bound = [f"{x.half:.1f} / {x.most:.1f}" for x in raw.values()]
    return f"{', '.join(parts)}; raw, shape known: {', '.join(bound)}", None


def _ratio(r: Evaluation) -> Answer | None:
    rows = [x for x in r.ratios if x.method == MEASURED]
    if not rows:
        return None
    parts = [f"{x.ratio:.2f} against {x.reference}" for x in rows]
    return "; ".join(parts), None


def _seen(r: Evaluation) -> Answer | None:
    ours = [x for x in r.limits if x.how == EYE and x.method == r.subject]
    if not ours:
        return None
    parts = [f"{x.shape} {'over ' if x.at_least else ''}{x.exposure_ratio:.1f}" for x in ours]
    return ", ".join(parts), None


def _coverage(measured: bool) -> Rule:
    def rule(r: Evaluation) -> Answer | None:
        rows = [c for c in r.coverage if c.binned_by == "estimate"]
        rows = [c for c in rows if (c.scenes != "simulated") == measured]
        if not rows:
            return None
        off = {c: float(np.abs(np.subtract(c.covered, CONFIDENCES)).max()) for c in rows}
        worst = max(off, key=off.get)
        good = sum(value <= 0.03 for value in off.values())
        text = f"{good} of {len(rows)} bins from {rows[0].low:g} counts; worst off by "
        text += f"{100 * off[worst]:.0f} points ({worst.scenes}, {worst.low:g} to {worst.high:g})"
        return text, good == len(rows)

    return rule


def _roi(r: Evaluation) -> dict | None:
    return next((vars(x) for x in r.regions if x.intensity == MEASURED), None)


def _slope(r: Evaluation) -> Answer | None:
    found = _roi(r)
    if found is None:
        return None
    return f"{found['slope']:.3f} ± {found['slope_error']:.3f}", abs(found["slope"] - 1) <= 0.02


def _pulls(r: Evaluation) -> Answer | None:
    found = _roi(r)
    return (f"{found['pull_width']:.2f}", 0.9 <= found["pull_width"] <= 1.1) if found else None


def _roi_coverage(r: Evaluation) -> Answer | None:
    found = _roi(r)
    if found is None:
        return None
    covered = found["covered"]
    off = max(abs(covered[c] - n) for c, n in (("68", 0.683), ("90", 0.9), ("95", 0.95)))
    return " / ".join(f"{100 * covered[c]:.0f}" for c in covered) + " %", off <= 0.03


def _roi_error(r: Evaluation) -> Answer | None:
    found = _roi(r)
    return (f"{found['error_ratio']:.2f}", found["error_ratio"] <= 1.0) if found else None


def _shift(r: Evaluation) -> Answer | None:
    failures = sum(x.failures for x in r.shift)
    if not failures:
        return None
    flagged = sum(x.flagged for x in r.shift)
    alarms, right = sum(x.alarms for x in r.shift), sum(x.right for x in r.shift)
    text = f"{flagged} of {failures}, on {len({x.set for x in r.shift})} series; "
    return text + f"{alarms} of {right} right ones flagged", flagged >= 0.95 * failures


def _line_error(r: Evaluation) -> Answer | None:
    return _of_line(r, "error", lambda ours, bm3d: ours < bm3d)


def _of_line(r: Evaluation, name: str, good: Callable[[float, float], bool]) -> Answer | None:
    rows = [n for n in r.neighbours if np.isfinite(n.contrast)]
    pairs = []
    for ours in (n for n in rows if n.method == r.subject):
        other = [
            n for n in rows if (n.set, n.fraction, n.method) == (ours.set, ours.fraction, BM3D)
        ]
        pairs += [(ours, other[0])] if other else []
    if not pairs:
        return None
    parts = [
        f"{a.set}, {a.fraction:g} of 1 s: {getattr(a, name):.4f} (BM3D {getattr(b, name):.4f})"
        for a, b in pairs
    ]
    met = all(good(getattr(a, name), getattr(b, name)) for a, b in pairs)
    return "; ".join(parts), met


def _contrast(r: Evaluation) -> Answer | None:
    return _of_line(r, "contrast", lambda ours, _: abs(ours - 1) <= 0.05)


def _other_neighbours(r: Evaluation) -> Answer | None:
    rows = [n for n in r.neighbours if not np.isfinite(n.contrast)]
    found = {(n.set, n.fraction, n.method): n.error for n in rows}
    ours = {key[:2]: value for key, value in found.items() if key[2] == r.subject}
    ours = {key: value for key, value in ours.items() if (*key, BM3D) in found}
    if not ours:
        return None
    parts = [f"{s}, {f:g}: {v:.4f} (BM3D {found[s, f, BM3D]:.4f})" for (s, f), v in ours.items()]
    return "; ".join(parts), all(v < found[*key, BM3D] for key, v in ours.items())


def _thinned(against: str) -> Rule:
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


def _spots(r: Evaluation) -> Answer | None:
    rows = [s for s in r.spots if s.method == r.subject]
    rows = [s for s in rows if s.held_out == "yes"] or rows
    if not rows:
        return None
    kept = {s.significance: s.kept for s in rows}
    total = sum(s.kept * s.spots for s in rows) / sum(s.spots for s in rows)
    lost = sum(s.lost for s in rows)
    text = ", ".join(f"{name} sd: {value:.3f}" for name, value in kept.items())
    text = f"{total:.3f} by spot, {lost} of {sum(s.spots for s in rows)} lost ({text})"
    return text, lost == 0 and all(abs(value - 1) <= 0.02 for value in kept.values())


def _awkward(r: Evaluation) -> Answer | None:
    if not r.awkward:
        return None
    failed = [a.case for a in r.awkward if not a.passed]
    text = f"{len(r.awkward) - len(failed)} of {len(r.awkward)}"
    return text + (f"; failed: {', '.join(failed)}" if failed else ""), not failed


def _speed(method: str, times: float) -> Rule:
    def rule(r: Evaluation) -> Answer | None:
        found = [s.times_longer for s in r.speed if s.method.startswith(method)]
        return (f"{found[0]:.3g} times", found[0] >= times) if found else None

    return rule


def _width_of_ratio(r: Evaluation) -> Answer | None:
    rows = [x for x in r.ratios if x.method == r.subject]
    if not rows:
        return None
    parts = [f"{x.ratio:.2f} against {x.reference}" if x.ratio else "never" for x in rows]
    return "; ".join(dict.fromkeys(parts)), None


GATES: tuple[tuple[str, str, str, Rule], ...] = (
    (
        "statistical fit",
        "Poisson deviance per degree of freedom of held-out counts, half of the photons",
        "1 ± 0.02",
        _deviance,
    ),
    ("intensity", "bias of measure_roi, by S/√B from 10", "< 2 %", _bias(True)),
    ("intensity", "bias of measure_roi, by S/√B from 5", "< 5 %", _bias(False)),
    (
        "intensity",
        "bias of sums of the denoised frame (not what is reported), S/√B of 10 to 20",
        "< 2 %",
        _sum_bias(True),
    ),
    (
        "intensity",
        "bias of sums of the denoised frame (not what is reported), S/√B of 5",
        "< 5 %",
        _sum_bias(False),
    ),
    ("intensity", "total of a frame over that of the raw one", "within 0.5 %", _flux),
    ("intensity", "slope of measure_roi against the truth, weak satellites", "1 ± 0.02", _slope),
    ("intensity", "error of measure_roi over that of the raw sum", "≤ 1", _roi_error),
    ("position", "bias of the centre, S/√B from 10", "≤ 0.1 px", _position),
    ("width", "FWHM over the true one, each axis, S/√B from 10", "1 ± 0.05", _width),
    (
        "false peaks",
        "per megapixel of signal-free Poisson frames, at the raw matched filter's threshold",
        "≤ raw",
        _false,
    ),
    ("missed peaks", "strength of 50 % / 90 % recovery, standard deviations", "told", _missed),
    (
        "detection limit",
        "honest exposure ratio of measure_roi, at equal error of intensities",
        "told",
        _ratio,
    ),
    (
        "detection limit",
        "the same of peaks fitted in the denoised frame",
        "told",
        _width_of_ratio,
    ),
    (
        "detection limit",
        "exposure ratio against the raw frame, for shapes seen by their brightest pixel",
        "told",
        _seen,
    ),
    (
        "calibration",
        "coverage of 68 / 90 / 95 % intervals of pixels, simulated",
        "± 3 points",
        _coverage(False),
    ),
    (
        "calibration",
        "coverage of 68 / 90 / 95 % intervals of pixels, measured",
        "± 3 points",
        _coverage(True),
    ),
    (
        "calibration",
        "coverage of 68 / 90 / 95 % intervals of measure_roi",
        "± 3 points",
        _roi_coverage,
    ),
    ("calibration", "spread of the pulls of measure_roi", "0.9 to 1.1", _pulls),
    ("shift", "failures on measured frames that the audit flags", "≥ 95 %", _shift),
    ("weak line", "noise-corrected error, below BM3D's", "< BM3D", _line_error),
    ("weak line", "contrast over that of the long exposure", "1 ± 0.05", _contrast),
    ("long exposures", "noise-corrected error, other series", "< BM3D", _other_neighbours),
    ("held-out counts", "Poisson deviance below BM3D's", "all series", _thinned(BM3D)),
    (
        "held-out counts",
        "Poisson deviance below the best Gaussian's",
        "all series",
        _thinned(GAUSSIAN),
    ),
    ("Bragg spots", "counts kept, in each class; none lost", "1 ± 0.02", _spots),
    ("awkward frames", "right, or refused by a clear error", "all", _awkward),
    ("speed", "time of BM3D over ours", "≥ 100", _speed("Anscombe + BM3D", 100)),
    ("speed", "time of VDSR, eager float32, over ours", "≥ 20", _speed("VDSR", 20)),
)
"""Check, metric, limit, and what answers it."""
