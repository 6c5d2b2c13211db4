"""Peaks in a region, and denoisers that show or hide them, for the tests of `measure_roi`."""

import numpy as np

from bluesky_denoise.evaluation.baselines import gaussian
from bluesky_denoise.frames import Denoised
from bluesky_denoise.roi import ROI, measure_roi
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

SHAPE = (46, 46)
BOX = ROI((8, 38), (8, 38), background_px=4)
STEEP = 40 * (1 + (np.arange(46) - 22.5) / 30) * np.ones((46, 1))


class Smoother:
    """A Gaussian of 1 pixel with the API of a denoiser."""

    def denoise(self, counts, exposure_s, mask=None):
        seconds = np.broadcast_to(exposure_s, (len(counts),))
        rate = np.stack([gaussian(c, 1.0, mask) / s for c, s in zip(counts, seconds, strict=True)])
        if mask is not None:
            rate[:, np.asarray(mask) != 0] = np.nan
        return Denoised(rate.astype(np.float32))


class Blind:
    """Shows no peak anywhere."""

    def denoise(self, counts, exposure_s, mask=None):
        return Denoised(np.zeros(counts.shape, np.float32))


def satellite(rng, height, sigma, shift=4.0):
    row, col = 22.5 + rng.uniform(-shift, shift, 2)
    other = sigma * rng.uniform(0.8, 1.25)
    return Peak(row, col, height * 2 * np.pi * sigma * other, sigma, other)


def measured(rng, denoiser, peaks, background, mask=None, box=BOX):
    """Return (n, 5): truth, intensity, its error, the plain sum, whether a profile was used."""
    rows = []
    for peak in peaks:
        counts = rng.poisson(gaussian_peak(SHAPE, peak) + background)
        found = measure_roi(counts, 1.0, box, denoiser, mask=mask, rng=rng)
        top, bottom = box.rows
        edge = counts[top - 4 : bottom + 4, top - 4 : bottom + 4].sum()
        core = counts[top:bottom, top:bottom].sum()
        plain = core - (edge - core) * 900 / (38**2 - 900)
        used = found.method == "profile"
        rows.append((peak.intensity_cps, found.intensity, found.intensity_error, plain, used))
    return np.array(rows, dtype=float)
