"""Weights adapted to one beamline, kept only if they predict held-out counts better."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bluesky_denoise.errors import CheckpointError, SettingsError
from bluesky_denoise.models.checkpoint import (
    check_writable,
    load_checkpoint,
    resolve_checkpoint,
    save_checkpoint,
)
from bluesky_denoise.training.alone import alone_at
from bluesky_denoise.training.fit import FitSettings, Progress, fit
from bluesky_denoise.training.pairs import PairSource
from bluesky_denoise.training.parallel import process_group
from bluesky_denoise.training.split import split
from bluesky_denoise.training.validation import LEAST_FRAMES, LEGEND, Comparison, HeldOut

__all__ = ["ADAPTING", "Adapted", "finetune", "with_held_out"]

ADAPTING = FitSettings(steps=300, learning_rate=5e-4, average=0.98, real_share=0.5)
"""Half of the frames stay simulated, so that what the data do not show is not forgotten."""
WINDOWS = 64
MOST_PERCENT = 100.0
"""Score of weights that may be kept: twice the deviance of the best Gaussian is no estimate."""


@dataclass(frozen=True)
class Adapted:
    """What came of adapting weights."""

    promoted: bool
    """Whether the new weights were written."""
    score: float
    """Of the new weights on held-out counts: see ``LEGEND``."""
    old_scores: dict[str, float]
    """The same of the weights started from, and of those that the output held before."""
    comparisons: dict[str, Comparison]
    """New less old, for each of them."""
    simulated: Comparison
    """New less parent on simulated scenes: what was forgotten, if above 0."""
    windows: int
    """Windows that were compared."""

    def __str__(self) -> str:
        lines = []
        for name, found in self.comparisons.items():
            verdict = "better" if found.better else "worse" if found.worse else "no better"
            lines.append(
                f"{name}: {self.old_scores[name]:+.2f} %, new weights {self.score:+.2f} %, "
                f"difference {found.difference:+.2f} ± {found.error:.2f}: {verdict}"
            )
        known = f"{self.simulated.difference:+.2f} ± {self.simulated.error:.2f}"
        lines.append(f"simulated scenes: difference {known} to the parent")
        if self.score > MOST_PERCENT:
            lines.append(
                f"the new weights are more than {MOST_PERCENT:.0f} % worse than a Gaussian: they "
                "are not kept, however bad the others are"
            )
        return "\n".join(lines)


def finetune(
    output: Path,
    sources: Sequence[PairSource],
    settings: FitSettings = ADAPTING,
    *,
    held_out: Sequence[PairSource] = (),
    start_from: str | Path = "default",
    card: dict[str, object] | None = None,
    threads: int | None = None,
    device: str | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Adapted:
    """Adapt weights to the frames of one beamline, without any long exposure.

    The new weights replace nothing unless they predict held-out counts better than those
    started from, and than those in ``output`` if there are any: by two standard errors, on
    the same photons.

    Parameters
    ----------
    output : path of the weights, ``.safetensors``
    sources : runs of the beamline; the last block of each that is long enough is held out
        (see `split`), the whole last run if none is
    settings : their ``model`` is that of the weights started from
    held_out : more runs that are held out whole
    start_from : path or name of the weights to adapt
    card : entries to add to the card
    threads, device, report : see :func:`~bluesky_denoise.training.fit.fit`

    Raises
    ------
    SettingsError
        If fewer than four independent frames can be held out, or several processes run.
    FrameValueError
        If held-out frames are dark, or predicted without any error.
    CheckpointError, ModelNotFound
        If weights are damaged or unknown, or ``output`` cannot be written.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise SettingsError("Weights are adapted in one process; start it without torchrun.")
    if output.suffix != ".safetensors":
        raise CheckpointError(f"Weights are saved as .safetensors, not as {output.name!r}.")
    check_writable(output)
    with alone_at(output):
        parent, parent_card = load_checkpoint(start_from)
        others = {str(start_from): parent}
        if output.exists() and output.resolve() != resolve_checkpoint(start_from).resolve():
            others[f"{output.name} so far"] = load_checkpoint(output)[0]
        settings = replace(settings, model=str(parent_card["model"]))
        sources, held_out = with_held_out(sources, held_out, settings)
        data = split(
            sources, held_out, share=settings.held_out_share, gap_frames=settings.gap_frames
        )
        # Windows and thinning of their own: those of the progress bar will be looked at.
        scored = HeldOut(data.held_out, WINDOWS, seed=settings.seed + 1)
        _check_number(scored)
        candidate = output.with_name(f"{output.stem}.candidate{output.suffix}")
        fit(
            candidate,
            sources,
            settings,
            held_out=held_out,
            start_from=start_from,
            threads=threads,
            device=device,
            report=report,
        )
        model, found = load_checkpoint(candidate)
        simulated = HeldOut([], seed=settings.seed + 1)
        with process_group(device) as ranks:
            networks = [network.to(ranks.device) for network in (model, *others.values())]
            new, *old = [scored.scores(network, ranks.device) for network in networks]
            known = [simulated.scores(network, ranks.device) for network in networks[:2]]
        comparisons = {
            name: scored.compare(new, scores) for name, scores in zip(others, old, strict=True)
        }
        result = Adapted(
            promoted=_may_be_kept(float(new.mean()), comparisons),
            score=float(new.mean()),
            old_scores={name: float(s.mean()) for name, s in zip(others, old, strict=True)},
            comparisons=comparisons,
            simulated=simulated.compare(*known),
            windows=len(scored),
        )
        if result.promoted:
            about = {"metrics": {"held_out": _metrics(result, scored)}}
            save_checkpoint(model, output, found | about | (card or {}))
        for path in (candidate, candidate.with_suffix(".json")):
            path.unlink()
    return result


