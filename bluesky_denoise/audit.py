"""The audit: whether a denoised frame fits photons that it has not seen."""

from dataclasses import dataclass, replace

import numpy as np

from bluesky_denoise.errors import FrameShapeError, SettingsError
from bluesky_denoise.frame_checks import (
    as_counts,
    check_exposure,
    check_frame,
    check_mask,
    valid_pixels,
)
from bluesky_denoise.frames import SupportsDenoise, expected_sigma
from bluesky_denoise.photons.photon_checks import no_counts, scatters_otherwise
from bluesky_denoise.photons.pixel_checks import dead_areas, hot_pixels
from bluesky_denoise.photons.residuals import (
    deviance_ratio,
    lone_pixels,
    lost_wave,
    own_variance,
    residual_correlation,
    step_px,
    surprise_by_side,
    tile_map,
    untold_error,
)
from bluesky_denoise.photons.thinning import thin

__all__ = ["Audit", "audit_frame", "audit_rate"]

MOST_EXCESS = 0.06
"""Deviance of held-out counts, per degree of freedom, beyond what noise explains."""
LEAST_DEVIANCE = 0.75
MOST_CORRELATION = 0.15
ALONE = 0.05
"""Correlation below which neighbouring pixels are called independent."""
MOST_UNTOLD = 4.0
"""Squared error of the estimate over the one that is expected of it: errors of twice the size."""
LEAST_POWER = 60.0
"""Of a wave in 3 x 3 frequencies: noise reaches 35 to 50, by the size of the frame."""
LEAST_SHARE = 0.003
"""Of the variance of residuals that a lost wave must have: right estimates reach half of it."""
BEYOND = 2.0
"""Times that counts must be outside of the range of training: it ends where one frame happened
to."""
LEAST_PHOTONS = 10
"""Fewer tell too little of the mean to call it out of range."""
SURE_Z = 5.0
"""Global numbers must be off by their limit, and by this many standard deviations."""


@dataclass(frozen=True, eq=False)
class Audit:
    """A verdict on one denoised frame, with the numbers behind it."""

    ok: bool
    """False if the denoised frame must not be trusted without a look."""
    reason: str
    """What is wrong, all of it; '' if nothing is."""
    deviance: float
    """Poisson deviance of held-out counts over its expectation for these rates: 1 if the
    estimate is right, more if it misses something. NaN where nothing could be held out."""
    whiteness: float
    """Correlation of the residuals of neighbouring pixels: 0 if the estimate is right."""
    map: np.ndarray
    """(tiles down, tiles across) float32: the most extreme deviate z of each tile, positive
    where photons came that the estimate lacks. NaN where all is masked, or nothing held out."""
    limit: float
    """|z| from which a tile fails."""
    bad_pixels: np.ndarray
    """(n, 2) rows and columns of single pixels that fit neither the estimate nor their
    neighbours: dead, weak or warm, to be masked. Alone they do not fail a frame unless they count
    three times what is expected, or are more than one in a thousand; hot ones always do."""


def audit_frame(
    counts: np.ndarray,
    exposure_s: float,
    denoiser: SupportsDenoise,
    *,
    mask: np.ndarray | None = None,
    trained_range: tuple[float, float] | None = None,
    rate_range: tuple[float, float] | None = None,
    tile_px: int = 32,
    rng: np.random.Generator | None = None,
) -> Audit:
    """Audit the denoising of one frame, without a reference.

    Half of the photons, chosen at random, is denoised; the other half, independent if
    counts are Poisson, must look like a draw from it. The raw frame is checked for hot
    pixels, dead areas and counts that are no photons. ``docs/audit.md`` tells what is
    found, from which strength, and how often good frames are flagged.

    Parameters
    ----------
    counts : (H, W) raw counts. Pixels that are not finite, or hold 4294967294 or
        4294967295 (65534 or 65535 in uint16), count as masked
    exposure_s : seconds, > 0
    denoiser : has ``denoise(counts, exposure_s, mask)``
    mask : (H, W) bool, True where a pixel is invalid
    trained_range : least mean and largest single count that the weights were trained for,
        counts; None: the ``trained_range`` of the denoiser, if it tells one
    rate_range : mean counts / s and pixel that the user expects, least and most. The only
        check that a wrong exposure time can fail: the counts alone do not tell it
    tile_px : side of a tile of the map, pixels
    rng : halves the photons; a fixed seed if None, so that a frame always gives the same

    Returns
    -------
    Audit
        A frame without any counts is ``ok``: there is nothing to be wrong about.

    Raises
    ------
    FrameShapeError
        If the counts are not (H, W).
    FrameValueError
        If the counts are no numbers, or the exposure is not above 0.
    MaskError
        If the mask is not of numbers, or does not have the shape of the frame.
    SettingsError
        If `rate_range` or `tile_px` cannot be.
    """
    counts = as_counts(counts)
    check_frame(counts)
    _check_tile(tile_px)
    if rate_range is not None and not rate_range[0] < rate_range[1]:
        raise SettingsError(f"The rate_range is {rate_range}; expected least < most, counts / s.")
    check_exposure(exposure_s, 1, counts.ndim)
    exposure_s = float(np.reshape(exposure_s, ()))
    valid = _valid(counts, mask)
    known = np.where(valid, counts, 0)
    if reason := no_counts(known, ~valid):
        return _unheard(reason, counts.shape, tile_px)
    photons = known.astype(np.int64)
    if trained_range is None:
        trained_range = getattr(denoiser, "trained_range", None)
    # Counts that scatter unlike photons can be split all the same, which tells more of them.
    scatter = scatters_otherwise(photons, ~valid)
    reasons = [scatter] if scatter else []
    reasons += _raw_reasons(photons, valid, exposure_s, trained_range, rate_range)
    if not photons.any():
        return _unheard("; ".join(reasons), counts.shape, tile_px)
    seen, held_out = thin(photons, 0.5, np.random.default_rng(0) if rng is None else rng)
    half_s = 0.5 * exposure_s
    denoised = denoiser.denoise(seen[None], half_s, mask=~valid)
    sigma = expected_sigma(denoised)
    found = audit_rate(
        held_out,
        denoised.rate[0] * half_s,
        ~valid,
        seen=seen,
        sigma=None if sigma is None else sigma[0] * half_s,
        tile_px=tile_px,
    )
    reasons += [found.reason] if found.reason else []
    return replace(found, ok=not reasons, reason="; ".join(reasons))


