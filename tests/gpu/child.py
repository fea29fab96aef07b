"""One part of the check in a process of its own: python -m tests.gpu.child OPTIONS."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path


def main(options: dict[str, str]) -> int:
    """Run the function of a part; record the end of its traceback if it fails."""
    from tests.gpu.context import Context, write_record

    out = Path(options["out"])
    context = Context(
        options["part"],
        out,
        Path(options["data"]),
        Path(options["work"]),
        bool(options["quick"]),
    )
    module, _, function = options["target"].partition(":")
    try:
        getattr(importlib.import_module(module), function)(context)
    except BaseException as error:
        traceback.print_exc()
        last = traceback.format_exc().strip().splitlines()[-7:]
        entry = {"part": context.part, "name": "failed", "ok": False}
        first = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
        write_record(out, {**entry, "error": first, "trace": last})
        return 1
    return 0


if __name__ == "__main__":
    code = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    sys.exit(code)
