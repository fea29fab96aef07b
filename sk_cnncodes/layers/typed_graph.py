"""TypedGraph: an ONNX model with tensor types and module names."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.graphs.operators import LAYOUT_OPS, plain_operator
from sk_cnncodes.graphs.view import GraphView, TensorType, infer_types, value_shape

if TYPE_CHECKING:
    import onnx

# Runs the model to get the types of tensors; takes what is known of each.
Measure = Callable[[Mapping[str, TensorType | None]], dict[str, TensorType]]


class TypedGraph:
    """An ONNX model with the types of its tensors.

    Parameters
    ----------
    model : onnx.ModelProto
        In the normal form of `sk_cnncodes.graphs.reading.read_model`.
    input_name : str
        The image input.
    input_shape : tuple of int
        Its shape; the batch size is 1, or the one that the file fixes.
    measure : callable
        Returns the types that shape inference does not find.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        input_name: str,
        input_shape: tuple[int, ...],
        measure: Measure,
    ) -> None:
        self.view = GraphView(model, input_name)
        self.batch = input_shape[0]
        self._types = infer_types(model, input_name, input_shape)
        self._measure = measure
        self._measured: set[str] = set()

    # -- operators -----------------------------------------------------------

    def op(self, index: int) -> str:
        """Operator of a node, mapped to its float, channels-first equivalent."""
        return plain_operator(self.view.nodes[index].op_type)

    def kernel(self, index: int) -> tuple[int, ...]:
        """Kernel size of a convolution, from its attribute or its weights."""
        node = self.view.nodes[index]
        stated = [a.ints for a in node.attribute if a.name == "kernel_shape"]
        weights = node.input[3 if node.op_type == "QLinearConv" else 1]
        return tuple(stated[0]) if stated else self.shape(weights)[2:]

    def is_grouped(self, index: int) -> bool:
        """Whether a node is a convolution with groups, such as a depthwise one."""
        return any(
            a.name == "group" and a.i > 1 for a in self.view.nodes[index].attribute
        )

    def width(self, index: int) -> int:
        """Number of channels that a linear layer computes; 0 if unknown."""
        node = self.view.nodes[index]
        shape = self.shape(node.output[0])
        is_first = "Conv" in node.op_type and not has_channels_last(node)
        return shape[1 if is_first else -1] if shape else 0

    # -- shapes --------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; () if neither inference nor a run finds it.

        The first request for an unknown shape runs the model, once for all of them.
        """
        if not self._is_known(name) and name not in self._measured:
            self._measure_types(name)
        known = self._types.get(name)
        if known is None or known.shape is None:
            return ()
        return tuple(dim or 0 for dim in known.shape)

    def _measure_types(self, name: str) -> None:
        """Run the model for all unknown types, or if it fails for those before one."""
        if self.view.other_inputs(name):
            self._measured.add(name)  # no run has them
            return
        unknown = self._unknown_types(name)
        if not unknown:  # it needs another input
            self._measured.add(name)
            return
        try:
            found = self._measure(unknown)
        except BackboneError:
            nodes = (self.view.nodes[i] for i in self.view.ancestors([name]))
            before = {each for node in nodes for each in node.output} | {name}
            if before >= unknown.keys():
                raise
            unknown = {n: known for n, known in unknown.items() if n in before}
            found = self._measure(unknown)
        self._types.update(found)
        self._measured.update(unknown)

    def _is_known(self, name: str) -> bool:
        """Whether the full shape of a tensor is known."""
        known = self._types.get(name)
        return known is not None and known.shape is not None and None not in known.shape

    def _unknown_types(self, name: str) -> dict[str, TensorType | None]:
        """All tensors of unknown shape that a run could measure, and the given one.

        They need no input but the image, and an output of the file or the tensor
        depends on them.
        """
        view = self.view
        inputs = {value.name for value in view.model.graph.input}
        foreign = view.dependents(inputs - {view.input_name})
        outputs = [output.name for output in view.model.graph.output]
        needed = view.ancestors([n for n in outputs if n not in foreign] + [name])
        names = [each for i in sorted(needed) for each in view.nodes[i].output if each]
        names = [n for n in dict.fromkeys([*names, name]) if n not in foreign]
        unknown = [n for n in names if not self._is_known(n)]
        return {n: self._types.get(n) for n in unknown if n not in self._measured}

    def may_have_rank(self, name: str, rank: int) -> bool:
        """Whether a tensor may have a rank, as far as is known without a run."""
        known = self._types.get(name)
        return known is None or known.shape is None or len(known.shape) == rank

    def element(self, name: str) -> int:
        """Element type of a tensor, an `onnx.TensorProto.DataType`; 0 if unknown."""
        known = self._types.get(name)
        return known.element if known else 0

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers."""
        import onnx

        proto = onnx.TensorProto
        floats = (proto.FLOAT, proto.FLOAT16, proto.BFLOAT16, proto.DOUBLE)
        return self.element(name) in floats

    # -- names of modules ----------------------------------------------------

    @cached_property
    def _module_paths(self) -> dict[str, str]:
        """Module paths by tensor."""
        return _module_paths(self.view.nodes)

    @cached_property
    def module_outputs(self) -> dict[str, str]:
        """Outputs by module path: the last tensor that each module computes."""
        outputs = {}
        for node in self.view.nodes:
            for name in node.output:
                path = ""
                if name in self.view.image_dependent:
                    path = self._module_paths.get(name, "")
                while path:
                    outputs[path] = name
                    path = path.rpartition(".")[0]
        return outputs

    def labels(self, names: list[str]) -> list[str]:
        """Readable names of tensors: paths of the modules that output them.

        A tensor is often the output of several nested modules; the path with the depth
        most common among the tensors is used. Without a unique path, the name is used.
        """
        modules: list[list[str]] = [
            [path for path, out in self.module_outputs.items() if out == name]
            for name in names
        ]
        depths = [{path.count(".") for path in paths} for paths in modules]
        all_depths = [depth for found in depths for depth in found]
        usual = max(all_depths, key=lambda d: (all_depths.count(d), -d), default=0)
        labels = []
        for name, paths in zip(names, modules, strict=True):
            nearest = sorted(paths, key=lambda p: (abs(p.count(".") - usual), len(p)))
            path = self._module_paths.get(name, "")
            inner = path if self._is_output_rearranged(name, path) else name
            labels.append(nearest[0] if nearest else inner)
        counts = Counter(labels)
        return [
            label if counts[label] == 1 else name
            for name, label in zip(names, labels, strict=True)
        ]

    def _is_output_rearranged(self, name: str, path: str) -> bool:
        """Whether a module's output is a tensor, possibly rearranged."""
        output = self.module_outputs.get(path, name)
        while output != name:
            index = self.view.producer.get(output)
            if index is None or self.op(index) not in LAYOUT_OPS:
                return False
            (output,) = self.view.data_inputs(index)[:1] or ("",)
        return path in self.module_outputs