def _may_be_kept(score: float, comparisons: Mapping[str, Comparison]) -> bool:
    return score <= MOST_PERCENT and all(found.better for found in comparisons.values())


def _check_number(scored: HeldOut) -> None:
    if scored.frames < LEAST_FRAMES:
        raise SettingsError(
            f"{scored.frames} independent frames with counts are held out, of "
            f"{', '.join(scored.names)}; expected {LEAST_FRAMES} or more (repeats count two by "
            "two): with fewer, no difference between weights can be told from chance. Give a "
            "longer run, more runs, or frames with --held-out."
        )


def with_held_out(
    sources: Sequence[PairSource], held_out: Sequence[PairSource], settings: FitSettings
) -> tuple[Sequence[PairSource], Sequence[PairSource]]:
    """Return what is trained on and held out: the last run too, if nothing else would be.

    Raises
    ------
    SettingsError
        If nothing can be held out.
    """
    data = split(sources, held_out, share=settings.held_out_share, gap_frames=settings.gap_frames)
    if data.held_out:
        return sources, held_out
    if len(sources) > 1:
        return sources[:-1], sources[-1:]
    raise SettingsError(
        "There are no frames to hold out, and weights that were not compared are not kept. Give a "
        f"second run, or a longer one: {settings.held_out_share:.0%} of it are held out after a "
        f"gap of {settings.gap_frames} frames, and half must be left to train on."
    )


def _metrics(result: Adapted, scored: HeldOut) -> dict[str, Any]:
    return {
        "legend": LEGEND,
        "data": scored.names,
        "windows": result.windows,
        "percent": round(result.score, 3),
        "compared_with": {
            name: {
                "percent": round(result.old_scores[name], 3),
                "difference": round(found.difference, 3),
                "standard_error": round(found.error, 3),
            }
            for name, found in result.comparisons.items()
        },
        "simulated_scenes": {
            "difference_to_parent": round(result.simulated.difference, 3),
            "standard_error": round(result.simulated.error, 3),
        },
    }
