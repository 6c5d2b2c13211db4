import gc
import subprocess
import sys

import pytest

from bluesky_denoise.support.garbage import no_garbage

CYCLE = """
class Noisy:
    def __init__(self):
        self.me = self
    def __del__(self):
        print("finalized")

{first}
noisy = Noisy()
"""


def fail():
    assert not gc.isenabled()
    raise OSError("no model")


def test_garbage_is_looked_for_again_whatever_happens_meanwhile():
    before = gc.get_freeze_count()
    with pytest.raises(OSError, match="no model"), no_garbage():
        fail()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("", "finalized\n"),
        ("from bluesky_denoise.support import garbage; garbage.keep_garbage_at_exit()", ""),
    ],
)
def test_what_is_in_cycles_at_the_end_is_left_to_the_system(first, told):
    code = CYCLE.format(first=first)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == told
