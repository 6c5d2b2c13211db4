"""Tables and plots, and what to type first; only where somebody sits at the prompt."""
# ruff: noqa: F821 (startup files share one namespace)

import sys

import matplotlib.pyplot as plt

from bluesky_denoise.at_prompt import open_view, tables_and_plots

bec = tables_and_plots(RE)


_detector = next((name for name, device in _detectors.items() if device is not None), None)


def watch(roi=None, data_key=None):
    """Open the live view: raw, denoised, residual, and an ROI; without a screen, a picture.

    Of the first detector and the first region, unless it is told of which.
    """
    if denoise is None:
        print(f"Nothing is denoised: no detector of {BEAMLINE_FILE} answers.")
        return None
    image = f"{_detector}_image" if hasattr(_detectors[_detector], "hdf5") else _detector
    regions = [name for of_key in denoise.settings.rois.values() for name in of_key]
    return open_view(
        RE,
        denoise,
        data_key or next(iter(denoise.settings.data_keys or ()), image),
        roi or next(iter(regions), None),
    )


_there = {"RE": RE, "cat": cat, **_found}
BANNER = f"""
A session with {", ".join(name for name, thing in _there.items() if thing is not None)};
{BEAMLINE_FILE} names what there is.
"""
if cat is None:
    BANNER += "It names no Tiled server: runs are saved nowhere.\n"
_try = {
    f"RE(denoised_count([{_detector}], 3, denoised=denoised))": "denoised numbers of three frames",
    f"RE(short_exposure_wrapper(plan, [{_detector}], 20))": "any plan, a twentieth of the exposure",
    "viewer = watch()": "raw | denoised | residual, live",
}
if denoised is not None:
    BANNER += "".join(f"\n  {typed:<58} {what}" for typed, what in _try.items()) + "\n"
if sys.stdin is not None and sys.stdin.isatty():
    print(BANNER)
