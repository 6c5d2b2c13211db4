"""Live view of a scan: raw, denoised, and what is between them, with the trace of an ROI."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

from .errors import DenoiseError, SettingsError
from .recent_frames import RecentFrames

__all__ = ["FrameViewer"]

logger = logging.getLogger(__name__)

_RESIDUAL_SIGMA = 4.0


class FrameViewer:
    """Show raw frame, denoised frame and residual side by side, over the trace of an ROI.

    Where the denoised stream has standard errors, they are shown too. The ROI is marked, and
    its intensity traced against the first motor of the scan, or the number of the point.

    Documents are only noted as they come; frames are read and drawn at most once each
    `interval_s`, by a timer of the window, or on a thread where there is no window. Frames
    that come faster are passed over.

    Parameters
    ----------
    data_key :
        The frames: their key in the denoised stream.
    roi :
        Name of the ROI whose intensity is traced; None: the denoised total.
    streams :
        The raw stream and the one derived from it.
    interval_s :
        Least time between two drawings, seconds.
    save_to :
        A picture file that is written at each drawing; None: none.

    Examples
    --------
    >>> viewer = FrameViewer("det_image", roi="satellite")
    >>> viewer.attach(RE, denoise)
    """

    def __init__(
        self,
        data_key: str,
        *,
        roi: str | None = None,
        streams: tuple[str, str] = ("primary", "denoised"),
        interval_s: float = 0.5,
        save_to: str | Path | None = None,
    ) -> None:
        from matplotlib.figure import Figure

        self.data_key, self.save_to = data_key, save_to
        self._roi = roi or ""
        self._box: Mapping[str, Any] = {}
        self._against = "point"
        self._traced = f"{roi}_intensity" if roi else f"{data_key}_denoised_total"
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._raw = RecentFrames(data_key, streams[0])
        self._denoised = RecentFrames(data_key, streams[1])
        self._sigma = RecentFrames(f"{data_key}_sigma", streams[1])
        self._normalizer = RunNormalizer()
        self._raw_run = self._derived_from = ""  # uids of the raw run that each is of
        self._trace: dict[int, tuple[float, float, float]] = {}  # a point may be taken again
        self._changed, self._closing = threading.Event(), threading.Event()
        self.drawn = 0
        """How often it has been drawn."""
        self._timer = self._thread = None
        if _has_windows():
            import matplotlib.pyplot as plt

            self.figure = plt.figure(f"{data_key}, live", figsize=(13, 4.5), layout="constrained")
            self._timer = self.figure.canvas.new_timer(int(1000 * interval_s))
            self._timer.add_callback(self.draw)
            self._timer.start()
            self.figure.show()
        else:
            self.figure = Figure(figsize=(13, 4.5), layout="constrained")
            self._thread = threading.Thread(target=self._loop, name="frame-viewer", daemon=True)
            self._thread.start()

    def attach(self, RE: Any, denoise: Any) -> None:
        """Subscribe to a RunEngine and to its `DenoiseProcess`.

        Raises
        ------
        SettingsError
            If the denoiser has no such ROI.
        """
        settings = getattr(denoise, "settings", None)
        if self._roi and settings is not None:
            known = [roi for regions in settings.rois.values() for roi in regions]
            if self._roi not in known:
                raise SettingsError(
                    f"The view is to trace ROI {self._roi!r}; the denoiser has "
                    f"{', '.join(known) or 'none'}."
                )
        RE.subscribe(self.raw)
        denoise.subscribe(self.derived)

    def raw(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a raw run."""
        with self._lock:
            if name == "start":
                # Resource and Datum become StreamResource and StreamDatum: one path for all.
                self._normalizer = RunNormalizer()
                self._normalizer.subscribe(self._raw.note)
                self._raw_run = doc["uid"]
            elif name == "stop" or not self._raw_run:
                return
            try:
                self._normalizer(str(name), doc)
            except Exception:
                logger.exception("The live view cannot follow run %.8s", self._raw_run)
                self._raw_run = ""

    def derived(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a derived run."""
        with self._lock:
            if name == "start":
                self._derived_from = doc.get("original_run_uid", "")
                self._trace.clear()
                self._box = _box(doc, self.data_key, self._roi)
                self._against = _first_motor(doc)
            self._denoised.note(str(name), doc)
            self._sigma.note(str(name), doc)
            is_ours = name == "descriptor" and doc["uid"] in self._denoised.descriptors
            if is_ours and self._traced not in doc["data_keys"]:
                logger.warning(
                    "The live view is to trace %s, which the stream %s does not have; it has %s",
                    *(self._traced, doc["name"], ", ".join(doc["data_keys"])),
                )
            if name == "event" and doc["descriptor"] in self._denoised.descriptors:
                data = doc["data"]
                error = data.get(self._traced + "_error", 0.0)
                value = data.get(self._traced, np.nan)
                if self._against not in data:
                    self._against = "point"
                at = data.get(self._against, data["raw_seq_num"])
                self._trace[data["raw_seq_num"]] = at, value, error
        if name == "event":
            self._changed.set()

    def close(self) -> None:
        """Draw what has come last, and stop."""
        self._closing.set()
        self._changed.set()
        if self._timer is not None:
            self._timer.stop()
        if self._thread is not None:
            self._thread.join(10.0)

    def draw(self) -> None:
        """Draw the newest frames, if there are new ones."""
        if not self._changed.is_set():
            return
        self._changed.clear()
        with self._lock:
            event = self._denoised.event
            trace = np.array([*self._trace.values()]).reshape(-1, 3)
        if event is None:
            return
        try:
            with self._lock:
                readers = self._readers(event)
            frames = [np.asarray(read(), dtype=float) for read in readers]
        except (DenoiseError, OSError) as error:
            logger.warning("A frame cannot be shown: %s", error)
            return
        raw, rate, *sigma = (frame.reshape(-1, *frame.shape[-2:])[0] for frame in frames)
        exposure_s = event["data"][f"{self.data_key}_exposure_s"]
        if raw.shape == rate.shape and exposure_s > 0:
            self._paint(raw, rate, sigma, exposure_s, trace, event["data"])
            self.drawn += 1

    def _readers(self, event: Mapping[str, Any]) -> list[Callable[[], np.ndarray]]:
        """Return what reads the frames of a derived event: raw, denoised, and their errors."""
        if self._raw_run != self._derived_from:
            raise DenoiseError(
                f"Event {event['seq_num']} is of run {self._derived_from:.8}, of which the raw "
                "frames are no longer, or not yet, at hand."
            )
        readers = [self._raw.reader(event["data"]["raw_seq_num"])]
        readers.append(self._denoised.reader(event["seq_num"]))
        if self._sigma.is_there:
            readers.append(self._sigma.reader(event["seq_num"]))
        return readers

    def _paint(
        self,
        raw: np.ndarray,
        rate: np.ndarray,
        sigma: list[np.ndarray],
        exposure_s: float,
        trace: np.ndarray,
        data: Mapping[str, Any],
    ) -> None:
        from matplotlib.colors import LogNorm
        from matplotlib.ticker import LogLocator

        expected = rate * exposure_s
        residual = (raw - expected) / np.sqrt(np.maximum(expected, 0.25))
        seen = rate[np.isfinite(rate) & (rate > 0)]
        low, high = np.percentile(seen, (1, 99.95)) if seen.size else (0.1, 1.0)
        norm = LogNorm(max(low, high * 1e-5), max(high, low * 1.01))
        # Labels of all steps of two decades stand on top of each other.
        steps = LogLocator(subs=(1,) if norm.vmax > 100 * norm.vmin else (1, 2, 5))
        self.figure.clear()
        shown = [
            (
                f"point {data['raw_seq_num']}, raw, {exposure_s:.3g} s",
                raw / exposure_s,
                {"norm": norm},
                "counts / s",
            ),
            ("denoised", rate, {"norm": norm}, "counts / s"),
            (
                "raw - denoised",
                residual,
                {"cmap": "RdBu_r", "vmin": -_RESIDUAL_SIGMA, "vmax": _RESIDUAL_SIGMA},
                "standard deviations",
            ),
            *(("standard error", error, {"norm": norm}, "counts / s") for error in sigma),
        ]
        grid = self.figure.add_gridspec(2, len(shown), height_ratios=(2, 1))
        for i, (title, frame, options, unit) in enumerate(shown):
            axes = self.figure.add_subplot(grid[0, i])
            image = axes.imshow(frame, interpolation="nearest", **options)
            axes.set_title(title)
            axes.set_facecolor("0.8" if i == 2 else "0.2")
            if self._box:
                _mark(axes, self._box)
            rated = options.get("norm") is norm
            labels = {"ticks": steps, "format": "%g"} if rated else {}
            options = {"ax": axes, "orientation": "horizontal", "label": unit, **labels}
            self.figure.colorbar(image, **options).minorticks_off()
        axes = self.figure.add_subplot(grid[1, :])
        axes.errorbar(trace[:, 0], trace[:, 1], trace[:, 2], fmt="o-", ms=3, capsize=2)
        axes.set(xlabel=self._against, ylabel=f"{self._traced}\n(counts / s)")
        if not data.get("denoise_ok", True):
            self.figure.suptitle(f"not denoised: {data.get('denoise_reason', '')}", color="red")
        if self.save_to is not None:
            self.figure.savefig(self.save_to, dpi=90)
        elif self._timer is not None:
            self.figure.canvas.draw_idle()

    def _loop(self) -> None:
        """Draw when there is something new (on a thread)."""
        while not self._closing.is_set():
            self._changed.wait()
            try:
                self.draw()
            except Exception:
                logger.exception("The live view could not be drawn")
            self._closing.wait(self._interval_s)
        try:
            self.draw()
        except Exception:
            logger.exception("The live view could not be drawn")


def _box(start: Mapping[str, Any], data_key: str, roi: str) -> Mapping[str, Any]:
    """Return rows and columns of a region, from the settings that a derived run records."""
    settings = start.get("denoise", {}).get("settings", {}).get("rois", {})
    return settings.get(data_key, settings.get("*", {})).get(roi, {})


def _mark(axes: Any, box: Mapping[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = box["rows"], box["cols"]
    corner = left - 0.5, top - 0.5
    axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, color="tab:red"))


def _first_motor(start: Mapping[str, Any]) -> str:
    dimensions = start.get("hints", {}).get("dimensions", [])
    names = [field for fields, _ in dimensions for field in fields if field != "time"]
    return names[0] if names else "point"


def _has_windows() -> bool:
    import matplotlib as mpl
    from matplotlib.backends import BackendFilter, backend_registry

    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    return mpl.get_backend().lower() in {name.lower() for name in interactive}
