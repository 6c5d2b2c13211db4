"""The commands of ``bluesky-denoise`` that denoise archived runs, and write what was kept."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_terminal import (
    LOCAL,
    Address,
    Report,
    console,
    each_file,
    each_run,
    fail,
    find_run,
    open_catalog,
)
from .errors import DenoiseError

__all__ = ["app"]

app = typer.Typer()

SettingsFile = Annotated[Path, typer.Argument(help="YAML file of DenoiseSettings.")]
Uids = Annotated[list[str], typer.Argument(help="uids of runs, or their first letters.")]


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
    from .catalog import is_complete

    loaded = _settings(settings)
    with open_catalog(loaded.tiled_uri, loaded) as catalog:
        with console.status("Looking for runs without a complete denoised stream"):
            newest = [run for run in catalog.values().tail(number) if "start" in run.metadata]
            missing = [
                run
                for run in newest
                if not is_complete(run, loaded.streams, loaded.tiled_container)
            ]
        console.print(f"{len(missing)} of the newest {len(newest)} runs are to be denoised.")
        _denoise_runs(missing, loaded, again=False)


@app.command("replay-backup")
def replay_backup_command(settings: SettingsFile) -> None:
    """Write to Tiled what was kept in the backup directory while it was down."""
    from .tiled_sink import replay_backup

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
    from .backup import backup_files
    from .restore import restore_run

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


def _denoise_runs(runs: list, settings: Any, again: bool) -> None:
    """Denoise runs; of what has the result, nothing unless `again`."""
    from .reprocessing import StoredResults, has_result, mark_interrupted, reprocess
    from .router import DenoiseRouter

    router = DenoiseRouter(settings)
    of = router.provenance, settings.streams, settings.tiled_container

    def denoise(run: Any, report: Report) -> str:
        if not again and (name := has_result(run, *of)):
            return f"has this result already, as {name}"
        for name in mark_interrupted(run):
            console.print(
                f"{run.metadata['start']['uid']}: {name} was interrupted", highlight=False
            )
        numbers = (run.metadata.get("stop") or {}).get("num_events", {})
        total = sum(numbers.get(stream, 0) for stream in settings.streams) or None
        known = None if again else StoredResults(run, *of)
        derived = reprocess(
            run,
            settings,
            denoiser=router.denoiser,
            progress=lambda done: report(done, total),
            known=known,
        )
        taken = f", {len(known)} of {total} events taken over as they were" if known else ""
        return f"denoised as run {derived}{taken}"

    each_run(runs, denoise)


def _settings(path: Path) -> Any:
    from .settings import DenoiseSettings

    try:
        return DenoiseSettings.from_yaml(path)
    except DenoiseError as error:
        fail(str(error))
