"""The command ``bluesky-denoise evaluate``: where frames come from, and where results go."""

import platform
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from .denoiser import Denoiser
from .errors import DenoiseError, SettingsError
from .evaluation.frame_sets import FrameSet, frame_set, read_frame_set
from .evaluation.gates import judge
from .evaluation.known_sets import known_set
from .evaluation.methods import baselines, network
from .evaluation.results import Evaluation, write_json
from .evaluation.run import Gallery, score_measured, score_simulated, time_on
from .evaluation.table import Table, without_repeats
from .evaluation.tables import all_tables, gate_table
from .frame_files import find_files
from .simulation import recorded_frames

__all__ = ["evaluate"]

UID = re.compile(r"[0-9a-f-]{4,36}|-?[0-9]+")
PAPER = ("vdsr", "irunet")
"""Networks of Oppliger et al. (2024)."""
TRAINED_ON = Path("training_data")
"""Frames in a checkout that the shipped weights were trained on."""


def evaluate(
    data: Annotated[
        str | None,
        typer.Argument(
            help="HDF5 file, folder of such files, or uid of a run in Tiled. Left out: the "
            "shipped measured frames, and simulated scenes."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Name or path of the weights.")] = "default",
    json: Annotated[Path | None, typer.Option(help="Write all scores here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report here, .html.")] = None,
    networks: Annotated[
        list[Path] | None, typer.Option(help="Other weights to compare with; repeat it.")
    ] = None,
    train_paper: Annotated[
        int | None,
        typer.Option(help="Train VDSR and IRUNet for so many steps on the same frames first."),
    ] = None,
    bm3d: Annotated[bool, typer.Option(help="Compare with Anscombe + BM3D, the slow one.")] = True,
    simulated: Annotated[
        bool | None, typer.Option(help="Simulated scenes too; by default only without DATA.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of each series that are thinned.")] = 2,
    effort: Annotated[float, typer.Option(help="Factor on the simulated frames.")] = 1.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    uri: Annotated[
        str, typer.Option(envvar="TILED_URI", help="Tiled server; key in TILED_API_KEY.")
    ] = "http://localhost:8000",
    key: Annotated[str | None, typer.Option(help="Detector key of the run.")] = None,
) -> None:
    """Score a denoiser against the raw frame, classical denoisers, and other networks.

    Prints a table for each question, and the gates. No frame is part of what it is
    compared with: photons are dealt into independent parts, or single frames are compared
    with the frames around them. Integrating detectors are left out.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 130
    begin = time.monotonic()
    try:
        denoiser = Denoiser.load(model, device)
        result = Evaluation(denoiser.name, _about(denoiser, data))
        sets = list(_read(data, key, uri, result, console))
        if not sets:
            raise SettingsError(f"No frames could be scored. {' '.join(result.left_out)}")
        others = [Denoiser.load(path, device) for path in networks or ()]
        if train_paper:
            others += _train_paper(train_paper, console)
    except DenoiseError as error:
        raise _Refused(str(error)) from error
    methods = [*baselines(bm3d)]
    methods += [network(other, slow=_is_slow(other)) for other in others]
    methods.append(network(denoiser))
    gallery = Gallery()
    with _progress(console) as bar:
        score = _Track(bar)
        score_measured(result, sets, methods, denoiser, score, gallery, frames)
        if simulated if simulated is not None else data is None:
            score_simulated(result, methods, denoiser, score, effort)
        if denoiser.device == "cpu":
            counts = sets[0].counts[0][:195, :487] if sets else recorded_frames().counts[0]
            time_on(result, model, counts.astype(np.int64), score)
    result.about["minutes"] = round((time.monotonic() - begin) / 60, 1)
    gates = judge(result)
    for table in (*all_tables(result), gate_table(gates)):
        console.print(_rich(table, denoiser.name))
        console.print(table.note, style="dim", width=110)
        console.print()
    for sentence in result.left_out:
        console.print(f"Left out: {escape(sentence)}", highlight=False)
    if json is not None:
        write_json(result, json, gates)
        console.print(f"Scores: {json}", highlight=False)
    if report is not None:
        from .evaluation.report import write_report

        write_report(result, gates, gallery, report)
        console.print(f"Report: {report}", highlight=False)


class _Refused(typer.Exit):
    """Ends the command with a message on standard error."""

    def __init__(self, message: str) -> None:
        Console(stderr=True).print(f"[red]Error:[/] {escape(message)}", soft_wrap=True)
        super().__init__(1)


class _Track:
    """Shows a bar for each part, and takes it away when it is done."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def __call__(self, items: Sequence, what: str) -> Iterator:
        task = self._bar.add_task(what, total=len(items))
        try:
            for item in items:
                yield item
                self._bar.advance(task)
        finally:
            self._bar.remove_task(task)


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description:>32}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), console=console)


