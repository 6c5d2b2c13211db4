"""The scores as tables, for the terminal, for HTML and for Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.detection import EYE, FILTER
from bluesky_denoise.evaluation.gates import Gate
from bluesky_denoise.evaluation.results import Evaluation

__all__ = ["KEYS", "Table", "all_tables", "gate_table", "markdown", "without_repeats"]


@dataclass(frozen=True)
class Table:
    """One table; cells are text."""

    title: str
    note: str
    """What the columns mean."""
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    groups: int = 1
    """So many first columns are shown only where they change."""
    key: str = ""
    """Short name, for the report's links."""


VERDICT = {True: "met", False: "missed", None: ""}


def gate_table(gates: Sequence[Gate]) -> Table:
    """Return the gates with their figures."""
    rows = [(g.check, g.metric, g.limit, g.figure, VERDICT[g.met]) for g in gates]
    return Table(
        "Gates",
        "What a sceptic asks, and what was found.",
        ("check", "metric", "limit", "found", "gate"),
        rows,
        key="gates",
    )


def all_tables(result: Evaluation) -> list[Table]:
    """Return every table that has rows."""
    tables = (make(result) for make in _MAKERS)
    return [table for table in tables if table.rows]


def markdown(table: Table) -> str:
    """Return a table in Markdown, without its title."""
    lines = [" | ".join(table.columns), " | ".join("---" for _ in table.columns)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in table.rows]
    return "\n".join(f"| {line} |" for line in lines)


