"""Which photons of a region are summed, and with which weight: chosen by other photons."""

from dataclasses import dataclass, replace

import numpy as np

from bluesky_denoise.photons.poisson import tail_z
from bluesky_denoise.regions.extraction import (
    Ellipse,
    find_ellipse,
    linear_coefficients,
    outside_is_quiet,
    weights,
    widest,
)
from bluesky_denoise.regions.parts import FOLDS
from bluesky_denoise.regions.region import Crop

__all__ = [
    "LEAST_Z",
    "Summation",
    "bend",
    "choose_summation",
    "excess",
    "ground",
    "made_up",
    "plain_summation",
    "significance",
]

LEAST_Z = 5.0
"""Significance of a peak from which the denoised frame is believed to show it."""
REACHES = (2.8, 3.2, 4.0, 6.0)
"""Sizes of the ellipse that are tried, standard deviations."""
SLOPING = 12.0
"""Chi-square of the two slopes of a background from which it is taken for a plane."""
BENT = 16.0
"""Chi-square of three curvatures of a background from which it is taken to be curved."""
FULLY_SEEN = 0.99
"""Share of a peak in valid pixels above which the mask hides nothing to speak of."""
LOOSE = 0.5
"""How wrong a Gaussian may be that tells what a mask hides: centre and widths, in standard
deviations of the peak."""
TAIL = 0.02
"""Share of a peak's photons that may lie outside of 2.8 standard deviations unforeseen."""


@dataclass(frozen=True, eq=False)
class Summation:
    """How the photons of one part are summed."""

    coefficients: np.ndarray
    """(h, w) float64, of each pixel's counts, background subtraction included."""
    profile: np.ndarray | None
    """(h, w) share of the peak that valid pixels see; None for the plain sum."""
    covered: float
    """Share of the peak that valid pixels see; 1 for the plain sum where none is masked."""


def plain_summation(crop: Crop) -> Summation | None:
    """Sum over the region less the background that the frame around it tells.

    That is a plane through the frame. Where the frame lies evenly around the region it is the
    mean; at an edge of the detector, or beside a gap, the mean would be that of another place.
    """
    inside, around = crop.inside, crop.around
    if not inside.any():
        return None
    coefficients = inside.astype(np.float64)
    if crop.has_background:
        if not around.any():
            return None
        coefficients[around] -= _plane_coefficients(inside, around)
    return Summation(coefficients, None, 1.0)


