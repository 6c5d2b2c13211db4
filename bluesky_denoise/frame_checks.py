"""What is given to a denoiser, checked and made ready for the network."""

import numpy as np

from bluesky_denoise.errors import FrameShapeError, FrameValueError, MaskError

__all__ = [
    "as_counts",
    "check_exposure",
    "check_frame",
    "check_mask",
    "prepare",
    "valid_pixels",
]

_FLAG_16, _FLAG_32 = 2**16 - 2, 2**32 - 2
"""This and one more are what Eiger detectors write into bad pixels and gaps, of 16 and 32 bits."""
_ROUNDED_32 = 2**32
"""That of 32 bits as a float32, and as what has been one."""
_TOO_MANY = 2.0**63
"""No count, but what marks a pixel of 64 bits, or one of a float frame."""


def as_counts(counts: np.ndarray) -> np.ndarray:
    """Return counts as an array; what an array of numpy.ma masks would be lost unseen."""
    if isinstance(counts, np.ma.MaskedArray) and np.ma.is_masked(counts):
        raise FrameValueError(
            "A masked array was given. Give its `data`, with what it masks in all frames as `mask` "
            "(H, W); or, as floats, `filled(np.nan)`."
        )
    return np.asarray(counts)


def check_frame(counts: np.ndarray) -> None:
    """Refuse what is no single frame (H, W) of numbers."""
    if counts.ndim != 2 or not counts.size:
        raise FrameShapeError(f"A frame of shape {counts.shape} was given; expected (H, W).")
    if counts.dtype.kind not in "buif":
        raise FrameValueError(f"A frame of dtype {counts.dtype} was given; expected counts.")


def check_exposure(exposure_s: float | np.ndarray, batch: int, ndim: int) -> np.ndarray:
    """Return (B,) float32 seconds."""
    try:
        seconds = np.asarray(exposure_s)
    except ValueError:  # lists of unequal lengths
        seconds = np.empty(0, object)
    if seconds.dtype.kind not in "uif":
        raise FrameValueError(f"The exposure {exposure_s!r} is no number of seconds.")
    if seconds.shape not in ((), (batch,)) or (ndim == 2 and seconds.shape == (batch, 1)):
        raise FrameShapeError(
            f"Exposures of shape {seconds.shape} were given for {batch} frames; expected one "
            f"number, or ({batch},)."
        )
    with np.errstate(over="ignore"):
        seconds = seconds.astype(np.float32)
    if not (np.isfinite(seconds) & (seconds >= np.finfo(np.float32).tiny)).all():
        raise FrameValueError(f"The exposure is {exposure_s!r}; expected seconds, > 0.")
    return np.broadcast_to(seconds, (batch,)).copy()


def check_mask(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return (H, W) bool."""
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise MaskError(f"The mask has shape {mask.shape}; the frames need {shape}, (H, W).")
    if mask.dtype.kind not in "buif":
        raise MaskError(
            f"The mask has dtype {mask.dtype}; expected bool or numbers, nonzero where invalid."
        )
    return mask != 0


def valid_pixels(counts: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Return which pixels hold counts, bool, in the shape of `counts`.

    Parameters
    ----------
    counts : (H, W) or (B, H, W), integer or float. What is not finite, or 2 ** 63 and more, is
        no count, nor is 4294967294 or 4294967295 in 32 bits or more (4294967296 in floats, too), or
        65534 or 65535 as an unsigned integer of 16: a flag, or the end of the scale
    mask : (H, W), nonzero where a pixel is invalid
    """
    valid = np.isfinite(counts)
    kind, size = counts.dtype.kind, counts.dtype.itemsize
    if kind in "uf" and size >= 4:
        valid &= counts < _TOO_MANY
    if kind in "uif" and size >= 4:
        valid &= (counts < _FLAG_32) | (counts > (_ROUNDED_32 if kind == "f" else _FLAG_32 + 1))
    if kind == "u" and size == 2:
        valid &= counts < _FLAG_16
    return valid if mask is None else valid & (np.asarray(mask) == 0)


def prepare(stack: np.ndarray, masked: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return counts with 0 where invalid, (B, H, W) float32, and what is valid, bool."""
    if stack.dtype.kind not in "buif":
        raise FrameValueError(
            f"Frames of dtype {stack.dtype} were given; expected integer or float counts."
        )
    valid = valid_pixels(stack, masked)
    frames = np.zeros(stack.shape, np.float32)
    np.copyto(frames, stack, where=valid, casting="unsafe")
    negative = frames < 0
    if negative.any():
        at = tuple(int(i) for i in np.argwhere(negative)[0])
        raise FrameValueError(
            f"{int(negative.sum())} pixels are negative, the first is {stack[at]} at (frame, row, "
            f"column) {at}; expected photon counts, >= 0. Mask flagged pixels; frames of an "
            "integrating detector, with its pedestal subtracted, are no photon counts."
        )
    return frames, valid
