"""What importing costs, beside scikit-learn, which every user of this library has.

python -m tests.benchmarks.imports
"""

from __future__ import annotations

import statistics
import subprocess
import sys

SKLEARN = "import sklearn"
PACKAGE = "import sklearn, sk_cnncodes"
# The package gets its classes when they are asked for.
TRANSFORMER = "import sklearn; from sk_cnncodes import CNNCodeTransformer"


def import_seconds(statement: str) -> float:
    """Seconds of a statement in a process of its own."""
    program = (
        "import time; start = time.perf_counter()\n"
        f"{statement}\n"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def import_table(rounds: int = 9) -> str:
    """Markdown: milliseconds, and ratios to scikit-learn, as medians over rounds."""
    taken: dict[str, list[float]] = {SKLEARN: [], PACKAGE: [], TRANSFORMER: []}
    for statement in taken:
        import_seconds(statement)  # reads the files, uncounted
    for _ in range(rounds):
        for statement, times in taken.items():
            times.append(import_seconds(statement))
    lines = [
        "| | ms | more than sklearn (ms) | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    for statement, times in taken.items():
        pairs = list(zip(times, taken[SKLEARN], strict=True))
        more = 1000 * statistics.median(one - base for one, base in pairs)
        ratio = statistics.median(one / base for one, base in pairs)
        milliseconds = 1000 * statistics.median(times)
        lines.append(
            f"| `{statement}` | {milliseconds:.0f} | {more:.0f} | {ratio:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(import_table())
