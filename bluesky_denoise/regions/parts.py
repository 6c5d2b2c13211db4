"""Photons of regions in independent parts, and the denoised images of what each part is not in."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.frames import SupportsDenoise
from bluesky_denoise.regions.region import Crop, deal, photons

__all__ = ["FOLDS", "Parts", "deal_parts", "denoise_parts"]

FOLDS = 4
"""Parts that photons are dealt into; the profile of each part comes from the others."""
STEP_PX = 16
"""A network sees crops padded to a multiple of this: those that are alike then go together."""
SMALL_PX = 128 * 128
"""Pixels up to which several crops are denoised in less time together than one by one."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The photons of a region in parts, and what is to be denoised of it."""

    crop: Crop
    photons: np.ndarray | None
    """(parts, h, w); None where they cannot be dealt."""
    stack: np.ndarray
    """(n, h, w) counts: all of them where asked for, and all but each part; n may be 0."""
    seconds: np.ndarray
    """(n,) exposures of these."""


def deal_parts(crop: Crop, with_whole: bool, rng: np.random.Generator | None) -> Parts:
    """Deal the photons of a region at random, by a fixed seed if there is no generator."""
    whole, parts = photons(crop.counts), None
    stack, shares = ([crop.counts], [1.0]) if with_whole else ([], [])
    if whole is not None:
        parts = deal(whole, FOLDS, np.random.default_rng(0) if rng is None else rng)
        if crop.around.any():
            stack += [whole - part for part in parts]
            shares += [1 - 1 / FOLDS] * FOLDS
    if not (stack and crop.inside.any()):
        return Parts(crop, parts, np.zeros((0, *crop.counts.shape)), np.zeros(0))
    return Parts(crop, parts, np.stack(stack), crop.exposure_s * np.array(shares))


def denoise_parts(regions: Sequence[Parts], denoiser: SupportsDenoise) -> list[np.ndarray]:
    """Denoise the stack of each region: (n, h, w) counts / s.

    A call of the network costs more than a small crop does, so those of like shapes share one.
    """
    rates = [np.zeros(region.stack.shape) for region in regions]
    alike = defaultdict(list)
    for i, region in enumerate(regions):
        height, width = region.crop.counts.shape
        size = -(-height // STEP_PX), -(-width // STEP_PX)
        if len(region.stack):
            alike[size if height * width <= SMALL_PX else i].append(i)
    for some in alike.values():
        found = _denoise_together([regions[i] for i in some], denoiser)
        for i, rate in zip(some, found, strict=True):
            rates[i] = rate
    return rates


def _denoise_together(regions: Sequence[Parts], denoiser: SupportsDenoise) -> list[np.ndarray]:
    if len(regions) == 1:
        (one,) = regions
        return [denoiser.denoise(one.stack, one.seconds, mask=~one.crop.valid).rate]
    height, width = np.max([region.stack.shape[1:] for region in regions], axis=0)
    # Of each region other pixels are masked, as NaN says.
    padded = [np.full((len(region.stack), height, width), np.nan) for region in regions]
    for images, region in zip(padded, regions, strict=True):
        images[_within(region)] = np.where(region.crop.valid, region.stack, np.nan)
    seconds = np.concatenate([region.seconds for region in regions])
    rate = denoiser.denoise(np.concatenate(padded), seconds).rate
    ends = np.cumsum([len(region.stack) for region in regions])[:-1]
    split = np.split(rate, ends)
    return [images[_within(region)] for images, region in zip(split, regions, strict=True)]


def _within(region: Parts) -> tuple[slice, ...]:
    """Return where its images are in padded ones."""
    return tuple(slice(size) for size in region.stack.shape)
