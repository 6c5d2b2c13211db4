"""The commands of ``bluesky-denoise`` that find, show and export runs."""

import heapq
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.markup import escape
from rich.table import Column, Table

from bluesky_denoise.commands.terminal import (
    LOCAL,
    Address,
    Report,
    console,
    each_run,
    fail,
    find_run,
    newest_first,
    open_catalog,
    picture_file,
)
from bluesky_denoise.errors import DenoiseError

__all__ = ["app"]

app = typer.Typer()

Uids = Annotated[list[str], typer.Argument(help="uids of runs, or their first letters.")]
Stream = Annotated[
    str | None,
    typer.Option(help="Such as denoised_2, or uid of a derived run; else the newest whole one."),
]
Container = Annotated[
    str, typer.Option(help="Of derived runs, where `tiled_container` of the settings is another.")
]
_SHOWN = (
    *("name", "run_uid", "model", "weights_sha256", "version", "exit_status", "reason"),
    "num_events",
)


@app.command()
def runs(
    uri: Address = LOCAL,
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, help="How many, newest first.")
    ] = 10,
    sample: Annotated[str | None, typer.Option(help="Only of this sample.")] = None,
    scan_id: Annotated[int | None, typer.Option(help="Only with this scan_id.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Only denoised with this model, or weights of this sha256.")
    ] = None,
    flagged: Annotated[
        bool, typer.Option("--flagged", help="Only with frames that are not ok, or lack.")
    ] = False,
    container: Container = "denoised",
) -> None:
    """List runs, and what of them is denoised."""
    from bluesky_denoise.catalog import derived_runs

    rest = ("scan_id", "plan", "sample", "denoised", "model", "events", "not ok", "ended")
    # In a narrow terminal all is broken but what is typed again.
    columns = [Column("uid", no_wrap=True), *(Column(name, overflow="fold") for name in rest)]
    table = Table(*columns)
    with open_catalog(uri) as found, console.status("Searching"):
        derived = derived_runs(found.context, container)
        listed = _listed(_search(found, sample, scan_id), model, flagged, derived)
        for start, streams in islice(listed, min(number, sys.maxsize)):
            about = [start["uid"][:8], str(start.get("scan_id", "")), start.get("plan_name", "")]
            about.append(_sample(start))
            for told in streams:
                table.add_row(*(escape(cell) for cell in (*about, *told)))
                about = [""] * len(about)
    console.print(table if table.row_count else "There are no such runs.")


def _search(catalog: Any, sample: str | None, scan_id: int | None) -> Iterator[Any]:
    """Yield the runs that are asked for, newest first."""
    from tiled.queries import Eq

    if scan_id is not None:
        catalog = catalog.search(Eq("start.scan_id", scan_id))
    if sample is None:
        return newest_first(catalog)
    # Some write a sample as its name, others as a dictionary with its name.
    keys = ("start.sample", "start.sample.name")
    found = [newest_first(catalog.search(Eq(key, sample))) for key in keys]
    return heapq.merge(*found, key=lambda run: run.metadata["start"]["time"], reverse=True)


def _listed(
    found: Iterator[Any], model: str | None, flagged: bool, derived: Any
) -> Iterator[tuple]:
    """Yield the start document of each run that is asked for, and a row for each stream."""
    from bluesky_denoise.catalog import as_tiled_run, events_of, frames_not_ok, streams_of

    for run in found:
        if "start" not in run.metadata:  # a container of derived runs
            continue
        raw_end = "" if run.metadata.get("stop") else "the raw run has no end"
        rows = []
        for stream in streams_of(as_tiled_run(run), derived):
            if model and not (stream.model == model or stream.weights_sha256.startswith(model)):
                continue
            try:
                bad, (done, taken) = frames_not_ok(stream), events_of(run, stream)
            except httpx.HTTPStatusError as error:
                told = f"cannot be read, Tiled answers {error.response.status_code}"
                rows.append((stream.name, stream.model, "", "", told))
                continue
            if flagged and not bad and done >= taken:
                continue
            events = str(done) if done >= taken else f"{done} of {taken}"
            # Nobody tells that a process was killed.
            ended = ", ".join(filter(None, [stream.exit_status or "running or cut short", raw_end]))
            rows.append((stream.name, stream.model, events, str(bad or ""), ended))
        if rows or not (model or flagged):
            yield run.metadata["start"], rows or [("", "", "", "", raw_end)]


def _sample(start: dict[str, Any]) -> str:
    sample = start.get("sample", "")
    return str(sample.get("name", "") if isinstance(sample, dict) else sample)


