"""`Denoiser`: counts in, count rates out; numpy outside, torch inside."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bluesky_denoise.errors import CheckpointError, FrameShapeError, SettingsError
from bluesky_denoise.frame_checks import as_counts, check_exposure, check_mask, prepare
from bluesky_denoise.frames import Denoised
from bluesky_denoise.models.checkpoint import load_checkpoint

__all__ = ["Denoiser"]

logger = logging.getLogger(__name__)

MOST_PIXELS = {"cpu": 7_000_000, "cuda": 40_000_000}
"""Pixels that go through the network at once, by device; more are cut into tiles. A CPU
needs some 400 bytes for each: a Pilatus 6M goes in one piece, in 2.6 GB."""
BATCH_PIXELS = {"cpu": 250_000, "cuda": 40_000_000}
"""Pixels beyond which no further frame joins a batch: on a CPU larger ones leave its cache."""
LEAST_CORE_PX = 256
"""Side of the part of a tile that is kept, when memory is short. Less would hardly save memory,
since tiles overlap by the field of the network, and take many times as long."""


class Denoiser:
    """A network with its weights on one device.

    Made by `Denoiser.load`; not thread-safe, one per process is meant.

    Parameters
    ----------
    model : network in evaluation mode; takes and returns (B, 1, H, W)
    card : what the weights are; needs ``model`` and ``sha256``
    name : what to call the weights
    device : ``cpu``, ``cuda`` or ``cuda:N``; CUDA where there is one if None

    Raises
    ------
    SettingsError
        If the device is not there.
    """

    def __init__(
        self,
        model: nn.Module,
        card: dict[str, Any],
        name: str,
        device: str | None = None,
    ) -> None:
        self.device: str = _choose_device(device)
        self.name = name
        self.card = card
        self.weights_sha256: str = card["sha256"]
        self._kind = torch.device(self.device).type
        self._model = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._has_variance = getattr(model, "tells_variance", False)
        self._images = 3 if self._has_variance else 1
        self._stretch = _stretch(card)
        self._most_pixels = MOST_PIXELS[self._kind]

    @classmethod
    def load(
        cls,
        name: str | Path = "default",
        device: str | None = None,
        *,
        threads: int | None = None,
    ) -> "Denoiser":
        """Load shipped weights by name, or others by path.

        Parameters
        ----------
        name : name of shipped weights, or path of a ``.safetensors`` with its card beside it
        device : ``cpu``, ``cuda`` or ``cuda:N``; None takes CUDA where there is one
        threads : CPU threads of torch in this process; None leaves them as they are

        Raises
        ------
        ModelNotFound
            If there are no such weights.
        CheckpointError
            If the weights are damaged.
        SettingsError
            If the device is not there, or ``threads`` is below 1.
        """
        if threads is not None:
            if threads < 1:
                raise SettingsError(f"threads is {threads}; at least 1 is needed.")
            torch.set_num_threads(threads)
        device = _choose_device(device)
        model, card = load_checkpoint(name)
        denoiser = cls(model, card, Path(name).stem, device)
        logger.info("Weights %s (%.12s) on %s.", name, denoiser.weights_sha256, denoiser.device)
        return denoiser

    @property
    def trained_range(self) -> tuple[float, float] | None:
        """Least mean and largest single count of frames in training, counts; None if unknown."""
        told = self.card.get("input", {})
        try:
            return float(told["mean_counts_per_pixel"][0]), float(told["largest_counts_in_a_pixel"])
        except (KeyError, IndexError, TypeError, ValueError):
            return None

    def __repr__(self) -> str:
        return f"<Denoiser {self.name!r}, weights {self.weights_sha256:.12}, on {self.device}>"

    def denoise(
        self,
        counts: np.ndarray,
        exposure_s: float | np.ndarray,
        mask: np.ndarray | None = None,
    ) -> Denoised:
        """Estimate the count rate behind short frames.

        The sum over valid pixels of ``rate * exposure_s`` is that of ``counts``: photons
        are moved, never made. Exposure only divides, so one network serves all.

        Parameters
        ----------
        counts : (B, H, W) or (H, W), integer or float, raw detector counts, >= 0. Pixels
            that are not finite, or hold 4294967294 or 4294967295 (65534 or 65535 in
            uint16), count as masked
        exposure_s : seconds, > 0; one for all frames, or (B,)
        mask : (H, W) bool or numbers, nonzero where a pixel is invalid

        Returns
        -------
        Denoised
            ``rate`` and its standard error ``sigma``, shape of ``counts``, float32,
            counts / s, >= 0; NaN where masked. ``sigma`` is None if the network has none.

        Raises
        ------
        FrameShapeError
            If the frames are not (B, H, W) or (H, W), or have no pixels.
        FrameValueError
            If counts are negative or no numbers, or an exposure is not above 0.
        MaskError
            If the mask does not have the frames' height and width.
        """
        counts = as_counts(counts)
        if counts.ndim not in (2, 3) or 0 in counts.shape[-2:]:
            raise FrameShapeError(
                f"Frames of shape {counts.shape} were given; expected (B, H, W) or (H, W), with "
                "at least one pixel."
            )
        stack = counts if counts.ndim == 3 else counts[None]  # (H, W) -> (1, H, W)
        seconds = check_exposure(exposure_s, len(stack), counts.ndim)
        masked = check_mask(mask, stack.shape[1:])
        out = np.empty((self._images, *stack.shape), np.float32)
        # Checked and converted a few frames at a time, so that a long stack fits memory.
        each = max(1, self._most_pixels // (stack.shape[1] * stack.shape[2]))
        start = 0
        prepared = prepare(stack[:each], masked)
        while start < len(stack):
            frames, valid = prepared
            of = slice(start, start + len(frames))
            self._fill(out[:, of], frames, valid, seconds[of])
            start += len(frames)
            if start < len(stack):
                prepared = prepare(stack[start : start + each], masked)
        rate, *sigmas = out.reshape(len(out), *counts.shape)
        sigma, expected = sigmas or (None, None)
        return Denoised(rate, sigma, self._stretch, expected)

    def _fill(
        self, out: np.ndarray, frames: np.ndarray, valid: np.ndarray, seconds: np.ndarray
    ) -> None:
        """Write rates and standard errors, NaN where not valid, to (1 or 3, B, H, W).

        When memory runs out, the batch is halved, then the tile, and the work goes on.
        """
        while True:
            try:
                self._attempt(out, frames, valid, seconds)
                return
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            # Outside of the except clause, which would hold on to the tensors.
            if self._kind == "cuda":
                torch.cuda.empty_cache()
            least = self._least_piece(*frames.shape[1:])
            if self._most_pixels <= least:
                raise MemoryError(
                    f"{self.device} has no memory to denoise frames of shape {frames.shape[1:]}, "
                    "even by single tiles. Free some, or use another device."
                )
            self._most_pixels = max(self._most_pixels // 2, least)
            logger.warning(
                "Out of memory on %s: going on with %d pixels at a time.",
                self.device,
                self._most_pixels,
            )

    def _least_piece(self, height: int, width: int) -> int:
        """Return the pixels of the least tile that is worth cutting."""
        side = LEAST_CORE_PX + 2 * int(self._model.field_px)
        return min(height, side) * min(width, side)

    def _attempt(
        self, out: np.ndarray, frames: np.ndarray, valid: np.ndarray, seconds: np.ndarray
    ) -> None:
        batch, height, width = frames.shape
        if height * width <= self._most_pixels:
            most = min(self._most_pixels, BATCH_PIXELS[self._kind])
            each = max(1, most // (height * width))
            for i in range(0, batch, each):
                of = slice(i, i + each)
                _copy(out[:, of], self._run(frames[of], valid[of], seconds[of]))
            return
        for outer, inner, core in self._tiles(height, width):
            for i in range(batch):
                of = slice(i, i + 1)
                tile = self._run(frames[of, *outer], valid[of, *outer], seconds[of])
                _copy(out[:, of, *core], tile[:, :, *inner])

    def _tiles(
        self, height: int, width: int
    ) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], tuple[slice, slice]]]:
        """Yield tile in the frame, core in the tile, core in the frame.

        Tiles begin on multiples of the coarsest pixel, as the untiled frame does, and
        overlap by the network's field, so that a core does not know that it was cut. This
        makes the least tile a little wider than twice the field, whatever memory there is.
        """
        step = int(self._model.multiple)
        field = -(-int(self._model.field_px) // step) * step
        side = step
        while (
            side < max(height, width)
            and min(height, side + step + 2 * field) * min(width, side + step + 2 * field)
            <= self._most_pixels
        ):
            side += step
        for row in range(0, height, side):
            for col in range(0, width, side):
                core = (slice(row, min(row + side, height)), slice(col, min(col + side, width)))
                top, left = max(row - field, 0), max(col - field, 0)
                outer = (slice(top, row + side + field), slice(left, col + side + field))
                rows, cols = (
                    slice(c.start - o, c.stop - o) for c, o in zip(core, (top, left), strict=True)
                )
                yield outer, (rows, cols), core

    def _run(self, frames: np.ndarray, valid: np.ndarray, seconds: np.ndarray) -> Tensor:
        """Run the network on frames that it can take at once: (B, H, W) -> (1 or 3, B, H, W).

        All else is done on the device, too: with a GPU, the processor would be slower.
        """
        height, width = frames.shape[1:]
        step = int(self._model.multiple)
        pad = (0, -width % step, 0, -height % step)
        with torch.inference_mode():
            x = self._tensor(frames, pad)  # (B, H, W) -> (B, 1, H + pad, W + pad)
            # Padded pixels are masked: the network must not see them as dark.
            v = self._tensor(valid, pad)
            with self._autocast():
                out = self._estimate(x, v)
            images = torch.stack([image[:, 0, :height, :width].float() for image in out])
            images[1:].sqrt_()
            over = torch.from_numpy(seconds).to(self.device)[:, None, None]
            return images.div_(torch.where(v[:, 0, :height, :width] > 0, over, torch.nan))

    def _estimate(self, counts: Tensor, valid: Tensor) -> Sequence[Tensor]:
        """Return the estimate, and its variances where the network tells them."""
        if self._has_variance:
            return self._model.denoise(counts, valid)
        return [self._model(counts, valid)]

    def _tensor(self, array: np.ndarray, pad: tuple[int, int, int, int]) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)
        return torch.nn.functional.pad(x[:, None], pad)  # (B, H, W) -> (B, 1, H', W')

    def _autocast(self) -> Any:
        if self._kind == "cuda" and torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()


def _copy(out: np.ndarray, images: Tensor) -> None:
    """Write images to memory, plane by plane: each is in one piece there."""
    for plane, image in zip(out, images, strict=True):
        torch.from_numpy(plane).copy_(image)


def _stretch(card: dict[str, Any]) -> dict[float, float]:
    """Return by what error bars are stretched, by the share of photons that they are to cover."""
    told = card.get("stretch", {})
    try:
        stretch = {float(key): float(value) for key, value in told.items()}
    except (AttributeError, TypeError, ValueError):
        stretch = {math.nan: math.nan}
    if not all(0 < key < 1 and 0 < value < math.inf for key, value in stretch.items()):
        raise CheckpointError(
            f"The card has a stretch of {told!r}; expected factors above 0, by confidences "
            "between 0 and 1. It is damaged."
        )
    return stretch


def _choose_device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = str(device).partition(":")[0]
    if kind not in MOST_PIXELS:
        raise SettingsError(f"Device {device!r} is not known; expected cpu, cuda or cuda:N.")
    if kind == "cuda":
        try:
            index = torch.device(device).index or 0
        except RuntimeError:
            index = -1
        if not 0 <= index < torch.cuda.device_count():
            raise SettingsError(
                f"Device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA "
                "devices. Use cpu, or leave the device out."
            )
    return str(device)


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in text
        or "can't allocate memory" in text
        or "could not create a memory object" in text
    )
