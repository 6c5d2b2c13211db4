"""The recipe of Oppliger et al. (2024), to be repeated and compared with."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bluesky_denoise.errors import FrameShapeError, SettingsError
from bluesky_denoise.models.paper_scaled import MEAN
from bluesky_denoise.training.data import Batch, stack_pairs
from bluesky_denoise.training.ms_ssim import LEAST_SIDE_PX, ms_ssim
from bluesky_denoise.training.pairs import Pair, PairSource, RecordedPairs, Window
from bluesky_denoise.training.recipes import FitSettings, TensorBatch

__all__ = ["PaperRecipe", "paper_loss", "paper_settings"]

BATCH, EPOCHS, RATE = 8, 100, 5e-4
MODELS = ("irunet_paper", "vdsr_paper")
MAE_SHARE = 0.3
MEANS = (0.5 * MEAN, 1.5 * MEAN)
"""Short and long frame are each scaled at random to a mean in this range."""


def paper_settings(
    sources: Sequence[PairSource], model: str = MODELS[0], epochs: int = EPOCHS
) -> FitSettings:
    """Return the settings of the paper for training pairs, 100 epochs in batches of 8.

    Parameters
    ----------
    sources : what is trained on, without the frames that are held out
    model : ``"irunet_paper"`` or ``"vdsr_paper"``
    epochs : how often each pair is seen
    """
    pairs = sum(len(source) for source in sources if isinstance(source, RecordedPairs))
    return FitSettings(
        model=model,
        steps=max(1, epochs * (pairs // BATCH)),
        learning_rate=RATE,
        average=0.0,
        recipe="paper",
    )


def paper_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Return 0.3 MAE + 0.7 (1 - MS-SSIM) of images scaled to 0 ... 1, (B, 1, H, W)."""
    error = (estimate - target).abs().mean()
    return MAE_SHARE * error + (1 - MAE_SHARE) * (1 - ms_ssim(estimate, target).mean())


@dataclass(frozen=True)
class PaperRecipe:
    """Whole frames, flipped left to right at random, each scaled at random and cut off at 1.

    Adam with AMSGrad at a constant rate, no average of the weights.
    """

    settings: FitSettings
    clip_norm = math.inf

    def check(self, sources: Sequence[PairSource]) -> None:
        """Refuse other networks, fewer pairs than a batch, and frames too small."""
        if self.settings.model not in MODELS:
            raise SettingsError(
                f"The recipe of the paper trains {' or '.join(MODELS)}, not "
                f"{self.settings.model!r}."
            )
        recorded = [source for source in sources if isinstance(source, RecordedPairs)]
        pairs = sum(len(source) for source in recorded)
        if len(recorded) < len(sources) or pairs < BATCH:
            raise SettingsError(
                f"The recipe of the paper has {pairs} measured pairs; expected {BATCH} or more, "
                "and no other sources."
            )
        shape = _shape(recorded)
        if min(shape) < LEAST_SIDE_PX:
            raise FrameShapeError(
                f"The recipe of the paper needs frames of {LEAST_SIDE_PX} pixels a side or more; "
                f"the largest that fits all is {shape}."
            )

    def batch(self, step: int, sources: Sequence[PairSource], rank: int, ranks: int) -> Batch:
        """Take the next pairs of the epoch's order."""
        recorded = [source for source in sources if isinstance(source, RecordedPairs)]
        where = [(source, i) for source in recorded for i in range(len(source))]
        epoch, turn = divmod(step, len(where) // BATCH)
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(where))
        mine = order[turn * BATCH : (turn + 1) * BATCH][rank::ranks]
        rng = np.random.default_rng([self.settings.seed, step, rank, 1])
        shape = _shape(recorded)
        chosen = (where[at] for at in mine)
        return stack_pairs([_frame(source, i, shape, rng) for source, i in chosen])

    def loss(self, model: nn.Module, batch: TensorBatch, step: int) -> Tensor:
        """Compare scaled frames."""
        rng = np.random.default_rng([self.settings.seed, step, 2])
        counts, target = (_scaled(x, batch.valid, rng) for x in (batch.counts, batch.target))
        estimate = model(counts, batch.valid, scaled=True) * batch.valid
        with torch.autocast(counts.device.type, enabled=False):
            return paper_loss(estimate.float(), target)

    def stage(self, step: int) -> None:
        """Frames are scaled at random, anew in each step."""

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam with AMSGrad, as TensorFlow has it."""
        return torch.optim.Adam(parameters, self.settings.learning_rate, eps=1e-7, amsgrad=True)

    def rate(self, step: int) -> float:
        """Return the same at every step."""
        return self.settings.learning_rate


def _shape(sources: Sequence[RecordedPairs]) -> tuple[int, int]:
    """Return the largest frame, in steps of 16 pixels, that fits all sources."""
    high, wide = (min(source.shape[axis] for source in sources) // 16 * 16 for axis in (0, 1))
    return high, wide


def _frame(
    source: RecordedPairs, index: int, shape: tuple[int, int], rng: np.random.Generator
) -> Pair:
    """Return the middle of a frame, flipped left to right in half of the cases."""
    row, col = ((side - part) // 2 for side, part in zip(source.shape, shape, strict=True))
    pair = source.pair(index, Window(row, col, *shape), rng)
    if rng.random() < 0.5:
        return pair
    images = (np.fliplr(x) for x in (pair.counts, pair.target, pair.mask))
    counts, target, mask = images
    return Pair(counts, target, pair.ratio, mask, pair.frame)


def _scaled(images: Tensor, valid: Tensor, rng: np.random.Generator) -> Tensor:
    """Scale each frame to a random mean over its valid pixels, and cut off at 1."""
    means = torch.from_numpy(rng.uniform(*MEANS, len(images)).astype(np.float32))
    means = means.to(images.device)[:, None, None, None]
    found = (images * valid).sum((1, 2, 3), keepdim=True).clamp_min(1e-6)
    return (images * means * valid.sum((1, 2, 3), keepdim=True) / found).clamp(0, 1) * valid
