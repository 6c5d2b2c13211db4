import ast
from importlib import import_module
from pathlib import Path

import bluesky_denoise


def test_what_type_checkers_are_told_is_what_is_there():
    stub = ast.parse(Path(bluesky_denoise.__file__).with_suffix(".pyi").read_text())
    told = {
        name.asname: getattr(import_module(line.module), name.name)
        for line in stub.body
        if isinstance(line, ast.ImportFrom)
        for name in line.names
    }
    names = set(bluesky_denoise.__all__) - {"__version__"}
    assert told == {name: getattr(bluesky_denoise, name) for name in names}
