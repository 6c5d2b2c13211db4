"""``python -m bluesky_denoise.evaluation.trust DOCS SCORES.json...``: figures where they are told.

Every Markdown file of a folder is searched for pairs of lines ``<!-- begin NAME -->`` and
``<!-- end NAME -->``; what is between them is replaced by the table of that name, of each
evaluation. ``gates`` is the table of gates, other names are keys of `Table`. With ``--card``,
the gates become the ``metrics`` of a card of weights, too.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.evaluation.gates import judge
from bluesky_denoise.evaluation.results import Evaluation, read_evaluations
from bluesky_denoise.evaluation.table import markdown
from bluesky_denoise.evaluation.tables import KEYS, all_tables, gate_table
from bluesky_denoise.support.whole_files import write_whole

__all__ = ["fill", "metrics", "write_figures"]

BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def fill(text: str, evaluations: Sequence[Evaluation]) -> str:
    """Replace what is between the markers of a text.

    Parameters
    ----------
    text : Markdown
    evaluations : each gives a table of its own, if it has rows for it

    Raises
    ------
    SettingsError
        If there is no table of the name that a marker asks for.
    """

    def block(found: re.Match[str]) -> str:
        if found[2] not in (*KEYS, "gates"):
            raise SettingsError(
                f"There is no table {found[2]!r}; there are gates, {', '.join(KEYS)}."
            )
        parts = [_part(found[2], evaluation) for evaluation in evaluations]
        parts = [part for part in parts if part] or ["Not measured in these runs.\n"]
        return f"{found[1]}{chr(10).join(parts)}{found[3]}"

    return BLOCK.sub(block, text)


def _part(name: str, evaluation: Evaluation) -> str:
    about = evaluation.about
    head = (
        f"`{_command(about)}`, weights `{about.get('model')}` "
        f"({str(about.get('sha256'))[:12]}), {about.get('date')}:\n"
    )
    if name == "gates":
        gates = judge(evaluation)
        missed = [f"{g.check} ({g.metric}: {g.figure})" for g in gates if g.met is False]
        told = "\n".join(f"- {text}" for text in missed)
        tail = f"\n**Missed:**\n\n{told}\n" if missed else "\nNo gate is missed.\n"
        return f"{head}\n{markdown(gate_table(gates))}\n{tail}" if gates else ""
    tables = [table for table in all_tables(evaluation) if table.key == name]
    return f"{head}\n{markdown(tables[0])}\n" if tables else ""


def metrics(card: dict[str, Any], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return what a card tells of its weights: the gates of each evaluation, and its command.

    Parameters
    ----------
    card : of the weights that were judged
    evaluations : of different data

    Raises
    ------
    SettingsError
        If an evaluation is of other weights.
    """
    found = {}
    for evaluation in evaluations:
        about = evaluation.about
        if about.get("sha256") != card["sha256"]:
            raise SettingsError(
                f"The scores of {about.get('data')} are of weights "
                f"{str(about.get('sha256'))[:12]}; the card is of {card['sha256'][:12]}."
            )
        gates = [asdict(gate) for gate in judge(evaluation)]
        told = {"command": _command(about), "date": about["date"], "gates": gates}
        found[about["data"]] = told
    return found


def _command(about: dict[str, Any]) -> str:
    """Return the command without the folders of the machine that it was typed on."""
    words = shlex.split(about.get("command", ""))
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in words)


def write_figures(
    docs: Annotated[Path, typer.Argument(help="Folder of the Markdown files.")],
    scores: Annotated[list[Path], typer.Argument(help="Written by evaluate --json.")],
    card: Annotated[
        Path | None, typer.Option(help="Card of the weights, whose metrics are written anew.")
    ] = None,
) -> None:
    """Write the figures of evaluations into documents, between their markers."""
    evaluations = [read_evaluations([path]) for path in scores]
    read_evaluations(scores)  # of the same weights, or refused
    for path in sorted(docs.glob("*.md")):
        before = path.read_text()
        after = fill(before, evaluations)
        if after != before:
            path.write_text(after)
            typer.echo(f"{path} has new figures.")
    if card is not None:
        content = json.loads(card.read_text())
        content["metrics"] = metrics(content, evaluations)
        write_whole({card: (json.dumps(content, indent=2) + "\n").encode()})
        typer.echo(f"{card} has new metrics.")


if __name__ == "__main__":
    typer.run(write_figures)
