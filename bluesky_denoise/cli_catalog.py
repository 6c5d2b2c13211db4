"""The commands of ``bluesky-denoise`` that work on archived runs."""

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .errors import DenoiseError

__all__ = ["app", "fail"]

app = typer.Typer()
console = Console()

SettingsFile = Annotated[Path, typer.Argument(help="YAML file of DenoiseSettings.")]
Address = Annotated[
    str, typer.Option("--uri", envvar="TILED_URI", help="Tiled server; key in TILED_API_KEY.")
]
Uids = Annotated[list[str], typer.Argument(help="uids of runs, or their first letters.")]
LOCAL = "http://localhost:8000"
_SHOWN = ("name", "model", "weights_sha256", "version", "exit_status", "reason", "num_events")
_PAGE = 50


@app.command()
def runs(
    uri: Address = LOCAL,
    number: Annotated[int, typer.Option("--number", "-n", help="How many, newest first.")] = 10,
    sample: Annotated[str | None, typer.Option(help="Only of this sample.")] = None,
    scan_id: Annotated[int | None, typer.Option(help="Only with this scan_id.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Only denoised with this model, or weights of this sha256.")
    ] = None,
    flagged: Annotated[
        bool, typer.Option("--flagged", help="Only with frames that are not ok.")
    ] = False,
) -> None:
    """List runs, and what of them is denoised."""
    table = Table(
        *("uid", "scan_id", "plan", "sample", "denoised", "model", "events", "not ok", "ended")
    )
    with _catalog(uri) as found, console.status("Searching"):
        listed = _listed(_newest_first(_search(found, sample, scan_id)), model, flagged)
        for start, streams in islice(listed, number):
            about = [start["uid"][:8], str(start.get("scan_id", "")), start.get("plan_name", "")]
            about.append(_sample(start))
            for told in streams or [("", "", "", "", "")]:
                table.add_row(*about, *told)
                about = [""] * len(about)
    console.print(table)


def _search(catalog: Any, sample: str | None, scan_id: int | None) -> Any:
    from tiled.queries import Eq

    if scan_id is not None:
        catalog = catalog.search(Eq("start.scan_id", scan_id))
    if sample is None:
        return catalog
    plain = catalog.search(Eq("start.sample", sample))
    return plain if len(plain) else catalog.search(Eq("start.sample.name", sample))


def _newest_first(catalog: Any) -> Iterator[Any]:
    values = catalog.values()
    for stop in range(len(catalog), 0, -_PAGE):
        yield from reversed(list(values[max(0, stop - _PAGE) : stop]))


def _listed(found: Iterator[Any], model: str | None, flagged: bool) -> Iterator[tuple]:
    """Yield the start document of each run that is asked for, and a row for each stream."""
    from .catalog import denoised_streams, frames_not_ok

    for run in found:
        if "start" not in run.metadata:  # a container of derived runs
            continue
        rows = []
        for stream in denoised_streams(run):
            if model and not (stream.model == model or stream.weights_sha256.startswith(model)):
                continue
            bad = frames_not_ok(stream)
            if flagged and not bad:
                continue
            events = "" if stream.num_events is None else str(stream.num_events)
            ended = stream.exit_status or "running"
            rows.append((stream.name, stream.model, events, str(bad or ""), ended))
        if rows or not (model or flagged):
            yield run.metadata["start"], rows


def _sample(start: dict[str, Any]) -> str:
    sample = start.get("sample", "")
    return str(sample.get("name", "") if isinstance(sample, dict) else sample)


@app.command()
def show(
    uid: Annotated[str, typer.Argument(help="uid of a run, or its first letters.")],
    uri: Address = LOCAL,
    event: Annotated[int, typer.Option(help="Number of the event to draw, from 1.")] = 1,
    stream: Annotated[str | None, typer.Option(help="Such as denoised_2; else the newest.")] = None,
    picture: Annotated[Path, typer.Option(help="Picture to write.")] = Path("denoised.png"),
) -> None:
    """Show raw against denoised as a picture, the numbers, the audit, and what made them."""
    from .catalog import frames_not_ok
    from .picture import draw_event

    with _catalog(uri) as catalog:
        run = catalog[uid]
        chosen = _stream(run, uid, stream)
        told = {key: getattr(chosen, key) for key in _SHOWN}
        table = chosen.stream.base["internal"].read()
        if not 1 <= event <= len(table):
            fail(f"There is no event {event}; the stream {chosen.name} has 1 to {len(table)}.")
        row = table.iloc[event - 1]
        draw_event(run, chosen, event, picture)
        told |= {"frames not ok": frames_not_ok(chosen), "picture": picture}
    for key, value in told.items():
        console.print(f"{key:>15}: {value}", highlight=False)
    console.print(_numbers(row, event))


def _numbers(row: Any, event: int) -> Table:
    """Return the numbers of one event, errors beside what they belong to."""
    table = Table("event", str(event), "±")
    for key in row.index:
        skipped = key in ("seq_num", "time") or key.startswith("ts_") or key.endswith("_error")
        if skipped or row[key] is None or row[key] != row[key]:
            continue
        value = f"{row[key]:.5g}" if isinstance(row[key], float) else str(row[key])
        error = row.get(f"{key}_error")
        table.add_row(key, value, "" if error is None else f"{error:.3g}")
    return table