def audit_rate(
    held_out: np.ndarray,
    expected: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    seen: np.ndarray | None = None,
    sigma: np.ndarray | None = None,
    tile_px: int = 32,
) -> Audit:
    """Compare counts with any prediction of them.

    Sums over squares of 1, 3, 7 and 15 pixels are compared at every place, and so are the
    deviance and the neighbour correlation of the whole frame.

    Parameters
    ----------
    held_out : (H, W) integer counts >= 0 that the prediction has not seen
    expected : (H, W) expected counts, >= 0
    mask : (H, W) bool, True where a pixel is invalid
    seen : (H, W) counts, of as long an exposure, that the prediction was made from: tells
        how noisy it is itself. None takes it for exact
    sigma : (H, W) standard error of ``expected``, counts, where the denoiser states one; only
        with ``seen``
    tile_px : side of a tile of the map, pixels

    Returns
    -------
    Audit

    Raises
    ------
    FrameShapeError
        If the arrays are not (H, W), all of one shape.
    MaskError
        If the mask does not have the shape of the frame.
    """
    held_out, expected = np.asarray(held_out), np.asarray(expected)
    shapes = [a.shape for a in (held_out, expected, seen, sigma) if a is not None]
    if held_out.ndim != 2 or len(set(shapes)) > 1:
        raise FrameShapeError(f"Counts and prediction have shapes {shapes}; expected all (H, W).")
    _check_tile(tile_px)
    lit = _valid(held_out, mask)
    valid = lit & np.isfinite(expected)
    reasons = _no_numbers("estimate", lit & ~valid)
    if sigma is not None:
        told = np.isfinite(sigma) & (sigma >= 0)
        reasons += _no_numbers("error of the estimate", valid & ~told)
    counts = np.where(valid, held_out, 0).astype(np.float64)
    model = np.where(valid, np.maximum(expected, 0), 0.0).astype(np.float64)
    if not valid.any() or not (counts.any() or model.any()):
        return _unheard("; ".join(reasons), counts.shape, tile_px)
    known = None if seen is None else np.where(valid, seen, 0).astype(np.float64)
    lone = lone_pixels(counts, model, known)
    bad = np.argwhere(lone)
    reasons += _pixel_reasons(counts, model, bad)
    # The rest of the frame is judged without them.
    counts[lone] = model[lone]
    if known is not None:
        known[lone] = model[lone]
    stated = (
        None
        if sigma is None
        else np.where(valid & ~lone, np.nan_to_num(sigma, posinf=0.0) ** 2, 0.0)
    )
    surprise, limit, noise = surprise_by_side(counts, model, known, stated)
    fit = valid & ~lone
    own = own_variance(known, model) if stated is None and known is not None else stated
    noises = None if own is None else own[fit]
    ratio, right, ratio_z, exact_z = deviance_ratio(counts[fit], model[fit], noises)
    correlation, correlation_z = residual_correlation(counts, model)
    reasons += _local_reasons(surprise, limit)
    if ratio_z > SURE_Z and ratio > right + MOST_EXCESS:
        reasons.append(_misfit_reason(ratio, right, correlation))
    if exact_z < -SURE_Z and ratio < LEAST_DEVIANCE:
        reasons.append(f"held-out counts fit too well (deviance {ratio:.2f}, expected 1)")
    if abs(correlation_z) > SURE_Z and abs(correlation) > MOST_CORRELATION + noise:
        reasons.append(f"residuals of neighbouring pixels correlate ({correlation:+.2f})")
    if stated is not None:
        untold, untold_z = untold_error(counts, model, stated)
        if untold_z > SURE_Z and untold > MOST_UNTOLD:
            reasons.append(
                f"errors larger than expected, by {np.sqrt(untold):.1f} times: detail was lost, "
                "all over the frame"
            )
        power, share, told, period = lost_wave(counts, model, stated)
        if power > LEAST_POWER and share > max(LEAST_SHARE, told):
            reasons.append(f"fringes were lost, of a period of {period:.1f} pixels")
    tiles = tile_map(surprise, valid, tile_px)
    return Audit(not reasons, "; ".join(reasons), ratio, correlation, tiles, limit, bad)


