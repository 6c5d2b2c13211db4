"""Weights that sum the photons of one peak, drawn from a denoised frame."""

from dataclasses import dataclass, replace

import numpy as np

from bluesky_denoise.photons.poisson import box_sum, tail_z

__all__ = [
    "Ellipse",
    "find_ellipse",
    "linear_coefficients",
    "outside_is_quiet",
    "weights",
    "widest",
]

LEAST_SIGMA_PX = 0.6
"""Peaks are not taken for narrower: all of their photons then lie in one pixel or two."""
QUIET_PX = 1300
"""Pixels among which noise hardly ever makes a box of more than 4.5 standard deviations."""
ROUNDS = 20
SCALES = np.geomspace(1, 3, 7)
"""Factors that `widest` tries on either axis."""
DOUBT = 4.0
"""Chi-square that a wider ellipse may cost: two standard deviations of its width."""


@dataclass(frozen=True)
class Ellipse:
    """Where a peak is and how wide, as the Gaussian that matches it."""

    row: float
    """Centre, pixels from the middle of the first row of the crop."""
    col: float
    """Centre, pixels from the middle of the first column of the crop."""
    covariance: np.ndarray
    """(2, 2) in pixels squared, axes (row, col)."""

    def distance(self, shape: tuple[int, int]) -> np.ndarray:
        """Return each pixel's distance from the centre in standard deviations, (h, w)."""
        return np.sqrt(np.maximum(self.squared_distance(shape), 0))

    def squared_distance(self, shape: tuple[int, int]) -> np.ndarray:
        """Return the square of `distance`."""
        rows, cols = np.ogrid[: shape[0], : shape[1]]
        inverse = np.linalg.inv(self.covariance)
        y, x = rows - self.row, cols - self.col
        return inverse[0, 0] * y * y + 2 * inverse[0, 1] * y * x + inverse[1, 1] * x * x

    def profile(self, region: np.ndarray) -> np.ndarray:
        """Return the Gaussian of the ellipse, with sum 1 over the region, masked or not."""
        shape = np.exp(-0.5 * self.squared_distance(region.shape)) * region
        return shape / max(float(shape.sum()), 1e-300)

    def changes(self, region: np.ndarray) -> np.ndarray:
        """Return how `profile` changes with the ellipse, (5, h, w).

        Per shift along two axes in standard deviations, relative change of two widths, and tilt.
        """
        rows, cols = np.indices(region.shape)
        offsets = np.stack([rows - self.row, cols - self.col])
        u, v = np.tensordot(np.linalg.inv(np.linalg.cholesky(self.covariance)), offsets, 1)
        profile = self.profile(region)
        moved = profile * np.stack([u, v, u * u, v * v, u * v])
        return moved - moved.sum(axis=(1, 2), keepdims=True) * profile


