"""Tables and plots, and what to type first; only where somebody sits at the prompt."""
# ruff: noqa: F821 (startup files share one namespace)

import sys

import matplotlib.pyplot as plt

from bluesky_denoise.at_prompt import open_view, tables_and_plots

bec = tables_and_plots(RE)


def watch(roi="satellite_1", data_key="det_image"):
    """Open the live view: raw, denoised, residual, and an ROI; without a screen, a picture."""
    return open_view(RE, denoise, data_key, roi)


def web(run=-1, data_key="det_image"):
    """Print where Tiled's web page shows the denoised frames of a run."""
    found = cat.v3[run]  # `cat` itself is another after databroker's `db.v2`
    uid, streams = found.metadata["start"]["uid"], list(found)
    if "denoised" not in streams:
        there = ", ".join(streams) or "none"
        print(f"Run {uid:.8} has no stream `denoised`, or not yet; its streams: {there}.")
        return
    if data_key not in found["denoised"]:
        print(f"No {data_key} has been denoised in run {uid:.8}.")
        return
    print(WEB_PAGE.replace("/browse/?", f"/browse/{uid}/denoised/{data_key}?"))


BANNER = f"""
A simulated beamline: det, motor, denoised, RE, cat. Try, in this order:

  RE(short_scan())                         a twentieth of the exposure, denoised numbers
  cat[-1]["denoised"]["det_image"].read()  the denoised frames of the last scan
  web()                                    the same in the browser
  viewer = watch(); RE(short_scan())       raw | denoised | residual, live
  RE(adaptive_exposure_scan([det], denoised, "satellite_1", motor, -0.5, 0.5, 5,
                            relative_error=0.1, max_frames=20, exposure_s=0.1))
  RE(find_weak_peak([det], denoised, "satellite_1", motor, -2, 2, 13, exposure_s=0.5))

All runs in the browser: {WEB_PAGE}
"""
if sys.stdin is not None and sys.stdin.isatty():
    print(BANNER)
