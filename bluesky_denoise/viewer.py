"""Live view of a scan: raw, denoised, and what is between them, with the trace of an ROI."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

from bluesky_denoise.errors import DenoiseError, SettingsError
from bluesky_denoise.sources.frame_keys import SIGMA, also_called, frame_keys, is_sigma
from bluesky_denoise.sources.resources import RESOURCE_PATCHES
from bluesky_denoise.views.recent_frames import RecentFrames
from bluesky_denoise.views.screen import block_px, panels, show_blocks

__all__ = ["FrameViewer"]

logger = logging.getLogger(__name__)

_INCHES = (13.0, 7.0)


class FrameViewer:
    """Show raw frame, denoised frame and residual side by side, over the trace of an ROI.

    Where the denoised stream has standard errors, they are shown too. The ROI is marked, and
    its intensity traced against the first motor of the scan, or the number of the point. Of a
    frame that is larger than its place on the screen, each point shows the brightest of its
    pixels; as the difference, that of their sums.

    Documents are only noted as they come; frames are read and drawn at most once each
    `interval_s`, by a timer of the window, or on a thread where there is no window. Frames
    that come faster are passed over. A window lives during a scan with the Qt backends of
    matplotlib, as Bluesky waits for no others.

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
        self._rois: Mapping[str, Any] = {}
        self._box: Mapping[str, Any] = {}
        self._against = "point"
        self._traced = f"{roi}_intensity" if roi else f"{data_key}_denoised_total"
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._raw = RecentFrames(data_key, streams[0])
        self._denoised = RecentFrames(data_key, streams[1])
        self._sigma = RecentFrames(data_key + SIGMA, streams[1])
        self._normalizer = RunNormalizer(RESOURCE_PATCHES)
        self._raw_run = ""  # uid of the raw run that is followed
        self._derived_from = ""  # and of the one that the results are of
        self._trace: dict[int, tuple[float, float, float]] = {}  # a point may be taken again
        self._subscribed: list[tuple[Callable[[int], None], int]] = []
        self._changed, self._closing = threading.Event(), threading.Event()
        self.drawn = 0
        """How often it has been drawn."""
        self._timer: Any = None
        self._thread: threading.Thread | None = None
        if _has_windows():
            import matplotlib.pyplot as plt

            _warn_of_backend(plt.get_backend())
            self.figure = plt.figure(f"{data_key}, live", figsize=_INCHES)
            self._timer = self.figure.canvas.new_timer(int(1000 * interval_s))
            self._timer.add_callback(self._try_to_draw)
            self._timer.start()
            self.figure.canvas.mpl_connect("close_event", self._window_is_closed)
            self.figure.show()
        else:
            self.figure = Figure(figsize=_INCHES)
            self._thread = threading.Thread(target=self._loop, name="frame-viewer", daemon=True)
            self._thread.start()

    def __repr__(self) -> str:
        return f"FrameViewer(data_key={self.data_key!r}, roi={self._roi or None!r})"

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
        self._subscribed.append((RE.unsubscribe, RE.subscribe(self.raw)))
        self._subscribed.append((denoise.unsubscribe, denoise.subscribe(self.derived)))

    def raw(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a raw run."""
        with self._lock:
            if name == "start":
                # Resource and Datum become StreamResource and StreamDatum: one path for all.
                self._normalizer = RunNormalizer(RESOURCE_PATCHES)
                self._normalizer.subscribe(self._raw.note)
                self._raw_run = doc["uid"]
            elif name == "stop" or not self._raw_run:
                return
            try:
                self._raw.note_datums(str(name), doc)
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
                self._rois = doc.get("denoise", {}).get("settings", {}).get("rois", {})
                self._against = _first_motor(doc)
            self._denoised.note(str(name), doc)
            self._sigma.note(str(name), doc)
            if name == "descriptor" and doc["uid"] in self._denoised.descriptors:
                raw: Mapping[str, Any] = next(
                    iter(self._raw.descriptors.values()), {"data_keys": {}}
                )
                self._box = _box(self._rois, raw, self.data_key, self._roi)
                self._warn_of_lacking(doc)
            if name == "event" and doc["descriptor"] in self._denoised.descriptors:
                data = doc["data"]
                error = data.get(self._traced + "_error", 0.0)
                value = data.get(self._traced, np.nan)
                at = data.get(self._against)
                if not isinstance(at, Real):  # a filter, say, that is moved by name
                    self._against, at = "point", data["raw_seq_num"]
                self._trace[data["raw_seq_num"]] = at, value, error
        if name == "event":
            self._changed.set()

    def _warn_of_lacking(self, descriptor: Mapping[str, Any]) -> None:
        keys = descriptor["data_keys"]
        for what, key in (("show", self.data_key), ("trace", self._traced)):
            if key not in keys:
                logger.warning(
                    "The live view is to %s %s, which the stream %s does not have; it has %s",
                    *(what, key, descriptor["name"], ", ".join(keys)),
                )
                return

    def close(self) -> None:
        """Draw what has come last, and stop."""
        while self._subscribed:
            unsubscribe, token = self._subscribed.pop()
            unsubscribe(token)
        self._closing.set()
        self._changed.set()
        if self._timer is not None:
            self._timer.stop()
            self._try_to_draw()
        if self._thread is not None:
            self._thread.join(10.0)
        with self._lock:
            for frames in (self._raw, self._denoised, self._sigma):
                frames.note("start", {})  # with a new run they let go of the last

    def _window_is_closed(self, event: Any) -> None:
        self._timer.stop()
        self._timer = None  # nothing is drawn on what is gone
        self.close()

    def draw(self) -> None:
        """Draw the newest frames, if there are new ones."""
        if not self._changed.is_set():
            return
        self._changed.clear()
        with self._lock:
            event = self._denoised.event
            trace = np.array([*self._trace.values()], float).reshape(-1, 3)
        exposure_key = f"{self.data_key}_exposure_s"
        if event is None or exposure_key not in event["data"]:  # no such frames: the log tells
            return
        try:
            with self._lock:
                readers = self._readers(event)
            frames = [np.asarray(read()) for read in readers]
        except (DenoiseError, OSError) as error:
            logger.warning("A frame cannot be shown: %s", error)
            return
        raw, *others = (frame.reshape(-1, *frame.shape[-2:])[0] for frame in frames)
        # Of a frame that could not be denoised the shape may be unknown.
        rate, *sigma = (f if f.shape == raw.shape else np.full(raw.shape, np.nan) for f in others)
        self._paint(raw, rate, sigma, event["data"][exposure_key], trace, event["data"])
        self.drawn += 1

    def _readers(self, event: Mapping[str, Any]) -> list[Callable[[], np.ndarray]]:
        """Return what reads the frames of a derived event: raw, denoised, and their errors."""
        if self._raw_run != self._derived_from:
            raise DenoiseError(
                f"Event {event['seq_num']} is of run {self._derived_from:.8}, of which the raw "
                "frames are no longer, or not yet, at hand."
            )
        readers = [self._raw.reader(event["data"]["raw_seq_num"])]
        keys = {self.data_key, *event["data"]}
        has_errors = self._sigma.is_there and is_sigma(self.data_key + SIGMA, keys)
        for frames in (self._denoised, *([self._sigma] if has_errors else [])):
            try:
                readers.append(frames.reader(event["seq_num"]))
            except DenoiseError:
                if event["data"]["denoise_ok"]:
                    raise
                readers.append(lambda: np.full((1, 1), np.nan))  # it could not be saved
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
        self.figure.clear()
        # The places are known before the frames are drawn, unlike with a layout that fits them.
        columns = 3 + len(sigma)
        grid = self.figure.add_gridspec(
            3,
            columns,
            left=0.1,
            right=0.98,
            bottom=0.08,
            top=0.9,
            wspace=0.2,
            hspace=0.4,
            height_ratios=_heights(raw.shape, columns),
        )
        places = [self.figure.add_subplot(grid[0, i]) for i in range(columns)]
        block = block_px(places[0], raw.shape)
        drawn = panels(raw, rate, sigma, exposure_s, block)
        for i, (axes, panel) in enumerate(zip(places, drawn, strict=True)):
            image = show_blocks(axes, panel.blocks, block, raw.shape, **panel.options)
            title = f"point {data['raw_seq_num']}, {panel.title}" if i == 0 else panel.title
            axes.set_title(title)
            axes.set_facecolor("0.8")
            if self._box:
                _mark(axes, self._box)
            bar = self.figure.add_subplot(grid[1, i])
            ticks = _ticks(panel.options.get("norm"))
            colors = self.figure.colorbar(
                image, cax=bar, orientation="horizontal", label=panel.unit, **ticks
            )
            colors.minorticks_off()
        axes = self.figure.add_subplot(grid[2, :])
        axes.errorbar(trace[:, 0], trace[:, 1], trace[:, 2], fmt="o-", ms=3, capsize=2)
        axes.set(xlabel=self._against, ylabel=f"{self._traced}\n(counts / s)")
        if self._against == "point":
            axes.locator_params(axis="x", integer=True)
        if not data.get("denoise_ok", True):
            is_denoised = exposure_s > 0 or np.isfinite(rate).any()
            said = "not ok" if is_denoised else "not denoised"
            self.figure.suptitle(
                f"{said}: {data.get('denoise_reason', '')}",
                **{"color": "red", "fontsize": "medium", "wrap": True, "parse_math": False},
            )
        if self.save_to is not None:
            self._save(Path(self.save_to))
        if self._timer is not None:
            self.figure.canvas.draw_idle()

    def _save(self, path: Path) -> None:
        """Write the picture; who reads it meanwhile reads the last one."""
        if not path.suffix:
            path = path.with_name(f"{path.name}.png")
        part = path.with_name(f".{path.name}.part")
        self.figure.savefig(part, format=path.suffix[1:], dpi=self.figure.dpi)
        os.replace(part, path)

    def _try_to_draw(self) -> None:
        try:
            self.draw()
        except Exception:
            logger.exception("The live view could not be drawn")

    def _loop(self) -> None:
        """Draw when there is something new (on a thread)."""
        while not self._closing.is_set():
            self._changed.wait()
            self._try_to_draw()
            self._closing.wait(self._interval_s)
        self._try_to_draw()


def _heights(shape: tuple[int, ...], columns: int) -> tuple[float, float, float]:
    """Return the heights of frames, bars and trace, inches: wide frames leave more to the trace."""
    width = 0.88 * _INCHES[0] / (1.2 * columns - 0.2)  # of a frame
    frames = min(max(width * shape[0] / shape[1], 1.0), 3.3)
    return frames, 0.14, 4.53 - 0.14 - frames


def _ticks(norm: Any) -> dict[str, Any]:
    """Return the options of a logarithmic colour bar; None: of another."""
    from matplotlib.ticker import LogLocator

    if norm is None:
        return {}
    # Labels of all steps of two decades stand on top of each other.
    steps = (1,) if norm.vmax > 100 * norm.vmin else (1, 2, 5)
    return {"ticks": LogLocator(subs=steps), "format": "%g"}


def _box(
    rois: Mapping[str, Any], raw: Mapping[str, Any], data_key: str, roi: str
) -> Mapping[str, Any]:
    """Return rows and columns of a region, from the settings that a derived run records."""
    key = frame_keys(raw, [data_key]).get(data_key, data_key)
    for name in (data_key, *also_called(raw, data_key, key), "*"):
        if roi in rois.get(name, {}):
            return rois[name][roi]
    return {}


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


def _warn_of_backend(backend: str) -> None:
    if "qt" not in backend.lower():
        logger.warning(
            "The live view is in a window of %s, which stands still during a scan, as Bluesky "
            "runs the event loop of Qt alone. Choose it before the first plot: `%%matplotlib qt`, "
            "or matplotlib.use('QtAgg').",
            backend,
        )
