"""Analysing and cutting graphs: a cut keeps only what a layer needs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from sk_cnncodes import BackboneError
from sk_cnncodes.engines.onnxruntime import import_onnxruntime
from sk_cnncodes.graphs.reading import embed_external_data, read_model
from sk_cnncodes.graphs.view import GraphView, cut_model, infer_types, node_reads
from tests import networks


def names(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def test_cut_keeps_only_what_the_layer_needs(tmp_path: Path) -> None:
    model = read_model(Path(networks.save(networks.alexnet(), tmp_path / "a.onnx")))
    helper.set_model_props(model, {"author": "someone"})
    cut = cut_model(model, ["pool2"])
    assert [node.op_type for node in cut.graph.node] == [
        *["Conv", "Relu", "MaxPool"],
        *["Conv", "Relu", "MaxPool"],
    ]
    assert len(cut.graph.initializer) == 4
    assert len(model.graph.initializer) == 14
    assert {p.key: p.value for p in cut.metadata_props} == {"author": "someone"}
    import_onnxruntime().InferenceSession(
        cut.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def test_cut_keeps_captures_of_bodies(tmp_path: Path) -> None:
    model = read_model(Path(networks.save(networks.with_if(), tmp_path / "a.onnx")))
    cut = cut_model(model, ["chosen"])
    assert "captured" in names(cut)
    assert "unused_weight" not in names(cut)
    assert {"first", "captured"} <= set(node_reads(cut.graph.node[-1]))
    assert [node.op_type for node in cut.graph.node] == ["Conv", "Relu", "If"]


def test_external_data_of_later_layers_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    networks.save(
        networks.alexnet(),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    model = read_model(path)
    cut = cut_model(model, ["pool1"])
    needed = names(cut)
    for file in tmp_path.iterdir():
        if file != path and file.name not in needed:
            file.unlink()
    embed_external_data(cut, tmp_path)
    import_onnxruntime().InferenceSession(
        cut.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with pytest.raises(BackboneError, match="cannot be read from"):
        embed_external_data(cut_model(model, ["fc7"]), tmp_path)


def test_dominators_skip_the_branches() -> None:
    view = GraphView(networks.resnet(), "data")
    cuts = view.dominators("scores")
    blocks = [c for c in cuts if c.startswith(("stem", "block", "pooled"))]
    assert blocks == ["stem", "block0", "block1", "block2", "block3", "pooled"]
    inside = [n.output[0] for n in view.nodes if n.op_type == "Conv"][1]
    assert inside not in cuts


def test_shape_edges_are_not_dependencies() -> None:
    view = GraphView(networks.vit(), "data")
    assert "embedded" in view.dominators("scores")
    (expand,) = [n for n in view.nodes if n.op_type == "Expand"]
    assert expand.output[0] not in view.image_dependent


def test_types_do_not_depend_on_a_fixed_batch_size() -> None:
    types = infer_types(networks.resnet(batch=1), "data", (4, 3, 32, 32))
    assert types["block3"].shape == (4, 16, 8, 8)
