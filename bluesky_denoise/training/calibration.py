"""Error bars that hold: intervals of a trained network, fitted to fresh frames."""

from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor, nn

from bluesky_denoise.training.recipes import TensorBatch

__all__ = ["CONFIDENCES", "calibrate"]

STEPS = 1500
"""Steps in which the head for the variance is fitted."""
LEARNING_RATE = 2e-3
TOLD = 150
"""Batches that the factors of wider intervals are told from."""
CONFIDENCES = (0.5, 0.68, 0.8, 0.9, 0.95, 0.99)
"""Confidences whose factors go into the card."""
ONE_SIGMA = 0.6827
LEAST = 1e-12


def calibrate(
    model: nn.Module, draw: Callable[[int], TensorBatch], steps: int = STEPS
) -> dict[str, float]:
    """Fit the error bars of a network that is trained, and leave its estimates alone.

    The head for the variance is fitted by quantile regression: the true rate shall be
    within one ``sigma`` in 68.3 % of pixels, whatever the network sees there. Errors have
    longer tails than a normal distribution; how much wider other intervals must be is then
    counted on further frames.

    Parameters
    ----------
    model : network with ``estimate`` and the layers ``variance_in`` and ``variance_out``
    draw : number of a batch -> batch; frames that the training has not seen
    steps : steps of the fit

    Returns
    -------
    dict
        Confidence -> factor on an interval of a normal distribution.

    References
    ----------
    Koenker & Bassett (1978), doi:10.2307/1913643 (quantile regression)
    """
    head = [*model.variance_in.parameters(), *model.variance_out.parameters()]
    needed = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(head, LEARNING_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        loss = _quantile_loss(model, draw(step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head, 1.0)
        optimiser.step()
        falling.step()
    for parameter, was_needed in needed:
        parameter.requires_grad_(was_needed)
    return _stretch(model, draw, steps)


def _errors(model: nn.Module, batch: TensorBatch) -> tuple[Tensor, Tensor]:
    """Return absolute errors and what is expected of them, one standard deviation.

    A target that was counted has noise of its own.
    """
    known = (batch.ratio == 0)[:, None, None, None]
    scale = torch.where(known, 1.0, 1 / batch.ratio.clamp_min(1e-3)[:, None, None, None])
    found = model.estimate(batch.counts, batch.valid)
    noise = torch.where(known, 0.0, found.counts * scale)
    error = (found.counts - batch.target * scale).abs()
    return error, torch.sqrt(found.variance + noise + LEAST)


def _quantile_loss(model: nn.Module, batch: TensorBatch) -> Tensor:
    error, sigma = _errors(model, batch)
    # Quantiles of logarithms are those of the errors, and every level weighs alike.
    beyond = torch.log(error + 1e-3 * sigma.detach()) - torch.log(sigma)
    each = beyond * (ONE_SIGMA - (beyond < 0).to(beyond.dtype))
    valid = batch.valid
    return ((each * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3)).clamp_min(1)).mean()


@torch.no_grad()
def _stretch(model: nn.Module, draw: Callable[[int], TensorBatch], first: int) -> dict[str, float]:
    """Count how wide intervals must be; every frame with a known rate weighs alike."""
    drawn = []
    for number in range(first, first + TOLD):
        batch = draw(number)
        error, sigma = _errors(model, batch)
        for i in torch.nonzero(batch.ratio == 0).flatten().tolist():
            kept = batch.valid[i] > 0
            if kept.any():
                z = error[i][kept] / sigma[i][kept]
                drawn.append(z[torch.randperm(len(z))[:1000]])
    z = torch.cat(drawn)
    found = torch.quantile(z[torch.randperm(len(z))[:1_000_000]], torch.tensor(CONFIDENCES))
    factors = {}
    for confidence, quantile in zip(CONFIDENCES, found.tolist(), strict=True):
        normal = NormalDist().inv_cdf(0.5 + confidence / 2)
        factors[str(confidence)] = round(quantile / normal, 3)
    return factors
