"""Detectors of ophyd-async that a plan prepares with an exposure of its own."""

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import pytest
from beamline import detector
from ophyd_async.core import (
    DetectorTrigger,
    StaticPathProvider,
    TriggerInfo,
    UUIDFilenameProvider,
    init_devices,
)

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import short_exposure_wrapper
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector


@pytest.fixture
def pilatus(RE, tmp_path):
    provider = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
    with init_devices():
        pilatus = AsyncReplayDetector(provider, detector().frames, exposure_s=1.0)
    return pilatus


def prepared(pilatus, before=(), within=()):
    """Take a frame once the detector is prepared, before its run and within."""

    @bpp.stage_decorator([pilatus])
    def plan():
        for info in before:
            yield from bps.prepare(pilatus, info, wait=True)
        yield from bps.open_run()
        for info in within:
            yield from bps.prepare(pilatus, info, wait=True)
        yield from bps.trigger_and_read([pilatus])
        yield from bps.close_run()

    return short_exposure_wrapper(plan(), [pilatus], 4)


def exposures(raw):
    configuration = raw.by_name["descriptor"][-1]["configuration"]["pilatus"]["data"]
    return raw.by_name["start"][-1]["exposures"], configuration["pilatus-driver-acquire_time"]


def test_a_livetime_is_shortened_and_recorded_as_it_is(RE, raw, pilatus):
    RE(prepared(pilatus, before=[TriggerInfo(livetime=2.0)]))
    assert exposures(raw) == ({"pilatus": {"full_s": 2.0, "short_s": 0.5, "factor": 4}}, 0.5)
    RE(prepared(pilatus, before=[TriggerInfo()], within=[TriggerInfo(livetime=1.0)]))
    assert exposures(raw) == ({"pilatus": {"full_s": 1.0, "short_s": 0.25, "factor": 4}}, 0.25)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"livetime": 2.0}, r"livetime of 2 s, exposed as 0.5 s, in a run that has 0.25 s on rec"),
        ({"trigger": DetectorTrigger.EXTERNAL_LEVEL}, "to expose as long as its trigger is high"),
    ],
)
def test_what_a_run_does_not_have_on_record_is_refused(info, message, RE, raw, pilatus):
    with pytest.raises(SettingsError, match=message):
        RE(prepared(pilatus, within=[TriggerInfo(**info)]))
    assert "event" not in raw.by_name
    assert raw.by_name["stop"][0]["exit_status"] == "fail"
