"""Print bias and error bars of ROI intensities on simulated satellites.

Run as ``python benchmarks/roi_bias.py [--draws 20]``: regression slope against the truth, pulls,
and the error as a share of that of the plain background-subtracted sum.
"""

import argparse

import numpy as np

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.roi import ROI, measure_roi
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

SHAPE, BOX = (46, 46), ROI((8, 38), (8, 38), background_px=4)


def trial(
    denoiser: Denoiser, background: float, height: float, sigma: float, rng: np.random.Generator
) -> tuple[float, ...]:
    other = sigma * rng.uniform(0.8, 1.25)
    row, col = 22.5 + rng.uniform(-4, 4, 2)
    truth = height * 2 * np.pi * sigma * other
    rate = gaussian_peak(SHAPE, Peak(row, col, truth, sigma, other)) + background
    counts = rng.poisson(rate)
    found = measure_roi(counts, 1.0, BOX, denoiser, rng=rng)
    core = counts[8:38, 8:38].sum()
    plain = core - (counts[4:42, 4:42].sum() - core) * 900 / (38**2 - 900)
    inside = rate[8:38, 8:38].sum()
    known = np.sqrt(inside + (900 / 544) ** 2 * 544 * background)
    naive = found.denoised_sum - found.background * 900
    return truth, found.intensity, found.intensity_error, plain, known, naive


def slope(truth: np.ndarray, found: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    model = np.stack([truth, np.ones(len(truth))], 1) / error[:, None]
    covariance = np.linalg.inv(model.T @ model)
    return float((covariance @ model.T @ (found / error))[0]), float(np.sqrt(covariance[0, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    denoiser = Denoiser.load(threads=1)
    rows, ratios = [], []
    print("  B/px  height  sigma   photons  mean/truth  +-     pull mean, sd   error / plain")
    for background in (0.02, 0.2, 2.0):
        for height in (0.1, 0.3, 1.0, 5.0):
            for sigma in (1.2, 2.0, 3.0):
                cell = np.array(
                    [trial(denoiser, background, height, sigma, rng) for _ in range(given.draws)]
                )
                rows.append(cell)
                error, truth = cell[:, 1] - cell[:, 0], cell[:, 0].mean()
                pulls = error / cell[:, 2]
                ratio = np.sqrt((error**2).mean() / ((cell[:, 3] - cell[:, 0]) ** 2).mean())
                ratios.append(ratio)
                print(
                    f"{background:6.2f} {height:6.1f} {sigma:6.1f} {truth:9.1f} "
                    f"{cell[:, 1].mean() / truth:9.3f} "
                    f"{error.std() / truth / np.sqrt(given.draws):8.3f} "
                    f"{pulls.mean():8.2f} {pulls.std():6.2f} {ratio:10.2f}"
                )
    whole = np.concatenate(rows)
    pulls = (whole[:, 1] - whole[:, 0]) / whole[:, 2]
    for name, column in (("intensity", 1), ("plain sum", 3), ("denoised sum", 5)):
        value, error = slope(whole[:, 0], whole[:, column], whole[:, 4])
        print(f"slope of {name:13s} {value:.4f} +- {error:.4f}")
    print(f"pulls: mean {pulls.mean():+.3f}, width {pulls.std():.3f}, of {len(pulls)}")


if __name__ == "__main__":
    main()