def _plane_coefficients(inside: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Weigh pixels so that they sum to what their least-squares plane has inside: (n,)."""
    places = np.argwhere(around)
    middle = places.mean(axis=0)
    seen, wanted = (np.insert(np.argwhere(x) - middle, 0, 1.0, axis=1) for x in (around, inside))
    return seen @ _inverse(seen.T @ seen) @ wanted.sum(axis=0)


def _inverse(information: np.ndarray, most: float = 0.0) -> np.ndarray:
    """Invert what tells slopes or curvatures; one that the pixels do not tell is taken for 0."""
    values, axes = np.linalg.eigh(information)
    told = values > 1e-9 * max(most, values[-1])
    return (axes[:, told] / values[told]) @ axes[:, told].T


def ground(counts: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Tell the background under a region from the pixels around it: (h, w) counts, >= 0.

    The mean; or a plane where the counts rise along rows or columns by more than noise does,
    since a peak on a slope is sought in the wrong place otherwise.

    Parameters
    ----------
    counts : (h, w) raw counts
    around : (h, w) bool; 0 is returned if no pixel is
    """
    if not around.any():
        return np.zeros(counts.shape)
    level = float(counts[around].mean())
    rows, cols = np.nonzero(around)
    middle = rows.mean(), cols.mean()
    places = np.stack([rows - middle[0], cols - middle[1]])  # (2, n)
    squares = places @ places.T
    if level <= 0 or np.linalg.matrix_rank(squares) < 2:
        return np.full(counts.shape, max(level, 0.0))
    rises = places @ (counts[around] - level)
    slopes = np.linalg.solve(squares, rises)
    if slopes @ rises / level < SLOPING:
        return np.full(counts.shape, level)
    down, across = np.ogrid[: counts.shape[0], : counts.shape[1]]
    plane = level + slopes[0] * (down - middle[0]) + slopes[1] * (across - middle[1])
    return np.maximum(plane, 0.0)


def bend(counts: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Tell how a background is curved: (h, w) counts, less its plane; 0 if no more than by noise.

    Beside the tail of a strong peak, or with another peak among the pixels that tell the
    background, it is no plane.

    Parameters
    ----------
    counts : (h, w) raw counts
    seen : (h, w) bool, the pixels of the background

    References
    ----------
    Rao (1948), doi:10.1017/S0305004100023987 (score test)
    """
    level = float(counts[seen].mean()) if seen.any() else 0.0
    if level <= 0 or min(np.ptp(np.argwhere(seen), axis=0)) < 3:
        return np.zeros(counts.shape)
    places: np.ndarray = np.indices(counts.shape)
    rows, cols = ((axis - axis[seen].mean()) / np.ptp(axis[seen]) for axis in places)
    plane = np.stack([np.ones_like(rows), rows, cols])
    curves = np.stack([rows * rows, cols * cols, rows * cols])
    below, above, found = plane[:, seen], curves[:, seen], counts[seen]
    fitted = below.T @ np.linalg.lstsq(below.T, found, rcond=None)[0]
    weight = 1 / np.maximum(fitted, 0.1 * level)
    # What of the curves no plane can be.
    flat = _inverse((below * weight) @ below.T) @ (below * weight) @ above.T
    most = float((above**2 * weight).sum())
    above = above - flat.T @ below
    score = (above * weight) @ (found - fitted)
    curvatures = _inverse((above * weight) @ above.T, most) @ score
    if score @ curvatures < BENT:
        return np.zeros(counts.shape)
    return np.tensordot(curvatures, curves - np.tensordot(flat.T, plane, 1), 1)


def excess(expected: np.ndarray, under: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Return a denoised image less its background, which has the slope that the raw one has.

    An image of nothing has none.

    Parameters
    ----------
    expected : (h, w) denoised image
    under : (h, w) `ground`, of as many photons
    around : (h, w) bool, where the background is seen
    """
    if not (around.any() and np.nan_to_num(expected).any()):
        return expected
    return expected - under - float((expected - under)[around].mean())


def significance(
    counts: np.ndarray, ellipse: Ellipse, inside: np.ndarray, under: np.ndarray
) -> float:
    """Say by how much the core of an ellipse exceeds the `ground`, standard deviations."""
    core = inside & (ellipse.distance(counts.shape) < 1.6)
    return float(tail_z(counts[core].sum(), under[core].sum()))


def choose_summation(crop: Crop, others: np.ndarray, expected: np.ndarray) -> Summation | None:
    """Choose the ellipse for one part from the photons of the others.

    Parameters
    ----------
    others : (h, w) photons of the other parts
    expected : (h, w) what they say of the whole exposure, denoised, counts

    Returns
    -------
    Summation or None
        None where the plain sum is to be taken.
    """
    inside, around = crop.inside, crop.around
    scale = FOLDS / (FOLDS - 1)
    under = ground(others, around)
    found = find_ellipse(excess(expected, under * scale, around), crop.region, crop.valid)
    if found is None:
        return None
    ellipse = widest(found, others, under, crop.region, inside)
    if significance(others, ellipse, inside, under) < LEAST_Z:
        return None
    noise = 1 / np.sqrt(max(float(others[around].sum()), 1.0))
    outside = inside & (ellipse.distance(under.shape) > 3)
    if not outside_is_quiet(others, under, outside, noise):
        return made_up(replace(crop, counts=others * scale), ellipse)
    known = ellipse.profile(crop.region) * crop.valid
    hidden = known.sum() < FULLY_SEEN
    if hidden:
        # More of the widest is hidden than of the peak.
        likely = widest(found, others, under, crop.region, inside, doubt=0)
        known = likely.profile(crop.region) * crop.valid
    core = weights(ellipse, REACHES[0], inside)
    strength = _strength(others - under, known, core) * scale
    free = _freedom(crop, likely, known, strength, under * scale) if hidden else ()
    best: tuple[float, Summation] | None = None
    for reach in REACHES:
        weight = weights(ellipse, reach, inside)
        background = (inside | around) * (1 - weight)
        coefficients = linear_coefficients(known, weight, background, *free)
        if coefficients is None:
            continue
        variance = _variance(coefficients, known, strength, under * scale)
        risk = variance + (strength * TAIL * (REACHES[0] / reach) ** 2) ** 2
        if best is None or risk < best[0]:
            best = risk, Summation(coefficients, known, float(known.sum()))
    plain = plain_summation(crop)
    if plain is None or best is None:
        return None
    whole = _variance(plain.coefficients, known, strength, under * scale)
    return None if not hidden and whole < best[0] else best[1]


def made_up(crop: Crop, ellipse: Ellipse) -> Summation | None:
    """Sum plainly, and make up for what the mask hides of a peak: its share of the core.

    For a region that holds more than one Gaussian: tails, or a second peak.

    Returns
    -------
    Summation or None
        None where next to nothing is hidden, and where the visible part does not tell.
    """
    known = ellipse.profile(crop.region) * crop.valid
    seen = float(known.sum())
    plain = plain_summation(crop)
    if plain is None or seen > FULLY_SEEN or not crop.around.any():
        return None
    core = weights(ellipse, REACHES[0], crop.inside)
    under = ground(crop.counts, crop.around)
    strength = _strength(crop.counts - under, known, core)
    changes, model = _freedom(crop, ellipse, known, strength, under)
    # In place of the peak, what is hidden of it; and changes that hide no more and no less.
    part = known / (1 - seen)
    changes += changes.sum(axis=(1, 2), keepdims=True) * part
    rest = linear_coefficients(part, core, crop.around * 1.0, changes, model)
    return None if rest is None else Summation(plain.coefficients + rest, None, seen)


def _freedom(
    crop: Crop, ellipse: Ellipse, known: np.ndarray, strength: float, under: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return by how many counts the peak may differ, (5, h, w), and what is expected, (h, w)."""
    changes = LOOSE * strength * ellipse.changes(crop.region) * crop.valid
    return changes, np.maximum(strength * known + under, 0.02)


def _strength(excess: np.ndarray, known: np.ndarray, core: np.ndarray) -> float:
    return max(float((core * excess).sum() / max((core * known).sum(), 0.05)), 0.0)


def _variance(
    coefficients: np.ndarray, known: np.ndarray, strength: float, under: np.ndarray
) -> float:
    return float((coefficients**2 * (strength * known + under)).sum())