def _number(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits."""
    if not np.isfinite(value):
        return "" if np.isnan(value) else "-"
    return f"{value:.{digits}g}"


def _times(value: float) -> str:
    return "never" if value == 0 else _number(value)


def _thinned(r: Evaluation) -> Table:
    rows = [
        (
            t.set,
            t.held_out,
            _number(t.counts_per_pixel, 2),
            t.method,
            _number(t.deviance, 4),
            f"{t.against_gaussian:+.1%}",
            f"{t.error:.4f}",
            f"{t.flux:.5f}",
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
        "frame has 1. Flux: the frame that is furthest from 1.",
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


def _neighbours(r: Evaluation) -> Table:
    rows = [
        (
            n.set,
            n.held_out,
            f"{n.fraction:g}",
            f"{n.times_longer:.0f}",
            n.method,
            f"{n.error:.4f}" + (f" ± {n.error_spread:.4f}" if n.frames > 1 else ""),
            _number(n.contrast),
            f"{n.flux:.5f}",
        )
        for n in r.neighbours
    ]
    return Table(
        "Measured frames against longer measured exposures",
        "Single frames of a scan that changes slowly, or a share of their photons, against the "
        "sum of the frames around them; the frame itself is left out. Error: squared error over "
        "the mean count, without the noise of the sum; the raw frame has 1. Contrast of the weak "
        "line over that of the sum.",
        ("series", "held out", "of a frame", "times longer", "method", "error", "contrast", "flux"),
        rows,
        4,
        "neighbours",
    )


def _first_number(text: str) -> float:
    return next(float(word) for word in text.split() if word.replace(".", "").isdigit())


def _spots(r: Evaluation) -> Table:
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
        for s in sorted(r.spots, key=lambda s: (s.set, _first_number(s.significance)))
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


def _ratios(r: Evaluation) -> Table:
    order = list(dict.fromkeys(x.reference for x in r.ratios))
    rows = [
        (
            x.reference,
            x.method,
            _times(x.ratio),
            f"{_number(x.low, 2)} to {_number(x.high, 2)}" if x.ratio else "",
            f"{100 * x.width_bias:.0f} %" if np.isfinite(x.width_bias) else "",
        )
        for x in sorted(r.ratios, key=lambda x: order.index(x.reference))
    ]
    return Table(
        "The honest exposure ratio",
        "By how much the exposure may fall until the intensity of a peak is known as badly as by "
        "the reference (12 %, root mean square, bias included). Positions and shapes are unknown "
        "to all but the first reference, which no measurement can beat. Width: the largest bias "
        "of the fitted width at the exposure needed; beyond 5 % the image broadens or narrows "
        "peaks. `measure_roi` sums raw photons where the denoised frame shows the peak.",
        ("reference", "method", "exposure ratio", "68 % interval", "width bias"),
        rows,
        1,
        "ratios",
    )


def _peaks(r: Evaluation) -> Table:
    strengths = sorted({p.strength for p in r.peaks})[::2]
    rows = []
    for strength in strengths:
        at = [p for p in r.peaks if p.strength == strength]
        for method in dict.fromkeys(p.method for p in at):
            of = [p for p in at if p.method == method]

            def mean(name: str, of: Sequence = of) -> float:
                return float(np.mean([getattr(p, name) for p in of]))

            cells = (mean("width_row"), mean("width_col"))
            rows.append(
                (
                    f"{strength:.0f}",
                    method,
                    f"{mean('intensity_error'):.1%}",
                    f"{mean('intensity_bias'):+.1%}",
                    "" if np.isnan(mean("sum_bias")) else f"{mean('sum_bias'):+.1%}",
                    _number(mean("position_error"), 2),
                    " / ".join(f"{c:.2f}" for c in cells) if np.isfinite(cells[0]) else "",
                )
            )
    return Table(
        "Known peaks",
        "Simulated peaks of three shapes, 1.2 to 4 pixels, on 0.25 to 4 counts a pixel; means "
        "over the shapes. Strength: counts over the square root of the background's under the "
        "peak. A Gaussian is fitted to every image by Poisson likelihood. Error and bias of the "
        "intensity, relative. Sum: of the image over the peak, against the same sum of the raw "
        "frame. Position: distance from the truth, root mean square, pixels. Width: FWHM over "
        "the truth, rows / columns.",
        ("strength", "method", "error", "bias", "sum", "position", "width"),
        rows,
        1,
        "peaks",
    )


def _limits(r: Evaluation) -> Table:
    kept = {(x.method, x.shape, round(x.strength)): x.kept for x in r.recovery}
    order = {FILTER: 0, EYE: 1}
    rows = [
        (
            x.how,
            x.shape,
            x.method,
            _number(x.half, 2),
            _number(x.most, 2),
            ("> " if x.at_least and np.isfinite(x.half) else "") + _number(x.exposure_ratio, 2),
            _number(kept.get((x.method, x.shape, 10), np.nan), 2),
        )
        for x in sorted(r.limits, key=lambda x: (order[x.how], x.shape))
    ]
    return Table(
        "Missed peaks and detection limit",
        "Shapes are injected into flat frames and looked for, at the threshold that noise alone "
        "exceeds in one of a hundred empty places, in images of the same method. Strength: what "
        "a matched filter of the known shape sees in the raw frame, standard deviations. Matched "
        "filter: the shape is known; nothing can beat it on the raw frame. Brightest pixel: as "
        "an eye or a plain threshold would have it. Exposure ratio: exposure of the raw frame, "
        "seen the same way, over that of the method, at 50 %. Kept: of the strength, at 10 "
        "standard deviations.",
        ("seen by", "shape", "method", "50 % at", "90 % at", "exposure ratio", "kept"),
        rows,
        2,
        "limits",
    )


def _false_peaks(r: Evaluation) -> Table:
    rows = [
        (
            f"{f.threshold:g}",
            f"{f.counts_per_pixel:g}",
            f.method,
            f"{f.per_megapixel:.1f} ± {f.error:.1f}",
            f"{f.megapixels:.2f}",
        )
        for f in sorted(r.false_peaks, key=lambda f: (f.threshold, f.counts_per_pixel))
    ]
    return Table(
        "False peaks",
        "Peaks of 2 pixels found in frames of pure Poisson noise, per megapixel. The threshold "
        "is that of the raw matched filter, in photons, for all.",
        ("threshold", "counts / px", "method", "false peaks / Mpx", "Mpx"),
        rows,
        2,
        "false",
    )


def _regions(r: Evaluation) -> Table:
    rows = [
        (
            x.intensity,
            str(x.regions),
            f"{x.slope:.3f} ± {x.slope_error:.3f}",
            f"{x.pull_mean:+.2f}" if np.isfinite(x.pull_mean) else "",
            _number(x.pull_width),
            " / ".join(f"{100 * c:.0f}" for c in x.covered.values()),
            f"{x.error_ratio:.2f}",
        )
        for x in r.regions
    ]
    return Table(
        "Intensities of regions",
        "Weak satellites of 0.1 to 5 counts in the brightest pixel over 0.02 to 2, in regions of "
        "30 x 30 pixels. Slope of found against true counts. Pull: (found - true) / stated error. "
        "Coverage of the stated 68 / 90 / 95 % intervals, percent. Error over that of the raw sum.",
        ("intensity", "regions", "slope", "pull, mean", "pull, width", "coverage", "error ratio"),
        rows,
        0,
        "regions",
    )


def _coverage(r: Evaluation) -> Table:
    rows = [
        (
            c.scenes,
            c.binned_by,
            f"{c.low:g} to {c.high:g}",
            str(c.pixels),
            " / ".join(f"{100 * x:.0f}" for x in c.covered),
            _number(c.pull_width),
        )
        for c in r.coverage
    ]
    return Table(
        "Intervals of pixels",
        "How often the stated 68 / 90 / 95 % intervals hold the truth, percent, in bins of "
        "counts per pixel: by the estimate, as a user sees it, and by the truth. For measured "
        "series the truth is the sum of the neighbours, and its noise is added. Pull: root mean "
        "square of (estimate - truth) / sigma.",
        ("scenes", "binned by", "counts / px", "pixels", "coverage", "pull"),
        rows,
        2,
        "coverage",
    )


def _shift(r: Evaluation) -> Table:
    rows = [
        (s.set, s.estimates, str(s.failures), str(s.flagged), str(s.right), str(s.alarms))
        for s in r.shift
    ]
    return Table(
        "What the audit flags",
        "Estimates of measured frames by the denoiser, and by Gaussians of 2 to 16 pixels that "
        "play one that has gone wrong. Failures: on photons that neither estimate nor audit has "
        "seen, 10 % more deviance than their noise and the estimate's error bars explain, and 5 "
        "standard deviations; right ones: less than 2 %, and no block of 16 pixels off by 4.",
        ("series", "estimates", "failures", "flagged", "right", "flagged"),
        rows,
        1,
        "shift",
    )


def _awkward(r: Evaluation) -> Table:
    rows = [(a.case, "yes" if a.passed else "NO", a.result) for a in r.awkward]
    return Table(
        "Awkward frames",
        "Finite where valid, NaN where masked, total kept; or a clear error.",
        ("frame", "passed", "result"),
        rows,
        0,
        "awkward",
    )


def _speed(r: Evaluation) -> Table:
    rows = [(s.method, _number(s.times_longer), s.frame) for s in r.speed]
    return Table(
        "Speed",
        "CPU time on one thread over that of the denoiser, on the same frame in the same run.",
        ("method", "times longer", "frame"),
        rows,
        0,
        "speed",
    )


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


_MAKERS = (
    _thinned,
    _neighbours,
    _spots,
    _ratios,
    _peaks,
    _limits,
    _false_peaks,
    _regions,
    _coverage,
    _shift,
    _awkward,
    _speed,
)
KEYS = tuple(make(Evaluation("")).key for make in _MAKERS)
"""Keys of all tables, in their order."""
