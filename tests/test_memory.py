import os
import subprocess
import sys
from pathlib import Path

import pytest

from bluesky_denoise.support.memory import with_large_pages

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


def test_the_environment_asks_for_large_pages_and_keeps_what_it_says():
    assert with_large_pages({"A": "1"}) == {"A": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    other = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    told = with_large_pages(other)["GLIBC_TUNABLES"]
    assert told == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    assert with_large_pages(refused := {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) == refused


def large_pages_are_asked_for():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    glibc = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else ""
    version = tuple(int(part) for part in glibc.removeprefix("glibc ").split(".") if part)
    return setting.exists() and "[madvise]" in setting.read_text() and version >= (2, 35)


@pytest.mark.skipif(not large_pages_are_asked_for(), reason="the kernel or glibc decides alone")
def test_a_process_gets_large_pages():
    code = "x = bytearray(1 << 26); print(open('/proc/self/smaps').read())"
    without = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    for environment, expected in ((without, False), (with_large_pages(without), True)):
        told = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            check=True,
            text=True,
        )
        flags = [line.split() for line in told.stdout.splitlines() if line.startswith("VmFlags")]
        assert any("hg" in line for line in flags) is expected
