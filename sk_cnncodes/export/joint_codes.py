"""One ONNX graph from images to the codes of several transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.backbones.stored import StoredBackbone, working_graph
from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.export.exported_model import MAX_INPUTS
from sk_cnncodes.export.head_graph import INPUT as CODES
from sk_cnncodes.export.head_graph import at_opset
from sk_cnncodes.graphs.builder import GraphBuilder, merge_opsets
from sk_cnncodes.graphs.view import default_opset
from sk_cnncodes.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

# Name of the first input; that of others has their number.
IMAGES = "images"
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
    inputs : dict of str to Preprocessing
        How the images of each input are resized and cropped.
    """

    content: bytes
    specs: list[CodeSpec]
    names: list[str]
    inputs: dict[str, Preprocessing]


def code_lengths(transformer: CNNCodeTransformer) -> list[int]:
    """Numbers of values of a transformer's codes, one for each layer."""
    backbone, specs = transformer.fitted_specs()
    return [backbone.code_length(spec) for spec in specs]


def joint_code_graph(
    transformers: list[tuple[str, CNNCodeTransformer]],
) -> JointCodeGraph:
    """Join the code graphs of named transformers; each backbone is cut once.

    Backbones that resize and crop alike share an input.

    Raises
    ------
    ExportError
        If their batch sizes are fixed and differ, or they resize and crop in more than
        `MAX_INPUTS` ways.
    """
    found = [
        (name, backbone, spec)
        for name, transformer in transformers
        for backbone, specs in [transformer.fitted_specs()]
        for spec in specs
    ]
    names, specs = [name for name, _, _ in found], [spec for _, _, spec in found]
    if len({spec.preprocessing for spec in specs}) == 1:
        inputs = {IMAGES: specs[0].preprocessing}
    else:
        ways = dict.fromkeys(replace(spec.preprocessing, **_IN_GRAPH) for spec in specs)
        inputs = {f"{IMAGES}_{n}" if n else IMAGES: way for n, way in enumerate(ways)}
    if len(inputs) > MAX_INPUTS:
        raise ExportError(
            f"model: its backbones resize and crop in {len(inputs)} ways. Expected at "
            f"most {MAX_INPUTS}."
        )
    groups: dict[Any, tuple[Backbone | StoredBackbone, list[CodeSpec]]] = {}
    places = []
    for _, backbone, spec in found:
        key: Any = (spec.backbone_sha256, spec.preprocessing)
        if isinstance(backbone, StoredBackbone):
            # Only transformers that were saved together share a stored graph. It does
            # not say how images are resized.
            key = (backbone.sha256, spec.preprocessing)
        _, wanted = groups.setdefault(key, (backbone, []))
        if spec.without_norm not in wanted:
            wanted.append(spec.without_norm)
        places.append((key, wanted.index(spec.without_norm)))
    graphs = [working_graph(*group)[0] for group in groups.values()]
    if len(specs) == 1:
        return JointCodeGraph(graphs[0].model, specs, names, inputs)
    numbers = {key: number for number, key in enumerate(groups)}
    outputs = [(numbers[key], index) for key, index in places]
    read = [_input_of(wanted[0], inputs) for _, wanted in groups.values()]
    joined = _joined([graph.model for graph in graphs], read, outputs)
    return JointCodeGraph(joined, specs, names, inputs)


def _input_of(spec: CodeSpec, inputs: dict[str, Preprocessing]) -> str:
    """The input whose images are resized and cropped as a spec wants them."""
    wanted = replace(spec.preprocessing, **_IN_GRAPH)
    return next(
        name for name, each in inputs.items() if replace(each, **_IN_GRAPH) == wanted
    )


def _joined(
    contents: list[bytes], inputs: list[str], outputs: list[tuple[int, int]]
) -> bytes:
    """Join code graphs, which read the named inputs.

    `outputs` has graph and output number of each code.
    """
    import onnx.compose

    models = [onnx.load_model_from_string(content) for content in contents]
    opset = max(default_opset(model) for model in models)
    models = [
        onnx.compose.add_prefix(at_opset(model, opset), f"backbone_{number}/")
        for number, model in enumerate(models)
    ]
    build = GraphBuilder("sk_cnncodes/joint/")
    batch = _batch_of([model.graph.input[0] for model in models])
    images: dict[str, onnx.ValueInfoProto] = {}
    for name, model in zip(inputs, models, strict=True):
        build.node("Identity", name, output=model.graph.input[0].name)
        if name not in images:
            images[name] = image = onnx.ValueInfoProto()
            image.CopyFrom(model.graph.input[0])
            image.name = name
            image.type.tensor_type.shape.dim[0].CopyFrom(batch)
    nodes = [*build.nodes, *(node for model in models for node in model.graph.node)]
    last = GraphBuilder("sk_cnncodes/joint_codes/")
    parts = [models[model].graph.output[index].name for model, index in outputs]
    last.node("Concat", *parts, output=CODES, axis=1)
    widths = [
        models[model].graph.output[index].type.tensor_type.shape.dim[1].dim_value
        for model, index in outputs
    ]
    declared = onnx.helper.make_tensor_value_info(
        CODES, onnx.TensorProto.FLOAT, [batch.dim_value or "N", sum(widths)]
    )
    graph = onnx.helper.make_graph(
        [*nodes, *last.nodes],
        "codes",
        list(images.values()),
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


def _batch_of(images: list[onnx.ValueInfoProto]) -> onnx.TensorShapeProto.Dimension:
    """The batch size of all inputs: the fixed one, if one has it."""
    batches = [image.type.tensor_type.shape.dim[0] for image in images]
    sizes = [batch.dim_value for batch in batches]
    if len(set(sizes) - {0}) > 1:
        raise ExportError(
            f"model: its backbones have the fixed batch sizes {sizes} (0: any). "
            "Expected one size."
        )
    batch: onnx.TensorShapeProto.Dimension = batches[sizes.index(max(sizes))]
    return batch
