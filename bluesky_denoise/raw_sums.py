"""What can be told of a frame that nobody has denoised in time: sums of its raw counts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bluesky_denoise.documents import Document, unpack_page
from bluesky_denoise.frame_checks import valid_pixels
from bluesky_denoise.frames import Denoised
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.runs.derived_stream import DerivedEvent
from bluesky_denoise.runs.last_event import LastEvent
from bluesky_denoise.settings import DenoiseSettings

__all__ = ["RawSums"]

_ONCE_A_RUN = ("start", "descriptor", "resource", "stream_resource")
_DATA = ("datum", "datum_page", "stream_datum")


class RawSums(LastEvent):
    """Follow raw documents, and sum the regions of the last frame when it is asked to.

    Documents are only kept; the frame is read, wherever it is, when `measure` is called.

    Parameters
    ----------
    settings :
        Data keys, streams, regions, mask and exposures; the rest is not used.
    """

    def __init__(self, settings: DenoiseSettings) -> None:
        super().__init__(settings.streams, settings.data_keys)
        unused = {"tiled_uri": None, "frames_directory": None, "audit": False, "save_sigma": False}
        self._settings = settings.model_copy(update=unused)
        self._open: set[str] = set()
        self._once: list[Document] = []  # of all open runs
        self._before: list[Document] = []  # datums and bare events: later datums may count them
        self._data: list[Document] = []
        self._last: list[Document] = []

    def _take(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "event_page":
            for item_name, event in unpack_page(name, doc):
                self._take(item_name, event)
            return
        super()._take(name, doc)
        if name == "start":
            if not self._open:
                self._once, self._before, self._data, self._last = [], [], [], []
            self._open.add(doc["uid"])
        elif name == "stop":
            self._open.discard(doc["run_start"])
        if name in _ONCE_A_RUN:
            self._once.append((name, doc))
        elif name in _DATA:
            self._data.append((name, doc))
        elif name == "event" and doc["descriptor"] in self._followed:
            if any(kind.startswith("datum") for kind, _ in self._last):
                *datums, (_, event) = self._last
                self._before += [*datums, ("event", _bare(event))]
            self._last, self._data = [*self._data, (name, doc)], []

    def measure(self) -> dict[str, Any]:
        """Return the numbers of the last event, by data key; empty where it cannot be read.

        An intensity is the plain sum over its region less the background around it;
        whatever belongs to a denoised frame is NaN.
        """
        if not self._last or self._last[-1][1]["descriptor"] not in self._followed:
            return {}  # its run has ended, while another is open
        found: list[Mapping[str, Any]] = []

        def keep(name: str, doc: Mapping[str, Any]) -> None:
            found.append(doc["data"])

        router = DenoiseRouter(self._settings, _NotDenoised())
        router.subscribe(keep, "event")
        for name, doc in [*self._once, *self._before]:
            known = DerivedEvent(doc["seq_num"], 0.0, {}, {}) if name == "event" else None
            router.accept(name, doc, known=known)  # so that its frame is not read
        router.feed(self._last)
        router.close()
        if not found or not found[-1]["denoise_ok"]:
            return {}
        return {
            key: float("nan") if key.endswith(("_denoised_total", "_denoised_sum")) else value
            for key, value in found[-1].items()
        }


def _bare(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an event with nothing but what may be datums."""
    datums = {key: value for key, value in event["data"].items() if isinstance(value, str)}
    stamps = {key: event["timestamps"][key] for key in datums}
    return {**event, "data": datums, "timestamps": stamps, "filled": {}}


class _NotDenoised:
    """Shows no peak anywhere, so that regions are summed as they are."""

    name, weights_sha256, device = "raw sums", "", "cpu"
    card: Mapping[str, Any] = {}

    def denoise(
        self, counts: np.ndarray, exposure_s: Any, mask: np.ndarray | None = None
    ) -> Denoised:
        valid = valid_pixels(counts, mask)
        return Denoised(rate=np.where(valid, np.float32(0), np.float32("nan")))
