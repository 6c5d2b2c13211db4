"""Denoised numbers as the outcomes that an agent of bluesky-adaptive 1.x optimises."""

from collections.abc import Mapping, Sequence
from typing import Any

from bluesky.utils import MsgGenerator
from bluesky_adaptive.plans import default_acquire
from bluesky_adaptive.protocols import ID_KEY, AcquisitionPlan

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import DenoiseError, SettingsError
from bluesky_denoise.plans import denoised_per_step, shown_in_wrapper

__all__ = ["DenoisedEvaluation", "denoised_acquire"]

_STREAM = "signals"


def denoised_acquire(denoised: DenoisedSignals) -> AcquisitionPlan:
    """Return an acquisition plan whose run has the denoised numbers of each point.

    Parameters
    ----------
    denoised :
        Read after each point into the stream ``signals``.
    """

    def acquire_denoised(
        suggestions: Sequence[Mapping[str, Any]],
        actuators: Sequence[Any],
        sensors: Sequence[Any] | None = None,
        md: Mapping[str, Any] | None = None,
    ) -> MsgGenerator[str]:
        plan = default_acquire(
            suggestions, actuators, sensors, md, per_step=denoised_per_step(denoised)
        )
        return (yield from shown_in_wrapper(plan))

    return acquire_denoised


class DenoisedEvaluation:
    """An ``EvaluationFunction``: what was measured at the suggested points, denoised.

    It takes the numbers from the documents of the runs of `denoised_acquire`, so they are
    there at once, whether anything is written to Tiled or not.

    Parameters
    ----------
    denoised :
        The signals that are read at each point.
    outcomes :
        Name of each outcome, and the data key that it is; or two keys, value and error,
        for optimizers that take ``(mean, standard error)``, such as Ax.

    Raises
    ------
    SettingsError
        If `denoised` has no such data key.
    DenoiseError
        When called, if the run is not known, or lacks a point.

    Notes
    -----
    Where a frame could not be denoised, and `denoised` is set to go on, the outcome is NaN.

    Examples
    --------
    >>> evaluation = DenoisedEvaluation(denoised, {"intensity": "denoised_satellite_intensity"})
    >>> RE.subscribe(evaluation.note)
    0
    >>> problem = OptimizationProblem(
    ...     optimizer, [motor], [det], evaluation, denoised_acquire(denoised)
    ... )
    >>> RE(optimize(problem, iterations=10))
    """

    def __init__(
        self, denoised: DenoisedSignals, outcomes: Mapping[str, str | tuple[str, str]]
    ) -> None:
        self._outcomes = dict(outcomes)
        there = list(denoised.describe())
        for name, keys in self._outcomes.items():
            for key in [keys] if isinstance(keys, str) else keys:
                if key not in there:
                    raise SettingsError(
                        f"Outcome {name!r} is to be {key!r}, which {denoised.name} does not have; "
                        f"it has {', '.join(there)}."
                    )
        self._start: Mapping[str, Any] = {}
        self._descriptors: set[str] = set()
        self._rows: dict[int, Mapping[str, Any]] = {}  # by seq_num: a point may be taken again

    def note(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a run; subscribe it to the RunEngine."""
        if name == "start" and "blop_acquisition_order" in doc:
            self._start, self._descriptors, self._rows = doc, set(), {}
        elif name == "descriptor" and doc["name"] == _STREAM:
            if doc["run_start"] == self._start.get("uid"):
                self._descriptors.add(doc["uid"])
        elif name == "event" and doc["descriptor"] in self._descriptors:
            self._rows[doc["seq_num"]] = doc["data"]

    def __call__(self, uid: str, suggestions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the outcomes of the suggestions, in the order in which they were measured."""
        if self._start.get("uid") != uid:
            raise DenoiseError(
                f"Run {uid:.8} has not been seen. Subscribe the evaluation, "
                "`RE.subscribe(evaluation.note)`, and acquire with `denoised_acquire`."
            )
        order = self._start["blop_acquisition_order"]
        rows = [self._rows[number] for number in sorted(self._rows)]
        wanted = {suggestion[ID_KEY] for suggestion in suggestions}
        if len(rows) != len(order) or set(order) != wanted:
            raise DenoiseError(
                f"Run {uid:.8} has {len(rows)} denoised points for the {len(order)} suggestions "
                f"{order}; asked for are {sorted(wanted)}."
            )
        return [self._outcome(number, row) for number, row in zip(order, rows, strict=True)]

    def _outcome(self, number: Any, row: Mapping[str, Any]) -> dict[str, Any]:
        outcome: dict[str, Any] = {ID_KEY: number}
        for name, keys in self._outcomes.items():
            outcome[name] = row[keys] if isinstance(keys, str) else tuple(row[key] for key in keys)
        return outcome
