"""A U-Net that mixes blurred copies of the frame, for comparison at equal cost."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluesky_denoise.models.unet import UNet

__all__ = ["BlurBank"]

SIGMAS_PX = (0.7, 1.2, 2.0, 4.0, 8.0)
"""Widths of the copies, beside the frame itself."""


class BlurBank(nn.Module):
    """Softmax weights over the frame and Gaussians of five widths, pixel by pixel.

    A convex combination cannot be brighter than the brightest or darker than the darkest
    copy, but it does not keep the total of the frame.

    Parameters
    ----------
    width : channels of the U-Net at full resolution
    levels : times that the resolution is halved
    """

    field_px = 200
    """Pixels beyond this distance cannot change an estimate."""

    def __init__(self, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        self.body = UNet(width, levels)
        self.multiple = self.body.multiple
        """Frames must be padded to a multiple of this many pixels."""
        copies = len(SIGMAS_PX) + 1
        _, *others = self.body.encoders[0].children()
        first = nn.Conv2d(copies + 1, width, 3, padding=1)
        self.body.encoders[0] = nn.Sequential(first, *others)
        self.body.last = nn.Conv2d(width, copies, 1)

    def forward(self, counts: Tensor, valid: Tensor) -> Tensor:
        """Estimate expected counts: (B, 1, H, W), (B, 1, H, W) -> (B, 1, H, W), >= 0."""
        known = counts * valid
        copies = [known]
        for sigma in SIGMAS_PX:
            copies.append(_gaussian(known, sigma) / _gaussian(valid, sigma).clamp_min(1e-3))
        bank = torch.cat(copies, 1)  # -> (B, 6, H, W)
        x = torch.cat([torch.log1p(2 * torch.sqrt(bank)), valid], 1)
        shares = torch.softmax(self.body.features(x), 1)
        return (shares * bank).sum(1, keepdim=True) * valid


def _gaussian(x: Tensor, sigma_px: float) -> Tensor:
    reach = int(3 * sigma_px + 0.5)
    steps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    taps = torch.exp(-0.5 * (steps / sigma_px) ** 2)
    taps = (taps / taps.sum())[None, None, :, None]  # (n,) -> (1, 1, n, 1)
    x = F.conv2d(x, taps, padding=(reach, 0))
    return F.conv2d(x, taps.transpose(2, 3), padding=(0, reach))
