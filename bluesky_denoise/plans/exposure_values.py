"""Set exposures, and find out what the detectors have made of them."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import bluesky.plan_stubs as bps
from bluesky.utils import MsgGenerator

from bluesky_denoise.errors import SettingsError

__all__ = [
    "put_exposure_back",
    "read_settled",
    "read_values",
    "set_exposures",
    "set_values",
    "tried_wrapper",
    "try_exposures",
]

logger = logging.getLogger(__name__)

_TOLD, _REFUSED = 1.01, 2.0
"""By which factor a detector may differ from what it is asked for before it is told, or refused."""
_READBACK_S = 0.2


def read_values(
    signals: Sequence[Any], expected: Sequence[float] | None = None
) -> MsgGenerator[list[float]]:
    """Read signals (a stub); where the plan is only looked at, what is expected, or 1."""
    values = []
    for signal, default in zip(signals, expected or [1.0] * len(signals), strict=True):
        values.append(float((yield from bps.rd(signal, default_value=default))))
    return values


def read_settled(signals: Sequence[Any], expected: Sequence[float]) -> MsgGenerator[list[float]]:
    """Read exposures that have just been set (a stub), again if they are not as expected.

    A readback of EPICS may follow its setpoint a moment later.
    """
    found = yield from read_values(signals, expected)
    if any(_factor(*pair) > _TOLD for pair in zip(expected, found, strict=True)):
        yield from bps.sleep(_READBACK_S)
        found = yield from read_values(signals, expected)
    return found


def set_values(devices: Iterable[Any], values: Iterable[Any]) -> MsgGenerator:
    """Set signals or motors, all at once, and wait for them (a stub)."""
    pairs = [item for pair in zip(devices, values, strict=True) for item in pair]
    if pairs:
        yield from bps.mv(*pairs)


def set_exposures(
    signals: Sequence[Any], exposures_s: Sequence[float]
) -> MsgGenerator[list[float]]:
    """Set exposures, and return those that the detectors have then (a stub).

    Detectors round, and have a least exposure.

    Parameters
    ----------
    signals :
        See :func:`exposure_signal`.
    exposures_s :
        One for each, seconds, > 0. From 1 % of difference on it is logged.

    Raises
    ------
    SettingsError
        If an exposure is more than twice, or less than half, what was asked for.
    """
    yield from set_values(signals, exposures_s)
    taken = yield from read_settled(signals, exposures_s)
    for signal, asked_s, taken_s in zip(signals, exposures_s, taken, strict=True):
        if _factor(asked_s, taken_s) > _REFUSED:
            raise SettingsError(
                f"{signal.name} was set to {asked_s:.4g} s and reads {taken_s:.4g} s; expected no "
                "more than twice, and no less than half of it. Ask for an exposure that the "
                "detector can make; and give a `relative_set_wrapper` the motors, else it adds to "
                "exposures too."
            )
        if _factor(asked_s, taken_s) > _TOLD:
            logger.warning(
                "%s was set to %.4g s and reads %.4g s, which is used and recorded",
                *(signal.name, asked_s, taken_s),
            )
    return taken


def put_exposure_back(signal: Any, exposure_s: float) -> MsgGenerator:
    """Set an exposure to what it was, and tell if it is another then (a stub)."""
    yield from set_values([signal], [exposure_s])
    (found,) = yield from read_settled([signal], [exposure_s])
    if _factor(exposure_s, found) > _TOLD:
        logger.error(
            "%s was put back to %.4g s and reads %.4g s: set it by hand. A `relative_set_wrapper` "
            "that is not given the motors adds to exposures, too.",
            *(signal.name, exposure_s, found),
        )


def try_exposures(signals: Sequence[Any], *exposures_s: float) -> MsgGenerator[list[list[float]]]:
    """Set exposures that a run will need, and put back what there was (a stub).

    Before its run a plan knows by this whether it can have them.

    Returns
    -------
    list of list of float
        For each exposure, what it is at each of the signals; see :func:`set_exposures`.
    """
    before = yield from read_values(signals)
    taken = []
    for exposure_s in exposures_s:
        taken.append((yield from set_exposures(signals, [float(exposure_s)] * len(signals))))
    if exposures_s:
        yield from set_values(signals, before)
    return taken


def tried_wrapper(
    plan: MsgGenerator, signals: Sequence[Any], *exposures_s: float | None
) -> MsgGenerator:
    """Try exposures before a plan; None: there is nothing to try."""
    yield from try_exposures(signals, *(s for s in exposures_s if s is not None))
    return (yield from plan)


def _factor(asked_s: float, taken_s: float) -> float:
    """Return by how much two exposures differ, 1 or more."""
    if not taken_s > 0:
        return float("inf")
    return max(asked_s / taken_s, taken_s / asked_s)
