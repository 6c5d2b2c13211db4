"""What the counts themselves say of the error of an estimate, against what frames let expect.

The error head tells what errors are on scenes like those of the training. Where an estimate has
lost a weak peak or fringes, the counts disagree with it, and that is told here, without anything
learnt, in two ways:

- **By sums.** Residuals ``n - e``, counts less estimate, are averaged around each pixel over some
  5, 10, 20 and 40 pixels. By noise alone the square of such an average is ``c_l`` times the counts,
  ``c_l`` the sum of the squares of its weights. What is beyond is the squared error there.
- **By scatter.** For detail that is finer than any sum: averaged over some 40 pixels,
  ``(n - e)^2 - (1 - 2 k) n`` is the squared error of the estimate without bias, ``k`` being the
  weight of a pixel's own counts in ``e``; what is beyond the variance is told. Divided by the
  estimate its standard deviation is ``sqrt(2 c)``, however few the counts are.

Either counts from 2 standard deviations on, and in full from 3.5; the largest of all is told.
``docs/decisions/0024-error-bars-hear-the-counts.md`` has the evidence.

References
----------
Hudson, Ann. Statist. 6, 473 (1978): unbiased estimates of squared errors, for Poisson counts too.
Luisier, Blu & Unser, IEEE Trans. Image Process. 20, 696 (2011): the same for denoisers of images.
"""

import torch
from torch import Tensor

from bluesky_denoise.models import kernels

__all__ = ["NOISE", "misfit"]

NOISE = (0.026917, 0.0063443, 0.0015638, 0.00038959)
"""Sums of the squares of the weights of an average, by its level: of pixels of 2, 4, 8 and 16."""
CLEAR = (2.0, 3.5)
"""Standard deviations of noise: up to the first a misfit says nothing, from the second on all."""
LEAST_COUNTS = 0.01
"""Added to the estimate, so that what is told in units of it has an end."""


def misfit(counts: Tensor, estimate: Tensor, variance: Tensor, own: Tensor, free: Tensor) -> Tensor:
    """Tell the squared error of an estimate that counts speak of, and its variance does not.

    Parameters
    ----------
    counts : (B, 1, H, W) float32 counts, 0 where masked; H, W multiples of 16
    estimate, variance : (B, 1, H, W) float32, of the expected counts, 0 where masked
    own : (B, 1, H, W), weight of its own counts in the estimate of a pixel
    free : (B, 1, H, W), how far a pixel may exchange photons at all, 0 to 1: one that stays as it
        was counted has no misfit, whatever is around it

    Returns
    -------
    Tensor
        (B, 1, H, W) float32, counts squared, >= 0. Where the estimate fits, chance leaves less than
        a hundredth of the counts, on average.
    """
    batch, _, height, width = counts.shape
    images = counts.new_empty((batch, 3, height, width))  # filled in place: new memory is dear
    apart, level, scatter = images.split(1, 1)
    torch.sub(counts, estimate, out=apart)
    level.copy_(estimate)
    # What masked pixels lack is missing in noise and misfit alike.
    torch.addcmul(variance + counts, own, counts, value=-2, out=scatter)
    scatter.neg_().addcmul_(apart, apart).div_(estimate + LEAST_COUNTS)
    by_level = []
    for noise in NOISE:
        images = kernels.down(images)
        mean_apart, mean, mean_scatter = kernels.blur(images).split(1, 1)
        square = mean_apart * mean_apart
        by_level.append(_clear(square, noise * mean).mul_(square))
    found = by_level.pop()
    while by_level:
        found = torch.maximum(kernels.up(found), by_level.pop())
    found = kernels.up(found)
    fine = mean_scatter.clamp_min(0)
    fine = fine * _clear(fine * fine, 2 * NOISE[-1])
    if fine.any():
        for _ in NOISE:
            fine = kernels.up(fine)
        found = torch.maximum(found, fine.mul_(estimate))
    return found.mul_(free)


def _clear(square: Tensor, noise: Tensor | float) -> Tensor:
    """Tell how far squares are beyond noise, 0 to 1; ``noise`` is what it makes of them."""
    least, full = (deviations**2 for deviations in CLEAR)
    return (square / (noise + 1e-12)).sub_(least).mul_(1 / (full - least)).clamp_(0, 1)
