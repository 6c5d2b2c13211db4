"""Tables of what measured and awkward frames tell."""

import numpy as np

from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.table import Table, give_or_take, number

__all__ = [
    "awkward_table",
    "coverage_table",
    "neighbour_table",
    "shift_table",
    "speed_table",
    "spot_table",
    "thinned_table",
]


def thinned_table(r: Evaluation) -> Table:
    """Tell how thinned frames fare."""
    rows = [
        (
            t.set,
            t.held_out,
            number(t.counts_per_pixel, 2),
            t.method,
            number(t.deviance, 4),
            _unless_nan(t.against_gaussian, "+.1%"),
            _unless_nan(t.error, ".4f"),
            _unless_nan(t.flux, ".5f"),
        )
        for t in r.thinned
    ]
    return Table(
        "Measured frames, thinned",
        "A share of the photons of each frame is denoised and judged by the others, which no "
        "method has seen. Deviance: Poisson deviance of the held-out counts per degree of "
        "freedom; 1 is right. Where few photons were denoised it is far above 1 for all: the "
        "rest knows more than they can tell. Against Gaussian: the deviance over that of the "
        "best Gaussian, whose width is chosen for each frame on the held-out counts. Error: "
        "squared error over the mean count, without the noise of the held-out counts; the raw "
        "frame has 1. Flux: the frame that is furthest from 1. Held out: yes, if no frame of the "
        "sample was trained on; else what was.",
        (
            "series",
            "held out",
            "counts / px",
            "method",
            "deviance",
            "against Gaussian",
            "error",
            "flux",
        ),
        rows,
        3,
        "thinned",
    )


def _unless_nan(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


def neighbour_table(r: Evaluation) -> Table:
    """Tell how frames fare against their neighbours."""
    rows = [
        (
            n.set,
            n.held_out,
            f"{n.fraction:g}",
            f"{n.times_longer:.0f}",
            n.method,
            f"{n.error:.4f}" + give_or_take(n.error_spread, 4),
            number(n.contrast) + give_or_take(n.contrast_spread, 3),
            f"{n.flux:.5f}",
        )
        for n in r.neighbours
    ]
    return Table(
        "Measured frames against longer measured exposures",
        "Single frames of a scan that changes slowly, or a share of their photons, against the "
        "sum of the frames around them; the frame itself is left out. Error: squared error over "
        "the mean count, without the noise of the sum; the raw frame has 1. Contrast of the weak "
        "line over that of the sum. ±: standard error of the mean, from the scatter over frames.",
        ("series", "held out", "of a frame", "times longer", "method", "error", "contrast", "flux"),
        rows,
        4,
        "neighbours",
    )


def spot_table(r: Evaluation) -> Table:
    """Tell what sharp spots keep."""
    rows = [
        (
            s.set,
            s.held_out,
            s.significance,
            s.method,
            str(s.spots),
            f"{s.kept:.4f}",
            f"{s.median:.4f}",
            str(s.lost),
        )
        for s in sorted(r.spots, key=lambda s: (s.set, _firstnumber(s.significance)))
    ]
    return Table(
        "Bragg spots of 1 to 3 pixels",
        "Integrated counts in 5 x 5 pixels, less the border around, over those of the raw frame. "
        "Spots are sorted by the significance of their raw counts, in standard deviations. Lost: "
        "less than half is kept.",
        ("series", "held out", "significance", "method", "spots", "kept", "median", "lost"),
        rows,
        3,
        "spots",
    )


def _firstnumber(text: str) -> float:
    return next(float(word) for word in text.split() if word.replace(".", "").isdigit())


def shift_table(r: Evaluation) -> Table:
    """Tell what the audit flags."""
    rows = [
        (s.set, s.held_out, s.estimates, *map(str, (s.failures, s.flagged, s.right, s.alarms)))
        for s in r.shift
    ]
    return Table(
        "What the audit flags",
        "Estimates of measured frames by the denoiser, and by Gaussians of 2 to 16 pixels that "
        "play one that has gone wrong. Failures: on photons that neither estimate nor audit has "
        "seen, 10 % more deviance than their noise and the estimate's error bars explain, and 5 "
        "standard deviations; right ones: less than 2 %, and no block of 16 pixels off by 4.",
        (
            "series",
            "held out",
            "estimates",
            "failures",
            "of these flagged",
            "right ones",
            "of those flagged",
        ),
        rows,
        2,
        "shift",
    )


def coverage_table(r: Evaluation) -> Table:
    """Tell how often intervals hold the truth."""
    rows = [
        (
            c.scenes,
            c.binned_by,
            f"{c.low:g} to {c.high:g}",
            str(c.pixels),
            " / ".join(f"{100 * x:.0f}" for x in c.covered),
            number(c.pull_width),
        )
        for c in r.coverage
    ]
    return Table(
        "Intervals of pixels",
        "How often the stated 68 / 90 / 95 % intervals hold the truth, percent, in bins of "
        "counts per pixel: by the estimate, as a user sees it, and by the truth. For measured "
        "series the truth is the sum of the neighbours, and its noise is added; a fifth of their "
        "photons, which is no part of it, says which pixels are bright enough. Pull: root mean "
        "square of (estimate - truth) / sigma.",
        ("scenes", "binned by", "counts / px", "pixels", "coverage", "pull"),
        rows,
        2,
        "coverage",
    )


def awkward_table(r: Evaluation) -> Table:
    """Tell what becomes of awkward frames."""
    rows = [(a.case, "yes" if a.passed else "NO", a.result) for a in r.awkward]
    return Table(
        "Awkward frames",
        "Finite where valid, NaN where masked, total kept; or a clear error.",
        ("frame", "passed", "result"),
        rows,
        0,
        "awkward",
    )


def speed_table(r: Evaluation) -> Table:
    """Tell how much longer others take."""
    rows = [(s.method, number(s.times_longer), s.frame) for s in r.speed]
    return Table(
        "Speed",
        "Least CPU time on one thread over that of the denoiser: all take turns on the same frame, "
        "in a process that does nothing else.",
        ("method", "times longer", "frame"),
        rows,
        0,
        "speed",
    )
