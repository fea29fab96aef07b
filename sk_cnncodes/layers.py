"""Layers: tensors of a backbone at which it can be cut, and what lies there.

A **layer** is a tensor whose activations make a code. Any float tensor between
the image and the scores can be one; `sk_cnncodes.blocks` finds those that have
numbers.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from sk_cnncodes.channel_axes import ChannelAxes
from sk_cnncodes.exceptions import BackboneError
from sk_cnncodes.graph import GraphView, TensorType, infer_types, value_shape
from sk_cnncodes.operators import MOVES, plain_operator

if TYPE_CHECKING:
    import onnx

Kind = Literal["map", "tokens", "vector"]
# Finds types of tensors that shape inference does not, by running the model.
Measure = Callable[[list[str]], dict[str, TensorType]]


@dataclass(frozen=True)
class Layer:
    """A tensor of a backbone at which it can be cut.

    Attributes
    ----------
    name : str
        Name of the tensor in the ONNX file.
    label : str
        Path of the module that made it where the export kept one, else `name`.
    kind : {"map", "tokens", "vector"}
        Activations over rows and columns, over tokens, or one vector an image.
    shape : tuple of int
        Shape without the batch.
    channel_axis : int
        Axis of the channels in the tensor with its batch: 1 or the last.
    has_class_token : bool
        Whether the first token is a class token.
    parameter_share : float
        Share of the backbone's parameters that the layer needs, in [0, 1].
    element : int
        Its element type, an `onnx.TensorProto.DataType`.
    position : int or None
        -1 for the penultimate layer, -2 for the boundary before it, and so on;
        None for a tensor that is no block boundary.
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

    @property
    def n_channels(self) -> int:
        """Number of channels, the length of an averaged code."""
        return self.shape[self.channel_axis - 1]


