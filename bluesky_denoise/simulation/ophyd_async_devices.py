"""An ophyd-async detector without EPICS: an HDF5 file, StreamResource, StreamDatum."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bluesky.protocols import StreamAsset
from ophyd_async.core import (
    AsyncStatus,
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    Device,
    PathProvider,
    StandardDetector,
    StreamableDataProvider,
    StreamResourceDataProvider,
    StreamResourceInfo,
    TriggerInfo,
    WatchableAsyncStatus,
    soft_signal_r_and_setter,
    soft_signal_rw,
)

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.simulation.frame_writer import DATASET, FrameWriter
from bluesky_denoise.simulation.generators import FrameGenerator

__all__ = ["AsyncReplayDetector", "ReplayDriver"]


class ReplayDriver(Device):
    """The settings of the detector, under the names that areaDetector gives them.

    Parameters
    ----------
    exposure_s : first value of ``acquire_time`` and ``acquire_period``, seconds
    name : name of the device
    """

    def __init__(self, exposure_s: float, name: str = "") -> None:
        self.acquire_time = soft_signal_rw(float, exposure_s, units="s")
        self.acquire_period = soft_signal_rw(float, exposure_s, units="s")
        self.num_images = soft_signal_rw(int, 1)
        super().__init__(name)


class _Writer:
    """The file that is open now, and how many frames there are.

    Frames of a point wait for its stream datum: one that is taken again after a pause leaves
    none in the file. Those of a flight, which may be many, do not wait.
    """

    def __init__(self) -> None:
        self.written, self._set_written = soft_signal_r_and_setter(int, 0)
        self._file: FrameWriter | None = None
        self._waits = False
        self._waiting: list[np.ndarray] = []

    def open(self, path: Path, shape: tuple[int, int]) -> None:
        self._file = FrameWriter(path, shape)
        self._set_written(0)

    def begin(self, waits: bool) -> None:
        self._waits = waits
        self.drop()

    def drop(self) -> None:
        """Forget the frames of a point that was not read."""
        self._waiting.clear()
        self._set_written(self._in_file())

    def append(self, frame: np.ndarray) -> None:
        self._waiting.append(frame)
        if not self._waits:
            self.flush()
        self._set_written(self._in_file() + len(self._waiting))

    def flush(self) -> None:
        if self._file is not None:
            for frame in self._waiting:
                self._file.append(frame)
        self._waiting.clear()

    def _in_file(self) -> int:
        return 0 if self._file is None else len(self._file)

    def close(self) -> None:
        self._waiting.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass
class _TriggerLogic(DetectorTriggerLogic):
    driver: ReplayDriver

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        await self.driver.num_images.set(num)
        if livetime:
            await self.driver.acquire_time.set(livetime)
        exposure_s = await self.driver.acquire_time.get_value()
        if not exposure_s > 0:
            raise SettingsError(
                f"{self.driver.acquire_time.name} is {exposure_s}; expected more than 0."
            )
        await self.driver.acquire_period.set(exposure_s + deadtime)

    async def default_trigger_info(self) -> TriggerInfo:
        num = await self.driver.num_images.get_value()
        return TriggerInfo(collections_per_event=max(1, num))


class _AcquireLogic(DetectorAcquireLogic):
    def __init__(
        self, driver: ReplayDriver, frames: FrameGenerator, writer: _Writer, realtime: bool
    ) -> None:
        self._driver = driver
        self._frames = frames
        self._writer = writer
        self._realtime = realtime
        self._task: asyncio.Task[None] | None = None
        self._starts = 0

    async def start_acquiring(self) -> None:
        start = self._starts + 1  # which ensure_stopped counts before it waits
        await self.ensure_stopped()
        # Of a trigger before a pause, which begins to expose only now, after the one that follows.
        self._writer.drop()
        num, exposure_s, period_s = await asyncio.gather(
            self._driver.num_images.get_value(),
            self._driver.acquire_time.get_value(),
            self._driver.acquire_period.get_value(),
        )
        # Exposed before the task starts: an exposure that cannot be made fails here
        # with its reason, not later as a timeout of a plan that waits for frames.
        first = await asyncio.to_thread(self._frames, exposure_s)
        if start != self._starts:  # a pause came meanwhile, and another trigger
            return
        self._task = asyncio.create_task(self._acquire(first, num, exposure_s, period_s))

    async def _acquire(
        self, frame: np.ndarray, num: int, exposure_s: float, period_s: float
    ) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for i in range(num) if num else itertools.count():
            if i:
                frame = await asyncio.to_thread(self._frames, exposure_s)
            end = start + (i + 1) * period_s
            await asyncio.sleep(max(0.0, end - loop.time()) if self._realtime else 0)
            self._writer.append(frame)

    async def wait_for_idle(self) -> None:
        if self._task is not None:
            await self._task

    def cancel(self) -> None:
        self._starts += 1
        if self._task is not None:
            self._task.cancel()

    async def ensure_stopped(self) -> None:
        self.cancel()
        task, self._task = self._task, None
        if task is not None:
            with suppress(asyncio.CancelledError):
                await task


class _Provider(StreamResourceDataProvider):
    """Frames are in the file when their stream datum comes."""

    def __init__(self, writer: _Writer, **kwargs: Any) -> None:
        super().__init__(collections_written_signal=writer.written, **kwargs)
        self._writer = writer

    async def make_stream_docs(
        self, collections_written: int, collections_per_event: int
    ) -> AsyncIterator[StreamAsset]:
        self._writer.flush()
        async for doc in super().make_stream_docs(collections_written, collections_per_event):
            yield doc


class _DataLogic(DetectorDataLogic):
    def __init__(
        self, path_provider: PathProvider, frames: FrameGenerator, writer: _Writer
    ) -> None:
        self._path_provider = path_provider
        self._frames = frames
        self._writer = writer

    async def prepare_unbounded(self, datakey_name: str) -> StreamableDataProvider:
        info = self._path_provider(datakey_name)
        self._writer.close()
        self._writer.open(Path(info.directory_path) / f"{info.filename}.h5", self._frames.shape)
        return _Provider(
            self._writer,
            uri=f"{info.directory_uri}{info.filename}.h5",
            resources=[
                StreamResourceInfo(
                    data_key=datakey_name,
                    shape=self._frames.shape,
                    chunk_shape=(1, *self._frames.shape),
                    dtype_numpy="<u4",
                    parameters={"dataset": DATASET},
                )
            ],
            mimetype="application/x-hdf5",
        )

    async def stop(self) -> None:
        self._writer.close()

    def get_hinted_fields(self, datakey_name: str) -> Sequence[str]:
        return [datakey_name]


class AsyncReplayDetector(StandardDetector):
    """An ophyd-async detector that writes an HDF5 file for each stage.

    It can be used in step scans, and flown with internal triggers. The file is written
    in SWMR mode and readable while the scan runs. Data key: ``<name>``, a stream of
    (1, H, W) uint32 counts. Configuration, seconds: ``<name>-driver-acquire_time``, which is
    set with ``bps.mv(det.driver.acquire_time, 0.1)`` or by `TriggerInfo.livetime`, and
    ``<name>-driver-acquire_period``, which follows from it: it is set to the exposure and
    `TriggerInfo.deadtime` whenever the detector is prepared, whatever it was before.

    A point is written when it is read: one that a pause has interrupted is not in the file.

    Create it under ``with init_devices():`` once the RunEngine is there.

    Parameters
    ----------
    path_provider : says where the files go; each file must be new
    frames : where the frames come from
    exposure_s : first value of ``driver.acquire_time``, seconds, > 0
    realtime : take as long as the exposures; otherwise frames come as fast as they can
    name : name of the device

    Raises
    ------
    SettingsError
        When it is prepared with an exposure of 0 or less.
    """

    def __init__(
        self,
        path_provider: PathProvider,
        frames: FrameGenerator,
        *,
        exposure_s: float = 1.0,
        realtime: bool = False,
        name: str = "",
    ) -> None:
        self.driver = ReplayDriver(exposure_s)
        self.frames = frames
        self._writer = _Writer()
        self._acquire = _AcquireLogic(self.driver, frames, self._writer, realtime)
        self.add_detector_logics(
            _TriggerLogic(self.driver),
            self._acquire,
            _DataLogic(path_provider, frames, self._writer),
        )
        self.add_config_signals(self.driver.acquire_period, self.driver.acquire_time)
        super().__init__(name=name)

    def trigger(self) -> WatchableAsyncStatus[int]:
        """Take a point; one that was never read, as after a pause, is dropped."""
        # Before frames are counted, and without awaiting: none can come in between.
        self._acquire.cancel()
        self._writer.begin(waits=True)
        return super().trigger()

    def kickoff(self) -> AsyncStatus:
        """Begin to fly."""
        self._writer.begin(waits=False)
        return super().kickoff()