def find_ellipse(excess: np.ndarray, region: np.ndarray, valid: np.ndarray) -> Ellipse | None:
    """Measure the strongest peak of a smooth image by moments under a matched Gaussian.

    The Gaussian that weighs the moments is refined until it has the peak's own centre and
    widths; noise far from the peak then has no say.

    Parameters
    ----------
    excess : (h, w) counts above the background; any value where not valid
    region : (h, w) bool, the pixels where a peak is looked for
    valid : (h, w) bool; the other pixels are filled with the Gaussian found so far

    Returns
    -------
    Ellipse or None
        None where no pixel is above the background, or the moments make no peak.

    References
    ----------
    Bernstein & Jarvis (2002), doi:10.1086/338085, section 3 (adaptive moments)
    """
    found = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    window = tuple(slice(int(f[0]), int(f[-1]) + 1) for f in found)
    origin = np.array([edge.start for edge in window], dtype=np.float64)
    image = np.where(region & valid, excess, 0.0)[window]
    missing = (region & ~valid)[window]
    known, gaps = ~missing, bool(missing.any())
    top = float(image.max(initial=0))
    if not top > 0:
        return None
    row, col = np.unravel_index(int(image.argmax()), image.shape)
    above = int((image > top / 2).sum())  # a Gaussian's is 2 pi ln(2) sigma^2
    covariance = np.eye(2) * max(above / 4.36, LEAST_SIGMA_PX**2)
    rows, cols = (np.arange(n, dtype=np.float64) for n in image.shape)
    limit = max(max(image.shape) / 2, 1) ** 2
    ellipse = Ellipse(float(row), float(col), covariance)
    for _ in range(ROUNDS):
        gaussian = np.exp(-0.5 * ellipse.squared_distance(image.shape))
        if gaps:
            height = (gaussian * image)[known].sum() / max((gaussian[known] ** 2).sum(), 1e-9)
            image[missing] = (height * gaussian)[missing]
        weight = gaussian * image
        down, across = weight.sum(1), weight.sum(0)
        total = float(down.sum())
        if not total > 0:
            return None
        y, x = float(down @ rows) / total, float(across @ cols) / total
        dy, dx = rows - y, cols - x
        cross = float(dy @ weight @ dx)
        moments = np.array([[down @ dy**2, cross], [cross, across @ dx**2]])
        # Weighing a Gaussian with itself halves its covariance.
        covariance = _bounded(2 * moments / total, limit)
        moved = abs(y - ellipse.row) + abs(x - ellipse.col)
        changed = np.abs(covariance - ellipse.covariance).max() / np.trace(covariance)
        ellipse = Ellipse(y, x, covariance)
        if moved < 0.02 and changed < 0.02 and not gaps:
            break
    if not (0 <= ellipse.row < image.shape[0] and 0 <= ellipse.col < image.shape[1]):
        return None
    return Ellipse(ellipse.row + origin[0], ellipse.col + origin[1], ellipse.covariance)


def _bounded(covariance: np.ndarray, limit: float) -> np.ndarray:
    values, axes = np.linalg.eigh(covariance)
    return (axes * np.clip(values, LEAST_SIGMA_PX**2, limit)) @ axes.T


def widest(
    ellipse: Ellipse,
    counts: np.ndarray,
    under: np.ndarray,
    region: np.ndarray,
    inside: np.ndarray,
    doubt: float = DOUBT,
) -> Ellipse:
    """Widen an ellipse along both axes as far as the counts allow.

    A denoised image of a weak peak may show its brightest pixel alone. An ellipse that is too
    narrow loses photons, one that is too wide only adds noise of the background: so the widest
    is taken that fits the raw counts as well as the best of all, within `DOUBT`.

    Parameters
    ----------
    ellipse : as found in the denoised image
    counts : (h, w) raw counts that it was found from
    under : (h, w) background, counts
    region : (h, w) bool, the pixels where the peak is
    inside : (h, w) bool, those of them that are valid
    doubt : chi-square that the widest may cost; 0 takes the one that fits best
    """
    values, axes = np.linalg.eigh(ellipse.covariance)
    rows, cols = np.nonzero(inside)
    along = (np.stack([rows - ellipse.row, cols - ellipse.col], 1) @ axes).T  # (2, n)
    profile = ellipse.profile(region)[inside]
    excess = counts[inside] - under[inside]
    strength = max(float(profile @ excess / max(profile @ profile, 1e-12)), 0.0)
    variance = np.maximum(under[inside] + strength * profile, 0.02)
    spread = values[:, None, None] * SCALES[:, None] ** 2
    first, second = np.exp(-0.5 * along[:, None] ** 2 / spread)  # (scales, n) each
    overlap = (first * (excess / variance)) @ second.T
    norm = (first**2 / variance) @ (second**2).T
    # What a Gaussian of known shape explains of chi-square, its height fitted.
    explained = np.maximum(overlap, 0) ** 2 / np.maximum(norm, 1e-12)
    area = np.outer(SCALES, SCALES) * (explained >= explained.max() - doubt)
    best = np.array(np.unravel_index(int(area.argmax()), area.shape))
    return replace(ellipse, covariance=(axes * values * SCALES[best] ** 2) @ axes.T)


