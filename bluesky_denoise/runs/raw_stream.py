"""One raw stream that is denoised: its frames, their exposures and regions, its open events."""

import contextlib
import difflib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bluesky_denoise.columns import LONGEST_OF_KEY, check_columns
from bluesky_denoise.errors import DenoiseError, FrameShapeError, MaskError, SettingsError
from bluesky_denoise.roi import ROI
from bluesky_denoise.runs.derived_stream import DerivedEvent
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.settings_rois import is_hidden
from bluesky_denoise.sources.exposure import Exposure, find_exposure
from bluesky_denoise.sources.frame_keys import (
    TAKE_ONE,
    also_called,
    check_frame_shape,
    frame_keys,
    is_frame_key,
    is_part,
    under_names,
)

__all__ = ["RawStream", "Row", "Take", "open_stream"]

logger = logging.getLogger(__name__)


@dataclass
class Row:
    """A raw event on its way: what has come of it, and what still lacks."""

    arrived: float
    """On the clock `time.monotonic`, seconds."""
    event: Mapping[str, Any] | None = None
    waiting: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """By name of the frames, how to get them."""
    done: set[str] = field(default_factory=set)
    skipped: str = ""
    """Why it is not to be denoised."""
    result: DerivedEvent | None = None


@dataclass
class Take:
    """What has come of a stream since the scan last went back to an earlier point."""

    rows: dict[int, Row] = field(default_factory=dict)
    """Rows not emitted yet, by seq_num."""
    begun: dict[str, int] = field(default_factory=dict)
    """The highest seq_num that came: of events under ``""``, of stream datums by name."""
    emitted: int = 0
    """The highest seq_num that was emitted; rows are emitted in order."""

    def restart(self) -> None:
        """Forget all: the scan has gone back."""
        self.rows.clear()
        self.begun.clear()
        self.emitted = 0


@dataclass
class RawStream:
    """A raw stream that is denoised."""

    descriptor: Mapping[str, Any]
    """As it came."""
    named: Mapping[str, Any]
    """The descriptor with the names that the frames get for data keys."""
    raw_keys: dict[str, str]
    """By the name that its frames get, the raw data key."""
    regions: dict[str, Mapping[str, ROI]]
    """By name of the frames, their regions by name."""
    exposures: dict[str, Exposure]
    """By name of the frames; none where `refused` has a reason."""
    masks: dict[str, np.ndarray | None]
    """By name of the frames, (H, W) bool, True where invalid; None: nothing is masked."""
    rate_ranges: dict[str, tuple[float, float] | None]
    """By name of the frames, mean counts / s and pixel that are expected; None: any."""
    refused: dict[str, str]
    """By name of frames that an earlier descriptor of the stream had denoised, why not now."""
    take: Take = field(default_factory=Take)

    @property
    def rows(self) -> dict[int, Row]:
        """Rows not emitted yet, by seq_num."""
        return self.take.rows

    @property
    def expects_events(self) -> bool:
        """Whether a row is not whole without its event: one has more in it than references."""
        return any("external" not in spec for spec in self.descriptor["data_keys"].values())

    @property
    def names(self) -> list[str]:
        """The names of its frames."""
        return list(self.raw_keys)

    def row(self, seq_num: int, skipped: str = "") -> Row:
        """Return the row of an event, which is made when the first of it comes."""
        row = self.rows.setdefault(seq_num, Row(time.monotonic()))
        row.skipped = row.skipped or skipped
        return row

    def lacks(self, row: Row) -> list[str]:
        """Return the names of the frames of a row that have not been dealt with."""
        return [name for name in self.raw_keys if name not in row.done]


