"""Layer: a tensor at which a backbone can be cut; LayerGraph creates them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.base.public import public
from sk_cnncodes.layers.channel_axes import ChannelAxes
from sk_cnncodes.layers.typed_graph import TypedGraph

Kind = Literal["map", "tokens", "vector"]
NAMED = "chosen by tensor name; not a numbered layer"


@public
@dataclass(frozen=True)
class Layer:
    """A tensor at which a backbone can be cut.

    Attributes
    ----------
    name : str
        Name of the tensor in the ONNX file.
    label : str
        Path of the module that computes it if the export kept one, otherwise `name`.
    kind : {"map", "tokens", "vector"}
        A spatial feature map, tokens, or one vector per image.
    shape : tuple of int
        Shape without the batch dimension.
    channel_axis : int
        Axis of the channels, counted with the batch dimension: 1 or the last.
    has_class_token : bool
        Whether the first token is a class token.
    parameter_share : float
        Fraction of the backbone's parameters that the layer depends on, in [0, 1].
    element : int
        Element type, an `onnx.TensorProto.DataType`.
    position : int or None
        -1 for the penultimate layer, -2 for the block output before it, and so on;
        None for a tensor that is not a numbered layer.
    rule : str
        The rule that found it, or that its name was given.
    """

    name: str
    label: str
    kind: Kind
    shape: tuple[int, ...]
    channel_axis: int
    has_class_token: bool
    parameter_share: float
    element: int
    position: int | None = None
    rule: str = field(default=NAMED, compare=False)

    @property
    def n_channels(self) -> int:
        """Number of channels, the length of an average-pooled code."""
        return self.shape[self.channel_axis - 1]

    @property
    def n_positions(self) -> int:
        """Number of positions of a map or of tokens; 1 for a vector."""
        return math.prod(self.shape) // self.n_channels

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        if self.kind == "map":
            return f"a map of shape {shape}"
        if self.kind == "tokens":
            with_class = "with" if self.has_class_token else "without"
            return f"tokens of shape {shape} {with_class} a class token"
        return f"a vector of length {shape}"


class LayerGraph(TypedGraph):
    """A typed graph that can describe its tensors as `Layer` objects.

    Its parameters are those of `TypedGraph`.
    """

    @cached_property
    def _channel_axes(self) -> ChannelAxes:
        return ChannelAxes(self)

    @cached_property
    def _total_weights(self) -> int:
        outputs = [output.name for output in self.view.model.graph.output]
        return max(1, *(self.view.weights_before(name) for name in outputs))

    def can_be_layer(self, name: str) -> bool:
        """Whether a tensor has a shape and a type that codes can be pooled from."""
        shape = self.shape(name)
        return (
            self.is_float(name)
            and 2 <= len(shape) <= 4
            and shape[0] == self.batch
            and 0 not in shape
        )

    def layer(
        self,
        name: str,
        label: str | None = None,
        position: int | None = None,
        rule: str = NAMED,
    ) -> Layer:
        """Describe a tensor of the graph as a layer.

        Raises
        ------
        BackboneError
            If codes cannot be pooled from the tensor's shape or type.
        """
        if not self.can_be_layer(name):
            raise BackboneError(
                f"the tensor {name!r} {self._described(name)} cannot be a layer. "
                "Expected floats of shape (batch, channels), (batch, tokens, "
                "channels), or (batch, channels, rows, columns)."
            )
        shape = self.shape(name)
        channel_axis = len(shape) - 1
        kind: Kind = "vector"
        if len(shape) == 4:
            kind, channel_axis = "map", self._channel_axes.axis(name)
        elif len(shape) == 3:
            kind = "tokens"
        return Layer(
            name=name,
            label=label or self.labels([name])[0],
            kind=kind,
            shape=shape[1:],
            channel_axis=channel_axis,
            has_class_token=kind == "tokens" and self._has_class_token(name),
            parameter_share=self.view.weights_before(name) / self._total_weights,
            element=self.element(name),
            position=position,
            rule=rule,
        )

    def _described(self, name: str) -> str:
        """What a tensor is that cannot be a layer."""
        shape, element = self.shape(name), self._element_name(name)
        if not shape and element == "undefined":
            return "without a shape, such as a sequence or a map,"
        rows = ""
        if shape and shape[0] != self.batch:
            rows = f" ({shape[0]} rows for a batch of {self.batch})"
        return f"of shape {shape}{rows} and type {element}"

    def _element_name(self, name: str) -> str:
        import onnx

        return str(onnx.TensorProto.DataType.Name(self.element(name))).lower()

    def _has_class_token(self, name: str) -> bool:
        """Whether a learned token is prepended to the others upstream of a tensor.

        Registers may be put between it and the others later.
        """
        tokens = self.shape(name)[1]
        for index in self.view.ancestors([name]):
            node = self.view.nodes[index]
            if self.op(index) != "Concat" or len(node.input) < 2:
                continue
            axis = next(a.i for a in node.attribute if a.name == "axis")
            # QLinearConcat: output scale and zero point, then three values per input.
            joined = node.input if node.op_type == "Concat" else node.input[2::3]
            if axis in (1, -2) and (
                self._prepends_constant(joined) or self._inserts_constant(joined)
            ):
                shape = self.shape(node.output[0])
                if len(shape) == 3 and shape[1] == tokens:
                    return True
        return False

    def _prepends_constant(self, joined: Iterable[str]) -> bool:
        """Whether the first concatenated tensor is constant and another one is not."""
        first, *others = (name in self.view.image_dependent for name in joined)
        return not first and any(others)

    def _inserts_constant(self, joined: Sequence[str]) -> bool:
        """Whether a constant is joined to the class token of tokens taken apart."""
        view, first = self.view, joined[0]
        if first not in view.producer or all(n in view.image_dependent for n in joined):
            return False
        cut = view.nodes[view.producer[first]]
        if cut.op_type != "Slice" or len(cut.input) < 3:
            return False
        whole = cut.input[0]
        return (
            whole in view.image_dependent
            and len(self.shape(whole)) == 3
            and self.shape(first)[1] == 1
            and view.constant_value(cut.input[1]) == [0]
            and self._has_class_token(whole)
        )
