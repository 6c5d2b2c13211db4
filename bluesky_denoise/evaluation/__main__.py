"""``python -m bluesky_denoise.evaluation FOLDER``: score the denoiser on thinned frames."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.evaluation.baselines import anscombe_bm3d
from bluesky_denoise.evaluation.table import Method, frame_sets, mean_scores, score_frame
from bluesky_denoise.thinning import check_photon_counts

__all__ = ["evaluate"]


def evaluate(
    data: Annotated[Path, typer.Argument(help="HDF5 file, or folder searched for *.h5.")],
    weights: Annotated[str, typer.Option(help="Name or path of the weights.")] = "default",
    fraction: Annotated[
        list[float] | None, typer.Option(help="Share of the photons that is denoised.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of each file, at most.")] = 2,
    first: Annotated[int, typer.Option(help="First frame of each file that is used.")] = 0,
    rows: Annotated[int, typer.Option(help="Rows of a frame, at most.")] = 192,
    cols: Annotated[int, typer.Option(help="Columns of a frame, at most.")] = 320,
    bm3d: Annotated[bool, typer.Option(help="Also Anscombe + BM3D; a minute a frame.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
) -> None:
    """Denoise a share of the photons of measured frames, and score it on the others.

    Deviance: of the held-out counts, in percent above that of the best Gaussian, whose
    width is chosen on the held-out counts themselves; below 0 is better than any Gaussian.
    Error: squared error over the mean count, less the noise of the held-out counts; the
    raw frame has 1. Flux: total counts over those of the input.
    """
    console = Console()
    denoiser = Denoiser.load(weights, device)

    def ours(counts: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.nan_to_num(denoiser.denoise(counts, 1.0, mask).rate)

    methods: dict[str, Method] = {"BM3D": anscombe_bm3d} if bm3d else {}
    methods[denoiser.name] = ours
    table = Table(title=f"Thinned frames, weights {denoiser.name} ({denoiser.weights_sha256:.12})")
    for column in ("set", "counts/px", "method", "deviance %", "error", "flux"):
        table.add_column(column, justify="left" if column in ("set", "method") else "right")
    paths = sorted(data.rglob("*.h5")) if data.is_dir() else [data]
    for path in paths:
        try:
            counts, mask = frame_sets(path, frames, (rows, cols), first)
            check_photon_counts(counts, mask)
        except DenoiseError as error:
            console.print(f"{path.name} left out: {error}", highlight=False)
            continue
        for share in fraction or [0.1, 0.01]:
            rng = np.random.default_rng(1)
            scores = [s for n in counts for s in score_frame(n, mask, share, methods, rng)]
            level = share * float(counts[:, ~mask].mean())
            for name, score in mean_scores(scores).items():
                table.add_row(
                    path.stem,
                    f"{level:.3g}",
                    name,
                    f"{score.deviance:+.2f}",
                    f"{score.error:.4f}",
                    f"{score.flux:.4f}",
                )
            table.add_section()
    console.print(table)


if __name__ == "__main__":
    typer.run(evaluate)
