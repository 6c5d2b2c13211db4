"""What the commands on archived runs share: the terminal, the catalog, progress."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from .errors import DenoiseError

__all__ = ["Report", "console", "each_run", "fail", "open_catalog"]

console = Console()

Report = Callable[[int, int | None], None]
"""Takes how much is done, and of how much."""


def each_run(runs: list, work: Callable[[Any, Report], str]) -> None:
    """Work on runs with a progress bar; go on after one that fails."""
    failed = 0
    columns = (
        *(TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn()),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        every = bar.add_task("runs", total=len(runs)) if len(runs) > 1 else None
        for run in runs:
            uid = run.metadata["start"]["uid"]
            task = bar.add_task(uid[:8], total=None)

            def report(done: int, total: int | None, task: Any = task) -> None:
                bar.update(task, completed=done, total=total)

            try:
                told = work(run, report)
            except DenoiseError as error:
                failed += 1
                told = str(error)
            console.print(f"{uid}: {told}", highlight=False, soft_wrap=True)
            bar.update(task, visible=False)
            if every is not None:
                bar.advance(every)
    if failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def open_catalog(uri: str | None, settings: Any = None) -> Iterator[Any]:
    """Open the catalog of raw runs, and close it again."""
    from .settings import DenoiseSettings
    from .tiled_layouts import connect

    settings = settings or DenoiseSettings(tiled_uri=uri)
    if settings.tiled_uri is None:
        fail("The settings name no Tiled server; add `tiled_uri`.")
    try:
        client = connect(settings.model_copy(update={"tiled_layout": "stream"}))
    except Exception as error:
        fail(f"Tiled at {settings.tiled_uri} cannot be opened: {error}. Is TILED_API_KEY set?")
    try:
        with client.context:
            yield client
    except httpx.TransportError as error:
        fail(f"Tiled at {settings.tiled_uri} cannot be reached any more: {error}.")


def fail(message: str) -> NoReturn:
    """End the command with an error."""
    Console(stderr=True).print(f"[red]Error:[/] {message}", soft_wrap=True)
    raise typer.Exit(1)
