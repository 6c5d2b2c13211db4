"""Shorter exposures for any plan, put back when it ends."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import bluesky.preprocessors as bpp
from bluesky.protocols import Readable
from bluesky.utils import Msg, MsgGenerator, make_decorator

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans.checks import check_above_zero, check_list, described
from bluesky_denoise.plans.descriptions import described_there
from bluesky_denoise.plans.exposure_values import (
    put_exposure_back,
    read_settled,
    read_values,
    set_exposures,
    set_values,
)
from bluesky_denoise.plans.own_runs import own_runs_wrapper
from bluesky_denoise.plans.prepared import prepared_wrapper
from bluesky_denoise.sources.exposure import seconds_per_unit
from bluesky_denoise.sources.frame_keys import is_frame_key

__all__ = [
    "ExposureReading",
    "exposure_readings",
    "exposure_signal",
    "keep_exposures_wrapper",
    "set_exposure_wrapper",
    "short_exposure_decorator",
    "short_exposure_wrapper",
    "summed_exposures_signal",
    "with_exposures",
]

# `exposure_signal` is the hook for detectors of other kinds; then areaDetector through
# ophyd, and ophyd-async (whose older releases call the driver `drv`).
_PATHS = ("exposure_signal", "cam.acquire_time", "driver.acquire_time", "drv.acquire_time")


def exposure_signal(detector: Any) -> Any:
    """Return the signal that sets the exposure time of a detector, in seconds.

    Parameters
    ----------
    detector :
        One with ``cam.acquire_time`` (areaDetector), ``driver.acquire_time`` (ophyd-async),
        or an attribute ``exposure_signal`` of its own.

    Raises
    ------
    SettingsError
        If it has none of them, or one in another unit.
    """
    found = _exposure_signal(detector)
    if found is None:
        raise SettingsError(
            f"{getattr(detector, 'name', detector)!r} has none of {', '.join(_PATHS)}. Give it an "
            "attribute `exposure_signal`, the signal that sets its exposure time in seconds."
        )
    _check_seconds(found, described(found))
    return found


def summed_exposures_signal(detector: Any) -> Any | None:
    """Return the signal that tells how many exposures areaDetector sums into an image, if any."""
    return getattr(getattr(exposure_signal(detector), "parent", None), "num_exposures", None)


def _check_seconds(signal: Any, specs: Mapping[str, Any]) -> None:
    for spec in specs.values():
        # A unit that is none of time is left to the user: it may well be a wrong entry.
        if seconds_per_unit(spec) not in (1.0, None):
            raise SettingsError(
                f"{signal.name} is in {spec['units']}; plans set exposures in seconds. Give the "
                "detector an attribute `exposure_signal`, a signal that takes seconds."
            )


def _exposure_signal(detector: Any) -> Any:
    for path in _PATHS:
        found = detector
        for attribute in path.split("."):
            found = getattr(found, attribute, None)
        if found is not None:
            return found
    return None


class ExposureReading:
    """The exposure time of a detector, to be read in the same event as its frames.

    A descriptor has the configuration of the first event only. Where the exposure changes
    within a run, each event must carry its own; and bluesky drops a part of a detector
    that is read together with the detector, which this is not.

    Parameters
    ----------
    detector :
        See :func:`exposure_signal`.
    """

    parent = None

    def __init__(self, detector: Any) -> None:
        self.signal = exposure_signal(detector)

    def __eq__(self, other: object) -> bool:
        # A stream must be read from equal objects at each point.
        return isinstance(other, ExposureReading) and other.signal is self.signal

    def __hash__(self) -> int:
        return hash((ExposureReading, id(self.signal)))

    @property
    def name(self) -> str:
        """That of the signal."""
        return self.signal.name

    @property
    def hints(self) -> dict[str, Any]:
        """None: it is no result."""
        return {}

    def read(self) -> Any:
        """Read the exposure time."""
        return self.signal.read()

    def describe(self) -> Any:
        """Describe the exposure time."""
        return self.signal.describe()

    def read_configuration(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


def with_exposures(detectors: Sequence[Readable]) -> list[Readable]:
    """Return the detectors that are exposed; others, such as an ion chamber, are only read.

    A detector that may have frames must have an exposure.

    Raises
    ------
    SettingsError
        If one of them has none, or nothing is exposed.
    """
    check_list(detectors)
    exposed = []
    for detector in detectors:
        specs = described(detector)
        # One of ophyd-async does not say what it reads before it runs, but a detector is triggered.
        only_read = not any(map(is_frame_key, specs.values())) if specs else _is_signal(detector)
        if not (only_read and _exposure_signal(detector) is None):
            exposure_signal(detector)
            exposed.append(detector)
    if not exposed:
        names = ", ".join(str(getattr(detector, "name", detector)) for detector in detectors)
        raise SettingsError(
            f"None of the detectors ({names or 'none'}) has an exposure that can be set; expected "
            "one whose frames are denoised."
        )
    return exposed


def _is_signal(device: Any) -> bool:
    return not hasattr(device, "trigger")


def exposure_readings(detectors: Sequence[Readable]) -> list[ExposureReading]:
    """Return the exposures to read with detectors, less those that they read themselves."""
    readings = zip(map(ExposureReading, detectors), detectors, strict=True)
    return [reading for reading, detector in readings if reading.name not in described(detector)]


def keep_exposures_wrapper(plan: MsgGenerator, detectors: Sequence[Readable]) -> MsgGenerator:
    """Put the exposure times back when a plan ends, also when it fails or is aborted.

    Parameters
    ----------
    plan :
        It may set the exposures.
    detectors :
        Those whose exposures are kept.

    Raises
    ------
    SettingsError
        If a detector has no exposure, or one that is not in seconds.
    """
    check_list(detectors)
    signals = [exposure_signal(detector) for detector in detectors]

    def kept() -> MsgGenerator:
        for signal in signals:
            _check_seconds(signal, (yield from described_there(signal)))
        before = yield from read_values(signals)
        # One in the other: if an exposure cannot be put back, the others still are.
        kept_each = plan
        for signal, value in zip(signals, before, strict=True):
            put_back = partial(put_exposure_back, signal, value)
            kept_each = bpp.finalize_wrapper(kept_each, put_back)
        return (yield from kept_each)

    return (yield from kept())


def short_exposure_wrapper(
    plan: MsgGenerator, detectors: Sequence[Readable], factor: float
) -> MsgGenerator:
    """Run a plan with shorter exposures, and put them back when it ends.

    The start documents of its runs get ``exposures``: for each detector ``full_s``,
    ``short_s`` and ``factor``. Where the ``stage_sigs`` of a detector set its exposure, that
    is the full one; it is set shorter again once the detector is staged.

    Parameters
    ----------
    plan :
        Any plan.
    detectors :
        Those to expose shorter; see :func:`exposure_signal`.
    factor :
        What the exposures are divided by, > 0: 20 for a twentieth.

    Raises
    ------
    SettingsError
        If the factor is not above 0, a detector has no exposure in seconds, or one of more than
        twice or less than half what it is set to; at the first frame, if it goes into a run that
        the plan has not opened itself, and its event does not have the exposure; where one is
        prepared, see Notes.

    Notes
    -----
    What a detector reads once it is set is recorded; a difference of more than 1 % is logged.

    The ``livetime`` that a detector of ophyd-async is prepared with is divided, too. In a run that
    is open, whose start document is written, it must be the full exposure that is recorded there;
    and a detector that is exposed as long as its trigger is high is refused.

    Examples
    --------
    >>> RE(short_exposure_wrapper(scan([det], motor, -1, 1, 21), [det], 20))
    """
    check_above_zero(factor=factor)
    return (yield from _exposed(plan, detectors, lambda full_s: (full_s / factor, factor)))


short_exposure_decorator = make_decorator(short_exposure_wrapper)
"""As :func:`short_exposure_wrapper`, for functions that return plans."""


def set_exposure_wrapper(
    plan: MsgGenerator, detectors: Sequence[Readable], exposure_s: float
) -> MsgGenerator:
    """Run a plan at one exposure, and put the exposures back when it ends.

    The start documents of its runs get ``exposures`` as in :func:`short_exposure_wrapper`, which
    tells what is refused, too.

    Parameters
    ----------
    plan :
        Any plan; it may change the exposures.
    detectors :
        Those to expose; see :func:`exposure_signal`.
    exposure_s :
        Seconds, > 0.
    """
    check_above_zero(exposure_s=exposure_s)
    # Tiled takes the type of a column from its first value: 1 s must not make integers of all.
    short_s = float(exposure_s)
    return (yield from _exposed(plan, detectors, lambda full_s: (short_s, full_s / short_s)))


def _exposed(
    plan: MsgGenerator,
    detectors: Sequence[Readable],
    shorten: Callable[[float], tuple[float, float]],
) -> MsgGenerator:
    """Run a plan at the exposures, and factors, that come of the full ones."""
    check_list(detectors)
    signals = [exposure_signal(detector) for detector in detectors]
    owners = [_owners(*pair) for pair in zip(detectors, signals, strict=True)]
    staged = [_when_staged(*pair) for pair in zip(owners, signals, strict=True)]

    def shortened() -> MsgGenerator:
        # What a detector is staged with is what it would expose without this plan.
        now = yield from read_values(signals)
        full = [n if s is None else s for n, s in zip(now, staged, strict=True)]
        short = [shorten(full_s)[0] for full_s in full]
        exposures: dict[str, dict[str, float]] = {}

        def note() -> MsgGenerator:
            """Read what is really exposed: detectors round, and the plan may have set others."""
            asked = [shorten(full_s) for full_s in full]
            taken = yield from read_settled(signals, [short_s for short_s, _ in asked])
            told = zip(detectors, full, asked, taken, strict=True)
            for detector, full_s, (short_s, factor), taken_s in told:
                if taken_s > 0 and not math.isclose(taken_s, short_s, rel_tol=1e-6):
                    factor = full_s / taken_s
                exposures[detector.name] = {"full_s": full_s, "short_s": taken_s, "factor": factor}

        def set_again(msg: Msg) -> tuple[MsgGenerator | None, MsgGenerator | None]:
            if msg.command == "open_run":
                return bpp.pchain(note(), bpp.single_gen(msg)), None
            if msg.command != "stage":
                return None, None
            # Whatever is staged: it may stage a detector in its turn.
            overridden = [i for i, s in enumerate(staged) if s is not None]
            return None, set_values(
                [signals[i] for i in overridden], [short[i] for i in overridden]
            )

        yield from set_exposures(signals, short)
        exposed = own_runs_wrapper(plan, detectors, owners, signals)
        exposed = prepared_wrapper(exposed, detectors, lambda full_s: shorten(full_s)[0], full)
        exposed = bpp.plan_mutator(exposed, set_again)
        return (yield from bpp.msg_mutator(exposed, lambda msg: _recorded(msg, exposures)))

    return (yield from keep_exposures_wrapper(shortened(), detectors))


def _recorded(msg: Msg, exposures: Mapping[str, Mapping[str, float]]) -> Msg:
    """Add exposures to the metadata of a run, unless a plan in between has set others."""
    if msg.command != "open_run":
        return msg
    inner = msg.kwargs.get("exposures", {})
    if not isinstance(inner, Mapping):
        return msg
    merged = {**exposures, **inner}
    for name in exposures.keys() & inner.keys():
        own = inner[name]
        if isinstance(own, Mapping) and {"full_s", "short_s"} <= own.keys():
            # What was the full exposure to it has been set by this plan.
            full_s = exposures[name]["full_s"]
            merged[name] = {**own, "full_s": full_s, "factor": full_s / own["short_s"]}
    return msg._replace(kwargs={**msg.kwargs, "exposures": merged})


def _owners(detector: Any, signal: Any) -> list[Any]:
    """Return the devices that may set a signal when they are staged, the last to do so first."""
    owners = []
    device = getattr(signal, "parent", None)
    while device is not None:
        owners.append(device)
        device = device.parent
    return owners if detector in owners else [*owners, detector]


def _when_staged(owners: Sequence[Any], signal: Any) -> float | None:
    """Return what staging sets a signal to, by `stage_sigs`; None: it leaves it."""
    for device in owners:
        for key, value in getattr(device, "stage_sigs", {}).items():
            if (getattr(device, key, None) if isinstance(key, str) else key) is signal:
                return float(value)
    return None