def _stream(run: Any, uid: str, name: str | None) -> Any:
    from .catalog import denoised_streams

    streams = denoised_streams(run)
    if not streams:
        fail(f"Run {uid} has no denoised stream; make one with `bluesky-denoise reprocess`.")
    if name is None:
        return streams[0]
    found = [stream for stream in streams if stream.name == name]
    if not found:
        fail(f"Run {uid} has no {name!r}; it has {', '.join(s.name for s in streams)}.")
    return found[0]


@app.command()
def export(
    uids: Uids,
    uri: Address = LOCAL,
    directory: Annotated[Path, typer.Option(help="Where the files go.")] = Path("."),
    stream: Annotated[str | None, typer.Option(help="Such as denoised_2; else the newest.")] = None,
) -> None:
    """Write runs to NeXus files, raw and denoised, for silx, NeXpy, or any HDF5 reader."""
    from .nexus import export_nexus

    def write(run: Any, report: Callable[[int, int | None], None]) -> str:
        chosen = _stream(run, run.metadata["start"]["uid"], stream)
        path = directory / f"{run.metadata['start']['uid'][:8]}_{chosen.name}.nxs"
        return f"in {export_nexus(run, chosen, path, progress=report)}"

    with _catalog(uri) as catalog:
        directory.mkdir(parents=True, exist_ok=True)
        _each([catalog[uid] for uid in uids], write)


@app.command()
def reprocess(
    settings: SettingsFile,
    uids: Uids,
    again: Annotated[
        bool, typer.Option("--again", help="Also frames that have just this result already.")
    ] = False,
) -> None:
    """Denoise archived runs again; the result goes beside what is there.

    Stopped in the middle, it can be called again: runs that are done are left alone, and of one
    that was begun only the frames that lack are denoised.
    """
    loaded = _settings(settings)
    with _catalog(loaded.tiled_uri, loaded) as catalog:
        _denoise_runs([catalog[uid] for uid in uids], loaded, again)


@app.command("catch-up")
def catch_up(
    settings: SettingsFile,
    number: Annotated[int, typer.Option("--number", "-n", help="Of the newest runs.")] = 100,
) -> None:
    """Denoise the runs that lack a complete denoised stream, of each the frames that lack."""
    from .catalog import is_complete

    loaded = _settings(settings)
    with _catalog(loaded.tiled_uri, loaded) as catalog:
        with console.status("Looking for runs without a complete denoised stream"):
            newest = [run for run in catalog.values().tail(number) if "start" in run.metadata]
            missing = [run for run in newest if not is_complete(run, loaded.streams)]
        console.print(f"{len(missing)} of the newest {len(newest)} runs are to be denoised.")
        _denoise_runs(missing, loaded, again=False)


@app.command("replay-backup")
def replay_backup_command(settings: SettingsFile) -> None:
    """Write to Tiled what was kept in the backup directory while it was down."""
    from .tiled_sink import replay_backup

    written = replay_backup(_settings(settings))
    for uid in written:
        console.print(f"{uid}: in Tiled")
    console.print(f"{len(written)} runs were written.")


def _denoise_runs(runs: list, settings: Any, again: bool) -> None:
    """Denoise runs; of what has the result, nothing unless `again`."""
    from .reprocessing import StoredResults, has_result, mark_interrupted, reprocess
    from .router import DenoiseRouter

    router = DenoiseRouter(settings)

    def denoise(run: Any, report: Callable[[int, int | None], None]) -> str:
        if not again and (name := has_result(run, router.provenance, settings.streams)):
            return f"has this result already, as {name}"
        for name in mark_interrupted(run):
            console.print(
                f"{run.metadata['start']['uid']}: {name} was interrupted", highlight=False
            )
        numbers = (run.metadata.get("stop") or {}).get("num_events", {})
        total = sum(numbers.get(stream, 0) for stream in settings.streams) or None
        known = None if again else StoredResults(run, router.provenance, settings.streams)
        derived = reprocess(
            run,
            settings,
            denoiser=router.denoiser,
            progress=lambda done: report(done, total),
            known=known,
        )
        taken = f", {len(known)} of {total} events taken over as they were" if known else ""
        return f"denoised as run {derived}{taken}"

    _each(runs, denoise)


def _each(runs: list, work: Callable[[Any, Callable[[int, int | None], None]], str]) -> None:
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


def _settings(path: Path) -> Any:
    from .settings import DenoiseSettings

    try:
        return DenoiseSettings.from_yaml(path)
    except DenoiseError as error:
        fail(str(error))


@contextlib.contextmanager
def _catalog(uri: str | None, settings: Any = None) -> Iterator[Any]:
    """Open the catalog of raw runs, and close it again."""
    from .settings import DenoiseSettings
    from .tiled_sink import connect

    settings = settings or DenoiseSettings(tiled_uri=uri)
    if settings.tiled_uri is None:
        fail("The settings name no Tiled server; add `tiled_uri`.")
    try:
        client = connect(settings.model_copy(update={"tiled_layout": "stream"}))
    except Exception as error:
        fail(f"Tiled at {settings.tiled_uri} cannot be opened: {error}. Is TILED_API_KEY set?")
    with client.context:
        yield client


def fail(message: str) -> NoReturn:
    """End the command with an error."""
    Console(stderr=True).print(f"[red]Error:[/] {message}", soft_wrap=True)
    raise typer.Exit(1)
