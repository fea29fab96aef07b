"""The transformers of loaded models, and their settings in a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

# For the codes of one chunk, which `predict_proba` reuses after `predict`.
_PART_BYTES = 128 * 2**20


def different_transformers(found: list[CNNCodeTransformer]) -> list[CNNCodeTransformer]:
    """The fitted transformers that compute different codes; if none is fitted, all."""
    from sk_cnncodes.codes.persistence import is_fitted
    from sk_cnncodes.codes.saving import code_parameters

    fitted = [each for each in found if is_fitted(each)] or found
    different = {
        json.dumps(code_parameters(each.get_params(deep=False)), sort_keys=True): each
        for each in fitted
    }
    return list(different.values())


def set_up(
    transformers: list[CNNCodeTransformer],
    cache: Path | None,
    device: str | None,
    limit: dict[str, Any],
) -> None:
    """Configure the transformers of a model for a command.

    Without `cache`, codes are kept in memory; without `device`, the model's is used,
    and without `limit`, its `max_pixels`.
    """
    from sk_cnncodes.cache.code_cache import CodeCache

    shared = CodeCache(max_bytes=_PART_BYTES) if cache is None else cache
    for transformer in transformers:
        transformer.set_params(
            cache=shared,
            cache_layers=None,
            on_error="raise",
            verbose=False,
            **limit,
        )
        if device is not None:
            transformer.set_params(device=device)
