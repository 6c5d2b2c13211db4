"""A last exchange along bright lines, arcs and fringes: pixels walk along the one they are on.

The kernels of `photon_exchange` have few directions. On an arc, a fringe or an oblique line, what
is alike lies along a curve that none of them follows, and a pixel keeps much of its noise. Here
each cell of 2 x 2 pixels that is still noisy walks in the direction in which the estimate changes
least, which is looked up anew on the way. On a narrow oblique line most whole pixels lie beside
it, so that from a few pixels away on one of several is taken: the one that lies nearest to the
line. Two pixels i and j, one on the walk of the other, share as far as what is around them differs
by no more than noise, ``w_ij`` from 0 to 1:

    s_ij = w_ij min(k_i, k_j),        k_i = noisy_i / (1 + sum_j w_ij)
    out_i = n_i + sum_j s_ij (n_j - n_i)

Photons move between pairs of pixels, and none gives more than it has: like the exchange before,
it keeps sums, signs and what is flat. Nothing of it is learnt.
``docs/decisions/0021-noisy-pixels-share-along-lines.md`` and
``docs/decisions/0025-cells-walk-and-choose-their-places.md`` have the evidence.

References
----------
Bigun & Granlund, Proc. 1st Int. Conf. Computer Vision, 433 (1987): directions from products of
slopes, averaged.
Weickert, Int. J. Comput. Vision 31, 111 (1999): smoothing along such directions.
Black et al., IEEE Trans. Image Process. 7, 421 (1998): weights that end, Tukey's biweight.
Metropolis et al., J. Chem. Phys. 21, 1087 (1953): the lesser of two rates is symmetric.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bluesky_denoise.models import kernels

__all__ = ["share_along_lines"]

WINDOWS = (1, 1, 1, 1, 1, 1, 2, 3, 3)
"""Steps of one pixel, window after window. From each window one place is taken. A walk goes one
way; from the other, others walk here."""
REACH_PX = sum(WINDOWS)
NOISY = (0.05, 0.1)
"""Variance over the estimate: up to the first a pixel takes no part, from the second on in full."""
LEAST_COUNTS = 1.0
"""A pixel of no more counts takes no part, of twice as many in full."""
STEEP = (0.5, 1.0)
"""Mean squared slope of ``2 sqrt(counts)``, over its noise, of what is a line at all."""
ONE_WAY = (0.5, 0.8)
"""How far slopes have one direction: 0 where they have all, 1 where there is one."""
TURN = (0.7, 0.9)
"""Cosine of the turn from window to window: a sharper one ends a walk."""
BEYOND_NOISE = 2.6
"""Mean square by which 3 x 3 pixels of two estimates differ beyond their noise, in units of it,
where they are no longer alike at all."""
SHARED_NOISE = (0.65, 0.2)
"""Part of its variance that a pixel has in common with those on its line, so that no exchange
between them takes it away: where none of its own noise is left, and where all is. Found on
simulated scenes; ``python -m benchmarks.along_lines`` prints how often intervals hold."""

HALO_PX = REACH_PX + 6
"""Seen around the noisy pixels: as far as walks go, and a direction looks."""
BEYOND_PX = (REACH_PX + 4) // 2 * 2
"""Put around an image, whole cells: as far as walks go, and what is around a pixel there."""
AT_ONCE = 1 << 15
"""Walks that are followed at once: few enough for memory, and not too few: each step costs a
call."""


class _Pairs(NamedTuple):
    """Cells on walks, W of each of N walks, by the place of their first pixel on one axis.

    The other three pixels are those at the same place of an image that begins later.
    """

    start: Tensor
    """(4, N), where each walk begins: all four pixels."""
    other: Tensor
    """(W, N), the places that it passes: the first pixels."""
    alike: Tensor
    """(4, W, N), how far the pixels of both are alike, 0 to 1."""
    width: int
    """Of the images, of which rows follow each other on one axis."""

    def _corners(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(image[first:] for first in (0, 1, self.width, self.width + 1))

    def add(self, image: Tensor, values: Tensor, back: float = 1.0) -> None:
        """Add values (4, W, N) to pixels on walks, and times ``back`` to where they begin."""
        other = self.other.flatten()
        for corner, some in zip(self._corners(image), values, strict=True):
            corner.scatter_add_(0, other, some.flatten())  # `index_add_` takes half as long again
        image.scatter_add_(0, self.start.flatten(), values.sum(1).mul_(back).flatten())

    def here(self, image: Tensor) -> Tensor:
        """Look up an image where walks begin: (4, 1, N)."""
        return _at(image, self.start)[:, None]

    def there(self, image: Tensor) -> Tensor:
        """Look up an image where walks pass: (4, W, N)."""
        found, other = image.new_empty(self.alike.shape), self.other.flatten()
        for corner, some in zip(self._corners(image), found, strict=True):
            torch.index_select(corner, 0, other, out=some.view(-1))  # `stack` would copy it
        return found


def share_along_lines(
    valid: Tensor, estimate: Tensor, variance: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Let noisy pixels share their photons along bright lines.

    Parameters
    ----------
    valid : (B, 1, H, W) float32, 1 where a pixel counts, else 0. H and W are even
    estimate, variance : (B, 1, H, W) float32, of the expected counts, 0 where not valid
    free : (B, 1, H, W), how far a pixel may exchange photons at all, 0 to 1

    Returns
    -------
    tuple
        Estimate and variance; those that came where no noise is left.
    """
    noisy = _ramp(variance / estimate.clamp_min(LEAST_COUNTS), NOISY) * free
    noisy *= (estimate / LEAST_COUNTS - 1).clamp_(0, 1)
    window = _window(noisy)
    if window is None:
        return estimate, variance
    found = _shared(*(image[window] for image in (valid, estimate, variance, noisy)))
    if found is None:
        return estimate, variance
    estimate, variance = estimate.clone(), variance.clone()
    estimate[window], variance[window] = found
    return estimate, variance


