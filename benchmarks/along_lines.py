"""Print what the last exchange, along lines, does to random scenes, to error bars and to the time.

Run as ``python -m benchmarks.along_lines [--scenes 200] [--weights default]``. Scenes are those
of the training, drawn anew; counted are those in which it changes a pixel in 200 or more. Draws
docs/along_lines.png, too.
"""

import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from benchmarks.judged import judged, network_alone, without_and_with
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.simulation.random_scenes import random_scene
from bluesky_denoise.simulation.recorded import recorded_frames

SHAPE = (192, 192)
LEAST_CHANGED = 0.005
CONFIDENCES = (0.68, 0.9, 0.95)


def main() -> None:
    denoiser, scenes = judged(__doc__, "scenes", 200)
    ratios, held = [], {"without": [], "with": []}
    for i in range(scenes):
        rng = np.random.default_rng([i, 77])
        truth = random_scene(SHAPE, rng, log10_level=(-1.0, 3.5))
        counts = rng.poisson(truth)
        before, after = without_and_with(denoiser, counts)
        changed = abs(after - before) > 1e-3 * before
        if changed.mean() < LEAST_CHANGED:
            continue
        ratios.append(_divergence(after, truth) / _divergence(before, truth))
        for word, leave_out in (("without", network_alone()), ("with", nullcontext())):
            with leave_out:
                found = denoiser.denoise(counts, 1.0)
            intervals = [found.interval(confidence) for confidence in CONFIDENCES]
            held[word].append(
                [((low <= truth) & (truth <= high))[changed].mean() for low, high in intervals]
            )
    change = 100 * (np.array(ratios) - 1)
    mean = 100 * (np.exp(np.log(ratios).mean()) - 1)
    tenth, median, last = np.quantile(change, [0.1, 0.5, 0.9])
    print(f"changed: {len(ratios)} of {scenes} scenes")
    print(
        f"divergence from the truth: {mean:+.1f} % on average; a tenth {tenth:+.1f} % or better, "
        f"half {median:+.1f} %, nine tenths {last:+.1f} %; the worst {change.max():+.1f} %"
    )
    for word, shares in held.items():
        told = " / ".join(f"{100 * share:.0f}" for share in np.mean(shares, axis=0))
        print(f"68 / 90 / 95 % intervals of changed pixels, {word} it: {told} %")
    rows, cols = np.indices((512, 512))
    fringes = 100 * (1 + 0.9 * np.cos(2 * np.pi * (0.6 * rows + 0.8 * cols) / 12))
    print(f"time, a frame of fringes: {_times_longer(denoiser, fringes.astype(int)):.2f} times")
    line = recorded_frames().counts[0]
    _draw(denoiser, Path(__file__).parents[1] / "docs" / "along_lines.png")
    print(f"time, the I07 frame that ships: {_times_longer(denoiser, line):.2f} times")


def _draw(denoiser: Denoiser, path: Path) -> None:
    """Draw a part of three powder rings: counted, denoised without and with it, and expected."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from bluesky_denoise.evaluation.plot_style import STYLE

    rows, cols = np.indices((128, 128))
    radius = np.hypot(rows - 150.0, cols + 20.0)
    rings = sum(np.exp(-0.5 * ((radius - at) / 1.6) ** 2) for at in (70, 105, 148))
    truth = 4 + 60 * rings
    counts = np.random.default_rng(0).poisson(truth)
    alone, whole = without_and_with(denoiser, counts)
    images = {"counted": counts, "network alone": alone, "denoised": whole, "expected": truth}
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
        for ax, (name, image) in zip(axes, images.items(), strict=True):
            shown = ax.imshow(image, vmin=0, vmax=80, cmap="inferno", interpolation="nearest")
            ax.set(title=name, xticks=[], yticks=[])
        figure.colorbar(shown, ax=axes, label="counts / pixel", shrink=0.85)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _divergence(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Poisson deviance of expected counts from the true ones."""
    estimate = np.maximum(estimate, 1e-3 * truth.mean())
    logs = truth * np.log(np.maximum(truth, 1e-30) / estimate)
    return float(2 * (estimate - truth + logs).mean())


def _times_longer(denoiser: Denoiser, counts: np.ndarray) -> float:
    """Time over that without the last exchange, taken in turns."""
    alone, whole = [], []
    for _ in range(20):
        with network_alone():
            alone.append(_time_s(denoiser, counts))
        whole.append(_time_s(denoiser, counts))
    return min(whole) / min(alone)


def _time_s(denoiser: Denoiser, counts: np.ndarray) -> float:
    begin = time.process_time()
    denoiser.denoise(counts, 1.0)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
