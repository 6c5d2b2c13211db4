"""Plans and stubs for short exposures and denoised numbers, in bluesky's own idiom."""

from bluesky_denoise.plans.adaptive import adaptive_denoised_scan, adaptive_exposure_scan
from bluesky_denoise.plans.exposures import (
    exposure_signal,
    keep_exposures_wrapper,
    short_exposure_decorator,
    short_exposure_wrapper,
)
from bluesky_denoise.plans.paired import paired_exposures
from bluesky_denoise.plans.scans import (
    denoised_count,
    denoised_per_shot,
    denoised_per_step,
    denoised_scan,
    read_denoised,
    shown_in_wrapper,
)
from bluesky_denoise.plans.stopping import ExposureTally
from bluesky_denoise.plans.weak_peak import find_weak_peak

__all__ = [
    "ExposureTally",
    "adaptive_denoised_scan",
    "adaptive_exposure_scan",
    "denoised_count",
    "denoised_per_shot",
    "denoised_per_step",
    "denoised_scan",
    "exposure_signal",
    "find_weak_peak",
    "keep_exposures_wrapper",
    "paired_exposures",
    "read_denoised",
    "short_exposure_decorator",
    "short_exposure_wrapper",
    "shown_in_wrapper",
]
