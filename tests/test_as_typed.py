"""A scan at the prompt, as users type it, with detectors of ophyd, of ophyd-async and ours."""

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import SHAPE, poisson
from ophyd.sim import DirectImage, SynAxis, SynSignal, SynSignalWithRegistry
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from ophyd_async.sim import SimBlobDetector
from tiers import thorough
from tiled.client import from_uri

from bluesky_denoise import DenoiseProcess, DenoiseSettings, embedded_tiled
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector

FRAMES = np.random.default_rng(1).poisson(5, (7, *SHAPE)).astype(np.uint16)


def frames():
    return ReplayFrames(FRAMES, 0.1)


def with_registry(directory):
    return SynSignalWithRegistry(func=poisson(), name="det", save_path=str(directory))


def under_a_loop(make):
    def made(directory):
        paths = StaticPathProvider(UUIDFilenameProvider(), directory)
        with init_devices():
            det = make(paths)
        return det

    return made


DETECTORS = {
    "ophyd.sim.SynSignal": lambda directory: SynSignal(func=poisson(), name="det"),
    "ophyd.sim.SynSignalWithRegistry": with_registry,
    "ophyd.sim.DirectImage": lambda directory: DirectImage(func=poisson(), name="det"),
    "ophyd_async.sim.SimBlobDetector": under_a_loop(lambda p: SimBlobDetector(p, name="det")),
    "ReplayDetector": lambda directory: ReplayDetector(name="det", frames=frames()),
    "AreaDetectorReplay": lambda directory: AreaDetectorReplay(
        name="det", frames=frames(), directory=directory
    ),
    "AsyncReplayDetector": under_a_loop(lambda p: AsyncReplayDetector(p, frames(), name="det")),
}
OFTEN = ("ophyd_async.sim.SimBlobDetector", "ReplayDetector", "AreaDetectorReplay")


def check(run, frames, num):
    """Check that frames are the counts of the raw run, moved and divided by the exposure."""
    raw, denoised = run["primary"], run["denoised"]
    (key,) = (key for key in raw if raw[key].ndim > 2)
    counts = raw[key].read().reshape(frames.shape)
    assert list(denoised["motor"].read()) == list(np.linspace(-1, 1, num))
    # Frames of 20 x 16 pixels, or that no photons have made, may fail the audit.
    reasons = [r for r in denoised["denoise_reason"].read() if not r.startswith("audit")]
    assert set(reasons) <= {""}
    assert (frames >= 0).all()
    axes = tuple(range(1, frames.ndim))
    np.testing.assert_allclose(
        frames.sum(axes, dtype=float) * denoised["det_exposure_s"].read(),
        counts.sum(axes, dtype=float),
        rtol=1e-4,  # float32 sums of what the network moved and did not make
    )


def test_a_scan_gives_denoised_frames_by_the_name_of_the_detector(RE, tmp_path):
    path, motor = tmp_path, SynAxis(name="motor")
    det = ReplayDetector(name="det", frames=frames())

    with embedded_tiled(path) as uri:
        client = from_uri(uri)
        RE.subscribe(TiledWriter(client, batch_size=1))
        with DenoiseProcess(
            DenoiseSettings(
                tiled_uri=uri,
                data_keys=["det"],
                exposure_s=0.1,
                frames_directory=path / "denoised",
            )
        ) as denoise:
            RE.subscribe(denoise)
            (uid,) = RE(bp.scan([det], motor, -1, 1, 20))
            denoise.wait(60)
        frames_read = client[uid]["denoised"]["det"].read()
        check(client[uid], frames_read, 20)
        client.context.close()


@pytest.fixture(scope="module")
def session(tiled, tmp_path_factory):
    """One client and one process for all detectors, which have the same name."""
    options = DenoiseSettings(
        tiled_uri=tiled.uri,
        data_keys=["det"],
        exposure_s=0.1,
        frames_directory=tmp_path_factory.mktemp("as_typed"),
    )
    with DenoiseProcess(options) as denoise:
        yield tiled.client, denoise


@pytest.mark.parametrize(
    "make",
    [one if name in OFTEN else thorough(one) for name, one in DETECTORS.items()],
    ids=DETECTORS,
)
def test_it_works_with_any_detector(RE, session, make, tmp_path):
    client, denoise = session
    det = make(tmp_path)
    RE.subscribe(TiledWriter(client, batch_size=1))
    RE.subscribe(denoise)
    (uid,) = RE(bp.scan([det], SynAxis(name="motor"), -1, 1, 2))
    denoise.wait(60)
    check(client[uid], client[uid]["denoised"]["det"].read(), 2)
