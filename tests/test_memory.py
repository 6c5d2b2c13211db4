import subprocess
import sys

import pytest

CODE = """
import resource, numpy as np
from bluesky_denoise.memory import keep_freed_memory
{call}
for _ in range(3):
    np.ones(2_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_freed_memory_is_not_fetched_anew():
    def faults(call):
        code = CODE.format(call=call)
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return int(told.stdout)

    kept = faults("assert keep_freed_memory()")
    # 16 MB are 3907 pages of 4 kB, or a few large ones, each time; kept ones are none.
    assert kept < 100
