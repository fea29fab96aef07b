"""Rows of valid images among damaged ones, through the transformer.

Prints a summary; fails with an AssertionError.
"""

from __future__ import annotations

import random
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sk_cnncodes import CNNCodeTransformer, ImageError, Preprocessing
from sk_cnncodes.images.decode import decode_content
from tests import networks
from tests.fuzz.image_seeds import encoded, photographs
from tests.fuzz.images import damaged_file

PREPROCESSING = Preprocessing(crop_size=(32, 32), scale=1 / 127.5, mean=(1, 1, 1))


def check_rows(count: int, folder: Path) -> str:
    """Check the codes of `count` damaged files, mixed with valid ones, row by row."""
    warnings.simplefilter("ignore")
    backbone = networks.save(networks.resnet(), folder / "net.onnx")
    rng = random.Random(0)
    alone = CNNCodeTransformer(
        backbone, preprocessing=PREPROCESSING, cache=None, n_jobs=1, batch_size=1
    )
    good = {f"good_{i}.png": encoded(p, "PNG") for i, p in enumerate(photographs())}
    files = [damaged_file(case) for case in range(count)]
    files += [(f"{i}_{n}", c) for i in range(count // 24) for n, c in good.items()]
    rng.shuffle(files)
    paths, expected = [], []
    for number, (name, content) in enumerate(files):
        path = folder / f"{number}_{name}"
        path.write_bytes(content)
        paths.append(str(path))
        try:
            pixels = np.asarray(decode_content(content, name, number).rgb)
        except ImageError:
            expected.append(np.full(16, np.nan, np.float32))
        else:
            expected.append(alone.transform([pixels])[0])
    wanted = np.stack(expected)
    bad = int(np.isnan(wanted[:, 0]).sum())
    for cache in (None, "memory"):
        for jobs, batch in ((1, 1), (2, 7), (3, 64)):
            codes = CNNCodeTransformer(
                backbone,
                preprocessing=PREPROCESSING,
                cache=cache,
                n_jobs=jobs,
                batch_size=batch,
                on_error="nan",
            ).transform(paths)
            np.testing.assert_allclose(codes, wanted, atol=1e-5)
    return f"{len(files)} rows, {bad} of them NaN, six times"


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        print(check_rows(int(sys.argv[1]), Path(folder)))
