"""Nothing grows: memory, open files, threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.programs import output_of
from tests.fuzz.pool import asked_cases

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc"
)

ROUNDS = """
from pathlib import Path
from tests.benchmarks.leaks import many_rounds
warnings.simplefilter("ignore", UserWarning)
growth = many_rounds(net, Path(folder), int(sys.argv[5]))
print(growth.mb, growth.handles, growth.threads)
"""

LONG = """
from tests.benchmarks.leaks import long_transform
count = int(sys.argv[5])
for cache in (None, CodeCache(max_bytes=100 * count)):
    growth = long_transform(net, cache, count)
    print(growth.mb, growth.handles, growth.threads)
"""


def test_rounds_of_fit_transform_and_clone(given: tuple[str, ...]) -> None:
    """Every fourth round has its own cache file; all of them used to stay open."""
    output = output_of(ROUNDS, *given, asked_cases(100))
    grown, handles, threads = output.split()
    print(output)
    assert float(grown) < 15
    # At most 16 caches stay open, with three files each; the first quarter opened six.
    assert int(handles) <= 3 * (16 - 6)
    assert int(threads) <= 0


def test_a_long_transform(given: tuple[str, ...]) -> None:
    for line in output_of(LONG, *given, asked_cases(8000)).splitlines():
        grown, handles, threads = line.split()
        print(line)
        assert float(grown) < 10
        assert int(handles) <= 0
        assert int(threads) <= 0
