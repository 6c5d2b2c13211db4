"""The command ``bluesky-denoise``."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .errors import DenoiseError

__all__ = ["app"]

# Read when tiled is imported: who sits at a terminal wants to know soon of a wrong address.
os.environ.setdefault("TILED_RETRY_ATTEMPTS", "3")

app = typer.Typer(
    help="Denoise detector frames on Bluesky's document stream.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()

SettingsFile = Annotated[Path, typer.Argument(help="YAML file of DenoiseSettings.")]


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="Where data go; emptied first.")] = Path(
        "demo_data"
    ),
    picture: Annotated[Path, typer.Option(help="Picture to write.")] = Path("demo.png"),
) -> None:
    """Scan measured frames, denoise them beside the scan, and compare with long exposures."""
    from . import demo as job
    from .server import embedded_tiled

    if directory.exists():
        shutil.rmtree(directory)
    with console.status("Starting a Tiled server and the denoiser"):
        server = embedded_tiled(directory)
        uri = server.__enter__()
    try:
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
    finally:
        server.__exit__(None, None, None)


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
) -> None:
    """Serve a directory of `embedded_tiled`, with Tiled's web page, until Ctrl-C."""
    from tiled.client import from_uri

    from .server import embedded_tiled

    if not (directory / "catalog.db").exists():
        _fail(f"{directory} holds no catalog; expected a directory that embedded_tiled has made.")
    with embedded_tiled(directory, port=port) as uri:
        cat = from_uri(uri)
        console.print(f"{len(cat)} runs at {uri}", highlight=False, soft_wrap=True)
        if len(cat):
            run = cat[-1]
            keys = (
                [key for key in run["denoised"] if key in run["primary"]]
                if ("denoised" in run and "primary" in run)
                else []
            )
            frames = [key for key in keys if run["denoised"][key].ndim >= 3]
            if frames:
                _print_where(uri, run.metadata["start"]["uid"], frames[0])
        with contextlib.suppress(KeyboardInterrupt, EOFError):
            console.input("Press Enter to end. ")


Address = Annotated[
    str, typer.Option("--uri", envvar="TILED_URI", help="Tiled server; key in TILED_API_KEY.")
]
LOCAL = "http://localhost:8000"
_SHOWN = ("name", "model", "weights_sha256", "version", "exit_status", "reason", "num_events")


@app.command()
def runs(
    uri: Address = LOCAL,
    number: Annotated[int, typer.Option("--number", "-n", help="How many, newest first.")] = 10,
    sample: Annotated[str | None, typer.Option(help="Only of this sample.")] = None,
    scan_id: Annotated[int | None, typer.Option(help="Only with this scan_id.")] = None,
) -> None:
    """List runs, and what of them is denoised."""
    from tiled.queries import Eq

    from .catalog import denoised_streams

    table = Table("uid", "scan_id", "plan", "sample", "denoised", "model", "events", "ended")
    with _catalog(uri) as found:
        for key, value in (("start.sample", sample), ("start.scan_id", scan_id)):
            if value is not None:
                found = found.search(Eq(key, value))
        for run in found.values().tail(number)[::-1]:
            if "start" not in run.metadata:  # a container of derived runs
                continue
            start = run.metadata["start"]
            sample_name = start.get("sample", "")
            if isinstance(sample_name, dict):
                sample_name = sample_name.get("name", "")
            about = [start["uid"][:8], str(start.get("scan_id", "")), start.get("plan_name", "")]
            about.append(str(sample_name))
            for stream in denoised_streams(run) or [None]:
                told = ["", "", "", ""]
                if stream:
                    ended = stream.exit_status or "running"
                    told = [stream.name, stream.model, str(stream.num_events or ""), ended]
                table.add_row(*about, *told)
                about = [""] * len(about)
    console.print(table)


@app.command()
def show(
    uid: Annotated[str, typer.Argument(help="uid of a run, or its first letters.")],
    uri: Address = LOCAL,
    event: Annotated[int, typer.Option(help="Number of the event to draw, from 1.")] = 1,
    picture: Annotated[Path, typer.Option(help="Picture to write.")] = Path("denoised.png"),
) -> None:
    """Show raw against denoised as a picture, and what is known of it."""
    from .catalog import denoised_streams
    from .picture import draw_event

    with _catalog(uri) as catalog:
        run = catalog[uid]
        streams = denoised_streams(run)
        if not streams:
            _fail(f"Run {uid} has no denoised stream; make one with `bluesky-denoise reprocess`.")
        newest = streams[0]
        ok = newest.stream["denoise_ok"].read()
        told = {key: getattr(newest, key) for key in _SHOWN}
        draw_event(run, newest, event, picture)
    for key, value in {**told, "frames not ok": int((~ok).sum()), "picture": picture}.items():
        console.print(f"{key:>15}: {value}", highlight=False)


