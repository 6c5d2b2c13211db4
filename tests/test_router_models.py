"""What a router makes of the setting `model`, and how many threads it denoises with."""

import re
from pathlib import Path

import bluesky.plans as bp
import pytest
from live_path import Camera, poisson, settings

from bluesky_denoise.errors import ModelNotFound
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.testing import DocumentCollector


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


def test_a_factory_that_makes_no_denoiser_is_told_what_lacks():
    told = "returned a dict without denoise, name, device, weights_sha256, card"
    with pytest.raises(ModelNotFound, match=told):
        DenoiseRouter(settings(model="builtins:dict"))


def test_the_denoiser_of_your_own_on_the_page_works(RE, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs/denoiser.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*class [^`]*)```", page)
    (tmp_path / "my_denoisers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    derived = DocumentCollector()
    rois = {"spot": {"rows": (2, 10), "cols": (2, 10)}}
    router = DenoiseRouter(settings(model="my_denoisers:RowMeans", rois=rois))
    router.subscribe(derived)
    func = poisson()
    RE(bp.count([Camera(name="det", func=func)]), router)
    (event,) = derived.by_name["event"]
    assert event["data"]["denoise_ok"], event["data"]["denoise_reason"]
    total = event["data"]["det_image_denoised_total"]
    assert total == pytest.approx(func.taken[-1].sum() / 0.5, rel=1e-5)


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
