"""Plans, under the names that the queue server offers."""
# ruff: noqa: F821 (startup files share one namespace)

import bluesky.plan_stubs as bps
import bluesky.plans as bp
from bluesky.plans import count, scan

from bluesky_denoise.plans import (
    adaptive_denoised_scan,
    adaptive_exposure_scan,
    denoised_count,
    denoised_per_shot,
    denoised_per_step,
    denoised_scan,
    find_weak_peak,
    paired_exposures,
    read_denoised,
    short_exposure_wrapper,
    shown_in_wrapper,
)


def short_scan(start: float = -1.5, stop: float = 1.5, num: int = 7, factor: float = 20):
    """Scan `motor` with exposures divided by `factor`, and read the denoised numbers."""
    plan = denoised_scan([det], motor, start, stop, num=num, denoised=denoised)
    return (yield from short_exposure_wrapper(plan, [det], factor))


def denoised_events(uid: str) -> dict[str, int]:
    """Return how many events each stream of a run has; a function for the queue server."""
    denoise.wait(60)
    # A stream that failed before its first event has not even times.
    return {name: stream.read(["time"]).sizes.get("time", 0) for name, stream in cat[uid].items()}
