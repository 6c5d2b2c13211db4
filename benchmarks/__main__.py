"""``python -m benchmarks``: run all, print a table, and write it to docs/benchmarks.md."""

import argparse
import platform
from pathlib import Path

import rich.progress
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import latency, live
from bluesky_denoise.evaluation.speed import speed_scores
from bluesky_denoise.simulation import recorded_frames

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Run all benchmarks; takes some minutes."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    console = Console()
    rows: list[tuple[str, str]] = []
    with console.status("RunEngine speed"):
        found = live.run_engine_speed()
    rows += [
        ("RunEngine events/s, with DenoiseProcess over with a no-op", f"{found.ratio:.2f}"),
        (
            "the same of a no-op, while a process that knows no Bluesky denoises instead",
            f"{found.beside_another:.2f}",
        ),
        ("added to each event", f"{found.added_us:.0f} us"),
        (
            "of it, processor time of the RunEngine's thread for handing over",
            f"{found.handing_over_us:.0f} us",
        ),
    ]
    with console.status("Frames into Tiled"):
        ratio = live.frames_into_tiled()
    rows.append(("frames/s into Tiled, raw and denoised over raw alone", f"{ratio:.2f}"))
    with console.status("Latency"):
        late = live.latencies()
    rows.append(
        (
            "raw event to denoised event, p50 and p95, over the denoiser's time for one frame",
            "{:.2f}, {:.2f}".format(*late["event"]),
        )
    )
    rows.append(
        (
            "raw event to denoised frame readable in Tiled, p50 and p95, over the raw frame's p50",
            "{:.2f}, {:.2f}".format(*late["readable"]),
        )
    )
    with console.status("Latency in a plan"):
        plan = latency.plan_latency()
    rows += [
        (
            "end of an exposure to the denoised signal in the plan, p50 and p95, over the "
            "denoiser's time for one frame",
            f"{plan.p50_s / plan.one_frame_s:.1f}, {plan.p95_s / plan.one_frame_s:.1f}",
        ),
        (
            "time of a point beyond its exposure, `denoised_scan` and plain `scan`",
            f"{1000 * plan.point_s:.0f} ms, {1000 * plan.plain_point_s:.0f} ms",
        ),
    ]
    scores = speed_scores("default", recorded_frames().counts[0], rich.progress.track)
    rows += [
        (f"time of {score.method} over ours, same frame, 1 thread", f"{score.times_longer:.3g}")
        for score in scores
    ]
    table = Table("", "", show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    _write(rows)
    console.print(f"Written to {PAGE.name}.")


def _write(rows: list[tuple[str, str]]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    lines = [
        "# Benchmarks",
        "",
        "Printed and written by `make bench`. Everything is a ratio against a peer in the same",
        "run, since times differ from machine to machine, but for what the RunEngine's thread",
        "loses for each event, and what a point costs beyond its exposure.",
        "",
        f"Last run: Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, "
        f"{torch.get_num_threads()} cores, {device}.",
        "",
        "| what | figure |",
        "|---|---|",
        *(f"| {what} | {figure} |" for what, figure in rows),
        "",
        "The second row is what two busy cores of the machine take from each other; where it is",
        "low, so is the first, and the difference is what handing over costs.",
        "",
        "Frames of 195 x 487 pixels. `benchmarks/live.py`, `benchmarks/latency.py` and",
        "`bluesky_denoise/evaluation/speed.py` say what exactly is measured. The last rows are",
        "least CPU times of methods that take turns in a process of their own, as in",
        "`make evaluate`.",
    ]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
