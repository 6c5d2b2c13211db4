"""Denoised numbers as ophyd signals: what a plan reads, waits for, and decides from."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, Self

from ophyd import Device
from ophyd.status import DeviceStatus

from bluesky_denoise.as_settings import SettingsLike, as_settings
from bluesky_denoise.errors import DenoiseError, DenoiseTimeout, SettingsError
from bluesky_denoise.newest_results import NewestResults, Result
from bluesky_denoise.raw_sums import RawSums
from bluesky_denoise.runs.last_event import LastEvent, RawEvent
from bluesky_denoise.runs.result_signals import (
    attribute_of,
    default_of,
    frames_of,
    result_components,
)
from bluesky_denoise.settings import DenoiseSettings

__all__ = ["DenoisedSignals", "DerivedDocuments"]

logger = logging.getLogger(__name__)


class DerivedDocuments(Protocol):
    """Where the documents of derived runs come from: a `DenoiseProcess`, or a dispatcher."""

    def subscribe(self, func: Callable[[str, Mapping[str, Any]], Any], /) -> int:
        """Call `func` with each document."""

    def unsubscribe(self, token: int, /) -> None:
        """Undo `subscribe`."""


class DenoisedSignals(Device):
    """The numbers of the newest denoised frame, for plans to read and to wait for.

    A trigger is done when the result of the last raw event of the running run is there, so
    it comes after the event has been saved: use the plans and stubs of
    :mod:`bluesky_denoise.plans`, or ``yield from trigger_and_read([denoised], "signals")``.
    Read in the same event as its detector it would be one point late, which is refused
    where no frame was saved before. Frames of streams that are not denoised have no numbers: where
    a dark frame, say, is all that has come since the last trigger, all numbers become NaN,
    ``denoise_ok`` False.

    For each data key ``<key>_raw_total`` (counts), ``<key>_denoised_total`` (counts / s),
    ``<key>_exposure_s`` and ``<key>_audit_deviance``. For each ROI ``<roi>_intensity`` and
    ``<roi>_intensity_error`` (counts / s, from raw counts; hinted), ``_background``
    (counts / s / px), ``_background_error``, ``_raw_sum``, ``_raw_sum_error`` and
    ``_denoised_sum`` (counts / s), ``_center_row``, ``_center_col``, ``_width_row``,
    ``_width_col`` and, with ``_error`` after each, their standard errors (px; NaN where the
    peak is not significant), and ``_significance``. And ``raw_seq_num``,
    ``latency_s``, ``denoise_ok``, ``denoise_audit``, ``denoise_reason``. Their names begin with
    the name of the device.

    Parameters
    ----------
    denoise :
        A `DenoiseProcess`, or anything that calls what is subscribed to it with the
        documents of derived runs, such as bluesky's ``RemoteDispatcher``.
    name :
        Name of the device.
    data_keys, rois :
        Which numbers there are; None: those of the settings of `denoise`. Of several data keys
        a run may have one alone: the numbers of the others are then NaN.
    streams :
        The raw streams that are denoised; None: those of the settings of `denoise`, or
        ``("primary",)``.
    timeout_s :
        How long a result may take, seconds.
    on_timeout :
        ``"raise"``: the trigger fails with `DenoiseTimeout`; ``"raw"``: intensities become
        the sums of raw counts over their regions less the background, ``denoise_ok`` False;
        ``"nan"``: all numbers become NaN, ``denoise_ok`` False. With ``"raw"`` the raw
        documents must be seen, ``RE.subscribe(denoised.raw)``.
    settings :
        Those of the denoiser; or a YAML file of them. None: the attribute `settings` of `denoise`.

    Raises
    ------
    SettingsError
        If it is not told which numbers there are, or lacks the settings for raw sums.

    Notes
    -----
    Where `denoise` is on another machine, the raw documents must be seen as well:
    ``RE.subscribe(denoised.raw)``.

    Examples
    --------
    >>> denoised = DenoisedSignals(denoise, rois=["satellite"])
    >>> RE(denoised_scan([det], motor, -1, 1, 21, denoised=denoised))
    """

    data_keys: tuple[str, ...] = ()
    """The frames whose totals there are."""
    rois: tuple[str, ...] = ()
    """Names of the ROIs."""
    _frames_of: Mapping[str, str]

    def __new__(
        cls,
        denoise: DerivedDocuments,
        *,
        data_keys: Iterable[str] | None = None,
        rois: Iterable[str] | None = None,
        settings: SettingsLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a class that has a component for each number."""
        settings = _settings_of(denoise, settings)
        if data_keys is None:
            data_keys = getattr(settings, "data_keys", None) or ()
        by_key = getattr(settings, "rois", None) or {}
        if rois is None:
            rois = [name for regions in by_key.values() for name in regions]
        data_keys, rois = _names(data_keys), _names(rois)
        namespace = result_components(data_keys, rois)
        namespace |= {"data_keys": data_keys, "rois": rois}
        namespace["_frames_of"] = frames_of(data_keys, by_key)
        namespace |= {"__doc__": cls.__doc__, "__module__": cls.__module__}
        return super().__new__(type(cls.__name__, (cls,), namespace))

    def __init__(
        self,
        denoise: DerivedDocuments,
        *,
        name: str = "denoised",
        data_keys: Iterable[str] | None = None,
        rois: Iterable[str] | None = None,
        streams: tuple[str, ...] | None = None,
        timeout_s: float = 10.0,
        on_timeout: Literal["raise", "raw", "nan"] = "raise",
        settings: SettingsLike | None = None,
    ) -> None:
        if not timeout_s > 0:
            raise SettingsError(f"timeout_s is {timeout_s!r}; expected more than 0 s.")
        if on_timeout not in ("raise", "raw", "nan"):
            raise SettingsError(f"on_timeout is {on_timeout!r}; expected 'raise', 'raw' or 'nan'.")
        settings = _settings_of(denoise, settings)
        if on_timeout == "raw" and settings is None:
            raise SettingsError(
                "on_timeout='raw' needs the regions, mask and exposures of the denoiser; give "
                "DenoisedSignals its `settings`."
            )
        super().__init__("", name=name)
        self.timeout_s, self.on_timeout = timeout_s, on_timeout
        self._denoise = denoise
        self.streams = _names(streams or getattr(settings, "streams", None) or "primary")
        """The raw streams whose results are followed."""
        self.raw: LastEvent
        """Subscribe it to the RunEngine, where `denoise` is on another machine, or
        `on_timeout` is ``"raw"``."""
        if settings is not None and on_timeout == "raw":
            self.raw = RawSums(settings.model_copy(update={"streams": self.streams}))
        else:
            self.raw = LastEvent(self.streams, getattr(settings, "data_keys", None))
        self._keys = {attribute_of(key): key for key in self._result_keys}
        keys = {key: self._frames_of[key] for key in self._result_keys if key in self._frames_of}
        self.frames_of = {attribute_of(key): of for key, of in keys.items()}
        """By number, the data key that it is of; those that any frames have are not in it."""
        self._lock = threading.RLock()
        self._newest = NewestResults(self.name, self.streams, self._result_keys, keys)
        self._waiting: list[tuple[RawEvent, DeviceStatus, threading.Timer]] = []
        self._wanted: RawEvent | None = None  # last, until its derived run has ended
        self._asked_for: RawEvent | None = None  # by the last trigger
        self._one: RawEvent | None = None  # triggers wait for frames of its stream alone
        self._token = denoise.subscribe(self._derived)

    def __repr__(self) -> str:
        # Ophyd's own lists every number, and plans put it into their metadata.
        return f"DenoisedSignals(name={self.name!r}, data_keys={self.data_keys}, rois={self.rois})"

    def destroy(self) -> None:
        """Follow the denoiser no more: it holds all signals that were ever made for it."""
        self._denoise.unsubscribe(self._token)
        super().destroy()

    @property
    def last_event(self) -> RawEvent | None:
        """The raw event whose result the next trigger waits for."""
        own = self.raw.value
        return own if own is not None else getattr(self._denoise, "last_event", None)

    @contextmanager
    def one_stream(self) -> Iterator[None]:
        """Let triggers wait for frames of that stream alone which had the last one.

        A suspender may take frames of another, such as dark ones, before the plan triggers.
        """
        self._one = self.last_event
        try:
            yield
        finally:
            self._one = None

    def _next_wanted(self) -> RawEvent | None:
        last, one = self.last_event, self._one
        if last is None or one is None or one.run_uid != last.run_uid:
            return last
        seen = (self.raw.of_stream, getattr(self._denoise, "last_event_of", None))
        found = next((event for of in seen if of and (event := of(*one[:2]))), last)
        # What has gone into another stream before stands, and what a suspender took does not.
        return one if found == one._replace(since="") else found

    def trigger(self) -> DeviceStatus:
        """Wait for the result of the last raw event; the status is done when it is there."""
        status = _ResultStatus(self)
        wanted = self._next_wanted()
        with self._lock:
            if wanted is None:
                reason = (
                    f"{self.name} was triggered before the running run had saved a frame. "
                    "Trigger it after the event of its detector, not in the same one: "
                    "`denoised_count`, `denoised_scan` and `denoised_per_step` do. If "
                    "frames have been taken, subscribe the denoiser to the RunEngine, or, "
                    f"where it is on another machine, `RE.subscribe({self.name}.raw)`."
                )
                _fail(status, DenoiseError(reason))
            elif wanted.since and wanted._replace(since="") == self._asked_for:
                self._show({"denoise_reason": f"not denoised: the frame of {wanted.since!r}"})
                status.set_finished()
            elif not self._answer(wanted, status):
                timer = threading.Timer(self.timeout_s, self._late, (wanted, status))
                timer.daemon = True
                self._waiting.append((wanted, status, timer))
                timer.start()
            self._wanted = wanted
            self._asked_for = wanted and wanted._replace(since="")
        return status

    def read(self) -> dict[str, dict[str, Any]]:
        """Read all numbers of one frame."""
        with self._lock:
            return super().read()

    def _answer(self, wanted: RawEvent, status: DeviceStatus) -> bool:
        """Finish a status if it can be known by now how it ends."""
        run = wanted[:2]
        newest = self._newest.results.get(run)
        if run in self._newest.missing:
            status.set_exception(SettingsError(self._newest.missing[run]))
        elif newest is not None and newest.answers(wanted):
            self._show(newest.data)
            status.set_finished()
        elif wanted.run_uid in self._newest.ended:
            reason = (
                f"{self.name}: event {wanted.seq_num} of run {wanted.run_uid:.8} will not be "
                f"denoised: the derived run ended ({self._newest.ended[wanted.run_uid]})."
            )
            self._do_without(wanted, status, DenoiseError(reason))
        elif getattr(self._denoise, "closed", False):
            reason = f"{self.name} waits for a denoiser that was closed; build a new one."
            self._do_without(wanted, status, DenoiseError(reason))
        else:
            return False
        return True

    def _late(self, wanted: RawEvent, status: DeviceStatus) -> None:
        """Give up waiting (on the thread of a timer)."""
        with self._lock:
            if status.done:
                return
            self._waiting = [item for item in self._waiting if item[1] is not status]
            newest = self._newest.results.get(wanted[:2])
            reason = (
                f"{self.name}: event {wanted.seq_num} of run {wanted.run_uid:.8}, stream "
                f"{wanted.stream!r}, was not denoised within {self.timeout_s} s. The newest result "
                f"is that of {f'event {newest.seq_num}' if newest else 'no event of this run'}. "
                "See the log for why, give `timeout_s` more time, or set `on_timeout='nan'`."
            )
            self._do_without(wanted, status, DenoiseTimeout(reason))

    def _do_without(self, wanted: RawEvent, status: DeviceStatus, error: DenoiseError) -> None:
        """End a trigger whose result will not come, as `on_timeout` says."""
        if self.on_timeout == "raise":
            _fail(status, error)
            return
        logger.warning("%s", error)
        summed: Mapping[str, Any] = {}
        if isinstance(self.raw, RawSums) and self.raw.value in (None, wanted):
            summed = self.raw.measure()
        self._show(
            {
                **summed,
                "raw_seq_num": wanted.seq_num,
                "denoise_ok": False,
                "denoise_reason": str(error),
            }
        )
        status.set_finished()

    def _show(self, data: Mapping[str, Any]) -> None:
        """Put the numbers of a derived event into the signals; NaN where it lacks one."""
        now = time.time()
        for attribute, key in self._keys.items():
            signal = getattr(self, attribute)
            value = data.get(key, default_of(key))
            signal.put(value, internal=True, timestamp=now)

    # From the derived runs -----------------------------------------------------------

    def _derived(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a derived run (on a thread)."""
        with self._lock:
            result = self._newest.note(str(name), doc)
            if self._wanted is not None and self._wanted.run_uid in self._newest.ended:
                self._wanted = None
            if result is not None and not self._waiting and not self._is_late(result):
                self._show(result.data)
            self._answer_all()

    def _is_late(self, result: Result) -> bool:
        """Tell whether a result is of a frame before the one that was waited for last."""
        if self._wanted is None:
            return False
        newest = self._newest.results.get(self._wanted[:2])
        return newest is not result or not result.answers(self._wanted)

    def _answer_all(self) -> None:
        """Finish the triggers whose end is known now."""
        still: list[tuple[RawEvent, DeviceStatus, threading.Timer]] = []
        for item in self._waiting:
            if self._answer(item[0], item[1]):
                item[2].cancel()
            else:
                still.append(item)
        self._waiting = still


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple; a text is one name, and not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def _settings_of(denoise: Any, settings: SettingsLike | None) -> DenoiseSettings | None:
    return getattr(denoise, "settings", None) if settings is None else as_settings(settings)


class _ResultStatus(DeviceStatus):
    """Says why it failed: bluesky puts its text into the stop document, and nothing else."""

    def __str__(self) -> str:
        error = self.exception(0) if self.done else None
        return str(error) if error else super().__str__()  # it begins with the name

    __repr__ = __str__


def _fail(status: DeviceStatus, error: DenoiseError) -> None:
    """Fail a status, and log why: bluesky's `FailedStatus` says no more than that it failed."""
    logger.warning("%s", error)
    status.set_exception(error)
