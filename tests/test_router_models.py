"""What a router makes of the setting `model`, and how many threads it denoises with."""

import pytest
from live_path import settings

from bluesky_denoise.errors import ModelNotFound
from bluesky_denoise.router import DenoiseRouter


@pytest.mark.parametrize(
    "model", ["nowhere.module:Denoiser", "bluesky_denoise.testing:Nobody", "numpy:zeros"]
)
def test_a_factory_that_is_not_there_is_named(model):
    with pytest.raises(ModelNotFound, match=rf"Setting `model`, '{model}'"):
        DenoiseRouter(settings(model=model))


def test_an_error_within_a_factory_keeps_its_traceback():
    told = r"calling it raised TypeError: .* is called with no arguments\."
    with pytest.raises(ModelNotFound, match=told) as caught:
        DenoiseRouter(settings(model="numpy:zeros"))
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("model", [r"C:\w\my.safetensors", "C:/w/my.safetensors"])
def test_a_path_with_a_drive_is_no_factory(model):
    with pytest.raises(ModelNotFound, match="no weights"):
        DenoiseRouter(settings(model=model))


def test_threads_that_are_not_set_are_all_cores_but_one(monkeypatch):
    seen = []
    monkeypatch.setattr("torch.set_num_threads", seen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(6), raising=False)
    DenoiseRouter(settings(model="default", device="cpu"))
    DenoiseRouter(settings(model="default", device="cpu", threads=2))
    assert seen == [5, 2]
