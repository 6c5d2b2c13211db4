"""Pairs to learn from: counts to denoise, and independent counts of the same scene."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from bluesky_denoise.errors import FrameShapeError, FrameValueError
from bluesky_denoise.photons.thinning import thin
from bluesky_denoise.support.digests import frame_digests

__all__ = [
    "MeasuredPairs",
    "Pair",
    "PairSource",
    "RecordedPairs",
    "Repeats",
    "ThinnedFrames",
    "Window",
    "random_window",
]

LEAST_MEAN = 1e-3
"""Counts per pixel: frames are thinned down to this."""
LEAST_LIT = 30
"""Valid pixels with counts, from which on two frames are the same by no chance."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Counts to denoise, and what is known about their expectation."""

    counts: np.ndarray
    """(H, W) counts to denoise."""
    target: np.ndarray
    """(H, W) counts of an independent exposure, or the expected counts of this one."""
    ratio: float
    """Exposure of the target over that of the counts; 0: the target is expected counts."""
    mask: np.ndarray
    """(H, W) bool, True where invalid."""
    frame: int = 0
    """Number of the frame in its run; pairs of one frame are not independent."""


class PairSource(Protocol):
    """Anything that pairs can be drawn from."""

    @property
    def name(self) -> str:
        """Where they come from; goes into the card of the weights."""

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Pair:
        """Return a pair at random, its images of that shape."""


