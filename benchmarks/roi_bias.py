"""Print bias and error bars of ROI intensities on simulated satellites.

Run as ``python benchmarks/roi_bias.py [--draws 20]``: what is measured on average over the truth,
pulls, and the error as a share of that of the plain background-subtracted sum; then the
regression slope against the truth. The weights of `measure_roi` do not depend on the photons
that they weigh, so its mean is known exactly for each draw of weights.
"""

import argparse

import numpy as np

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.evaluation.regions import KINDS, Satellites, satellites, score_regions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    denoiser = Denoiser.load(threads=1)
    cells = []
    print("  B/px  height  sigma   photons  mean/truth  +-     pull mean, sd   error / plain")
    for kind in KINDS:
        cell = satellites(denoiser, *kind, given.draws, rng)
        cells.append(cell)
        error, truth = cell.found - cell.truth, cell.truth.mean()
        pulls, bias = error / cell.error, cell.expected / cell.truth
        ratio = np.sqrt((error**2).mean() / ((cell.plain - cell.truth) ** 2).mean())
        print(
            "{:6.2f} {:6.1f} {:6.1f} ".format(*kind) + f"{truth:9.1f} "
            f"{bias.mean():9.3f} {bias.std() / np.sqrt(given.draws):8.3f} "
            f"{pulls.mean():8.2f} {pulls.std():6.2f} {ratio:10.2f}"
        )
    names = vars(cells[0])
    whole = Satellites(*(np.concatenate([vars(cell)[name] for cell in cells]) for name in names))
    for score in score_regions(whole):
        print(f"slope of {score.intensity:13s} {score.slope:.4f} +- {score.slope_error:.4f}")
    ours = score_regions(whole)[0]
    told = f"pulls: mean {ours.pull_mean:+.3f}, width {ours.pull_width:.3f}, of {ours.regions}; "
    print(told + "covered " + ", ".join(f"{k} %: {v:.1%}" for k, v in ours.covered.items()))


if __name__ == "__main__":
    main()
