"""The commands of ``bluesky-denoise`` that denoise archived runs, and write what was kept."""

import sys
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from bluesky_denoise.commands.terminal import (
    LOCAL,
    Address,
    Report,
    console,
    each_file,
    each_run,
    fail,
    find_run,
    newest_first,
    open_catalog,
)
from bluesky_denoise.errors import DenoiseError

__all__ = ["app"]

app = typer.Typer()

_LOOKED_AT = 20
"""Newest runs among which one with frames is looked for."""

SettingsFile = Annotated[Path, typer.Argument(help="YAML file of DenoiseSettings.")]
Uids = Annotated[list[str], typer.Argument(help="uids of runs, or their first letters.")]


@app.command()
def check(
    settings: SettingsFile,
    uid: Annotated[
        str | None, typer.Argument(help="uid of a run, or its first letters; else the newest.")
    ] = None,
    events: Annotated[int, typer.Option("--events", "-n", min=1, help="How many to try.")] = 3,
) -> None:
    """Try settings on the first frames of an archived run, and write nothing.

    Says where exposures are found, whether masks and regions fit, what the audit finds, and whether
    frames are denoised as fast as they came.
    """
    from bluesky_denoise.router import DenoiseRouter, with_threads
    from bluesky_denoise.trial import try_settings

    loaded = with_threads(_settings(settings))
    with open_catalog(loaded.tiled_uri, loaded) as catalog, console.status("Loading the network"):
        denoiser = DenoiseRouter(loaded).denoiser
        told = f"{denoiser.name} ({denoiser.weights_sha256[:12]}) on {denoiser.device}"
        told += f", threads: {loaded.threads}" if denoiser.device == "cpu" else ""
        console.print(f"Network {told}", highlight=False)
        run = find_run(catalog, uid) if uid else _newest_with_frames(catalog, loaded)
        start = run.metadata["start"]
        taken = f"{datetime.fromtimestamp(start['time']):%Y-%m-%d %H:%M}"
        what = " ".join(str(start[key]) for key in ("scan_id", "plan_name") if key in start)
        console.print(f"Run {start['uid'][:8]} ({what}) of {taken}; nothing is written")
        tried = try_settings(run, loaded, events, denoiser=denoiser)
    for stream in tried:
        _show_trial(stream)
    if any(stream.not_ok for stream in tried):
        raise typer.Exit(1)


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
    with open_catalog(loaded.tiled_uri, loaded) as catalog:
        _denoise_runs([find_run(catalog, uid) for uid in uids], loaded, again)


@app.command("catch-up")
def catch_up(
    settings: SettingsFile,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Of the newest runs.")] = 100,
) -> None:
    """Denoise the runs that lack a complete denoised stream, of each the frames that lack."""
    from bluesky_denoise.catalog import has_frame_keys

    loaded = _settings(settings)
    with open_catalog(loaded.tiled_uri, loaded) as catalog:
        with console.status("Looking for runs without a complete denoised stream"):
            runs = islice(newest_first(catalog), min(number, sys.maxsize))
            newest = [run for run in runs if "start" in run.metadata]
            missing = [run for run in reversed(newest) if _may_lack_frames(run, loaded)]
            wanted = loaded.streams, loaded.data_keys
            none = not (missing or any(has_frame_keys(run, *wanted) for run in newest))
        console.print(f"{len(missing)} of the newest {len(newest)} runs are to be denoised.")
        if newest and none:  # a name in the settings may be wrong
            of = f" of {', '.join(loaded.data_keys)}" if loaded.data_keys else ""
            console.print(f"None of them has frames{of} in {', '.join(loaded.streams)}.")
        _denoise_runs(missing, loaded, again=False)


def _may_lack_frames(run: Any, settings: Any) -> bool:
    """Tell whether a run is to be denoised; one that Tiled fails to read is, to be named then."""
    from bluesky_denoise.catalog import is_complete

    try:
        return not is_complete(run, settings.streams, settings.tiled_container, settings.data_keys)
    except httpx.HTTPStatusError as error:
        if error.response.is_server_error:
            return True
        raise


@app.command("replay-backup")
def replay_backup_command(settings: SettingsFile) -> None:
    """Write to Tiled what was kept in the backup directory while it was down."""
    from bluesky_denoise.tiled_sink import replay_backup

    loaded = _settings(settings)
    with open_catalog(loaded.tiled_uri, loaded):
        written = replay_backup(loaded)
    for uid in written:
        console.print(f"{uid}: in Tiled")
    console.print(f"{len(written)} runs were written.")


