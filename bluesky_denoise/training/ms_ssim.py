"""Multi-scale structural similarity, differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bluesky_denoise.errors import FrameShapeError

__all__ = ["LEAST_SIDE_PX", "ms_ssim", "ssim"]

WIDTH_PX, SIGMA_PX = 11, 1.5
K1, K2 = 0.01, 0.03
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first."""
LEAST_SIDE_PX = WIDTH_PX * 2 ** (len(WEIGHTS) - 1)
"""Below this the filter does not fit into the coarsest scale."""


def ssim(first: Tensor, second: Tensor, peak: float = 1.0) -> Tensor:
    """Return the structural similarity of two images at one scale.

    Parameters
    ----------
    first, second : (B, 1, H, W), 0 to ``peak``; sides of 11 or more
    peak : largest value there is

    Returns
    -------
    Tensor
        (B,); 1 for equal images.

    References
    ----------
    Wang et al. (2004), doi:10.1109/TIP.2003.819861
    """
    luminance, contrast = _parts(first, second, peak)
    return (luminance * contrast).mean((1, 2, 3))


def ms_ssim(first: Tensor, second: Tensor, peak: float = 1.0) -> Tensor:
    """Return the structural similarity of two images over five scales.

    Parameters
    ----------
    first, second : (B, 1, H, W), 0 to ``peak``; sides of 176 or more
    peak : largest value there is

    Returns
    -------
    Tensor
        (B,), 0 to 1; 1 for equal images. Similarities below 0 are taken as 0.

    Raises
    ------
    FrameShapeError
        If a side is too short.

    References
    ----------
    Wang, Simoncelli & Bovik (2003), doi:10.1109/ACSSC.2003.1292216
    """
    if min(first.shape[-2:]) < LEAST_SIDE_PX:
        raise FrameShapeError(
            f"Images {tuple(first.shape[-2:])} are too small for five scales; expected sides of "
            f"{LEAST_SIDE_PX} or more."
        )
    result = torch.ones(len(first), device=first.device, dtype=first.dtype)
    for scale, weight in enumerate(WEIGHTS):
        luminance, contrast = _parts(first, second, peak)
        last = scale == len(WEIGHTS) - 1
        value = (luminance * contrast if last else contrast).mean((1, 2, 3))
        # A power below 1 has no gradient at 0.
        result = result * value.clamp_min(1e-6) ** weight
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return result


def _parts(first: Tensor, second: Tensor, peak: float) -> tuple[Tensor, Tensor]:
    """Return luminance and contrast-structure of each place the filter fits."""
    offsets = torch.arange(WIDTH_PX, device=first.device, dtype=first.dtype) - WIDTH_PX // 2
    taps = torch.exp(-0.5 * (offsets / SIGMA_PX) ** 2)
    taps = taps / taps.sum()
    size = len(first)
    stack = torch.cat([first, second, first**2, second**2, first * second])  # (5 B, 1, H, W)
    stack = F.conv2d(F.conv2d(stack, taps[None, None, :, None]), taps[None, None, None])
    mean1, mean2, square1, square2, product = stack.split(size)
    low, high = (K1 * peak) ** 2, (K2 * peak) ** 2
    luminance = (2 * mean1 * mean2 + low) / (mean1**2 + mean2**2 + low)
    variances = square1 - mean1**2 + square2 - mean2**2
    contrast = (2 * (product - mean1 * mean2) + high) / (variances + high)
    return luminance, contrast
