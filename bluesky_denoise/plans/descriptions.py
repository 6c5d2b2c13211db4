"""What devices describe while a plan runs, those of ophyd-async too."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import bluesky.plan_stubs as bps
from bluesky.utils import MsgGenerator

from bluesky_denoise.plans.checks import described
from bluesky_denoise.sources.frame_keys import is_frame_key, is_part

__all__ = ["described_there", "images_per_event"]


def described_there(device: Any) -> MsgGenerator[Mapping[str, Any]]:
    """Return what a device describes (a stub); nothing where it cannot do so yet.

    That of a device of ophyd-async is nothing where the plan is only looked at.
    """
    if not inspect.iscoroutinefunction(getattr(device, "describe", None)):
        return described(device)
    tasks = yield from bps.wait_for([device.describe])
    return {} if not tasks or tasks[0].exception() else tasks[0].result()


def images_per_event(detector: Any, data_key: str | None) -> MsgGenerator[int]:
    """Return how many images a detector takes for an event (a stub); it must be staged.

    Parameters
    ----------
    detector :
        Its frames are described as (H, W), or (n, H, W).
    data_key :
        What the settings call the frames, of several; None: the first.
    """
    specs = yield from described_there(detector)
    frames = [key for key, spec in specs.items() if is_frame_key(spec)]
    small = [key for key, spec in specs.items() if is_frame_key(spec, 1) and key not in frames]
    images = [*frames, *small]
    meant = [key for key in images if data_key and is_part(key, data_key)]
    for key in (*meant, *images):
        return math.prod(size for size in specs[key]["shape"][:-2] if size)
    return 1
