"""Plots and pictures of an evaluation, each as a matplotlib figure."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bluesky_denoise.evaluation.detection import EYE, FILTER
from bluesky_denoise.evaluation.peaks import FITTED, MEASURED, OPTIMAL, SUMMED
from bluesky_denoise.evaluation.results import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["frame_picture", "result_plots"]

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
STYLE = {
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


def _colour(method: str, subject: str, all_methods: Sequence[str]) -> str:
    if method == subject:
        return OURS
    if method in COLOURS:
        return COLOURS[method]
    others = [m for m in all_methods if m not in COLOURS and m != subject]
    return OTHERS[others.index(method) % len(OTHERS)]


def _axes(columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def frame_picture(title: str, images: dict[str, np.ndarray], mask: np.ndarray) -> "Figure":
    """Draw the images of one frame on one logarithmic scale, with profiles below.

    Parameters
    ----------
    title : not drawn; the report writes it as a heading
    images : name -> (H, W) expected counts; the last is what they are compared with
    mask : (H, W) bool, True where invalid
    """
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    reference = np.where(mask, np.nan, list(images.values())[-1])
    top = max(float(np.nanpercentile(reference, 99.7)), 1e-3)
    positive = reference[reference > 0]
    low = float(np.percentile(positive, 2)) if positive.size else top / 100
    norm = LogNorm(min(max(low * 0.7, top / 1e4), top / 3), top)
    columns = 3 if reference.shape[1] > 1.3 * reference.shape[0] else 4
    rows = -(-len(images) // columns)
    aspect = reference.shape[0] / reference.shape[1]
    with rc_context(STYLE):
        figure = Figure((11, 11 / columns * aspect * rows + 0.3 * rows + 2.1), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(figure.get_figheight() - 2.1, 2.1))
        axes = above.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        shown = None
        for axis, (name, image) in zip(axes, images.items(), strict=False):
            floor = np.maximum(np.where(mask, np.nan, image), norm.vmin)
            shown = axis.imshow(floor, norm=norm, cmap="magma", interpolation="nearest")
            axis.set_title(name)
        above.colorbar(shown, ax=list(axes), shrink=0.8, pad=0.01, label="counts")
        _profile(below.subplots(1, 2, width_ratios=(3, 2)), images, mask)
    return figure


def _profile(axes: "Sequence[Axes]", images: dict[str, np.ndarray], mask: np.ndarray) -> None:
    """Draw the mean of nine rows across columns, and the part of most contrast once more."""
    *names, last = images
    known = np.where(mask, 0, images[last])
    height = known.shape[0]
    spiky = known.max() > 50 * known.mean()
    row = int(np.argmax(known.max(1))) if spiky else height // 2
    row = int(np.clip(row, min(4, height // 2), max(height - 5, height // 2)))
    band = np.s_[max(row - 4, 0) : row + 5]
    valid = ~mask[band]
    lit = valid.any(0)
    weight = np.maximum(valid.sum(0), 1)
    lines = {name: np.where(lit, np.where(valid, images[name][band], 0).sum(0) / weight, np.nan)
             for name in images}  # fmt: skip
    flat = np.nan_to_num(lines[last])
    for name, profile in lines.items():
        colour = COLOURS.get(name, OURS if name == names[-1] else OTHERS[0])
        style = {"color": colour, "lw": 0.7 if name == "raw" else 1.2, "zorder": 2}
        if name == last:
            style = {"color": "black", "lw": 1.6, "zorder": 1, "alpha": 0.75}
        for axis in axes:
            axis.plot(profile, label=name, **style)
    top = max(float(flat.max()), 1e-6)
    dim = flat[flat > 0]
    low = max(float(np.percentile(dim, 2)) / 2 if dim.size else top / 100, top / 1e5)
    axes[0].set(yscale="log" if top > 30 * low else "linear", xlim=(0, len(flat) - 1))
    if top > 30 * low:
        axes[0].set_ylim(low, 2 * top)
    axes[0].set(title=f"mean of rows {band.start} to {band.stop - 1}", ylabel="counts")
    # Where the profile differs most from its surroundings, by the square root of counts.
    wide = np.convolve(np.sqrt(flat), np.ones(31) / 31, mode="same")
    away = np.abs(np.sqrt(flat) - wide)
    away[:20] = away[-20:] = 0
    away[~lit] = 0
    middle = int(np.argmax(away if spiky else np.where(lit, flat, 0)))
    begin = int(np.clip(middle - 40, 0, max(len(flat) - 81, 0)))
    near = lines[last][begin : begin + 81]
    spread = np.nanmax(near) - np.nanmin(near) + 4 * np.sqrt(np.nanmax(near) / 9)
    axes[1].set(xlim=(begin, begin + 80), title="the same, closer")
    axes[1].set_ylim(max(0, np.nanmin(near) - 0.2 * spread), np.nanmax(near) + 0.2 * spread)
    for axis in axes:
        axis.set_xlabel("column, pixels")
    axes[1].legend(ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))


def result_plots(result: Evaluation) -> "Iterator[tuple[str, str, Figure]]":
    """Yield the key of the table that a plot belongs to, a caption, and the plot."""
    from matplotlib import rc_context

    makers = (
        ("thinned", "Lower is better; what is off the scale is drawn at its end.", _errors),
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
                color=_colour(method, r.subject, methods),
                label=method,
            )
        axis.set(
            xscale="log", yticks=range(len(sets)), title=f"{fraction:g} of the photons",
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
                color=_colour(method, r.subject, methods),
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
            colour = _colour(method, r.subject, methods)
            axis.plot(strengths, values, "o-", ms=3, lw=lw, color=colour, label=method)
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
            colour = _colour(method, r.subject, methods)
            axis.plot(strengths, means, "o-", ms=3, lw=lw, color=colour, label=method)
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
                color=_colour(method, r.subject, methods),
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
