"""Unbiased numbers of a region: raw photons are summed, the denoised frame says where."""

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from bluesky_denoise.extraction import (
    Ellipse,
    find_ellipse,
    linear_coefficients,
    outside_is_quiet,
    weights,
    widest,
)
from bluesky_denoise.poisson import tail_z
from bluesky_denoise.region import ROI, Crop, cut, deal, photons

__all__ = ["ROI", "ROIValues", "measure_roi"]

FOLDS = 4
"""Parts that photons are dealt into; the profile of each part comes from the others."""
LEAST_Z = 5.0
"""Significance of a peak from which the denoised frame is believed to show it."""
REACHES = (2.8, 3.2, 4.0, 6.0)
"""Sizes of the ellipse that are tried, standard deviations."""
TAIL = 0.02
"""Share of a peak's photons that may lie outside of 2.8 standard deviations unforeseen."""
FWHM = 2 * np.sqrt(2 * np.log(2))


class SupportsDenoise(Protocol):
    """What is asked of a denoiser here."""

    def denoise(
        self, counts: np.ndarray, exposure_s: Any, mask: np.ndarray | None = None
    ) -> Any: ...


@dataclass(frozen=True)
class ROIValues:
    """What is measured in one region of one frame; NaN where it cannot be told."""

    intensity: float
    """Counts / s above the background, from raw counts, unbiased."""
    intensity_error: float
    """Its standard error from counting photons, counts / s."""
    background: float
    """Raw background at the region, counts / s and pixel; 0 where none is subtracted."""
    raw_sum: float
    """Counts / s in the valid pixels of the region, nothing subtracted."""
    raw_sum_error: float
    """Its standard error, counts / s."""
    denoised_sum: float
    """Sum of the denoised frame over the same pixels, counts / s. Biased: a denoiser moves
    photons over the border of the region."""
    center_row: float
    """Centre of the peak in the denoised frame, pixels of the full frame; NaN where no peak
    is significant."""
    center_col: float
    """As ``center_row``, along columns."""
    width_row: float
    """Full width at half maximum of the Gaussian that matches the denoised peak, pixels; at
    least as wide as the true peak. NaN where no peak is significant."""
    width_col: float
    """As ``width_row``, along columns."""
    covered: float
    """Share of the peak that valid pixels see, 0 to 1; the intensity is corrected for it.
    1 where nothing is masked, or no peak is significant."""
    significance: float
    """Of the peak over its background in the raw counts, standard deviations."""
    method: str
    """``profile``: an ellipse from the denoised frame; ``sum``: the plain sum over the region
    less the background, where no peak is significant, several are, or photons cannot be told
    apart (counts that are no integers >= 0)."""

    def as_dict(self) -> dict[str, float | str]:
        """Return the values under their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class _Extraction:
    coefficients: np.ndarray
    profile: np.ndarray | None
    covered: float


def measure_roi(
    counts: np.ndarray,
    exposure_s: float,
    roi: ROI | np.ndarray,
    denoiser: SupportsDenoise,
    *,
    mask: np.ndarray | None = None,
    rate: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
    background_px: int = 4,
) -> ROIValues:
    """Measure the intensity, position and width of what a region holds above its background.

    Photons are dealt at random into `FOLDS` parts, which makes them independent if the
    counts are Poisson. Each part is summed where the denoised image of the *other* parts
    shows the peak, so that no photon has a say in its own weight. ``docs/intensities.md``
    tells how well this does.

    Parameters
    ----------
    counts : (H, W) raw counts. Pixels that are not finite, or hold 4294967295 as an
        integer, count as masked
    exposure_s : seconds, > 0
    roi : a `ROI`, or a region of any shape as (H, W) bool
    denoiser : has ``denoise(counts, exposure_s, mask)``; sees the surroundings of the region
    mask : (H, W) bool, True where a pixel is invalid
    rate : (H, W) counts / s, the denoised frame, where it is known already
    rng : deals the photons; a fixed seed if None, so that a frame always gives the same
    background_px : width of the frame around a region given as an array

    Returns
    -------
    ROIValues

    Raises
    ------
    FrameShapeError
        If the counts are not (H, W), or the region does not fit them.
    FrameValueError
        If the exposure is not above 0, or the counts are no numbers.
    MaskError
        If the mask does not have the shape of the frame.

    References
    ----------
    Horne (1986), doi:10.1086/131801 (weights from a profile); Krull et al., arXiv 2307.06607
    (binomial splits)
    """
    crop = cut(np.asarray(counts), exposure_s, roi, mask, background_px)
    rng = np.random.default_rng(0) if rng is None else rng
    whole_counts = photons(crop.counts)
    parts = None if whole_counts is None else deal(whole_counts, FOLDS, rng)
    stack, seconds = [], []
    if rate is None:
        stack, seconds = [crop.counts], [crop.exposure_s]
    if parts is not None and crop.around.any():
        share = 1 - 1 / FOLDS
        stack += [whole_counts - part for part in parts]
        seconds += [crop.exposure_s * share] * FOLDS
    rates = np.zeros((0, *crop.counts.shape))
    if stack and crop.inside.any():
        seen = np.maximum(np.stack(stack), 0)
        rates = denoiser.denoise(seen, np.asarray(seconds), mask=~crop.valid).rate
    if rate is not None:
        window = tuple(slice(o, o + n) for o, n in zip(crop.origin, crop.counts.shape, strict=True))
        whole = np.asarray(rate)[window]
    else:
        whole, rates = (rates[0], rates[1:]) if len(rates) else (np.zeros(crop.counts.shape), rates)
    return _values(crop, parts, rates, whole)


def _values(
    crop: Crop, parts: np.ndarray | None, rates: np.ndarray, whole: np.ndarray
) -> ROIValues:
    """Put the numbers together; ``parts`` and ``rates`` are (FOLDS, h, w), or empty."""
    seconds, inside = crop.exposure_s, crop.inside
    total = float(crop.counts[inside].sum())
    nothing = _plain(crop)
    if len(rates) and parts is not None and nothing is not None:
        chosen = [
            _extraction(crop, crop.counts - part, rate * seconds) or nothing
            for part, rate in zip(parts, rates, strict=True)
        ]
    else:
        parts, chosen = crop.counts[None], [nothing]
    if chosen[0] is None:
        intensity = error = np.nan
    else:
        intensity = sum(
            float((c.coefficients * p).sum()) for c, p in zip(chosen, parts, strict=True)
        )
        error = _error(crop, chosen, intensity)
    ellipse, z, background = _peak(crop, whole * seconds)
    method = "profile" if any(c is not None and c.profile is not None for c in chosen) else "sum"
    covered = np.mean([c.covered for c in chosen]) if chosen[0] is not None else np.nan
    width = np.sqrt(np.diag(ellipse.covariance)) * FWHM if ellipse else (np.nan, np.nan)
    return ROIValues(
        intensity=intensity / seconds,
        intensity_error=error / seconds,
        background=background / seconds,
        raw_sum=total / seconds if inside.any() else np.nan,
        raw_sum_error=np.sqrt(max(total, 1.0)) / seconds if inside.any() else np.nan,
        denoised_sum=float(np.nansum(whole[inside])) if inside.any() else np.nan,
        center_row=ellipse.row + crop.origin[0] if ellipse else np.nan,
        center_col=ellipse.col + crop.origin[1] if ellipse else np.nan,
        width_row=float(width[0]),
        width_col=float(width[1]),
        covered=float(covered),
        significance=z,
        method=method,
    )


def _error(crop: Crop, chosen: list[_Extraction], intensity: float) -> float:
    """Propagate Poisson noise; the counts expected come from the model, not pixel by pixel."""
    around = crop.around
    level = float(crop.counts[around].mean()) if around.any() else 0.0
    used = crop.inside | around
    variance = 0.0
    for one in chosen:
        squared = one.coefficients**2
        if one.profile is None:
            found = float((squared * crop.counts).sum())
        else:
            expected = max(intensity, 0.0) * one.profile + level
            found = float((squared * expected)[used].sum())
        # No photon seen is not no uncertainty.
        variance += max(found, float(squared.max())) / len(chosen)
    return float(np.sqrt(variance))


def _plain(crop: Crop) -> _Extraction | None:
    """Sum over the region less the mean of the frame around it."""
    inside, around = crop.inside, crop.around
    if not inside.any():
        return None
    coefficients = inside.astype(np.float64)
    if crop.frame.any():
        if not around.any():
            return None
        coefficients -= around * (inside.sum() / around.sum())
    return _Extraction(coefficients, None, 1.0)


def _peak(crop: Crop, expected: np.ndarray) -> tuple[Ellipse | None, float, float]:
    """Find the peak of an image (h, w) of expected counts, with its significance."""
    inside, around = crop.inside, crop.around
    level = float(crop.counts[around].mean()) if around.any() else 0.0
    if not inside.any() or not np.isfinite(expected[inside]).all():
        return None, 0.0, level
    base = float(expected[around].mean()) if around.any() else 0.0
    ellipse = find_ellipse(expected - base, crop.region, crop.valid)
    if ellipse is None:
        return None, 0.0, level
    z = _significance(crop.counts, ellipse, inside, level)
    return (ellipse if z >= LEAST_Z else None), z, level


def _significance(counts: np.ndarray, ellipse: Ellipse, inside: np.ndarray, level: float) -> float:
    core = inside & (ellipse.distance(counts.shape) < 1.6)
    return float(tail_z(counts[core].sum(), max(level, 0.0) * core.sum()))


def _extraction(crop: Crop, others: np.ndarray, expected: np.ndarray) -> _Extraction | None:
    """Choose the ellipse for one part from the photons of the others.

    Parameters
    ----------
    others : (h, w) photons of the other parts
    expected : (h, w) what they say of the whole exposure, denoised, counts

    Returns
    -------
    _Extraction or None
        None where the plain sum is to be taken.
    """
    inside, around = crop.inside, crop.around
    scale = FOLDS / (FOLDS - 1)
    level = float(others[around].mean())
    ellipse = find_ellipse(expected - float(expected[around].mean()), crop.region, crop.valid)
    if ellipse is None:
        return None
    ellipse = widest(ellipse, others, level, crop.region, inside)
    if _significance(others, ellipse, inside, level) < LEAST_Z:
        return None
    flat = np.full(others.shape, level)
    noise = 1 / np.sqrt(max(float(others[around].sum()), 1.0))
    if not outside_is_quiet(others, flat, inside & (ellipse.distance(flat.shape) > 3), noise):
        return None
    profile = ellipse.profile(crop.region)
    known = profile * crop.valid
    core = weights(ellipse, REACHES[0], inside)
    strength = float((core * (others - level)).sum() / max((core * known).sum(), 0.05)) * scale
    best: tuple[float, _Extraction] | None = None
    plain = _plain(crop)
    for reach in REACHES:
        weight = weights(ellipse, reach, inside)
        coefficients = linear_coefficients(known, weight, (inside | around) * (1 - weight))
        if coefficients is None:
            continue
        variance = _variance(coefficients, known, strength, level * scale)
        risk = variance + (strength * TAIL * (REACHES[0] / reach) ** 2) ** 2
        if best is None or risk < best[0]:
            best = risk, _Extraction(coefficients, known, float(known.sum()))
    whole = _variance(plain.coefficients, known, strength, level * scale)
    if best is None or (known.sum() > 0.99 and whole < best[0]):
        return None
    return best[1]


def _variance(coefficients: np.ndarray, known: np.ndarray, strength: float, level: float) -> float:
    return float((coefficients**2 * (max(strength, 0.0) * known + level)).sum())
