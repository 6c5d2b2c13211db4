"""The fit loop: simulated scenes and thinned real frames in, weights with a card out."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bluesky_denoise.errors import CheckpointError, SettingsError
from bluesky_denoise.models import MODELS, build_model
from bluesky_denoise.models.checkpoint import load_checkpoint, save_checkpoint
from bluesky_denoise.training.data import Batch, RealFrames, read_frames, sample_batch
from bluesky_denoise.training.losses import known_rate_loss, remainder_loss

__all__ = ["FitSettings", "batch_loss", "fit"]

logger = logging.getLogger(__name__)

AWKWARD_FROM = 5 / 12
"""Share of the steps after which dead pixels are shown, and frames far off cost more."""
SAVE_EVERY = 250
"""Steps between two saved states."""


@dataclass(frozen=True)
class FitSettings:
    """What decides the weights, besides the data."""

    model: str = "photon_exchange"
    """Name of the network in ``MODELS``."""
    steps: int = 4000
    """Steps of the optimiser."""
    pixels: int = 4 * 128**2
    """Pixels per step, on average over the sides."""
    sides_px: tuple[int, ...] = (96, 128, 192)
    """Sides of the square training frames; each step draws one."""
    learning_rate: float = 2e-3
    """Highest rate of AdamW; it rises over 100 steps and falls along a cosine."""
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is saved."""
    real_share: float = 0.4
    """Chance that a training frame is a real one, thinned."""
    seed: int = 0
    """Seed of the weights, the scenes and the noise."""


def batch_loss(
    estimate: Tensor, target: Tensor, ratio: Tensor, valid: Tensor, strict: float = 0.0
) -> Tensor:
    """Return the mean loss of a batch; ``ratio`` 0 marks targets that are expected counts."""
    known = known_rate_loss(estimate, target, valid, strict)
    left = remainder_loss(estimate, target, ratio.clamp_min(1e-3), valid)
    return torch.where(ratio > 0, left, known).mean()


def fit(
    output: Path,
    frames: Sequence[Path] = (),
    settings: FitSettings | None = None,
    *,
    start_from: str | Path | None = None,
    card: dict[str, object] | None = None,
    threads: int | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Path:
    """Train a network.

    A run that was stopped goes on from ``output`` with suffix ``.resume`` if that is
    there and was made with the same settings.

    Parameters
    ----------
    output : path of the weights, ``.safetensors``; the card is written beside it
    frames : HDF5 files of raw photon counts; none: simulated scenes only
    settings : defaults where None
    start_from : path or name of weights to start from instead of random ones
    card : entries to add to the card
    threads : CPU threads of torch; None leaves them as they are
    report : called after each step with its number and loss

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    SettingsError
        If a setting is out of range.
    CheckpointError
        If the weights to start from are damaged, or belong to another network.
    """
    settings = settings or FitSettings()
    sides = settings.sides_px
    if settings.steps < 1 or not sides or min(sides) < 32 or any(side % 16 for side in sides):
        raise SettingsError(
            f"{settings} cannot be fitted: steps must be >= 1, sides multiples of 16, >= 32."
        )
    if threads is not None:
        torch.set_num_threads(threads)
    real = [read_frames(Path(path)) for path in frames]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(settings.seed)
    model = _fresh_model(settings.model, start_from)
    model = model.to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=1e-4)
    resume = output.with_suffix(".resume")
    first = _load_state(resume, settings, model, average, optimiser)
    for step in range(first, settings.steps):
        loss = _step(step, settings, real, model, optimiser, device)
        # A short average at first, so that the random start is forgotten.
        decay = min(settings.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        if report is not None:
            report(step, loss)
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < settings.steps:
            _save_state(resume, settings, step + 1, model, average, optimiser)
            _save(output, average, settings, real, card, step + 1)
    _save(output, average, settings, real, card, settings.steps)
    resume.unlink(missing_ok=True)
    return output


def _fresh_model(name: str, start_from: str | Path | None) -> nn.Module:
    if start_from is None:
        return build_model(name)
    model, found = load_checkpoint(start_from)
    if found["model"] != name:
        raise CheckpointError(
            f"Weights {start_from} belong to network {found['model']!r}, not {name!r}; "
            f"networks: {sorted(MODELS)}."
        )
    return model.train()


def _rate(step: int, settings: FitSettings) -> float:
    warm = min(1.0, (step + 1) / min(100, settings.steps))
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def _step(
    step: int,
    settings: FitSettings,
    real: list[RealFrames],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    device: str,
) -> float:
    # Seeded by step, so that a run that goes on sees what an unbroken one would have.
    rng = np.random.default_rng([settings.seed, step])
    side = int(rng.choice(settings.sides_px))
    size = max(1, round(settings.pixels / side**2))
    awkward = step >= AWKWARD_FROM * settings.steps
    dead_share = 0.15 if awkward else 0.0
    batch: Batch = sample_batch(size, side, rng, real, settings.real_share, dead_share)
    counts = torch.from_numpy(batch.counts)[:, None].to(device)  # (B, S, S) -> (B, 1, S, S)
    target = torch.from_numpy(batch.target)[:, None].to(device)
    valid = torch.from_numpy(~batch.mask)[:, None].to(device, torch.float32)
    ratio = torch.from_numpy(batch.ratio).to(device)
    for group in optimiser.param_groups:
        group["lr"] = _rate(step, settings)
    loss = batch_loss(model(counts, valid), target, ratio, valid, 0.5 if awkward else 0.0)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if torch.isfinite(norm):
        optimiser.step()
    else:
        logger.warning("Step %d skipped: its gradient is not finite.", step)
    return loss.item()


def _save(
    output: Path,
    average: nn.Module,
    settings: FitSettings,
    real: list[RealFrames],
    card: dict[str, object] | None,
    steps: int,
) -> None:
    entries: dict[str, object] = {
        "model": settings.model,
        "training": {
            "steps": steps,
            "settings": vars(settings).copy(),
            "real_frames": [f"{r.name} ({len(r.counts)})" for r in real],
        },
    }
    save_checkpoint(average, output, entries | (card or {}))


def _save_state(
    path: Path,
    settings: FitSettings,
    step: int,
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> None:
    state = {
        "settings": vars(settings).copy(),
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    part.replace(path)


def _load_state(
    path: Path,
    settings: FitSettings,
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> int:
    """Return the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["settings"] != vars(settings):
        raise CheckpointError(
            f"{path} belongs to a run with other settings, {state['settings']}; remove it to "
            "start afresh."
        )
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    logger.info("Going on from step %d of %d.", state["step"], settings.steps)
    return int(state["step"])
