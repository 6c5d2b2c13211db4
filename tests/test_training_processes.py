"""Training that is killed, that runs in several processes, or in mixed precision."""

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.models import build_model
from bluesky_denoise.models.checkpoint import load_checkpoint
from bluesky_denoise.training.fit import FitSettings, fit
from bluesky_denoise.training.gradients import Gradients
from bluesky_denoise.training.recipes import PhotonRecipe, TensorBatch

QUICK = FitSettings(steps=6, pixels=2 * 64**2, sides_px=(64,))

FIT = """
import sys
from pathlib import Path
from bluesky_denoise.training import fit as fitting
from bluesky_denoise.training.fit import FitSettings, fit

fitting.SAVE_EVERY = 2
settings = FitSettings(steps=6, pixels=2 * 64**2, sides_px=(64,))
"""
STOPS = (
    FIT
    + """
def report(now):
    print(now.step, flush=True)
    if now.step == 4:
        sys.stdin.read()  # until it is killed

fit(Path(sys.argv[1]), settings=settings, threads=1, device="cpu", report=report)
"""
)
RANKS = (
    FIT
    + """
import hashlib, os, torch, weakref

class Watched(fitting._Job):
    def run(self, model, report):
        groups.append(weakref.ref(torch.distributed.group.WORLD))
        super().run(model, report)
        data = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes()
        Path(sys.argv[1], f"{self.ranks.rank}.sha").write_text(hashlib.sha256(data).hexdigest())

groups = []
fitting._Job = Watched
rank = os.environ["RANK"]
fit(Path(sys.argv[1], rank, "mine.safetensors"), settings=settings, threads=1, device="cpu")
assert groups.pop()() is None, "threads of the group abort a process that ends"
"""
)


def start(script, *arguments, launcher=(), **kwargs):
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **kwargs,
    )


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_killed_fit_ends_with_the_weights_of_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.fit.SAVE_EVERY", 2)
    script = tmp_path / "stops.py"
    script.write_text(STOPS)
    output = tmp_path / "killed.safetensors"
    with start(script, output, stdin=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.strip() == "4":
                break
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert output.with_suffix(".resume").exists()
    steps = []
    fit(output, settings=QUICK, threads=1, device="cpu", report=steps.append)
    assert [now.step for now in steps if not now.error_bars] == [4, 5]
    whole = fit(tmp_path / "whole.safetensors", settings=QUICK, threads=1, device="cpu")
    assert digest(output) == digest(whole)
    cards = [load_checkpoint(path)[1] for path in (output, whole)]
    assert cards[0] == cards[1]


@pytest.mark.thorough
def test_two_processes_end_with_the_same_weights_and_one_writes(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with start(script, tmp_path, launcher=launcher) as process:
        said, _ = process.communicate(timeout=150)
    assert process.returncode == 0, said
    first, second = ((tmp_path / f"{rank}.sha").read_text() for rank in (0, 1))
    assert first == second
    assert not (tmp_path / "1").exists()
    _, card = load_checkpoint(tmp_path / "0" / "mine.safetensors")
    assert card["training"]["processes"] == 2


@pytest.mark.thorough
def test_batches_drawn_ahead_give_the_same_weights(tmp_path):
    settings = FitSettings(steps=3, pixels=64**2, sides_px=(64,))
    here = fit(tmp_path / "here.safetensors", settings=settings, threads=1)
    ahead = fit(tmp_path / "ahead.safetensors", settings=settings, threads=1, workers=1)
    assert digest(here) == digest(ahead)


@pytest.mark.parametrize("name", ["photon_exchange", "irunet"])
def test_mixed_precision_computes_otherwise_and_learns_alike(tmp_path, name, monkeypatch):
    monkeypatch.setattr("bluesky_denoise.training.fit.WINDOWS", 2)
    settings = FitSettings(model=name, steps=1, pixels=32**2, sides_px=(32,))
    losses = {}
    for mixed in (False, True):
        seen = []
        output = tmp_path / f"{mixed}.safetensors"
        fit(
            output,
            settings=settings,
            threads=1,
            device="cpu",
            mixed_precision=mixed,
            report=lambda now, seen=seen: seen.append(now.loss),
        )
        losses[mixed] = np.array(seen)
        model, card = load_checkpoint(output)
        assert card["training"]["mixed_precision"] is mixed
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert (losses[True] != losses[False]).any()
    # bfloat16 has 8 bits: 0.4 % of a number.
    np.testing.assert_allclose(losses[True], losses[False], rtol=0.05, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_trains_in_mixed_precision(tmp_path):
    output = fit(tmp_path / "gpu.safetensors", settings=QUICK)
    _, card = load_checkpoint(output)
    assert card["training"]["mixed_precision"] is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_recorded_steps_are_those_of_single_kernels():
    recipe = PhotonRecipe(replace(QUICK, steps=12, sides_px=(64, 96)))
    found = {}
    for record in (False, True):
        torch.manual_seed(1)
        model = build_model("photon_exchange").to("cuda", memory_format=torch.channels_last)
        parameters = list(model.parameters())
        gradients = Gradients(partial(recipe.loss, model), parameters, record=record)
        found[record] = []
        for step in range(12):
            batch = TensorBatch.of(recipe.batch(step, (), 0, 1), "cuda")
            loss = gradients(batch, step, recipe.stage(step)).item()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
            found[record].append((loss, norm))
    # The order of sums differs from launch to launch, in the last of 24 bits.
    np.testing.assert_allclose(found[True], found[False], rtol=1e-3)
    assert len({loss for loss, _ in found[True]}) == 12


def test_a_device_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match="Device 'cuda:77' cannot be used"):
        fit(tmp_path / "a.safetensors", settings=QUICK, device="cuda:77")
