"""Documents of raw runs in, documents of derived runs out."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

from bluesky_denoise.as_settings import SettingsLike, as_settings
from bluesky_denoise.documents import PAGES, Document, unpack_page
from bluesky_denoise.errors import ModelNotFound, SettingsError
from bluesky_denoise.frames import DenoiserLike
from bluesky_denoise.in_turn import InTurn
from bluesky_denoise.runs.derived_run import is_derived
from bluesky_denoise.runs.derived_stream import DerivedEvent
from bluesky_denoise.runs.raw_run import DenoisedRun
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.support.subscribers import Subscribers

__all__ = ["DenoiseRouter", "with_threads"]

logger = logging.getLogger(__name__)

_PROBE = np.ones((1, 16, 16), np.uint16)
_OF_A_DENOISER = ("denoise", "name", "device", "weights_sha256", "card")


class DenoiseRouter:
    """Denoise the frames of raw runs as their documents come, one object for each run.

    A plain callable that takes ``(name, doc)``: subscribe it to a RunEngine, feed it from
    a message bus, or from an archive. Runs may be nested or interleaved. It works in the
    calling thread, for one document after the other where several threads call it, as the
    monitors of a plan do; :class:`DenoiseProcess` keeps it out of the RunEngine's way.

    Parameters
    ----------
    settings :
        What to denoise, and where frames are saved; or a YAML file of it. Tiled is not written
        here.
    denoiser :
        None: the model that the settings name is loaded.

    Raises
    ------
    SettingsError, ModelNotFound, CheckpointError
        If it could not work.

    Notes
    -----
    Nothing that goes wrong with a document is raised: it is logged, and written into the
    derived run.

    Examples
    --------
    >>> router = DenoiseRouter(DenoiseSettings(exposure_s=1.0))
    >>> router.subscribe(print)
    0
    >>> RE.subscribe(router)
    0
    """

    def __init__(
        self, settings: SettingsLike | None = None, denoiser: DenoiserLike | None = None
    ) -> None:
        self.settings = as_settings(settings)
        self.denoiser = denoiser or _load(self.settings)
        if self.settings.save_sigma and self.denoiser.denoise(_PROBE, 1.0).sigma is None:
            raise SettingsError(
                f"Setting `save_sigma`: the denoiser {self.denoiser.name!r} gives no standard "
                "errors. Leave the setting out, or choose another `model`."
            )
        self._subscribers = Subscribers()
        self._runs: dict[str, DenoisedRun] = {}
        self._run_of: dict[str, str] = {}  # uid of a descriptor or resource -> of its run
        self._passed_over = False  # a derived run, which is told once
        self._in_turn = InTurn(lambda name, doc: self.feed([(name, doc)]))

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the results: goes into the start document of each derived run."""
        return {
            "version": version("bluesky-denoise"),
            "model": self.denoiser.name,
            "weights_sha256": self.denoiser.weights_sha256,
            "device": str(self.denoiser.device),
            "settings": self.settings.describe(),
        }

    def subscribe(self, func: Callable[[str, Mapping[str, Any]], Any], name: str = "all") -> int:
        """Call `func` with the documents of derived runs; returns a token."""
        return self._subscribers.subscribe(func, name)

    def unsubscribe(self, token: int) -> None:
        """Undo `subscribe`."""
        self._subscribers.unsubscribe(token)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document, and emit what follows from it."""
        self._in_turn(name, doc)

    def feed(self, documents: Iterable[Document]) -> None:
        """Take several documents at once; their frames are denoised in batches."""
        for name, doc in documents:
            self.accept(name, doc)
        self.flush()

    def accept(
        self,
        name: str,
        doc: Mapping[str, Any],
        *,
        skipped: str = "",
        known: DerivedEvent | None = None,
    ) -> None:
        """Take one document, and leave its frames for the next `flush`.

        Parameters
        ----------
        name, doc :
            The document.
        skipped :
            Why its frames are not to be denoised; goes into its events. Empty: they are.
        known :
            The result of an event, if it has been denoised before.
        """
        try:
            doc = doc.to_dict() if hasattr(doc, "to_dict") else doc  # of Tiled's `run.documents()`
            if name == "start":
                self._start(doc)
                return
            if name in PAGES:
                for item_name, item in unpack_page(name, doc):
                    self.accept(item_name, item, skipped=skipped)
                return
            run = self._route(name, doc)
            if run is None:
                return
            if name == "stop":
                self._end(run, doc)
            else:
                run.accept(name, doc, skipped=skipped, known=known)
        except Exception:
            logger.exception("A %s document could not be handled", name)

    def flush(self) -> None:
        """Denoise the frames that wait, and emit the events that they complete."""
        for run in list(self._runs.values()):
            run.flush()

    def go_back(self, descriptor: str) -> None:
        """Take what comes of a stream for points that are taken again, as after a pause.

        The numbers of what comes tell that, too, unless what came of these points was lost.

        Parameters
        ----------
        descriptor :
            The uid of a raw descriptor of the stream.
        """
        if run := self._runs.get(self._run_of.get(descriptor, "")):
            run.go_back(descriptor)

    def close(self, reason: str = "the denoiser was closed during the run") -> None:
        """End the derived runs that are still open, as failed."""
        for uid in list(self._runs):
            try:
                self._runs.pop(uid).close("fail", reason)
            except Exception:
                logger.exception("Run %.8s could not be ended", uid)
        self._run_of.clear()

    def _start(self, doc: Mapping[str, Any]) -> None:
        if is_derived(doc):
            logger.log(
                logging.INFO if self._passed_over else logging.WARNING,
                "Run %.8s is passed over: `original_run_uid` and `denoise` in its metadata say "
                "that it is of denoised frames. If it is a raw run, give these keys other names.",
                doc["uid"],
            )
            self._passed_over = True
            return
        self._runs[doc["uid"]] = DenoisedRun(
            doc, self.settings, self.denoiser, self.provenance, self._subscribers
        )

    def _route(self, name: str, doc: Mapping[str, Any]) -> DenoisedRun | None:
        """Return the run that a document belongs to; None where it is not followed."""
        if name in ("descriptor", "resource", "stream_resource"):
            # `run_start` is optional in a resource: then it is the youngest run's.
            uid = doc.get("run_start") or next(reversed(self._runs), "")
            if uid in self._runs:
                self._run_of[doc["uid"]] = uid
        elif name == "stop":
            uid = doc["run_start"]
        elif name in ("event", "stream_datum"):
            uid = self._run_of.get(doc["descriptor"], "")
        elif name == "datum":
            uid = self._run_of.get(doc["resource"], "")
        else:
            return None
        return self._runs.get(uid)

    def _end(self, run: DenoisedRun, doc: Mapping[str, Any]) -> None:
        del self._runs[run.uid]
        for key in [key for key, uid in self._run_of.items() if uid == run.uid]:
            del self._run_of[key]
        try:
            run.stop(doc)
        except Exception as error:
            run.close("fail", f"{type(error).__name__}: {error}")
            raise


def _load(settings: DenoiseSettings) -> DenoiserLike:
    """Load the model of the settings, or call the factory that they name."""
    module, _, factory = settings.model.partition(":")
    # What follows the drive of a Windows path is no name.
    if factory.isidentifier() and module.replace(".", "").isidentifier():
        return _made(module, factory)
    from bluesky_denoise.denoiser import Denoiser  # imports torch

    return Denoiser.load(settings.model, settings.device, threads=with_threads(settings).threads)


def _made(module: str, factory: str) -> DenoiserLike:
    where = f"Setting `model`, '{module}:{factory}'"
    try:
        make = getattr(import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ModelNotFound(f"{where}: {error}") from error
    try:
        made = make()
    except (ImportError, AttributeError, TypeError) as error:
        raise ModelNotFound(
            f"{where}: calling it raised {type(error).__name__}: {error}. It must return a "
            "denoiser, and is called with no arguments."
        ) from error
    if lacking := [name for name in _OF_A_DENOISER if not hasattr(made, name)]:
        raise ModelNotFound(
            f"{where}: it returned a {type(made).__name__} without {', '.join(lacking)}. "
            "docs/denoiser.md shows what a denoiser must have."
        )
    return made


def with_threads(settings: DenoiseSettings) -> DenoiseSettings:
    """Settle how many threads denoise: where nothing is set, all cores but the RunEngine's."""
    if settings.threads is not None:
        return settings
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 2
    return settings.model_copy(update={"threads": max(1, cores - 1)})
