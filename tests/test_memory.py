import subprocess
import sys

import pytest

CODE = """
import resource, numpy as np
from bluesky_denoise.support.memory import keep_freed_memory
{call}
def work():
    return [np.ones(3_000_000) for _ in range(3)]
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call):
    code = CODE.format(call=call)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return int(told.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_freed_memory_is_not_fetched_anew():
    # 72 MB are 17,578 pages of 4 kB, or 34 of 2 MB, each time.
    assert page_faults("assert keep_freed_memory()") < 100
    assert page_faults("") > 500
