"""Tables of what simulated peaks and regions tell."""

from collections.abc import Sequence

import numpy as np

from bluesky_denoise.evaluation.detection import EYE, FILTER
from bluesky_denoise.evaluation.peaks import MEASURED
from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.table import Table, number, times

__all__ = [
    "false_peak_table",
    "limit_table",
    "peak_table",
    "ratio_table",
    "region_table",
]


def ratio_table(r: Evaluation) -> Table:
    """Tell the exposure ratios."""
    order = list(dict.fromkeys(x.reference for x in r.ratios))
    rows = [
        (
            x.reference,
            x.method,
            times(x.ratio),
            f"{number(x.low, 2)} to {number(x.high, 2)}" if x.ratio else "",
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


def peak_table(r: Evaluation) -> Table:
    """Tell how known peaks are measured."""
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
                    number(mean("position_error"), 2),
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


def limit_table(r: Evaluation) -> Table:
    """Tell what is detected."""
    kept = {(x.method, x.shape, round(x.strength)): x.kept for x in r.recovery}
    order = {FILTER: 0, EYE: 1}
    rows = [
        (
            x.how,
            x.shape,
            x.method,
            number(x.half, 2),
            number(x.most, 2),
            ("> " if x.at_least and np.isfinite(x.half) else "") + number(x.exposure_ratio, 2),
            number(kept.get((x.method, x.shape, 10), np.nan), 2),
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


def false_peak_table(r: Evaluation) -> Table:
    """Tell how many peaks are false."""
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


def region_table(r: Evaluation) -> Table:
    """Tell how regions are measured."""
    rows = [
        (
            x.intensity,
            str(x.regions),
            _slope(x.found_slope, x.found_slope_error),
            _slope(x.slope, x.slope_error) if x.intensity == MEASURED else "",
            f"{x.pull_mean:+.2f}" if np.isfinite(x.pull_mean) else "",
            number(x.pull_width),
            " / ".join(f"{100 * c:.0f}" for c in x.covered.values()),
            f"{x.error_ratio:.2f}",
        )
        for x in r.regions
    ]
    return Table(
        "Intensities of regions",
        "Weak satellites of 0.1 to 5 counts in the brightest pixel over 0.02 to 2, in regions of "
        "30 x 30 pixels. Slope: of found against true counts. Without noise: of the counts that "
        "`measure_roi` finds on average, with the weights that it chose, since the noise of the "
        "found ones hides so small a bias. Pull: (found - true) / stated error. "
        "Coverage of the stated 68 / 90 / 95 % intervals, percent. Error over that of the raw sum.",
        (
            "intensity",
            "regions",
            "slope",
            "slope, without noise",
            "pull, mean",
            "pull, width",
            "coverage",
            "error ratio",
        ),
        rows,
        0,
        "regions",
    )


def _slope(slope: float, error: float) -> str:
    return f"{slope:.3f} ± {error:.3f}" if np.isfinite(slope) else ""
