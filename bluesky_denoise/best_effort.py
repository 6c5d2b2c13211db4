"""Tables and plots of denoised numbers that need to be told nothing."""

from collections.abc import Mapping
from typing import Any

from bluesky.callbacks.best_effort import BestEffortCallback

__all__ = ["DenoisedBestEffortCallback"]


class DenoisedBestEffortCallback(BestEffortCallback):
    """Bluesky's `BestEffortCallback`, which also shows tables of other streams than primary.

    Subscribed to a RunEngine, it shows the denoised numbers that `denoised_scan` and its
    kin read, and plain scans as ever. Subscribed to a `DenoiseProcess` it shows the derived
    runs. Bluesky's own prints rows of the stream ``primary`` only, whatever the hints say.

    Examples
    --------
    >>> RE.subscribe(DenoisedBestEffortCallback())
    0
    """

    _shown = "primary"

    def start(self, doc: Mapping[str, Any]) -> None:
        """Find the stream to show in the hints; of a derived run, its own."""
        hints = doc.get("hints", {})
        dimensions = hints.get("dimensions", [])
        streams = {stream for _, stream in dimensions}
        if "denoise" in doc and "original_run_uid" in doc:
            self._shown = "denoised"
        else:
            self._shown = streams.pop() if len(streams) == 1 else "primary"
        if dimensions and self._shown != "primary":
            hints = {**hints, "dimensions": [(fields, "primary") for fields, _ in dimensions]}
            doc = {**doc, "hints": hints}
        super().start(doc)

    def descriptor(self, doc: Mapping[str, Any]) -> None:
        """Pass the stream to show off as the primary one, the only one that gets a table."""
        if self._shown != "primary":
            if doc["name"] == "primary":
                self._left_out.add(doc["uid"])
                return
            if doc["name"] == self._shown:
                doc = {**doc, "name": "primary"}
        super().descriptor(doc)

    def event(self, doc: Mapping[str, Any]) -> None:
        """Show a point, unless it has nothing but frames."""
        if doc["descriptor"] not in self._left_out:
            super().event(doc)

    def clear(self) -> None:
        """Forget the last run."""
        super().clear()
        self._left_out: set[str] = set()
