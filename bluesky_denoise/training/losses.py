"""Poisson losses, weighted so that neither bright nor sparse frames drown the others."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["known_rate_loss", "mean_deviance", "remainder_loss", "variance_loss"]

LEAST = 1e-6
"""Counts; estimates are raised by this before a logarithm is taken."""
BOXES = ((11, 1), (1, 11), (5, 5), (31, 3), (3, 31))
"""Rows and columns of the boxes whose sums are compared too. Noise averages out in them,
and a line or a spot that was smeared does not: smearing costs more than by single pixels."""
BOX_WEIGHT = 0.25
"""Weight of each kind of box; a single pixel has 1."""
TILE_PX = 16
"""Side of a tile; in each the divergence is averaged before its logarithm is taken."""
TILE_WEIGHT = 0.5
"""Weight of all tiles; the whole frame has 1."""
GOOD = 2e-4
"""Divergence per count that is good enough: less of it in a tile, by luck, is no gain."""
VARIANCE_FREEDOM = 5.0
"""Degrees of freedom of the distribution that errors are taken to have."""


def mean_deviance(estimate: Tensor, expected: Tensor, valid: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two Poisson means, averaged over valid pixels.

    Parameters
    ----------
    estimate, expected : (B, 1, H, W) counts, >= 0; ``expected`` may be counts itself
    valid : (B, 1, H, W), 1 or 0

    Returns
    -------
    Tensor
        (B,) nats per pixel, half of the Poisson deviance.
    """
    return _mean(_deviance(estimate, expected), valid)


def _mean(each: Tensor, some: Tensor) -> Tensor:
    return (each * some).sum((1, 2, 3)) / some.sum((1, 2, 3)).clamp_min(1)


def _deviance(estimate: Tensor, expected: Tensor) -> Tensor:
    estimate = estimate + LEAST
    expected = expected + LEAST
    return expected * torch.log(expected / estimate) - expected + estimate


def _tiles(each: Tensor, valid: Tensor) -> Tensor:
    """Average the logarithm of what tiles of `TILE_PX` have on average: (B, 1, H, W) -> (B,)."""
    total, share = F.avg_pool2d(torch.cat([each * valid, valid], 1), TILE_PX).split(1, 1)
    return _mean(torch.log(total / share.clamp_min(1e-6) + 1e-8), (share > 0).to(share.dtype))


def _boxes(valid: Tensor, *images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield for each of `BOXES` the images' sums, and which boxes hold a valid pixel.

    Boxes that are larger than the images are left out.
    """
    for height, width in BOXES:
        if height > valid.shape[-2] or width > valid.shape[-1]:
            continue
        step = (max(1, height // 2), max(1, width // 2))
        yield tuple(
            F.avg_pool2d(x * valid, (height, width), step) * (height * width) for x in images
        ) + ((F.avg_pool2d(valid, (height, width), step) > 0).to(valid.dtype),)


def known_rate_loss(
    estimate: Tensor,
    expected: Tensor,
    valid: Tensor,
    strict: float = 0.0,
    spread: Tensor | None = None,
    spread_weight: float = 1.0,
) -> Tensor:
    """Compare with known expected counts, by pixels and by boxes: (B,).

    The logarithm of the mean divergence gives every frame the same weight, whatever its counts.
    The noise that a bright peak keeps would still outweigh a bias of all the background around
    it, so that of tiles is added. The logarithm also forgives a frame that is far off: ``strict``
    adds that many times the divergence over that of a raw frame of some counts. ``spread`` is
    what the network makes of the expected counts themselves, without noise, if that is known;
    what is lost there costs ``spread_weight`` times as much.
    """
    images = [estimate] if spread is None else [estimate, spread]

    def divergence(truth: Tensor, out: Tensor, *spread: Tensor) -> Tensor:
        lost = [spread_weight * _deviance(image, truth) for image in spread]
        return sum(lost, _deviance(out, truth))

    each, level = divergence(expected, *images), expected.clamp_max(1)
    by_pixel = _mean(each, valid)
    loss = torch.log(by_pixel + 1e-8) + TILE_WEIGHT * _tiles(each + GOOD * level, valid)
    for truth, *sums, some in _boxes(valid, expected, *images):
        loss = loss + BOX_WEIGHT * torch.log(_mean(divergence(truth, *sums), some) + 1e-8)
    if strict:
        loss = loss + strict * by_pixel / (0.5 * _mean(level, valid) + LEAST)
    return loss


def variance_loss(
    estimate: Tensor, variance: Tensor, target: Tensor, ratio: Tensor, valid: Tensor
) -> Tensor:
    """Likelihood of the error of an estimate: (B,), least where the variance is right.

    Student's distribution is used, so that the few pixels at edges that are far off do not
    widen the intervals of all others.

    Parameters
    ----------
    estimate : (B, 1, H, W) expected counts; not trained by this
    variance : (B, 1, H, W) counts squared, > 0 where valid
    target : (B, 1, H, W) expected counts where ``ratio`` is 0, else counts of a remainder
    ratio : (B,), exposure of the remainder over that of the estimate
    valid : (B, 1, H, W), 1 or 0
    """
    known = (ratio == 0)[:, None, None, None]
    scale = torch.where(known, 1.0, 1 / ratio.clamp_min(1e-3)[:, None, None, None])
    squared = (estimate.detach() - target * scale) ** 2
    # The remainder has noise of its own.
    noise = torch.where(known, 0.0, estimate.detach() * scale)
    variance = torch.where(valid > 0, variance + noise, 1.0)
    freedom = VARIANCE_FREEDOM
    each = torch.log(variance) + (freedom + 1) * torch.log1p(squared / (freedom * variance))
    return 0.5 * (each * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3)).clamp_min(1)


def remainder_loss(estimate: Tensor, remainder: Tensor, ratio: Tensor, valid: Tensor) -> Tensor:
    """Poisson loss against the independent remainder of a thinned frame: (B,).

    Parameters
    ----------
    estimate : (B, 1, H, W) expected counts of the thinned frame
    remainder : (B, 1, H, W) counts that thinning left over
    ratio : (B,), exposure of the remainder over that of the thinned frame
    valid : (B, 1, H, W), 1 or 0

    Returns
    -------
    Tensor
        (B,) divergence in counts of the input, over what a good estimate would leave:
        a twentieth of the noise of the input in a pixel, a third in a box.
    """
    ratio = ratio[:, None, None, None]
    divergence = mean_deviance(estimate * ratio, remainder, valid) / ratio[:, 0, 0, 0]
    level = (estimate.detach().clamp_max(0.5) * valid).sum((1, 2, 3))
    level = level / valid.sum((1, 2, 3)).clamp_min(1)
    loss = divergence / (0.05 * level + 1e-5)
    for found, counted, some in _boxes(valid, estimate, remainder):
        divergence = mean_deviance(found * ratio, counted, some) / ratio[:, 0, 0, 0]
        level = (found.detach().clamp_max(0.5) * some).sum((1, 2, 3))
        level = level / some.sum((1, 2, 3)).clamp_min(1)
        loss = loss + BOX_WEIGHT * divergence / (0.3 * level + 1e-5)
    return loss
