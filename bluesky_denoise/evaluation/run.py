"""One evaluation: which parts run on which frames, and what is kept for the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.evaluation.awkward import awkward_scores
from bluesky_denoise.evaluation.coverage import measured_coverage, simulated_coverage
from bluesky_denoise.evaluation.detection import detection_limits, recovery
from bluesky_denoise.evaluation.exposure_ratio import exposure_ratios
from bluesky_denoise.evaluation.false_peaks import false_peaks
from bluesky_denoise.evaluation.frame_sets import FrameSet, Track
from bluesky_denoise.evaluation.methods import Method
from bluesky_denoise.evaluation.neighbours import neighbour_scores
from bluesky_denoise.evaluation.peaks import MEASURED, peak_scores, study_peaks
from bluesky_denoise.evaluation.regions import region_scores
from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.shift import shift_scores
from bluesky_denoise.evaluation.speed import TimingError, speed_scores
from bluesky_denoise.evaluation.spots import spot_scores
from bluesky_denoise.evaluation.thinned import thinned_scores

__all__ = ["Gallery", "score_measured", "score_simulated", "time_on"]


@dataclass
class Gallery:
    """Images of single frames, for pictures."""

    shown: list[tuple[str, dict[str, np.ndarray], np.ndarray]] = field(default_factory=list)
    """Title, name -> (H, W) expected counts, (H, W) mask."""

    def show(self, title: str, images: dict[str, np.ndarray], mask: np.ndarray) -> None:
        """Keep the images of one frame."""
        kept = {name: np.asarray(image, np.float32) for name, image in images.items()}
        self.shown.append((title, kept, mask))


def score_measured(
    result: Evaluation,
    sets: Sequence[FrameSet],
    methods: Sequence[Method],
    denoiser: Any,
    track: Track,
    gallery: Gallery,
    frames: int = 2,
) -> None:
    """Add all that measured frames tell; a series that is refused on the way is left out.

    Parameters
    ----------
    result : scores are added to it
    sets : raw photon counts
    methods : what is compared, the denoiser among them
    denoiser : the one that is judged
    track : shows progress
    gallery : pictures are added to it
    frames : of each series that are thinned
    """
    for one in sets:
        shown = Gallery()
        try:
            thinned = thinned_scores(one, methods, track, shown.show, most_frames=frames)
            neighbours = neighbour_scores(one, methods, track, shown.show)
            spots = spot_scores(one, methods, track)
            coverage = measured_coverage(one, denoiser, track)
            shift = shift_scores(one, denoiser, track)
        except DenoiseError as error:
            result.left_out.append(f"{one.name}: {error}")
            continue
        result.thinned += thinned
        result.neighbours += neighbours
        result.spots += spots
        result.coverage += coverage
        result.shift += shift
        gallery.shown += shown.shown


def score_simulated(
    result: Evaluation, methods: Sequence[Method], denoiser: Any, track: Track, effort: float = 1.0
) -> None:
    """Add all that simulated frames tell.

    Parameters
    ----------
    result : scores are added to it
    methods : what is compared, the denoiser among them
    denoiser : the one that is judged
    track : shows progress
    effort : factor on the number of frames
    """

    def some(number: int) -> int:
        return max(1, round(effort * number))

    study = study_peaks(methods, denoiser, track, frames=some(30), slow_frames=some(4))
    result.peaks += peak_scores(study)
    result.ratios += exposure_ratios(study, [*(m.name for m in methods), MEASURED])
    found = recovery(methods, track, frames=some(16), slow_frames=some(4))
    result.recovery += found
    result.limits += detection_limits(found)
    result.false_peaks += false_peaks(methods, track, frames=some(4))
    result.regions += region_scores(denoiser, track, draws=some(12))
    result.coverage += simulated_coverage(denoiser, track, scenes=some(300))
    result.awkward += awkward_scores(denoiser, track)


def time_on(result: Evaluation, model: str | Path, counts: np.ndarray, track: Track) -> None:
    """Add the times of others on a frame, (H, W) integer counts, over the denoiser's."""
    try:
        result.speed += speed_scores(model, counts, track)
    except TimingError as error:
        result.left_out.append(f"speed: {error}")
