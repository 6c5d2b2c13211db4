"""Scans and counts that read the denoised numbers of each point into the same run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
from bluesky.protocols import NamedMovable, Readable, Reading
from bluesky.utils import Msg, MsgGenerator, get_hinted_fields

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.plans.checks import check_detectors, check_stream
from bluesky_denoise.plans.exposure_values import tried_wrapper
from bluesky_denoise.plans.exposures import exposure_signal, keep_exposures_wrapper, with_exposures
from bluesky_denoise.plans.positions import read_positions
from bluesky_denoise.plans.reference import ReferencePoints, reference_points

__all__ = [
    "denoised_count",
    "denoised_per_shot",
    "denoised_per_step",
    "denoised_scan",
    "plan_metadata",
    "read_denoised",
    "shown_in_wrapper",
    "shown_with_references",
]

Readings = Mapping[str, Reading]


def read_denoised(
    denoised: DenoisedSignals, motors: Sequence[Any] = (), *, stream: str = "signals"
) -> MsgGenerator[Readings]:
    """Wait for the result of the event that was saved last, and read it (a stub).

    Parameters
    ----------
    denoised :
        The signals.
    motors :
        Their positions are read at once and saved with the numbers, so that the stream plots
        alone.
    stream :
        Where the reading goes; not ``"primary"``, which has the frames.

    Returns
    -------
    dict
        The readings, by data key; empty where the plan is only looked at.

    Raises
    ------
    SettingsError
        If the stream has a name that the denoiser's have, ``denoised`` or ``denoised_...``.
    """
    check_stream(stream)
    with denoised.one_stream():
        positions = yield from read_positions(motors)
        # A pause while it waits must not take the frame again.
        yield from bps.checkpoint()
        return (yield from bps.trigger_and_read([denoised, *positions], stream))


def denoised_per_step(
    denoised: DenoisedSignals,
    *,
    stream: str = "signals",
    reference: ReferencePoints | None = None,
) -> Callable[..., MsgGenerator]:
    """Return a ``per_step`` for the scans of `bluesky.plans`.

    Parameters
    ----------
    denoised :
        Read after each point, with the motors.
    stream :
        Where the denoised numbers go.
    reference :
        Which points are taken with the full exposure too.

    Raises
    ------
    SettingsError
        At once, if the stream has a name that the denoiser's have.

    Examples
    --------
    >>> RE(grid_scan([det], x, 0, 1, 5, y, 0, 1, 5, per_step=denoised_per_step(denoised)))
    """
    check_stream(stream)

    def per_step(
        detectors: Sequence[Any],
        step: Any,
        pos_cache: Any,
        take_reading: Callable[..., MsgGenerator] | None = None,
    ) -> MsgGenerator:
        if not isinstance(step, Mapping):  # `log_scan` gives a motor and its position
            step, pos_cache = {step: pos_cache}, {step: None}
        yield from bps.one_nd_step(detectors, step, pos_cache, take_reading)
        readings = yield from read_denoised(denoised, list(step), stream=stream)
        if reference is not None:
            yield from reference.after_point(detectors, step, readings)

    return per_step


def denoised_per_shot(
    denoised: DenoisedSignals,
    *,
    stream: str = "signals",
    reference: ReferencePoints | None = None,
) -> Callable[..., MsgGenerator]:
    """Return a ``per_shot`` for `bluesky.plans.count`.

    Parameters
    ----------
    denoised :
        Read after each shot.
    stream :
        Where the denoised numbers go.
    reference :
        Which shots are taken with the full exposure too.

    Raises
    ------
    SettingsError
        At once, if the stream has a name that the denoiser's have.
    """
    check_stream(stream)

    def per_shot(detectors: Sequence[Any]) -> MsgGenerator:
        yield from bps.one_shot(detectors)
        readings = yield from read_denoised(denoised, stream=stream)
        if reference is not None:
            yield from reference.after_point(detectors, {}, readings)

    return per_shot


def denoised_count(
    detectors: Sequence[Readable],
    num: int | None = 1,
    delay: Any = 0.0,
    *,
    denoised: DenoisedSignals,
    reference_every: int | None = None,
    reference_s: float | None = None,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Count, and read the denoised numbers of each shot into the same run.

    Parameters
    ----------
    detectors, num, delay, md :
        As `bluesky.plans.count` has them.
    denoised :
        The signals; they go into the stream ``signals``.
    reference_every, reference_s :
        As :func:`denoised_scan` has them.

    Raises
    ------
    SettingsError
        As :func:`denoised_scan` does.
    """
    check_detectors(denoised, detectors)
    reference = reference_points(denoised, reference_every, reference_s)
    plan = bp.count(
        detectors,
        num,
        delay,
        per_shot=denoised_per_shot(denoised, reference=reference),
        md={"plan_name": "denoised_count", **(md or {})},
    )
    return (yield from shown_with_references(plan, detectors, reference))


