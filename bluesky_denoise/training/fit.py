"""The fit loop: pairs in, weights with a card out."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from bluesky_denoise.errors import CheckpointError, DenoiseError, SettingsError
from bluesky_denoise.models import MODELS, build_model
from bluesky_denoise.models.checkpoint import check_writable, load_checkpoint, save_checkpoint
from bluesky_denoise.models.photon_exchange import PhotonExchange
from bluesky_denoise.training.alone import alone_at
from bluesky_denoise.training.calibration import STEPS, TOLD, calibrate
from bluesky_denoise.training.data import Batch
from bluesky_denoise.training.files import read_file
from bluesky_denoise.training.gradients import Gradients
from bluesky_denoise.training.pairs import PairSource, RecordedPairs
from bluesky_denoise.training.paper import PaperRecipe
from bluesky_denoise.training.parallel import Ranks, process_group
from bluesky_denoise.training.progress import Progress, Seen
from bluesky_denoise.training.recipes import (
    FitSettings,
    PhotonRecipe,
    Recipe,
    TensorBatch,
)
from bluesky_denoise.training.split import Split, split
from bluesky_denoise.training.state import load_state, save_state
from bluesky_denoise.training.validation import LEGEND, HeldOut

__all__ = ["RECIPES", "FitSettings", "Progress", "fit"]

logger = logging.getLogger(__name__)

SAVE_EVERY = 250
"""Steps between two saved states and scores."""
WINDOWS = 24
"""Windows of held-out frames that are scored."""
RECIPES: dict[str, Callable[[FitSettings], Recipe]] = {
    "default": PhotonRecipe,
    "paper": PaperRecipe,
}
"""Name of a recipe -> what builds it."""


def fit(
    output: Path,
    sources: Sequence[Path | PairSource] = (),
    settings: FitSettings | None = None,
    *,
    held_out: Sequence[Path | PairSource] = (),
    start_from: str | Path | None = None,
    card: dict[str, object] | None = None,
    threads: int | None = None,
    device: str | None = None,
    mixed_precision: bool | None = None,
    workers: int = 0,
    report: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a network.

    A run that was stopped goes on from ``output`` with suffix ``.resume`` if that is
    there and was made with the same settings and data. Under ``torchrun`` each process
    draws its share of every batch, and the first one writes.

    Parameters
    ----------
    output : path of the weights, ``.safetensors``; the card is written beside it
    sources : HDF5 files (see `read_file`) or sources of pairs; none: simulated scenes only
    settings : defaults where None
    held_out : runs that are scored and never trained on, beside the last block of each source
        that is long enough (see `split`); without any, simulated scenes are scored
    start_from : path or name of weights to start from instead of random ones
    card : entries to add to the card
    threads : CPU threads of torch; None leaves them as they are
    device : ``"cpu"`` or ``"cuda"``; None: CUDA where there is one
    mixed_precision : compute in bfloat16, with weights and loss in float32; None: on a GPU
    workers : processes that draw batches ahead; 0: in this one. Weights differ in their last
        bits at most
    report : called after each step, and while error bars are fitted, in the process that writes

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    SettingsError
        If a setting is out of range.
    FrameShapeError, FrameValueError
        If a file cannot be learnt from, or all held-out frames are dark.
    CheckpointError
        If the weights to start from are damaged, or belong to another network; if ``output``
        cannot be written, or the training diverges.
    """
    settings = settings or FitSettings()
    _check_settings(settings)
    if output.suffix != ".safetensors":
        raise CheckpointError(f"Weights are saved as .safetensors, not as {output.name!r}.")
    if start_from is not None and Path(start_from).resolve() == output.resolve():
        raise SettingsError(
            f"{output} cannot be written over the weights that the training starts from: stopped, "
            "it could not go on. Give another name, or use `finetune`."
        )
    recipe = RECIPES[settings.recipe](settings)
    opened, kept = ([_opened(source) for source in group] for group in (sources, held_out))
    data = split(opened, kept, share=settings.held_out_share, gap_frames=settings.gap_frames)
    recipe.check(data.training)
    if threads is not None:
        torch.set_num_threads(threads)
    with process_group(device) as ranks, _written_by(ranks, output):
        mixed = ranks.device != "cpu" if mixed_precision is None else mixed_precision
        torch.manual_seed(settings.seed)
        model, parent = _fresh_model(settings.model, start_from)
        job = _Job(
            output, settings, recipe, data, start_from, parent, card or {}, ranks, mixed, workers
        )
        # The types of torch do not know that `to` takes a memory format.
        model.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        job.run(model, report)
    return output


