"""Refuse frames at an exposure that the run which they go into would not tell."""

from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.preprocessors as bpp
from bluesky.utils import Msg, MsgGenerator

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans.checks import described
from bluesky_denoise.sources.exposure import exposure_keys

__all__ = ["own_runs_wrapper"]

_OTHER_WAYS = ("declare_stream", "kickoff", "monitor")
"""How frames, or the exposures that are told of them, come into a run without a `save`."""


def own_runs_wrapper(
    plan: MsgGenerator,
    detectors: Sequence[Any],
    owners: Sequence[Sequence[Any]],
    signals: Sequence[Any],
) -> MsgGenerator:
    """Let a plan take frames in runs that it opens itself only, unless events have the exposure.

    A run has the configuration of a detector as it was at the first event of a stream, and in
    its start document the exposures of the plan that opened it.

    Parameters
    ----------
    plan :
        It exposes otherwise than the plan around it.
    detectors, owners, signals :
        Those that are exposed, the devices that each is part of, and their exposures.

    Raises
    ------
    SettingsError
        In the plan, when an event is to be saved, a stream declared, or a flyer started.
    """
    opened: set[Any] = set()
    bundles: dict[Any, dict[Any, set[str]]] = {}  # by run: what is read, with its keys

    def untold(read: Mapping[Any, set[str]]) -> list[str]:
        """Return the detectors that are read without their exposure."""
        keys = {key for own in read.values() for key in own}
        return [
            detector.name
            for detector, devices, signal in zip(detectors, owners, signals, strict=True)
            if any(_is_of(obj, detector, devices) for obj in read)
            and not {signal.name, *exposure_keys(keys, detector.name)} & keys
        ]

    def process(msg: Msg) -> tuple[MsgGenerator | None, None]:
        if msg.command == "open_run":
            opened.add(msg.run)
        elif msg.command == "close_run":
            opened.discard(msg.run)
        elif msg.run in opened:
            pass
        elif msg.command == "create":
            bundles[msg.run] = {}
        elif msg.command == "read" and msg.run in bundles:
            return _noted(msg, bundles[msg.run]), None
        elif msg.command in ("save", "drop"):
            names = untold(bundles.pop(msg.run, {}))
            if names and msg.command == "save":
                return _refused(names, msg), None
        elif msg.command in _OTHER_WAYS:
            objects = [obj for obj in (msg.obj, *msg.args) if hasattr(obj, "name")]
            if names := untold({obj: set(described(obj)) for obj in objects}):
                return _refused(names), None
        return None, None

    return (yield from bpp.plan_mutator(plan, process))


def _is_of(obj: Any, detector: Any, devices: Sequence[Any]) -> bool:
    """Tell whether something is a detector, a part of it, or what it is a part of."""
    while obj is not None:
        if obj is detector or any(obj is device for device in devices):
            return True
        obj = getattr(obj, "parent", None)
    return False


def _noted(msg: Msg, bundle: dict[Any, set[str]]) -> MsgGenerator[Any]:
    """Read, and note what is read; where the plan is only looked at, what is described."""
    reading = yield msg
    keys = described(msg.obj) if reading is None else reading
    if keys or reading is not None:
        bundle[msg.obj] = set(keys)
    return reading


def _refused(names: Sequence[str], saved: Msg | None = None) -> MsgGenerator[None]:
    if saved is not None:  # the event is begun
        yield Msg("drop", run=saved.run)
    raise SettingsError(
        f"Frames of {', '.join(names)} at another exposure were to go into a run that is open "
        "already, and has the exposure of a stream once. Wrap the whole run, or make the exposure "
        "a reading of the detector (ophyd: "
        '`det.cam.kind = det.cam.acquire_time.kind = "normal"`).'
    )
