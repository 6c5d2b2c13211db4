"""Scores on measured frames by thinning: a part is denoised, the photons left over judge.

If counts are Poisson, both parts are, and they are independent: no photon is part of what
it is compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.frame_sets import (
    FrameSet,
    Show,
    Track,
    lit_frames,
    middle,
    rng_of,
    spread,
)
from bluesky_denoise.evaluation.methods import Method
from bluesky_denoise.evaluation.metrics import (
    deviance_ratio,
    flux_ratio,
    noise_corrected_error,
    poisson_deviance,
)
from bluesky_denoise.photons.thinning import thin

__all__ = ["ThinnedScore", "thinned_scores"]


@dataclass(frozen=True)
class ThinnedScore:
    """One method on the thinned frames of one series; means over frames."""

    set: str
    held_out: str
    """As in `KnownSet`."""
    fraction: float
    """Share of the photons that was denoised."""
    counts_per_pixel: float
    """Mean of what was denoised."""
    method: str
    deviance: float
    """Of the held-out counts, per degree of freedom: `deviance_ratio`; of the frames with
    photons to denoise, NaN if there are none."""
    against_gaussian: float
    """Mean deviance of the held-out counts over that of the best Gaussian, less 1; below 0 is
    better than any Gaussian."""
    error: float
    """`noise_corrected_error`; the raw frame has about 1. NaN if nothing is held out."""
    flux: float
    """Total of the estimate over that of the input; the frame that is furthest from 1, of those
    with photons to denoise; NaN if there are none."""


def thinned_scores(
    frames: FrameSet,
    methods: Sequence[Method],
    track: Track,
    show: Show | None = None,
    *,
    fractions: Sequence[float] = (0.5, 0.1, 0.01),
    most_frames: int = 2,
    most_shape: tuple[int, int] = (160, 240),
) -> list[ThinnedScore]:
    """Denoise a share of the photons of measured frames, and score on the others.

    Parameters
    ----------
    frames : raw photon counts
    methods : what is scored; one must be called ``best Gaussian``
    track : shows progress
    show : takes the images of one frame
    fractions : shares of the photons that are denoised, above 0 and below 1
    most_frames, most_shape : spread over the series, and cut to their middle; dark frames are
        passed over

    Returns
    -------
    list of ThinnedScore
        Those of one fraction follow each other, in the order of the methods. Empty if no frame
        holds photons there.
    """
    window = middle(frames.mask.shape, most_shape)
    mask = frames.mask[window]
    picked = spread(lit_frames(frames, window), most_frames)
    found: dict[tuple[float, str], list[tuple[float, ...]]] = {}
    jobs = [(fraction, i) for fraction in fractions for i in picked]
    for fraction, i in track(jobs, f"{frames.name}, thinned"):
        counts = np.where(mask, 0, frames.counts[i][window]).astype(np.int64)
        part, rest = thin(counts, fraction, rng_of(frames.name, i))
        scale = fraction / (1 - fraction)

        def judge(estimate: np.ndarray, rest: np.ndarray = rest, scale: float = scale) -> float:
            return poisson_deviance(estimate / scale, rest, mask)

        estimates = {m.name: m.estimate(part, mask, judge) for m in methods}
        best = judge(estimates["best Gaussian"])
        if show is not None and (fraction, i) == (fractions[min(1, len(fractions) - 1)], picked[0]):
            images = {**estimates, "all photons": fraction * counts}
            show(f"{frames.name}, {100 * fraction:.3g} % of the photons", images, mask)
        for name, estimate in estimates.items():
            score = (
                part[~mask].mean(),
                deviance_ratio(estimate / scale, rest, mask),
                judge(estimate) / best - 1 if best > 0 else np.nan,
                noise_corrected_error(estimate, rest, scale, mask),
                flux_ratio(estimate, part, mask),
            )
            found.setdefault((fraction, name), []).append(score)
    out = []
    for (fraction, name), scores in found.items():
        columns = [column[np.isfinite(column)] for column in np.transpose(scores)]
        level, ratio, against, error, _ = (
            float(np.mean(known)) if known.size else np.nan for known in columns
        )
        flux = max(columns[-1], key=lambda f: abs(f - 1), default=np.nan)
        held_out = frames.known.held_out
        out.append(
            ThinnedScore(
                frames.name, held_out, fraction, level, name, ratio, against, error, float(flux)
            )
        )
    return out
