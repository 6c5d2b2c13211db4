"""Tables and plots, and what to type first; only where somebody sits at the prompt."""
# ruff: noqa: F821 (startup files share one namespace)

import sys

import matplotlib

HAS_SCREEN = "ipykernel" in sys.modules or bool(os.environ.get("DISPLAY"))
if not HAS_SCREEN:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bluesky_denoise.best_effort import DenoisedBestEffortCallback
from bluesky_denoise.viewer import FrameViewer

bec = DenoisedBestEffortCallback()
if HAS_SCREEN:
    plt.ion()
else:
    bec.disable_plots()
RE.subscribe(bec)


def watch(roi="satellite_1", data_key="det_image"):
    """Open the live view: raw, denoised, residual, and an ROI."""
    viewer = FrameViewer(data_key, roi=roi)
    viewer.attach(RE, denoise)
    return viewer


BANNER = f"""
A simulated beamline: det, motor, denoised, RE, cat. Try, in this order:

  RE(short_scan())                         a twentieth of the exposure, denoised numbers
  cat[-1]["denoised"]["det_image"].read()  the denoised frames of the last scan
  viewer = watch(); RE(short_scan())       raw | denoised | residual, live
  RE(adaptive_exposure_scan([det], denoised, "satellite_1", motor, -0.5, 0.5, 3,
                            relative_error=0.3, max_frames=10, exposure_s=0.5))
  RE(find_weak_peak([det], denoised, "satellite_1", motor, -2, 2, 13, exposure_s=0.5))

Frames in the browser: {WEB_PAGE}
"""
if sys.stdin is not None and sys.stdin.isatty():
    print(BANNER)
