"""Frames of one raw run into the denoiser, in batches; results into the rows of its events."""

import logging
import time
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np

from bluesky_denoise.errors import DenoiseError, MaskError
from bluesky_denoise.frame_checks import valid_pixels
from bluesky_denoise.frames import DenoiserLike, Frame
from bluesky_denoise.runs.derived_stream import DerivedEvent
from bluesky_denoise.runs.raw_stream import RawStream, Row
from bluesky_denoise.runs.results import audit, measure
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.sources.frame_keys import TAKE_ONE
from bluesky_denoise.sources.readers import as_stack

__all__ = ["RowDenoiser"]

logger = logging.getLogger(__name__)

_MOST_TOLD = 3
"""Most frames of a run that are logged for one data key and one kind of error."""


class RowDenoiser:
    """Denoise the rows of a raw run that have their frames.

    Parameters
    ----------
    run_uid :
        The uid of the raw run.
    settings :
        Masks, batch size, and what is measured.
    denoiser :
        What denoises.
    """

    def __init__(self, run_uid: str, settings: DenoiseSettings, denoiser: DenoiserLike) -> None:
        self._uid, self._settings, self._denoiser = run_uid, settings, denoiser
        self._told: Counter[tuple[str, type]] = Counter()
        self._looked_at: set[str] = set()  # names of frames whose shape was compared

    def denoise(self, stream: RawStream, final: bool) -> bool:
        """Denoise frames that wait in a stream; what goes wrong is noted in their rows.

        Parameters
        ----------
        stream :
            Its rows get their results.
        final :
            The run is over: events that have not come will not come.

        Returns
        -------
        bool
            Whether more may wait: a batch of rows is denoised at a time, as their frames must
            fit into memory.
        """
        alone = len(list(islice(filter(stream.lacks, stream.rows.values()), 2))) == 1
        batches: dict[tuple[Any, ...], list[tuple[DerivedEvent, Frame]]] = {}  # by name and shape
        begun: set[int] = set()
        for seq_num, row in stream.rows.items():
            if len(begun) == self._settings.batch_size:
                break
            if row.result is None:
                row.result = DerivedEvent(seq_num, time.time(), {}, {})
            if row.skipped:
                row.done.update(stream.names)
                row.waiting.clear()
                continue
            if row.event is None and stream.expects_events and not final:
                continue  # it may tell the exposure, and the row cannot go on without it
            for name in [name for name in row.waiting if name not in row.done]:
                frame = self._frame(stream, row, row.result, name)
                begun.add(seq_num)
                row.done.add(name)
                del row.waiting[name]
                if frame is None:
                    continue
                batch = batches.setdefault((name, *frame.counts.shape[1:]), [])
                batch.append((row.result, frame))
                if sum(len(frame.counts) for _, frame in batch) >= self._settings.batch_size:
                    self._denoise_batch(stream, batch, alone)
        for batch in batches.values():
            self._denoise_batch(stream, batch, alone)
        return len(begun) == self._settings.batch_size

    def _frame(self, stream: RawStream, row: Row, result: DerivedEvent, name: str) -> Frame | None:
        """Fetch the frames of one row; note the reason where they cannot be had."""
        try:
            if name in stream.refused:
                raise DenoiseError(stream.refused[name])
            data = row.event["data"] if row.event else {}
            exposure_s = stream.exposures[name].of_event(data)
            counts = as_stack(row.waiting[name](), name)
            self._compare_shape(stream, name, counts.shape)
            mask = stream.masks[name]
            if mask is not None and mask.shape != counts.shape[1:]:
                message = f"{name!r} has frames {counts.shape[1:]}, its mask {mask.shape}"
                raise MaskError(message)
            result.shapes[name] = counts.shape
        except Exception as error:
            self._note(result, name, error)
            return None
        return Frame(counts, exposure_s, mask, name, result.seq_num, self._uid)

    def _denoise_batch(
        self, stream: RawStream, batch: list[tuple[DerivedEvent, Frame]], alone: bool
    ) -> None:
        """Denoise frames of one name and shape; one by one if they fail together."""
        if not batch:
            return
        items, batch[:] = list(batch), []
        frames = [frame for _, frame in items]
        counts = np.concatenate([frame.counts for frame in frames])  # -> (B, H, W)
        exposures = np.concatenate([np.full(len(f.counts), f.exposure_s) for f in frames])
        try:
            denoised = self._denoiser.denoise(counts, exposures, frames[0].mask)
        except Exception as error:
            if len(items) == 1:
                result, frame = items[0]
                self._note(result, frame.data_key, error)
                return
            for item in items:
                self._denoise_batch(stream, [item], alone)
            return
        first = 0
        for result, frame in items:
            span = slice(first, first + len(frame.counts))
            first = span.stop
            result.rates[frame.data_key] = denoised.rate[span]
            if self._settings.save_sigma and denoised.sigma is not None:
                result.sigmas[frame.data_key] = denoised.sigma[span]
            try:
                self._look_at(stream, result, frame, alone)
            except Exception as error:
                self._note(result, frame.data_key, error)
            logger.debug("Run %.8s, event %d: denoised", self._uid, frame.seq_num)

    def _compare_shape(self, stream: RawStream, name: str, shape: tuple[int, ...]) -> None:
        """Tell once of frames that Tiled cannot read, as the descriptor has another shape."""
        if name in self._looked_at:
            return
        self._looked_at.add(name)
        spec = stream.descriptor["data_keys"][stream.raw_keys[name]]
        declared = tuple(spec["shape"][-2:])
        if "external" in spec and None not in declared and declared != shape[-2:]:
            logger.warning(
                "Run %.8s: frames of %s are %s, and the descriptor has %s; they are denoised, but "
                "raw ones cannot be read from Tiled before `cat[uid].validate()`. %s.",
                *(self._uid, name, shape[-2:], declared, TAKE_ONE),
            )

    def _note(self, result: DerivedEvent, name: str, error: Exception) -> None:
        """Keep the reason why frames are not denoised; tell of the first such frames of a run."""
        known = isinstance(error, DenoiseError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        reason = self._settings.redact(reason)  # it may tell an address of Tiled
        result.problems.append(f"{name}: {reason}")
        kind = name, type(error)
        self._told[kind] += 1
        level = logging.WARNING if self._told[kind] <= _MOST_TOLD else logging.DEBUG
        last = "; of more, `denoise_reason` tells alone" if self._told[kind] == _MOST_TOLD else ""
        logger.log(
            level,
            "Run %.8s, event %d, %s: not denoised: %s%s",
            *(self._uid, result.seq_num, name, reason, last),
        )

    def _look_at(self, stream: RawStream, result: DerivedEvent, frame: Frame, alone: bool) -> None:
        """Measure the frames of one row, and audit them if nothing else waits."""
        name = frame.data_key
        lost = valid_pixels(frame.counts, frame.mask) & ~np.isfinite(result.rates[name])
        if lost.any():
            result.problems.append(
                f"{name}: the denoiser gave no number for {int(lost.sum())} valid pixels"
            )
        elif np.isnan(result.rates[name]).all((1, 2)).any():
            result.problems.append(f"{name}: no pixel is valid, all are masked or hold no counts")
        result.numbers |= measure(frame, result.rates[name], stream.regions[name], self._denoiser)
        # A denoiser without a card, such as a test's, claims nothing that could be audited.
        if self._settings.audit and alone and self._denoiser.card:
            numbers, reason = audit(frame, self._denoiser, stream.rate_ranges[name])
            result.numbers |= numbers
            result.audits[name] = not reason
            if reason:
                result.problems.append(f"audit of {name}: {reason}")
