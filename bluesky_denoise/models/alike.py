"""A last exchange, between near pixels that look alike, where much noise is left: non-local means.

The kernels of `photon_exchange` have few directions. On a bright arc, a fringe or an oblique line,
what is alike lies along a curve that none of them follows, and a pixel keeps much of its noise.
Here each pixel compares what is around it with what is around others, up to `REACH_PX` away. Two
of them, i and j, share as far as they differ by no more than noise, ``w_ij`` from 0 to 1:

    s_ij = w_ij min(k_i, k_j),        k_i = noisy_i / (1 + sum_j w_ij)
    r_i = sum_j s_ij (n_i - n_j)
    out_i = n_i + sum_j s_ij (r_j - r_i)

``r`` is what an average over such pixels takes away: noise, and the tops of peaks. It is averaged,
too, and given back ("twicing"): its noise is gone then, and most of the tops is there again.
Photons move between pairs of pixels, and none gives another more than the share ``s`` of what it
has: like the exchange before, it keeps sums, signs and what is flat.
``docs/decisions/0020-pixels-that-look-alike.md`` has the evidence.

References
----------
Buades, Coll & Morel, Multiscale Model. Simul. 4, 490 (2005): comparing what is around pixels.
Metropolis et al., J. Chem. Phys. 21, 1087 (1953): the lesser of two rates is symmetric.
Tukey, Exploratory Data Analysis (1977), section 16: twicing.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["share_alike"]

NOISY = (0.02, 0.04)
"""Variance over the estimate: up to the first a pixel takes no part, from the second on in full."""
LEAST_COUNTS = 1.0
"""A pixel of no more counts takes no part, of twice as many in full."""
REACH_PX = 6
AROUND_PX = 6
"""Side of what is compared: 3 x 3 cells of 2 x 2 pixels, around that of a pixel."""
BEYOND_NOISE = (2.0, 1.5)
"""Mean square by which the estimates, and the counts, of two pixels may differ beyond their noise,
in units of it. Counts have less to spare: they show what an estimate has smeared."""
SHARED_NOISE = (0.65, 0.1)
"""Part of its variance that a pixel has in common with those near it, so that no exchange between
them takes it away: where none of its own noise is left, and where all is. Found on simulated
scenes; ``python -m benchmarks.alike_pixels`` prints how often intervals hold."""

TILE_PX = 128
HALO_PX = 26
"""What a tile sees around it: four times the reach, and 2 for what is around."""
SEEN_PX = TILE_PX + 2 * HALO_PX
TILES_AT_ONCE = {"cpu": 2, "cuda": 64}
"""On a processor, few enough to stay in its cache."""

STEPS = tuple(
    (rows, cols)
    for rows in range(REACH_PX + 1)
    for cols in range(-REACH_PX, REACH_PX + 1)
    if (rows, cols) > (0, 0) and rows**2 + cols**2 <= REACH_PX**2 + 1
)
"""Steps (rows, columns) to one half of a pixel's partners; the others are opposite."""
HERE = (..., slice(0, SEEN_PX - REACH_PX), slice(REACH_PX, SEEN_PX - REACH_PX))
"""Pixels of a tile that have a partner within it at every step."""
CORE = (..., slice(HALO_PX, -HALO_PX), slice(HALO_PX, -HALO_PX))


