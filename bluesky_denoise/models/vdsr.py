"""VDSR as used by Oppliger et al. (2024): a plain residual chain, for comparison."""

import torch
from torch import Tensor, nn

__all__ = ["VDSR"]


class VDSR(nn.Module):
    """Twenty 3 x 3 convolutions of 64 channels with PReLU, and one to the residual.

    About 702 kMAC per pixel; receptive field 43 x 43. Its weights are not shipped: it is
    here to be timed, and to be trained. ``vdsr`` works on stabilised counts,
    ``2 sqrt(n + 3/8)``, with a global residual, so that it can be trained as ours is;
    ``vdsr_paper`` works on scaled frames without it, as released last. There the PReLU has a
    slope for each pixel of a frame of one size; here it has one for each channel.

    References
    ----------
    Kim, Lee & Lee (2016), arXiv 1511.04587; Oppliger et al. (2024),
    doi:10.1038/s42256-024-00790-1, repository ``joppli/XRD_denoising``.
    """

    multiple = 1
    """Any frame size is accepted."""
    field_px = 21
    """Pixels beyond this distance cannot change an estimate."""

    def __init__(self, depth: int = 20, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Conv2d(channels if i else 1, channels, 3, padding=1)]
            layers += [nn.PReLU(channels)]
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def published(self, scaled: Tensor) -> Tensor:
        """Denoise frames scaled to 0 ... 1: (B, 1, H, W) -> (B, 1, H, W)."""
        return self.body(scaled)

    def forward(self, counts: Tensor, valid: Tensor) -> Tensor:
        """Estimate expected counts: (B, 1, H, W), (B, 1, H, W) -> (B, 1, H, W), >= 0."""
        stable = 2 * torch.sqrt(counts + 0.375)
        return ((stable + self.body(stable)) ** 2 / 4 - 0.375).clamp_min(0) * valid
