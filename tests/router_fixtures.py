"""What the tests of `DenoiseRouter` share."""

import numpy as np
import pytest
from live_path import (
    SHAPE,
    UnchangedDocuments,
    settings,
)
from ophyd.sim import SynAxis
from ophyd_async.core import (
    StaticPathProvider,
    UUIDFilenameProvider,
)

from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.testing import (
    DocumentCollector,
    UnitDenoiser,
)

EXPOSURE_S = 0.5


@pytest.fixture
def motor():
    return SynAxis(name="motor")


@pytest.fixture
def counts():
    return np.random.default_rng(1).poisson(5, (12, *SHAPE)).astype(np.uint16)


@pytest.fixture
def build(RE, raw, tmp_path):
    """Subscribe a router to the RunEngine; return it, and what it emits."""
    unchanged = UnchangedDocuments()
    RE.subscribe(unchanged)
    outputs = []

    def build(denoiser=None, **values):
        values = {"frames_directory": tmp_path / "denoised", **values}
        router = DenoiseRouter(settings(**values), denoiser or UnitDenoiser())
        derived = DocumentCollector()
        router.subscribe(derived)
        RE.subscribe(router)
        outputs.append(derived)
        return router, derived

    yield build
    unchanged.check()
    raw.validate()
    for derived in outputs:
        if derived.documents:
            derived.validate()


def path_provider(directory):
    return StaticPathProvider(UUIDFilenameProvider(), directory)
