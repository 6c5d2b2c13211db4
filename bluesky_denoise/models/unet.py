"""A plain U-Net with a positive output, for comparison at equal cost."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNet"]


def _pair(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Two convolutions a level, skips by concatenation, softplus output.

    It works on stabilised counts and a mask, needs no exposure, and puts out the root of
    the expected counts as a correction of the root of a blurred frame, so that it starts near
    a good estimate at any level of counts.

    Parameters
    ----------
    width : channels at full resolution; twice as many at each coarser level
    levels : times that the resolution is halved

    References
    ----------
    Ronneberger, Fischer & Brox (2015), arXiv 1505.04597
    """

    field_px = 160
    """Pixels beyond this distance cannot change an estimate, for three levels."""

    def __init__(self, width: int = 32, levels: int = 3) -> None:
        super().__init__()
        self.multiple = 2**levels
        """Frames must be padded to a multiple of this many pixels."""
        channels = [width * 2**i for i in range(levels + 1)]
        ins = [3, *channels[:-1]]
        self.encoders = nn.ModuleList(_pair(i, c) for i, c in zip(ins, channels, strict=True))
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(channels)
        )
        self.decoders = nn.ModuleList(_pair(2 * c, c) for c in channels[:-1])
        self.last = nn.Conv2d(width, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        """Run the U-Net: (B, C, H, W) -> (B, outputs, H, W)."""
        skips = []
        for i, encoder in enumerate(self.encoders):
            x = encoder(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for i in reversed(range(len(self.decoders))):
            x = self.decoders[i](torch.cat([self.ups[i](x), skips[i]], 1))
        return self.last(x)

    def forward(self, counts: Tensor, valid: Tensor) -> Tensor:
        """Estimate expected counts: (B, 1, H, W), (B, 1, H, W) -> (B, 1, H, W), >= 0."""
        around = _average(counts * valid) / _average(valid).clamp_min(1e-3)
        root = torch.sqrt(around + 0.01)
        stable = 2 * torch.sqrt(counts + 0.375)
        x = torch.cat([torch.log1p(stable), torch.log1p(around), valid], 1)  # -> (B, 3, H, W)
        # softplus(0.5413) = 1: an untrained network gives the blurred frame.
        gain = F.softplus(self.features(x) + 0.5413)
        return (root * gain) ** 2 * valid


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 7, 1, 3)