def open_stream(
    descriptor: Mapping[str, Any],
    settings: DenoiseSettings,
    motors: Sequence[str],
    problem: Callable[[str], None],
    known: Collection[str] = (),
) -> RawStream | None:
    """Find out what of a raw stream is to be denoised, before its first frame.

    Parameters
    ----------
    descriptor :
        The raw descriptor.
    settings :
        Streams, data keys, exposures, masks and regions.
    motors :
        What the plan moves.
    problem :
        Called with the reason for each data key that cannot be denoised.
    known :
        Names of frames that an earlier descriptor of the stream had denoised: where they cannot
        be now, their events are there all the same, with the reason.

    Returns
    -------
    RawStream or None
        None if there is nothing to denoise.
    """
    if descriptor["name"] not in settings.streams:
        return None
    found = frame_keys(descriptor, settings.data_keys)
    if not found and settings.data_keys is not None:
        _warn_of_nothing(descriptor, settings.data_keys)
    elif not found:
        _warn_of_no_size(descriptor)
    also = {name: also_called(descriptor, name, key) for name, key in found.items()}
    _warn_of_unknown(descriptor, settings, also)
    if found and settings.exposure_keys:
        _warn_of_no_exposure(descriptor, settings.exposure_keys)
    _warn_of_flat_regions(descriptor, settings, list(found))
    regions, exposures, refused = settings.rois_of(list(found), also), {}, {}
    masks = {name: settings.mask_of(name, *also[name]) for name in found}
    for name, key in found.items():
        spec = descriptor["data_keys"][key]
        try:
            check_frame_shape(spec, key)
            if settings.tiled_uri:
                _check_column(name)
            exposure = find_exposure(
                descriptor,
                key,
                extra_keys=settings.exposure_keys,
                default_s=settings.exposure_of(name, *also[name]),
                motors=motors,
            )
            _check_fit(name, spec["shape"], masks[name], regions[name])
            _warn_of_hidden(descriptor, name, masks[name], regions[name])
            _warn_of_no_background(descriptor, name, spec["shape"], regions[name])
        except DenoiseError as error:
            wrong_shape = isinstance(error, FrameShapeError)
            refused[name] = f"{error}{_where_frames_are(descriptor) if wrong_shape else ''}"
            problem(refused[name])
        else:
            exposures[name] = exposure
    kept = [name for name in found if name in exposures or name in known]
    if not kept:
        return None
    return RawStream(
        descriptor,
        under_names(descriptor, found),
        {name: found[name] for name in kept},
        {name: regions[name] for name in kept},
        exposures,
        {name: masks[name] for name in kept},
        {name: settings.rate_range_of(name, *also[name]) for name in kept},
        {name: refused[name] for name in kept if name in refused},
    )


def _check_column(name: str) -> None:
    """Refuse names that Tiled would refuse when all is denoised."""
    try:
        check_columns([name], LONGEST_OF_KEY)
    except ValueError as error:
        raise SettingsError(
            f"Its frames cannot have a column in Tiled: {error}. Give the detector a shorter or "
            "plainer name, or set `data_keys` to its own name, by which its frames go then."
        ) from None


def _check_fit(
    name: str, shape: Sequence[int | None], mask: np.ndarray | None, rois: Mapping[str, ROI]
) -> None:
    """Find out before the first frame that the mask or a region does not fit."""
    if len(shape) < 2:
        return
    height, width = shape[-2:]
    if not height or not width:
        return
    declared = height, width
    if mask is not None and mask.shape != declared:
        raise MaskError(
            f"The mask of {name!r} has shape {mask.shape}, its frames {declared}; "
            "they must agree. Set `mask` to one of the right shape."
        )
    for roi_name, roi in rois.items():
        roi.check(declared, roi_name)


def _warn_of_unknown(
    descriptor: Mapping[str, Any], settings: DenoiseSettings, also: Mapping[str, Sequence[str]]
) -> None:
    """Tell of frames that have no mask, ROI or exposure of the settings, which has others'."""
    for setting in ("mask", "rois", "exposure_s", "rate_range"):
        given = getattr(settings, setting)
        if not isinstance(given, dict) or "*" in given:
            continue
        for name, others in also.items():
            if given and not {name, *others} & given.keys():
                logger.warning(
                    "Run %.8s, stream %s: setting `%s` has nothing for %s; it has %s.",
                    *(descriptor["run_start"], descriptor["name"], setting),
                    *(" or ".join([name, *others]), ", ".join(given)),
                )


