"""``python -m bluesky_denoise.training``: train the shipped weights, or others."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from bluesky_denoise.training.fit import FitSettings, fit

__all__ = ["train"]


def train(
    output: Annotated[Path, typer.Argument(help="Weights to write, .safetensors.")],
    frames: Annotated[
        list[Path] | None, typer.Argument(help="HDF5 files of raw photon counts, or a folder.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = FitSettings.steps,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    model: Annotated[str, typer.Option(help="Name of the network.")] = FitSettings.model,
    start_from: Annotated[
        str | None, typer.Option(help="Name or path of weights to start from.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Train a network on simulated scenes and on thinned real frames."""
    files: list[Path] = []
    for path in frames or []:
        files += sorted(path.glob("*.h5")) if path.is_dir() else [path]
    settings = FitSettings(model=model, steps=steps, seed=seed)
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:3], TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}")) as bar:
        task = bar.add_task("Training", total=steps, loss=float("nan"))
        mean = 0.0

        def report(step: int, loss: float) -> None:
            nonlocal mean
            weight = min(0.98, step / (step + 1))
            mean = weight * mean + (1 - weight) * loss
            bar.update(task, completed=step + 1, loss=mean)

        fit(output, files, settings, start_from=start_from, threads=threads, report=report)


if __name__ == "__main__":
    typer.run(train)