@app.command()
def restore(
    backups: Annotated[
        list[Path], typer.Argument(help="Backup files of raw runs, or directories of them.")
    ],
    uri: Address = LOCAL,
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete the part of a raw run that Tiled has.")
    ] = False,
) -> None:
    """Write raw runs to Tiled that it did not take during the scan, from their backup files.

    A file whose run is in Tiled, with all streams and events, is renamed to end in `.restored`. It
    is never removed.
    """
    from bluesky_denoise.backup import backup_files
    from bluesky_denoise.restore import restore_run

    files: list[Path] = []
    for path in backups:
        found = backup_files(path) if path.is_dir() else [path]
        if not found:
            fail(f"There are no backup files (*.jsonl) in {path}.")
        files += found
    with open_catalog(uri) as catalog:
        each_file(
            files, lambda path, report: restore_run(catalog, path, replace=replace, progress=report)
        )


def _newest_with_frames(catalog: Any, settings: Any) -> Any:
    """Return the newest run that settings may be tried on."""
    from bluesky_denoise.catalog import has_frame_keys
    from bluesky_denoise.runs.derived_run import is_derived

    for run in reversed(catalog.values().tail(_LOOKED_AT)):
        start = run.metadata.get("start")
        if not start or is_derived(start):
            continue
        if has_frame_keys(run, settings.streams, settings.data_keys):
            return run
    fail(
        f"None of the newest {_LOOKED_AT} runs has frames in {', '.join(settings.streams)}. Take "
        "one, `RE(count([detector]))`, or give the uid of a run."
    )


def _show_trial(stream: Any) -> None:
    """Print what settings make of a stream."""
    table = Table(title=f"{stream.name}: {len(stream.events)} events", title_justify="left")
    for column in ("frames", "pixels", "masked", "counts / pixel", "exposure"):
        table.add_column(column, justify="left" if column == "frames" else "right")
    for frames in stream.frames:
        found = frames.exposure
        where = found.key if found.value_s is not None else f"{found.key}, of each event"
        table.add_row(
            frames.name,
            " x ".join(map(str, frames.shape)),
            f"{frames.masked:.1%}",
            f"{frames.counts:.3g}",
            f"{frames.exposure_s:g} s ({where})",
        )
    console.print(table)
    names = [
        key.removesuffix("_intensity_error")
        for key in stream.events[0]
        if key.endswith("_intensity_error")
    ]
    if names:
        table = Table("event", *(f"{name}, counts / s" for name in names))
        for event in stream.events:
            values = [(event[f"{n}_intensity"], event[f"{n}_intensity_error"]) for n in names]
            table.add_row(str(event["raw_seq_num"]), *(f"{v:.1f} ± {e:.1f}" for v, e in values))
        console.print(table)
    for number, reason in stream.not_ok:
        console.print(f"event {number}: {reason}", highlight=False, markup=False, soft_wrap=True)
    if not stream.not_ok:
        console.print("All frames are ok.")
    console.print(_speed(stream), highlight=False, soft_wrap=True)


def _speed(stream: Any) -> str:
    told = f"Denoised in {stream.seconds:.2g} s an event"
    if stream.audit_seconds:
        told += f", audited in {stream.audit_seconds:.2g} s more"
    if stream.pace_s is None:
        return f"{told}."
    told += f"; in this run there was one each {stream.pace_s:.2g} s"
    if stream.seconds + stream.audit_seconds <= stream.pace_s:
        return f"{told}: fast enough."
    if stream.seconds <= stream.pace_s:
        return f"{told}: fast enough for denoising, not for an audit of each frame."
    return (
        f"{told}: too slow. Frames wait, and are skipped when more than `queue_size` do; "
        "`catch-up` denoises those after the scan."
    )


def _denoise_runs(runs: list, settings: Any, again: bool) -> None:
    """Denoise runs; of what has the result, nothing unless `again`."""
    from bluesky_denoise.reprocessing import StoredResults, has_result, mark_interrupted, reprocess
    from bluesky_denoise.router import DenoiseRouter

    if not runs:  # for which no network need be loaded
        return
    router = DenoiseRouter(settings)
    of = router.provenance, settings.streams, settings.tiled_container

    def denoise(run: Any, report: Report) -> str:
        if not again and (name := has_result(run, *of)):
            return f"has this result already, as {name}"
        for name in mark_interrupted(run):
            console.print(
                f"{run.metadata['start']['uid']}: {name} was interrupted", highlight=False
            )
        known = None if again else StoredResults(run, *of)
        derived = reprocess(run, settings, denoiser=router.denoiser, progress=report, known=known)
        taken = f", {len(known)} events taken over as they were" if known else ""
        return f"denoised as run {derived}{taken}"

    each_run(runs, denoise)


def _settings(path: Path) -> Any:
    from bluesky_denoise.settings import DenoiseSettings

    try:
        return DenoiseSettings.from_yaml(path)
    except DenoiseError as error:
        fail(str(error))
