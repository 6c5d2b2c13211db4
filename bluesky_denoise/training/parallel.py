"""One process or several: what ``torchrun`` has set up."""

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn

from bluesky_denoise.errors import SettingsError

__all__ = ["Ranks", "process_group"]


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is."""

    rank: int
    """0 for the one that writes."""
    number: int
    """How many there are."""
    device: str
    """Where this one computes."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over all processes."""
        if self.number == 1:
            return model
        # 1 x 1 kernels have the same layout either way, whatever their strides say.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        # Not every parameter takes part in every batch.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def agree(self, model: nn.Module) -> bool:
        """Tell whether all processes have the same weights, to the last bit."""
        if self.number == 1:
            return True
        mine = torch.cat([p.detach().flatten() for p in model.parameters()])
        first = mine.clone()
        distributed.broadcast(first, 0)
        same = torch.tensor([float(torch.equal(mine, first))], device=mine.device)
        distributed.all_reduce(same, distributed.ReduceOp.MIN)
        return bool(same.item())


@contextmanager
def process_group(device: str | None = None) -> Iterator[Ranks]:
    """Join the other processes of ``torchrun``, if there are any.

    Parameters
    ----------
    device : ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; None: CUDA where there is one, and with
        several processes the GPU of this one

    Raises
    ------
    SettingsError
        If the device cannot be used.
    """
    number = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and number > 1:
        device = f"cuda:{local}"
    _check(device)
    if number == 1:
        yield Ranks(0, 1, device)
        return
    if device != "cpu":
        torch.cuda.set_device(device)
    # Imported later, as `Ranks.wrap` does, this has the group as a default of its functions and
    # keeps it for good; threads of a group that is left at the end of Python abort the process.
    importlib.import_module("torch.distributed.nn")
    distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield Ranks(distributed.get_rank(), number, device)
    finally:
        distributed.destroy_process_group()


def _check(device: str) -> None:
    try:
        kind = torch.device(device).type
        if kind not in ("cpu", "cuda"):
            raise SettingsError(f"Device {device!r} cannot be used; expected cpu or cuda.")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"Device {device!r} cannot be used: {reason}") from None
