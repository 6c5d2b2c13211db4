"""The documents: links lead somewhere, and quoted code names what there is."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from bluesky_denoise import DenoiseSettings
from bluesky_denoise.settings_errors import EXPECTED

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder in (".", "docs", "docs/decisions", "callbacks", "training_data")
    for path in (ROOT / folder).glob("*.md")
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def imports(code):
    """Yield the modules and names that a piece of code imports from this package."""
    code = re.sub(r"^!.*", "", code, flags=re.M)  # commands at the IPython prompt
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bluesky_denoise"):
            for alias in node.names:
                yield node.module, alias.name


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    links = re.findall(r"(?:^|\s|\()!?\[[^\]]+\]\(([^)#\s]+)", page.read_text())
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:examples|callbacks|benchmarks|profiles)/[\w./-]+)`", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_quoted_code_is_python_and_imports_what_there_is(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for module, name in imports(code):
            try:
                assert hasattr(import_module(module), name), f"{module} has no {name}"
            except AssertionError:
                import_module(f"{module}.{name}")


def test_every_setting_is_in_the_table_with_its_default_and_no_other():
    text = (ROOT / "docs/settings.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| *(.*?) *\|", text, re.MULTILINE))
    assert sorted(table) == sorted(DenoiseSettings.model_fields) == sorted(EXPECTED)
    told = {name: yaml.safe_load(default.strip("`")) for name, default in table.items()}
    for name, default in DenoiseSettings():
        if default:
            assert told[name] == (default[0] if isinstance(default, tuple) else default)


@pytest.mark.parametrize("name", ["callbacks/settings.yaml", "docs/settings.md"])
def test_templates_have_settings_that_there_are(name):
    keys = re.findall(r"^(?:# )?(\w+): ", (ROOT / name).read_text(), re.MULTILINE)
    assert "frames_directory" in keys
    assert set(keys) <= DenoiseSettings.model_fields.keys()


def test_the_ten_lines_of_the_readme_run(tmp_path):
    text = (ROOT / "README.md").read_text()
    code, printed = re.search(
        r"## Ten lines that work\n\n```python\n(.*?)```\n\n    (.*?)\n", text, re.DOTALL
    ).groups()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == printed
