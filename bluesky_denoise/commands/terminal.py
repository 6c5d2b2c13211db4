"""What the commands on archived runs share: the terminal, the catalog, progress."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from bluesky_denoise.errors import DenoiseError

__all__ = [
    "LOCAL",
    "Address",
    "Report",
    "console",
    "each_file",
    "each_run",
    "fail",
    "find_run",
    "newest_first",
    "open_catalog",
    "picture_file",
]

console = Console()
if not console.is_terminal:
    console.width = 250  # lines that a program can read, and a file can hold

LOCAL = "http://localhost:8000"
Address = Annotated[
    str, typer.Option("--uri", envvar="TILED_URI", help="Tiled server; key in TILED_API_KEY.")
]
_PAGE = 50
"""Runs that are asked for at once; of more than 300 Tiled tells nothing."""
Report = Callable[[int, int | None], None]
"""Takes how much is done, and of how much."""


def each_run(runs: list, work: Callable[[Any, Report], str]) -> None:
    """Work on runs with a progress bar; go on after one that fails."""
    _each("runs", [(run.metadata["start"]["uid"], run) for run in runs], work)


def each_file(paths: list[Path], work: Callable[[Path, Report], str]) -> None:
    """Work on files, as `each_run`."""
    _each("files", [(path.name, path) for path in paths], work)


def _each(what: str, items: list[tuple[str, Any]], work: Callable[[Any, Report], str]) -> None:
    failed = 0
    columns = (
        *(TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn()),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        every = bar.add_task(what, total=len(items)) if len(items) > 1 else None
        for name, item in items:
            task = bar.add_task(name[:8], total=None)

            def report(done: int, total: int | None, task: Any = task) -> None:
                bar.update(task, completed=done, total=total)

            try:
                told = work(item, report)
            except (DenoiseError, OSError, httpx.HTTPStatusError) as error:
                failed += 1
                told = _told(error)
            console.print(f"{name}: {told}", highlight=False, soft_wrap=True, markup=False)
            bar.update(task, visible=False)
            if every is not None:
                bar.advance(every)
    if failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def open_catalog(uri: str | None, settings: Any = None) -> Iterator[Any]:
    """Open the catalog of raw runs, and close it again."""
    from bluesky_denoise.in_tiled.layouts import connect, why_not_opened
    from bluesky_denoise.settings import DenoiseSettings

    given = ("as `tiled_uri` of the settings",) if settings else ()
    try:
        settings = settings or DenoiseSettings(tiled_uri=uri)
    except DenoiseError as error:
        fail(str(error))
    if settings.tiled_uri is None:
        fail(
            "The settings name no Tiled server; add `tiled_uri`."
            if given
            else "--uri is empty; give the address of the Tiled server."
        )
    try:
        client = connect(settings.model_copy(update={"tiled_layout": "stream"}))
    except Exception as error:
        fail(f"Tiled at {settings.tiled_uri} cannot be opened: {why_not_opened(error, *given)}")
    try:
        with client.context:
            yield client
    except httpx.TransportError as error:
        fail(f"Tiled at {settings.tiled_uri} cannot be reached any more: {error}.")
    except (DenoiseError, OSError, httpx.HTTPStatusError) as error:
        fail(_told(error))


def _told(error: Exception) -> str:
    """Say what went wrong with a run."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error:
        return (
            f"Tiled failed to send or store data: {_short(error)}. Does it have the files of the "
            "frames, and are they in its `readable_storage`?"
        )
    return str(error)


def _short(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def find_run(catalog: Any, uid: str) -> Any:
    """Return the run with this uid, or whose uid begins so."""
    try:
        return catalog[uid]
    except (KeyError, ValueError) as error:
        why = str(error.args[0]).rstrip(".")
        by_number = f" --scan-id {uid}" if uid.isdecimal() else ""
        fail(
            f"There is no one run {uid!r}: {why}. Give its uid or the first eight letters of it, "
            f"as `bluesky-denoise runs{by_number}` lists them."
        )


def newest_first(catalog: Any) -> Iterator[Any]:
    """Yield the runs of a catalog, the newest first."""
    values = catalog.values()
    for stop in range(len(catalog), 0, -_PAGE):
        yield from reversed(list(values[max(0, stop - _PAGE) : stop]))


def picture_file(path: Path) -> Path:
    """Return where a picture goes: without an ending, as `.png`. Refuse what cannot be one."""
    from matplotlib.backend_bases import FigureCanvasBase

    if path.is_dir():
        fail(f"{path} is a folder; expected the name of a picture.")
    if not path.parent.is_dir():
        fail(f"There is no folder {path.parent} for the picture; make it, or name another.")
    if not path.suffix:
        return path.with_name(f"{path.name}.png")
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        fail(f"{path} cannot be written: there are no pictures {path.suffix}; take .png.")
    return path


def fail(message: str) -> NoReturn:
    """End the command with an error."""
    Console(stderr=True).print(f"[red]Error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)
