"""Print what the neighbouring frames of a scan are worth to a denoised frame, and their price.

Run as ``python -m benchmarks.frames_before [--before 2] [--draws 8] [FILE ...]``. ``FILE`` is HDF5
with ``frames`` (n, H, W); the shipped I07 line without. Nothing of this is in the package:
``docs/decisions/0008-a-frame-is-denoised-alone.md`` says why.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from scipy.ndimage import uniform_filter

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.evaluation.frame_sets import read_frame_set
from bluesky_denoise.evaluation.metrics import noise_corrected_error
from bluesky_denoise.models.checkpoint import load_checkpoint
from bluesky_denoise.photons.thinning import thin
from bluesky_denoise.roi import ROI, measure_roi
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

LINE = Path(__file__).parents[1] / "bluesky_denoise" / "simulation" / "frames" / "i07_line.h5"
SIDES_PX = (3, 7, 15)
"""Squares over which frames are compared."""
LEVEL_SIDES_PX, LEVEL_COUNTS = (129, 65), 400.0
"""Squares over which the level of the sum follows that of the frame, and the counts from which on
the level of a square is believed."""
REFERENCE = 10
"""Frames of a measured scan that one is compared with, after those that could be used."""
SHAPE, MIDDLES, SIGMA_PX, SUM_PX = (96, 96), ((24, 24), (24, 72), (72, 24), (72, 72)), 1.6, 11
WIDTHS = (1.0, 1.5, 2.0, 3.0)
"""Standard deviations of rocking curves, frames."""
STRENGTHS = (5.0, 10.0, 30.0)
"""S / sqrt(4 pi sigma^2 B) of the peaks at their highest."""
ALONE, ALWAYS, SHARES = "alone", "earlier, everywhere", "earlier, shares only"


@dataclass(frozen=True)
class Agreement:
    """Where other frames are used: the weight falls from 1 to 0 at ``most_z`` deviations."""

    most_z: float
    flat: bool = False
    """Not where a square stands out of its surroundings, either."""
    later: bool = False
    """Use as many later frames, too, which only a replay has."""

    def weigh(self, n: np.ndarray, total: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """Return the weight of the sum for the frame ``n``, 0 to 1; (H, W)."""
        worst = np.zeros(n.shape)
        expected = ratio * total
        for side in SIDES_PX:
            variance = _box(expected * (1 - ratio), side) + 0.3
            worst = np.maximum(worst, abs(_box(n - expected, side)) / np.sqrt(variance))
            for image in (n, total - n, total) if self.flat else ():
                worst = np.maximum(worst, _structure(image, side))
        return np.clip(self.most_z - worst, 0, 1)


RULES = {
    "earlier, agree to 3": Agreement(3.0),
    "earlier, agree to 2": Agreement(2.0),
    "earlier, agree to 1.5": Agreement(1.5),
    "earlier, flat to 3.5": Agreement(3.5, flat=True),
    "earlier, flat to 2.5": Agreement(2.5, flat=True),
    "both sides, agree to 2": Agreement(2.0, later=True),
}


def _box(image: np.ndarray, side_px: int) -> np.ndarray:
    return uniform_filter(image, side_px, mode="constant") * side_px**2


def _structure(counts: np.ndarray, side_px: int) -> np.ndarray:
    """Tell how far each square stands out of the ring around it, standard deviations."""
    one = np.ones(counts.shape)
    area, ring = _box(one, side_px), _box(one, 3 * side_px)
    inside = _box(counts, side_px)
    share = area / (ring - area)
    expected = (_box(counts, 3 * side_px) - inside) * share
    return abs(inside - expected) / np.sqrt((expected + 0.3) * (1 + share))


def level(n: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the share of the sum that the frame has, place by place where counts suffice."""
    ratio = np.full(n.shape, n.sum() / max(total.sum(), 1.0))
    for side in LEVEL_SIDES_PX:
        have, expected = _box(n, side), _box(ratio * total, side)
        ratio = ratio * (have + LEVEL_COUNTS) / (expected + LEVEL_COUNTS)
    return np.minimum(ratio, 1.0)