def share_alike(
    counts: Tensor, valid: Tensor, estimate: Tensor, variance: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Let noisy pixels that look alike share their photons.

    Parameters
    ----------
    counts, valid : (B, 1, H, W) float32, what was counted, and 1 where that is valid; 0 elsewhere.
        H and W are even
    estimate, variance : (B, 1, H, W) float32, of the expected counts, 0 where not valid
    free : (B, 1, H, W), how far a pixel may exchange photons at all, 0 to 1

    Returns
    -------
    tuple
        Estimate and variance; as they came where no noise is left.
    """
    height, width = counts.shape[-2:]
    more = (0, -width % TILE_PX, 0, -height % TILE_PX)
    noisy = _noisy(estimate, variance) * free * valid
    chosen = torch.nonzero(_tiles(F.pad(noisy, more), TILE_PX).amax((-2, -1)))  # (N, 3)
    if not len(chosen):
        return estimate, variance
    around = [side + HALO_PX for side in more]
    seen = [
        _tiles(F.pad(image, around), SEEN_PX)
        for image in (counts, valid, estimate, variance, noisy)
    ]
    out = [F.pad(image, more) for image in (estimate, variance)]
    places = [_tiles(image, TILE_PX) for image in out]
    for some in chosen.split(TILES_AT_ONCE[counts.device.type]):
        at = tuple(some.T)
        for place, found in zip(places, _exchanged(*(tiles[at] for tiles in seen)), strict=True):
            place[at] = found[CORE]
    estimate, variance = (image[..., :height, :width] for image in out)
    return estimate, variance


def _tiles(image: Tensor, side: int) -> Tensor:
    """View tiles every `TILE_PX` pixels: (B, 1, H, W) -> (B, rows, columns, side, side)."""
    return image[:, 0].unfold(1, side, TILE_PX).unfold(2, side, TILE_PX)


def _noisy(estimate: Tensor, variance: Tensor) -> Tensor:
    """Tell how far a pixel takes part, 0 to 1."""
    least, full = NOISY
    left = (variance / estimate.clamp_min(LEAST_COUNTS) - least) / (full - least)
    return left.clamp(0, 1) * (estimate / LEAST_COUNTS - 1).clamp(0, 1)


def _exchanged(
    counts: Tensor, valid: Tensor, estimate: Tensor, variance: Tensor, noisy: Tensor
) -> tuple[Tensor, Tensor]:
    """Exchange photons within tiles, (N, S, S) each; only their `CORE` is right."""
    images = torch.stack([estimate, counts], 1)
    # Pixels that are not valid differ from none: their variance has no bounds.
    noise = torch.stack([variance, counts.clamp_min(1e-3)], 1)
    noise.masked_fill_(valid[:, None] == 0, torch.inf)
    alike = [_likeness(images, noise, _there(step)) for step in STEPS]
    friends = torch.ones_like(estimate)
    for step, w in zip(STEPS, alike, strict=True):
        there, w = _there(step), _whole(w)
        friends[HERE] += w * valid[there]
        friends[there] += w * valid[HERE]
    most = noisy / friends
    taken, kept, squares = (torch.full_like(estimate, value) for value in (0, 1, 0))
    for there, share in _shares(alike, most):
        more = share * (estimate[HERE] - estimate[there])
        taken[HERE] += more
        taken[there] -= more
        kept[HERE] -= share
        kept[there] -= share
        share *= share
        squares[HERE] += share
        squares[there] += share
    out = estimate.clone()
    for there, share in _shares(alike, most):
        moved = (taken[there] - taken[HERE]).clamp(-estimate[HERE], estimate[there]).mul_(share)
        out[HERE] += moved
        out[there] -= moved
    own = (variance / estimate.clamp_min(1e-3)).clamp_max(1)
    shared = SHARED_NOISE[0] + (SHARED_NOISE[1] - SHARED_NOISE[0]) * own
    left = kept * kept + squares  # by an average, of noise that pixels do not have in common
    return out, variance * (1 - (1 - shared) * (1 - left) ** 2)


def _shares(alike: list[Tensor], most: Tensor) -> Iterator[tuple[tuple, Tensor]]:
    """Yield where the partners of pixels `HERE` are, and what each two of them share."""
    for step, w in zip(STEPS, alike, strict=True):
        there = _there(step)
        yield there, _whole(w) * torch.minimum(most[HERE], most[there])


def _there(step: tuple[int, int]) -> tuple:
    """Return where the partners of the pixels `HERE` are, a step away."""
    rows, cols = step
    _, down, across = HERE
    return (
        ...,
        slice(down.start + rows, down.stop + rows),
        slice(across.start + cols, across.stop + cols),
    )


def _likeness(images: Tensor, noise: Tensor, there: tuple) -> Tensor:
    """Tell how far surroundings are alike, 0 to 1, for each cell of 2 x 2 pixels.

    Parameters
    ----------
    images, noise : (N, 2, S, S), estimates and counts, and the variance of both. That of counts
        is the counts: given their sum, the squared difference of two is that sum on average
    there : where partners are

    Returns
    -------
    Tensor
        (N, h, w), half of the size of `HERE`
    """
    beyond = images[HERE] - images[there]
    beyond.square_().div_(noise[HERE] + noise[there])
    rows = beyond[..., ::2, :] + beyond[..., 1::2, :]
    cells = F.pad(rows[..., ::2] + rows[..., 1::2], (1, 1, 1, 1), mode="replicate")
    rows = cells[..., :-2, :] + cells[..., 1:-1, :] + cells[..., 2:, :]
    mean = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / AROUND_PX**2
    of_estimates, of_counts = (mean - 1).clamp_min_(0).unbind(1)
    far = (of_estimates / BEYOND_NOISE[0]).square_() + (of_counts / BEYOND_NOISE[1]).square_()
    return far.neg_().exp_()


def _whole(cells: Tensor) -> Tensor:
    """Give each pixel what its cell has: (N, h, w) -> (N, 2 h, 2 w)."""
    number, height, width = cells.shape
    spread = cells[:, :, None, :, None].expand(-1, -1, 2, -1, 2)
    return spread.reshape(number, 2 * height, 2 * width)
