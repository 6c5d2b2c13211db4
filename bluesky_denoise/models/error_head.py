"""The head that tells the variance of each pixel of an estimate."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluesky_denoise.models import kernels
from bluesky_denoise.models.layers import Point, mix, mix_into

__all__ = ["ErrorHead"]

CHANNELS_AROUND = 16
CHANNELS = 32


class ErrorHead(nn.Module):
    """Tell the variance from what a U-Net has found, the estimate and what a pixel kept.

    The estimate itself is not trained by its variance: all that comes in is detached. What
    was found at coarse levels comes in too, as noise alone may look like a slope from near.

    Parameters
    ----------
    channels : of the U-Net at 2, 4, 8, ... pixels
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        around = CHANNELS_AROUND
        ins = [c + around for c in channels[1:-1]] + [channels[-1]]
        self.around = nn.ModuleList(nn.Conv2d(c, around, 3, padding=1) for c in ins)
        self.near = Point(channels[0] + around + 8, CHANNELS)
        self.out = Point(CHANNELS, 4)
        self.levels = nn.Parameter(torch.zeros(6))
        """Of a polynomial of the level of counts; see `level`."""

    def learnt(self) -> list[nn.Parameter]:
        """Return what is trained; ``levels`` are fitted afterwards."""
        return [p for name, p in self.named_parameters() if name != "levels"]

    def forward(self, found: list[Tensor], out: Tensor, own: Tensor) -> Tensor:
        """Tell the expected squared error.

        Parameters
        ----------
        found : (B, C, H / 2, W / 2), (B, C', H / 4, W / 4), ...: features, finest first
        out : (B, 1, H, W) estimated counts
        own : (B, 1, H, W) share of its counts that a pixel kept; where that is all, the
            variance is that of the counts, by construction, and 1 where there are none

        Returns
        -------
        Tensor
            (B, 1, H, W) counts squared, > 0.
        """
        own, out = own.detach(), out.detach()
        nearest, *between, coarsest = (x.detach().float() for x in found)
        *convs, first = self.around
        around = F.relu(first(coarsest))
        for conv, x in zip(reversed(convs), reversed(between), strict=True):
            around = F.relu(conv(_beside(x, around)))
        log_out = torch.log(out + 1e-3)
        told = torch.cat([torch.log(own + 1e-3), log_out], 1) * 0.3
        x = self._near(nearest, around, kernels.unshuffle(told))
        x = self.out(x)  # (B, 4, H/2, W/2)
        x = kernels.shuffle(x.unflatten(1, (1, 2, 2)))  # -> (B, 1, H, W)
        place, correction = level(log_out / math.log(10)), self.levels[-1]
        for factor in reversed(self.levels[:-1]):
            correction = correction * place + factor
        x = x + correction
        # Relative to a Poisson variance; bounded, so that a strange frame does not overflow.
        # That is 12 tanh(x / 12); on a CPU `tanh` takes longer.
        bounded = 24 * torch.sigmoid(x * (1 / 6)) - 12
        ratio = torch.lerp(torch.exp(bounded), torch.ones_like(own), own * own)
        variance = ratio * (out + 1e-5)
        # A pixel that is left as counted has the variance of its count; that of 0 says nothing.
        return variance + (own * own).square().square() * (1 - out).clamp_min(0)

    def _near(self, found: Tensor, around: Tensor, told: Tensor) -> Tensor:
        """Convolve all three without putting them side by side: (B, CHANNELS, H/2, W/2)."""
        widths = (found.shape[1], around.shape[1], told.shape[1])
        of_found, of_around, of_told = self.near.weight.flatten(1).split(widths, 1)
        x = mix(of_around, self.near.start, around)
        return mix_into(mix_into(kernels.repeat(x), of_found, found), of_told, told).relu_()


def level(log10_counts: Tensor) -> Tensor:
    """Return the variable of the polynomial: -1 at 1e-3 counts, 1 at 1e5."""
    return ((log10_counts - 1) / 4).clamp(-1, 1)


def _beside(x: Tensor, coarser: Tensor) -> Tensor:
    return torch.cat([x, F.interpolate(coarser, scale_factor=2.0)], 1)
