"""Models that commands are given: loaded from files, and made to use a cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sk_cnncodes.exceptions import BackboneError

if TYPE_CHECKING:
    from sk_cnncodes.transformer import CNNCodeTransformer

# For the codes of a part, which `predict_proba` asks for after `predict`.
_PART_BYTES = 128 * 2**20


def load(path: Path) -> Any:
    """What a joblib or pickle file holds; of an ONNX file, an `OnnxClassifier`.

    Raises
    ------
    ValueError
        If it cannot be loaded; the message says why.
    """
    import joblib

    if not path.is_file():
        raise ValueError(f"model {str(path)!r}: no such file.")
    if path.suffix.lower() == ".onnx":
        from sk_cnncodes.onnx_classifier import OnnxClassifier

        return OnnxClassifier(path)
    try:
        return joblib.load(path)
    except BackboneError:
        raise
    except Exception as error:
        # Unpickling raises nearly anything on a damaged file.
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"model {str(path)!r}: cannot be loaded; it is damaged, truncated, no "
            f"joblib file, or needs other packages or versions ({reason})."
        ) from error


def code_transformers(model: Any) -> list[CNNCodeTransformer]:
    """The transformers of a fitted model, in the order of its parameters."""
    from sk_cnncodes.transformer import CNNCodeTransformer

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
    from sk_cnncodes.cache import CodeCache

    for transformer in code_transformers(model):
        transformer.set_params(
            cache=CodeCache(max_bytes=_PART_BYTES) if cache is None else cache,
            cache_layers=None,
            on_error="raise",
            verbose=False,
        )
        if device is not None:
            transformer.set_params(device=device)
