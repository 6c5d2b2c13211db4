"""Quality against cost of several designs, each trained for the same small budget.

Run as ``python -m benchmarks.quality_cost [--seconds 180 | --steps 300]``: writes
docs/quality_cost.md and docs/quality_cost.png. What is finished stays in results/quality_cost, so
that a run that was stopped goes on.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from benchmarks.cost import macs_per_pixel, parameters
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.evaluation.baselines import anscombe_bm3d, best_gaussian
from bluesky_denoise.evaluation.frame_sets import frame_set
from bluesky_denoise.evaluation.methods import network
from bluesky_denoise.evaluation.metrics import poisson_deviance
from bluesky_denoise.evaluation.neighbours import neighbour_scores
from bluesky_denoise.models import MODELS
from bluesky_denoise.models.blur_bank import BlurBank
from bluesky_denoise.models.photon_exchange import PhotonExchange
from bluesky_denoise.models.unet import UNet
from bluesky_denoise.simulation import recorded_frames
from bluesky_denoise.simulation.random_scenes import random_scene
from bluesky_denoise.training.fit import FitSettings, fit

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "quality_cost"
DESIGNS: dict[str, Callable[[], nn.Module]] = {
    "photon_exchange, half": partial(PhotonExchange, (8, 16, 32, 32)),
    "photon_exchange": PhotonExchange,
    "photon_exchange, double": partial(PhotonExchange, (32, 64, 128, 128)),
    "blur_bank, width 16": partial(BlurBank, 16),
    "unet, width 16": partial(UNet, 16),
    "unet, width 32": partial(UNet, 32),
    "irunet": MODELS["irunet"],
    "vdsr": MODELS["vdsr"],
}
SCENES, SIDE = 60, 160
PLACES = {
    "photon_exchange, half": ((0, 8), "center"),
    "photon_exchange, double": ((6, -12), "left"),
    "photon_exchange, shipped": ((6, -10), "left"),
    "unet, width 16": ((-6, 5), "right"),
    "unet, width 32": ((0, 9), "center"),
    "blur_bank, width 16": ((-8, -4), "right"),
}
"""Where names stand beside their points, in the picture."""


def budget(name: str, seconds: float) -> int:
    """Return how many steps fit into so much CPU time; the first of four is not counted."""
    stamps: list[float] = []
    path = KEPT / "trial.safetensors"
    settings = FitSettings(model=name, steps=4, held_out_share=0.0)
    fit(path, _frames(), settings, threads=1, report=lambda *_: stamps.append(time.process_time()))
    each = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    return max(10, round(seconds / each))


def _frames() -> list[Path]:
    return sorted((ROOT / "training_data").glob("*.h5"))


def quality(denoiser: Denoiser | None) -> dict[str, float]:
    """Return errors over those of the best Gaussian, on scenes that no fit has drawn.

    Geometric mean over scenes, which go over seven decades of counts. With None: of BM3D.
    """
    ratios = []
    for i in range(SCENES):
        rng = np.random.default_rng([987, i])
        rate = random_scene((SIDE, SIDE), rng, log10_level=(-2.0, 3.0))
        if rate.sum() < 100:
            continue
        counts = rng.poisson(rate)

        def divergence(estimate: np.ndarray, rate: np.ndarray = rate) -> float:
            return poisson_deviance(estimate, rate)

        found = anscombe_bm3d(counts) if denoiser is None else denoiser.denoise(counts, 1.0).rate
        blurred, _ = best_gaussian(counts, divergence)
        ratios.append(divergence(found) / divergence(blurred))
        if denoiser is None and len(ratios) == 12:
            break
    return {"scenes": float(np.exp(np.mean(np.log(ratios))))}


def line(denoiser: Denoiser) -> float:
    """Return the noise-corrected error on I07 frames of 1 s, which no fit has seen."""
    recorded = recorded_frames()
    frames = frame_set("i07_line", recorded.counts, recorded.mask)
    method = network(denoiser)
    scores = neighbour_scores(frames, [method], lambda items, _: items, fractions=(1.0,))
    return scores[0].error


def durations() -> dict[str, float]:
    """Return CPU seconds for a frame of 195 x 487, of all designs in turns."""
    counts = recorded_frames().counts[0].astype(np.int64)
    built = {
        name: Denoiser(build(), {"sha256": ""}, name, "cpu") for name, build in DESIGNS.items()
    }
    elapsed: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(6):
        for name, denoiser in built.items():
            begin = time.process_time()
            denoiser.denoise(counts, 1.0)
            elapsed[name].append(time.process_time() - begin)
    return {name: median(each[1:]) for name, each in elapsed.items()}  # the first warms up


def train(name: str, given: argparse.Namespace, bar: Progress) -> dict:
    """Train and score one design, or read what an earlier run found."""
    MODELS[name] = DESIGNS[name]
    settings = {"steps": given.steps, "seconds": None if given.steps else given.seconds}
    stem = name.replace(", ", "_").replace(" ", "_")
    kept = KEPT / f"{stem}_scores.json"  # `stem.json` is the card of its weights
    if kept.exists() and (found := json.loads(kept.read_text()))["budget"] == settings:
        return found
    steps = given.steps or budget(name, given.seconds)
    task = bar.add_task(name, total=steps)
    weights = KEPT / f"{stem}.safetensors"
    begin = time.process_time()
    fit(
        weights,
        _frames(),
        FitSettings(model=name, steps=steps, held_out_share=0.0),
        threads=1,
        report=lambda *_: bar.advance(task),
    )
    seconds = time.process_time() - begin
    denoiser = Denoiser.load(weights, "cpu", threads=1)
    model = DESIGNS[name]()
    found = {
        "name": name,
        "budget": settings,
        "steps": steps,
        "seconds": seconds,
        "macs": macs_per_pixel(model.eval()),
        "parameters": parameters(model),
        "line": line(denoiser),
        **quality(denoiser),
    }
    kept.write_text(json.dumps(found))
    return found


def draw(rows: list[dict], bm3d: float, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from bluesky_denoise.evaluation.plot_style import OURS, STYLE

    with rc_context(STYLE):
        figure = Figure((10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for row in rows:
            own = row["name"].startswith("photon_exchange")
            mark = "*" if "shipped" in row["name"] else "o"
            for axis, key in ((left, "scenes"), (right, "line")):
                x, y = row["macs"] / 1e3, row[key]
                axis.plot(x, y, mark, color=OURS if own else "#3b78c2", ms=9 if own else 7)
                place, align = PLACES.get(row["name"], ((6, 5), "left"))
                axis.annotate(
                    row["name"], (x, y), place, textcoords="offset points", fontsize=8, ha=align
                )
        left.axhline(1, color="#e8a33d", lw=1, label="best Gaussian")
        left.axhline(bm3d, color="#555", lw=1, ls="--", label="Anscombe + BM3D")
        left.legend(loc="upper left")
        left.set(title="simulated scenes", ylabel="divergence over that of the best Gaussian")
        right.set(title="I07, 1 s against 20 s", ylabel="noise-corrected error; raw 0.97")
        for axis in (left, right):
            axis.set(xscale="log", yscale="log", xlabel="kMAC / pixel", xlim=(0.3, 2500))
        figure.savefig(path, dpi=110)


PAGE = """# Quality against cost

