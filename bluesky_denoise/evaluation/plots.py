"""Plots of an evaluation, each as a matplotlib figure."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bluesky_denoise.evaluation.detection import EYE, FILTER
from bluesky_denoise.evaluation.peaks import MEASURED, OPTIMAL
from bluesky_denoise.evaluation.plot_style import OURS, STYLE, colour
from bluesky_denoise.evaluation.results import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["result_plots"]


def result_plots(result: Evaluation) -> "Iterator[tuple[str, str, Figure]]":
    """Yield the key of the table that a plot belongs to, a caption, and the plot."""
    from matplotlib import rc_context

    makers = (
        (
            "thinned",
            "Squared error, over that of the best classical method, for each series: left of 1 is "
            "better. What is off the scale is drawn at its end.",
            _errors,
        ),
        ("ratios", "The error that a shorter exposure gives, and the exposure saved.", _exposures),
        ("peaks", "Widths and sums of fitted peaks; the band is the gate of 5 %.", _widths),
        ("limits", "Recovery of what was injected, mean over shapes.", _recovery),
        ("false", "At the threshold of the raw matched filter.", _false),
        ("coverage", "Points from the stated coverage; the band is 3 points.", _coverage),
        ("speed", "CPU time over that of the denoiser, logarithmic.", _speed),
    )
    for key, caption, maker in makers:
        with rc_context(STYLE):
            figure = maker(result)
        if figure is not None:
            yield key, caption, figure


def _axes(columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def _plain_ticks(axis: "Axis", ticks: Sequence[float]) -> None:
    """Put numbers where they are wanted on a logarithmic axis, and nowhere else."""
    axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_ticks([], minor=True)


def _errors(r: Evaluation) -> "Figure | None":
    """Errors on thinned frames over those of the best classical denoiser."""
    if not r.thinned:
        return None
    fractions = sorted({t.fraction for t in r.thinned}, reverse=True)
    methods = [m for m in dict.fromkeys(t.method for t in r.thinned) if m != "raw"]
    reference = "Anscombe + BM3D" if "Anscombe + BM3D" in methods else "best Gaussian"
    sets = list(dict.fromkeys(t.set for t in r.thinned))
    found = {(t.set, t.fraction, t.method): max(t.error, 1e-6) for t in r.thinned}
    figure, axes = _axes(len(fractions), 11, 0.6 + 0.36 * len(sets))
    for axis, fraction in zip(axes, fractions, strict=True):
        for method in methods:
            ratios = [
                found[s, fraction, method] / found[s, fraction, reference]
                if (s, fraction, method) in found
                else np.nan
                for s in sets
            ]
            axis.plot(
                np.clip(ratios, 0.1, 12),
                range(len(sets)),
                "o",
                ms=8 if method == r.subject else 6,
                color=colour(method, r.subject, methods),
                label=method,
            )
        axis.set(
            xscale="log", yticks=range(len(sets)), title=f"{100 * fraction:g} % of the photons",
            xlabel=f"error over that of {reference}",
        )  # fmt: skip
        axis.set_yticklabels(sets if axis is axes[0] else [])
        axis.axvline(1, color="#555", lw=0.8)
        _plain_ticks(axis.xaxis, (0.1, 0.3, 1, 3, 10))
        axis.invert_yaxis()
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _exposures(r: Evaluation) -> "Figure | None":
    if not r.peaks:
        return None
    shapes = list(dict.fromkeys(p.shape for p in r.peaks))
    methods = list(dict.fromkeys(p.method for p in r.peaks))
    figure, axes = _axes(len(shapes), 11, 3.2)
    for axis, shape in zip(axes, shapes, strict=True):
        for method in methods:
            rows = sorted(
                (p.strength, p.intensity_error)
                for p in r.peaks
                if (p.shape, p.method) == (shape, method)
            )
            strength, error = zip(*rows, strict=True)
            own = method in (r.subject, MEASURED, OPTIMAL)
            axis.plot(
                (np.array(strength) / 10) ** 2,
                error,
                "o-",
                ms=3,
                lw=2 if own else 1.1,
                color=colour(method, r.subject, methods),
                label=method,
            )
        axis.set(xscale="log", yscale="log", title=f"{shape} peaks", xlabel="exposure")
        axis.set_ylim(0.05, 1.1)
        _plain_ticks(axis.xaxis, sorted({(p.strength / 10) ** 2 for p in r.peaks}))
        _plain_ticks(axis.yaxis, (0.05, 0.1, 0.2, 0.5, 1))
    axes[0].set_ylabel("error of the intensity, relative")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _widths(r: Evaluation) -> "Figure | None":
    rows = [p for p in r.peaks if np.isfinite(p.width_row)]
    if not rows:
        return None
    methods = list(dict.fromkeys(p.method for p in rows))
    figure, axes = _axes(3, 11, 3.2)
    for axis, (title, names) in zip(
        axes,
        (
            ("FWHM over the truth", ("width_row", "width_col")),
            ("sum over the peak, bias", ("sum_bias",)),
            ("distance of the centre, pixels", ("position_error",)),
        ),
        strict=True,
    ):
        for method in methods:
            strengths = sorted({p.strength for p in rows if p.method == method})
            values = [
                np.mean(
                    [
                        getattr(p, n)
                        for n in names
                        for p in rows
                        if (p.method, p.strength) == (method, s)
                    ]
                )
                for s in strengths
            ]
            lw = 2 if method == r.subject else 1.1
            shade = colour(method, r.subject, methods)
            axis.plot(strengths, values, "o-", ms=3, lw=lw, color=shade, label=method)
        axis.set(title=title, xlabel="strength, S / √B")
    axes[0].axhspan(0.95, 1.05, color="#d8ead9", zorder=0)
    axes[0].set_ylim(0.6, 3)
    axes[1].axhspan(-0.05, 0.05, color="#d8ead9", zorder=0)
    axes[2].set_yscale("log")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _recovery(r: Evaluation) -> "Figure | None":
    if not r.recovery:
        return None
    methods = list(dict.fromkeys(x.method for x in r.recovery))
    figure, axes = _axes(3, 11, 3.2)
    for axis, (how, name, title) in zip(
        axes,
        (
            (FILTER, "recovered", "seen by a filter of the known shape"),
            (EYE, "recovered", "seen by the brightest pixel"),
            (FILTER, "kept", "strength kept"),
        ),
        strict=True,
    ):
        for method in methods:
            rows = [x for x in r.recovery if (x.method, x.how) == (method, how)]
            strengths = sorted({x.strength for x in rows})
            means = [
                np.mean([getattr(x, name) for x in rows if x.strength == s]) for s in strengths
            ]
            lw = 2 if method == r.subject else 1.1
            shade = colour(method, r.subject, methods)
            axis.plot(strengths, means, "o-", ms=3, lw=lw, color=shade, label=method)
        axis.set(xscale="log", title=title, xlabel="strength, standard deviations")
        _plain_ticks(axis.xaxis, (3, 5, 10, 20))
        axis.set_ylim(-0.03, 1.1)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _false(r: Evaluation) -> "Figure | None":
    if not r.false_peaks:
        return None
    thresholds = sorted({f.threshold for f in r.false_peaks})
    methods = list(dict.fromkeys(f.method for f in r.false_peaks))
    figure, axes = _axes(len(thresholds), 8, 2.6)
    for axis, threshold in zip(axes, thresholds, strict=True):
        for method in methods:
            rows = [f for f in r.false_peaks if (f.method, f.threshold) == (method, threshold)]
            axis.plot(
                [f.counts_per_pixel for f in rows],
                [f.per_megapixel + 0.1 for f in rows],
                "o-",
                color=colour(method, r.subject, methods),
                label=method,
            )
        axis.set(
            xscale="log", yscale="log", xlabel="counts / pixel",
            title=f"above {threshold:g} standard deviations",
        )  # fmt: skip
    axes[0].set_ylabel("false peaks / Mpx + 0.1")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _coverage(r: Evaluation) -> "Figure | None":
    if not r.coverage:
        return None
    scenes = list(dict.fromkeys((c.scenes, c.binned_by) for c in r.coverage))
    figure, axes = _axes(3, 11, 3.0)
    for axis, index, stated in zip(axes, range(3), (0.68, 0.90, 0.95), strict=True):
        axis.axhspan(-3, 3, color="#d8ead9", zorder=0)
        for scene in scenes:
            rows = [c for c in r.coverage if (c.scenes, c.binned_by) == scene]
            axis.plot(
                [np.sqrt(c.low * c.high) for c in rows],
                [100 * (c.covered[index] - stated) for c in rows],
                "o-",
                ms=3,
                label=f"{scene[0]}, by {scene[1]}",
            )
        axis.set(xscale="log", xlabel="counts / pixel", title=f"{100 * stated:.0f} % intervals")
        axis.set_ylim(-30, 30)
    axes[0].set_ylabel("covered less stated, points")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _speed(r: Evaluation) -> "Figure | None":
    if not r.speed:
        return None
    figure, (axis,) = _axes(1, 8, 0.6 + 0.32 * (len(r.speed) + 1))
    rows = sorted(r.speed, key=lambda s: s.times_longer)
    names = [r.subject, *(s.method for s in rows)]
    times = [1.0, *(s.times_longer for s in rows)]
    bars = axis.barh(names, times, color=[OURS, *("#9aa5b1" for _ in rows)], height=0.6)
    axis.bar_label(bars, [f" {t:.3g}" for t in times], fontsize=8)
    axis.set(xscale="log", xlim=(0.7, max(times) * 2))
    axis.grid(axis="y", visible=False)
    return figure
