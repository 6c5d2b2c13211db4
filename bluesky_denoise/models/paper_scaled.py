"""Networks on frames that are scaled to one total, as Oppliger et al. (2024) train them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bluesky_denoise.models.irunet import IRUNet
from bluesky_denoise.models.vdsr import VDSR

__all__ = ["MEAN", "PaperScaled"]

MEAN = 10_000 / (192 * 240)
"""Mean of a scaled frame: a total of 10,000 over the 192 x 240 pixels of the paper."""


class PaperScaled(nn.Module):
    """A published network between the scaling of the paper and its inverse.

    A frame is divided by its total, multiplied so that its mean over valid pixels is `MEAN`,
    and cut off at 1; the result is given the total of the frame again. Whatever the network
    does to absolute intensities is lost thereby, and so is what was cut off. The scale is
    that of the whole frame, so tiles and frames differ.

    Parameters
    ----------
    build : builds the network

    References
    ----------
    Oppliger et al. (2024), doi:10.1038/s42256-024-00790-1, repository ``joppli/XRD_denoising``.
    """

    def __init__(self, build: Callable[[], IRUNet | VDSR]) -> None:
        super().__init__()
        self.network = build()
        self.multiple = self.network.multiple
        self.field_px = self.network.field_px
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, counts: Tensor, valid: Tensor, scaled: bool = False) -> Tensor:
        """Estimate expected counts.

        Parameters
        ----------
        counts : (B, 1, H, W) counts, 0 where masked; or frames scaled to 0 ... 1
        valid : (B, 1, H, W), 1 or 0
        scaled : the frames are scaled, and so is the result: for training

        Returns
        -------
        Tensor
            (B, 1, H, W), >= 0, 0 where masked; its total is that of the counts.
        """
        if scaled:
            return self.network.published(counts)
        total = counts.sum((1, 2, 3), keepdim=True)
        scale = MEAN * valid.sum((1, 2, 3), keepdim=True) / total.clamp_min(1e-6)
        estimate = self.network.published((counts * scale).clamp(0, 1)).float()
        estimate = estimate.clamp_min(0) * valid
        found = estimate.sum((1, 2, 3), keepdim=True)
        return torch.where(found > 0, estimate * (total / found.clamp_min(1e-12)), counts)
