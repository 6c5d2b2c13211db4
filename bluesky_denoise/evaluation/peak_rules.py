"""Rules of the gates on simulated peaks and regions."""

import numpy as np

from bluesky_denoise.evaluation.detection import EYE, FILTER
from bluesky_denoise.evaluation.gate import Answer, Rule
from bluesky_denoise.evaluation.peaks import MEASURED
from bluesky_denoise.evaluation.results import Evaluation

__all__ = [
    "exposure_ratio",
    "false_peaks",
    "fitted_exposure_ratio",
    "intensity_bias",
    "missed_peaks",
    "position_bias",
    "region_coverage",
    "region_error",
    "region_pulls",
    "region_slope",
    "seen_by_eye",
    "shape_coverage",
    "sum_bias",
    "width_bias",
]


def intensity_bias(strong: bool) -> Rule:
    """Average over the shapes at each strength; the worst strength decides."""

    def rule(r: Evaluation) -> Answer | None:
        rows = [p for p in r.peaks if p.method == MEASURED and (p.strength > 9.9) == strong]
        if not rows:
            return None
        parts, met = [], True
        for strength in sorted({p.strength for p in rows}):
            of = [p for p in rows if p.strength == strength]
            bias = float(np.mean([p.intensity_bias for p in of]))
            error = float(np.linalg.norm([p.bias_error for p in of])) / len(of)
            parts.append(f"{strength:.0f}: {bias:+.1%} ± {error:.1%}")
            met &= abs(bias) < (0.02 if strong else 0.05)
        return ", ".join(parts), met

    return rule


def sum_bias(strong: bool) -> Rule:
    """Judge sums of the denoised frame."""

    def rule(r: Evaluation) -> Answer | None:
        rows = [p for p in r.peaks if p.method == r.subject]
        rows = [p for p in rows if (p.strength > 9.9 if strong else p.strength < 5.1)]
        if not rows:
            return None
        biases = [p.sum_bias for p in rows]
        text = f"{np.mean(biases):+.1%} on average, {min(biases):+.1%} to {max(biases):+.1%}"
        return text, max(abs(b) for b in biases) < (0.02 if strong else 0.05)

    return rule


def _of_strong_peaks(r: Evaluation, method: str, *names: str) -> list[float]:
    """Average over strengths from 10 on, for each class and each quantity."""
    rows = [p for p in r.peaks if p.method == method and p.strength > 9.9]
    shapes = sorted({p.shape for p in rows})
    return [
        float(np.mean([getattr(p, name) for p in rows if p.shape == shape]))
        for shape in shapes
        for name in names
    ]


def position_bias(measured: bool) -> Rule:
    """Judge centres: of `measure_roi`, or fitted in the denoised frame."""

    def rule(r: Evaluation) -> Answer | None:
        shifts = _of_strong_peaks(r, MEASURED if measured else r.subject, "shift_row", "shift_col")
        if not shifts:
            return None
        lengths = np.hypot(shifts[::2], shifts[1::2])
        return f"{lengths.max():.2f} px", bool((lengths <= 0.1).all())

    return rule


def width_bias(measured: bool) -> Rule:
    """Judge widths: of `measure_roi`, or fitted in the denoised frame."""

    def rule(r: Evaluation) -> Answer | None:
        widths = _of_strong_peaks(r, MEASURED if measured else r.subject, "width_row", "width_col")
        if not widths:
            return None
        text = f"{min(widths):.2f} to {max(widths):.2f}"
        return text, all(abs(w - 1) <= 0.05 for w in widths)

    return rule


def shape_coverage(r: Evaluation) -> Answer | None:
    """Judge the intervals of centres and widths of `measure_roi`."""
    rows = [p for p in r.peaks if p.method == MEASURED and p.covered and p.strength > 9.9]
    if not rows:
        return None
    covered = np.average([p.covered for p in rows], axis=0, weights=[p.peaks for p in rows])
    off = np.abs(covered - (0.68, 0.90, 0.95))
    return " / ".join(f"{100 * c:.0f}" for c in covered) + " %", bool((off <= 0.03).all())


def false_peaks(r: Evaluation) -> Answer | None:
    """Judge signal-free frames."""
    found = {(f.method, f.counts_per_pixel, f.threshold): f.per_megapixel for f in r.false_peaks}
    ours = {key[1:]: value for key, value in found.items() if key[0] == r.subject}
    if not ours:
        return None
    raw = {key: found["raw", *key] for key in ours}
    text = f"at most {max(ours.values()):.1f}; raw {min(raw.values()):.0f} to "
    text += f"{max(raw.values()):.0f}"
    return text, all(ours[key] <= raw[key] for key in ours)


def missed_peaks(r: Evaluation) -> Answer | None:
    """Tell what is recovered."""
    limits = [x for x in r.limits if x.how == FILTER]
    ours = [x for x in limits if x.method == r.subject]
    if not ours:
        return None
    raw = {x.shape: x for x in limits if x.method == "raw"}
    parts = [f"{x.shape} {x.half:.1f} / {x.most:.1f}" for x in ours]
    bound = [f"{x.half:.1f} / {x.most:.1f}" for x in raw.values()]
    return f"{', '.join(parts)}; raw, shape known: {', '.join(bound)}", None


def exposure_ratio(r: Evaluation) -> Answer | None:
    """Tell the ratio of `measure_roi`."""
    rows = [x for x in r.ratios if x.method == MEASURED]
    if not rows:
        return None
    parts = [f"{x.ratio:.2f} against {x.reference}" for x in rows]
    return "; ".join(parts), None


def fitted_exposure_ratio(r: Evaluation) -> Answer | None:
    """Tell the ratio of peaks fitted in the denoised frame."""
    rows = [x for x in r.ratios if x.method == r.subject]
    if not rows:
        return None
    parts = [f"{x.ratio:.2f} against {x.reference}" if x.ratio else "never" for x in rows]
    return "; ".join(dict.fromkeys(parts)), None


def seen_by_eye(r: Evaluation) -> Answer | None:
    """Tell the ratio of what is looked at."""
    ours = [x for x in r.limits if x.how == EYE and x.method == r.subject]
    if not ours:
        return None
    parts = [f"{x.shape} {'over ' if x.at_least else ''}{x.exposure_ratio:.1f}" for x in ours]
    return ", ".join(parts), None


def _roi(r: Evaluation) -> dict | None:
    return next((vars(x) for x in r.regions if x.intensity == MEASURED), None)


def region_slope(r: Evaluation) -> Answer | None:
    """Judge the slope of `measure_roi`."""
    found = _roi(r)
    if found is None:
        return None
    return f"{found['slope']:.3f} ± {found['slope_error']:.3f}", abs(found["slope"] - 1) <= 0.02


def region_pulls(r: Evaluation) -> Answer | None:
    """Judge the pulls of `measure_roi`."""
    found = _roi(r)
    return (f"{found['pull_width']:.2f}", 0.9 <= found["pull_width"] <= 1.1) if found else None


def region_coverage(r: Evaluation) -> Answer | None:
    """Judge the intervals of `measure_roi`."""
    found = _roi(r)
    if found is None:
        return None
    covered = found["covered"]
    off = max(abs(covered[c] - n) for c, n in (("68", 0.683), ("90", 0.9), ("95", 0.95)))
    return " / ".join(f"{100 * covered[c]:.0f}" for c in covered) + " %", off <= 0.03


def region_error(r: Evaluation) -> Answer | None:
    """Judge the error of `measure_roi`."""
    found = _roi(r)
    return (f"{found['error_ratio']:.2f}", found["error_ratio"] <= 1.0) if found else None
