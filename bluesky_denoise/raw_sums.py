"""What can be told of a frame that nobody has denoised in time: sums of its raw counts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .frames import Denoised
from .last_event import LastEvent
from .router import DenoiseRouter
from .settings import DenoiseSettings

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
        self._run: list[tuple[str, Mapping[str, Any]]] = []
        self._data: list[tuple[str, Mapping[str, Any]]] = []
        self._last: list[tuple[str, Mapping[str, Any]]] = []

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a raw run."""
        super().__call__(name, doc)
        name = str(name)
        if name == "start":
            self._run, self._data, self._last = [], [], []
        if name in _ONCE_A_RUN:
            self._run.append((name, doc))
        elif name in _DATA:
            self._data.append((name, doc))
        elif name == "event" and doc["descriptor"] in self._followed:
            self._last, self._data = [*self._data, (name, doc)], []

    def measure(self) -> dict[str, Any]:
        """Return the numbers of the last event, by data key; empty where it cannot be read.

        An intensity is the plain sum over its region less the background around it;
        whatever belongs to a denoised frame is NaN.
        """
        found: list[Mapping[str, Any]] = []

        def keep(name: str, doc: Mapping[str, Any]) -> None:
            found.append(doc["data"])

        router = DenoiseRouter(self._settings, _NotDenoised())
        router.subscribe(keep, "event")
        router.feed([*self._run, *self._last])
        router.close()
        if not found or not found[-1]["denoise_ok"]:
            return {}
        return {
            key: float("nan") if key.endswith(("_denoised_total", "_denoised_sum")) else value
            for key, value in found[-1].items()
        }


class _NotDenoised:
    """Shows no peak anywhere, so that regions are summed as they are."""

    name, weights_sha256, device = "raw sums", "", "cpu"

    def denoise(
        self, counts: np.ndarray, exposure_s: Any, mask: np.ndarray | None = None
    ) -> Denoised:
        return Denoised(rate=np.zeros(np.shape(counts), np.float32))
