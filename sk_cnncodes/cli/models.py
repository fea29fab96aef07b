"""Models that commands are given: their transformers, and what these use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sk_cnncodes.codes.transformer import CNNCodeTransformer

# For the codes of a part, which `predict_proba` asks for after `predict`.
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


def set_up(model: Any, cache: Path | None, device: str | None) -> None:
    """Make the transformers of a model use a cache and a device."""
    from sk_cnncodes.codes.cache import CodeCache

    for transformer in code_transformers(model):
        transformer.set_params(
            cache=CodeCache(max_bytes=_PART_BYTES) if cache is None else cache,
            cache_layers=None,
            on_error="raise",
            verbose=False,
        )
        if device is not None:
            transformer.set_params(device=device)
