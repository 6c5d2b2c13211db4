"""Weights in safetensors, each with a card (JSON) beside it that says what they are."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from bluesky_denoise.errors import CheckpointError, ModelNotFound
from bluesky_denoise.models import build_model
from bluesky_denoise.support.whole_files import check_place, write_whole

__all__ = [
    "WEIGHTS",
    "check_writable",
    "is_card",
    "load_checkpoint",
    "resolve_checkpoint",
    "save_checkpoint",
]

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weights."""


def resolve_checkpoint(path_or_name: str | Path) -> Path:
    """Find weights: a path that ends in ``.safetensors``, or the name of shipped ones.

    Raises
    ------
    ModelNotFound
        If there is no such file.
    """
    path = Path(path_or_name)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ModelNotFound(f"There are no weights at {path}.")
        return path
    shipped = WEIGHTS / f"{path_or_name}.safetensors"
    if path.name != str(path_or_name) or not shipped.is_file():
        names = sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))
        raise ModelNotFound(
            f"There are no weights {str(path_or_name)!r}; shipped are {', '.join(names)}. "
            "Other weights are given by the path of their .safetensors file."
        )
    return shipped


def save_checkpoint(model: nn.Module, path: str | Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write weights and their card.

    Parameters
    ----------
    model : network whose name in ``MODELS`` is ``card["model"]``
    path : ``.safetensors``; the card goes to the same path with ``.json``
    card : what the weights are; sha256 and package version are added

    Returns
    -------
    dict
        The card as written.

    Raises
    ------
    CheckpointError
        If they cannot be written; what was there before is left as it was.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"Weights are saved as .safetensors, not as {path.name!r}.")
    data = save({name: value.detach().cpu().contiguous() for name, value in _state(model)})
    written = dict(card)
    written["parameters"] = sum(p.numel() for p in model.parameters())
    written["sha256"] = hashlib.sha256(data).hexdigest()
    written["package_version"] = version("bluesky-denoise")
    text = json.dumps(written, indent=2) + "\n"
    try:
        write_whole({path: data, path.with_suffix(".json"): text.encode()})
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}. What was there is as it was."
        ) from error
    return written


def check_writable(path: Path) -> None:
    """Make the folder of weights, and refuse a place where they cannot be written.

    Raises
    ------
    CheckpointError
        If weights or card are a folder there, or no file can be made.
    """
    card = path.with_suffix(".json")
    if card.is_file() and not is_card(card):
        raise CheckpointError(
            f"{path} would have its card in {card.name}, which is there and is no card. Give "
            "another name, or move that file."
        )
    try:
        check_place(path, card)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}. Give a place where files can be made."
        ) from None


def is_card(path: Path) -> bool:
    """Tell whether a file is the card of weights."""
    try:
        found = json.loads(path.read_text())
        return isinstance(found, dict) and {"model", "sha256"} <= found.keys()
    except (OSError, ValueError):
        return False


def _state(model: nn.Module) -> list[tuple[str, Any]]:
    return list(model.state_dict().items())


def load_checkpoint(path_or_name: str | Path = "default") -> tuple[nn.Module, dict[str, Any]]:
    """Read weights, check them against their card, and build the network.

    Parameters
    ----------
    path_or_name : a ``.safetensors`` file, or the name of shipped weights

    Returns
    -------
    tuple
        The network in evaluation mode on the CPU, and the card.

    Raises
    ------
    ModelNotFound
        If there are no such weights, or their card names an unknown network.
    CheckpointError
        If card or weights are damaged, or do not belong together.
    """
    path = resolve_checkpoint(path_or_name)
    card_path = path.with_suffix(".json")
    try:
        card = json.loads(card_path.read_text())
        name, digest = str(card["model"]), str(card["sha256"])
    except FileNotFoundError:
        raise CheckpointError(f"Weights {path} have no card; expected {card_path.name}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The card {card_path} cannot be read ({error!r}); it needs `model` and `sha256`."
        ) from error
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise CheckpointError(
            f"Weights {path} have sha256 {found:.12}…, their card says {digest:.12}…: the file "
            "is damaged, or the card belongs to others."
        )
    model = build_model(name)
    try:
        model.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"Weights {path} do not fit network {name!r}: {error}") from error
    return model.eval(), card
