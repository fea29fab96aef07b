"""Explanation: everything that determines the code of an image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.files import atomic_write
from sk_cnncodes.base.public import public
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.codes.digests import image_digest
from sk_cnncodes.codes.plan import CodePlan
from sk_cnncodes.codes.sessions import gpu_views
from sk_cnncodes.images.decode import MinDecodeSize, plain_jpeg, read_image
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.sources import describe_source, holds_content, read_content
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


@dataclass(frozen=True)
class ExplainedLayer:
    """One layer of a code.

    Attributes
    ----------
    spec : CodeSpec
        Names the tensor, and the pooling.
    label, position, shape, rule
        As `layer_label` and so on of `Explanation`.
    """

    spec: CodeSpec
    label: str
    position: int | None
    shape: tuple[int, ...] | None
    rule: str

    def __str__(self) -> str:
        position = f"{self.position}, " * (self.position is not None)
        label = f", {self.label}" * (self.label != self.spec.layer)
        shape = f" {self.shape}" * (self.shape is not None)
        return f"{position}{self.spec.layer!r}{shape}{label}: {self.rule}"


@public
@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """The code of one image, and everything that determines it.

    Returned by `CNNCodeTransformer.explain`. Sizes are (height, width) in pixels.

    Attributes
    ----------
    source : str
        The image as named in error messages: its path, or what it is.
    image_sha256 : str
        Digest by which a cache knows the image, in hexadecimal.
    format : str
        Format of the file and mode of its pixels, or "array of" and the dtype, or "PIL
        image" and the mode.
    size : (int, int)
        Size as stored.
    conversion : str
        How its values became RGB with 8 bits; "none" if they were.
    orientation : int
        EXIF orientation that was undone, 1 to 8. 1 is upright.
    decode_scale : int
        1, 2, 4 or 8. A large JPEG is decoded at 1/`decode_scale` of its size.
    decoder : str
        "Pillow", or what of a GPU decodes this file.
    decoded_size : (int, int)
        Size after decoding, upright.
    resized_size : (int, int)
        Size of the whole image after the resize.
    crop_corner : (int, int)
        Top and left of the central crop in the resized image; negative if the image is
        smaller and padded with black.
    crops : ndarray of uint8, shape (n_views, height, width, 3)
        The views: input of the network before normalisation.
    preprocessing : Preprocessing
    preprocessing_origin : str
        Where the preprocessing came from.
    backbone : str
        Path of the file.
    backbone_name : str or None
        Name in the catalogue.
    backbone_sha256 : str
    layers : tuple of ExplainedLayer
        The layers of the code, in its order: attributes `spec`, `label`, `position`,
        `shape` and `rule`. What follows here is that of the first one.
    layer : str
        Name of the layer's tensor.
    layer_label : str
        Path of the module that computes it, or its name.
    layer_position : int or None
        Its number, such as -1; None if it has none.
    layer_shape : tuple of int or None
        Without the batch dimension. None if only a stored graph is available.
    layer_rule : str
        Why it is a layer.
    spec : CodeSpec
        What identifies such codes in a cache: pooling, norm, views, precision,
        calibration of int8, version of the code that computes them.
    engine, device : str
        What computes codes here, according to the parameters.
    provider : str or None
        What computed this code. None if it came from the cache.
    from_cache : bool or None
        Whether the code was in the cache before. None without a cache.
    code : ndarray of float32, shape (n_features,)
    """

    source: str
    image_sha256: str
    format: str
    size: tuple[int, int]
    conversion: str
    orientation: int
    decode_scale: int
    decoder: str
    decoded_size: tuple[int, int]
    resized_size: tuple[int, int]
    crop_corner: tuple[int, int]
    crops: np.ndarray
    preprocessing_origin: str
    backbone: str
    backbone_name: str | None
    layers: tuple[ExplainedLayer, ...]
    engine: str
    device: str
    provider: str | None
    from_cache: bool | None
    code: np.ndarray

    @property
    def spec(self) -> CodeSpec:
        return self.layers[0].spec

    @property
    def preprocessing(self) -> Preprocessing:
        return self.spec.preprocessing

    @property
    def backbone_sha256(self) -> str:
        return self.spec.backbone_sha256

    @property
    def layer(self) -> str:
        return self.spec.layer

    @property
    def layer_label(self) -> str:
        return self.layers[0].label

    @property
    def layer_position(self) -> int | None:
        return self.layers[0].position

    @property
    def layer_shape(self) -> tuple[int, ...] | None:
        return self.layers[0].shape

    @property
    def layer_rule(self) -> str:
        return self.layers[0].rule

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
        values = self.preprocessing
        turn = f"{_TURNS[self.orientation]} (EXIF orientation {self.orientation})"
        scale = f", at 1/{self.decode_scale} of its size" * (self.decode_scale > 1)
        scale += f", on the GPU ({self.decoder})" * (self.decoder != "Pillow")
        converted = f", {self.conversion}" * (self.conversion != "none")
        name = f"{self.backbone_name}, " if self.backbone_name else ""
        length = float(np.linalg.norm(self.code))
        rows = [
            ("image", f"{self.source}: {self.format}, {_size(self.size)} pixels"),
            ("decoded", f"{turn}{scale}: {_size(self.decoded_size)}{converted}"),
            ("resized", self._resize_text()),
            ("cropped", self._crop_text()),
            (
                "normalised",
                f"(value * {values.scale:.6g} - {_numbers(values.mean)}) / "
                f"{_numbers(values.std)}, {values.channels}, {values.layout}",
            ),
            ("stated by", self.preprocessing_origin),
            ("backbone", f"{name}{self.backbone}"),
            ("sha256", self.backbone_sha256),
            *(
                row
                for layer in self.layers
                for row in (("layer", layer), ("pooled", self._pooling_text(layer)))
            ),
            ("computed", self._engine_text()),
            (
                "code",
                f"{len(self.code)} values from {self.code.min():.4g} to "
                f"{self.code.max():.4g}, of length {length:.4g}",
            ),
        ]
        return "\n".join(f"{key:<11}{value}" for key, value in rows)

    def _resize_text(self) -> str:
        values, resized = self.preprocessing, _size(self.resized_size)
        how = values.interpolation + " without antialiasing" * (not values.antialias)
        steps = {
            "shorter": f"shorter side to {values.resize_size} ({values.rounding} "
            f"rounding): {resized}, {how}",
            "squash": f"both sides, to {resized}, {how}",
            "exact": f"as a whole, to {resized}, {how}",
            "crop_to_aspect_ratio": f"central part of the crop's aspect ratio, to "
            f"{resized}, {how}",
            "none": f"not at all: {resized}",
        }
        return steps[values.resize]

    def _crop_text(self) -> str:
        top, left = self.crop_corner
        n_views, height, width, _ = self.crops.shape
        where = f" at left {left}, top {top}" * ((top, left) != (0, 0))
        padded = ", padded with black" * (min(top, left) < 0)
        views = f"; {n_views} views ({self.spec.views})" * (n_views > 1)
        low, high, mean = self.crops.min(), self.crops.max(), self.crops.mean()
        return (
            f"{_size((height, width))}{where}{padded}{views}; values {low} to {high}, "
            f"mean {mean:.1f}"
        )

    def _pooling_text(self, layer: ExplainedLayer) -> str:
        average = f", average of {len(self.crops)} views" * (len(self.crops) > 1)
        return f"{layer.spec.pooling}{average}, norm {layer.spec.norm}"

    def _engine_text(self) -> str:
        how = f"in {self.spec.precision} by {self.engine} on {self.device}"
        if self.spec.calibration is not None:
            how += f", calibration {self.spec.calibration[:12]}"
        if self.from_cache:
            return f"before; from the cache. Here it would be {how}"
        cache = "no cache" if self.from_cache is None else "was not in the cache"
        return f"{how} ({self.provider}); {cache}"


def _size(size: tuple[int, int]) -> str:
    """Width x height, as image viewers show it."""
    return f"{size[1]} x {size[0]}"


def _numbers(values: tuple[float, ...]) -> str:
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
    """The attributes of an `Explanation`, except for the code and its provider.

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
    specs = plan.specs
    preprocessing = specs[0].preprocessing
    color = preprocessing.color
    smaller: MinDecodeSize | None = preprocessing.min_decode_size
    crops, decoder = None, "Pillow"
    if plan.decoding_gpu is not None and holds_content(image):
        jpeg = plain_jpeg(read_content(image, 0), max_pixels, color)
        if jpeg is not None:
            smaller = None
            on_gpu = gpu_views(plan.decoding_gpu)
            crops = on_gpu.take(jpeg, preprocessing, specs[0].views)
            decoder = decoder if crops is None else on_gpu.engines
    read = read_image(image, 0, max_pixels, smaller, color)
    if crops is None:
        crops = take_views(read.rgb, preprocessing, specs[0].views)
    decoded = (read.rgb.height, read.rgb.width)
    resized = preprocessing.resized_size(*decoded)
    digest = image_digest(image, 0, max_pixels, color)
    from_cache = None
    if cache is not None:
        from_cache = all(
            cache.get_many(spec.without_norm.digest, [digest])[0] is not None
            for spec in specs
        )
    return {
        "source": describe_source(image),
        "image_sha256": digest.hex(),
        "format": read.format,
        "size": read.size[::-1],
        "conversion": read.conversion,
        "orientation": read.orientation,
        "decode_scale": read.scale,
        "decoder": decoder,
        "decoded_size": decoded,
        "resized_size": resized,
        "crop_corner": preprocessing.crop_corner(*resized),
        "crops": crops,
        "engine": plan.execution.engine,
        "device": ", ".join(map(str, plan.execution.devices)),
        "from_cache": from_cache,
        **_describe_backbone(plan, reference),
    }


def _describe_backbone(plan: CodePlan, reference: dict[str, Any]) -> dict[str, Any]:
    """Backbone and layers; of a stored one, as far as they were recorded by `fit`."""
    backbone = plan.backbone
    if isinstance(backbone, Backbone):
        layers = []
        for spec in plan.specs:
            layer = backbone.layer(spec.layer)
            layers.append(
                ExplainedLayer(
                    spec, layer.label, layer.position, layer.shape, layer.rule
                )
            )
        return {
            "preprocessing_origin": backbone.preprocessing_origin,
            "backbone": str(backbone.path),
            "backbone_name": backbone.name,
            "layers": tuple(layers),
        }
    rules = reference.get("layer_rule", "stored in the saved model")
    if isinstance(rules, str):
        rules = [rules] * len(plan.specs)
    return {
        "preprocessing_origin": reference.get(
            "preprocessing_origin", "the saved model"
        ),
        "backbone": "the saved model, which includes it up to the layer",
        "backbone_name": reference.get("name"),
        "layers": tuple(
            ExplainedLayer(spec, spec.layer, None, None, rule)
            for spec, rule in zip(plan.specs, rules, strict=True)
        ),
    }
