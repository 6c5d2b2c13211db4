"""How plans are called: the denoised signals by name in all of them."""

import inspect

import pytest
from beamline import denoised_here, detector

from bluesky_denoise import plans
from bluesky_denoise.testing import UnitDenoiser

CALLS = {
    "denoised_count": ((2,), {}),
    "denoised_scan": (("motor", -1, 1, 2), {}),
    "adaptive_denoised_scan": (
        ("denoised_satellite_intensity", "motor", 0, 1, 0.4, 0.5, 20.0, False),
        {},
    ),
    "adaptive_exposure_scan": (
        ("satellite", "motor", 0, 1, 2),
        {"relative_error": 0.5, "max_frames": 2, "exposure_s": 0.5},
    ),
    "find_weak_peak": (("satellite", "motor", -2, 2, 5), {"exposure_s": 0.5, "fine_num": 5}),
    "paired_exposures": (("motor", -1, 1, 2), {"short_s": 0.1, "long_s": 0.5}),
}


@pytest.fixture
def call(RE, motor):
    """Return a function that runs a plan, and what its plans are called with."""
    det = detector(motor, exposure_s=0.5)
    denoised = denoised_here(RE, UnitDenoiser(), streams=("primary", "short"), timeout_s=2)

    def run(name, second=(), **more):
        args, kwargs = CALLS[name]
        args = [{"motor": motor}.get(value, value) for value in args]
        RE(getattr(plans, name)([det], *second, *args, **kwargs, **more))

    return run, denoised


@pytest.mark.parametrize("name", CALLS)
def test_every_plan_takes_the_signals_by_name(name, call, raw):
    run, denoised = call
    run(name, denoised=denoised)
    (start,), (stop,) = raw.by_name["start"], raw.by_name["stop"]
    assert start["plan_name"] == name
    assert stop["exit_status"] == "success"


@pytest.mark.parametrize("name", ["adaptive_exposure_scan", "find_weak_peak"])
def test_some_plans_take_the_signals_as_second_argument_too(name, call, raw):
    run, denoised = call
    run(name, [denoised])
    run(name, denoised=denoised)
    one, other = (start["plan_args"] for start in raw.by_name["start"])
    assert one == other
    plan = getattr(plans, name)
    assert inspect.isgeneratorfunction(plan)  # the queue server offers no others
    assert list(inspect.signature(plan).parameters)[:3] == ["detectors", "denoised", "roi"]
    with pytest.raises(TypeError, match="positional"):
        run(name, [denoised], denoised=denoised)
