"""The transformers of loaded models, and their settings in a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

# For the codes of one chunk, which `predict_proba` reuses after `predict`.
_PART_BYTES = 128 * 2**20


def code_transformers(model: Any) -> list[CNNCodeTransformer]:
    """The transformers of a fitted model, in the order of its parameters."""
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

    model = getattr(model, "best_estimator_", model)
    if isinstance(model, CNNCodeTransformer):
        return [model]
    if not hasattr(model, "get_params"):
        return []
    values = model.get_params(deep=True).values()
    found = [value for value in values if isinstance(value, CNNCodeTransformer)]
    return list({id(transformer): transformer for transformer in found}.values())


def set_up(
    model: Any, cache: Path | None, device: str | None, limit: dict[str, Any]
) -> None:
    """Configure the transformers of a model for a command.

    Without `cache`, codes are kept in memory; without `device`, the model's is used,
    and without `limit`, its `max_pixels`.
    """
    from sk_cnncodes.cache.code_cache import CodeCache

    for transformer in code_transformers(model):
        transformer.set_params(
            cache=CodeCache(max_bytes=_PART_BYTES) if cache is None else cache,
            cache_layers=None,
            on_error="raise",
            verbose=False,
            **limit,
        )
        if device is not None:
            transformer.set_params(device=device)