@dataclass(frozen=True)
class Window:
    """A rectangle of a frame, binned by ``step`` pixels; what is outside is masked."""

    row: int
    col: int
    height: int
    """Rows of the result."""
    width: int
    """Columns of the result."""
    step: int = 1
    """Pixels along each axis that are summed into one."""

    def counts(self, image: np.ndarray) -> np.ndarray:
        """Cut counts, with zeros outside: (H, W) -> (height, width)."""
        kind = np.int64 if image.dtype.kind in "biu" else np.float64
        cut, pad = self._cut(image.astype(kind, copy=False))
        cut = np.pad(cut, pad)
        return cut if self.step == 1 else self._binned(cut).sum((1, 3))

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Cut a mask, invalid outside: (H, W) -> (height, width)."""
        cut, pad = self._cut(mask)
        cut = np.pad(cut, pad, constant_values=True)
        return cut if self.step == 1 else np.any(self._binned(cut), axis=(1, 3))

    def _cut(self, image: np.ndarray) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
        high, wide = self.height * self.step, self.width * self.step
        cut = image[self.row : self.row + high, self.col : self.col + wide]
        return cut, ((0, high - cut.shape[0]), (0, wide - cut.shape[1]))

    def _binned(self, cut: np.ndarray) -> np.ndarray:
        return cut.reshape(self.height, self.step, self.width, self.step)


def random_window(
    frame: tuple[int, int], shape: tuple[int, int], rng: np.random.Generator
) -> Window:
    """Place a window in a frame at random, binned by two pixels now and then."""
    (height, width), (high, wide) = frame, shape
    fits = height >= 2 * high and width >= 2 * wide
    step = 2 if fits and rng.random() < 0.15 else 1
    row = int(rng.integers(max(height - step * high, 0) + 1))
    col = int(rng.integers(max(width - step * wide, 0) + 1))
    return Window(row, col, high, wide, step)


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordedPairs(ABC):
    """Pairs of measured frames of one run, in the order they were taken."""

    counts: np.ndarray
    """(n, H, W) counts to denoise."""
    mask: np.ndarray
    """(H, W) bool, True where invalid."""
    name: str
    """Where they come from."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the run: file, detector, exposure, licence."""
    first: int = 0
    """Number of the first frame in the whole run."""
    per_point: int = 1
    """Frames of one scene that follow each other, which a split keeps together."""
    counts_digests: tuple[str, ...] = ()
    """(n) `frame_digests` before pixels were masked; without them, those of ``counts``."""

    kind: ClassVar[str]
    """How the pairs are made, in a word or two."""
    least = 1
    """Frames that a block must have."""
    changing = True
    """Whether neighbours differ by more than noise, so that a split needs a gap."""

    def __post_init__(self) -> None:
        if self.counts.ndim != 3 or self.mask.shape != self.counts.shape[1:]:
            raise FrameShapeError(
                f"{self.name} has frames {self.counts.shape} and mask {self.mask.shape}; "
                "expected (n, H, W), (H, W)."
            )
        if len(self.counts) < self.least:
            raise FrameShapeError(
                f"{self.name} has {len(self.counts)} frames; expected {self.least} or more."
            )
        self._add_digests("counts")

    def _add_digests(self, what: str) -> None:
        if not getattr(self, f"{what}_digests"):
            object.__setattr__(self, f"{what}_digests", frame_digests(getattr(self, what)))

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.counts.shape[1], self.counts.shape[2]

    def block(self, first: int, last: int) -> Self:
        """Return frames ``first`` to ``last - 1`` alone."""
        return replace(self, first=self.first + first, **self._arrays(slice(first, last)))

    @property
    def digests(self) -> tuple[str, ...]:
        """A hash of each frame, and of each target that was measured, masked pixels included."""
        return self.counts_digests

    @cached_property
    def known_by(self) -> frozenset[str]:
        """Those of frames with counts enough to be known again in another source."""
        return frozenset(d for d, frame in self._frames() if self._is_lit(frame))

    def _frames(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each frame and each target that was measured, after its hash."""
        yield from zip(self.counts_digests, self.counts, strict=True)

    def _is_lit(self, frame: np.ndarray) -> bool:
        return bool(np.count_nonzero((frame > 0) & ~self.mask) >= LEAST_LIT)

    def _arrays(self, frames: slice) -> dict[str, Any]:
        return {"counts": self.counts[frames], "counts_digests": self.counts_digests[frames]}

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Pair:
        """Return the pair of a random frame in a random window."""
        index = int(rng.integers(len(self)))
        return self.pair(index, random_window(self.shape, shape, rng), rng)

    @abstractmethod
    def pair(self, index: int, window: Window, rng: np.random.Generator) -> Pair:
        """Return the pair of one frame, seen through a window."""


class ThinnedFrames(RecordedPairs):
    """Single frames of raw photon counts: a random part is denoised, the remainder is the target.

    The counts must be Poisson: see :func:`~bluesky_denoise.photons.thinning.check_photon_counts`.
    """

    kind = "thinned"

    def pair(self, index: int, window: Window, rng: np.random.Generator) -> Pair:
        """Thin one frame: means of 1e-3 and up, half of the photons left to be predicted."""
        counts, mask = window.counts(self.counts[index]), window.mask(self.mask)
        mean = counts[~mask].mean() if not mask.all() else 0.0
        low = min(LEAST_MEAN / max(mean, LEAST_MEAN), 0.2)
        fraction = float(np.exp(rng.uniform(np.log(max(low, 1e-5)), np.log(0.5))))
        part, remainder = thin(counts, fraction, rng)
        return Pair(part, remainder, (1 - fraction) / fraction, mask, self.first + index)


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredPairs(RecordedPairs):
    """Short exposures, and a long one of the scene of each."""

    targets: np.ndarray
    """(n, H, W) counts of the long exposures."""
    ratios: np.ndarray
    """(n,) long over short exposure, > 0."""
    targets_digests: tuple[str, ...] = ()
    """(n) `frame_digests` before pixels were masked; without them, those of ``targets``."""

    kind = "measured pairs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets.shape != self.counts.shape or self.ratios.shape != self.counts.shape[:1]:
            raise FrameShapeError(
                f"{self.name} has short frames {self.counts.shape}, long frames "
                f"{self.targets.shape} and {self.ratios.shape} exposure ratios; expected as many "
                "of each, of one size."
            )
        if not (np.isfinite(self.ratios).all() and (self.ratios > 0).all()):
            raise FrameValueError(
                f"{self.name} has exposure ratios of {self.ratios.min():g} to "
                f"{self.ratios.max():g}; expected long over short, above 0."
            )
        self._add_digests("targets")
        both = zip(self.counts_digests, self.targets_digests, strict=True)
        for i, (short, long) in enumerate(both):
            if short == long and self._is_lit(self.counts[i]):
                raise FrameValueError(
                    f"{self.name}: the long frame {self.first + i} is the short one; expected an "
                    "exposure of its own. To learn from single frames, give them alone."
                )

    @property
    def digests(self) -> tuple[str, ...]:
        """A hash of each frame, and of each target that was measured, masked pixels included."""
        return self.counts_digests + self.targets_digests

    def _frames(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from super()._frames()
        yield from zip(self.targets_digests, self.targets, strict=True)

    def _arrays(self, frames: slice) -> dict[str, Any]:
        return super()._arrays(frames) | {
            "targets": self.targets[frames],
            "targets_digests": self.targets_digests[frames],
            "ratios": self.ratios[frames],
        }

    def pair(self, index: int, window: Window, rng: np.random.Generator) -> Pair:
        """Return a short frame and its long one."""
        return Pair(
            window.counts(self.counts[index]),
            window.counts(self.targets[index]),
            float(self.ratios[index]),
            window.mask(self.mask),
            self.first + index,
        )


class Repeats(RecordedPairs):
    """Equal exposures of one scene: each is denoised, the others' sum is its target.

    References
    ----------
    Lehtinen et al. (2018), Noise2Noise, arXiv 1803.04189
    """

    kind = "repeats"
    least = 2
    changing = False

    def __post_init__(self) -> None:
        super().__post_init__()
        seen: dict[str, int] = {}
        for i, digest in enumerate(self.counts_digests):
            first = seen.setdefault(digest, i)
            if first != i and self._is_lit(self.counts[i]):
                raise FrameValueError(
                    f"{self.name}: frames {self.first + first} and {self.first + i} are the same, "
                    "count for count; expected exposures of their own. Did the detector stand "
                    "still? Give each frame once."
                )

    def two_by_two(self) -> MeasuredPairs:
        """Return each second frame as the target of the one before: no frame is used twice."""
        number = len(self) // 2
        first, second = slice(0, 2 * number, 2), slice(1, 2 * number, 2)
        return MeasuredPairs(
            counts=self.counts[first],
            targets=self.counts[second],
            ratios=np.ones(number),
            mask=self.mask,
            name=self.name,
            about=self.about,
            counts_digests=self.counts_digests[first],
            targets_digests=self.counts_digests[second],
        )

    def pair(self, index: int, window: Window, rng: np.random.Generator) -> Pair:
        """Return one frame, and the sum of all others."""
        counts = window.counts(self.counts[index])
        others = window.counts(self._total) - counts
        mask = window.mask(self.mask)
        return Pair(counts, others, float(len(self) - 1), mask, self.first + index)

    @cached_property
    def _total(self) -> np.ndarray:
        kind = np.int64 if self.counts.dtype.kind in "biu" else np.float64
        return self.counts.sum(axis=0, dtype=kind)