def _valid(counts: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return valid_pixels(counts, check_mask(mask, counts.shape))


def _check_tile(tile_px: int) -> None:
    if int(tile_px) != tile_px or tile_px < 1:
        raise SettingsError(f"The tile_px is {tile_px!r}; expected pixels, a whole number > 0.")


def _no_numbers(what: str, where: np.ndarray) -> list[str]:
    """Say in how many valid pixels a denoiser has given none, if there are any."""
    number = int(where.sum())
    return [f"the {what} is no number in {number} valid pixels"] if number else []


def _unheard(reason: str, shape: tuple[int, ...], tile_px: int) -> Audit:
    """Return a verdict without held-out counts."""
    tiles = np.full([-(-n // tile_px) for n in shape], np.nan, np.float32)
    none = np.empty((0, 2), dtype=np.int64)
    return Audit(not reason, reason, float("nan"), float("nan"), tiles, float("nan"), none)


def _raw_reasons(
    photons: np.ndarray,
    valid: np.ndarray,
    exposure_s: float,
    trained_range: tuple[float, float] | None,
    rate_range: tuple[float, float] | None,
) -> list[str]:
    reasons = []
    mean = float(photons.sum() / max(int(valid.sum()), 1))
    if trained_range is not None:
        most = int(photons.max())
        dim = mean * BEYOND < trained_range[0] and photons.sum() >= LEAST_PHOTONS
        if dim or most > BEYOND * trained_range[1]:
            reasons.append(
                f"counts (mean {mean:.3g}, largest {most}) are far outside of the range of "
                f"training, {trained_range[0]:g} to {trained_range[1]:g}"
            )
    if rate_range is not None and not rate_range[0] <= mean / exposure_s <= rate_range[1]:
        reasons.append(
            f"the mean rate, {mean / exposure_s:.3g} counts / s and pixel, is not in the range "
            f"given, {rate_range[0]:g} to {rate_range[1]:g}: beam, or a wrong exposure time"
        )
    hot = hot_pixels(photons, ~valid)
    if len(hot):
        places = ", ".join(f"({row}, {col})" for row, col in hot[:3])
        reasons.append(f"{len(hot)} hot pixels or spots of one pixel, at {places}")
    dead = dead_areas(photons, ~valid)
    if len(dead):
        row, col, side = dead[-1]
        reasons.append(
            f"no counts around rows {row} to {row + side - 1}, columns {col} to {col + side - 1}, "
            "next to lit pixels: a dead module, or a beam stop that no mask covers"
        )
    return reasons


def _pixel_reasons(counts: np.ndarray, model: np.ndarray, bad: np.ndarray) -> list[str]:
    """Say which single pixels fail a frame."""
    if len(bad) > max(3, counts.size / 1000):
        return [f"{len(bad)} single pixels do not fit"]
    bright = [(int(r), int(c)) for r, c in bad if counts[r, c] > 3 * model[r, c] + 10]
    if bright:
        return [f"photons that the estimate lacks, in {len(bright)} single pixels, at {bright[0]}"]
    return []


def _misfit_reason(ratio: float, right: float, correlation: float) -> str:
    """Say what scatters more than noise does over the whole frame."""
    reason = f"held-out counts fit badly (deviance {ratio:.2f}, expected {right:.2f})"
    if abs(correlation) < ALONE:
        reason += (
            ", pixel by pixel: an uneven response (flat field), a gain, or detail that was lost"
        )
    return reason


def _local_reasons(surprise: dict[int, np.ndarray], limit: float) -> list[str]:
    reasons = []
    for sign, text in ((1, "photons that the estimate lacks"), (-1, "an estimate without photons")):
        worst = max(surprise, key=lambda side: float((sign * surprise[side]).max()))
        values = sign * surprise[worst]
        if values.max() > limit:
            square = np.unravel_index(int(values.argmax()), values.shape)
            row, col = (int(i) * step_px(worst) + worst // 2 for i in square)
            reasons.append(
                f"{text} around ({row}, {col}) over {worst} px (z = {sign * values.max():+.1f})"
            )
    return reasons