@contextmanager
def _written_by(ranks: Ranks, output: Path) -> Iterator[None]:
    """Keep the place of the weights for the process that writes them."""
    if ranks.rank > 0:
        yield
        return
    check_writable(output)
    with alone_at(output):
        yield


def _check_settings(settings: FitSettings) -> None:
    within = {
        "steps >= 1": settings.steps >= 1,
        "pixels >= 1": settings.pixels >= 1,
        "a seed of 0 to 4294967295": 0 <= settings.seed < 2**32,
        "a learning rate that is finite and > 0": 0 < settings.learning_rate < math.inf,
        "a spread weight that is finite and >= 0": 0 <= settings.spread_weight < math.inf,
        f"a recipe of {sorted(RECIPES)}": settings.recipe in RECIPES,
    }
    missed = [what for what, met in within.items() if not met]
    if missed:
        raise SettingsError(f"{settings} cannot be fitted; expected {', '.join(missed)}.")


def _opened(source: Path | PairSource) -> PairSource:
    return read_file(Path(source)) if isinstance(source, str | Path) else source


def _digest(sources: Sequence[PairSource]) -> str:
    """Return a hash by which frames and masks are known again; simulated scenes have none."""
    found = blake2b(digest_size=8)
    for source in sources:
        if isinstance(source, RecordedPairs):
            found.update(" ".join(source.digests).encode())
            found.update(np.packbits(source.mask).data)
    return found.hexdigest()


