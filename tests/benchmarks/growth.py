"""Whether memory grows with the number of images.

python -m tests.benchmarks.growth ../shared/data/caltech20 2000 100000

Codes of different small images go into a cache file; each number of images has a
process of its own.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

_GROWTH = """
import sys
from pathlib import Path
from sk_cnncodes import CNNCodeTransformer, CodeCache
from tests.benchmarks.timing import peak_memory
images = sorted(map(str, Path(sys.argv[1]).iterdir()))[: int(sys.argv[2])]
codes = CNNCodeTransformer(cache=CodeCache(sys.argv[3]))
codes.precompute(images)
print(peak_memory())
"""


def growth_table(source: Path, counts: list[int]) -> str:
    """Markdown: peak memory of `precompute` into a file, by number of images."""
    small = sorted(source.rglob("*.jpg"))[:50]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "images")
        folder.mkdir()
        contents = []
        for path in small:
            file = io.BytesIO()
            with Image.open(path) as opened:
                opened.convert("RGB").resize((96, 72)).save(file, "JPEG")
            contents.append(file.getvalue())
        for number in range(max(counts)):
            content = contents[number % len(contents)] + number.to_bytes(8, "big")
            (folder / f"{number:06}.jpg").write_bytes(content)
        lines = ["| images | peak memory (MB) |", "| ---: | ---: |"]
        for count in counts:
            command = [sys.executable, "-c", _GROWTH, str(folder), str(count)]
            command += [str(Path(temporary, f"{count}.sqlite3"))]
            answer = subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout
            lines.append(f"| {count:,} | {float(answer):.0f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(growth_table(Path(sys.argv[1]), [int(count) for count in sys.argv[2:]]))
