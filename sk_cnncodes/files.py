"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when all went well.

    On an error, and on Ctrl-C, what was written is removed, and a file that was at
    `path` before is as it was.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sk_cnncodes.files import replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "notes.txt")) as part:
    ...         _ = part.write_text("whole")
    ...     [place.name for place in Path(folder).iterdir()]
    ['notes.txt']
    """
    # The suffix stays: writers look at it.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
