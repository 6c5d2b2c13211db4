"""Numbers of a region: raw photons are summed, the denoised frame says where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from bluesky_denoise.errors import FrameShapeError, SettingsError
from bluesky_denoise.frame_checks import as_counts
from bluesky_denoise.frames import SupportsDenoise
from bluesky_denoise.regions.extraction import Ellipse, find_ellipse
from bluesky_denoise.regions.parts import Parts, deal_parts, denoise_parts
from bluesky_denoise.regions.peak_shape import PeakShape, fit_shape
from bluesky_denoise.regions.region import ROI, Crop, cut, photons
from bluesky_denoise.regions.summation import (
    LEAST_Z,
    Summation,
    bend,
    choose_summation,
    excess,
    ground,
    made_up,
    plain_summation,
    significance,
)

__all__ = ["ROI", "ROIValues", "Weighing", "measure_roi", "measure_rois", "values", "weigh"]

SHAPE_ERRORS = ("row_error", "col_error", "width_row_error", "width_col_error")


@dataclass(frozen=True)
class ROIValues:
    """What is measured in one region of one frame; NaN where it cannot be told."""

    intensity: float
    """Counts / s above the background, from raw counts: unbiased for a peak that is about a
    Gaussian on a plane. Tails of a peak count as background."""
    intensity_error: float
    """Its standard error from counting photons, counts / s."""
    background: float
    """Raw background at the region, counts / s and pixel; 0 where none is subtracted."""
    background_error: float
    """By how much ``intensity`` may be off, counts / s, as the background is seen to be curved and
    a plane is subtracted: beside a strong peak, or with another one in the frame around the
    region. 0 where a plane fits. It is alike in frames of the same scene, and no noise."""
    raw_sum: float
    """Counts / s in the valid pixels of the region, nothing subtracted."""
    raw_sum_error: float
    """Its standard error, counts / s."""
    denoised_sum: float
    """Sum of the denoised frame over the same pixels, counts / s. Biased: a denoiser moves
    photons over the border of the region."""
    center_row: float
    """Centre of the peak, fitted to the raw counts, pixels of the full frame; NaN where no peak
    is significant."""
    center_row_error: float
    """Its standard error from counting photons, pixels."""
    center_col: float
    """As ``center_row``, along columns."""
    center_col_error: float
    """Its standard error."""
    width_row: float
    """Full width at half maximum along rows of the Gaussian that fits the raw counts best,
    pixels. NaN where no peak is significant, or the error is above half of the width."""
    width_row_error: float
    """Its standard error, for a peak that is a Gaussian."""
    width_col: float
    """As ``width_row``, along columns."""
    width_col_error: float
    """Its standard error."""
    covered: float
    """Share of the peak that valid pixels see, 0 to 1; the intensity is corrected for it.
    1 where nothing is masked, no peak is significant, or no background is seen."""
    significance: float
    """Of the peak over its background in the raw counts, standard deviations."""
    method: str
    """``profile``: an ellipse from the denoised frame; ``sum``: the plain sum over the region
    less the background, where no peak is significant, more than one peak is there, or photons
    cannot be told apart (counts that are no integers >= 0)."""

    def as_dict(self) -> dict[str, float | str]:
        """Return the values under their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class Weighing:
    """The photons of a region, and how each part of them is summed."""

    crop: Crop
    parts: np.ndarray
    """(parts, h, w) photons; one part where they cannot be dealt."""
    summations: list[Summation]
    """One for each part; empty where there is nothing to sum."""
    rate: np.ndarray
    """(h, w) counts / s, the denoised image of all photons."""

    def expected(self, counts: np.ndarray) -> float:
        """Return what the sums are on average if (H, W) counts are expected, counts.

        The weights of a part do not depend on its own photons, so nothing is drawn: for
        simulated frames, this less the truth is the bias without the noise.
        """
        window = self.crop.window
        sums = [float((s.coefficients * counts[window]).sum()) for s in self.summations]
        return float(np.mean(sums)) if sums else float("nan")


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
    shows the peak, so that no photon has a say in its own weight. Centre and widths are those
    of the Gaussian that fits all raw counts best (`fit_shape`), looked for where the denoised
    frame shows the peak. ``docs/intensities.md`` tells how well this does.

    Parameters
    ----------
    counts : (H, W) raw counts. Pixels that are not finite, or hold 4294967294 or
        4294967295 (65534 or 65535 in uint16), count as masked
    exposure_s : seconds, > 0
    roi : a `ROI`, or a region of any shape as (H, W) bool
    denoiser : has ``denoise(counts, exposure_s, mask)``; sees the surroundings of the region
    mask : (H, W) bool, True where a pixel is invalid
    rate : (H, W) counts / s, the denoised frame, where it is known already
    rng : deals the photons; a fixed seed if None, so that a frame always gives the same
    background_px : width of the frame around a region given as an array, pixels. It lies in the
        holes of such a region, too: mask what shall have no say

    Returns
    -------
    ROIValues

    Raises
    ------
    FrameShapeError
        If the counts are not (H, W), or the region or ``rate`` does not fit them.
    FrameValueError
        If the exposure is not above 0, or the counts are no numbers or negative.
    MaskError
        If the mask does not have the shape of the frame.
    SettingsError
        If ``background_px`` is not pixels, 0 or more, or the denoiser cannot denoise.

    References
    ----------
    Horne (1986), doi:10.1086/131801 (weights from a profile); Krull et al., arXiv 2307.06607
    (binomial splits)
    """
    one = measure_rois(
        counts,
        exposure_s,
        {"": roi},
        denoiser,
        mask=mask,
        rate=rate,
        rng=rng,
        background_px=background_px,
    )
    return one[""]


def measure_rois(
    counts: np.ndarray,
    exposure_s: float,
    rois: Mapping[str, ROI | np.ndarray],
    denoiser: SupportsDenoise,
    *,
    mask: np.ndarray | None = None,
    rate: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
    background_px: int = 4,
) -> dict[str, ROIValues]:
    """Measure several regions of one frame, as `measure_roi` does each, in less time.

    Parameters
    ----------
    rois : by name; `ROI`, or regions of any shape as (H, W) bool
    counts, exposure_s, denoiser, mask, rate, rng, background_px : as for `measure_roi`

    Returns
    -------
    dict
        `ROIValues` by name.

    Raises
    ------
    FrameShapeError, FrameValueError, MaskError, SettingsError
        As `measure_roi` raises them.
    """
    if not hasattr(denoiser, "denoise"):
        raise SettingsError(
            f"denoiser is {denoiser!r}; expected what can denoise, such as Denoiser.load()."
        )
    counts = as_counts(counts)
    if rate is not None and np.shape(rate) != counts.shape:
        raise FrameShapeError(
            f"rate has shape {np.shape(rate)}, the counts {counts.shape}; expected the denoised "
            "frame of these counts."
        )
    crops = [cut(counts, exposure_s, roi, mask, background_px) for roi in rois.values()]
    return dict(zip(rois, map(values, _weigh_all(crops, denoiser, rate, rng)), strict=True))


def weigh(
    crop: Crop,
    denoiser: SupportsDenoise,
    rate: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
) -> Weighing:
    """Deal the photons of a region into parts, and choose how to sum each.

    Parameters
    ----------
    crop : the region with its surroundings
    denoiser, rate, rng : as for `measure_roi`
    """
    return _weigh_all([crop], denoiser, rate, rng)[0]


def _weigh_all(
    crops: Sequence[Crop],
    denoiser: SupportsDenoise,
    rate: np.ndarray | None,
    rng: np.random.Generator | None,
) -> list[Weighing]:
    """Do so for several regions."""
    dealt = [deal_parts(crop, rate is None, rng) for crop in crops]
    rates = denoise_parts(dealt, denoiser)
    return [_choose(parts, of_parts, rate) for parts, of_parts in zip(dealt, rates, strict=True)]


def _choose(dealt: Parts, rates: np.ndarray, rate: np.ndarray | None) -> Weighing:
    """Choose how to sum each part."""
    crop, parts = dealt.crop, dealt.photons
    if rate is not None:
        whole = np.asarray(rate)[crop.window]
    else:
        whole, rates = (rates[0], rates[1:]) if len(rates) else (np.zeros(crop.counts.shape), rates)
    nothing = plain_summation(crop)
    if nothing is None:
        return Weighing(crop, crop.counts[None], [], whole)
    if parts is None or not len(rates):
        ellipse = _peak(crop, whole * crop.exposure_s)[0]
        one = None if ellipse is None else made_up(crop, ellipse)
        return Weighing(crop, crop.counts[None], [one or nothing], whole)
    chosen = [
        choose_summation(crop, crop.counts - part, rate * crop.exposure_s) or nothing
        for part, rate in zip(parts, rates, strict=True)
    ]
    return Weighing(crop, parts, chosen, whole)


def values(weighing: Weighing) -> ROIValues:
    """Put the numbers together."""
    crop, chosen, whole = weighing.crop, weighing.summations, weighing.rate
    seconds, inside = crop.exposure_s, crop.inside
    total = float(crop.counts[inside].sum())
    intensity = error = off = covered = np.nan
    ellipse, z, background = _peak(crop, whole * seconds)
    if chosen:
        pairs = zip(chosen, weighing.parts, strict=True)
        intensity = sum(float((one.coefficients * part).sum()) for one, part in pairs)
        error = _error(crop, chosen, intensity)
        off = _off_by_curvature(crop, chosen, ellipse)
        covered = float(np.mean([one.covered for one in chosen]))
    shape = PeakShape()
    if ellipse is not None:
        shape = fit_shape(crop.counts, inside | crop.around, ellipse, background)
        if photons(crop.counts) is None:
            shape = replace(shape, **dict.fromkeys(SHAPE_ERRORS, np.nan))
    return ROIValues(
        intensity=intensity / seconds,
        intensity_error=error / seconds,
        background=background / seconds,
        background_error=off / seconds,
        raw_sum=total / seconds if inside.any() else np.nan,
        raw_sum_error=float(np.sqrt(max(total, 1.0))) / seconds if inside.any() else np.nan,
        denoised_sum=float(np.nansum(whole[inside])) if inside.any() else np.nan,
        center_row=shape.row + crop.origin[0],
        center_row_error=shape.row_error,
        center_col=shape.col + crop.origin[1],
        center_col_error=shape.col_error,
        width_row=shape.width_row,
        width_row_error=shape.width_row_error,
        width_col=shape.width_col,
        width_col_error=shape.width_col_error,
        covered=covered,
        significance=z,
        method="profile" if any(one.profile is not None for one in chosen) else "sum",
    )


def _error(crop: Crop, chosen: list[Summation], intensity: float) -> float:
    """Propagate Poisson noise; the counts expected come from the model, not pixel by pixel."""
    around = crop.around
    under = ground(crop.counts, around)
    used = crop.inside | around
    variance = 0.0
    for one in chosen:
        squared = one.coefficients**2
        if one.profile is None:
            found = float((squared * crop.counts).sum())
        else:
            expected = max(intensity, 0.0) * one.profile + under
            found = float((squared * expected)[used].sum())
        # No photon seen is not no uncertainty.
        variance += max(found, float(squared.max())) / len(chosen)
    if len(chosen) > 1:
        # Which weights are chosen is a matter of chance, too: what they make of the same counts
        # differs, by more than the noise in those counts.
        all_weights = np.stack([one.coefficients for one in chosen])
        differ = all_weights - all_weights.mean(0)
        made = (differ * crop.counts).sum((1, 2)) ** 2
        of_noise = (differ**2 * crop.counts).sum((1, 2))
        variance += max(float((made - of_noise).sum()), 0.0) / (len(chosen) - 1)
    return float(np.sqrt(variance))


def _off_by_curvature(crop: Crop, chosen: list[Summation], ellipse: Ellipse | None) -> float:
    """Tell what a background that is no plane makes of the sum, counts."""
    around = crop.around
    beside = around
    if ellipse is not None:
        beside = (crop.inside & (ellipse.distance(around.shape) > 3)) | around
    # A plain sum is of all that is inside, another peak, too.
    sums, seen = [], {True: around, False: beside}
    for plain, pixels in seen.items():
        alike = [one.coefficients for one in chosen if (one.profile is None) == plain]
        if alike:
            curved = bend(crop.counts, pixels)
            sums += [float((coefficients * curved).sum()) for coefficients in alike]
    return abs(float(np.mean(sums)))


def _peak(crop: Crop, expected: np.ndarray) -> tuple[Ellipse | None, float, float]:
    """Find the peak of an image (h, w) of expected counts, with its significance."""
    inside, around = crop.inside, crop.around
    under = ground(crop.counts, around)
    level = float(under[crop.region].mean())
    if not np.isfinite(expected[inside]).all():
        return None, 0.0, level
    ellipse = find_ellipse(excess(expected, under, around), crop.region, crop.valid)
    if ellipse is None:
        return None, 0.0, level
    z = significance(crop.counts, ellipse, inside, under)
    return (ellipse if z >= LEAST_Z else None), z, level
