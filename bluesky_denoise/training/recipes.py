"""What decides the weights besides the data: settings, batches, loss and optimiser."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.training.data import Batch, sample_batch
from bluesky_denoise.training.losses import known_rate_loss, remainder_loss, variance_loss
from bluesky_denoise.training.pairs import PairSource

__all__ = ["FitSettings", "PhotonRecipe", "Recipe", "TensorBatch", "batch_loss"]

AWKWARD_FROM = 5 / 12
"""Share of the steps after which dead pixels are shown, and frames far off cost more."""

VARIANCE_WEIGHT = 0.3
"""Weight of the likelihood that trains the head for the variance, and nothing else."""


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
    """Highest rate of the optimiser."""
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is saved; 0: no average."""
    spread_weight: float = 2.0
    """What spreading costs, the noise that is left being 1: squared error alone would buy less
    noise with wider and lower peaks."""
    real_share: float = 0.4
    """Chance that a training frame is a measured one."""
    held_out_share: float = 0.2
    """Share of each run's frames, its last, that is not trained on but scored."""
    gap_frames: int = 10
    """Frames between both that are not used at all."""
    recipe: str = "default"
    """Name of the recipe in ``RECIPES``."""
    seed: int = 0
    """Seed of the weights, the scenes and the noise."""


@dataclass(frozen=True, eq=False)
class TensorBatch:
    """A `Batch` on the device."""

    counts: Tensor
    """(B, 1, H, W) float32, counts; 0 where masked."""
    target: Tensor
    """(B, 1, H, W) float32: expected counts, or counts of an independent exposure."""
    ratio: Tensor
    """(B,) float32: 0 for expected counts, else exposure of the target over the input's."""
    valid: Tensor
    """(B, 1, H, W) float32, 1 or 0."""

    @classmethod
    def of(cls, batch: Batch, device: str) -> "TensorBatch":
        """Move a batch to a device."""
        return cls(
            torch.from_numpy(batch.counts)[:, None].to(device),  # (B, H, W) -> (B, 1, H, W)
            torch.from_numpy(batch.target)[:, None].to(device),
            torch.from_numpy(batch.ratio).to(device),
            torch.from_numpy(~batch.mask)[:, None].to(device, torch.float32),
        )


class Recipe(Protocol):
    """How a network is trained.

    Batches depend on step and rank alone, so that a run that goes on sees what an unbroken
    one would have.
    """

    clip_norm: float
    """Largest norm of a step's gradient; longer ones are cut."""

    def check(self, sources: Sequence[PairSource]) -> None:
        """Raise `SettingsError` if this cannot be trained."""

    def batch(self, step: int, sources: Sequence[PairSource], rank: int, ranks: int) -> Batch:
        """Draw the batch of one step, for one of several processes."""

    def loss(self, model: nn.Module, batch: TensorBatch, step: int) -> Tensor:
        """Return the mean loss of a batch, in float32."""

    def stage(self, step: int) -> Hashable | None:
        """Name the stage of a step: the loss of a stage depends on nothing but the batch.

        None: it depends on the step as well.
        """

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Build the optimiser."""

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""


def batch_loss(
    estimate: Tensor,
    batch: TensorBatch,
    strict: float = 0.0,
    *,
    variance: Tensor | None = None,
    spread: Tensor | None = None,
    spread_weight: float = FitSettings.spread_weight,
) -> Tensor:
    """Return the mean loss of a batch.

    Parameters
    ----------
    estimate : (B, 1, H, W) expected counts, of the network
    batch : what it saw, and the truth
    strict : see `known_rate_loss`
    variance : (B, 1, H, W) squared error that the network expects, if it does
    spread : (B, 1, H, W) the target with its photons exchanged as those of the counts, if known
    spread_weight : what spreading costs
    """
    target, ratio, valid = batch.target, batch.ratio, batch.valid
    known = known_rate_loss(estimate, target, valid, strict, spread, spread_weight)
    left = remainder_loss(estimate, target, ratio.clamp_min(1e-3), valid)
    loss = torch.where(ratio > 0, left, known)
    if variance is not None:
        loss = loss + VARIANCE_WEIGHT * variance_loss(estimate, variance, target, ratio, valid)
    return loss.mean()


@dataclass(frozen=True)
class PhotonRecipe:
    """Ours: simulated scenes and measured pairs, Poisson losses, AdamW along a cosine."""

    settings: FitSettings
    clip_norm = 1.0

    def check(self, sources: Sequence[PairSource]) -> None:
        """Refuse sides that the networks cannot take."""
        sides = self.settings.sides_px
        if not sides or min(sides) < 32 or any(side % 16 for side in sides):
            raise SettingsError(
                f"{self.settings} cannot be fitted: sides must be multiples of 16, >= 32."
            )

    def batch(self, step: int, sources: Sequence[PairSource], rank: int, ranks: int) -> Batch:
        """Draw simulated scenes and measured pairs of one size."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, step, rank] if rank else [settings.seed, step])
        side = int(rng.choice(settings.sides_px))
        size = max(1, round(settings.pixels / side**2 / ranks))
        dead_share = 0.15 if self._awkward(step) else 0.0
        return sample_batch(size, side, rng, sources, settings.real_share, dead_share)

    def loss(self, model: nn.Module, batch: TensorBatch, step: int) -> Tensor:
        """Compare with expected counts, or with counts of an independent exposure."""
        strict = 0.5 if self._awkward(step) else 0.0
        if not getattr(getattr(model, "module", model), "tells_variance", False):
            estimate = model(batch.counts, batch.valid)
            with torch.autocast(batch.counts.device.type, enabled=False):
                return batch_loss(estimate.float(), batch, strict)
        found = model(batch.counts, batch.valid, batch.target)
        return batch_loss(
            found.counts,
            batch,
            strict,
            variance=found.variance,
            spread=found.spread,
            spread_weight=self.settings.spread_weight,
        )

    def stage(self, step: int) -> Hashable:
        """Tell whether frames far off cost more by now."""
        return self._awkward(step)

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(parameters, self.settings.learning_rate, weight_decay=1e-4)

    def rate(self, step: int) -> float:
        """Rise over 100 steps, fall along a cosine."""
        settings = self.settings
        warm = min(1.0, (step + 1) / min(100, settings.steps))
        return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))

    def _awkward(self, step: int) -> bool:
        return step >= AWKWARD_FROM * self.settings.steps
