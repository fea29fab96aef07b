"""Reading ONNX files into a normal form, with or without their weights."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sk_cnncodes.base.exceptions import BackboneError, first_line
from sk_cnncodes.base.files import file_sha256
from sk_cnncodes.graphs.broadcasting import broadcast_as_numpy
from sk_cnncodes.graphs.checks import all_nodes, all_tensors, check_structure
from sk_cnncodes.graphs.completeness import check_given, check_inputs
from sk_cnncodes.graphs.ensemble_heads import join_ensemble_heads
from sk_cnncodes.graphs.fused_operators import split_fused
from sk_cnncodes.graphs.quantised_operators import expose_floats
from sk_cnncodes.graphs.view import (
    LARGEST_SHAPE_TENSOR,
    constant_names,
    default_opset,
    node_reads,
    tensor_size,
)

if TYPE_CHECKING:
    import onnx

# ONNX Runtime does not guarantee support for older default opsets.
OLDEST_OPSET = 7
# Stands for a side of an image that the file does not state.
_ANY_SIDE = 224
# What the Hub calls a commit.
COMMIT = re.compile(r"[0-9a-f]{40}")
# Fields of a tensor that hold its elements.
_VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "double_data")


def digest_with_data(path: Path, model: onnx.ModelProto) -> str:
    """Digest of an ONNX file and of the external data files in its folder.

    Files that are missing or outside the folder are skipped here; reading the data
    raises an error that names them.
    """
    folder = path.parent.resolve()
    digest = file_sha256(path)
    parts = [digest]
    for name in external_data_files(model):
        try:
            file = (folder / name).resolve()
            is_ours = file.is_relative_to(folder) or _is_hub_blob(folder, name, file)
            if is_ours and file.is_file():
                parts.append(f"{name} {file_sha256(file)}")
        except (OSError, ValueError):  # not a valid path
            continue
    if len(parts) == 1:
        return digest
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file in a normal form, without its external data.

    The normal form has its nodes in topological order, no model-local functions, no
    `Constant` nodes in the main graph and no initializers among the inputs. Fused
    normalisations are split, integer activations are followed by their floats, and the
    inputs of several classifiers are concatenated.

    Raises
    ------
    BackboneError
        If the file is missing, is not ONNX, or its graph is malformed.
    """
    import onnx

    if not path.is_file():
        raise BackboneError(
            f"backbone file {str(path)!r}: no such file. Expected the path of an ONNX "
            "file."
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise BackboneError(
            f"backbone file {str(path)!r}: not an ONNX file, or a damaged one."
        ) from error
    if not model.graph.node or not model.graph.output:
        raise BackboneError(
            f"backbone file {str(path)!r}: not an ONNX network: it has "
            f"{len(model.graph.node)} nodes and {len(model.graph.output)} outputs."
        )
    try:
        check_structure(model)
        return _normal_form(model)
    except BackboneError as error:
        raise BackboneError(f"backbone file {str(path)!r}: {error}") from error
    except Exception as error:  # from onnx, or from malformed fields
        raise BackboneError(
            f"backbone file {str(path)!r}: its graph is malformed "
            f"({first_line(error)})."
        ) from error


def read_outline(path: Path) -> onnx.ModelProto:
    """Read a model as `read_model` does, without weights; do not modify the result.

    Shapes of weights, and values small enough to be shapes, are kept. The result is
    cached, so that a large file is parsed once.
    """
    return _read_outline(path, file_sha256(path))


@lru_cache(maxsize=32)
def _read_outline(path: Path, sha256: str) -> onnx.ModelProto:
    import onnx

    model = read_model(path)
    for tensor in model.graph.initializer:
        if tensor_size(tensor) > LARGEST_SHAPE_TENSOR:
            for field in _VALUES:
                tensor.ClearField(field)
    outline = onnx.ModelProto()
    outline.CopyFrom(model)  # cleared fields free memory only with their message
    return outline


def _normal_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model to the normal form of `read_model`."""
    check_inputs(model)
    _import_domains(model)
    if model.functions:
        _state_defaults(model)
        model = _inlined(model)
    check_given(model)
    if default_opset(model) < OLDEST_OPSET:
        model = _newer(model)
    graph = model.graph
    nodes = []
    for node in graph.node:
        tensor = _constant_tensor(node) if node.op_type == "Constant" else None
        if tensor is None:
            nodes.append(node)
        else:
            graph.initializer.append(tensor)
    nodes = sorted_nodes(nodes)
    graph.ClearField("node")
    graph.node.extend(nodes)
    constants = constant_names(graph)
    inputs = [value for value in graph.input if value.name not in constants]
    graph.ClearField("input")
    graph.input.extend(inputs)
    split_fused(model)
    expose_floats(model)
    join_ensemble_heads(model)
    # Initializers that are not inputs exist since IR version 4.
    model.ir_version = max(model.ir_version, 4)
    return model


def _state_defaults(model: onnx.ModelProto) -> None:
    """Write defaults of functions' attributes where they are called without them.

    onnx leaves them out when it inlines, and operators then have their own defaults.
    """
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    for node in all_nodes(model):
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            stated = {attribute.name for attribute in node.attribute}
            defaults = [a for a in function.attribute_proto if a.name not in stated]
            node.attribute.extend(defaults)


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the nodes of model-local functions where they are called."""
    import onnx.inliner
    import onnx.shape_inference

    opset = default_opset(model)
    others = [f for f in model.functions if _opset_of(f) not in (opset, None)]
    if not others:
        return onnx.inliner.inline_local_functions(model)
    try:
        # The conversion needs the types of what a function is called with.
        model = onnx.shape_inference.infer_shapes(model)
        return onnx.inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:
        raise BackboneError(
            f"its function {others[0].name!r} is of opset {_opset_of(others[0])}, the "
            f"network of {opset}, and onnx cannot convert it ({first_line(error)}). "
            "Expected one opset: export the network again."
        ) from error


def _opset_of(function: onnx.FunctionProto) -> int | None:
    """Version of a function's default operator set; None if it imports none."""
    versions = [o.version for o in function.opset_import if o.domain in ("", "ai.onnx")]
    return max(versions, default=None)


def _newer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model to the oldest opset that ONNX Runtime supports."""
    import onnx
    import onnx.version_converter

    broadcast_as_numpy(model)
    # onnx converts fixed shapes only; nothing that it writes depends on them.
    stated = onnx.GraphProto(input=model.graph.input, output=model.graph.output)
    for value in (*model.graph.input, *model.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = _ANY_SIDE if axis > 1 else 1
    try:
        model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:
        raise BackboneError(
            f"its opset {default_opset(model)} is older than {OLDEST_OPSET}, and onnx "
            f"cannot convert it ({first_line(error)}). Export the network again."
        ) from error
    for field in ("input", "output", "value_info"):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(getattr(stated, field))
    return model


def _import_domains(model: onnx.ModelProto) -> None:
    """Import the domains that functions import, or that nodes have without an import.

    Inlined functions lose their imports, and onnx needs them to infer shapes.
    """
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for function in model.functions:
        for opset in function.opset_import:
            versions.setdefault(opset.domain, opset.version)
    for node in all_nodes(model):
        if node.domain not in ("", "ai.onnx"):
            versions.setdefault(node.domain, 1)
    known = {opset.domain for opset in model.opset_import}
    for domain, version in versions.items():
        if domain not in known | {"", "ai.onnx"}:
            model.opset_import.add(domain=domain, version=version)


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Value of a `Constant` node as an initializer; None for strings."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    kinds = {"value_int": "i8", "value_ints": "i8"}
    kinds |= {"value_float": "f4", "value_floats": "f4"}
    if attribute.name not in kinds:
        return None
    array = np.asarray(value, kinds[attribute.name])
    return numpy_helper.from_array(array, node.output[0])


def sorted_nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Sort nodes topologically, keeping their order if it is valid already.

    Raises
    ------
    BackboneError
        If two nodes write the same tensor, or the graph has a cycle.
    """
    nodes = list(nodes)
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in producer:
                raise BackboneError(f"the tensor {name!r} is written by two nodes.")
            producer[name] = index
    waits = [{producer[n] for n in node_reads(node) if n in producer} for node in nodes]
    followers: list[list[int]] = [[] for _ in nodes]
    for index, sources in enumerate(waits):
        for source in sources:
            followers[source].append(index)
    missing = [len(sources) for sources in waits]
    ready = [index for index, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(nodes[index])
        for follower in followers[index]:
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, follower)
    if len(order) < len(nodes):
        stuck = next(node for node, count in zip(nodes, missing, strict=True) if count)
        raise BackboneError(
            f"its graph has a cycle through the tensor {stuck.output[0]!r}."
        )
    return order


def external_data_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the external data files of a model, relative to its folder."""
    return tuple(
        sorted(
            {
                entry.value
                for tensor in all_tensors(model.graph)
                for entry in tensor.external_data
                if entry.key == "location"
            }
        )
    )


def embed_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Load all external data of a model into the model.

    Raises
    ------
    BackboneError
        If a data file is missing, too short, or outside of `folder`.
    """
    import onnx
    from onnx import external_data_helper

    for tensor in all_tensors(model.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = {e.key: e.value for e in tensor.external_data}.get("location")
        try:
            place = _place_of_blob(folder, tensor) or folder
            external_data_helper.load_external_data_for_tensor(tensor, str(place))
        except Exception as error:
            raise BackboneError(
                f"the weights of {tensor.name!r} cannot be read from {location!r}, "
                f"expected in the folder {str(folder)!r} ({first_line(error)})."
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")


def _place_of_blob(folder: Path, tensor: onnx.TensorProto) -> Path | None:
    """Folder of a tensor's data if they are a blob of the Hub; the tensor names it.

    onnx refuses links, which may lead anywhere. In the Hub's cache, the names of a
    snapshot are links to blobs.
    """
    folder = folder.resolve()
    for entry in tensor.external_data:
        link: Path = folder / entry.value
        if entry.key == "location" and link.is_symlink():
            file = link.resolve()
            if _is_hub_blob(folder, entry.value, file):
                entry.value = file.name
                return file.parent
    return None


def _is_hub_blob(folder: Path, name: str, file: Path) -> bool:
    """Whether a file in a snapshot of the Hub's cache is a link to one of its blobs.

    `models--owner--name` has `snapshots/COMMIT` and `blobs`, whose files may themselves
    be links to the cache's own `blobs`.
    """
    if ".." in re.split(r"[\\/]", name) or Path(name).is_absolute():
        return False
    for snapshot in (folder, *folder.parents):
        repository = snapshot.parent.parent
        is_one = snapshot.parent.name == "snapshots" and COMMIT.fullmatch(snapshot.name)
        if is_one and repository.name.startswith("models--"):
            blobs = (repository / "blobs", repository.parent / "blobs")
            return any(file.is_relative_to(each) for each in blobs)
    return False
