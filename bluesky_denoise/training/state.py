"""The state of a fit on disk, from which it goes on after a kill."""

import io
from pathlib import Path
from typing import Any

import torch

from bluesky_denoise.errors import CheckpointError
from bluesky_denoise.support.whole_files import write_whole

__all__ = ["load_state", "save_state"]


def save_state(path: Path, made_with: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a state; a kill while it is written leaves the one before.

    Parameters
    ----------
    path : file to write
    made_with : settings and data, which must be the same to go on
    state : tensors, numbers, and lists and dictionaries of them

    Raises
    ------
    CheckpointError
        If it cannot be written.
    """
    data = io.BytesIO()
    torch.save({"made_with": made_with, "state": state}, data)
    try:
        write_whole({path: data.getbuffer()})
    except OSError as error:
        raise CheckpointError(
            f"The state {path} cannot be written: {error}. What was there is as it was."
        ) from error


def load_state(path: Path, made_with: dict[str, Any], device: str) -> dict[str, Any] | None:
    """Read a state; None if there is none.

    Raises
    ------
    CheckpointError
        If it is damaged, or was made with other settings or data.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, weights_only=True, map_location=device)
        before, state = found["made_with"], found["state"]
    except Exception as error:  # torch raises what the damage happens to cause
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); remove it to start afresh."
        ) from error
    changed = [
        key for key in sorted({*before, *made_with}) if before.get(key) != made_with.get(key)
    ]
    if changed:
        told = "; ".join(f"{key} {before.get(key)}, now {made_with.get(key)}" for key in changed)
        raise CheckpointError(
            f"{path} belongs to a run with other {told}. Remove it to start afresh."
        )
    return state
