"""Explanation: everything that determines the code of an image."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.base.files import atomic_write
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.cache import CodeCache
from sk_cnncodes.codes.digests import image_digest
from sk_cnncodes.codes.plan import CodePlan
from sk_cnncodes.images.decode import read_image
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.sources import describe_source
from sk_cnncodes.images.views import take_views

_TURNS = {
    1: "upright",
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored and turned by 180 degrees",
    5: "mirrored and turned by 90 degrees counter-clockwise",
    6: "turned by 90 degrees clockwise",
    7: "mirrored and turned by 90 degrees clockwise",
    8: "turned by 90 degrees counter-clockwise",
}


@public
@dataclass(frozen=True, repr=False)
class Explanation:
    """The code of one image, and everything that determines it.

    Returned by `CNNCodeTransformer.explain`.

    Attributes
    ----------
    source : str
        The image as named in error messages: its path, or what it is.
    format : str
        Format of the file and mode of its pixels, or "array" or "PIL image".
    size : (int, int)
        Width and height as stored, in pixels.
    orientation : int
        EXIF orientation that was undone, 1 to 8. 1 is upright.
    decode_scale : int
        1, 2, 4 or 8. A large JPEG is decoded at 1/`decode_scale` of its size.
    resized_size : (int, int)
        Height and width of the whole image after the resize, in pixels.
    crops : ndarray of uint8, shape (n_views, height, width, 3)
        The views: input of the network before normalisation.
    preprocessing : Preprocessing
    preprocessing_origin : str
        Where the preprocessing came from.
    backbone : str
        Path of the backbone's file.
    backbone_name : str or None
        Name in the catalogue; None if it has none.
    backbone_sha256 : str
    layer : str
        Name of the layer's tensor.
    layer_label : str
    layer_shape : tuple of int or None
        Without the batch dimension. None if only a stored graph is available.
    layer_rule : str
        Why this tensor is a layer.
    pooling : str
        The pooling used. Never "auto".
    norm : "l2" or None
    views : str
    precision, engine, device : str
        How the code is computed.
    from_cache : bool or None
        Whether the code was in the cache. None without a cache.
    code : ndarray of float32, shape (n_features,)
    """

    source: str
    format: str
    size: tuple[int, int]
    orientation: int
    decode_scale: int
    resized_size: tuple[int, int]
    crops: np.ndarray
    preprocessing: Preprocessing
    preprocessing_origin: str
    backbone: str
    backbone_name: str | None
    backbone_sha256: str
    layer: str
    layer_label: str
    layer_shape: tuple[int, ...] | None
    layer_rule: str
    pooling: str
    norm: str | None
    views: str
    precision: str
    engine: str
    device: str
    from_cache: bool | None
    code: np.ndarray = field(repr=False)

    @property
    def crop(self) -> np.ndarray:
        """The first view: uint8, shape (height, width, 3)."""
        view: np.ndarray = self.crops[0]
        return view

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the input of the network to an image file, several views side by side.

        Parameters
        ----------
        path : str or path-like
            The suffix determines the format. PNG is lossless.

        Raises
        ------
        OSError
            If the file cannot be written.
        ValueError
            If Pillow does not know the suffix.
        """
        from PIL import Image

        with atomic_write(Path(path)) as part:
            Image.fromarray(np.concatenate(self.crops, axis=1)).save(part)

    def __repr__(self) -> str:
        width, height = self.size
        fraction = f" at 1/{self.decode_scale}" if self.decode_scale > 1 else ""
        turn = _TURNS[self.orientation]
        resized = " x ".join(map(str, self.resized_size))
        crop = " x ".join(map(str, self.crops.shape[1:3]))
        name = f"{self.backbone_name}, " if self.backbone_name else ""
        shape = "" if self.layer_shape is None else f" {self.layer_shape}"
        label = "" if self.layer_label == self.layer else f", {self.layer_label}"
        cached = {None: "no cache", True: "from the cache", False: "not in the cache"}
        length = float(np.linalg.norm(self.code))
        rows = {
            "image": f"{self.source}: {self.format}, {width} x {height} pixels",
            "decoded": f"{turn} (EXIF orientation {self.orientation}){fraction}",
            "resized": f"to {resized} (height x width), "
            f"{self.preprocessing.interpolation}, then {crop} cropped",
            "normalised": f"(value * {self.preprocessing.scale:.6g} - "
            f"{_format_numbers(self.preprocessing.mean)}) / "
            f"{_format_numbers(self.preprocessing.std)}, "
            f"{self.preprocessing.channels}, {self.preprocessing.layout}",
            "": f"as stated by {self.preprocessing_origin}",
            "backbone": f"{name}{self.backbone}",
            "sha256": self.backbone_sha256,
            "layer": f"{self.layer!r}{shape}{label}: {self.layer_rule}",
            "pooling": f"{self.pooling}, norm {self.norm}, views {self.views}",
            "computed": f"in {self.precision} by {self.engine} on {self.device}; "
            f"{cached[self.from_cache]}",
            "code": f"{len(self.code)} values from {self.code.min():.4g} to "
            f"{self.code.max():.4g}, of length {length:.4g}",
        }
        return "\n".join(f"{key:<11}{value}" for key, value in rows.items())


