"""Pairs from the frames of HDF5 files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_denoise.errors import FrameShapeError, FrameValueError
from bluesky_denoise.frame_files import (
    HIGH,
    LOW,
    check_stack,
    read_frame_file,
    usable_mask,
    without_fraction,
)
from bluesky_denoise.photons.thinning import check_photon_counts
from bluesky_denoise.support.digests import frame_digests
from bluesky_denoise.training.pair_checks import check_independent, check_lit
from bluesky_denoise.training.pairs import MeasuredPairs, RecordedPairs, Repeats, ThinnedFrames

__all__ = ["measured_pairs", "read_file", "single_frames"]

MOST_OFF = 1.5
"""By which factor counts and exposure times may differ: the beam is not the same in both."""
LEAST_COUNTS = 100
"""Of all short exposures; fewer contradict nothing."""
ABOUT = ("detector", "exposure_s", "source", "licence", "license")
"""Attributes that go into the card."""


def read_file(
    path: Path, *, repeats: bool = False, mask: np.ndarray | None = None
) -> RecordedPairs:
    """Read the frames of an HDF5 file.

    Parameters
    ----------
    path : in a layout of :func:`~bluesky_denoise.frame_files.read_frame_file`
    repeats : all frames show one scene; the same as an attribute ``repeats`` of 1
    mask : (H, W) bool, True where invalid, beside the mask of the file

    Returns
    -------
    RecordedPairs
        `Repeats`, `ThinnedFrames`, or `MeasuredPairs`. The exposure ratio of the latter is
        the attribute ``exposure_s`` of ``high_count`` over that of ``low_count``; without
        them it is the ratio of all counts.

    Raises
    ------
    FrameShapeError
        If there are no frames, or shapes do not fit.
    FrameValueError
        If single frames are no raw photon counts, or repeats and pairs share noise, or there are
        no counts.
    """
    found = read_frame_file(path, mask)
    about: dict[str, Any] = {"file": "/".join(path.resolve().parts[-2:])}
    about |= {key: _plain(found.about[key]) for key in ABOUT if key in found.about}
    name, invalid = path.stem, found.mask
    if found.long is not None:
        exposures = list(found.exposures_s)
        return _archive_pairs(name, found.frames, found.long, invalid, about, exposures)
    repeats = repeats or bool(np.any(found.about.get("repeats", False)))
    return single_frames(found.frames, invalid, name, about, repeats=repeats)


def single_frames(
    frames: np.ndarray,
    mask: np.ndarray | None,
    name: str,
    about: Mapping[str, Any],
    *,
    repeats: bool,
) -> Repeats | ThinnedFrames:
    """Return frames that have no long exposure as pairs; thinned ones must be photons."""
    check_stack(frames, name)
    mask, digests = usable_mask(frames, mask, name), frame_digests(frames)
    frames = without_fraction(np.where(mask, frames.dtype.type(0), frames))
    check_lit(frames, mask, name)
    if repeats:
        source = Repeats(counts=frames, mask=mask, name=name, about=about, counts_digests=digests)
        check_independent(frames[:-1], frames[1:], mask, name)
        return source
    try:
        check_photon_counts(frames, mask)
    except FrameValueError as error:
        raise FrameValueError(f"{name}: {error}") from None
    return ThinnedFrames(counts=frames, mask=mask, name=name, about=about, counts_digests=digests)


def _archive_pairs(
    name: str,
    low: np.ndarray,
    high: np.ndarray,
    mask: np.ndarray | None,
    about: Mapping[str, Any],
    exposures: list[float | None],
) -> MeasuredPairs:
    for frames in (low, high):
        check_stack(frames, name)
    if low.shape != high.shape:
        raise FrameShapeError(
            f"{name} has {LOW}/data {low.shape} and {HIGH}/data {high.shape} (n, H, W); expected "
            "frames of one size, as many of each."
        )
    mask = usable_mask(low, mask, name) | usable_mask(high, mask, name)
    valid = ~mask
    totals = [float(frames[:, valid].sum(dtype=np.float64)) for frames in (low, high)]
    if min(totals) <= 0:
        raise FrameValueError(
            f"{name} has {totals} counts in short and long frames; expected some in both."
        )
    short, long = exposures
    if short and long:
        ratio, told = long / short, "attributes exposure_s"
    else:
        ratio, told = totals[1] / totals[0], "ratio of all counts"
    about = {**about, "exposure_ratio": round(ratio, 4), "exposure_ratio_from": told}
    return measured_pairs(low, high, np.full(len(low), ratio), mask, name, about)


def _check_ratio(short: float, long: float, ratios: np.ndarray, name: str) -> None:
    """Refuse exposures that the counts contradict: a network would learn to scale by them."""
    stated, counted = float(np.mean(ratios)), long / short
    if stated < 1 / MOST_OFF:
        raise FrameValueError(
            f"{name} has long exposures of {stated:.3g} times the short ones. Give the short ones "
            "first."
        )
    if short >= LEAST_COUNTS and not 1 / MOST_OFF <= counted / stated <= MOST_OFF:
        raise FrameValueError(
            f"{name} has {counted:.4g} times the counts in its long exposures, whose times are "
            f"{stated:.4g} times the short ones. Was an attenuator moved, or a unit mistaken? "
            "Correct the exposures, or leave them out: they follow from the counts then."
        )


def measured_pairs(
    short: np.ndarray,
    long: np.ndarray,
    ratios: np.ndarray,
    mask: np.ndarray,
    name: str,
    about: Mapping[str, Any],
) -> MeasuredPairs:
    """Return short and long frames as pairs; each must be lit, and have noise of its own."""
    digests = [frame_digests(frames) for frames in (short, long)]
    short, long = (np.where(mask, frames.dtype.type(0), frames) for frames in (short, long))
    for frames, what in ((short, "short"), (long, "long")):
        check_lit(frames, mask, f"{name}, {what} exposures,")
    _check_ratio(float(short.sum()), float(long.sum()), ratios, name)
    source = MeasuredPairs(
        counts=short,
        targets=long,
        ratios=ratios,
        mask=mask,
        name=name,
        about=about,
        counts_digests=digests[0],
        targets_digests=digests[1],
    )
    check_independent(short, long, mask, name)
    return source


def _plain(value: Any) -> Any:
    """Return an attribute as JSON can hold it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None  # no JSON, and equal to nothing when a training is to go on
    return value if isinstance(value, str | int | float) else str(value)
