"""Networks, one file each, and the registry of their builders."""

from collections.abc import Callable
from functools import partial

from torch import nn

from bluesky_denoise.errors import ModelNotFound
from bluesky_denoise.models.blur_bank import BlurBank
from bluesky_denoise.models.irunet import IRUNet
from bluesky_denoise.models.paper_scaled import PaperScaled
from bluesky_denoise.models.photon_exchange import PhotonExchange
from bluesky_denoise.models.unet import UNet
from bluesky_denoise.models.vdsr import VDSR

__all__ = ["MODELS", "build_model"]

MODELS: dict[str, Callable[[], nn.Module]] = {
    "blur_bank": BlurBank,
    "irunet": IRUNet,
    "irunet_paper": partial(PaperScaled, IRUNet),
    "photon_exchange": PhotonExchange,
    "unet": UNet,
    "vdsr": VDSR,
    "vdsr_paper": partial(PaperScaled, VDSR),
}
"""Name of a network -> what builds it. All take and return (B, 1, H, W) counts and mask."""


def build_model(name: str) -> nn.Module:
    """Build a network with random weights.

    Raises
    ------
    ModelNotFound
        If no network has that name.
    """
    try:
        builder = MODELS[name]
    except KeyError:
        raise ModelNotFound(
            f"There is no network {name!r}; there are {', '.join(sorted(MODELS))}."
        ) from None
    return builder()
