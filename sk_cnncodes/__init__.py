"""CNN codes for scikit-learn: images -> activations of pretrained networks."""

from sk_cnncodes.backbone import Backbone
from sk_cnncodes.catalogue import load_backbone
from sk_cnncodes.exceptions import (
    BackboneError,
    DeviceError,
    ImageError,
    ImageNotFoundError,
    LayerError,
    PreprocessingError,
)
from sk_cnncodes.layers import Layer
from sk_cnncodes.preprocessing import Preprocessing
from sk_cnncodes.transformer import CNNCodeTransformer

__all__ = [
    "Backbone",
    "BackboneError",
    "CNNCodeTransformer",
    "DeviceError",
    "ImageError",
    "ImageNotFoundError",
    "Layer",
    "LayerError",
    "Preprocessing",
    "PreprocessingError",
    "load_backbone",
]
__version__ = "0.1.0"
