"""All scores of one evaluation, and their JSON."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bluesky_denoise.evaluation.awkward import AwkwardScore
from bluesky_denoise.evaluation.coverage import CoverageScore
from bluesky_denoise.evaluation.detection import DetectionLimit, Recovery
from bluesky_denoise.evaluation.exposure_ratio import ExposureRatio
from bluesky_denoise.evaluation.false_peaks import FalsePeaks
from bluesky_denoise.evaluation.neighbours import NeighbourScore
from bluesky_denoise.evaluation.peaks import PeakScore
from bluesky_denoise.evaluation.regions import RegionScore
from bluesky_denoise.evaluation.shift import ShiftScore
from bluesky_denoise.evaluation.speed import SpeedScore
from bluesky_denoise.evaluation.spots import SpotScore
from bluesky_denoise.evaluation.thinned import ThinnedScore
from bluesky_denoise.support.whole_files import write_whole

__all__ = ["Evaluation", "read_evaluations", "write_json"]


@dataclass
class Evaluation:
    """What was measured; a list is empty where that part did not run."""

    subject: str
    """Name of the denoiser that is judged."""
    about: dict[str, Any] = field(default_factory=dict)
    """Weights, versions, command, when."""
    thinned: list[ThinnedScore] = field(default_factory=list)
    neighbours: list[NeighbourScore] = field(default_factory=list)
    spots: list[SpotScore] = field(default_factory=list)
    shift: list[ShiftScore] = field(default_factory=list)
    peaks: list[PeakScore] = field(default_factory=list)
    ratios: list[ExposureRatio] = field(default_factory=list)
    recovery: list[Recovery] = field(default_factory=list)
    limits: list[DetectionLimit] = field(default_factory=list)
    false_peaks: list[FalsePeaks] = field(default_factory=list)
    regions: list[RegionScore] = field(default_factory=list)
    coverage: list[CoverageScore] = field(default_factory=list)
    awkward: list[AwkwardScore] = field(default_factory=list)
    speed: list[SpeedScore] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Sentences on what was not scored, and why."""


_LISTS: dict[str, type] = {
    "thinned": ThinnedScore,
    "neighbours": NeighbourScore,
    "spots": SpotScore,
    "shift": ShiftScore,
    "peaks": PeakScore,
    "ratios": ExposureRatio,
    "recovery": Recovery,
    "limits": DetectionLimit,
    "false_peaks": FalsePeaks,
    "regions": RegionScore,
    "coverage": CoverageScore,
    "awkward": AwkwardScore,
    "speed": SpeedScore,
}


def write_json(result: Evaluation, path: Path, gates: list[Any]) -> None:
    """Write all scores and gates; what is not finite becomes null, infinite the text ``inf``."""
    content = asdict(result) | {"gates": [asdict(gate) for gate in gates]}
    text = json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"
    write_whole({path: text.encode()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value


def read_evaluations(paths: list[Path]) -> Evaluation:
    """Read scores that `write_json` wrote, and put those of one denoiser together.

    Raises
    ------
    ValueError
        If a file is no evaluation, or the files judge different weights.
    """
    whole: Evaluation | None = None
    for path in paths:
        content = json.loads(path.read_text())
        if "subject" not in content:
            raise ValueError(f"{path} is no evaluation; it was not written by `evaluate --json`.")
        part = Evaluation(content["subject"], content["about"], left_out=content["left_out"])
        for name, kind in _LISTS.items():
            rows = [{k: _float(v) for k, v in row.items()} for row in content[name]]
            getattr(part, name).extend(kind(**row) for row in rows)
        if whole is None:
            whole = part
            continue
        if part.about.get("sha256") != whole.about.get("sha256"):
            raise ValueError(f"{path} judges other weights than {paths[0]}; evaluate both again.")
        for name in (*_LISTS, "left_out"):
            getattr(whole, name).extend(getattr(part, name))
    if whole is None:
        raise ValueError("No evaluation was given.")
    return whole


def _float(value: Any) -> Any:
    if value is None:
        return float("nan")
    if value == "inf":
        return float("inf")
    return tuple(value) if isinstance(value, list) else value
