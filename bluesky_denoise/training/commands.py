"""The commands ``bluesky-denoise train`` and ``bluesky-denoise finetune``."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.frame_files import find_files
from bluesky_denoise.masks import load_mask
from bluesky_denoise.support.memory import keep_freed_memory
from bluesky_denoise.tiled_address import without_api_key
from bluesky_denoise.training import fit as fitting
from bluesky_denoise.training.files import read_file
from bluesky_denoise.training.finetune import ADAPTING, with_held_out
from bluesky_denoise.training.finetune import finetune as adapt
from bluesky_denoise.training.fit import FitSettings, fit
from bluesky_denoise.training.pairs import PairSource
from bluesky_denoise.training.paper import EPOCHS, paper_settings
from bluesky_denoise.training.split import Split, split
from bluesky_denoise.training.tiled_runs import RUN, catalog, open_run, read_run, read_two_runs

__all__ = ["finetune", "open_data", "train"]

Output = Annotated[Path, typer.Argument(help="Weights to write, .safetensors.")]
DATA = (
    "HDF5 files of frames or pairs, folders of them, runs in Tiled as tiled:UID, "
    "or short and long runs as tiled:UID+UID."
)
HeldOut = Annotated[
    list[str] | None, typer.Option(help="File or run that is scored and never trained on.")
]
Share = Annotated[
    float, typer.Option(help="Share of each run, its last frames, that is held out too.")
]
Gap = Annotated[int, typer.Option(help="Frames left out between both blocks.")]
Repeats = Annotated[bool, typer.Option("--repeats", help="All frames of a run show one scene.")]
Mask = Annotated[str | None, typer.Option(help="Mask of all frames: .npy, .tif or .h5.")]
Key = Annotated[str | None, typer.Option(help="Data key of the frames of runs.")]
Uri = Annotated[
    str, typer.Option("--uri", envvar="TILED_URI", help="Tiled server; key in TILED_API_KEY.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; None: cuda where there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
LOCAL = "http://localhost:8000"


def train(
    output: Output,
    data: Annotated[list[str] | None, typer.Argument(help=f"{DATA} None: simulated only.")] = None,
    held_out: HeldOut = None,
    held_out_share: Share = FitSettings.held_out_share,
    gap: Gap = FitSettings.gap_frames,
    repeats: Repeats = False,
    recipe: Annotated[str, typer.Option(help="default, or paper.")] = FitSettings.recipe,
    model: Annotated[str | None, typer.Option(help="Name of the network.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the optimiser.")] = None,
    pixels: Annotated[
        int, typer.Option(min=1, help="Pixels per step; not for --recipe paper.")
    ] = FitSettings.pixels,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-12, help="Highest rate of the optimiser.")
    ] = None,
    spread_weight: Annotated[
        float,
        typer.Option(
            min=0,
            help="What spreading costs against noise: more keeps weak peaks higher.",
        ),
    ] = FitSettings.spread_weight,
    epochs: Annotated[int, typer.Option(min=1, help="For --recipe paper.")] = EPOCHS,
    start_from: Annotated[
        str | None, typer.Option(help="Name or path of weights to start from.")
    ] = None,
    seed: Seed = 0,
    mask: Mask = None,
    data_key: Key = None,
    uri: Uri = LOCAL,
    device: Device = None,
    threads: Threads = None,
    mixed_precision: Annotated[
        bool | None,
        typer.Option(
            "--mixed-precision/--full-precision",
            help="Convolutions in bfloat16, or all in float32. None: bfloat16 on a GPU.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw batches ahead.")] = 0,
) -> None:
    """Train a network on simulated scenes and on measured frames.

    A stopped training goes on when the same command is given again. For several GPUs:
    torchrun --nproc-per-node N -m bluesky_denoise.training WEIGHTS DATA...
    """
    with _refusals():
        sources, kept = (
            open_data(given or [], uri, repeats=repeats, mask=mask, data_key=data_key)
            for given in (data, held_out)
        )
        blocks = split(sources, kept, share=held_out_share, gap_frames=gap)
        _print_split(blocks)
        settings = FitSettings(model=model or FitSettings.model, pixels=pixels)
        if recipe == "paper":
            settings = paper_settings(blocks.training, model or "irunet_paper", epochs)
        settings = replace(
            settings,
            recipe=recipe,
            steps=steps or settings.steps,
            learning_rate=settings.learning_rate if learning_rate is None else learning_rate,
            spread_weight=spread_weight,
            held_out_share=held_out_share,
            gap_frames=gap,
            seed=seed,
        )
        keep_freed_memory()
        with _progress_bar("Training", settings.steps) as report:
            fit(
                output,
                sources,
                settings,
                held_out=kept,
                start_from=start_from,
                card={"command": _command("train")},
                device=device,
                threads=threads,
                mixed_precision=mixed_precision,
                workers=workers,
                report=report,
            )
    if _writes():
        Console().print(f"Weights: {output}", highlight=False, soft_wrap=True, markup=False)


def finetune(
    output: Output,
    data: Annotated[list[str], typer.Argument(help=DATA)],
    held_out: HeldOut = None,
    held_out_share: Share = ADAPTING.held_out_share,
    gap: Gap = ADAPTING.gap_frames,
    repeats: Repeats = False,
    start_from: Annotated[
        str, typer.Option(help="Name or path of the weights to adapt.")
    ] = "default",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = ADAPTING.steps,
    seed: Seed = 0,
    mask: Mask = None,
    data_key: Key = None,
    uri: Uri = LOCAL,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Adapt weights to one beamline, and keep them only if held-out counts say so.

    No long exposures are needed. Weights that predict held-out counts no better than those
    they were made from are not written; the exit status is then 1.
    """
    console = Console()
    with _refusals():
        opened, apart = (
            open_data(given or [], uri, repeats=repeats, mask=mask, data_key=data_key)
            for given in (data, held_out)
        )
        settings = replace(
            ADAPTING, steps=steps, held_out_share=held_out_share, gap_frames=gap, seed=seed
        )
        sources, kept = with_held_out(opened, apart, settings)
        _print_split(split(sources, kept, share=held_out_share, gap_frames=gap))
        keep_freed_memory()
        with _progress_bar("Adapting", steps) as report:
            result = adapt(
                output,
                sources,
                settings,
                held_out=kept,
                start_from=start_from,
                card={"command": _command("finetune")},
                device=device,
                threads=threads,
                report=report,
            )
    console.print("Deviance of held-out counts above that of the best Gaussian")
    console.print(str(result), highlight=False, soft_wrap=True, markup=False)
    if not result.promoted:
        before = f"{output} is as it was" if output.exists() else f"{output} is not written"
        console.print(f"The new weights are not kept; {before}.", soft_wrap=True, markup=False)
        raise typer.Exit(1)
    console.print(f"Weights: {output}", highlight=False, soft_wrap=True, markup=False)


