"""``python -m bluesky_denoise.evaluation.neighbours FILE``: short against measured long exposures.

For a scan whose scene changes slowly: a frame is compared with the sum of its
neighbours, which is a longer exposure of the same scene with independent noise.
"""

from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.evaluation.baselines import anscombe_bm3d, gaussian
from bluesky_denoise.evaluation.metrics import flux_ratio, line_contrast, noise_corrected_error
from bluesky_denoise.evaluation.table import Method

__all__ = ["compare"]


def compare(
    path: Annotated[Path, typer.Argument(help="HDF5 file with `frames` (n, H, W).")],
    first: Annotated[int, typer.Option(help="First frame that is denoised.")] = 75,
    last: Annotated[int, typer.Option(help="Last frame that is denoised.")] = 145,
    every: Annotated[int, typer.Option(help="Step between frames.")] = 10,
    around: Annotated[int, typer.Option(help="Neighbours on either side.")] = 10,
    line: Annotated[int, typer.Option(help="Column of the line whose contrast is told.")] = 211,
    fraction: Annotated[float, typer.Option(help="Share of the photons that is denoised.")] = 1.0,
    weights: Annotated[str, typer.Option(help="Name or path of the weights.")] = "default",
    bm3d: Annotated[bool, typer.Option(help="Also Anscombe + BM3D.")] = False,
) -> None:
    """Score single frames against the sum of their neighbours.

    Error: squared error over the mean count, less the reference's own Poisson noise; the
    raw frame has about 1. Contrast: of the line, over that of the reference. Flux: total
    counts over those of the input.
    """
    denoiser = Denoiser.load(weights)
    methods: dict[str, Method] = {"raw": lambda n, _: n}
    for sigma in (1.0, 2.0, 3.0, 4.0, 6.0):
        methods[f"Gaussian {sigma:g} px"] = lambda n, m, s=sigma: gaussian(n, s, m)
    if bm3d:
        methods["BM3D"] = anscombe_bm3d
    methods[denoiser.name] = lambda n, m: np.nan_to_num(denoiser.denoise(n, 1.0, m).rate)
    scores: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    rng = np.random.default_rng(0)
    with h5py.File(path) as file:
        mask = file["mask"][...] != 0
        for i in range(first, last + 1, every):
            stack = file["frames"][i - around : i + around + 1].astype(np.int64)
            counts, reference = stack[around], stack.sum(0) - stack[around]
            scale = fraction * counts.sum() / reference.sum()
            part = rng.binomial(counts, fraction)
            contrast = line_contrast(reference, line)
            for name, method in methods.items():
                estimate = method(part, mask)
                scores[name].append(
                    (
                        noise_corrected_error(estimate, reference, scale, mask),
                        line_contrast(estimate, line) / contrast,
                        flux_ratio(estimate, part, mask),
                    )
                )
    table = Table(title=f"{path.name}, {fraction:g} of the photons, frames {first} to {last}")
    for column in ("method", "error", "contrast", "flux"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, found in scores.items():
        error, contrast, flux = np.mean(found, axis=0)
        table.add_row(name, f"{error:.4f}", f"{contrast:.3f}", f"{flux:.5f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(compare)
