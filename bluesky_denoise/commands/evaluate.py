"""The command ``bluesky-denoise evaluate``: where frames come from, and where results go."""

import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.errors import DenoiseError, SettingsError
from bluesky_denoise.evaluation.frame_sets import FrameSet, frame_set, read_frame_set
from bluesky_denoise.evaluation.gates import judge
from bluesky_denoise.evaluation.methods import baselines, network
from bluesky_denoise.evaluation.names import TAKEN_METHODS, TAKEN_SETS, told_apart
from bluesky_denoise.evaluation.results import Evaluation, write_json
from bluesky_denoise.evaluation.run import Gallery, score_measured, score_simulated, time_on
from bluesky_denoise.evaluation.table import Table, without_repeats
from bluesky_denoise.evaluation.tables import all_tables, gate_table
from bluesky_denoise.frame_files import find_files
from bluesky_denoise.masks import load_mask
from bluesky_denoise.models.checkpoint import is_card
from bluesky_denoise.simulation import recorded_frames
from bluesky_denoise.support.whole_files import check_place
from bluesky_denoise.tiled_address import without_api_key
from bluesky_denoise.training.tiled_runs import RUN, catalog, open_run, run_frames

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
            help="HDF5 file, folder of such files, or run in Tiled, as tiled:UID. Left out: the "
            "shipped measured frames, and simulated scenes."
        ),
    ] = None,
    mask: Annotated[str | None, typer.Option(help="Mask of all frames: .npy, .tif or .h5.")] = None,
    model: Annotated[str, typer.Option(help="Name or path of the weights.")] = "default",
    json: Annotated[Path | None, typer.Option(help="Write all scores here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report here, .html.")] = None,
    networks: Annotated[
        list[Path] | None, typer.Option(help="Other weights to compare with; repeat it.")
    ] = None,
    train_paper: Annotated[
        int | None,
        typer.Option(
            help="Train VDSR and IRUNet for so many steps on the same frames first.", min=1
        ),
    ] = None,
    bm3d: Annotated[bool, typer.Option(help="Compare with Anscombe + BM3D, the slow one.")] = True,
    simulated: Annotated[
        bool | None, typer.Option(help="Simulated scenes too; by default only without DATA.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of each series that are thinned.", min=1)] = 2,
    effort: Annotated[
        float, typer.Option(help="Factor on the simulated frames.", min=0, max=1000)
    ] = 1.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    uri: Annotated[
        str, typer.Option(envvar="TILED_URI", help="Tiled server; key in TILED_API_KEY.")
    ] = "http://localhost:8000",
    data_key: Annotated[
        str | None, typer.Option("--data-key", "--key", help="Data key of the frames of the run.")
    ] = None,
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
    paper_steps = train_paper or 0
    scenes_too = simulated if simulated is not None else data is None
    try:
        _check_places([place for place in (json, report) if place is not None])
        paper = _paper_files(paper_steps)
        names = _names_of([Path(model), *(networks or ()), *paper])
        denoiser = Denoiser.load(model, device)
        others = [Denoiser.load(path, device) for path in networks or ()]
        denoiser.name = names[0]
        result = Evaluation(denoiser.name, _about(denoiser, data))
        found = _read(data, _mask_of(mask, data), data_key, uri, result, console)
        sets = [_with_training(frames, denoiser.card) for frames in found]
        if not sets:
            raise SettingsError(f"No frames could be scored. {' '.join(result.left_out)}")
        for path in paper:
            _train_paper(path, paper_steps, console)
            others.append(Denoiser.load(path, device))
        for other, name in zip(others, names[1:], strict=True):
            other.name = name
    except DenoiseError as error:
        raise _Refused(str(error)) from error
    methods = [*baselines(bm3d)]
    methods += [network(other, slow=_is_slow(other)) for other in others]
    methods.append(network(denoiser))
    gallery = Gallery()
    with _progress(console) as bar:
        score = _Track(bar)
        score_measured(result, sets, methods, denoiser, score, gallery, frames)
        if not (result.shift or scenes_too):
            raise _Refused(f"No frames could be scored. {' '.join(result.left_out)}")
        if scenes_too:
            score_simulated(result, methods, denoiser, score, effort)
        if denoiser.device == "cpu":
            counts = sets[0].counts[0][:195, :487] if sets else recorded_frames().counts[0]
            counts = counts.astype(np.int64)
            time_on(result, model, counts, score)
    result.about["minutes"] = round((time.monotonic() - begin) / 60, 1)
    gates = judge(result)
    for table in (*all_tables(result), gate_table(gates)):
        console.print(_rich(table, denoiser.name))
        console.print(table.note, style="dim", width=110)
        console.print()
    for sentence in result.left_out:
        console.print(f"Left out: {escape(sentence)}", highlight=False)
    failed: list[str] = []
    if json is not None:
        with _told(f"Scores: {json}", failed, console):
            write_json(result, json, gates)
    if report is not None:
        from bluesky_denoise.evaluation.report import write_report

        with _told(f"Report: {report}", failed, console):
            write_report(result, gates, gallery, report)
    if failed:
        raise _Refused(" ".join(failed))


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
        task = self._bar.add_task(escape(what), total=len(items))
        try:
            for item in items:
                yield item
                self._bar.advance(task)
        finally:
            self._bar.remove_task(task)


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description:>32}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), console=console)