Written by `python -m benchmarks.quality_cost {arguments}` on {date}: Python {python}, torch
{torch}, one thread. Each design is trained from scratch on the same frames (`training_data/`,
thinned, and simulated scenes) by the same loss, for {budget}. That is little: it says what a
design learns fast, not what it could learn in a day. The shipped weights, trained for longer, are
shown as well.

![Error against multiplications per pixel](quality_cost.png)

| design | kMAC / px | parameters | steps | scenes | I07, 1 s | time over ours |
|---|---|---|---|---|---|---|
{rows}

Scenes: Poisson divergence from the truth over that of the best Gaussian, whose width is
chosen with the truth in hand; geometric mean over {scenes} simulated scenes that no fit has
drawn, from 0.01 to 1000 counts a pixel; Anscombe + BM3D has {bm3d:.2f} on the first 12. I07:
noise-corrected squared error of held-out frames of 1 s against 20 s; the raw frame has 0.97.
Multiplications are counted while the network runs. Time: CPU time for a frame of 195 x 487 over
that of `photon_exchange`.
"""


def write(rows: list[dict], bm3d: float, given: argparse.Namespace) -> None:
    times = durations()
    ours = times["photon_exchange"]
    lines = [
        f"| {r['name']} | {r['macs'] / 1e3:.0f} | {r['parameters']:,} | {r['steps']} | "
        f"{r['scenes']:.2f} | {r['line']:.3f} | "
        f"{times[r['name'].removesuffix(', shipped')] / ours:.2f} |"
        for r in sorted(rows, key=lambda r: r["macs"])
    ]
    by_steps = given.steps is not None
    text = PAGE.format(
        arguments=f"--steps {given.steps}" if by_steps else f"--seconds {given.seconds:g}",
        budget=f"{given.steps} steps" if by_steps else f"{given.seconds:g} s of CPU time",
        date=time.strftime("%Y-%m-%d"),
        python=platform.python_version(),
        torch=torch.__version__.split("+")[0],
        rows="\n".join(lines),
        scenes=SCENES,
        bm3d=bm3d,
    )
    (ROOT / "docs" / "quality_cost.md").write_text(text)


def shipped() -> dict:
    """Score the shipped weights in the same way."""
    denoiser = Denoiser.load("default", "cpu", threads=1)
    model = MODELS[denoiser.card["model"]]()
    training = denoiser.card.get("training", {})
    return {
        "name": f"{denoiser.card['model']}, shipped",
        "steps": training.get("steps", 0),
        "macs": macs_per_pixel(model.eval()),
        "parameters": parameters(model),
        "line": line(denoiser),
        **quality(denoiser),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="CPU time for each design")
    parser.add_argument("--steps", type=int, help="instead: steps for each design")
    given = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    columns = TextColumn("{task.description:>24}"), BarColumn(), TextColumn("{task.completed}")
    with Progress(*columns, TimeElapsedColumn()) as bar:
        rows = [train(name, given, bar) for name in DESIGNS]
        rows.append(shipped())
        bm3d = quality(None)["scenes"]
    draw(rows, bm3d, ROOT / "docs" / "quality_cost.png")
    write(rows, bm3d, given)
    print((ROOT / "docs" / "quality_cost.md").read_text())


if __name__ == "__main__":
    main()