def _format_numbers(values: tuple[float, ...]) -> str:
    """One number if all values are equal, otherwise all in brackets."""
    if len(set(values)) == 1:
        return f"{values[0]:.6g}"
    return f"({', '.join(f'{value:.6g}' for value in values)})"


def describe_code(
    image: Any,
    plan: CodePlan,
    cache: CodeCache | None,
    max_pixels: int | None,
    reference: dict[str, Any],
) -> dict[str, Any]:
    """The attributes of an `Explanation`, except for the code.

    Parameters
    ----------
    image : object
        An element of X.
    plan : CodePlan
    cache : CodeCache or None
    max_pixels : int or None
        An image with more pixels is a bad image. None sets no limit.
    reference : dict
        The backbone reference that `fit` stored; {} without `fit`.

    Returns
    -------
    dict of str to object

    Raises
    ------
    ImageError
        If the image is bad.
    """
    spec = plan.specs[plan.wanted]
    preprocessing = spec.preprocessing
    read = read_image(image, 0, max_pixels, preprocessing.min_decode_size)
    from_cache = None
    if cache is not None:
        digest = image_digest(image, 0, max_pixels)
        from_cache = cache.get_many(spec.digest, [digest])[0] is not None
    backbone, layer = plan.backbone, None
    if isinstance(backbone, Backbone):
        layer = backbone.layer(spec.layer)
        path, name = str(backbone.path), backbone.name
        origin = backbone.preprocessing_origin
    else:
        path = f"the saved model, which includes it up to the layer ({spec.layer!r})"
        name = reference.get("name")
        origin = reference.get("preprocessing_origin", "the saved model")
    return {
        "source": describe_source(image),
        "format": read.format,
        "size": read.size,
        "orientation": read.orientation,
        "decode_scale": read.scale,
        "resized_size": preprocessing.resized_size(read.rgb.height, read.rgb.width),
        "crops": take_views(read.rgb, preprocessing, spec.views),
        "preprocessing": preprocessing,
        "preprocessing_origin": origin,
        "backbone": path,
        "backbone_name": name,
        "backbone_sha256": spec.backbone_sha256,
        "layer": spec.layer,
        "layer_label": layer.label if layer else spec.layer,
        "layer_shape": layer.shape if layer else None,
        "layer_rule": layer.rule if layer else reference.get("layer_rule", "stored"),
        "pooling": spec.pooling,
        "norm": spec.norm,
        "views": spec.views,
        "precision": spec.precision,
        "engine": plan.execution.engine,
        "device": ", ".join(map(str, plan.execution.devices)),
        "from_cache": from_cache,
    }
