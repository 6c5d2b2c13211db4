"""Print bias and stated error of intensities where `measure_roi` assumes what is not so.

Run as ``python -m benchmarks.roi_shapes [--draws 60]``: peaks with tails, backgrounds that are no
plane, regions that cut the peak, and a weak line that was measured, which leaves the region at
either end. The truth is what the peak has inside the region. "told" is `background_error`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.frame_files import read_frame_file
from bluesky_denoise.regions.region import cut
from bluesky_denoise.roi import ROI, values, weigh

SHAPE = (110, 110)
FWHM_PX = 4.0


@dataclass(frozen=True)
class Case:
    """A region of frames whose expected counts are known."""

    name: str
    peak: np.ndarray
    """(H, W) expected counts of what is to be measured."""
    background: np.ndarray
    """(H, W) expected counts of all else."""
    roi: ROI
    mask: np.ndarray | None = None
    whole: bool = False
    """The truth is all of the peak, and not what is inside the region alone."""

    def row(self, denoiser: Denoiser, draws: int) -> str:
        """Measure so many frames, and put the numbers into a row of the table."""
        expected = self.peak + self.background
        window = slice(*self.roi.rows), slice(*self.roi.cols)
        valid = 1 if self.mask is None else ~self.mask[window]
        truth = float(self.peak.sum() if self.whole else (self.peak[window] * valid).sum())
        found = []
        for draw in range(draws):
            rng = np.random.default_rng((0, draw))
            weighing = weigh(cut(rng.poisson(expected), 1.0, self.roi, self.mask, 4), denoiser)
            told = values(weighing)
            mean = weighing.expected(expected)
            errors = told.intensity_error, told.background_error
            found.append((mean, told.intensity, *errors, told.method == "profile"))
        mean, intensity, error, curved, profile = np.array(found, float).T
        spread = mean.std() / np.sqrt(draws)
        cells = (
            *(self.name, f"{100 * (mean.mean() / truth - 1):+.1f} ± {100 * spread / truth:.1f}"),
            f"{100 * curved.mean() / truth:.1f}",
            f"{100 * intensity.std() / truth:.1f}",
            f"{100 * np.sqrt(np.mean(error**2)) / truth:.1f}",
            f"{profile.mean():.0%}",
        )
        return f"| {' | '.join(cells)} |"


def pseudo_voigt(row: float, col: float, counts: float, share: float) -> np.ndarray:
    """Return a round peak of `FWHM_PX` with a share of photons in Lorentzian tails: (H, W)."""
    rows, cols = np.indices(SHAPE)
    squared = (rows - row) ** 2 + (cols - col) ** 2
    sigma = FWHM_PX / np.sqrt(8 * np.log(2))
    half = FWHM_PX / 2 / np.sqrt(2 ** (2 / 3) - 1)  # of a Cauchy density in two dimensions
    gauss = np.exp(-0.5 * squared / sigma**2) / (2 * np.pi * sigma**2)
    tails = half / (2 * np.pi) / (squared + half**2) ** 1.5
    return counts * ((1 - share) * gauss + share * tails)


def cases() -> Iterator[Case]:
    """Yield what is measured."""
    box = ROI((35, 65), (35, 65), 4)
    for counts, level in ((100, 0.05), (300, 0.5), (1000, 5.0)):
        for share in (0.0, 0.3, 1.0):
            name = f"{counts} over {level:g}, {share:.0%} Lorentzian"
            yield Case(name, pseudo_voigt(50.2, 50.3, counts, share), np.full(SHAPE, level), box)
    for counts, away, strong in ((500, 30, 1e6), (100, 20, 1e4), (500, 20, 1e6)):
        tail = pseudo_voigt(50.0, 80.0, strong, 1.0) + 0.3
        col = 80 - away
        roi = ROI((39, 62), (col - 8, col + 9), 3)
        name = f"{counts}, {away} px from a Lorentzian of {strong:.0e}"
        yield Case(name, pseudo_voigt(50.2, col + 0.3, counts, 0.0), tail, roi)
    other = pseudo_voigt(50.0, 64.5, 1000, 0.0) + 0.5
    peak = pseudo_voigt(50.2, 50.3, 1000, 0.0)
    yield Case(
        "1000 over 0.5, as much in the frame around", peak, other, ROI((40, 61), (40, 61), 4)
    )
    for counts in (1000, 5000):
        peak = pseudo_voigt(50.2, 50.3, counts, 0.0)
        for half in (4, 6):
            name = f"{counts} over 1, a region of ± {half} px"
            roi = ROI((50 - half, 51 + half), (50 - half, 51 + half), 3)
            yield Case(name, peak, np.ones(SHAPE), roi, whole=True)
    shipped = read_frame_file(files("bluesky_denoise.simulation") / "frames" / "i07_line.h5")
    rate = np.asarray(shipped.frames[19:32], np.float64).mean(0)
    for row in (20, 60, 100, 140):
        roi = ROI((row, row + 40), (196, 227), 4)
        background = _beside_the_line(rate, roi)
        name = f"I07 line, rows {row} to {row + 40}"
        yield Case(name, rate - background, background, roi, shipped.mask)


def _beside_the_line(rate: np.ndarray, roi: ROI, beside: int = 7) -> np.ndarray:
    """Draw a straight line through the outermost columns of a region, for each column: (H, W)."""
    rows, cols = slice(*roi.rows), slice(*roi.cols)
    profile = rate[rows, cols].mean(0)
    places = np.arange(*roi.cols)
    ends = np.r_[:beside, len(places) - beside : len(places)]
    line = np.polynomial.Polynomial.fit(places[ends], profile[ends], 1)
    return np.broadcast_to(line(np.arange(rate.shape[1])), rate.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=60)
    draws, denoiser = parser.parse_args().draws, Denoiser.load()
    print("| counts | bias, % | told, % | scatter, % | stated, % | by profile |")
    print("|---|---|---|---|---|---|")
    for case in cases():
        print(case.row(denoiser, draws), flush=True)


if __name__ == "__main__":
    main()
