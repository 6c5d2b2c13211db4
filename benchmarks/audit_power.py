"""Print how strong a peak must be for the audit to miss it when it is removed or invented.

Run as ``python benchmarks/audit_power.py [--draws 40]``. Scenes are exposed, one half of the
photons is denoised with the shipped weights, a peak is taken out of the estimate or put into
it, and the other half is the judge. Strength is the peak's count in the whole exposure over
the noise of the background under a matched filter, S / sqrt(4 pi sigma^2 B).
"""

import argparse

import numpy as np

from bluesky_denoise.audit import audit_frame, audit_rate
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.photons.photon_checks import looks_poisson
from bluesky_denoise.photons.pixel_checks import dead_areas
from bluesky_denoise.simulation.random_masks import random_mask
from bluesky_denoise.simulation.random_scenes import random_scene
from bluesky_denoise.simulation.scenes import Peak, diffraction_scene, gaussian_peak

SHAPE = (128, 128)
STRENGTHS = (4, 6, 8, 10, 12, 16, 24)
SIGMA = 2.0
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def power(denoiser: Denoiser, draws: int, rng: np.random.Generator) -> None:
    print("found of 100, by strength   " + "".join(f"{s:6d}" for s in STRENGTHS))
    for background in (0.05, 0.5, 5.0, 50.0):
        found = {"removed": np.zeros(len(STRENGTHS)), "invented": np.zeros(len(STRENGTHS))}
        flat = np.full(SHAPE, background)
        for _ in range(draws):
            row, col = rng.uniform(30, 98, 2)
            seen = rng.poisson(flat / 2)
            found_here = denoiser.denoise(seen, 1.0)
            estimate, sigma = found_here.rate, found_here.expected_sigma
            for i, strength in enumerate(STRENGTHS):
                photons = strength * np.sqrt(4 * np.pi * SIGMA**2 * background)
                half = gaussian_peak(SHAPE, Peak(row, col, photons / 2, SIGMA, SIGMA))
                gone = audit_rate(rng.poisson(flat / 2 + half), estimate, seen=seen, sigma=sigma)
                made = audit_rate(rng.poisson(flat / 2), estimate + half, seen=seen, sigma=sigma)
                found["removed"][i] += not gone.ok
                found["invented"][i] += not made.ok
        for what, number in found.items():
            cells = "".join(f"{100 * n / draws:6.0f}" for n in number)
            print(f"{what:9s} B = {background:5.2f} / px  {cells}")


def alarms(denoiser: Denoiser, draws: int, rng: np.random.Generator) -> None:
    """Count flags on simulated scenes; one that fresh photons do not repeat is false."""
    for name in ("diffraction", "random"):
        flagged = false = no_photons = dead = 0
        by_check = dict.fromkeys(("errors larger than expected", "fringes were lost"), 0)
        for i in range(draws):
            if name == "diffraction":
                scene = diffraction_scene((195, 244), seed=i, hot_pixels=0)
                rate, mask = scene.rate * 10 ** rng.uniform(-1.5, 1.5), scene.mask
            else:
                rate = random_scene((195, 244), rng, log10_level=(-2.5, 2.5))
                mask = random_mask(rate.shape, rng)
            seen, first, second, third = (rng.poisson(rate / 2) for _ in range(4))
            whole = np.where(mask, 0, seen + first)
            no_photons += bool(looks_poisson(whole, mask))
            dead += len(dead_areas(whole, mask)) > 0
            denoised = denoiser.denoise(seen, 1.0, mask)
            estimate, stated = denoised.rate, {"seen": seen, "sigma": denoised.expected_sigma}
            verdict = audit_rate(first, estimate, mask, **stated)
            for check in by_check:
                by_check[check] += check in verdict.reason
            if not verdict.ok:
                flagged += 1
                again = [audit_rate(n, estimate, mask, **stated).ok for n in (second, third)]
                false += all(again)
        print(f"{name:11s} scenes: {flagged} of {draws} flagged, {false} not by fresh photons")
        told = ", ".join(f"{check}: {number}" for check, number in by_check.items())
        print(f"            of the flags, {told}")
        print(f"            raw frames: {no_photons} called no photons, {dead} with a dead area")