def _about(denoiser: Denoiser, data: str | None) -> dict[str, Any]:
    return {
        "model": denoiser.name,
        "network": denoiser.card.get("model", ""),
        "sha256": denoiser.weights_sha256,
        "command": f"bluesky-denoise evaluate{' DATA' if data else ''}",
        "data": Path(data).name if data else "shipped frames and simulated scenes",
        "date": time.strftime("%Y-%m-%d"),
        "device": denoiser.device,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "package": version("bluesky-denoise"),
    }


def _read(
    data: str | None, key: str | None, uri: str, result: Evaluation, console: Console
) -> Iterator[FrameSet]:
    """Yield photon counts; what is not, is left out with a sentence."""
    if data is None:
        recorded = recorded_frames()
        yield FrameSet(
            "i07_line", recorded.counts, recorded.mask, known_set("i07_line", len(recorded.counts))
        )
        paths = sorted(TRAINED_ON.glob("*.h5"))
    elif Path(data).exists():
        paths = find_files([Path(data)], below=True)
    else:
        yield _from_tiled(data, key, uri)
        return
    for path in paths:
        try:
            with console.status(f"Reading {path.name}"):
                found = read_frame_set(path)
        except (DenoiseError, OSError) as error:
            result.left_out.append(f"{path.name}: {error}")
        else:
            yield found


def _from_tiled(uid: str, key: str | None, uri: str) -> FrameSet:
    if not UID.fullmatch(uid):
        raise SettingsError(f"{uid!r} is no file or folder here, and no uid of a run.")
    from .settings import DenoiseSettings
    from .tiled_layouts import connect

    try:
        client = connect(DenoiseSettings(tiled_uri=uri, tiled_layout="stream"))
        with client.context:
            stream = client[uid]["primary"]
            arrays = [k for k in stream if stream[k].ndim >= 3]
            if key is None and len(arrays) != 1:
                raise SettingsError(f"Run {uid} has the frames {arrays}; say which with --key.")
            counts = np.asarray(stream[key or arrays[0]].read())
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"{uid!r} is no file or folder here, and no run at {uri}: {error!r}"
        ) from error
    return frame_set(uid[:8], counts.reshape(-1, *counts.shape[-2:]))


def _train_paper(steps: int, console: Console) -> Iterable[Denoiser]:
    """Train the paper's networks as ours is trained, for a stated number of steps."""
    from .training.fit import FitSettings, fit

    frames = sorted(TRAINED_ON.glob("*.h5"))
    for name in PAPER:
        path = Path("checkpoints") / f"{name}_{steps}.safetensors"
        # A training that was killed leaves weights, too, and goes on from its last state.
        if not path.exists() or path.with_suffix(".resume").exists():
            settings = FitSettings(model=name, steps=steps, held_out_share=0.0)
            with _progress(console) as bar:
                task = bar.add_task(f"training {name}", total=steps)
                fit(
                    path,
                    frames,
                    settings,
                    report=lambda now, bar=bar, task=task: bar.update(task, completed=now.step + 1),
                )
        yield Denoiser.load(path)


def _is_slow(denoiser: Denoiser) -> bool:
    """Tell whether a frame of 192 x 192 takes more than 0.2 s."""
    counts = np.ones((192, 192))
    begin = time.process_time()
    denoiser.denoise(counts, 1.0)
    return time.process_time() - begin > 0.2


def _rich(table: Table, subject: str) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        text = any(c.isalpha() for row in table.rows for c in row[i])
        shown.add_column(column, justify="left" if text else "right", overflow="fold")
    before: tuple[str, ...] | None = None
    for row, cells in zip(table.rows, without_repeats(table), strict=True):
        group = row[: table.groups]
        if before is not None and group != before:
            shown.add_section()
        before = group
        style = "bold" if subject in row else "red" if "missed" in row or "NO" in row else None
        shown.add_row(*cells, style=style)
    return shown
