import re
import shlex
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer

from bluesky_denoise.training import commands
from bluesky_denoise.training.fit import FitSettings

PAGE = Path(__file__).parents[1] / "docs" / "training.md"


def test_the_code_on_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bluesky_denoise.training.fit.WINDOWS", 2)
    with h5py.File("scan.h5", "w") as file:
        file["frames"] = np.random.default_rng(0).poisson(3.0, (4, 64, 64))

    def quick(**changes):
        return replace(FitSettings(**changes), steps=1, pixels=32**2, sides_px=(32,))

    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        short = block.replace("import FitSettings, fit", "import fit")
        namespace.setdefault("FitSettings", quick)
        exec(compile(short, "training.md", "exec"), namespace)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "flat.safetensors",
        "mine.safetensors",
    ]
    names = [entry["name"] for entry in namespace["card"]["training"]["data"]]
    assert names == ["scan"]


def typed():
    lines = re.findall(r"^\$ (.*)$", PAGE.read_text(), re.M)
    return [line.replace("bluesky_denoise.training", "bluesky-denoise train") for line in lines]


@pytest.mark.parametrize("line", typed())
def test_the_commands_on_the_page_can_be_parsed(line):
    words = shlex.split(line)
    name, *arguments = words[words.index("bluesky-denoise") + 1 :]
    app = typer.Typer()
    app.command()(getattr(commands, name))
    command = typer.main.get_command(app)
    context = command.make_context(name, arguments)
    assert str(context.params["output"]).endswith(".safetensors")


def test_links_on_the_page_lead_somewhere():
    for link in re.findall(r"\]\(([\w./-]+\.md)\)", PAGE.read_text()):
        assert (PAGE.parent / link).is_file(), link
