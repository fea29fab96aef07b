"""A cache that is too small: one warning, with the needed and the allowed size."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from sk_cnncodes import CacheWarning, CNNCodeTransformer, CodeCache
from sk_cnncodes.cache import code_cache, process_store
from tests.conftest import run_python

IMAGES = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3), np.uint8)
# About what the codes of all images need in a file, and what the cache may have.
NEEDED, ALLOWED = 0.5, 300_000


def figures(caught: list[Any]) -> list[tuple[float, float]]:
    """Needed and allowed MiB of each warning of a cache that is too small."""
    pattern = r"in use need ([\d.]+) MiB, ([\d.]+) MiB are allowed"
    texts = [str(w.message) for w in caught if w.category is CacheWarning]
    found = [re.search(pattern, text) for text in texts]
    return [(float(match[1]), float(match[2])) for match in found if match]


def transform_twice(cache: Any) -> list[tuple[float, float]]:
    codes = CNNCodeTransformer(cache=cache)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            codes.transform(IMAGES)
    return figures(caught)


def test_a_cache_in_memory_or_a_file(tmp_path: Path) -> None:
    for path in (None, tmp_path / "codes.sqlite3"):
        ((needed, allowed),) = transform_twice(CodeCache(path, max_bytes=ALLOWED))
        assert (needed, allowed) == (pytest.approx(NEEDED, abs=0.15), 0.3)
        assert transform_twice(CodeCache(path, max_bytes=10**7)) == []


def test_the_cache_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and temporary file together are too small."""
    memory = code_cache._ProcessCache()
    monkeypatch.setattr(memory, "max_bytes", 100_000)
    monkeypatch.setattr(process_store, "MAX_FILE_BYTES", 200_000)
    memory.clear()  # the file may have codes of other tests
    ((needed, allowed),) = transform_twice(memory)
    assert (needed, allowed) == (pytest.approx(NEEDED, abs=0.2), 0.3)


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_workers_tell_their_parent(backend: str, tmp_path: Path) -> None:
    """Nothing is transformed in the parent before the search has ended."""
    cache = CodeCache(tmp_path / "codes.sqlite3", max_bytes=ALLOWED)
    model = make_pipeline(CNNCodeTransformer(cache=cache), RidgeClassifier())
    labels = np.arange(len(IMAGES)) % 2
    with parallel_config(backend=backend):
        for _ in range(2):
            cross_val_score(model, IMAGES, labels, cv=3, n_jobs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model[0].transform(IMAGES[:2])
    ((needed, allowed),) = figures(caught)
    assert (needed, allowed) == (pytest.approx(NEEDED, abs=0.15), 0.3)


def test_what_workers_told_is_said_at_the_end() -> None:
    said = run_python(
        "from sk_cnncodes import CodeCache\n"
        "from sk_cnncodes.cache.shared_folder import tell_root\n"
        "assert tell_root('name', 'first') and tell_root('name', 'second')\n"
    )
    assert said.count("CacheWarning: second") == 1
    assert "first" not in said