def weights(ellipse: Ellipse, reach: float, region: np.ndarray) -> np.ndarray:
    """Weigh pixels with 1 inside of ``reach`` standard deviations, 0 outside: (h, w).

    The edge is one pixel wide, so that a shift of a fraction of a pixel moves no whole ones.
    """
    distance = ellipse.distance(region.shape)
    scale = float(np.linalg.det(ellipse.covariance)) ** 0.25
    return np.clip((reach - distance) * scale + 0.5, 0, 1) * region


def outside_is_quiet(
    counts: np.ndarray, background: np.ndarray, outside: np.ndarray, noise: float
) -> bool:
    """Say whether the region holds nothing but background outside of the ellipse.

    Parameters
    ----------
    counts : (h, w) counts
    background : (h, w) expected counts of the background
    outside : (h, w) bool, the valid pixels of the region that are not in the ellipse
    noise : standard error of the background, as a share of it
    """
    found, expected = float(counts[outside].sum()), float(background[outside].sum())
    spread = np.sqrt(max(expected, 1) + (noise * expected) ** 2)
    if found - expected > 2.5 * spread:
        return False
    side = min(5, *counts.shape)
    near = box_sum(np.where(outside, counts, 0), side)
    # The more boxes there are, the farther out the farthest of them is by chance.
    farthest = np.sqrt(4.5**2 + 2 * np.log(max(1.0, outside.sum() / QUIET_PX)))
    return float(tail_z(near, box_sum(np.where(outside, background, 0), side)).max()) < farthest


def linear_coefficients(
    profile: np.ndarray,
    weight: np.ndarray,
    background: np.ndarray,
    changes: np.ndarray | None = None,
    expected: np.ndarray | None = None,
) -> np.ndarray | None:
    """Find coefficients c, so that sum(c n) is the intensity of a peak on a background.

    The intensity S and the background solve, exactly if ``profile`` is right::

        sum(weight n)         = S sum(weight profile)         + sum(weight plane)
        sum(background n)     = S sum(background profile)     + sum(background plane)
        sum(background row n) = S sum(background row profile) + sum(background row plane)

    and as the last for columns; where the background is seen in a single row or column, there is
    no slope across it. As ``weight`` is 1 over nearly all of the peak, an error of the profile has
    little effect.

    Not where a mask hides a part. With ``changes``, least squares also tell from the counts in
    ``weight`` by how much the peak differs from the profile. So an error of the profile has
    little effect again, and the variance of the intensity has in it what is not known of the
    hidden part.

    Parameters
    ----------
    profile : (h, w) share of the peak's photons in each pixel; its sum, with the masked
        pixels, is 1
    weight : (h, w) 0 to 1, 0 where masked
    background : (h, w) 0 to 1, the pixels that tell the background, 0 where masked
    changes : (n, h, w) counts by which the peak may differ from the profile, each within a
        factor of about -1 to 1; 0 where masked
    expected : (h, w) counts, > 0; needed with ``changes``

    Returns
    -------
    numpy.ndarray or None
        (h, w) float64; None where the equations have no solution.
    """
    rows, cols = np.ogrid[: profile.shape[0], : profile.shape[1]]
    plane = np.empty((3, *profile.shape))
    plane[0] = 1
    plane[1] = (rows - profile.shape[0] / 2) / profile.shape[0]
    plane[2] = (cols - profile.shape[1] / 2) / profile.shape[1]
    plane = plane[[True, *((background > 0).any(axis).sum() > 1 for axis in (1, 0))]]
    tests = [weight[None], background * plane]
    model = [profile[None], plane]
    prior = [0.0] * (1 + len(plane))
    if changes is not None:
        tests.append(weight * changes / expected)
        model.append(changes)
        prior += [1.0] * len(changes)  # the factor of each is 0 +- 1
    test, of_model = (np.concatenate(x).reshape(len(prior), -1) for x in (tests, model))
    try:
        # The equations are T M^T x = T n; the first row of the inverse gives S.
        first = np.linalg.solve(of_model @ test.T + np.diag(prior), np.eye(len(prior))[0])
    except np.linalg.LinAlgError:
        return None
    coefficients = (first @ test).reshape(profile.shape)
    return coefficients if np.isfinite(coefficients).all() else None