@app.command()
def reprocess(
    settings: SettingsFile,
    uids: Annotated[list[str], typer.Argument(help="uids of runs, or their first letters.")],
) -> None:
    """Denoise archived runs again; the result goes beside what is there."""
    loaded = _settings(settings)
    with _catalog(loaded.tiled_uri, loaded) as catalog:
        _denoise_runs([catalog[uid] for uid in uids], loaded)


@app.command("catch-up")
def catch_up(
    settings: SettingsFile,
    number: Annotated[int, typer.Option("--number", "-n", help="Of the newest runs.")] = 100,
) -> None:
    """Denoise the runs that lack a complete denoised stream."""
    from .catalog import is_complete

    loaded = _settings(settings)
    with _catalog(loaded.tiled_uri, loaded) as catalog:
        newest = [run for run in catalog.values().tail(number) if "start" in run.metadata]
        runs = [run for run in newest if not is_complete(run, loaded.streams)]
        console.print(f"{len(runs)} of the newest {len(newest)} runs are to be denoised.")
        _denoise_runs(runs, loaded)


def _denoise_runs(runs: list, settings: Any) -> None:
    """Denoise runs with a progress bar; go on after one that fails."""
    from .catalog import reprocess
    from .router import DenoiseRouter

    denoiser = DenoiseRouter(settings).denoiser
    failed = 0
    columns = TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console) as bar:
        for run in runs:
            uid = run.metadata["start"]["uid"]
            numbers = (run.metadata.get("stop") or {}).get("num_events", {})
            total = sum(numbers.get(stream, 0) for stream in settings.streams) or None
            task = bar.add_task(uid[:8], total=total)
            try:
                derived = reprocess(
                    run,
                    settings,
                    denoiser=denoiser,
                    progress=lambda done, task=task: bar.update(task, completed=done),
                )
            except DenoiseError as error:
                failed += 1
                console.print(f"{uid}: {error}", highlight=False, soft_wrap=True)
            else:
                console.print(f"{uid}: denoised as run {derived}", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _settings(path: Path) -> Any:
    from .settings import DenoiseSettings

    try:
        return DenoiseSettings.from_yaml(path)
    except DenoiseError as error:
        _fail(str(error))


@contextlib.contextmanager
def _catalog(uri: str | None, settings: Any = None) -> Iterator[Any]:
    """Open the catalog of raw runs, and close it again."""
    from .settings import DenoiseSettings
    from .tiled_sink import connect

    settings = settings or DenoiseSettings(tiled_uri=uri)
    if settings.tiled_uri is None:
        _fail("The settings name no Tiled server; add `tiled_uri`.")
    try:
        client = connect(settings.model_copy(update={"tiled_layout": "stream"}))
    except Exception as error:
        _fail(f"Tiled at {settings.tiled_uri} cannot be opened: {error}. Is TILED_API_KEY set?")
    with client.context:
        yield client


_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_FORWARDED, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a network on simulated scenes and on thinned measured frames."""
    from .training.commands import train as command  # imports torch

    _forward(command, context)


@app.command(context_settings=_FORWARDED, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Score a network on thinned measured frames, against Gaussian and BM3D."""
    from .evaluation.__main__ import evaluate as command  # imports torch

    _forward(command, context)


def _forward(command: Callable, context: typer.Context) -> None:
    """Run a command of a module that is slow to import, with its own arguments."""
    forwarded = typer.Typer(pretty_exceptions_enable=False)
    forwarded.command()(command)
    forwarded(args=context.args, prog_name=f"bluesky-denoise {context.info_name}")


@app.command("replay-backup")
def replay_backup_command(settings: SettingsFile) -> None:
    """Write to Tiled what was kept in the backup directory while it was down."""
    from .tiled_sink import replay_backup

    written = replay_backup(_settings(settings))
    for uid in written:
        console.print(f"{uid}: in Tiled")
    console.print(f"{len(written)} runs were written.")


def _fail(message: str) -> None:
    Console(stderr=True).print(f"[red]Error:[/] {message}", soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
