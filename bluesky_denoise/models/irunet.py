"""IRUNet as used by Oppliger et al. (2024): inception-residual U-Net, for comparison."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["IRUNet"]


class _InceptionResidual(nn.Module):
    """3 x 3-64, 3 x 3-128 and dilated 3 x 3-64 side by side, to 1 x 1-64, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, channels, 3, padding=1)
        self.broad = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.dilated = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.merge = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu(branch(x)) for branch in (self.narrow, self.broad, self.dilated)]
        return x + self.merge(torch.cat(parts, 1))


class _Reduce(nn.Module):
    """Two strided convolutions and an average pool, merged; added to a third: half the sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(channels, channels, 2, stride=2)
        self.narrow = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.broad = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.merge = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu(self.narrow(x)), F.relu(self.broad(x)), F.avg_pool2d(x, 2)]
        return self.shortcut(x) + self.merge(torch.cat(parts, 1))


class IRUNet(nn.Module):
    """Four-level encoder and decoder of 64 channels with additive skips.

    About 326 kMAC per pixel and 1.95 M parameters as published, with its sigmoid output. In
    ``irunet`` it acts on ``stabilised counts / scale``, so nothing above ``scale`` ** 2 / 4
    counts can be told; in ``irunet_paper`` on scaled frames, as published. Weights are not
    shipped: it is here to be timed, and to be trained.

    References
    ----------
    Gil Zuluaga et al. (2021), arXiv 2105.00273; Oppliger et al. (2024),
    doi:10.1038/s42256-024-00790-1, repository ``joppli/XRD_denoising``.
    """

    multiple = 16
    """Frames must be padded to a multiple of this many pixels."""
    field_px = 128
    """Pixels beyond this distance cannot change an estimate."""

    def __init__(self, channels: int = 64, levels: int = 4, scale: float = 64.0) -> None:
        super().__init__()
        self.scale = scale
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.reduces = nn.ModuleList(_Reduce(channels) for _ in range(levels))
        self.encoders = nn.ModuleList(_InceptionResidual(channels) for _ in range(levels))
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in range(levels)
        )
        self.decoders = nn.ModuleList(_InceptionResidual(channels) for _ in range(levels))
        self.last = nn.Conv2d(channels, 1, 1)

    def published(self, scaled: Tensor) -> Tensor:
        """Denoise frames scaled to 0 ... 1: (B, 1, H, W) -> (B, 1, H, W), 0 to 1."""
        x = F.relu(self.first(scaled))
        levels = []
        for reduce, encoder in zip(self.reduces, self.encoders, strict=True):
            x = encoder(reduce(x))
            levels.append(x)
        # As released: levels 1 and 2 have skips, the third has none.
        skips: list[Tensor | None] = [None, *levels[1::-1], None]
        for up, decoder, skip in zip(self.ups, self.decoders, skips, strict=True):
            x = decoder(F.relu(up(x)))
            x = x if skip is None else x + skip
        return torch.sigmoid(self.last(x))

    def forward(self, counts: Tensor, valid: Tensor) -> Tensor:
        """Estimate expected counts: (B, 1, H, W), (B, 1, H, W) -> (B, 1, H, W), >= 0."""
        stable = self.published(2 * torch.sqrt(counts + 0.375) / self.scale) * self.scale
        return (stable**2 / 4 - 0.375).clamp_min(0) * valid
