"""Classic ophyd detectors without EPICS: frames in events, or in an HDF5 file."""

import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ophyd import Component, Device, DeviceStatus, Kind, Signal
from ophyd.signal import InternalSignal
from ophyd.sim import SynAxis

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.simulation.frame_writer import FrameWriter
from bluesky_denoise.simulation.generators import FrameGenerator

__all__ = ["AreaDetectorReplay", "ReplayDetector", "SimulatedMotor"]


class SimulatedMotor(SynAxis):
    """A `SynAxis` whose positions are floats, as those of a real motor are.

    Tiled takes the type of a column from its first value, and refuses decimals behind an integer.
    """

    def __init__(self, *, value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(value=float(value), **kwargs)

    def set(self, value: float) -> Any:
        """Move, in a thread; the status tells when it is there."""
        return super().set(float(value))


class _Positive(Signal):
    """A setting that must be more than 0."""

    def check_value(self, value: float, **kwargs: Any) -> None:
        if not value > 0:
            raise SettingsError(f"{self.name} was set to {value!r}; expected more than 0.")


class _AcquireTime(_Positive):
    """Exposure time of a frame, seconds."""

    def put(self, value: float, **kwargs: Any) -> None:
        # Tiled takes the type of a column from its first value: 1 s must not make integers of all.
        super().put(float(value), **kwargs)

    def describe(self) -> dict[str, dict[str, Any]]:
        described = super().describe()
        described[self.name]["units"] = "s"
        return described


class _Image(InternalSignal):
    """The last frame, (H, W) uint32 counts."""

    def describe(self) -> dict[str, dict[str, Any]]:
        described = super().describe()
        described[self.name].update(dtype_numpy="<u4", units="counts")
        return described


class _Total(InternalSignal):
    """Sum over all pixels of all frames of the last point, counts."""


class _Stats(Device):
    total = Component(_Total, value=0, kind=Kind.hinted)


class _Cam(Device):
    acquire_time = Component(_AcquireTime, value=1.0, kind=Kind.config)


class _AreaDetectorCam(_Cam):
    num_images = Component(_Positive, value=1, kind=Kind.config)


class _FrameDetector(Device):
    """What both detectors share: they expose, and sum what they counted."""

    cam = Component(_Cam, kind=Kind.config)
    stats1 = Component(_Stats)
    _store: Callable[[list[np.ndarray]], None]  # each of them says where the frames of a point go

    def __init__(
        self,
        *args: Any,
        frames: FrameGenerator,
        exposure_s: float = 1.0,
        realtime: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.frames = frames
        self.realtime = realtime
        self._exposing: threading.Thread | None = None
        self._cancelled = threading.Event()
        self.cam.acquire_time.put(exposure_s)

    def trigger(self) -> DeviceStatus:
        """Expose; the status is done when the frames are there to be read.

        An exposure that is going on, as after a pause, is cancelled and leaves nothing.
        """
        self._cancel()
        status = DeviceStatus(self)
        if self.realtime:
            self._exposing = threading.Thread(
                target=self._trigger_in_thread, args=(status,), daemon=True
            )
            self._exposing.start()
        else:
            self._expose(wait=False)
            status.set_finished()
        return status

    def unstage(self) -> list[object]:
        """Cancel an exposure that is going on."""
        self._cancel()
        return super().unstage()

    def _cancel(self) -> None:
        if self._exposing is not None:
            self._cancelled.set()
            self._exposing.join()
            self._cancelled.clear()
            self._exposing = None

    def _trigger_in_thread(self, status: DeviceStatus) -> None:
        try:
            self._expose(wait=True)
        except Exception as error:
            status.set_exception(error)
        else:
            # Also of one that was cancelled: to bluesky, an error would be one of the plan.
            status.set_finished()

    def _expose(self, wait: bool) -> None:
        exposure_s = self.cam.acquire_time.get()
        frames = []
        for _ in range(self._frames_per_point()):
            end = time.monotonic() + exposure_s
            frames.append(self.frames(exposure_s))
            if wait and self._cancelled.wait(max(0.0, end - time.monotonic())):
                return
        self._store(frames)
        total = sum(int(frame.sum(dtype=np.int64)) for frame in frames)
        self.stats1.total.put(total, internal=True)

    def _frames_per_point(self) -> int:
        return 1


class ReplayDetector(_FrameDetector):
    """A detector whose frames are in the events themselves.

    Data keys: ``<name>_image``, (H, W) uint32 counts; ``<name>_stats1_total``, their
    sum, hinted. Configuration: ``<name>_cam_acquire_time``, seconds; set it with
    ``bps.mv(det.cam.acquire_time, 0.1)`` between runs.

    Parameters
    ----------
    prefix : as every ophyd device has it; not used
    name : name of the device
    frames : where the frames come from
    exposure_s : first value of ``cam.acquire_time``, seconds, > 0
    realtime : take as long as the exposure; otherwise a trigger is done at once

    Raises
    ------
    SettingsError
        If ``cam.acquire_time`` is set to 0 or less.
    """

    image = Component(_Image, kind=Kind.normal)

    def __init__(
        self, prefix: str = "", *, name: str, frames: FrameGenerator, **kwargs: Any
    ) -> None:
        super().__init__(prefix, name=name, frames=frames, **kwargs)
        self.image.put(np.zeros(frames.shape, np.uint32), internal=True)

    def _store(self, frames: list[np.ndarray]) -> None:
        self.image.put(frames[-1], internal=True)


class AreaDetectorReplay(_FrameDetector):
    """A detector as areaDetector with its HDF5 plugin: frames in one file for each stage.

    The file is written in SWMR mode and readable while the scan runs. Data keys:
    ``<name>_image``, a datum id in the events, described as (num_images, H, W);
    ``<name>_stats1_total``, the sum over the point, hinted. Configuration:
    ``<name>_cam_acquire_time``, seconds, and ``<name>_cam_num_images``. One Resource of
    spec ``AD_HDF5`` for each stage, one Datum with a ``point_number`` for each point.

    A point is written when it is read: one that a pause has interrupted is not in the file.

    Parameters
    ----------
    prefix : as every ophyd device has it; not used
    name : name of the device
    frames : where the frames come from
    directory : folder of the files, made where missing
    exposure_s : first value of ``cam.acquire_time``, seconds, > 0
    num_images : first value of ``cam.num_images``, frames for each trigger; a new value
        counts from the next stage on
    realtime : take as long as the exposures; otherwise a trigger is done at once

    Raises
    ------
    SettingsError
        If ``cam.acquire_time`` or ``cam.num_images`` is set to 0 or less, or the
        detector is triggered before it is staged.
    """

    cam = Component(_AreaDetectorCam, kind=Kind.config)

    def __init__(
        self,
        prefix: str = "",
        *,
        name: str,
        frames: FrameGenerator,
        directory: str | Path,
        num_images: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix, name=name, frames=frames, **kwargs)
        self.directory = Path(os.path.normpath(Path(directory).absolute()))  # Tiled takes no `..`
        self.cam.num_images.put(num_images)
        self._file: FrameWriter | None = None
        self._asset_docs: deque[tuple[str, dict[str, Any]]] = deque()
        self._reading: dict[str, Any] | None = None
        self._unread: list[np.ndarray] = []
        self._staged_num_images = num_images
        self._points = 0

    def stage(self) -> list[object]:
        """Open a new file, and announce it in a Resource."""
        staged = super().stage()
        self._staged_num_images = int(self.cam.num_images.get())
        self._resource_uid = str(uuid.uuid4())
        self._file = FrameWriter(self.directory / f"{self._resource_uid}.h5", self.frames.shape)
        self._points = 0
        self._reading = None
        self._asset_docs.append(
            (
                "resource",
                {
                    "uid": self._resource_uid,
                    "spec": "AD_HDF5",
                    "root": str(self.directory),
                    "resource_path": self._file.path.name,
                    "resource_kwargs": {"frame_per_point": self._staged_num_images},
                    "path_semantics": "posix",
                },
            )
        )
        return staged

    def unstage(self) -> list[object]:
        """Cancel an exposure that is going on, and close the file."""
        self._cancel()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._unread = []
        self._asset_docs.clear()
        return super().unstage()

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe the frames as external, and the sum."""
        described = super().describe()
        described[f"{self.name}_image"] = {
            "source": f"SIM:{self.name}",
            "dtype": "array",
            "dtype_numpy": "<u4",
            "shape": [self._staged_num_images, *self.frames.shape],
            "external": "FILESTORE:",
            "units": "counts",
        }
        return described

    def read(self) -> dict[str, dict[str, Any]]:
        """Read the datum id of the last point's frames, which are now written, and the sum."""
        if self._file is not None and self._unread:
            self._write(self._file, self._unread)
            self._unread = []
        if self._reading is None:
            raise SettingsError(f"{self.name} has no frames yet; trigger it before it is read.")
        return {**super().read(), f"{self.name}_image": self._reading}

    def collect_asset_docs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Hand over the Resource and Datum documents that are new."""
        while self._asset_docs:
            yield self._asset_docs.popleft()

    def _frames_per_point(self) -> int:
        return self._staged_num_images

    def _expose(self, wait: bool) -> None:
        if self._file is None:
            raise SettingsError(f"{self.name} has no file open; stage it before it is triggered.")
        self._unread = []
        super()._expose(wait)

    def _store(self, frames: list[np.ndarray]) -> None:
        self._unread = frames

    def _write(self, file: FrameWriter, frames: list[np.ndarray]) -> None:
        for frame in frames:
            file.append(frame)
        datum_id = f"{self._resource_uid}/{self._points}"
        self._asset_docs.append(
            (
                "datum",
                {
                    "resource": self._resource_uid,
                    "datum_id": datum_id,
                    "datum_kwargs": {"point_number": self._points},
                },
            )
        )
        self._reading = {"value": datum_id, "timestamp": time.time()}
        self._points += 1