def has_channels_last(node: onnx.NodeProto) -> bool:
    """Whether a node is one of ONNX Runtime's channels-last operators."""
    stated = any(a.name == "channels_last" and a.i for a in node.attribute)
    return stated or node.op_type.startswith("Nhwc")


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The image input of a model.

    Raises
    ------
    BackboneError
        If there is not exactly one.
    """
    found = image_inputs(model)
    if len(found) == 1:
        return found[0]
    branches = "".join(
        f"; the last one that needs {value.name!r} alone is {name!r}"
        for value in found
        for name in _own_tensors(model, value.name)[-1:]
    )
    raise BackboneError(
        f"it has {len(found)} image inputs: {_inputs(found)}. Expected one, or the "
        f"name of a layer that needs only one of them{branches}."
    )


def image_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs of a model that have the shape of an image.

    Raises
    ------
    BackboneError
        If there is none.
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
    if found:
        return found
    raise BackboneError(
        "it has no image inputs. Expected one input of shape [batch, 3, height, width] "
        "or [batch, height, width, 3]; its inputs are: "
        f"{_inputs(model.graph.input) or 'none'}."
    )


def _inputs(values: Iterable[onnx.ValueInfoProto]) -> str:
    return ", ".join(f"{v.name!r} {_format_shape(value_shape(v))}" for v in values)


def _own_tensors(model: onnx.ModelProto, input_name: str) -> list[str]:
    """Tensors that need one input of a model and no other, in order."""
    view = GraphView(model, input_name)
    others = {value.name for value in model.graph.input} - {input_name}
    own = view.image_dependent - view.dependents(others)
    needed = sorted(view.ancestors(output.name for output in model.graph.output))
    return [name for i in needed for name in view.nodes[i].output if name in own]


def _format_shape(shape: Iterable[int | None] | None) -> str:
    if shape is None:
        return "of unknown shape"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _module_paths(nodes: list[onnx.NodeProto]) -> dict[str, str]:
    """Module paths by tensor, as recorded by torch exporters."""
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
            # Outputs of the file are renamed; the names of their nodes keep the path.
            named = next((n for n in (node.output[0], node.name) if n[:1] == "/"), "")
            parts = named.split("/")[1:-1]
        path: list[str] = []
        for part in filter(None, parts):
            if path and part.startswith(path[-1] + "."):
                path[-1] = part  # the part repeats its container
            else:
                path.append(part)
        if path:
            paths.update({name: ".".join(path) for name in node.output if name})
    return paths
