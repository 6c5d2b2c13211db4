"""A last exchange along bright lines, arcs and fringes: each pixel walks along the one it is on.

The kernels of `photon_exchange` have few directions. On an arc, a fringe or an oblique line, what
is alike lies along a curve that none of them follows, and a pixel keeps much of its noise. Here a
pixel that is still noisy takes `STEPS` steps of one pixel in the direction in which the estimate
changes least, which is looked up anew after each. Two pixels i and j, one on the walk of the
other, share as far as what is around them differs by no more than noise, ``w_ij`` from 0 to 1:

    s_ij = w_ij min(k_i, k_j),        k_i = noisy_i / (1 + sum_j w_ij)
    out_i = n_i + sum_j s_ij (n_j - n_i)

Photons move between pairs of pixels, and none gives more than it has: like the exchange before,
it keeps sums, signs and what is flat. Nothing of it is learnt.
``docs/decisions/0021-noisy-pixels-share-along-lines.md`` has the evidence.

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

STEPS = 10
"""Pixels that a walk passes. It goes one way; from the other, others walk here."""
NOISY = (0.05, 0.1)
"""Variance over the estimate: up to the first a pixel takes no part, from the second on in full."""
LEAST_COUNTS = 1.0
"""A pixel of no more counts takes no part, of twice as many in full."""
STEEP = (0.5, 1.0)
"""Mean squared slope of ``2 sqrt(counts)``, over its noise, of what is a line at all."""
ONE_WAY = (0.5, 0.8)
"""How far slopes have one direction: 0 where they have all, 1 where there is one."""
TURN = (0.7, 0.9)
"""Cosine of the turn at a step: a sharper one ends a walk."""
BEYOND_NOISE = 2.6
"""Mean square by which 3 x 3 pixels of two estimates differ beyond their noise, in units of it,
where they are no longer alike at all."""
SHARED_NOISE = (0.65, 0.2)
"""Part of its variance that a pixel has in common with those on its line, so that no exchange
between them takes it away: where none of its own noise is left, and where all is. Found on
simulated scenes; ``python -m benchmarks.along_lines`` prints how often intervals hold."""

HALO_PX = STEPS + 6
"""Seen around the noisy pixels: as far as walks go, and a direction looks."""
AT_ONCE = 1 << 15
"""Walks that are followed at once: few enough for the caches of a processor, and not too few: each
step costs a call."""


class _Pairs(NamedTuple):
    """Pixels on walks, by their place in an image of one axis."""

    start: Tensor
    """(N,), where each walk begins."""
    other: Tensor
    """(STEPS, N), the pixels that it passes."""
    alike: Tensor
    """(STEPS, N), how far both are alike, 0 to 1."""

    def add(self, image: Tensor, values: Tensor, back: float = 1.0) -> None:
        """Add values (STEPS, N) to pixels on walks, and times ``back`` to where they begin."""
        # `index_add_` takes half as long again.
        image.scatter_add_(0, self.other.flatten(), values.flatten())
        image.scatter_add_(0, self.start, values.sum(0) * back)

    def there(self, image: Tensor) -> Tensor:
        """Look up an image where walks pass: (STEPS, N)."""
        return image.index_select(0, self.other.flatten()).view_as(self.other)


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
    # A walk may leave the frame: it meets nothing there that takes part. Even, for the cells.
    beyond = (STEPS + 2) // 2 * 2
    width = estimate.shape[-1] + 2 * beyond
    clear, most = _flat_cells(clear, beyond), _flat(noisy, beyond)
    start = torch.nonzero(most * clear > 0)[:, 0]
    if not len(start):
        return None
    down, right, noise = (_flat_cells(image, beyond) for image in (down, right, noise))
    root, counts = (_flat(image, beyond) for image in (root, estimate))
    walks = []
    for some in start.split(AT_ONCE):
        other, led = _walk(some, width, down, right)
        pairs = _Pairs(some, other, _alike(some, other, width, root, noise).mul_(led))
        # Clear at both ends: who walks to whom must not matter, or peaks would move.
        pairs.alike.mul_(pairs.there(clear)).mul_(clear.index_select(0, some))
        walks.append(pairs)
    moved, left = _exchanged(walks, counts, most)
    moved, left = (
        image.view(*estimate.shape[:2], -1, width)[..., beyond:-beyond, beyond:-beyond]
        for image in (moved, left)
    )
    own = (variance / estimate.clamp_min(1e-3)).clamp_(max=1)
    shared = SHARED_NOISE[0] + (SHARED_NOISE[1] - SHARED_NOISE[0]) * own
    return estimate + moved, variance * (1 - (1 - shared) * (1 - left))


def _flat(image: Tensor, beyond: int) -> Tensor:
    """Put zeros around an image, and its rows one after the other."""
    return F.pad(image, [beyond] * 4).flatten()


def _flat_cells(cells: Tensor, beyond: int) -> Tensor:
    """Do the same for the pixels of cells of 2 x 2; ``beyond`` is even."""
    return kernels.repeat(F.pad(cells, [beyond // 2] * 4)).flatten()


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


def _walk(start: Tensor, width: int, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Follow lines.

    Parameters
    ----------
    start : (N,), where walks begin
    width : of the images, of which rows follow each other on one axis
    down, right : a step from each pixel

    Returns
    -------
    tuple
        (STEPS, N): where walks are after each step, and how straight they went, 0 to 1.
    """
    by_row, by_col = down.index_select(0, start), right.index_select(0, start)
    start = start.int()  # half of the size, and no image has 2^31 pixels
    col = start % width
    # Half a pixel more, and rows from one that no walk comes to: all are above 0, and cut, not
    # rounded, which is faster.
    first = start - col - (STEPS + 1) * width
    row, col = by_row + (STEPS + 1.5), by_col + (col + 0.5)
    places, cosines = [], []
    for _ in range(STEPS):
        place = row.int().mul_(width).add_(col.int()).add_(first)
        next_row, next_col = down.index_select(0, place), right.index_select(0, place)
        cosine = (by_row * next_row).addcmul_(by_col, next_col)
        ahead = torch.sign(cosine)  # Go on in that direction of the line that was come in.
        next_row.mul_(ahead)
        next_col.mul_(ahead)
        # A step, and half of the turn made up for: walks that go straight on would leave a ring.
        row.add_(next_row, alpha=1.5).sub_(by_row, alpha=0.5)
        col.add_(next_col, alpha=1.5).sub_(by_col, alpha=0.5)
        by_row, by_col = next_row, next_col
        places.append(place)
        cosines.append(cosine)
    straight = _ramp(torch.stack(cosines).abs_(), TURN)
    for before, after in itertools.pairwise(straight):  # `cumprod_` takes eight times as long
        after.mul_(before)
    return torch.stack(places).long(), straight