class LayerGraph:
    """A model with the types of its tensors: makes a `Layer` of any of them.

    Parameters
    ----------
    model : onnx.ModelProto
        In the normal form of `sk_cnncodes.model_files.read_model`.
    input_name : str
        The image input.
    input_shape : tuple of int
        Its shape, with a batch of one image, or of as many as are baked in.
    measure : callable
        Gives the types that shape inference does not find.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        input_name: str,
        input_shape: tuple[int, ...],
        measure: Measure,
    ) -> None:
        self.view = GraphView(model, input_name)
        self._measure = measure
        self._types = infer_types(model, input_name, input_shape)
        self.batch = input_shape[0]
        self._channel_axes = ChannelAxes(self)

    @cached_property
    def _module_paths(self) -> dict[str, str]:
        return _module_paths(self.view.nodes)

    @cached_property
    def module_outputs(self) -> dict[str, str]:
        """Paths of modules and the tensors that they put out, the last they make."""
        outputs = {}
        for node in self.view.nodes:
            for name in node.output:
                path = (
                    self._module_paths.get(name, "")
                    if name in self.view.dependent
                    else ""
                )
                while path:
                    outputs[path] = name
                    path = path.rpartition(".")[0]
        return outputs

    def labels(self, names: list[str]) -> list[str]:
        """Names for people: paths of the modules that put the tensors out.

        A tensor is often the output of several nested modules; of their paths, those
        with as many parts as most tensors can have are taken.
        """
        modules: list[list[str]] = [
            [path for path, out in self.module_outputs.items() if out == name]
            for name in names
        ]
        depths = [{path.count(".") for path in paths} for paths in modules]
        everywhere = [depth for found in depths for depth in found]
        usual = max(everywhere, key=lambda d: (everywhere.count(d), -d), default=0)
        labels = []
        for name, paths in zip(names, modules, strict=True):
            nearest = sorted(paths, key=lambda p: (abs(p.count(".") - usual), len(p)))
            path = self._module_paths.get(name, "")
            inner = path if self._is_output_moved(name, path) else name
            labels.append(nearest[0] if nearest else inner)
        counts = Counter(labels)
        return [
            label if counts[label] == 1 else name
            for name, label in zip(names, labels, strict=True)
        ]

    def _is_output_moved(self, name: str, path: str) -> bool:
        """Whether a module puts out the values of a tensor, moved about."""
        made = self.module_outputs.get(path, name)
        while made != name:
            index = self.view.producer.get(made)
            if index is None or self.op(index) not in MOVES:
                return False
            (made,) = self.view.data_inputs(index)[:1] or ("",)
        return path in self.module_outputs

    @cached_property
    def _total_weights(self) -> int:
        outputs = [output.name for output in self.view.model.graph.output]
        return max(1, *(self.view.weights_before(name) for name in outputs))

    def op(self, index: int) -> str:
        """Operator of a node, by the name that it has on floats, channels first."""
        return plain_operator(self.view.nodes[index].op_type)

    def kernel(self, index: int) -> tuple[int, ...]:
        """Rows and columns of a convolution: stated, or those of its weights."""
        node = self.view.nodes[index]
        stated = [a.ints for a in node.attribute if a.name == "kernel_shape"]
        weights = node.input[3 if node.op_type == "QLinearConv" else 1]
        return tuple(stated[0]) if stated else self.shape(weights)[2:]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; () where even a run does not tell."""
        if not self._is_known(name):
            self._types.update(self._measure(self._unknown_beside(name)))
        known = self._types.get(name)
        if known is None or known.shape is None:
            return ()
        return tuple(dim or 0 for dim in known.shape)

    def shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Shapes of several tensors, by one run for all that need one."""
        names = list(names)
        unknown = [name for name in names if not self._is_known(name)]
        if unknown:
            self._types.update(self._measure(unknown))
        return {name: self.shape(name) for name in names}

    def _is_known(self, name: str) -> bool:
        known = self._types.get(name)
        return known is not None and known.shape is not None and None not in known.shape

    def may_have_rank(self, name: str, rank: int) -> bool:
        """Whether a tensor has a rank as far as is known without a run."""
        known = self._types.get(name)
        return known is None or known.shape is None or len(known.shape) == rank

    def _unknown_beside(self, name: str) -> list[str]:
        """Tensors that will be asked for too, so that one run measures all."""
        names = {name}
        for output in self.view.model.graph.output:
            alone = not self.view.other_inputs(output.name)
            if alone and output.name in self.view.dependent:
                names.update([output.name, *self.view.cut_tensors(output.name)])
        # What has been asked for at one such node is asked for at all of them.
        kinds = {self.op(index) for index in self.view.readers.get(name, [])}
        kinds &= {"Mul", "ReduceMean"}
        for index, node in enumerate(self.view.nodes):
            if node.output[0] not in self.view.dependent:
                continue
            if self.op(index) == "Concat" or self.op(index) in kinds:
                names.add(node.output[0])
            if self.op(index) in kinds:
                names.update(self.view.data_inputs(index))
        return sorted(each for each in names if not self._is_known(each))

    def _element(self, name: str) -> int:
        known = self._types.get(name)
        return known.element if known else 0

    def _element_name(self, name: str) -> str:
        import onnx

        return str(onnx.TensorProto.DataType.Name(self._element(name))).lower()

    def _is_float(self, name: str) -> bool:
        import onnx

        proto = onnx.TensorProto
        floats = (proto.FLOAT, proto.FLOAT16, proto.BFLOAT16, proto.DOUBLE)
        return self._element(name) in floats

    def can_be_layer(self, name: str) -> bool:
        shape = self.shape(name)
        return (
            self._is_float(name)
            and 2 <= len(shape) <= 4
            and shape[0] == self.batch
            and 0 not in shape
        )

    def layer(
        self, name: str, label: str | None = None, position: int | None = None
    ) -> Layer:
        """The layer at a tensor of the graph.

        Raises
        ------
        BackboneError
            If the tensor has no shape that could give a code.
        """
        if not self.can_be_layer(name):
            raise BackboneError(
                f"the tensor {name!r} of shape {self.shape(name)} and type "
                f"{self._element_name(name)} cannot be a layer. Expected "
                "floats of shape (batch, channels), (batch, tokens, channels) or "
                "(batch, channels, rows, columns)."
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
            element=self._element(name),
            position=position,
        )

    def _has_class_token(self, name: str) -> bool:
        """Whether a learned token was put before the others, upstream of a tensor."""
        tokens = self.shape(name)[1]
        for index in self.view.ancestors([name]):
            node = self.view.nodes[index]
            if self.op(index) != "Concat" or len(node.input) < 2:
                continue
            axis = next(a.i for a in node.attribute if a.name == "axis")
            # QLinearConcat has its own scale, and one with each of its inputs.
            joined = node.input if node.op_type == "Concat" else node.input[2::3]
            learned = joined[0] not in self.view.dependent
            given = any(name in self.view.dependent for name in joined[1:])
            if axis not in (1, -2) or not (learned and given):
                continue
            made = self.shape(node.output[0])
            if len(made) == 3 and made[1] == tokens:
                return True
        return False


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The input of a model that takes images.

    Raises
    ------
    BackboneError
        If there is none, or there are several.
    """
    found: list[onnx.ValueInfoProto] = []
    for value in model.graph.input:
        shape = value_shape(value)
        if shape is None and len(model.graph.input) == 1:
            found.append(value)
        elif shape is not None and len(shape) == 4:
            channels = (shape[1], shape[3])
            if any(c in (1, 3) for c in channels) or None in channels:
                found.append(value)
    if len(found) == 1:
        return found[0]
    stated = [f"{v.name!r} {_written(value_shape(v))}" for v in model.graph.input]
    raise BackboneError(
        f"it has {'no' if not found else len(found)} image inputs. Expected one input "
        "of shape [batch, 3, height, width] or [batch, height, width, 3]; its inputs "
        f"are: {', '.join(stated) or 'none'}."
    )


def _written(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "of unknown shape"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _module_paths(nodes: list[onnx.NodeProto]) -> dict[str, str]:
    """Paths of the torch modules that made tensors, as torch exporters keep them."""
    paths = {}
    for node in nodes:
        scopes = [
            p.value
            for p in node.metadata_props
            if p.key == "pkg.torch.onnx.name_scopes"
        ]
        parts: list[str] = []
        if scopes:
            try:
                parts = [str(s) for s in ast.literal_eval(scopes[0])][:-1]
            except (ValueError, SyntaxError):
                parts = []
        else:
            # The outputs of the file have names of their own; their nodes keep theirs.
            made = next((n for n in (node.output[0], node.name) if n[:1] == "/"), "")
            parts = made.split("/")[1:-1]
        path: list[str] = []
        for part in filter(None, parts):
            if path and part.startswith(path[-1] + "."):
                path[-1] = part  # a part repeats the container that it lies in
            else:
                path.append(part)
        if path:
            paths.update({name: ".".join(path) for name in node.output if name})
    return paths
