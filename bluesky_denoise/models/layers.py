"""Layers of a U-Net on a CPU, where new memory and slow paths cost more than arithmetic."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "Point", "mix", "mix_into", "roots"]

CACHED_VALUES = 1 << 17
"""Values that stay in a processor's cache from one step to the next."""


class Block(nn.Module):
    """Two 3 x 3 convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape: (B, C, h, w)."""
        # In place: a fifth of the time goes into new memory.
        return self.second(F.relu(self.first(F.relu(x)), inplace=True)).add_(x)


class Point(nn.Conv2d):
    """A 1 x 1 convolution of an image of any layout, whose result is plane by plane."""

    bias: nn.Parameter

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, 1)

    @property
    def start(self) -> Tensor:
        """What is added, as `mix` takes it."""
        return self.bias[None, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, h, w)."""
        return mix(self.weight.flatten(1), self.start, x)


def mix(matrix: Tensor, start: Tensor, x: Tensor) -> Tensor:
    """Mix channels: (B, C, h, w) -> (B, D, h, w), plane by plane.

    Parameters
    ----------
    matrix : (D, C)
    start : what is added, (1, D, 1, 1) or (B, D, h, w)
    x : (B, C, h, w), of any layout
    """
    batch, _, height, width = x.shape
    matrix = matrix.expand(batch, -1, -1)
    return torch.baddbmm(start.flatten(2), matrix, x.flatten(2)).unflatten(2, (height, width))


def mix_into(start: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    """Mix channels as `mix` does, and add them to ``start``, plane by plane, in its own memory."""
    planes = start.view(*start.shape[:2], -1)  # (B, D, h, w) -> (B, D, h * w)
    planes.baddbmm_(matrix.expand(len(x), -1, -1), x.flatten(2))
    return start


def roots(z: Tensor, floor: float, factor: Tensor | None = None) -> Tensor:
    """Turn scores into roots of shares: >= 0, of unit length over the channels.

    Without gradients the memory of ``z`` is used anew, on a CPU a few rows at a time.

    Parameters
    ----------
    z : (B, K, ..., h, w)
    floor : is added before they are normalised, so that none is 0
    factor : (B, 1, ..., h, w), what they are multiplied by
    """
    if torch.is_grad_enabled():
        z = z.clamp_min(0).add_(floor)
        return z * _over_length(z, factor)
    rows = z.shape[-2]
    if z.device.type == "cpu":
        rows = max(1, CACHED_VALUES * rows // z.numel())
    factors = [None] * -(-z.shape[-2] // rows) if factor is None else factor.split(rows, -2)
    for part, times in zip(z.split(rows, -2), factors, strict=True):
        part.clamp_min_(0).add_(floor)
        part.mul_(_over_length(part, times))
    return z


def _over_length(z: Tensor, factor: Tensor | None) -> Tensor:
    # Much faster than `vector_norm`.
    scale = torch.rsqrt((z * z).sum(1, keepdim=True))
    return scale if factor is None else scale * factor
