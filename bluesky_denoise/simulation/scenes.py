"""A diffraction scene with known peaks, and its exposure to photons."""

from dataclasses import dataclass

import numpy as np

from bluesky_denoise.errors import FrameValueError

__all__ = ["Peak", "Scene", "diffraction_scene", "gaussian_peak"]


@dataclass(frozen=True)
class Peak:
    """One peak of a scene, a Gaussian with its axes along rows and columns."""

    row: float
    """Centre, pixels from the middle of the first row."""
    col: float
    """Centre, pixels from the middle of the first column."""
    intensity_cps: float
    """Integrated intensity over all pixels, masked or not, counts / s."""
    width_row_px: float
    """Standard deviation along rows, pixels."""
    width_col_px: float
    """Standard deviation along columns, pixels."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A true count rate, with the pixels that do not count and the peaks in it."""

    rate: np.ndarray
    """(H, W) float64, expected counts / s, >= 0; hot pixels included."""
    mask: np.ndarray
    """(H, W) bool, True where a pixel is invalid."""
    satellites: tuple[Peak, ...]
    """The weak peaks that a short exposure hides."""
    braggs: tuple[Peak, ...]
    """The strong peaks."""
    hot: np.ndarray | None = None
    """(H, W) bool, True where a pixel counts the same whatever the peaks do; None: nowhere."""

    def expose(self, exposure_s: float, rng: np.random.Generator) -> np.ndarray:
        """Count photons.

        Parameters
        ----------
        exposure_s : seconds, >= 0
        rng : source of the Poisson noise

        Returns
        -------
        numpy.ndarray
            (H, W) uint32 counts; 0 where masked.

        Raises
        ------
        FrameValueError
            If a pixel has more counts than 32 bits hold.
        """
        counts = rng.poisson(self.rate * exposure_s)
        if counts.max(initial=0, where=~self.mask) >= 2**32 - 1:
            raise FrameValueError(
                f"A pixel counts {counts.max(where=~self.mask, initial=0)} photons in "
                f"{exposure_s:g} s; 32 bits hold fewer than 4294967295. Expose for less."
            )
        return np.where(self.mask, 0, counts).astype(np.uint32)


def gaussian_peak(shape: tuple[int, int], peak: Peak) -> np.ndarray:
    """Return the count rate of one peak: (H, W) float64, counts / s."""
    row = np.exp(-0.5 * ((np.arange(shape[0]) - peak.row) / peak.width_row_px) ** 2)
    col = np.exp(-0.5 * ((np.arange(shape[1]) - peak.col) / peak.width_col_px) ** 2)
    height = peak.intensity_cps / (2 * np.pi * peak.width_row_px * peak.width_col_px)
    return height * np.outer(row, col)


def diffraction_scene(
    shape: tuple[int, int] = (195, 487),
    *,
    seed: int = 0,
    background_cps: float = 1.0,
    satellite_cps: float = 60.0,
    bragg_cps: float = 30_000.0,
    hot_pixels: int = 4,
    dead_pixels: int = 12,
) -> Scene:
    """Draw two Bragg peaks with weak satellites over a smooth background.

    The satellites lie on either side of each Bragg peak along the columns, as those
    of a charge density wave do, and are broader than the Bragg peaks. A vertical
    module gap of 2 % of the width, and single dead pixels, are masked. The same
    arguments always give the same scene.

    Parameters
    ----------
    shape : (H, W), pixels, each at least 16
    seed : fixes the small shifts of peaks and the bad pixels
    background_cps : mean background, counts / s and pixel, >= 0
    satellite_cps : integrated intensity of each satellite, counts / s
    bragg_cps : integrated intensity of the stronger Bragg peak, counts / s
    hot_pixels : pixels that count 2000 counts / s whatever the beam does; not masked
    dead_pixels : masked single pixels

    Returns
    -------
    Scene

    Raises
    ------
    ValueError
        If the frame is smaller than 16 pixels a side.
    """
    height, width = shape
    if height < 16 or width < 16:
        raise ValueError(f"A scene of shape {shape} was asked for; at least (16, 16) is needed.")
    rng = np.random.default_rng(seed)
    scale = min(1.0, height / 195, width / 487)
    braggs, satellites = [], []
    for row, col, share in ((0.40, 0.27, 1.0), (0.62, 0.76, 0.4)):
        centre_row = row * height + rng.uniform(-2, 2) * scale
        centre_col = col * width + rng.uniform(-2, 2) * scale
        sharp = max(1.6 * scale, 0.7)
        broad_row, broad_col = max(3.2 * scale, 1.0), max(4.5 * scale, 1.2)
        braggs.append(Peak(centre_row, centre_col, share * bragg_cps, sharp, sharp))
        for side in (-1, 1):
            shift = side * 0.11 * width
            satellites.append(
                Peak(centre_row, centre_col + shift, satellite_cps, broad_row, broad_col)
            )
    rows = np.linspace(-1, 1, height)[:, None]
    cols = np.linspace(-1, 1, width)[None, :]
    background = 1 + 0.25 * cols - 0.15 * rows + 0.6 * np.exp(-2 * (rows**2 + 4 * cols**2))
    rate = background_cps * background / background.mean()
    for peak in (*braggs, *satellites):
        rate = rate + gaussian_peak(shape, peak)
    mask = np.zeros(shape, dtype=bool)
    gap = max(1, round(0.014 * width))
    mask[:, round(0.52 * width) : round(0.52 * width) + gap] = True
    bad = rng.choice(height * width, size=hot_pixels + dead_pixels, replace=False)
    mask.flat[bad[hot_pixels:]] = True
    hot = np.zeros(shape, dtype=bool)
    hot.flat[bad[:hot_pixels]] = True
    rate[hot] = 2000.0
    return Scene(rate, mask, tuple(satellites), tuple(braggs), hot)