def open_data(
    given: Sequence[str],
    uri: str = LOCAL,
    *,
    repeats: bool = False,
    mask: str | None = None,
    data_key: str | None = None,
) -> list[PairSource]:
    """Open files, folders and runs.

    Parameters
    ----------
    given : paths of HDF5 files or folders; ``tiled:UID``; ``tiled:SHORT_UID+LONG_UID``
    uri : address of the Tiled server
    repeats : all single frames of a source show one scene
    mask : file of the invalid pixels of all frames, beside the masks that HDF5 files carry
    data_key : of the frames of runs; None: the only one
    """
    opened: list[PairSource] = []
    invalid = None if mask is None else load_mask(mask)
    for text in given:
        if not text.startswith(RUN):
            for path in find_files([Path(text)]):
                opened.append(read_file(path, repeats=repeats, mask=invalid))
            continue
        with catalog(uri) as client:
            uids = text.removeprefix(RUN).split("+")
            if not all(uids):
                raise DenoiseError(
                    f"{text!r} names no run; expected {RUN}UID, or {RUN}SHORT_UID+LONG_UID."
                )
            runs = [open_run(client, uid, uri) for uid in uids]
            if len(runs) > 2:
                raise DenoiseError(
                    f"{text} names {len(runs)} runs; expected one, or SHORT_UID+LONG_UID."
                )
            if len(runs) == 2:
                opened.append(read_two_runs(*runs, data_key=data_key, mask=invalid))
            else:
                opened.append(read_run(runs[0], data_key=data_key, mask=invalid, repeats=repeats))
    return opened


def _print_split(blocks: Split) -> None:
    """Say for each run which frames are trained on, and which are held out."""
    if not _writes():
        return
    for entry in blocks.record:
        parts = [
            f"{what} {entry[key]}"
            for key, what in (("training", "trained on"), ("held_out", "held out"))
            if key in entry
        ]
        frames = f" ({entry['pairs']}, {entry['frames']} frames)" if "frames" in entry else ""
        text = f"{entry['name']}{frames}: {', '.join(parts)}"
        Console().print(text, highlight=False, markup=False)


def _writes() -> bool:
    """Tell whether this is the only process, or the first of several."""
    return int(os.environ.get("RANK", 0)) == 0


def _command(name: str) -> str:
    """Return the command as it was typed, without the key of Tiled: a card is shared."""
    after = sys.argv[sys.argv.index(name) + 1 :] if name in sys.argv else sys.argv[1:]
    return f"bluesky-denoise {name} {shlex.join(map(without_api_key, after))}"


@contextmanager
def _refusals() -> Iterator[None]:
    """Show an error of ours as one line, not as a traceback."""
    try:
        yield
    except DenoiseError as error:
        Console(stderr=True).print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def _progress_bar(what: str, steps: int) -> Iterator[Callable[[fitting.Progress], None]]:
    """Show a bar with a running mean of the loss and the latest validation."""
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:3], TimeRemainingColumn())
    told = TextColumn("{task.fields[told]}")
    with Progress(*columns, told, disable=not _writes()) as bar:
        task = bar.add_task(what, total=steps, told="")
        fitted = bar.add_task("Error bars", total=1.0, told="", visible=False, start=False)
        mean, seen, shown = 0.0, 0, ""

        def report(now: fitting.Progress) -> None:
            nonlocal mean, seen, shown
            if now.error_bars:
                bar.start_task(fitted)
                bar.update(fitted, completed=now.error_bars, visible=True)
                return
            weight = min(0.98, seen / (seen + 1))
            mean, seen = weight * mean + (1 - weight) * now.loss, seen + 1
            score = f"{now.validation:+.2f} %" if np.isfinite(now.validation) else ""
            if score != shown:
                bar.console.print(
                    f"step {now.step + 1}: loss {mean:.3f}, held out {score}", highlight=False
                )
            shown = score
            told = f"loss {mean:.3f}  held out {score}"
            bar.update(task, completed=now.step + 1, told=told)

        yield report
