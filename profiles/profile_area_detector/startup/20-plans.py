"""Plans, under the names that the queue server offers."""

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