def _warn_of_no_exposure(descriptor: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Tell that a stream has none of the keys that are to hold exposures: one may be misspelt."""
    configurations = descriptor.get("configuration", {}).values()
    there = set(descriptor["data_keys"]).union(*(c.get("data", {}) for c in configurations))
    if not there & set(keys):
        near = difflib.get_close_matches(keys[0], there, 1)
        logger.warning(
            "Run %.8s, stream %s: neither events nor configuration have %s of `exposure_keys`%s; "
            "exposures are looked for without.",
            *(descriptor["run_start"], descriptor["name"], " or ".join(keys)),
            f", perhaps {near[0]} is meant" if near else "",
        )


def _warn_of_flat_regions(
    descriptor: Mapping[str, Any], settings: DenoiseSettings, names: Sequence[str]
) -> None:
    """Tell which of several frames have the regions that are set without a data key."""
    flat = settings.rois.get("*", {})
    if not flat or len(names) < 2:
        return
    first, *others = names
    logger.warning(
        "Run %.8s, stream %s: `rois` set without a data key (%s) are measured in %s alone, not in "
        "%s. Set them by data key or detector, each with a name of its own (docs/settings.md).",
        *(descriptor["run_start"], descriptor["name"], ", ".join(flat), first, ", ".join(others)),
    )


def _warn_of_hidden(
    descriptor: Mapping[str, Any], name: str, mask: np.ndarray | None, rois: Mapping[str, ROI]
) -> None:
    """Tell of regions that can have no numbers; the settings tell of those that they can name."""
    hidden = [roi_name for roi_name, roi in rois.items() if is_hidden(roi, mask)]
    if hidden:
        logger.warning(
            "Run %.8s, stream %s: all pixels of %s in %s are invalid by its mask; the numbers of "
            "such a region are NaN. Move it, or correct the mask (nonzero is invalid).",
            *(descriptor["run_start"], descriptor["name"], ", ".join(hidden), name),
        )


def _warn_of_no_background(
    descriptor: Mapping[str, Any], name: str, shape: Sequence[int | None], rois: Mapping[str, ROI]
) -> None:
    """Tell of regions that leave no pixel of the frame for their background."""
    whole = tuple((0, size) for size in shape[-2:])
    without = [key for key, roi in rois.items() if (roi.rows, roi.cols) == whole]
    if without := [key for key in without if rois[key].background_px]:
        logger.warning(
            "Run %.8s, stream %s: %s are whole frames of %s, which leaves nothing for their "
            "background; their intensities are NaN. Set `background_px` to 0 for the plain sum.",
            *(descriptor["run_start"], descriptor["name"], ", ".join(without), name),
        )


def _warn_of_nothing(descriptor: Mapping[str, Any], wanted: Sequence[str]) -> None:
    specs, devices = descriptor["data_keys"].values(), descriptor.get("object_keys", {})
    has_arrays = any("external" in spec or spec["dtype"] == "array" for spec in specs)
    has_detector = any(is_part(key, device) for key in wanted for device in devices)
    # A scan of a diode, or what an agent writes down, was never to be denoised.
    logger.log(
        logging.WARNING if has_arrays or has_detector else logging.INFO,
        "Run %.8s, stream %s goes on undenoised: it has none of the data keys or detectors %s "
        "that `data_keys` names; it has %s.%s",
        *(descriptor["run_start"], descriptor["name"], ", ".join(wanted)),
        *(", ".join(descriptor["data_keys"]), _where_frames_are(descriptor)),
    )


def _warn_of_no_size(descriptor: Mapping[str, Any]) -> None:
    """Tell of detectors whose frames are in files, and have no size."""
    specs = descriptor["data_keys"]
    detectors = [
        key
        for device, owned in descriptor.get("object_keys", {}).items()
        for key in owned
        if key in (device, f"{device}_image")
        and "external" in specs[key]
        and not is_frame_key(specs[key], 1)
    ]
    if detectors:
        logger.warning(
            "Run %.8s, stream %s goes on undenoised: the descriptor has %s with the shape %s; "
            "expected frames of 16 x 16 pixels or more. %s.",
            *(descriptor["run_start"], descriptor["name"], detectors[0]),
            *(list(specs[detectors[0]]["shape"]), TAKE_ONE),
        )


def _where_frames_are(descriptor: Mapping[str, Any]) -> str:
    frames = []
    for key, spec in descriptor["data_keys"].items():
        if is_frame_key(spec, 2):
            with contextlib.suppress(FrameShapeError):
                check_frame_shape(spec, key)
                frames.append(key)
    return f" Frames are in {', '.join(frames)}." if frames else ""
