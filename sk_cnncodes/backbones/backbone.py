"""Backbone: an ONNX file with its preprocessing and its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from sk_cnncodes.backbones.analysis import named_layer, no_layer, numbering
from sk_cnncodes.backbones.code_graph import (
    CodeGraph,
    build_code_graphs,
    code_length,
    resolve_pooling,
)
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.base.public import public
from sk_cnncodes.graphs.reading import digest_with_data, read_model
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.views import check_views
from sk_cnncodes.layers.candidates import LayerDecision
from sk_cnncodes.layers.layer import Layer, LayerGraph

if TYPE_CHECKING:
    import onnx


@public
@dataclass(frozen=True)
class Backbone:
    """A pretrained network in an ONNX file, with its preprocessing.

    `load_backbone` creates one from a name or a path.

    Parameters
    ----------
    path : Path
        The ONNX file.
    sha256 : str
        Digest of the file and of its external weight files, if any.
    preprocessing : Preprocessing
    name : str or None
        Its name in the catalogue.
    penultimate : str or None
        Tensor of layer -1 if the catalogue states it; None to find it.
    preprocessing_origin : str
        Source of the preprocessing: the parameter, the file's metadata, a row of the
        catalogue, or a JSON file.
    address : str or None
        Its address on the Hugging Face Hub, with commit and file, if it was loaded by
        one.
    """

    path: Path
    sha256: str
    preprocessing: Preprocessing
    name: str | None = None
    penultimate: str | None = None
    preprocessing_origin: str = field(
        default="the parameter preprocessing", compare=False
    )
    address: str | None = field(default=None, compare=False)

    @property
    def description(self) -> str:
        """Name of the backbone in messages."""
        return f"backbone file {str(self.path)!r}"

    @property
    def graph(self) -> LayerGraph:
        """The graph of the network, without its weights."""
        return numbering(self).graph

    @property
    def layers(self) -> list[Layer]:
        """The numbered layers, in order from the image; the last is -1."""
        return list(numbering(self).layers)

    @property
    def layer_decisions(self) -> list[LayerDecision]:
        """Candidates for numbered layers, and the rule that decided on each."""
        return list(numbering(self).decisions)

    def layer(self, which: int | str) -> Layer:
        """Return a layer by its position, its label or the name of its tensor.

        A tensor that is named needs one image input and no other, and a shape that
        codes can be pooled from. It does not need numbered layers in the network.

        Raises
        ------
        LayerError
            If there is no such layer; the message lists the numbered layers.
        BackboneError
            If the layers cannot be numbered.
        """
        if isinstance(which, str):
            return named_layer(self, which)
        layers = self.layers
        if isinstance(which, Integral) and -len(layers) <= which <= -1:
            return layers[int(which)]
        raise no_layer(self, which, layers)

    def spec(
        self,
        layer: int | str,
        pooling: str,
        norm: str | None,
        views: str = "center",
    ) -> CodeSpec:
        """Return the code spec of a layer, with pooling and layer name resolved.

        Raises
        ------
        LayerError
            If the layer does not exist, or the pooling does not fit it.
        PreprocessingError
            If the views do not fit the preprocessing.
        """
        check_views(self.preprocessing, views)
        found = self.layer(layer)
        return CodeSpec(
            backbone_sha256=self.sha256,
            layer=found.name,
            pooling=resolve_pooling(found, pooling),
            norm=norm,
            preprocessing=self.preprocessing,
            views=views,
        )

    def code_length(self, spec: CodeSpec) -> int:
        """Length of the codes of a spec."""
        return code_length(self.layer(spec.layer), spec.pooling)

    def code_graphs(self, specs: list[CodeSpec]) -> Iterator[CodeGraph]:
        """Yield code graphs with one output per spec, the most capable first.

        The specs may differ in layer and pooling only. A graph computes the codes of
        single views, before any norm.
        """
        layers = [(self.layer(spec.layer), spec.pooling) for spec in specs]
        preprocessing = specs[0].preprocessing
        return build_code_graphs(self.read, self.path.parent, layers, preprocessing)

    def read(self) -> onnx.ModelProto:
        """Read the whole model, and check that the file is still the same."""
        model = read_model(self.path)
        sha256 = digest_with_data(self.path, model)
        if sha256 != self.sha256:
            raise BackboneError(
                f"{self.description}: the file changed after it was loaded. Expected "
                f"sha256 {self.sha256}, got {sha256}. Load it again."
            )
        return model
