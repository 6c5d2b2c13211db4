"""The command ``bluesky-denoise``."""

import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlparse

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from bluesky_denoise import __version__
from bluesky_denoise.commands.catalog import app as catalog_app
from bluesky_denoise.commands.denoise import app as denoise_app
from bluesky_denoise.commands.terminal import console, fail, picture_file
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.sources.frame_keys import is_frame_key, raw_key
from bluesky_denoise.support.garbage import keep_garbage_at_exit

__all__ = ["app"]

# Read when tiled is imported: who sits at a terminal wants to know soon of a wrong address.
os.environ.setdefault("TILED_RETRY_ATTEMPTS", "3")

_MARK = "made_by_the_demo"

# In Markdown, the lines of a docstring are joined to paragraphs.
_PLAIN: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": "markdown"}

app = typer.Typer(no_args_is_help=True, **_PLAIN)


def _print_version(asked: bool) -> None:
    if asked:
        console.print(f"bluesky-denoise {__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def main_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    """Denoise detector frames on Bluesky's document stream."""


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Option(help="Where data go; those of an earlier demo are removed.")
    ] = Path("demo_data"),
    picture: Annotated[Path, typer.Option(help="Picture to write.")] = Path("demo.png"),
) -> None:
    """Scan measured frames, denoise them beside the scan, and compare with long exposures."""
    picture = picture_file(picture)
    _make_room(directory)
    with contextlib.ExitStack() as stack:
        with console.status("Starting a Tiled server and the denoiser"):
            from bluesky_denoise.commands import demo as job
            from bluesky_denoise.server import embedded_tiled

            try:
                uri = stack.enter_context(embedded_tiled(directory))
            except DenoiseError as error:
                fail(str(error))
        columns = TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, console=console) as bar:
            tasks = {what: bar.add_task(what, total=None) for what in ("scanned", "denoised")}
            uid, frames = job.scan_and_denoise(
                uri,
                directory.absolute(),
                lambda what, done, total: bar.update(tasks[what], completed=done, total=total),
            )
        with console.status("Comparing with the measured 20 s frames"):
            comparison, shown = job.compare(frames)
            job.draw(shown, picture)
        _print_comparison(comparison, len(frames))
        console.print(f"Picture: [bold]{picture}[/]")
        _print_where(uri, uid, job.KEY)
        if sys.stdin.isatty():
            console.input("The Tiled server runs until you press Enter. ")
        else:
            program = os.path.relpath(sys.argv[0])
            console.print(f"Serve it again: {program} serve {directory}", highlight=False)


def _make_room(directory: Path) -> None:
    """Make an empty directory, removing what an earlier demo, and nothing else, has left."""
    try:
        if directory.exists() and any(directory.iterdir()):
            if not (directory / _MARK).exists():
                fail(f"{directory} is not of an earlier demo. Remove it, or name another one.")
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _MARK).touch()
    except OSError as error:
        fail(f"No data can go into {directory}: {error.strerror}. Name another --directory.")


