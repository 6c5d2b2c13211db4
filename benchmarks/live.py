"""The cost of denoising beside a scan: to the RunEngine, and until frames are in Tiled."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import plans as bp
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri

from bluesky_denoise import DenoiseProcess, Denoiser, DenoiseSettings, embedded_tiled
from bluesky_denoise.simulation import ReplayFrames, recorded_frames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay

KEY = "det_image"


def _detector(directory: Path) -> AreaDetectorReplay:
    recorded = recorded_frames()
    frames = ReplayFrames(recorded.counts, recorded.exposure_s)
    return AreaDetectorReplay(name="det", frames=frames, directory=directory / "raw")


@contextmanager
def _beamline() -> Iterator[tuple[Path, str]]:
    with tempfile.TemporaryDirectory() as name, embedded_tiled(name) as uri:
        yield Path(name), uri


class RunEngineSpeed(NamedTuple):
    """What a RunEngine loses to whoever works beside it."""

    ratio: float
    """Events per second with `DenoiseProcess` over those with a no-op callback."""
    added_us: float
    """Microseconds added to each event."""
    handing_over_us: float
    """Of them, processor time of the RunEngine's thread for handing an event over."""
    beside_another: float
    """Events per second with a no-op while a process denoises that knows no Bluesky, over those
    alone: what two busy cores take from each other, and no handing over can be blamed for."""


def run_engine_speed(events: int = 20, repeats: int = 60) -> RunEngineSpeed:
    """Compare a RunEngine with `DenoiseProcess` with one that has a no-op callback.

    Frames travel by reference, in files. The queue is long enough never to make the
    RunEngine wait: what is measured is the cost of handing over, while the child works.
    A RunEngine alone may be twice as fast in one second as in the next, so that many short
    scans are compared, each with one just before or after it, and medians are returned.
    """
    RE = RunEngine()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        det = _detector(directory)
        settings = DenoiseSettings(frames_directory=directory / "denoised", queue_size=100_000)

        def event_s(callback: Callable) -> float:
            token = RE.subscribe(callback)
            elapsed = _timed(lambda: RE(bp.count([det], events)))
            RE.unsubscribe(token)
            return elapsed / events

        def nothing(name: str, doc: dict) -> None:
            pass

        spent = []

        with DenoiseProcess(settings) as denoise, _another_process() as another:

            def hand_over(name: str, doc: dict) -> None:
                begin = time.thread_time()
                denoise(name, doc)
                spent.append(time.thread_time() - begin)

            def denoised() -> float:
                seconds = event_s(hand_over)
                denoise.wait(600)
                return seconds

            def beside_another() -> float:
                another.send_signal(signal.SIGCONT)
                seconds = event_s(nothing)
                another.send_signal(signal.SIGSTOP)
                return seconds

            denoised()  # warm up
            spent.clear()
            pairs: dict[Callable, list[tuple[float, float]]] = {denoised: [], beside_another: []}
            for repeat in range(repeats):
                for measure, found in pairs.items():
                    if repeat % 2:
                        found.append((event_s(nothing), measure()))
                    else:
                        found.append((measure(), event_s(nothing))[::-1])
    return RunEngineSpeed(
        median(alone / beside for alone, beside in pairs[denoised]),
        median(beside - alone for alone, beside in pairs[denoised]) * 1e6,
        sum(spent) / (repeats * events) * 1e6,
        median(alone / beside for alone, beside in pairs[beside_another]),
    )


_COMPUTE = """
import os
from bluesky_denoise import Denoiser
from bluesky_denoise.support.memory import keep_freed_memory
from bluesky_denoise.simulation import recorded_frames
os.nice(5)
keep_freed_memory()
denoiser, frames = Denoiser.load(threads=1), recorded_frames().counts[:1]
denoiser.denoise(frames, 1.0)
print("ready", flush=True)
while True:
    denoiser.denoise(frames, 1.0)
"""