def denoised_scan(
    detectors: Sequence[Readable],
    *args: NamedMovable | Any,
    num: int | None = None,
    denoised: DenoisedSignals,
    reference_every: int | None = None,
    reference_s: float | None = None,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan, and read the denoised numbers of each point into the same run.

    Frames and motors go into the stream ``primary``, denoised numbers and motors into
    ``signals``, which the start document hints as the one to show.

    Parameters
    ----------
    detectors, *args, num, md :
        As `bluesky.plans.scan` has them.
    denoised :
        The signals.
    reference_every :
        At the first and then each n-th point a full exposure too, in the stream
        ``reference``; how well the denoised frame agrees with it goes into the stream
        ``agreement``. The denoiser must be set to denoise ``reference`` as well.
    reference_s :
        The full exposure, seconds; no shorter than that of the other frames.

    Raises
    ------
    SettingsError
        If no detector is the one that is denoised, the stream ``primary`` is not, or
        references are asked for that cannot be had, or would be shorter than other frames.

    Examples
    --------
    >>> RE(denoised_scan([det], motor, -1, 1, 21, denoised=denoised))
    """
    check_detectors(denoised, detectors)
    reference = reference_points(denoised, reference_every, reference_s)
    plan = bp.scan(
        detectors,
        *args,
        num=num,
        per_step=denoised_per_step(denoised, reference=reference),
        md={"plan_name": "denoised_scan", **(md or {})},
    )
    return (yield from shown_with_references(plan, detectors, reference))


def plan_metadata(
    plan_name: str,
    detectors: Sequence[Readable],
    motor: NamedMovable,
    plan_args: Mapping[str, Any],
    md: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what `bluesky.plans` write into the start document of a scan of one motor."""
    fields, md = get_hinted_fields(motor), dict(md or {})
    hints = {"dimensions": [(fields, "primary")]} if fields else {}
    hints |= md.pop("hints", None) or {}
    return {
        "detectors": [detector.name for detector in detectors],
        "motors": [motor.name],
        "plan_args": {
            "detectors": list(map(repr, detectors)),
            "motor": repr(motor),
            **plan_args,
        },
        "plan_name": plan_name,
        "hints": hints,
        **md,
    }


def shown_in_wrapper(plan: MsgGenerator, stream: str = "signals") -> MsgGenerator:
    """Hint in the start document that tables and plots are to show another stream.

    Parameters
    ----------
    plan :
        A plan that hints its dimensions for the stream ``primary``.
    stream :
        The one to show, which must have the motors too.
    """

    def show(msg: Msg) -> Msg:
        hints = msg.kwargs.get("hints", {}) if msg.command == "open_run" else {}
        if "dimensions" not in hints:
            return msg
        dimensions = [(fields, stream) for fields, _ in hints["dimensions"]]
        return msg._replace(kwargs={**msg.kwargs, "hints": {**hints, "dimensions": dimensions}})

    return (yield from bpp.msg_mutator(plan, show))


def shown_with_references(
    plan: MsgGenerator, detectors: Sequence[Any], reference: ReferencePoints | None
) -> MsgGenerator:
    """Hint that the stream ``signals`` is to be shown; keep the exposures that references set."""
    plan = shown_in_wrapper(plan)
    if reference is not None:
        exposed = with_exposures(detectors)
        signals = [exposure_signal(detector) for detector in exposed]
        plan = tried_wrapper(plan, signals, reference.exposure_s)
        plan = reference.longer_wrapper(plan, exposed)
        plan = keep_exposures_wrapper(plan, exposed)
    return (yield from plan)