def _agrees(n: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether two frames agree as a whole, by squares of 15 pixels at one level."""
    both = n + other
    ratio = level(n, both)
    expected = ratio * both
    every = np.s_[7::15, 7::15]
    variance = _box(expected * (1 - ratio), 15)[every]
    z2 = _box(n - expected, 15)[every] ** 2 / np.maximum(variance, 1e-9)
    z2 = z2[variance > 1]
    return not len(z2) or z2.mean() < 1.2 + 4 * np.sqrt(2 / len(z2))


def total_of(frames: np.ndarray, at: int, last: int) -> np.ndarray:
    """Sum a frame and those up to ``last``, (n, H, W) -> (H, W); one that differs ends the row."""
    n = frames[at].astype(np.float64)
    total = n.copy()
    for i in range(at + 1, last + 1) if last > at else range(at - 1, last - 1, -1):
        if not _agrees(n, frames[i]):
            break
        total += frames[i]
    return total


class Estimates:
    """All ways of estimating one frame of a series, with as few passes as they need."""

    def __init__(self, before: int) -> None:
        self.before = before
        """Earlier frames that may be used, and later ones."""
        self._denoiser = Denoiser.load(device="cpu", threads=1)
        self._model = load_checkpoint("default")[0].eval()
        self.weights_sha256 = self._denoiser.weights_sha256

    def __call__(self, frames: np.ndarray, at: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return expected counts and weight of the other frames, by way; (H, W) each."""
        n = frames[at].astype(np.float64)
        earlier = total_of(frames, at, max(0, at - self.before))
        later = total_of(frames, at, min(len(frames) - 1, at + self.before))
        totals = {False: earlier, True: earlier + later - n}
        alone, *rates = self._denoiser.denoise(np.stack([n, *totals.values()]), 1.0).rate
        ratios = {key: level(n, total) for key, total in totals.items()}
        scaled = {key: rate * ratios[key] for key, rate in zip(totals, rates, strict=True)}
        one = np.ones(n.shape)
        out = {ALONE: (alone, 0 * one), ALWAYS: (scaled[False], one)}
        for name, rule in RULES.items():
            weight = rule.weigh(n, totals[rule.later], ratios[rule.later])
            out[name] = (alone + weight * (scaled[rule.later] - alone), weight)
        return out | {SHARES: (self._exchanged(n, earlier), one)}

    def _exchanged(self, n: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Exchange the photons of the frame alone, between the pixels that the sum tells."""
        pad = (0, -n.shape[1] % self._model.multiple, 0, -n.shape[0] % self._model.multiple)
        seen = total * (n.sum() / max(total.sum(), 1))
        images = torch.from_numpy(np.stack([seen, np.ones(n.shape), n])).float()
        images = torch.nn.functional.pad(images[:, None, None], pad)  # (3, 1, 1, H', W')
        with torch.inference_mode():
            spread = self._model.estimate(*images).spread
        return spread[0, 0, : n.shape[0], : n.shape[1]].numpy()


def measured(path: Path, estimates: Estimates, fraction: float) -> None:
    """Print errors against later frames, which no estimate has seen."""
    found, before = read_frame_set(path), estimates.before
    frames = found.counts.astype(np.int64)
    last = (found.known.block or (0, len(frames) - 1))[1] - before - REFERENCE
    chosen = [i for i in found.known.targets or range(len(frames)) if before <= i <= last]
    errors: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    for i in track(chosen, f"{found.name}, {fraction:g}", transient=True):
        seen = frames[i - before : i + before + 1]
        if fraction < 1:
            rng = np.random.default_rng(i)
            seen = np.stack([thin(frame, fraction, rng)[0] for frame in seen])
        reference = frames[i + before + 1 : i + before + 1 + REFERENCE].sum(0)
        scale = seen[before].sum() / reference.sum()
        lit = reference > 0.2 * reference.mean()
        for name, (rate, weight) in estimates(seen, before).items():
            error = noise_corrected_error(rate, reference, scale, found.mask)
            errors.setdefault(name, []).append(error)
            weights.setdefault(name, []).append(float(weight[lit].mean()))
    base = np.array(errors[ALONE])
    print(f"\n{found.name}, {len(chosen)} frames, {fraction:g} of the photons")
    print(f"{'':24s} squared error / alone   weight of the others")
    for name, values in errors.items():
        ratio = np.array(values) / base
        spread = ratio.std(ddof=1) / np.sqrt(len(ratio))
        print(f"{name:24s} {np.mean(values) / base.mean():8.2f} +- {spread:.2f}", end="")
        print(f"{np.mean(weights[name]):16.2f}")


def photons_of(strength: float, background: float) -> float:
    return strength * np.sqrt(4 * np.pi * SIGMA_PX**2 * background)


def rocking(
    estimates: Estimates, strength: float, width: float, draws: int, background: float
) -> dict[str, np.ndarray]:
    """Expose rocking curves; way -> (draws, frames, 2): place on the curve, counts in the peaks.

    A curve of the width 0 is a step: from frame 0 on the peaks are there.
    """
    unit = sum(gaussian_peak(SHAPE, Peak(r, c, 1.0, SIGMA_PX, SIGMA_PX)) for r, c in MIDDLES)
    near, reach = np.zeros(SHAPE, bool), SUM_PX // 2
    for r, c in MIDDLES:
        near[r - reach : r + reach + 1, c - reach : c + reach + 1] = True
    photons = photons_of(strength, background)
    before = estimates.before
    out: dict[str, list[list[tuple[float, float]]]] = {}
    for i in track(range(draws), f"S/sqrt(B) {strength:g}, width {width:g}", transient=True):
        rng = np.random.default_rng([i, round(10 * width), round(strength)])
        reach = int(np.ceil(3 * width)) + 2 * before if width else 2 * before + 4
        t = np.arange(-reach, reach + 1) - (rng.uniform(-0.5, 0.5) if width else 0.0)
        height = np.exp(-0.5 * (t / width) ** 2) if width else (t >= 0).astype(float)
        frames = rng.poisson(background + photons * height[:, None, None] * unit)
        curves: dict[str, list[tuple[float, float]]] = {}
        for at in range(before, len(t) - before):
            for name, (rate, _) in estimates(frames, at).items():
                counts = float((rate[near] - background).sum()) / (photons * len(MIDDLES))
                curves.setdefault(name, []).append((t[at], counts))
        for name, curve in curves.items():
            out.setdefault(name, []).append(curve)
    return {name: np.array(value) for name, value in out.items()}


def scores(curves: np.ndarray, alone: np.ndarray, width: float) -> np.ndarray:
    """Return lag, height and width against those of the frames alone, each with its error.

    Of mean curves. The lag of a step is the number of frames that its counts come late by.
    """

    def of(x: np.ndarray) -> tuple[float, float, float]:
        t, h = x[..., 0], x[..., 1]
        if not width:
            after = h[t >= 0].reshape(len(x), -1).mean(0)
            return -after.sum() / after[len(after) // 2 :].mean(), np.nan, np.nan
        centre = (t * h).sum() / h.sum()
        spread = np.sqrt(max(((t - centre) ** 2 * h).sum() / h.sum(), 0.0))
        return centre, h[abs(t) <= 0.5].mean(), spread

    def score(pick: np.ndarray) -> tuple[float, float, float]:
        a, b = of(curves[pick]), of(alone[pick])
        return a[0] - b[0], a[1] / b[1], a[2] / max(b[2], 1e-9)

    rng = np.random.default_rng(0)
    trials = [score(rng.integers(0, len(curves), len(curves))) for _ in range(200)]
    low, high = np.percentile(trials, (16, 84), axis=0)
    return np.stack([score(np.arange(len(curves))), (high - low) / 2])


def fitted(strength: float, width: float, draws: int, background: float) -> str:
    """Fit the height of a curve to the intensities that `measure_roi` gives of five frames."""
    denoiser = Denoiser.load(device="cpu", threads=1)
    photons = photons_of(strength, background)
    p = np.exp(-0.5 * (np.arange(-2, 3) / width) ** 2)
    region = ROI((8, 25), (8, 25), background_px=4)
    peak = gaussian_peak((33, 33), Peak(16.0, 16.0, photons, SIGMA_PX, SIGMA_PX))
    found = []
    for i in track(range(draws), f"intensities, width {width:g}", transient=True):
        rng = np.random.default_rng([i, round(10 * width), round(strength)])
        frames = rng.poisson(background + p[:, None, None] * peak)
        found.append([measure_roi(n, 1.0, region, denoiser, rng=rng).intensity for n in frames])
    alone, fit = np.array(found)[:, 2] / photons, np.array(found) @ p / (p @ p) / photons
    worth = ((alone - 1) ** 2).mean() / ((fit - 1) ** 2).mean()
    picks = np.random.default_rng(0).integers(0, draws, (200, draws))
    spread = np.std(((alone[picks] - 1) ** 2).mean(1) / ((fit[picks] - 1) ** 2).mean(1))
    return (
        f"{strength:6.0f} {width:6.1f}   {alone.mean():.3f} +- {alone.std() / draws**0.5:.3f}"
        f"   {fit.mean():.3f} +- {fit.std() / draws**0.5:.3f}   {worth:.1f} +- {spread:.1f}"
        f"   {p @ p:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", default=[LINE])
    parser.add_argument("--before", type=int, default=2)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--background", type=float, default=1.0)
    given = parser.parse_args()
    estimates = Estimates(given.before)
    print(f"Frames used on a side: {given.before}; weights {estimates.weights_sha256:.12}")
    for path in given.files:
        for fraction in (1.0, 0.1):
            measured(path, estimates, fraction)
    if not given.draws:
        return
    print("\nHeight of a rocking curve of known place and width, over the truth: of the highest")
    print(
        "frame, and fitted to five frames; times the exposure that the fit is worth, and expected"
    )
    for width in WIDTHS:
        print(fitted(10.0, width, 20 * given.draws, given.background), flush=True)
    print(f"\nPeaks in {given.background:g} counts a pixel; width 0 is a step. Against alone:")
    print(f"{'':24s} S/sqrt(B) width   lag, frames        height             width")
    for strength in STRENGTHS:
        draws = max(3, round(given.draws * 10 / strength))
        for width in (0.0, *WIDTHS):
            curves = rocking(estimates, strength, width, draws, given.background)
            for name in curves:
                if name == ALONE:
                    continue
                (lag, high, wide), (e1, e2, e3) = scores(curves[name], curves[ALONE], width)
                line = f"{name:24s} {strength:6.0f} {width:6.1f}   {lag:+.3f} +- {e1:.3f}"
                more = f"   {high:.3f} +- {e2:.3f}   {wide:.3f} +- {e3:.3f}" if width else ""
                print(line + more, flush=True)


if __name__ == "__main__":
    main()
