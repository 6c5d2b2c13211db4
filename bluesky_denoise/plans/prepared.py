"""Shorten what a plan prepares detectors of ophyd-async with, as their exposures are."""

from collections.abc import Callable, MutableSequence, Sequence
from typing import Any

import bluesky.preprocessors as bpp
from bluesky.utils import Msg, MsgGenerator

from bluesky_denoise.errors import SettingsError

__all__ = ["prepared_wrapper"]


def prepared_wrapper(
    plan: MsgGenerator,
    detectors: Sequence[Any],
    shorten: Callable[[float], float],
    full: MutableSequence[float],
) -> MsgGenerator:
    """Shorten the ``TriggerInfo.livetime`` of detectors, and note what it was.

    Parameters
    ----------
    plan :
        Any plan.
    detectors :
        Those to expose shorter.
    shorten :
        Returns the exposure that comes of a full one.
    full :
        The full exposure of each, seconds; changed where one is prepared.

    Raises
    ------
    SettingsError
        In the plan, if an exposure is prepared that it cannot set, or one that the run which is
        open does not have on record.
    """
    opened: set[Any] = set()

    def refuse(msg: Msg) -> tuple[MsgGenerator | None, None]:
        if msg.command == "open_run":
            opened.add(msg.run)
        elif msg.command == "close_run":
            opened.discard(msg.run)
        elif (index := _prepared(msg, detectors)) is not None:
            name, info = msg.obj.name, msg.args[0]
            if getattr(getattr(info, "trigger", None), "name", "") == "EXTERNAL_LEVEL":
                return _refused(
                    f"{name} is prepared to expose as long as its trigger is high; "
                    "expected an exposure that can be set. Shorten the trigger, and leave the "
                    "detector out of the list of those that are exposed shorter."
                ), None
            if livetime := getattr(info, "livetime", 0):
                recorded_s, short_s = shorten(full[index]), shorten(livetime)
                if opened and abs(short_s - recorded_s) > 0.01 * recorded_s:
                    return _refused(
                        f"{name} is prepared with a livetime of {livetime:.4g} s, exposed "
                        f"as {short_s:.4g} s, in a run that has {recorded_s:.4g} s on record. "
                        "Prepare it before the run is opened, or set its exposure to the livetime "
                        "before the plan begins."
                    ), None
                full[index] = float(livetime)
        return None, None

    def change(msg: Msg) -> Msg:
        if _prepared(msg, detectors) is None or not getattr(msg.args[0], "livetime", 0):
            return msg
        info = msg.args[0]
        short_s = shorten(info.livetime)
        longer = {"exposure_timeout": info.exposure_timeout + max(0, short_s - info.livetime)}
        info = info.model_copy(update={"livetime": short_s, **longer})
        return msg._replace(args=(info, *msg.args[1:]))

    return (yield from bpp.msg_mutator(bpp.plan_mutator(plan, refuse), change))


def _prepared(msg: Msg, detectors: Sequence[Any]) -> int | None:
    """Return which of the detectors a message prepares; None: it does not."""
    if msg.command != "prepare" or not msg.args:
        return None
    return next((i for i, detector in enumerate(detectors) if msg.obj is detector), None)


def _refused(reason: str) -> MsgGenerator[None]:
    """Raise in the plan, which can put back what it has set."""
    raise SettingsError(reason)
    yield  # makes a generator of it
