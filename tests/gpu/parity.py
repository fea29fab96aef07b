"""Codes of the GPU beside codes of the CPU, of the same library in one process."""

from __future__ import annotations

import time

import numpy as np

from tests.gpu.context import Context

# Largest difference relative to the largest value; in float16 also the lowest cosine.
BARS = {"float32": 1e-3, "tf32": 1e-2, "float16": 1e-2}
LOWEST_COSINE = 0.9995
# More than one batch of 64: the last one is padded.
N_IMAGES, BATCH_SIZE = 70, 64


def parity(context: Context) -> None:
    """One network, which the name of the part says, in all precisions."""
    network = context.part.partition(":")[2]
    images = context.photographs(context.few(N_IMAGES, 11))
    batch_size = context.sizes(BATCH_SIZE)[0]
    start = time.perf_counter()
    expected = context.transformer(network, device="cpu").transform(images)
    context.record("cpu", network=network, seconds=time.perf_counter() - start)
    for precision in ("float32", "float16", "tf32"):
        start = time.perf_counter()
        transformer = context.transformer(
            network, precision=context.precision(precision), batch_size=batch_size
        )
        codes = transformer.transform(images)
        seconds = time.perf_counter() - start
        values = compared(codes, expected, BARS[precision])
        cosine_bar = LOWEST_COSINE if precision == "float16" else 0.999
        values["ok"] = values["ok"] and values["lowest_cosine"] >= cosine_bar
        context.record(precision, **values, seconds=seconds)
        alone = transformer.set_params(batch_size=1).transform(images[:8])
        values = compared(alone, codes[:8], BARS[precision])
        context.record(f"{precision}, one by one against batches", **values)


def compared(codes: np.ndarray, expected: np.ndarray, bar: float) -> dict[str, object]:
    """How codes differ from those expected, and whether that is within the bar."""
    largest = float(np.abs(expected).max())
    by_row = np.abs(codes - expected).max(axis=1) / largest
    lengths = np.linalg.norm(codes, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (codes * expected).sum(1) / np.maximum(lengths, 1e-30)
    # Each row is to be the nearest to its own image, or images were mixed up.
    distances = np.linalg.norm(codes[:, None] - expected[None], axis=2)
    own = distances[np.arange(len(codes)), np.arange(len(codes))]
    wrong = np.flatnonzero(~(own <= distances.min(axis=1) * 1.001 + 1e-3 * largest))
    differing = np.flatnonzero(~(by_row <= bar))
    return {
        "largest_difference": float(by_row.max()),
        "lowest_cosine": float(cosines.min()),
        "nan": int(np.isnan(codes).any(axis=1).sum()),
        "largest_value": largest,
        "differing_rows": differing[:20].tolist(),
        "wrong_rows": wrong[:20].tolist(),
        "ok": len(differing) == 0 and len(wrong) == 0,
    }
