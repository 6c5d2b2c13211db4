"""A detector that denoises its own frames, for plans that cannot be changed."""

import inspect
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ophyd.status import DeviceStatus

from bluesky_denoise.errors import FrameShapeError, SettingsError
from bluesky_denoise.frames import DenoiserLike, Frame
from bluesky_denoise.plans.checks import check_above_zero
from bluesky_denoise.plans.exposures import exposure_signal, summed_exposures_signal
from bluesky_denoise.roi import ROI
from bluesky_denoise.runs.results import hinted_keys, measure, number_keys

__all__ = ["DenoisedDetector"]

_OF_THE_DETECTOR = (
    *("stage", "unstage", "configure", "read_configuration", "describe_configuration"),
    *("pause", "resume", "stop", "subscribe", "clear_sub", "check_value", "collect_asset_docs"),
    *("prepare", "kickoff", "complete", "collect", "describe_collect", "set", "locate"),
)


class DenoisedDetector:
    """A detector whose readings carry the denoised numbers of the same point.

    For plans and callbacks that decide from what they read: ``adaptive_scan``,
    ``tune_centroid``, PeakStats, BestEffortCallback. Its trigger is done when the frame is
    denoised, in this process and on a thread; in a plan that waits for each point nothing
    is lost by that. Where frames come fast, use a `DenoiseProcess` with `DenoisedSignals`.

    All readings of the detector are passed on; added are ``<name>_frame_raw_total`` (counts),
    ``<name>_frame_denoised_total`` (counts / s), ``<name>_frame_exposure_s``, and for each
    ROI ``<name>_<roi>_intensity`` and the other numbers of `measure_roi`. Intensities are
    hinted, or the total where there are no ROIs. Whatever else the detector has, it has too.

    It stands for the detector: give a plan the one or the other, never both. Ophyd refuses to
    stage a detector twice, before the run begins (``RedundantStaging: ... is already staged``).

    Parameters
    ----------
    detector :
        An ophyd detector.
    denoiser :
        Such as ``Denoiser.load()``.
    rois :
        By name.
    frame :
        Returns the last frame, (H, W) counts, for detectors whose frames are in files,
        such as ``lambda: det.image1.shaped_image.get()``; None: it is in the reading.
    exposure_s :
        Seconds; None: what the detector is set to.
    mask :
        (H, W) bool, True where a pixel is invalid.

    Raises
    ------
    SettingsError
        If it cannot be told how long the detector exposes, `exposure_s` is not above 0, or a region
        is none.

    Examples
    --------
    >>> smart = DenoisedDetector(det, Denoiser.load(), rois={"satellite": roi})
    >>> RE(tune_centroid([smart], "det_satellite_intensity", motor, -1, 1, 0.01))
    """

    parent = None

    def __init__(
        self,
        detector: Any,
        denoiser: DenoiserLike,
        *,
        rois: Mapping[str, ROI] | None = None,
        frame: Callable[[], np.ndarray] | None = None,
        exposure_s: float | None = None,
        mask: np.ndarray | None = None,
    ) -> None:
        if inspect.iscoroutinefunction(detector.describe):
            raise SettingsError(
                f"{detector.name} is a detector of ophyd-async; DenoisedDetector takes those of "
                "ophyd. Use DenoisedSignals and the plans of `bluesky_denoise.plans`."
            )
        for name, roi in (rois or {}).items():
            if not isinstance(roi, ROI | np.ndarray):
                raise SettingsError(
                    f"Region {name!r} is {roi!r}; expected a ROI, such as ROI(rows=(80, 96), "
                    "cols=(200, 216))."
                )
        self.detector, self.denoiser = detector, denoiser
        self._regions = {"frame": dict(rois or {})}
        self._specs = {
            f"{detector.name}_{key}": spec
            for key, spec in number_keys(self._regions, f"denoise:{denoiser.name}").items()
        }
        self._frame, self._exposure_s, self._mask = frame, exposure_s, mask
        if exposure_s is None:
            exposure_signal(detector)  # fails now rather than in the middle of a scan
        else:
            check_above_zero(exposure_s=exposure_s)
        self._numbers = dict.fromkeys(self._specs, float("nan"))
        self._stamp = time.time()
        # The RunEngine asks what it is by the protocols of Bluesky. From Python 3.12 on they see
        # attributes that are there, and none that `__getattr__` gives.
        for method in _OF_THE_DETECTOR:
            if hasattr(detector, method):
                setattr(self, method, getattr(detector, method))

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "detector":  # not there yet: while it is copied, for instance
            raise AttributeError(attribute)
        return getattr(self.detector, attribute)

    def __repr__(self) -> str:
        return f"DenoisedDetector({self.detector!r}, {self.denoiser.name!r})"

    @property
    def name(self) -> str:
        """That of the detector."""
        return self.detector.name

    @property
    def hints(self) -> dict[str, Any]:
        """Those of the detector, and what is denoised."""
        hints = dict(self.detector.hints)
        shown = [f"{self.name}_{key}" for key in hinted_keys(self._regions)]
        return {**hints, "fields": [*hints.get("fields", []), *shown]}

    def trigger(self) -> DeviceStatus:
        """Expose, then denoise; the status is done when both are."""
        status = DeviceStatus(self.detector)
        exposed = self.detector.trigger()

        def denoise() -> None:
            try:
                if (error := exposed.exception(timeout=0)) is not None:
                    raise error
                self._denoise()
            except Exception as error:
                status.set_exception(error)
            else:
                status.set_finished()

        exposed.add_callback(
            lambda *args: threading.Thread(target=denoise, name="denoise", daemon=True).start()
        )
        return status

    def read(self) -> dict[str, dict[str, Any]]:
        """Read the detector, and the denoised numbers of its frame."""
        own = {key: {"value": v, "timestamp": self._stamp} for key, v in self._numbers.items()}
        return {**self.detector.read(), **own}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe the detector, and the denoised numbers."""
        return {**self.detector.describe(), **self._specs}

    def _denoise(self) -> None:
        counts = self._counts()
        exposure_s = self._exposure_s or _exposure_s(self.detector)
        rate = self.denoiser.denoise(counts[None], exposure_s, self._mask).rate[0]
        frame = Frame(counts[None], exposure_s, self._mask, "frame", 0, "")
        numbers = measure(frame, rate[None], self._regions["frame"], self.denoiser)
        named = {f"{self.name}_{key}": value for key, value in numbers.items()}
        self._numbers = {key: named.get(key, float("nan")) for key in self._specs}
        self._stamp = time.time()

    def _counts(self) -> np.ndarray:
        """Return the last frame, (H, W)."""
        if self._frame is not None:
            frame = np.asarray(self._frame())
        else:
            reading = self.detector.read()
            arrays = [v["value"] for v in reading.values() if np.ndim(v["value"]) >= 2]
            if len(arrays) != 1:
                raise SettingsError(
                    f"{self.name} reads {', '.join(reading)}, of which {len(arrays)} hold a frame; "
                    "expected one. Give DenoisedDetector a `frame` that returns it."
                )
            frame = np.asarray(arrays[0])
        if frame.ndim == 3 and len(frame) == 1:
            frame = frame[0]
        if frame.ndim != 2:
            raise FrameShapeError(f"{self.name} gave a frame of {frame.shape}; expected (H, W).")
        return frame


def _exposure_s(detector: Any) -> float:
    """Return how long a detector exposes for an image, seconds."""
    summed = summed_exposures_signal(detector)
    return float(exposure_signal(detector).get()) * (1 if summed is None else summed.get())
