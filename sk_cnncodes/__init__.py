"""CNN codes for scikit-learn: images -> activations of pretrained networks."""

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
    ImageError,
    ImageNotFoundError,
    LayerError,
    PreprocessingError,
)
from sk_cnncodes.grids import layer_grid
from sk_cnncodes.layers import Layer
from sk_cnncodes.preprocessing import Preprocessing
from sk_cnncodes.transformer import CNNCodeTransformer

__all__ = [
    "Backbone",
    "BackboneError",
    "CNNCodeTransformer",
    "CacheInfo",
    "CacheWarning",
    "CatalogueRow",
    "CodeCache",
    "DeviceError",
    "DownloadError",
    "ImageError",
    "ImageNotFoundError",
    "Layer",
    "LayerError",
    "Preprocessing",
    "PreprocessingError",
    "download_backbone",
    "layer_grid",
    "list_backbones",
    "load_backbone",
]
__version__ = "0.1.0"