@app.command()
def show(
    uid: Annotated[str, typer.Argument(help="uid of a run, or its first letters.")],
    uri: Address = LOCAL,
    event: Annotated[int, typer.Option(help="Number of the event to draw, from 1.")] = 1,
    stream: Stream = None,
    container: Container = "denoised",
    picture: Annotated[Path, typer.Option(help="Picture to write.")] = Path("denoised.png"),
) -> None:
    """Show raw against denoised as a picture, the numbers, the audit, and what made them."""
    from bluesky_denoise.catalog import find_stream, frames_not_ok
    from bluesky_denoise.in_tiled.stored_stream import StoredStream
    from bluesky_denoise.views.picture import draw_event

    picture = picture_file(picture)
    with open_catalog(uri) as catalog:
        run = find_run(catalog, uid)
        chosen = find_stream(run, stream, container)
        told = {key: getattr(chosen, key) for key in _SHOWN}
        table = StoredStream(chosen.stream).read_table()
        if table is None or table.empty:
            fail(f"The stream {chosen.name} has no events. {chosen.reason}".strip())
        if not 1 <= event <= len(table):
            fail(f"There is no event {event}; the stream {chosen.name} has 1 to {len(table)}.")
        row = table.iloc[event - 1]
        told |= {"frames not ok": frames_not_ok(chosen), "picture": picture}
        if run.metadata.get("stop") is None:
            told["raw run"] = "has no end in Tiled"
        try:
            draw_event(run, chosen, event, picture)
        except DenoiseError as error:
            told["picture"] = f"none. {error}"
        except OSError as error:
            fail(f"{picture} cannot be written: {error}")
    for key, value in told.items():
        if value == "":
            continue
        console.print(f"{key:>15}: {value}", highlight=False, soft_wrap=True, markup=False)
    console.print(_numbers(row, event, chosen.stream.base.metadata["data_keys"]))


def _numbers(row: Any, event: int, data_keys: Any) -> Table:
    """Return the numbers of one event, errors beside what they belong to."""

    def units(key: str) -> Any:
        return data_keys.get(key, {}).get("units")

    # A motor, or a text, may be called so too; that of a background is in units of the intensity.
    errors = {
        key: f"{key}_error"
        for key in row.index
        if isinstance(row.get(f"{key}_error"), float) and units(key) == units(f"{key}_error")
    }
    table = Table("event", str(event), "±")
    for key in row.index:
        skipped = key in ("seq_num", "time") or key.startswith("ts_")
        beside = key in errors.values()
        if skipped or beside or row[key] is None or row[key] != row[key]:
            continue
        value = f"{row[key]:.5g}" if isinstance(row[key], float) else str(row[key])
        table.add_row(key, escape(value), f"{row[errors[key]]:.3g}" if key in errors else "")
    return table


def _without_raw(run: Any, chosen: Any) -> list[str]:
    """Return the denoised frames of a stream whose raw ones are not in Tiled."""
    from bluesky_denoise.sources.frame_keys import is_frame_key, is_sigma, raw_key

    raw = run[chosen.raw_stream].base if chosen.raw_stream in run else {}
    specs = chosen.stream.base.metadata["data_keys"]
    return [
        key
        for key, spec in specs.items()
        if is_frame_key(spec, 1) and raw_key(key, spec) not in raw and not is_sigma(key, specs)
    ]


@app.command()
def export(
    uids: Uids,
    uri: Address = LOCAL,
    directory: Annotated[Path, typer.Option(help="Where the files go.")] = Path("."),
    stream: Stream = None,
    container: Container = "denoised",
) -> None:
    """Write runs to NeXus files, raw and denoised, for silx, NeXpy, or any HDF5 reader."""
    from bluesky_denoise.catalog import find_stream
    from bluesky_denoise.nexus import export_nexus

    def write(run: Any, report: Report) -> str:
        chosen = find_stream(run, stream, container)
        path = directory / f"{run.metadata['start']['uid'][:8]}_{chosen.name}.nxs"
        told = f"in {export_nexus(run, chosen, path, progress=report)}"
        without = _without_raw(run, chosen)
        if not without:
            return told
        yet = "yet; the run goes on" if run.metadata.get("stop") is None else "in Tiled"
        return f"{told}, without raw frames of {', '.join(without)}, which are not there {yet}"

    with open_catalog(uri) as catalog:
        each_run([find_run(catalog, uid) for uid in uids], write)
