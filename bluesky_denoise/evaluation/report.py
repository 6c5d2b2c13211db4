"""A self-contained HTML report: headline, gates, pictures, plots and tables."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bluesky_denoise.evaluation.gate import Gate
from bluesky_denoise.evaluation.pictures import frame_picture
from bluesky_denoise.evaluation.plots import result_plots
from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.run import Gallery
from bluesky_denoise.evaluation.table import Table, without_repeats
from bluesky_denoise.evaluation.tables import all_tables, gate_table
from bluesky_denoise.support.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

MOST_PICTURES = 14

CSS = """
:root { --ink:#1f2933; --soft:#616e7c; --line:#e4e7eb; --ours:#d0342c; --back:#f7f8fa; }
* { box-sizing: border-box; }
body { margin:0; background:var(--back); color:var(--ink);
  font:15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
header { background:#151b23; color:#f5f7fa; padding:2.2rem 0 2rem; }
header p { color:#9fb0c3; margin:.3rem 0 0; font-size:.9rem; }
h1 { margin:0; font-size:1.7rem; letter-spacing:-.01em; }
main, header > div, nav > div { max-width:1120px; margin:0 auto; padding:0 1.5rem; }
nav { background:#fff; border-bottom:1px solid var(--line); position:sticky; top:0; z-index:2;
  font-size:.85rem; }
nav > div { display:flex; flex-wrap:wrap; gap:.2rem 1.1rem; padding-top:.55rem;
  padding-bottom:.55rem; }
nav a { color:var(--soft); text-decoration:none; }
nav a:hover { color:var(--ours); }
section { background:#fff; border:1px solid var(--line); border-radius:8px; padding:1.3rem 1.5rem;
  margin:1.3rem 0; }
h2 { margin:0 0 .4rem; font-size:1.15rem; }
h3 { margin:1.4rem 0 .4rem; font-size:.95rem; }
.note { color:var(--soft); font-size:.86rem; max-width:58rem; margin:.1rem 0 .9rem; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(185px,1fr)); gap:.9rem;
  margin:1.3rem 0; }
.card { background:#fff; border:1px solid var(--line); border-radius:8px; padding:1rem 1.1rem; }
.card b { display:block; font-size:1.75rem; line-height:1.15; letter-spacing:-.02em; }
.card span { color:var(--soft); font-size:.82rem; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-size:.82rem; font-variant-numeric:tabular-nums; width:100%; }
th { text-align:left; font-weight:600; color:var(--soft); border-bottom:2px solid var(--line);
  padding:.35rem .6rem; white-space:nowrap; }
td { padding:.25rem .6rem; border-bottom:1px solid #f0f2f4; vertical-align:top; }
td.s { white-space:nowrap; }
td.n { text-align:right; white-space:nowrap; } th.n { text-align:right; }
tr.group td { border-top:1px solid #cbd2d9; }
tr.ours td { font-weight:600; background:#fdf3f2; }
img { max-width:100%; display:block; margin:.4rem auto; }
.badge { border-radius:999px; padding:.08rem .6rem; font-size:.76rem; font-weight:600;
  white-space:nowrap; }
.met { background:#e3f4e6; color:#1e7a34; } .missed { background:#fde5e3; color:#b3261e; }
details summary { cursor:pointer; color:var(--soft); font-size:.86rem; margin-top:.6rem; }
footer { color:var(--soft); font-size:.82rem; padding:0 0 2.5rem; }
@media print { nav { display:none; } section { break-inside:avoid; } }
"""


def write_report(result: Evaluation, gates: Sequence[Gate], gallery: Gallery, path: Path) -> None:
    """Write one HTML file that needs no other.

    Parameters
    ----------
    result : all scores
    gates : as judged
    gallery : images of single frames
    path : the file to write
    """
    tables = all_tables(result)
    plots = {key: (caption, figure) for key, caption, figure in result_plots(result)}
    parts = [_cards(result, gates), _table_section(gate_table(gates), result.subject)]
    if gallery.shown:
        parts.append(_pictures(gallery))
    for table in tables:
        caption, figure = plots.get(table.key, ("", None))
        parts.append(_table_section(table, result.subject, figure, caption))
    if result.left_out:
        items = "".join(f"<li>{html.escape(s)}</li>" for s in result.left_out)
        parts.append(
            f'<section id="left-out"><h2>Left out</h2><ul class="note">{items}</ul></section>'
        )
    links = [("gates", "Gates"), *([("pictures", "Pictures")] if gallery.shown else [])]
    links += [(table.key, table.title) for table in tables]
    nav = "".join(f'<a href="#{key}">{html.escape(title)}</a>' for key, title in links)
    about = result.about
    told = (
        f"Weights {about.get('model')} ({str(about.get('sha256'))[:12]}), network "
        f"{about.get('network')} · {about.get('data')} · {about.get('date')} · "
        f"bluesky_denoise {about.get('package')}, torch {about.get('torch')}, "
        f"{about.get('device')} · {about.get('minutes')} minutes"
    )
    page = (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>How well does it denoise? {html.escape(result.subject)}</title>"
        f"<style>{CSS}</style></head><body>"
        f"<header><div><h1>How well does it denoise?</h1><p>{html.escape(told)}</p>"
        f"<p>Judged: <b>{html.escape(result.subject)}</b>, red in plots and shaded in tables.</p>"
        "</div></header>"
        f"<nav><div>{nav}</div></nav><main>{''.join(parts)}"
        "<footer>No frame is part of what it is compared with. Written by "
        "<code>bluesky-denoise evaluate --report</code>.</footer></main></body></html>\n"
    )
    write_whole({path: page.encode()})


def _cards(result: Evaluation, gates: Sequence[Gate]) -> str:
    judged = [gate for gate in gates if gate.met is not None]
    cards = [(f"{sum(bool(g.met) for g in judged)} / {len(judged)}", "gates are met")]
    cards += _measured_cards(result)
    for x in result.ratios:
        if x.method == "measure_roi" and ("known" in x.reference or "box" in x.reference):
            text = f"exposure ratio of measure_roi against {x.reference}"
            cards.append((f"{x.ratio:.2f}" if x.ratio else "never", text))
    seen = [x for x in result.limits if x.method == result.subject and x.how == "brightest pixel"]
    if seen:
        ratio = float(np.exp(np.mean([np.log(max(x.exposure_ratio, 1e-3)) for x in seen])))
        over = "> " if any(x.at_least for x in seen) else ""
        cards.append((f"{over}{ratio:.1f}", "exposure ratio against the raw frame seen by eye"))
    lines = [n for n in result.neighbours if n.method == result.subject and np.isfinite(n.contrast)]
    if lines:
        text = f"error over that of a raw frame, {lines[0].set}, {lines[0].fraction:g} s"
        cards.append((f"{lines[0].error:.3f}", text))
        cards.append((f"{lines[0].contrast:.3f}", "contrast of its weak line over the truth"))
    for s in result.speed:
        if "BM3D" in s.method:
            cards.append((f"{s.times_longer:.1f} x", "faster than Anscombe + BM3D"))
    return '<div class="cards">' + "".join(
        f'<div class="card"><b>{html.escape(b)}</b><span>{html.escape(t)}</span></div>'
        for b, t in cards
    ) + "</div>"  # fmt: skip


def _measured_cards(result: Evaluation) -> list[tuple[str, str]]:
    """Say what is gained on measured frames, as medians over the series."""
    cards = []
    ours = [t for t in result.thinned if t.method == result.subject and t.held_out != "trained on"]
    some = sorted({t.fraction for t in ours}, reverse=True)[:2]
    errors = [t.error for t in ours if t.fraction == some[-1] and np.isfinite(t.error)]
    if errors:
        left = float(np.median(errors))
        text = f"of the raw frame's squared error is left, from {100 * some[-1]:g} % of the photons"
        cards.append((f"{left:.1%}", f"{text}; median of {len(errors)} series"))
    shift = [x for x in result.shift if x.held_out != "trained on"]
    failures, flagged = sum(x.failures for x in shift), sum(x.flagged for x in shift)
    if failures:
        cards.append((f"{flagged} / {failures}", "failures are flagged by the audit"))
    return cards


def _pictures(gallery: Gallery) -> str:
    neighbours = [s for s in gallery.shown if "neighbours" in s[0]]
    others = [s for s in gallery.shown if "neighbours" not in s[0]]
    parts = []
    for title, images, mask in (neighbours + others)[:MOST_PICTURES]:
        picture = _embed(frame_picture(images, mask), title)
        parts.append(f"<h3>{html.escape(title)}</h3>{picture}")
    note = (
        "What each method makes of the same frame, on one logarithmic scale of expected counts "
        "per pixel; masked pixels are white. The last image is what they are compared with: a "
        "longer exposure, or all photons of which a share was denoised, scaled to that share. Its "
        "noise is its own. Below: the mean of nine rows, and where it rises most once more."
    )
    return (
        f'<section id="pictures"><h2>Pictures</h2><p class="note">{note}</p>'
        f"{''.join(parts)}</section>"
    )


def _embed(figure: "Figure", title: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def _table_section(
    table: Table, subject: str, figure: "Figure | None" = None, caption: str = ""
) -> str:
    plot = ""
    if figure is not None:
        plot = f'{_embed(figure, table.title)}<p class="note">{html.escape(caption)}</p>'
    body = _html_table(table, subject)
    if len(table.rows) > 24 and table.key != "gates":
        body = f"<details><summary>{len(table.rows)} rows</summary>{body}</details>"
    return (
        f'<section id="{table.key}"><h2>{html.escape(table.title)}</h2>'
        f'<p class="note">{html.escape(table.note)}</p>{plot}{body}</section>'
    )


def _html_table(table: Table, subject: str) -> str:
    text = [
        any(c.isalpha() for row in table.rows for c in row[i]) for i in range(len(table.columns))
    ]
    head = "".join(
        f"<th{'' if t else ' class=n'}>{html.escape(c)}</th>"
        for c, t in zip(table.columns, text, strict=True)
    )
    rows = []
    before: tuple[str, ...] | None = None
    for row, cells in zip(table.rows, without_repeats(table), strict=True):
        kinds = ["group"] if before is not None and row[: table.groups] != before else []
        before = row[: table.groups]
        if subject in row:
            kinds.append("ours")
        rows.append(
            f'<tr class="{" ".join(kinds)}">'
            + "".join(_cell(c, t) for c, t in zip(cells, text, strict=True))
            + "</tr>"
        )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _cell(cell: str, text: bool) -> str:
    if cell in ("met", "missed"):
        return f'<td><span class="badge {cell}">{cell}</span></td>'
    # Short texts, such as limits, stay on one line.
    kind = " class=n" if not text else " class=s" if len(cell) <= 16 else ""
    return f"<td{kind}>{html.escape(cell)}</td>"
