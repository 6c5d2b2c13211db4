"""The regions of the settings: by data key and name, each name once, none under the mask."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from bluesky_denoise.columns import LONGEST_OF_ROI, check_columns
from bluesky_denoise.roi import ROI

__all__ = ["Rois", "by_data_key", "check_names", "check_seen", "is_hidden"]

Rois = dict[str, dict[str, ROI]]
"""By data key, ``"*"`` for the first one that is denoised, the regions by name."""


def by_data_key(rois: Any) -> Any:
    """Put regions that are named without a data key under ``"*"``."""
    if not isinstance(rois, dict):
        return rois
    flat = {k: v for k, v in rois.items() if _is_region(v)}
    nested = {k: v for k, v in rois.items() if k not in flat}
    return {**nested, "*": {**(nested.get("*") or {}), **flat}} if flat else rois


def _is_region(value: Any) -> bool:
    """Tell a region, were it misspelt, from regions by name."""
    return isinstance(value, ROI) or (
        isinstance(value, dict) and bool({"rows", "cols"} & value.keys())
    )


def check_names(rois: Rois) -> Rois:
    """Refuse names that cannot begin those of columns, or that two regions have."""
    for name in {name: None for regions in rois.values() for name in regions}:
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no name such as 'satellite_1'")
        owners = [key for key, regions in rois.items() if name in regions]
        if len(owners) > 1:
            own = [re.sub(r"\W", "_", f"{key}_{name}".removeprefix("*_")) for key in owners]
            raise ValueError(
                f"{name!r} is taken; call each region something else, such as "
                f"{' and '.join(map(repr, own))}"
            )
    check_columns([name for regions in rois.values() for name in regions], LONGEST_OF_ROI)
    return rois


def check_seen(rois: Rois, mask_of: Callable[[str], np.ndarray | None]) -> None:
    """Refuse regions of which a mask leaves nothing.

    Parameters
    ----------
    rois :
        The regions.
    mask_of :
        Returns the mask for a data key, (H, W), nonzero where invalid; or None.
    """
    for key, regions in rois.items():
        for name, roi in regions.items():
            if is_hidden(roi, mask_of(key)):
                raise ValueError(
                    f"all pixels of {name!r}, rows {roi.rows} and columns {roi.cols}, are "
                    "invalid by the mask; move it, or correct the mask (nonzero is invalid)"
                )


def is_hidden(roi: ROI, mask: np.ndarray | None) -> bool:
    """Tell whether a mask, (H, W), leaves no pixel of a region to be measured."""
    if mask is None:
        return False
    under = mask[slice(*roi.rows), slice(*roi.cols)]
    return bool(under.size and under.all())
