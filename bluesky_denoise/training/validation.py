"""How well a network predicts counts that were held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bluesky_denoise.errors import FrameValueError
from bluesky_denoise.evaluation.baselines import best_gaussian
from bluesky_denoise.evaluation.metrics import poisson_deviance
from bluesky_denoise.training.data import SimulatedScenes
from bluesky_denoise.training.pairs import (
    Pair,
    PairSource,
    RecordedPairs,
    Repeats,
    random_window,
)

__all__ = ["LEAST_FRAMES", "LEGEND", "Comparison", "HeldOut"]

LEGEND = (
    "Poisson deviance of held-out counts in percent above that of the best Gaussian, whose width "
    "is chosen on those counts; below 0 is better than any Gaussian"
)
LEAST_FRAMES = 4
"""Independent frames, from which on the error of a comparison is known."""
LEAST_DEVIANCE = 1e-6
"""Of the best Gaussian, for each valid pixel with counts: less than noise can leave."""
SIGMAS = (0.0, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 16.0)


@dataclass(frozen=True)
class Comparison:
    """The deviance of one network less that of another, on the same photons."""

    difference: float
    """Percent of the best Gaussian's deviance; below 0: the first is better."""
    error: float
    """Standard error of the difference, widened where few frames tell it, so that two of it hold
    as often as always; infinite with fewer than four independent frames."""

    @property
    def better(self) -> bool:
        """Whether the first is better by more than two standard errors."""
        return self.difference + 2 * self.error < 0

    @property
    def worse(self) -> bool:
        """Whether the first is worse by more than two standard errors."""
        return self.difference - 2 * self.error > 0


class HeldOut:
    """Windows of frames that are never trained on, and their best Gaussian.

    Parameters
    ----------
    sources : held-out runs; none: simulated scenes
    windows : how many pairs are drawn, spread over the runs and their frames
    shape : of each window, multiples of 16
    seed : of windows and thinning

    Raises
    ------
    FrameValueError
        If all windows are dark, or a Gaussian predicts the counts of one without any error.
    """

    def __init__(
        self,
        sources: Sequence[PairSource],
        windows: int = 24,
        shape: tuple[int, int] = (128, 128),
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng([seed, 2**31])  # no step of a fit
        sources = sources or [SimulatedScenes()]
        self.names = [source.name for source in sources]
        """Where the windows are from."""
        # The sum of all other repeats would be a target whose noise all windows share.
        sources = [s.two_by_two() if isinstance(s, Repeats) else s for s in sources]
        drawn = []
        for i in range(windows):
            which, turn = i % len(sources), i // len(sources)
            pair = _draw(sources[which], turn, -(-windows // len(sources)), shape, rng)
            if pair.target[~pair.mask].sum() > 0:
                drawn.append((which, pair))
        self._pairs = [pair for _, pair in drawn]
        self._groups = [(which, pair.frame) for which, pair in drawn]
        if not drawn:
            raise FrameValueError(
                f"There are no counts in {windows} windows of held-out frames of "
                f"{', '.join(self.names)}; expected frames with light. Was the scan aborted? Hold "
                "out another run, or another share of the frames."
            )
        self._gaussian = np.array([_gaussian_deviance(pair) for pair in self._pairs])
        for (which, pair), deviance in zip(drawn, self._gaussian, strict=True):
            if deviance <= LEAST_DEVIANCE * np.mean(pair.target[~pair.mask] > 0):
                raise FrameValueError(
                    f"{self.names[which]}: a Gaussian predicts the held-out counts of frame "
                    f"{pair.frame} without any error; expected counts with noise of their own."
                )

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def frames(self) -> int:
        """How many independent frames the windows are of; of repeats, how many pairs."""
        return len(set(self._groups))

    def scores(self, model: nn.Module, device: str = "cpu") -> np.ndarray:
        """Score a network on each window.

        Returns
        -------
        numpy.ndarray
            (n,) deviance in percent above that of the best Gaussian.
        """
        was_training = model.training
        model.eval()
        found = np.array([_deviance(_estimate(model, p, device), p) for p in self._pairs])
        model.train(was_training)
        return 100 * (found / self._gaussian - 1)

    def score(self, model: nn.Module, device: str = "cpu") -> float:
        """Return the mean of `scores`."""
        return float(self.scores(model, device).mean())

    def compare(self, first: np.ndarray, second: np.ndarray) -> Comparison:
        """Compare the `scores` of two networks.

        Windows of one frame share photons and scene: the error is that of frames, each with
        the sum of its windows. With fewer than four frames it is not known, thus infinite.
        """
        difference = first - second
        mean = float(difference.mean())
        groups = sorted(set(self._groups))
        labels = [groups.index(group) for group in self._groups]
        number = len(groups)
        if number < LEAST_FRAMES:
            return Comparison(mean, float("inf"))
        sums = np.bincount(labels, difference - mean)
        squares = number / (number - 1) * float(np.square(sums).sum())
        error = float(np.sqrt(squares)) / len(difference)
        return Comparison(mean, error * _student(number - 1))


def _student(freedom: int) -> float:
    """Return how much wider than two standard errors of a normal distribution Student's t is.

    References
    ----------
    Abramowitz & Stegun (1972), 26.7.5
    """
    return 1 + 1.25 / freedom + 1.53125 / freedom**2 + 1.4297 / freedom**3


def _draw(
    source: PairSource,
    turn: int,
    turns: int,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> Pair:
    """Draw a pair that is counts on both sides, frames of a run in turn."""
    if isinstance(source, RecordedPairs):
        index = turn * len(source) // turns if turns < len(source) else turn % len(source)
        pair = source.pair(index, random_window(source.shape, shape, rng), rng)
    else:
        pair = source.draw(shape, rng)
    if pair.ratio > 0:
        return pair
    return Pair(pair.counts, rng.poisson(pair.target), 1.0, pair.mask, turn)


def _deviance(estimate: np.ndarray, pair: Pair) -> float:
    return poisson_deviance(estimate * pair.ratio, pair.target, pair.mask)


def _gaussian_deviance(pair: Pair) -> float:
    counts = np.where(pair.mask, 0, pair.counts)
    estimate, _ = best_gaussian(counts, lambda x: _deviance(x, pair), pair.mask, SIGMAS)
    return _deviance(estimate, pair)


@torch.inference_mode()
def _estimate(model: nn.Module, pair: Pair, device: str) -> np.ndarray:
    counts = np.where(pair.mask, 0, pair.counts).astype(np.float32)
    valid = (~pair.mask).astype(np.float32)
    tensors = (torch.from_numpy(x)[None, None].to(device) for x in (counts, valid))
    estimate = model(*tensors)  # (H, W) -> (1, 1, H, W)
    estimate = estimate[0] if isinstance(estimate, tuple) else estimate
    return estimate[0, 0].double().cpu().numpy()