def defects(denoiser: Denoiser, draws: int, rng: np.random.Generator) -> None:
    found = dict.fromkeys(("nothing", "hot pixel", "dead module", "gain 3.7"), 0)
    for i in range(draws):
        scene = diffraction_scene((195, 244), seed=i, hot_pixels=0)
        counts = scene.expose(10 ** rng.uniform(-1, 1), rng).astype(np.int64)
        cases = {name: counts.copy() for name in found}
        row, col = rng.integers(5, 190), rng.integers(5, 60)
        cases["hot pixel"][row, col] += 1000 * (not scene.mask[row, col])
        cases["dead module"][:, 180:240] = 0
        analog = counts * 3.7 + rng.normal(20, 2, counts.shape)
        cases["gain 3.7"] = np.maximum(np.rint(analog), 0).astype(np.int64)
        for name, case in cases.items():
            verdict = audit_frame(case, 1.0, denoiser, mask=scene.mask, rng=rng)
            found[name] += not verdict.ok
    for name, number in found.items():
        print(f"{name:12s} flagged in {number} of {draws} frames")


def fringes(denoiser: Denoiser, draws: int, rng: np.random.Generator) -> None:
    """Print how many counts fringes need for the audit to tell that they were lost."""
    print("fringes, visibility 0.95, 192 x 192 pixels: found of 100, by counts / px")
    print(" " * 21 + "".join(f"{level:6.2f}" for level in LEVELS))
    rows, cols = np.mgrid[:192, :192]
    for kind in ("straight", "straight, a quarter", "round"):
        cells = ""
        for level in LEVELS:
            found = 0
            for _ in range(draws):
                period, angle = rng.uniform(3, 10), rng.uniform(0, np.pi)
                if kind == "round":
                    row, col = rng.uniform(48, 144, 2)
                    way = np.hypot(rows - row, cols - col)
                else:
                    way = rows * np.sin(angle) + cols * np.cos(angle)
                wave = np.cos(2 * np.pi * way / period)
                if kind == "straight, a quarter":
                    wave[96:] = wave[:, 96:] = 0
                counts = rng.poisson(level * (1 + 0.95 * wave))
                found += "fringes were lost" in audit_frame(counts, 1.0, denoiser, rng=rng).reason
            cells += f"{100 * found / draws:6.0f}"
        print(f"{kind:21s}{cells}")


def many_peaks(denoiser: Denoiser, draws: int, rng: np.random.Generator) -> None:
    """Count flags on frames with 25 peaks, and with what the estimate lost put back into it."""
    print("25 peaks of 10 to 1000 times the level, sigma 1 to 3, 195 x 487 pixels: flagged,")
    print("still flagged with peaks put back that keep less than half, flagged with the true rate")
    shape, total = (195, 487), np.zeros(3, int)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    background = 0.3 + 1.5 * np.exp(-np.hypot(rows - 90, cols - 200) / 150)
    for level in (0.03, 0.1, 0.3, 1.0, 10.0):
        found = np.zeros(3, int)
        for _ in range(draws):
            peaks = [
                Peak(*rng.uniform(5, (190, 480)), level / 2 * 10 ** rng.uniform(1, 3), sigma, sigma)
                for sigma in rng.uniform(1, 3, 25)
            ]
            images = [gaussian_peak(shape, peak) for peak in peaks]
            truth = level / 2 * background + sum(images)
            seen, others = rng.poisson(truth), rng.poisson(truth)
            denoised = denoiser.denoise(seen, 1.0)
            mended = denoised.rate.astype(np.float64)
            for peak, image in zip(peaks, images, strict=True):
                core = np.hypot(rows - peak.row, cols - peak.col) < peak.width_row_px
                if (denoised.rate - truth)[core].sum() < -0.5 * image[core].sum():
                    mended += image
            stated = {"seen": seen, "sigma": denoised.expected_sigma}
            found[0] += not audit_rate(others, denoised.rate, **stated).ok
            found[1] += not audit_rate(others, mended, **stated).ok
            found[2] += not audit_rate(others, truth, seen=seen).ok
        total += found
        print(f"level {level:5.2f}: {', '.join(map(str, found))} of {draws}", flush=True)
    print(f"together:    {', '.join(map(str, total))} of {5 * draws}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    denoiser = Denoiser.load(threads=1)
    power(denoiser, given.draws, rng)
    alarms(denoiser, 5 * given.draws, rng)
    defects(denoiser, given.draws // 2, rng)
    fringes(denoiser, given.draws, rng)
    many_peaks(denoiser, given.draws // 2, np.random.default_rng([given.seed, 25]))


if __name__ == "__main__":
    main()
