"""Reading and cutting: only what a layer needs is left, and it computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sk_cnncodes import BackboneError
from sk_cnncodes.graph import (
    GraphView,
    cut_model,
    embed_external_data,
    infer_types,
    node_reads,
    read_model,
    sorted_nodes,
)
from sk_cnncodes.runtime import import_onnxruntime
from tests import graphs


def names(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def test_cut_keeps_only_what_the_layer_needs(tmp_path: Path) -> None:
    model = read_model(Path(graphs.save(graphs.alexnet(), tmp_path / "a.onnx")))
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


def test_cut_follows_captures_of_sub_graphs(tmp_path: Path) -> None:
    model = read_model(Path(graphs.save(graphs.with_if(), tmp_path / "a.onnx")))
    cut = cut_model(model, ["chosen"])
    assert "captured" in names(cut)
    assert "unused_weight" not in names(cut)
    assert {"first", "captured"} <= set(node_reads(cut.graph.node[-1]))
    assert [node.op_type for node in cut.graph.node] == ["Conv", "Relu", "If"]


def test_functions_are_inlined(tmp_path: Path) -> None:
    model = read_model(Path(graphs.save(graphs.with_function(), tmp_path / "a.onnx")))
    assert not model.functions
    assert "doubled" in GraphView(model, "data").dependent


def test_external_data_of_later_layers_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    graphs.save(
        graphs.alexnet(),
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
    view = GraphView(graphs.resnet(), "data")
    cuts = view.cut_tensors("scores")
    blocks = [c for c in cuts if c.startswith(("stem", "block", "pooled"))]
    assert blocks == ["stem", "block0", "block1", "block2", "block3", "pooled"]
    inside = [n.output[0] for n in view.nodes if n.op_type == "Conv"][1]
    assert inside not in cuts


def test_shape_edges_are_no_dependence() -> None:
    view = GraphView(graphs.vit(), "data")
    assert "embedded" in view.cut_tensors("scores")
    (expand,) = [n for n in view.nodes if n.op_type == "Expand"]
    assert expand.output[0] not in view.dependent


def test_types_do_not_depend_on_a_baked_batch() -> None:
    types = infer_types(graphs.resnet(batch=1), "data", (4, 3, 32, 32))
    assert types["block3"].shape == (4, 16, 8, 8)


def test_nodes_in_any_order_are_sorted() -> None:
    nodes = list(graphs.resnet().graph.node)
    order = np.random.default_rng(0).permutation(len(nodes))
    done = {"data"} | names(graphs.resnet())
    for node in sorted_nodes([nodes[i] for i in order]):
        assert done.issuperset(node_reads(node))
        done.update(node.output)


def test_a_cycle_is_named() -> None:
    nodes = [
        helper.make_node("Relu", ["b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
    ]
    with pytest.raises(BackboneError, match=r"cycle through the tensor '[ab]'"):
        sorted_nodes(nodes)
    twice = [helper.make_node("Relu", ["x"], ["a"])] * 2
    with pytest.raises(BackboneError, match="'a' is written by two nodes"):
        sorted_nodes(twice)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not an ONNX network"), (b"hello, I am text", "not an ONNX file")],
)
def test_not_onnx(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=f"text.onnx.*{reason}"):
        read_model(path)


def test_initializers_among_the_inputs_are_not_inputs(tmp_path: Path) -> None:
    """Files before IR version 4 list every weight as an input too."""
    model = graphs.resnet(opset=7)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    read = read_model(Path(graphs.save(model, tmp_path / "old.onnx")))
    assert [value.name for value in read.graph.input] == ["data"]
    assert read.ir_version >= 4