def _fresh_model(
    name: str, start_from: str | Path | None
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Return a network to train, and the card of its weights if they are not random."""
    if start_from is None:
        return build_model(name), None
    model, found = load_checkpoint(start_from)
    if found["model"] != name:
        raise CheckpointError(
            f"Weights {start_from} belong to network {found['model']!r}, not {name!r}; "
            f"networks: {sorted(MODELS)}."
        )
    return model.train(), found


@dataclass(frozen=True)
class _Job:
    """All that a fit needs besides the network."""

    output: Path
    settings: FitSettings
    recipe: Recipe
    data: Split
    start_from: str | Path | None
    parent: dict[str, Any] | None
    """The card of the weights started from."""
    card: dict[str, object]
    ranks: Ranks
    mixed: bool
    workers: int

    def run(self, model: nn.Module, report: Callable[[Progress], None] | None) -> None:
        """Train to the last step, and write."""
        settings, ranks = self.settings, self.ranks
        writes = ranks.rank == 0
        average = copy.deepcopy(model).requires_grad_(False)
        optimiser = self.recipe.optimiser(model.parameters())
        first, seen = self._load(model, average, optimiser)
        held_out = HeldOut(self.data.held_out, WINDOWS, seed=settings.seed) if writes else None
        gradients = self._gradients(ranks.wrap(model), list(model.parameters()))
        for step, batch in self._batches(first):
            seen.add(batch)
            loss = gradients(TensorBatch.of(batch, ranks.device), step, self.recipe.stage(step))
            _descend(step, self.recipe, optimiser, model)
            # A short average at first, so that the random start is forgotten.
            blend = get_ema_multi_avg_fn(min(settings.average, (1 + step) / (10 + step)))
            blend(list(average.parameters()), list(model.parameters()), None)
            done, last = step + 1, step + 1 == settings.steps
            if held_out is not None and (last or done % SAVE_EVERY == 0):
                seen.validation.append((done, held_out.score(average, ranks.device)))
                self._check_finite(average, seen, done)
                if not last:
                    self._keep(done, seen, model, average, optimiser)
                    self._write(average, held_out, seen, done)
            if report is not None and writes:
                report(Progress(step, loss.item(), seen.latest))
        if not ranks.agree(average):
            raise DenoiseError("The processes ended with different weights; they are not usable.")
        if held_out is not None:
            stretch = self._calibrate(average, seen, report)
            self._check_finite(average, seen, settings.steps)
            self._write(average, held_out, seen, settings.steps, stretch)
            self._resume.unlink(missing_ok=True)

    def _gradients(self, model: nn.Module, parameters: list[nn.Parameter]) -> Gradients:
        """Return what computes a step; processes that wait for each other record nothing."""
        kind = torch.device(self.ranks.device).type

        def loss(batch: TensorBatch, step: int) -> Tensor:
            with torch.autocast(kind, torch.bfloat16, enabled=self.mixed):
                return self.recipe.loss(model, batch, step)

        alone = kind == "cuda" and self.ranks.number == 1
        record = alone and self.recipe.stage(0) is not None
        return Gradients(loss, parameters, record=record)

    def _batches(self, first: int) -> Iterator[tuple[int, Batch]]:
        steps = range(first, self.settings.steps)
        drawn = _Batches(self.recipe, self.data.training, self.ranks)
        loader = DataLoader(drawn, batch_size=None, sampler=steps, num_workers=self.workers)
        return zip(steps, loader, strict=True)

    @property
    def _series(self) -> list[str]:
        """Hashes of all series that these weights, and those started from, have seen a part of."""
        before = (self.parent or {}).get("training", {}).get("seen", [])
        return sorted({*before, *self.data.seen})

    @property
    def _resume(self) -> Path:
        return self.output.with_suffix(".resume")

    @property
    def _made_with(self) -> dict[str, Any]:
        return {
            "settings": vars(self.settings).copy(),
            "data": self.data.record,
            "frames or masks": _digest((*self.data.training, *self.data.held_out)),
            "mixed_precision": self.mixed,
            "processes": self.ranks.number,
            "parent": self.parent and self.parent["sha256"],
        }

    @property
    def _kept(self) -> str:
        """Say what a training that ends here leaves."""
        if not self._resume.exists():
            return "No state was saved before."
        return f"The state saved last is in {self._resume}, its weights in {self.output}."

    def _check_finite(self, average: nn.Module, seen: Seen, done: int) -> None:
        finite = all(bool(torch.isfinite(p).all()) for p in average.parameters())
        if finite and np.isfinite(seen.latest):
            return
        raise CheckpointError(
            f"The training has diverged: after {done} steps at rates up to "
            f"{self.settings.learning_rate:g} weights or estimates are not finite, and are not "
            f"written. {self._kept} Take a lower learning rate, and another name or no .resume."
        )

    def _keep(
        self,
        step: int,
        seen: Seen,
        model: nn.Module,
        average: nn.Module,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        state = {
            "step": step,
            "seen": vars(seen).copy(),
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
        }
        with self._loss_told(step):
            save_state(self._resume, self._made_with, state)

    def _load(
        self, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer
    ) -> tuple[int, Seen]:
        """Return the step to go on from, and what was seen before."""
        state = load_state(self._resume, self._made_with, self.ranks.device)
        if state is None:
            return 0, Seen.after(self.parent)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        logger.info("Going on from step %d of %d.", state["step"], self.settings.steps)
        return int(state["step"]), Seen(**state["seen"])

    def _calibrate(
        self, average: nn.Module, seen: Seen, report: Callable[[Progress], None] | None
    ) -> dict[str, float]:
        """Fit the error bars to fresh draws of the training sources, if there are any."""
        if not isinstance(average, PhotonExchange):
            return {}
        steps = self.settings.steps

        def draw(number: int) -> TensorBatch:
            batch = self.recipe.batch(steps + number, self.data.training, 0, 1)
            return TensorBatch.of(batch, self.ranks.device)

        def tell(share: float) -> None:
            if report is not None:
                report(Progress(steps - 1, np.nan, seen.latest, error_bars=share))

        # A short fit is not worth a long calibration.
        return calibrate(average, draw, min(STEPS, steps), min(TOLD, steps), tell)

    def _write(
        self,
        average: nn.Module,
        held_out: HeldOut,
        seen: Seen,
        steps: int,
        stretch: dict[str, float] | None = None,
    ) -> None:
        entries: dict[str, object] = {
            "model": self.settings.model,
            "training": {
                "steps": steps,
                "settings": vars(self.settings).copy(),
                "data": self.data.record,
                "seen": self._series,
                "mixed_precision": self.mixed,
                "processes": self.ranks.number,
            },
            "input": seen.counts(),
            "validation": {
                "legend": LEGEND,
                "data": held_out.names,
                "windows": len(held_out),
                **seen.scores(),
            },
        }
        if self.parent:
            entries["parent"] = {
                "weights": str(self.start_from),
                "sha256": self.parent["sha256"],
            }
        if stretch:
            entries["stretch"] = stretch
        with self._loss_told(steps):
            save_checkpoint(average, self.output, entries | self.card)

    @contextmanager
    def _loss_told(self, step: int) -> Iterator[None]:
        """Say what is lost if step ``step`` cannot be written."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} The training stopped after step {step}. {self._kept} Make room, and give "
                "the same command again: it goes on from a saved state."
            ) from error


@dataclass(frozen=True, eq=False)
class _Batches(Dataset):
    """The batch of each step, for the loader."""

    recipe: Recipe
    sources: Sequence[PairSource]
    ranks: Ranks

    def __getitem__(self, step: int) -> Batch:
        return self.recipe.batch(step, self.sources, self.ranks.rank, self.ranks.number)


def _descend(step: int, recipe: Recipe, optimiser: torch.optim.Optimizer, model: nn.Module) -> None:
    """Take a step along the gradients, if they are finite."""
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate(step)
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    if torch.isfinite(norm):
        optimiser.step()
    else:
        logger.warning("Step %d skipped: its gradient is not finite.", step)
