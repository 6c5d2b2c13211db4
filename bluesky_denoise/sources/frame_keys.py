"""Which data keys of a descriptor hold frames, and under which names they are denoised."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from bluesky_denoise.errors import FrameShapeError

__all__ = [
    "RAW_KEY",
    "SIGMA",
    "TAKE_ONE",
    "also_called",
    "check_frame_shape",
    "frame_keys",
    "is_frame_key",
    "is_part",
    "is_sigma",
    "left_out",
    "not_found",
    "raw_key",
    "under_names",
]

RAW_KEY = "raw_data_key"
"""A data key of a derived stream says by this which raw one it was made from, if the names
differ."""

SIGMA = "_sigma"
"""Ends the data keys of standard errors."""

_LARGEST_MATRIX = 4
"""Arrays of so many rows and columns at most are no images."""

TAKE_ONE = (
    "A detector tells the size of its last frame: where region, binning or colours were changed "
    "since, or the IOC was started, take one before the scan"
)
"""What to do about a wrong shape."""


def is_part(key: str, device: str) -> bool:
    """Tell by its name whether a data key is of a device, or of one of its parts.

    ``det_image`` and ``det-sum``, as ophyd-async would have it, are of ``det``, ``det10`` is not of
    ``det1``.
    """
    return key.startswith(device) and not key[len(device) : len(device) + 1].isalnum()


def is_frame_key(spec: Mapping[str, Any], smallest: int = 16) -> bool:
    """Tell whether a data key holds detector frames of at least `smallest` pixels a side."""
    shape = [size for size in spec.get("shape") or () if size != 0]
    if spec.get("dtype") != "array" and "external" not in spec:
        return False
    sides = shape[-2:]
    return len(sides) == 2 and all(size is None or size >= smallest for size in sides)


def check_frame_shape(spec: Mapping[str, Any], data_key: str) -> None:
    """Refuse a data key that cannot hold frames.

    Raises
    ------
    FrameShapeError
        If its shape is declared and has fewer than two axes, more than one for the frames of a
        point, or colours as its last one.
    """
    shape = [size for size in spec.get("shape") or () if size != 0]
    if len(shape) < 2 and "external" not in spec:
        raise FrameShapeError(
            f"Data key {data_key!r} has shape {shape}; expected frames (H, W). Name in "
            "`data_keys` what holds images."
        )
    if sum(size != 1 for size in shape[:-2]) > 1:
        raise FrameShapeError(
            f"Data key {data_key!r} has shape {shape}; expected frames (H, W) or (n, H, W)."
        )
    if len(shape) > 2 and None not in shape[-3:] and shape[-1] <= 4 < min(shape[-3:-1]):
        raise FrameShapeError(
            f"Data key {data_key!r} has shape {shape}, which is colours; expected frames (H, W) or "
            "(n, H, W) of counts."
        )


def frame_keys(descriptor: Mapping[str, Any], wanted: Sequence[str] | None) -> dict[str, str]:
    """Return the raw data keys that are to be denoised, by the names that they get.

    Parameters
    ----------
    descriptor :
        The raw descriptor.
    wanted :
        Data keys, or names of devices. A device stands for its image key, whose frames then
        have the name of the device: ``det`` for the ``det_image`` of an areaDetector. A device
        with several images stands for all of them, under their own names; small ones, such as those
        of a strip detector, count where it has no others. None: every two-dimensional detector key
        of 16 x 16 pixels or more, under its own name.
    """
    specs = descriptor["data_keys"]
    if wanted is None:
        return {key: key for key, spec in specs.items() if is_frame_key(spec)}
    found = {key: key for key in wanted if key in specs}
    for device in wanted:
        if device in specs:
            continue
        images = _images_of(descriptor, device)
        if len(images) > 1:
            found |= {key: key for key in images}
        elif images and images[0] not in found:
            found[device] = images[0]
    order = list(wanted)  # the first has the regions that are set without a data key
    found_in_order = sorted(found, key=lambda n: order.index(n) if n in order else len(order))
    return {name: found[name] for name in found_in_order}


def _images_of(descriptor: Mapping[str, Any], device: str) -> list[str]:
    specs, owned = descriptor["data_keys"], descriptor.get("object_keys", {}).get(device, [])
    images = [key for key in owned if is_frame_key(specs[key])]
    return images or [key for key in owned if _is_small(specs[key])]


def _is_small(spec: Mapping[str, Any]) -> bool:
    """Tell whether a data key holds images of less than 16 pixels a side."""
    if is_frame_key(spec) or not is_frame_key(spec, 1):
        return False
    return max(side or 0 for side in spec["shape"][-2:]) > _LARGEST_MATRIX


def left_out(descriptor: Mapping[str, Any]) -> dict[str, str]:
    """Return why images of a raw stream are denoised only if they are named, by data key."""
    found = {}
    for key, spec in descriptor["data_keys"].items():
        shape = list(spec.get("shape") or ())
        if not _is_small(spec):
            continue
        try:
            check_frame_shape(spec, key)
        except FrameShapeError as error:
            found[key] = f"{error} No setting includes it (areaDetector: ColorMode Mono)."
        else:
            found[key] = (
                f"Data key {key!r} has shape {shape}; without `data_keys`, frames of 16 x 16 "
                "pixels or more are denoised. Name there all that is to be, this one too."
            )
    return found


def not_found(descriptor: Mapping[str, Any], wanted: Sequence[str]) -> list[str]:
    """Return which of the data keys or devices that are asked for have no frames in a stream."""
    return [name for name in wanted if not frame_keys(descriptor, [name])]


def also_called(descriptor: Mapping[str, Any], name: str, key: str) -> list[str]:
    """Return what else settings may call the frames that have a name: raw key, or detector."""
    devices = [
        device
        for device in descriptor.get("object_keys", {})
        if list(frame_keys(descriptor, [device]).values()) == [key]
    ]
    return [other for other in dict.fromkeys([key, *devices]) if other != name]


def under_names(descriptor: Mapping[str, Any], keys: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a raw descriptor that has the names of :func:`frame_keys` for data keys."""
    renamed = {key: name for name, key in keys.items() if name != key}
    if not renamed:
        return descriptor
    data_keys = {
        renamed.get(key, key): {**spec, **({RAW_KEY: key} if key in renamed else {})}
        for key, spec in descriptor["data_keys"].items()
    }
    object_keys = {
        device: [renamed.get(key, key) for key in owned]
        for device, owned in descriptor.get("object_keys", {}).items()
    }
    return {**descriptor, "data_keys": data_keys, "object_keys": object_keys}


def raw_key(name: str, spec: Mapping[str, Any]) -> str:
    """Return the raw data key that a data key of a derived stream was made from."""
    return spec.get(RAW_KEY, name)


def is_sigma(key: str, data_keys: Container[str]) -> bool:
    """Tell whether a data key of a derived stream holds the standard errors of another one.

    A detector may be called so, beside one that is called as the rest of its name is: its frames
    have an exposure.

    Parameters
    ----------
    key :
        The data key.
    data_keys :
        Those of the stream.
    """
    rate = key.removesuffix(SIGMA)
    return rate != key and rate in data_keys and f"{key}_exposure_s" not in data_keys