@contextmanager
def _another_process() -> Iterator[subprocess.Popen]:
    """Start a process that, when it goes on, denoises one frame over and over."""
    with subprocess.Popen([sys.executable, "-c", _COMPUTE], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        try:
            yield process
        finally:
            process.kill()


def frames_into_tiled(frames: int = 60, repeats: int = 3) -> float:
    """Return frames per second, raw and denoised in Tiled, over those of raw alone.

    Both are measured in turn, and the median of their ratios is returned.
    """
    with _beamline() as (directory, uri):
        RE = RunEngine()
        RE.subscribe(TiledWriter(from_uri(uri), batch_size=1))
        det = _detector(directory)
        ratios = []
        settings = DenoiseSettings(
            tiled_uri=uri, frames_directory=directory / "denoised", queue_size=100_000
        )
        with DenoiseProcess(settings) as denoise:

            def denoised(number: int) -> None:
                token = RE.subscribe(denoise)
                RE(bp.count([det], number))
                denoise.wait(600)
                RE.unsubscribe(token)

            denoised(5)  # warm up
            for _ in range(repeats):
                alone = _timed(lambda: RE(bp.count([det], frames)))
                ratios.append(alone / _timed(lambda: denoised(frames)))
    return median(ratios)


def latencies(frames: int = 40, period_s: float = 0.6) -> dict[str, tuple[float, float]]:
    """Return p50 and p95 from a raw event to what comes of it.

    Returns
    -------
    dict
        ``"event"``: to the denoised event, in units of the time that the denoiser alone
        takes for one frame; ``"readable"``: to the denoised frame in Tiled, in units of
        the median time that the raw frame itself takes.
    """
    recorded = recorded_frames()
    denoiser = Denoiser.load()
    one = median(_timed(lambda: denoiser.denoise(recorded.counts[0], 1.0)) for _ in range(10))
    done: dict[str, dict[int, float]] = {"raw": {}, "event": {}}
    with _beamline() as (directory, uri):
        RE = RunEngine()
        client = from_uri(uri)
        det = _detector(directory)
        seen: dict[str, list[float]] = {"primary": [], "denoised": []}
        settings = DenoiseSettings(tiled_uri=uri, frames_directory=directory / "denoised")
        with DenoiseProcess(settings) as denoise:

            def raw_event(name: str, doc: dict) -> None:
                done["raw"][doc["seq_num"]] = time.perf_counter()

            def derived_event(name: str, doc: dict) -> None:
                done["event"][doc["data"]["raw_seq_num"]] = time.perf_counter()

            denoise.subscribe(derived_event, "event")
            RE.subscribe(raw_event, "event")
            RE.subscribe(TiledWriter(client, batch_size=1))
            RE.subscribe(denoise)
            uids: list[str] = []
            RE.subscribe(lambda name, doc: uids.append(doc["uid"]), "start")

            def look() -> Iterator:
                """Wait after each point until both frames are there."""
                number = len(done["raw"])
                begin = done["raw"][number]
                for stream in ("primary", "denoised"):
                    while not _length(client, uids[-1], stream) >= number:
                        yield from bps.null()
                    if number > 3:  # the first make the nodes
                        seen[stream].append(time.perf_counter() - begin)
                yield from bps.sleep(max(0.0, begin + period_s - time.perf_counter()))

            def shot(detectors: list) -> Iterator:
                yield from bps.one_shot(detectors)
                yield from look()

            RE(bp.count([det], frames, per_shot=shot))
            denoise.wait(600)
    events = [done["event"][number] - begin for number, begin in done["raw"].items()][3:]
    unit = median(seen["primary"])
    return {
        "event": tuple(np.percentile(events, (50, 95)) / one),
        "readable": tuple(np.percentile(seen["denoised"], (50, 95)) / unit),
    }


def _length(client, uid: str, stream: str) -> int:
    try:
        return client[uid][stream][KEY].shape[0]
    except KeyError:
        return 0


def _timed(function: Callable) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