def _alike(start: Tensor, other: Tensor, width: int, root: Tensor, noise: Tensor) -> Tensor:
    """Tell how far what is around pixels is alike, 0 to 1.

    Parameters
    ----------
    start, other : (N,) and (STEPS, N), places of what is compared
    width : of the images, of which rows follow each other on one axis
    root, noise : what is compared, and its variance
    """
    corner = width + 1
    mine, others = start - corner, other.flatten() - corner
    apart = torch.zeros(other.shape, device=other.device)
    for row, col in itertools.product(range(3), repeat=2):
        image = root[row * width + col :]  # a view: what is there of each pixel's surroundings
        there = image.index_select(0, others).view_as(other)
        there.sub_(image.index_select(0, mine))
        apart.addcmul_(there, there)
    both = noise.index_select(0, other.flatten()).view_as(other) + noise.index_select(0, start)
    far = apart.div_(both.mul_(9)).sub_(1).mul_(1 / BEYOND_NOISE).clamp_(0, 1)
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
        What each pixel is given, less what it gives, and the part of its own variance that is
        left if all noise is its own.
    """
    friends = torch.ones_like(counts)
    for pairs in walks:
        pairs.add(friends, pairs.alike)
    most = most / friends
    moved, given, squares = (torch.zeros_like(counts) for _ in range(3))
    for pairs in walks:
        share = torch.minimum(most.index_select(0, pairs.start), pairs.there(most))
        share.mul_(pairs.alike)
        apart = counts.index_select(0, pairs.start) - pairs.there(counts)
        pairs.add(moved, apart.mul_(share), back=-1.0)
        pairs.add(given, share)
        pairs.add(squares, share.square_())
    return moved, given.sub_(1).square_().add_(squares)