def _print_comparison(comparison: list, frames: int) -> None:
    table = Table(title=f"{frames} frames of 1 s against the measured 20 s around each")
    for heading in ("", "squared error / mean count", "contrast of the weak line / measured"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in comparison:
        table.add_row(row.name, f"{row.error:.3f}", f"{row.contrast:.3f}")
    console.print(table)


def _print_where(uri: str, uid: str, key: str) -> None:
    base, _, api_key = uri.partition("/api/v1?api_key=")
    console.print(
        f"\nThe run is in Tiled, with its raw frames and beside them the stream `denoised`.\n\n"
        f'  from tiled.client import from_uri\n  cat = from_uri("{uri}")\n'
        f'  cat["{uid[:8]}"]["denoised"]["{key}"].read()\n\n'
        f"In the browser: {base}/ui/browse/{uid}/denoised/{key}?api_key={api_key}\n",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(help="Directory of an embedded Tiled server.")],
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="Letters and digits; without it another at each start.")
    ] = None,
) -> None:
    """Serve a directory of `embedded_tiled`, with Tiled's web page, until Enter or Ctrl-C."""
    from tiled.client import from_uri

    from bluesky_denoise.server import embedded_tiled

    if not (directory / "catalog.db").exists():
        fail(f"{directory} holds no catalog; expected a directory that embedded_tiled has made.")
    with contextlib.ExitStack() as stack:
        try:
            uri = stack.enter_context(embedded_tiled(directory, port=port, api_key=api_key))
        except DenoiseError as error:
            fail(str(error))
        cat = from_uri(uri)
        stack.enter_context(cat.context)
        console.print(f"{len(cat)} runs at {uri}", highlight=False, soft_wrap=True)
        moved_from = _moved_from(directory)
        if moved_from is not None:
            console.print(
                f"This directory was moved, or copied, from {moved_from}, and its catalog holds "
                "absolute paths: what was written there cannot be read here. Serve it from there.",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
        elif len(cat) and (frames := _denoised_keys(cat[-1])):
            _print_where(uri, cat[-1].metadata["start"]["uid"], frames[0])
        with contextlib.suppress(KeyboardInterrupt):
            _wait_for_the_end()


def _wait_for_the_end() -> None:
    """Wait for Enter; where nobody can press it, as under ``nohup``, to be interrupted or ended."""
    with contextlib.suppress(EOFError):
        console.input("Press Enter to end. ")
        return
    if not sys.stdin.isatty():
        console.print("Nobody is there to do so: it goes on until Ctrl-C, or SIGTERM.")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        threading.Event().wait()


def _moved_from(directory: Path) -> Path | None:
    """Return where a directory was when the tables of its runs were written, if elsewhere."""
    here = directory.expanduser().resolve()
    with contextlib.closing(sqlite3.connect(here / "catalog.db")) as catalog:
        rows = catalog.execute("SELECT data_uri FROM assets WHERE data_uri LIKE 'sqlite:%'")
        paths = [urlparse(uri).path[1:] for (uri,) in rows]
    written = {Path(name) for path in paths for name in (path, unquote(path))}
    if not written or here / "tables.db" in {path.resolve() for path in written}:
        return None
    return Path(unquote(paths[0])).parent


def _denoised_keys(run: Any) -> list[str]:
    """Return the denoised frames of a run whose raw ones are in Tiled too."""
    if not ("denoised" in run and "primary" in run):
        return []
    raw = run["primary"].base.metadata["data_keys"]
    denoised = run["denoised"].base.metadata["data_keys"]
    return [
        key for key, spec in denoised.items() if is_frame_key(spec, 1) and raw_key(key, spec) in raw
    ]


_EXTRAS = {
    **dict.fromkeys(("uvicorn", "fastapi", "sqlalchemy"), "server"),
    **dict.fromkeys(("scipy", "skimage", "bm3d"), "evaluation"),
    **{"matplotlib": "plot", "tifffile": "tiff", "zmq": "zmq", "ophyd_async": "simulation"},
}
"""By package, the extra of this one that brings it."""
_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_FORWARDED, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a network on simulated scenes and on measured frames."""
    from bluesky_denoise.training.commands import train as command  # imports torch

    _forward(command, context)


@app.command(context_settings=_FORWARDED, add_help_option=False)
def finetune(context: typer.Context) -> None:
    """Adapt the shipped weights to one beamline, without long exposures."""
    from bluesky_denoise.training.commands import finetune as command  # imports torch

    _forward(command, context)


@app.command(context_settings=_FORWARDED, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Score a denoiser on measured and simulated frames, against all that it must beat."""
    from bluesky_denoise.commands.evaluate import evaluate as command  # imports torch

    _forward(command, context)


def _forward(command: Callable, context: typer.Context) -> None:
    """Run a command of a module that is slow to import, with its own arguments."""
    forwarded = typer.Typer(add_completion=False, **_PLAIN)
    forwarded.command()(command)
    forwarded(args=context.args, prog_name=f"bluesky-denoise {context.info_name}")


app.add_typer(catalog_app)
app.add_typer(denoise_app)


def main() -> None:
    """Run the program; what an extra would bring is named."""
    keep_garbage_at_exit()
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        sys.exit(
            f"Error: this needs the package {package}, which is not installed: "
            f"pip install 'bluesky-denoise[{_EXTRAS[package]}]'"
        )


if __name__ == "__main__":
    main()
