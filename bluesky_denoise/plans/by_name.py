"""Let plans take the denoised signals by name, as all plans of this package can be called."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from bluesky.utils import MsgGenerator

__all__ = ["denoised_by_name"]


def denoised_by_name(plan: Callable[..., MsgGenerator]) -> Callable[..., MsgGenerator]:
    """Let a plan whose second argument is `denoised` be given it by name among positions.

    ``plan([det], "roi", motor, -1, 1, 5, denoised=denoised)`` would otherwise take the ROI for the
    signals. The signature stays as it is: the queue server checks calls against it.
    """

    @wraps(plan)
    def called(*args: Any, **kwargs: Any) -> MsgGenerator:
        if len(args) > 1 and "denoised" in kwargs:
            args = args[0], kwargs.pop("denoised"), *args[1:]
        return (yield from plan(*args, **kwargs))

    return called