def _ramp(x: Tensor, ends: tuple[float, float]) -> Tensor:
    """Rise from 0 to 1 between two ends."""
    least, full = ends
    return (x - least).mul_(1 / (full - least)).clamp_(0, 1)


def _window(noisy: Tensor) -> tuple | None:
    """Find the rectangle that has all noisy pixels, with even corners; None if there are none."""
    ends = []
    for axis in (2, 3):
        at = torch.nonzero(noisy.amax([i for i in range(4) if i != axis]))[:, 0]
        if not len(at):
            return None
        first, last = int(at[0]), int(at[-1])
        ends.append(slice(max(first - HALO_PX, 0) // 2 * 2, (last + HALO_PX + 2) // 2 * 2))
    return (..., *ends)


def _shared(
    valid: Tensor, estimate: Tensor, variance: Tensor, noisy: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Share along lines within a rectangle, (B, 1, H, W) each; None if there are none."""
    stable = estimate + 0.375
    noise = kernels.down(variance / stable)
    root = stable.sqrt_().mul_(2)
    down, right, clear = _directions(root, noise, valid)
    begun = clear * (kernels.unshuffle(noisy).amax(1, keepdim=True) > 0)
    # A walk may leave the frame: it meets nothing there that takes part.
    down, right, clear, noise = (_flat(x, BEYOND_PX // 2) for x in (down, right, clear, noise))
    steps = torch.stack([down, right])
    root, counts, most = (_flat(x, BEYOND_PX) for x in (root, estimate, noisy))
    cells = torch.nonzero(_flat(begun, BEYOND_PX // 2))[:, 0]
    if not len(cells):
        return None
    width = estimate.shape[-1] + 2 * BEYOND_PX
    corners = torch.tensor([[0], [1], [width], [width + 1]], device=cells.device)
    walks = []
    for some in cells.split(AT_ONCE):
        moved, passed, straight = _walk(some, width, steps)
        # Clear at both ends: who walks to whom must not matter, or peaks would move.
        led = straight.mul_(_at(clear, passed)).mul_(_at(clear, some))
        start = 2 * some + some.div(width // 2, rounding_mode="floor") * width
        other = start + moved
        alike = _alike(start, other, width, root, _at(noise, passed) + _at(noise, some))
        walks.append(_Pairs(start + corners, other, alike.mul_(led), width))
    taken, left = _exchanged(walks, counts, most)
    inside = (..., slice(BEYOND_PX, -BEYOND_PX), slice(BEYOND_PX, -BEYOND_PX))
    taken, left = (x.view(*estimate.shape[:2], -1, width)[inside] for x in (taken, left))
    own = (variance / estimate.clamp_min(1e-3)).clamp_(max=1)
    shared = SHARED_NOISE[0] + (SHARED_NOISE[1] - SHARED_NOISE[0]) * own
    return estimate - taken, variance * (1 - (1 - shared) * (1 - left))


def _flat(image: Tensor, beyond: int) -> Tensor:
    """Put zeros around an image, and its rows one after the other."""
    return F.pad(image, [beyond] * 4).flatten()


def _at(image: Tensor, places: Tensor) -> Tensor:
    """Look up an image of one axis; a third faster than ``image[places]``."""
    return image.index_select(0, places.flatten()).view_as(places)


def _directions(root: Tensor, noise: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the direction in which an image changes least, for each cell of 2 x 2 pixels.

    Parameters
    ----------
    root : (B, 1, H, W), an image whose noise is the same at any level of counts
    noise : (B, 1, H / 2, W / 2), its variance
    valid : (B, 1, H, W), 1 where a pixel counts

    Returns
    -------
    tuple
        (B, 1, H / 2, W / 2): a step in rows and in columns, of length 1 together, and how clear
        it is that there is a line, 0 to 1.
    """
    # A slope looks at 4 x 4 pixels; there is none where one of them is masked.
    sure = (kernels.down(valid) == 1).float()
    rows = kernels.slope(kernels.halve(root, 3), 2) * sure
    cols = kernels.slope(kernels.halve(root, 2), 3) * sure
    products = torch.cat([rows * rows, cols * cols, rows * cols], 1)
    of_rows, of_cols, of_both = kernels.blur(kernels.blur(products)).split(1, 1)
    total, apart = of_rows + of_cols, of_cols - of_rows
    one_way = torch.hypot(apart, 2 * of_both)
    clear = _ramp(total / noise.clamp_min(0.02), STEEP)
    clear *= _ramp(one_way / (total + 1e-6), ONE_WAY)
    cosine = apart / (one_way + 1e-12)  # of twice the angle of the slope
    down = (0.5 + 0.5 * cosine).clamp_min_(0).sqrt_()
    right = (0.5 - 0.5 * cosine).clamp_min_(0).sqrt_()
    return down, torch.copysign(right, -of_both), clear


def _walk(start: Tensor, width: int, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Follow lines.

    Parameters
    ----------
    start : (N,), cells in which walks begin
    width : of the images in pixels; rows of cells follow each other on one axis
    steps : (2, cells), a step from each cell, in rows and columns

    Returns
    -------
    tuple
        (W, N), for each window: how far the place that is taken is from the start, in pixels on
        the one axis of an image; the cell of its first pixel; how straight the walk went, 0 to 1.
    """
    by = steps.index_select(1, start)
    start = start.int()  # half of the size, and no image has 2^31 pixels
    # From the middle of a cell, a pixel from its edge. All is above 0, and cut, not rounded, which
    # is faster.
    first = start - BEYOND_PX // 2 * (width // 2 + 1)
    at = torch.full_like(by, BEYOND_PX + 1)
    lengths = torch.arange(1, max(WINDOWS) + 1, dtype=by.dtype, device=by.device)[:, None]
    taken, cosines = [], []
    for window in WINDOWS:
        # Looked up half way through the window: walks that look where they are leave a ring.
        half = torch.add(at, by, alpha=window / 2).mul_(0.5).int()
        ahead = steps.index_select(1, _place(half, width // 2).add_(first))
        cosine = (by * ahead).sum(0)
        by = ahead.mul_(cosine.sign())  # Go on in that direction of the line that was come in.
        places = torch.addcmul(at[:, None], by[:, None], lengths[:window])
        at = places[:, -1]
        taken.append(_nearest(places, by) if window > 1 else at)
        cosines.append(cosine)
    straight = _ramp(torch.stack(cosines).abs_(), TURN)
    for before, after in itertools.pairwise(straight):  # `cumprod_` takes eight times as long
        after.mul_(before)
    moved = torch.stack(taken, 1).sub_(0.5).int()
    passed = _place(moved >> 1, width // 2).add_(first)
    return _place(moved, width).long() - BEYOND_PX * (width + 1), passed, straight


def _place(of_axes: Tensor, width: int) -> Tensor:
    """Make one place of a row and a column: (2, ...) -> (...)."""
    return torch.add(of_axes[1], of_axes[0], alpha=width)


def _nearest(places: Tensor, by: Tensor) -> Tensor:
    """Take the places that whole pixels are nearest to, across the line: (2, w, N) -> (2, N)."""
    beside = (places - 0.5).frac_().sub_(0.5)
    off = (beside[0] * by[1]).addcmul_(beside[1], by[0], value=-1).abs_()
    best, least = places[:, 0], off[0]
    for i in range(1, len(off)):  # `argmin` takes many times as long
        best = torch.where(off[i] < least, places[:, i], best)
        least = torch.minimum(off[i], least)
    return best


def _alike(start: Tensor, other: Tensor, width: int, root: Tensor, noise: Tensor) -> Tensor:
    """Tell how far what is around pixels is alike, 0 to 1.

    Parameters
    ----------
    start, other : (N,) and (W, N), places of the first pixels of the cells that are compared
    width : of the images, of which rows follow each other on one axis
    root : what is compared
    noise : (W, N), variance of a difference of two

    Returns
    -------
    Tensor
        (4, W, N), for the pixels of the cells, of 3 x 3 around each. All four need the squares of
        4 x 4 differences.
    """
    here, there = start - (width + 1), other - (width + 1)
    apart = root.new_empty((2, 2, *other.shape))
    rows = []
    for row in range(4):
        images = [root[row * width + col :] for col in range(4)]
        first, *middle, last = (
            _at(image, there).sub_(_at(image, here)).square_() for image in images
        )
        both = middle[0].add_(middle[1])
        rows.append((first.add_(both), last.add_(both)))
    for col, (first, *middle, last) in enumerate(zip(*rows, strict=True)):
        both = middle[0].add_(middle[1])
        torch.add(first, both, out=apart[0, col])
        torch.add(last, both, out=apart[1, col])
    # The mean of nine over the noise, less 1, over BEYOND_NOISE.
    scale = 1 / (9 * BEYOND_NOISE) / noise
    far = apart.flatten(0, 1).mul_(scale).sub_(1 / BEYOND_NOISE).clamp_(0, 1)
    return far.square_().neg_().add_(1).square_()


def _exchanged(walks: list[_Pairs], counts: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange photons between pairs of pixels.

    Parameters
    ----------
    walks : the pairs, some walks at a time
    counts : of an image of one axis
    most : how far each of its pixels may exchange photons, 0 to 1

    Returns
    -------
    tuple
        What each pixel gives, less what it is given, and the part of its own variance that is
        left if all noise is its own.
    """
    friends = torch.ones_like(counts)
    for pairs in walks:
        pairs.add(friends, pairs.alike)
    most = most / friends
    taken, given, squares = (torch.zeros_like(counts) for _ in range(3))
    for pairs in walks:
        share = pairs.there(most)
        torch.minimum(share, pairs.here(most), out=share).mul_(pairs.alike)
        more = pairs.there(counts).sub_(pairs.here(counts))
        pairs.add(taken, more.mul_(share), back=-1.0)
        pairs.add(given, share)
        pairs.add(squares, share.square_())
    return taken, given.sub_(1).square_().add_(squares)
