"""Hashes by which a frame is known again, whatever file it is read from."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from bluesky_denoise.frame_checks import valid_pixels

__all__ = ["frame_digests", "series_digest"]


def frame_digests(frames: np.ndarray) -> tuple[str, ...]:
    """Return a hash of each frame, the same for every type of its numbers and its flags.

    Parameters
    ----------
    frames : (n, H, W), as they were read, before any pixel is masked
    """
    return tuple(_digest(frame) for frame in frames)


def series_digest(digests: Sequence[str]) -> str:
    """Return a hash of a series, from those of its frames."""
    return blake2b(" ".join(digests).encode(), digest_size=8).hexdigest()


def _digest(frame: np.ndarray) -> str:
    # The flag of 16 bits is none in wider numbers, but a copy of such a frame has it.
    flagged = ~valid_pixels(frame) | (frame < 0) | (frame == 2**16 - 2) | (frame == 2**16 - 1)
    values = np.where(flagged, frame.dtype.type(0), frame)
    whole = values.dtype.kind in "biu" or bool((values == np.rint(values)).all())
    values = values.astype(np.int64 if whole else np.float64)
    values[flagged] = -1
    found = blake2b(str(values.shape).encode(), digest_size=16)
    found.update(values.data)
    return found.hexdigest()
