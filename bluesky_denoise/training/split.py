"""Training and held-out frames: whole runs, or blocks with a gap, never random frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.support.digests import series_digest
from bluesky_denoise.training.pairs import PairSource, RecordedPairs

__all__ = ["Split", "split"]


@dataclass(frozen=True, eq=False)
class Split:
    """What is trained on, what is kept for scoring, and how that was decided."""

    training: list[PairSource]
    held_out: list[PairSource]
    record: list[dict[str, Any]]
    """For the card: one entry for each source."""
    seen: list[str]
    """`series_digest` of each source that is trained on, in part or whole."""


def split(
    sources: Sequence[PairSource],
    held_out: Sequence[PairSource] = (),
    *,
    share: float = 0.2,
    gap_frames: int = 10,
) -> Split:
    """Hold out the last block of each run that is long enough, and whole runs.

    Neighbouring frames of a scan show nearly the same scene, so a gap is left out between
    the blocks, and all frames of a point are in one; frames that repeat one scene need no gap.
    A run that would keep less than half of its frames for training is trained on whole.

    Parameters
    ----------
    sources : what to train on
    held_out : runs that are held out whole
    share : of the frames of each run that is held out; 0: none
    gap_frames : frames between the blocks that are not used at all

    Raises
    ------
    SettingsError
        If share or gap are out of range, or a frame is to be trained on and held out.
    """
    if not 0 <= share <= 0.5 or gap_frames < 0:
        raise SettingsError(
            f"A share of {share} of the frames with a gap of {gap_frames} cannot be held out; "
            "expected 0 to 0.5, and a gap of 0 or more."
        )
    for source in held_out:
        both = [other for other in sources if _identity(other) & _identity(source)]
        if both:
            raise SettingsError(_leak(both[0], source))
    training: list[PairSource] = []
    kept: list[PairSource] = []
    record: list[dict[str, Any]] = []
    for source in sources:
        if isinstance(source, RecordedPairs) and (found := _blocks(source, share, gap_frames)):
            first, last = found
            training.append(source.block(0, first))
            kept.append(source.block(last, len(source)))
            record.append(
                _entry(source)
                | {
                    "training": f"frames 0 to {first - 1}",
                    "held_out": f"frames {last} to {len(source) - 1}",
                    "gap_frames": last - first,
                }
            )
        else:
            training.append(source)
            record.append(_entry(source, "training"))
    for source in held_out:
        kept.append(source)
        record.append(_entry(source, "held_out"))
    _check_apart(training, kept)
    recorded = [source for source in sources if isinstance(source, RecordedPairs)]
    seen = [series_digest(source.counts_digests) for source in recorded]
    return Split(training, kept, record, seen)


def _identity(source: PairSource) -> set[str]:
    """Return the runs of a source: sums of frames have other hashes than the frames."""
    if not isinstance(source, RecordedPairs):
        return {source.name}
    return {source.about["run"]} if "run" in source.about else {*source.about.get("runs", [])}


def _check_apart(training: Sequence[PairSource], held_out: Sequence[PairSource]) -> None:
    """Refuse blocks that share a frame, whatever their files are called."""
    blocks = [source for source in training if isinstance(source, RecordedPairs)]
    for kept in held_out:
        if not isinstance(kept, RecordedPairs):
            continue
        for block in blocks:
            if shared := block.known_by & kept.known_by:
                raise SettingsError(_leak(block, kept, len(shared)))


def _leak(training: PairSource, held_out: PairSource, shared: int = 0) -> str:
    told = f"{shared} of its frames" if shared else "frames of it"
    if _named(training) == _named(held_out) and shared:
        return (
            f"{_named(held_out)} has {shared} frames among those trained on and among those held "
            "out, the same count for count. Did the detector stand still, or is it read twice? "
            "Give each frame once."
        )
    return (
        f"{_named(held_out)} cannot be trained on and held out ({_named(training)} has {told}). "
        "Give each frame once: of a master file and its data files, one or the other."
    )


def _named(source: PairSource) -> str:
    about = source.about if isinstance(source, RecordedPairs) else {}
    return str(about.get("file", source.name))


def _blocks(source: RecordedPairs, share: float, gap_frames: int) -> tuple[int, int] | None:
    """Return the end of the training block and the start of the other, None if too short."""
    number = len(source)
    if share == 0:
        return None
    held = max(round(share * number), source.least)
    gap, together = (gap_frames, source.per_point) if source.changing else (0, 1)
    last = (number - held) // together * together
    first = (last - gap) // together * together
    return (first, last) if first >= max(number / 2, source.least) else None


def _entry(source: PairSource, whole: str = "") -> dict[str, Any]:
    entry: dict[str, Any] = {"name": source.name}
    if isinstance(source, RecordedPairs):
        entry |= {"pairs": source.kind, "frames": len(source), **source.about}
    return entry | ({whole: "all frames"} if whole else {})
