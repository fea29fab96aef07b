"""One ONNX graph from images to the codes of several transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.backbones.stored import StoredBackbone, working_graph
from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.export.head_graph import INPUT as CODES
from sk_cnncodes.export.head_graph import at_opset
from sk_cnncodes.graphs.builder import GraphBuilder, merge_opsets
from sk_cnncodes.graphs.view import default_opset
from sk_cnncodes.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

# Parts of the preprocessing that are nodes of a code graph.
_IN_GRAPH: dict[str, Any] = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "scale": 1.0,
    "channels": "RGB",
    "layout": "NCHW",
}


@dataclass(frozen=True)
class JointCodeGraph:
    """A graph that computes the codes of transformers side by side, without norm.

    Attributes
    ----------
    content : bytes
        The serialised model.
    specs : list of CodeSpec
        Of the transformers' codes, in their order, one for each layer.
    names : list of str
        Of the transformers, one for each spec.
    preprocessing : Preprocessing
        How images are resized and cropped.
    """

    content: bytes
    specs: list[CodeSpec]
    names: list[str]
    preprocessing: Preprocessing


def code_lengths(transformer: CNNCodeTransformer) -> list[int]:
    """Numbers of values of a transformer's codes, one for each layer."""
    backbone, specs = transformer.fitted_specs()
    return [backbone.code_length(spec) for spec in specs]


def joint_code_graph(
    transformers: list[tuple[str, CNNCodeTransformer]],
) -> JointCodeGraph:
    """Join the code graphs of named transformers; each backbone is cut once.

    Raises
    ------
    ExportError
        If their backbones resize or crop in different ways.
    """
    found = [
        (name, backbone, spec)
        for name, transformer in transformers
        for backbone, specs in [transformer.fitted_specs()]
        for spec in specs
    ]
    names, specs = [name for name, _, _ in found], [spec for _, _, spec in found]
    groups: dict[Any, tuple[Backbone | StoredBackbone, list[CodeSpec]]] = {}
    places = []
    for _, backbone, spec in found:
        key: Any = (spec.backbone_sha256, spec.preprocessing)
        if isinstance(backbone, StoredBackbone):
            # Only transformers that were saved together share a stored graph.
            key = backbone.sha256
        _, wanted = groups.setdefault(key, (backbone, []))
        if spec.without_norm not in wanted:
            wanted.append(spec.without_norm)
        places.append((key, wanted.index(spec.without_norm)))
    preprocessing = _common_preprocessing(names, specs)
    graphs = [working_graph(*group)[0] for group in groups.values()]
    if len(specs) == 1:
        return JointCodeGraph(graphs[0].model, specs, names, preprocessing)
    numbers = {key: number for number, key in enumerate(groups)}
    outputs = [(numbers[key], index) for key, index in places]
    joined = _joined([graph.model for graph in graphs], outputs)
    return JointCodeGraph(joined, specs, names, preprocessing)


def _common_preprocessing(names: list[str], specs: list[CodeSpec]) -> Preprocessing:
    """Check that all resize and crop alike; return a preprocessing that does so."""
    first = specs[0].preprocessing
    if all(spec.preprocessing == first for spec in specs):
        return first
    common = replace(first, **_IN_GRAPH)
    for name, spec in zip(names, specs, strict=True):
        other = replace(spec.preprocessing, **_IN_GRAPH)
        if other != common:
            raise ExportError(
                f"model: its steps {names[0]!r} and {name!r} resize and crop images in "
                f"different ways: {common} and {other}. Expected one way, as the "
                "exported model takes images that are already cropped. Give both the "
                "same crop_size, resize, resize_size, interpolation and rounding by "
                "the parameter preprocessing, and fit again."
            )
    return common


def _joined(contents: list[bytes], outputs: list[tuple[int, int]]) -> bytes:
    """Join code graphs; `outputs` has graph and output number of each code."""
    import onnx.compose

    models = [onnx.load_model_from_string(content) for content in contents]
    opset = max(default_opset(model) for model in models)
    models = [
        onnx.compose.add_prefix(at_opset(model, opset), f"backbone_{number}/")
        for number, model in enumerate(models)
    ]
    build, image = GraphBuilder("sk_cnncodes/joint/"), onnx.ValueInfoProto()
    image.CopyFrom(_with_smallest_batch([model.graph.input[0] for model in models]))
    for model in models:
        build.node("Identity", "images", output=model.graph.input[0].name)
    nodes = [*build.nodes, *(node for model in models for node in model.graph.node)]
    last = GraphBuilder("sk_cnncodes/joint_codes/")
    parts = [models[model].graph.output[index].name for model, index in outputs]
    last.node("Concat", *parts, output=CODES, axis=1)
    widths = [
        models[model].graph.output[index].type.tensor_type.shape.dim[1].dim_value
        for model, index in outputs
    ]
    image.name = "images"
    batch = image.type.tensor_type.shape.dim[0]
    declared = onnx.helper.make_tensor_value_info(
        CODES, onnx.TensorProto.FLOAT, [batch.dim_value or "N", sum(widths)]
    )
    graph = onnx.helper.make_graph(
        [*nodes, *last.nodes],
        "codes",
        [image],
        [declared],
        [tensor for model in models for tensor in model.graph.initializer],
    )
    for model in models:
        graph.sparse_initializer.extend(model.graph.sparse_initializer)
    joined = onnx.helper.make_model(
        graph,
        opset_imports=merge_opsets(*(model.opset_import for model in models)),
        ir_version=max(model.ir_version for model in models),
    )
    joined.functions.extend(f for model in models for f in model.functions)
    return bytes(joined.SerializeToString())


def _with_smallest_batch(images: list[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    """The input with the fixed batch size, if one has it."""
    sizes = [image.type.tensor_type.shape.dim[0].dim_value for image in images]
    if len(set(sizes) - {0}) > 1:
        raise ExportError(
            f"model: its backbones have the fixed batch sizes {sizes} (0: any). "
            "Expected one size."
        )
    return images[sizes.index(max(sizes))]
