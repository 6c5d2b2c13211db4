"""Print what stopping at a relative error does to the mean, and what exposure it saves.

Run as ``python -m benchmarks.stopping [--points 20000]``. Counts of known rates are drawn until
`ExposureTally` has enough, as `adaptive_exposure_scan` does at each point. The fixed-exposure scan
that it is compared with exposes each point until the worst of them is known as well as was asked.
Last come points beside a peak, which an absolute error ends.
"""

import argparse
import itertools

import numpy as np

from bluesky_denoise.plans.stopping import ExposureTally

CASES = ((3, 20, 0.1), (3, 20, 0.2), (10, 5, 0.1), (2, 10, 0.3), (25, 5, 0.2))
BORDERS = (np.inf, 0.6)
"""Area of the border over that of the region: known from elsewhere, or as around 30 x 30 pixels."""
BESIDE_THE_PEAK = ((2, 1.0), (5, 1.0), (20, 2.0), (20, 1.0))


def stop_early(
    rng: np.random.Generator,
    peak: float,
    background: float,
    relative_error: float,
    border: float = np.inf,
) -> ExposureTally:
    """Expose one point; peak and background in counts per frame.

    The background is known, or measured in a border of `border` times the area of the region.
    """
    tally = ExposureTally(relative_error, max_frames=5000)
    while not tally.enough:
        counts = rng.poisson(peak + background)
        under, variance = background, 0.0
        if np.isfinite(border):
            around = rng.poisson(background * border)
            under, variance = around / border, around / border**2
        tally.add(counts - under, np.sqrt(counts + variance), 1.0)
    return tally


def stop_at_absolute(
    rng: np.random.Generator, background: float, absolute_error: float, border: float
) -> ExposureTally:
    """Expose a point without a peak; the border has `border` times the area of the region."""
    tally = ExposureTally(1e-9, max_frames=5000, absolute_error=absolute_error)
    while not tally.enough:
        counts, around = rng.poisson(background), rng.poisson(background * border)
        tally.add(counts - around / border, np.sqrt(counts + around / border**2), 1.0)
    return tally


def exposure_saved(
    rng: np.random.Generator, relative_error: float, reach: float, points: int = 21
) -> tuple[float, float]:
    """Scan a rocking curve of 30 counts per frame over 5, from -`reach` to `reach` widths.

    Returns
    -------
    tuple
        Exposure over that of a fixed-exposure scan with the same largest relative error, and
        the spread of the pulls.
    """
    rates = 30 * np.exp(-0.5 * np.linspace(-reach, reach, points) ** 2)
    fixed = max((rate + 5) / (relative_error * rate) ** 2 for rate in rates)
    used, pulls = [], []
    for _ in range(200):
        tallies = [stop_early(rng, rate, 5, relative_error) for rate in rates]
        used.append(sum(tally.frames for tally in tallies))
        pulls += [(t.intensity - rate) / t.error for t, rate in zip(tallies, rates, strict=True)]
    return float(np.mean(used)) / (points * max(fixed, 1.0)), float(np.std(pulls))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20_000)
    points = parser.parse_args().points
    rng = np.random.default_rng(0)
    print("peak, background, error asked, border | uncorrected, corrected | pulls: mean, width")
    for (peak, background, error), border in itertools.product(CASES, BORDERS):
        tallies = [stop_early(rng, peak, background, error, border) for _ in range(points)]
        plain = np.mean([t.uncorrected for t in tallies]) / peak - 1
        corrected = np.mean([t.intensity for t in tallies]) / peak - 1
        pulls = np.array([(t.intensity - peak) / t.error for t in tallies])
        print(
            f"{peak:4} {background:4} {error:5.0%} {border:4} | {plain:+7.1%} {corrected:+7.1%} | "
            f"{pulls.mean():+.2f} {pulls.std():.2f}"
        )
    print(
        "scan to | exposure over that of a fixed-exposure scan of equal error, width of the pulls"
    )
    for reach in (1.0, 2.0, 2.5):
        ratio, width = exposure_saved(rng, 0.1, reach)
        print(f"{reach:4} widths | {ratio:.2f} {width:.2f}")
    print("background, error in counts, border | counts in the region | mean and width of pulls")
    for background, error in BESIDE_THE_PEAK:
        for border in (1, 4):
            tallies = [stop_at_absolute(rng, background, error, border) for _ in range(points)]
            counts = background * np.mean([t.frames for t in tallies])
            pulls = np.array([t.intensity / t.error for t in tallies])
            print(
                f"{background:4} {error:5} {border:4} | {counts:5.0f} | "
                f"{pulls.mean():+.2f} {pulls.std():.2f}"
            )


if __name__ == "__main__":
    main()