def _check_places(paths: Sequence[Path]) -> None:
    """Refuse files that cannot be written, or should not be, while nothing is lost yet."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise SettingsError(f"{paths[0]} is to be both JSON and report; give two names.")
    for path in paths:
        beside = path.parent / f"{path.stem}.safetensors"
        if is_card(path) or (path.suffix == ".json" and beside.exists()):
            raise SettingsError(
                f"{path} is the place of the card of weights {beside.name}. Give another name, "
                f"such as {path.stem}_scores{path.suffix}."
            )
        try:
            check_place(path)
        except OSError as error:
            raise SettingsError(
                f"{path} cannot be written: {error}. Give a file in a folder that can be."
            ) from error


@contextmanager
def _told(what: str, failed: list[str], console: Console) -> Iterator[None]:
    """Say that a file is written; if it cannot be, the next one is tried all the same."""
    try:
        yield
    except OSError as error:
        failed.append(f"{what} cannot be written: {error}.")
    else:
        console.print(what, highlight=False, markup=False)


def _names_of(weights: Sequence[Path]) -> list[str]:
    """Name all weights, none as another or as what they are compared with."""
    names = told_apart(weights, TAKEN_METHODS)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"The weights {', '.join(twice)} are given twice; expected each once.")
    return names


def _command() -> str:
    """Return the command as it was typed, without the key of Tiled: scores are shared."""
    typed = sys.argv[sys.argv.index("evaluate") :] if "evaluate" in sys.argv else ["evaluate"]
    return f"bluesky-denoise {shlex.join(map(without_api_key, typed))}"


def _about(denoiser: Denoiser, data: str | None) -> dict[str, Any]:
    return {
        "model": denoiser.name,
        "network": denoiser.card.get("model", ""),
        "sha256": denoiser.weights_sha256,
        "command": _command(),
        "data": Path(data).resolve().name if data else "shipped frames and simulated scenes",
        "date": time.strftime("%Y-%m-%d"),
        "device": denoiser.device,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "package": version("bluesky-denoise"),
    }


def _mask_of(mask: str | None, data: str | None) -> np.ndarray | None:
    if mask is not None and data is None:
        raise SettingsError(f"The mask {mask} is for frames of your own; give them as DATA.")
    return None if mask is None else load_mask(mask)


def _read(
    data: str | None,
    mask: np.ndarray | None,
    data_key: str | None,
    uri: str,
    result: Evaluation,
    console: Console,
) -> Iterator[FrameSet]:
    """Yield photon counts; what is not, is left out with a sentence."""
    taken: tuple[str, ...] = TAKEN_SETS
    if data is None:
        taken = (*TAKEN_SETS, "i07_line")
        recorded = recorded_frames()
        yield frame_set("i07_line", recorded.counts, recorded.mask)
        root, paths = TRAINED_ON, sorted(TRAINED_ON.glob("*.h5"))
    elif Path(data).exists():
        root, paths = Path(data), find_files([Path(data)], below=True)
    elif data.startswith(RUN) or UID.fullmatch(data):
        yield _from_tiled(data.removeprefix(RUN), mask, data_key, uri)
        return
    else:
        raise SettingsError(f"{data!r} is no file or folder here, and no uid of a run.")
    for path, name in zip(paths, told_apart(paths, taken), strict=True):
        where = path.relative_to(root) if path != root else path.name
        try:
            with console.status(f"Reading {escape(str(where))}"):
                found = read_frame_set(path, mask)
        except (DenoiseError, OSError) as error:
            result.left_out.append(f"{where}: {error}")
        else:
            yield replace(found, name=name)


def _with_training(frames: FrameSet, card: Mapping[str, Any]) -> FrameSet:
    """Mark a series of which the weights have seen a part, as their card has it."""
    if frames.digest in card.get("training", {}).get("seen", []):
        return replace(frames, known=replace(frames.known, held_out="trained on"))
    return frames


def _from_tiled(uid: str, mask: np.ndarray | None, data_key: str | None, uri: str) -> FrameSet:
    with catalog(uri) as client:
        run = open_run(client, uid, uri)
        try:
            counts = run_frames(run, data_key=data_key)
        except DenoiseError:
            raise
        except Exception as error:  # of Tiled, of HTTP, of whatever reads the files
            why = without_api_key(repr(error))
            raise SettingsError(f"The frames of run {uid} cannot be read: {why}") from error
    return frame_set(uid[:8], counts, mask)


def _paper_files(steps: int) -> list[Path]:
    """Say where the weights of the paper's networks are kept; 0 steps: none are trained."""
    return [Path("checkpoints") / f"{name}_{steps}.safetensors" for name in PAPER if steps]


def _train_paper(path: Path, steps: int, console: Console) -> None:
    """Train a network of the paper as ours is trained, for a stated number of steps."""
    from bluesky_denoise.training.fit import FitSettings, fit

    # A training that was killed leaves weights, too, and goes on from its last state.
    if path.exists() and not path.with_suffix(".resume").exists():
        return
    model = path.stem.rpartition("_")[0]
    settings = FitSettings(model=model, steps=steps, held_out_share=0.0)
    with _progress(console) as bar:
        task = bar.add_task(f"training {model}", total=steps)
        fit(
            path,
            sorted(TRAINED_ON.glob("*.h5")),
            settings,
            report=lambda now: bar.update(task, completed=now.step + 1),
        )


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
        shown.add_row(*map(escape, cells), style=style)
    return shown
