"""The command ``bluesky-denoise train``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from bluesky_denoise.training import fit as fitting
from bluesky_denoise.training.files import find_files
from bluesky_denoise.training.fit import FitSettings, fit

__all__ = ["train"]


def train(
    output: Annotated[Path, typer.Argument(help="Weights to write, .safetensors.")],
    frames: Annotated[
        list[Path] | None, typer.Argument(help="HDF5 files of frames or pairs, or folders.")
    ] = None,
    held_out: Annotated[
        list[Path] | None, typer.Option(help="File that is scored and never trained on.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = FitSettings.steps,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    model: Annotated[str, typer.Option(help="Name of the network.")] = FitSettings.model,
    start_from: Annotated[
        str | None, typer.Option(help="Name or path of weights to start from.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that draw batches ahead.")] = 0,
) -> None:
    """Train a network on simulated scenes and on measured frames."""
    settings = FitSettings(model=model, steps=steps, seed=seed)
    with progress_bar("Training", steps) as report:
        fit(
            output,
            find_files(frames or []),
            settings,
            held_out=find_files(held_out or []),
            start_from=start_from,
            device=device,
            threads=threads,
            workers=workers,
            report=report,
        )


@contextmanager
def progress_bar(what: str, steps: int) -> Iterator[Callable[[fitting.Progress], None]]:
    """Show a bar with a running mean of the loss and the latest validation."""
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:3], TimeRemainingColumn())
    told = TextColumn("loss {task.fields[loss]:.3f}  held out {task.fields[held_out]}")
    with Progress(*columns, told) as bar:
        task = bar.add_task(what, total=steps, loss=float("nan"), held_out="")
        mean = 0.0
        seen = 0

        def report(now: fitting.Progress) -> None:
            nonlocal mean, seen
            weight = min(0.98, seen / (seen + 1))
            mean, seen = weight * mean + (1 - weight) * now.loss, seen + 1
            score = f"{now.validation:+.2f} %" if np.isfinite(now.validation) else ""
            bar.update(task, completed=now.step + 1, loss=mean, held_out=score)

        yield report
