"""Print bias and stated error of intensities of peaks of which a mask hides a part.

Run as ``python -m benchmarks.roi_gaps [--draws 100]``.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.regions.region import cut
from bluesky_denoise.roi import ROI, values, weigh
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

SHAPE = (48, 48)
BOX = ROI((12, 36), (12, 36))


@dataclass(frozen=True)
class Gap:
    """Rows that are masked, and the peak in the middle of the region that they hide a part of."""

    counts: float
    background: float
    first: int
    """Row where the gap begins, pixels from the centre of the peak."""
    rows: int = 8
    sigma: float = 2.0

    @property
    def peak(self) -> np.ndarray:
        """Return the expected counts of the peak, (H, W)."""
        return gaussian_peak(SHAPE, Peak(24.0, 24.0, self.counts, self.sigma, self.sigma))

    @property
    def mask(self) -> np.ndarray:
        """Return what is masked, (H, W) bool."""
        mask = np.zeros(SHAPE, bool)
        mask[24 + self.first : 24 + self.first + self.rows] = True
        return mask

    @property
    def hidden(self) -> float:
        """Return the share of the peak that the mask hides."""
        return float(self.peak[self.mask].sum() / self.counts)

    def measure(self, draws: int, seed: int = 0) -> "Found":
        """Measure the peak in so many frames."""
        denoiser, truth = Denoiser.load(), self.peak + self.background
        rows = []
        for i in range(draws):
            rng = np.random.default_rng((seed, i))
            crop = cut(rng.poisson(truth), 1.0, BOX, self.mask, 4)
            weighing = weigh(crop, denoiser, rng=rng)
            told = values(weighing)
            rows.append(
                (weighing.expected(truth), told.intensity, told.intensity_error, told.covered)
            )
        return Found(self.counts, *np.array(rows).T)


@dataclass(frozen=True)
class Found:
    """What was measured in (draws,) frames, counts."""

    truth: float
    expected: np.ndarray
    """With the weights that were chosen, on average over all photons."""
    intensity: np.ndarray
    error: np.ndarray
    covered: np.ndarray

    @property
    def bias(self) -> float:
        """Return the relative bias, without the noise of the photons."""
        return float(self.expected.mean() / self.truth - 1)

    @property
    def bias_error(self) -> float:
        """Return its standard error."""
        return float(self.expected.std() / self.truth / np.sqrt(len(self.expected)))

    @property
    def pulls(self) -> np.ndarray:
        """Return errors over stated errors, (draws,)."""
        return (self.intensity - self.truth) / self.error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100)
    draws = parser.parse_args().draws
    peaks = [(60, 0.05), (150, 0.05), (150, 1.0), (600, 0.05), (600, 1.0), (600, 20.0)]
    peaks += [(5000, 0.05), (5000, 1.0), (5000, 20.0)]
    gaps = [Gap(*peak, *rows) for peak in peaks for rows in ((2, 8), (3, 8), (4, 8), (0, 2))]
    # Hardly seen; sharp; and with its centre hidden.
    gaps += [Gap(60, 1.0, 2), Gap(600, 1.0, 1, sigma=1.0), Gap(5000, 1.0, 1, sigma=1.0)]
    gaps += [Gap(600, 1.0, 0), Gap(600, 1.0, -1)]
    print(
        "| counts | B / px | sigma | rows hidden | share hidden | told | bias, % | scatter, % |"
        " stated, % | pull | width |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for gap in gaps:
        found = gap.measure(draws)
        cells = (
            f"{gap.counts}",
            f"{gap.background:g}",
            f"{gap.sigma:g}",
            f"{gap.first:+} to {gap.first + gap.rows - 1:+}",
            f"{gap.hidden:.2f}",
            f"{1 - found.covered.mean():.2f}",
            f"{100 * found.bias:+.1f} ± {100 * found.bias_error:.1f}",
            f"{100 * found.intensity.std() / gap.counts:.1f}",
            f"{100 * found.error.mean() / gap.counts:.1f}",
            f"{found.pulls.mean():+.2f}",
            f"{found.pulls.std():.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
