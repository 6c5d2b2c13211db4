"""Error bars that hold: intervals of a trained network, fitted to fresh frames."""

from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor, nn

from bluesky_denoise.models.error_head import level as place_of
from bluesky_denoise.models.photon_exchange import PhotonExchange
from bluesky_denoise.training.gradients import Gradients
from bluesky_denoise.training.recipes import TensorBatch

__all__ = ["CONFIDENCES", "STEPS", "TOLD", "calibrate"]

STEPS = 2500
"""Steps in which the head for the variance is fitted."""
LEARNING_RATE = 5e-3
TOLD = 150
"""Batches on which levels and wider intervals are corrected."""
CONFIDENCES = (0.5, 0.68, 0.8, 0.9, 0.95, 0.99)
"""Confidences whose factors go into the card."""
ONE_SIGMA = 0.6827
LEAST = 1e-12


def calibrate(
    model: PhotonExchange,
    draw: Callable[[int], TensorBatch],
    steps: int = STEPS,
    told: int = TOLD,
    report: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Fit the error bars of a network that is trained, and leave its estimates alone.

    The head for the variance is fitted by quantile regression: the true rate shall be
    within one ``sigma`` in 68.3 % of pixels, whatever the network sees there. On further
    frames a correction by the level of counts is found, and how much wider other intervals
    must be than a normal distribution's, as errors have longer tails.

    Parameters
    ----------
    model : the network
    draw : number of a batch -> batch; frames that the training has not seen
    steps : steps of the fit
    told : batches that levels and wider intervals are told from
    report : called after each step with the share that is done, 0 to 1

    Returns
    -------
    dict
        Confidence -> factor on an interval of a normal distribution; empty if no frame
        has a known rate.

    References
    ----------
    Koenker & Bassett (1978), doi:10.2307/1913643 (quantile regression)
    """
    head = model.error.learnt()
    needed = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(head, LEARNING_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    gradients = Gradients(
        lambda batch, step: _quantile_loss(model, batch), head, record=head[0].is_cuda
    )
    for step in range(steps):
        gradients(draw(step), step)
        torch.nn.utils.clip_grad_norm_(head, 1.0)
        optimiser.step()
        falling.step()
        if report is not None:
            report((step + 1) / steps)
    for parameter, was_needed in needed:
        parameter.requires_grad_(was_needed)
    level, z = _deviates(model, draw, range(steps, steps + told))
    if not len(z):
        return {}
    return _stretch(_correct(model.error.levels, level, z))


def _errors(model: PhotonExchange, batch: TensorBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return estimates, absolute errors and what is expected of them, one standard deviation.

    A target that was counted has noise of its own.
    """
    known = (batch.ratio == 0)[:, None, None, None]
    scale = torch.where(known, 1.0, 1 / batch.ratio.clamp_min(1e-3)[:, None, None, None])
    found = model.estimate(batch.counts, batch.valid)
    noise = torch.where(known, 0.0, found.counts * scale)
    error = (found.counts - batch.target * scale).abs()
    return found.counts, error, torch.sqrt(found.variance + noise + LEAST)


def _quantile_loss(model: PhotonExchange, batch: TensorBatch) -> Tensor:
    estimate, error, sigma = _errors(model, batch)
    # Quantiles of logarithms are those of the errors.
    beyond = torch.log(error + 1e-3 * sigma.detach()) - torch.log(sigma)
    each = beyond * (ONE_SIGMA - (beyond < 0).to(beyond.dtype))
    # Each half decade of counts has the same weight.
    steps = _steps(torch.log10(estimate + 1e-3))
    number = batch.valid.new_zeros(17).scatter_add_(0, steps.flatten(), batch.valid.flatten())
    number = number.clamp_min(200)
    weight = batch.valid / number[steps]
    return (each * weight).sum() / weight.sum().clamp_min(1e-9)


@torch.no_grad()
def _deviates(
    model: PhotonExchange, draw: Callable[[int], TensorBatch], numbers: range
) -> tuple[Tensor, Tensor]:
    """Return log10 of the counts, and error over sigma, of pixels whose true rate is known.

    Measured frames count where the noise of their target is less than a fourth of the
    variance. Of each frame up to 2000 pixels of each level are taken, so that none decides
    alone.
    """
    levels, deviates = [torch.empty(0)], [torch.empty(0)]
    # Of its own: a run that goes on after a kill must end as an unbroken one.
    rng = torch.Generator().manual_seed(0)
    for number in numbers:
        batch = draw(number)
        estimate, error, sigma = _errors(model, batch)
        for i, ratio in enumerate(batch.ratio.tolist()):
            kept = batch.valid[i] > 0
            if ratio > 0:
                kept &= estimate[i] / ratio < 0.25 * sigma[i] ** 2
            level, z = torch.log10(estimate[i][kept] + 1e-3), (error[i] / sigma[i])[kept]
            order = torch.randperm(len(z), generator=rng)
            level, z = level.cpu()[order], z.cpu()[order]
            for step in _steps(level).unique():
                chosen = torch.nonzero(_steps(level) == step).flatten()[:2000]
                levels.append(level[chosen])
                deviates.append(z[chosen])
    return torch.cat(levels), torch.cat(deviates)


def _steps(level: Tensor) -> Tensor:
    """Return the number of the half decade of counts."""
    return (2 * level + 6).long().clamp(0, 16)


@torch.no_grad()
def _correct(levels_of: nn.Parameter, level: Tensor, z: Tensor) -> Tensor:
    """Make one sigma hold 68.3 % at every level; return the deviates after that."""
    steps = _steps(level)
    places, factors, weights = [], [], []
    for step in steps.unique():
        found = z[steps == step]
        places.append(level[steps == step].mean())
        factors.append(torch.log(torch.quantile(found, ONE_SIGMA).clamp_min(1e-3)))
        weights.append(min(len(found), 3000) ** 0.5)
    place, weight = place_of(torch.stack(places)), torch.tensor(weights)
    powers = torch.stack([place**k for k in range(len(levels_of))], 1) * weight[:, None]
    # A little ridge: levels without frames must not run away.
    square = powers.T @ powers + 0.1 * torch.eye(len(levels_of))
    fitted = torch.linalg.solve(
        square.double(), (powers.T @ (torch.stack(factors) * weight)).double()
    )
    fitted = (1000 * fitted).round() / 1000  # the last bits of a solution are not reproducible
    levels_of.add_((2 * fitted).to(levels_of))  # of variances
    told = torch.zeros_like(level)
    for k, f in enumerate(fitted):
        told += float(f) * place_of(level) ** k
    return z / torch.exp(told)


def _stretch(z: Tensor) -> dict[str, float]:
    """Say how wide intervals must be, against those of a normal distribution."""
    # As many as `torch.quantile` takes; neighbours in the list are of one frame.
    z = z[:: 1 + len(z) // 1_000_000]
    factors = {}
    for confidence in CONFIDENCES:
        normal = NormalDist().inv_cdf(0.5 + confidence / 2)
        factors[str(confidence)] = round(float(torch.quantile(z, confidence)) / normal, 3)
    return factors
