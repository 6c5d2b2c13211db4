"""``python -m benchmarks.gpu``: frames per second on a GPU, and the paper's networks there."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bluesky_denoise import Denoiser
from bluesky_denoise.evaluation import table as evaluation
from bluesky_denoise.models import MODELS
from bluesky_denoise.models.checkpoint import load_checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks_gpu.md"
SIZES = {
    "Pilatus 100K, 195 x 487": (64, 195, 487),
    "Eiger 1M, 1065 x 1030": (16, 1065, 1030),
    "Pilatus 6M, 2527 x 2463": (4, 2527, 2463),
    "Eiger 16M, 4362 x 4148": (1, 4362, 4148),
}
"""Detector -> frames that are denoised at once, rows and columns."""
HEAD = (
    "detector",
    "frames at once",
    "ms for one frame",
    "of it, on the GPU",
    "frames/s",
    "VDSR over ours",
    "IRUNet over ours",
    "difference from float32, in standard errors: rms",
    "99.9 % of pixels within",
)


def main() -> None:
    """Time a GPU; takes a minute or two."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here, and nothing else is timed by this.")
    console, rows = Console(), []
    for name, shape in SIZES.items():
        with console.status(name):
            rows.append((name, str(shape[0]), *_row(shape)))
    table = Table(*HEAD)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    _write(rows)
    console.print(f"Written to {PAGE.name}.")


def frames_of(shape: tuple[int, int, int]) -> np.ndarray:
    """Draw photon counts of a bent line on a slope, as 32-bit integers: (B, H, W)."""
    _, height, width = shape
    y, x = np.mgrid[:height, :width]
    line = np.exp(-0.5 * ((y - 0.4 * height - 30 * np.sin(x / 90)) / 2.5) ** 2)
    rate = 0.2 + 1.5 * x / width + 6 * line
    return np.random.default_rng(0).poisson(rate, shape).astype(np.int32)


def _row(shape: tuple[int, int, int]) -> tuple[str, ...]:
    counts = frames_of(shape)
    denoiser = Denoiser.load(device="cuda")
    network = load_checkpoint("default")[0].to("cuda", memory_format=torch.channels_last)
    whole = _seconds(lambda: denoiser.denoise(counts, 1.0)) / len(counts)
    image = torch.from_numpy(counts).to("cuda", torch.float32)[:, None]  # -> (B, 1, H, W)
    pad = (0, -image.shape[-1] % 16, 0, -image.shape[-2] % 16)
    image = torch.nn.functional.pad(image, pad)
    ours = _on_gpu(network.estimate, image)
    others = [_on_gpu(MODELS[name]().eval().to("cuda"), image) for name in ("vdsr", "irunet")]
    found = denoiser.denoise(counts[0], 1.0)
    exact = Denoiser.load(device="cpu").denoise(counts[0], 1.0)
    away = np.abs(found.rate - exact.rate) / exact.sigma
    return (
        f"{1000 * whole:.2f}",
        f"{1000 * ours:.2f}",
        f"{1 / whole:.0f}",
        *(f"{other / ours:.1f}" for other in others),
        f"{np.sqrt(np.mean(away**2)):.3f}",
        f"{np.quantile(away, 0.999):.2f}",
    )


def _on_gpu(network: Callable, images: torch.Tensor) -> float:
    """Return the seconds of a network for one frame that is on the GPU, in bfloat16.

    A batch that does not fit is halved: the paper's networks keep 64 channels of it.
    """
    valid = torch.ones_like(images)
    try:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            return _seconds(lambda: network(images, valid)) / len(images)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            return float("nan")
    torch.cuda.empty_cache()
    return _on_gpu(network, images[: len(images) // 2])


def _seconds(job: Callable[[], object], rounds: int = 7) -> float:
    """Return the median time of a call, after two that are not timed."""
    elapsed = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        job()
        torch.cuda.synchronize()
        elapsed.append(time.perf_counter() - begin)
    return median(elapsed[2:])


def _write(rows: list[tuple[str, ...]]) -> None:
    lines = [
        "# Benchmarks on a GPU",
        "",
        "Printed and written by `python -m benchmarks.gpu`, on a machine that has a GPU.",
        "",
        f"Last run: {torch.cuda.get_device_name()}, Python {platform.python_version()}, "
        f"torch {torch.__version__.split('+')[0]}.",
        "",
        evaluation.markdown(evaluation.Table("", "", HEAD, rows)),
        "",
        "The first time is of `Denoiser.denoise`: integer counts in memory to rates and standard",
        "errors in memory, with checks and both transfers. The second is of the network alone,",
        "and the ratios are against it: all networks get the same frames on the GPU, in bfloat16.",
        "VDSR and IRUNet tell no standard errors. The last columns compare with the same frame",
        "in float32 on the processor.",
    ]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
