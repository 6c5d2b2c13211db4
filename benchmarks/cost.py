"""What a network costs: multiplications per pixel, counted while it runs."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["macs_per_pixel", "parameters"]


def macs_per_pixel(network: nn.Module, side_px: int = 128) -> float:
    """Count multiply-accumulate operations of convolutions and products of matrices.

    Parameters
    ----------
    network : takes and returns (B, 1, H, W)
    side_px : of the frame that is tried, a multiple of what the network needs
    """
    counts = torch.ones(1, 1, side_px, side_px)
    device = next(network.parameters()).device
    counts: Tensor = counts.to(device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(counts, torch.ones_like(counts))
    # The counter takes a multiplication and an addition for two operations.
    return counter.get_total_flops() / 2 / side_px**2


def parameters(network: nn.Module) -> int:
    """Count trainable numbers."""
    return sum(p.numel() for p in network.parameters())
