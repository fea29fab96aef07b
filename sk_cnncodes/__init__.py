"""CNN codes for scikit-learn: images -> activations of pretrained networks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sk_cnncodes.backbone import Backbone
    from sk_cnncodes.cache import CacheInfo, CacheWarning, CodeCache
    from sk_cnncodes.catalogue import (
        CatalogueRow,
        download_backbone,
        list_backbones,
        load_backbone,
    )
    from sk_cnncodes.exceptions import (
        BackboneError,
        DeviceError,
        DownloadError,
        ExportError,
        ImageError,
        ImageNotFoundError,
        LayerError,
        PreprocessingError,
        SavedModelError,
    )
    from sk_cnncodes.export import to_onnx
    from sk_cnncodes.grids import layer_grid
    from sk_cnncodes.layers import Layer
    from sk_cnncodes.loading import SKOPS_TRUSTED_TYPES, load_model
    from sk_cnncodes.onnx_classifier import OnnxClassifier
    from sk_cnncodes.preprocessing import Preprocessing
    from sk_cnncodes.transformer import CNNCodeTransformer

__all__ = [
    "SKOPS_TRUSTED_TYPES",
    "Backbone",
    "BackboneError",
    "CNNCodeTransformer",
    "CacheInfo",
    "CacheWarning",
    "CatalogueRow",
    "CodeCache",
    "DeviceError",
    "DownloadError",
    "ExportError",
    "ImageError",
    "ImageNotFoundError",
    "Layer",
    "LayerError",
    "OnnxClassifier",
    "Preprocessing",
    "PreprocessingError",
    "SavedModelError",
    "download_backbone",
    "layer_grid",
    "list_backbones",
    "load_backbone",
    "load_model",
    "to_onnx",
]
__version__ = "0.1.0"

# Where each public name lives. They are imported when first used, so that
# OnnxClassifier works where scikit-learn and onnx are not installed.
_MODULES = {
    "backbone": ["Backbone"],
    "cache": ["CacheInfo", "CacheWarning", "CodeCache"],
    "catalogue": [
        "CatalogueRow",
        "download_backbone",
        "list_backbones",
        "load_backbone",
    ],
    "exceptions": [
        "BackboneError",
        "DeviceError",
        "DownloadError",
        "ExportError",
        "ImageError",
        "ImageNotFoundError",
        "LayerError",
        "PreprocessingError",
        "SavedModelError",
    ],
    "export": ["to_onnx"],
    "grids": ["layer_grid"],
    "layers": ["Layer"],
    "loading": ["SKOPS_TRUSTED_TYPES", "load_model"],
    "onnx_classifier": ["OnnxClassifier"],
    "preprocessing": ["Preprocessing"],
    "transformer": ["CNNCodeTransformer"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
