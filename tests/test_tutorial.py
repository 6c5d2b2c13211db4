"""The tutorial, typed as it stands, by somebody who has never seen the package."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from test_profile import Prompt, profile_copy
from typer.testing import CliRunner

from bluesky_denoise.cli import app

DOCS = Path(__file__).parents[1] / "docs"
README = DOCS.parent / "README.md"


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / page).read_text(), re.S)


def statements(block):
    """Yield what is typed at once: commands, and statements on one line each."""
    lines = block.splitlines()
    code = "\n".join("" if line.startswith("!") else line for line in lines)
    for node in ast.parse(code).body:
        whole = node.lineno == node.end_lineno
        yield lines[node.lineno - 1] if whole else ast.unparse(node)
    yield from (line for line in lines if line.startswith("!"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_tutorial_needs_no_help_and_the_session_takes_what_is_typed_wrong(tmp_path):
    profile = profile_copy(tmp_path, "profile_simulated")
    prompt = Prompt(profile, cwd=str(tmp_path))
    assert "RE(short_scan())" in prompt.greeting
    assert "Traceback" not in prompt.greeting
    assert re.search(r"http://127.0.0.1:\d+/ui/browse/\?api_key=", prompt.greeting)
    said = {}
    *typed, leaving = blocks("tutorial.md", "python")
    for block in typed:
        if block.startswith("def "):
            said[block] = prompt.type(block)
            continue
        for line in statements(block):
            said[line] = prompt.type(line)
            assert "Traceback" not in said[line], said[line]
            assert "Error:" not in said[line], said[line]
    go_on(prompt)
    (data,) = re.findall(r"^/\S+$", prompt.type("print(DATA)"), re.M)
    assert Path(data).is_dir()
    assert leaving == "exit()\n"
    assert prompt.leave() == 0
    assert not Path(data).exists()

    scan = said["RE(short_scan())"]
    assert len(re.findall(r"^\|\s+\d+ \|", scan, re.M)) == 7
    assert max(map(len, scan.splitlines())) < 80
    assert "not ok" not in scan
    header = next(line for line in scan.splitlines() if "seq_num" in line)
    shown = next(line for line in blocks("tutorial.md", "text")[0].splitlines() if "seq" in line)
    assert header == shown  # the table on the page
    assert f"satellite_1_ | satellite_2_ |\n{header[:11]}" in scan
    for line, output in said.items():
        _, _, promised = line.partition("  # ")
        if re.match(r"[\[({\d]", promised):
            assert promised.partition(":")[0].split("{")[0] in output or promised in output, line
    (adaptive,) = (out for line, out in said.items() if line.startswith("RE(adaptive_exposure"))
    assert "total: satellite_1_total_exposure_s " in adaptive
    assert re.search(r"http://\S+/denoised/det_image\?api_key=", said["web()"])
    assert (tmp_path / "live.png").stat().st_size > 10_000
    assert (tmp_path / "lead.png").stat().st_size > 5_000
    listed = next(output for line, output in said.items() if line.startswith("!bluesky-denoise r"))
    assert len(re.findall("│ lead", listed)) == 1
    (exported,) = tmp_path.glob("*_denoised.nxs")
    assert exported.stat().st_size > 100_000


def go_on(prompt):
    """Look closer at the first run of the tutorial; type what is wrong; interrupt a scan."""
    assert "None" in prompt.type("print(denoise.wait(60))")
    full = prompt.type("run.metadata['start']['exposures']['det']")
    assert "'full_s': 1.0" in full
    assert "'short_s': 0.05" in full
    numbers = prompt.type("print(list(run['signals'].read()['denoised_raw_seq_num'].values))")
    assert str([*range(1, 8)]) in re.sub(r"np.int64\((\d+)\)", r"\1", numbers)

    wrong = prompt.type("RE(find_weak_peak([det], denoised, 'a', motor, -2, 2, 9, exposure_s=1))")
    assert "denoised has no ROI 'a'; it has satellite_1, satellite_2." in wrong
    assert wrong.count("Traceback") == 1  # IPython's
    assert prompt.type("print(det.cam.acquire_time.get())").strip().endswith("1.0")

    prompt.type("det.realtime = True")
    prompt.press_ctrl_c_twice("RE(short_scan(num=3, factor=0.02))")  # 50 s a frame
    assert "paused" in prompt.type("print(RE.state)")
    prompt.type("RE.abort()")
    assert prompt.type("print(det.cam.acquire_time.get())").strip().endswith("1.0")
    assert "abort" in prompt.type("print(cat[-1].metadata['stop']['exit_status'])")


@pytest.mark.parametrize("page", ["how-to-archive.md", "tutorial.md"])
def test_commands_on_the_pages_exist_with_their_options(page):
    lines = [line.lstrip("!") for kind in ("sh", "python") for block in blocks(page, kind)
             for line in block.splitlines()]  # fmt: skip
    commands = [line for line in lines if line.startswith("bluesky-denoise")]
    assert commands
    for command in commands:
        words = shlex.split(re.sub(r"\{.*?\}", "x", command), comments=True)[1:]
        result = CliRunner().invoke(app, [*words, "--help"])
        assert result.exit_code == 0, f"{command}: {result.output}"


def test_every_page_is_linked_from_another():
    pages = {path.name for path in DOCS.glob("*.md")}
    linked = set()
    for path in [README, *DOCS.glob("*.md")]:
        linked |= {Path(link).name for link in re.findall(r"\]\(([\w./-]+\.md)", path.read_text())}
    assert pages <= linked, pages - linked
