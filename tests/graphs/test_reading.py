"""Files of all kinds are read into one normal form, and parsed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sk_cnncodes import BackboneError, Preprocessing, load_backbone
from sk_cnncodes.graphs import reading as model_files
from sk_cnncodes.graphs.reading import read_model, read_outline, sorted_nodes
from sk_cnncodes.graphs.view import GraphView, node_reads
from tests import networks


def test_functions_are_inlined(tmp_path: Path) -> None:
    model = read_model(
        Path(networks.save(networks.with_function(), tmp_path / "a.onnx"))
    )
    assert not model.functions
    assert "doubled" in GraphView(model, "data").image_dependent


def _leaky(name: str, alpha: float, called: str = "LeakyRelu") -> onnx.FunctionProto:
    """A function that hands its attribute alpha, with a default, to an operator."""
    call = helper.make_node(called, ["x"], ["y"])
    if called != "LeakyRelu":
        call.domain = "local"
    call.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT)
    call.attribute[0].ref_attr_name = "alpha"
    leaves_out = helper.make_node("Leaky", ["y"], ["z"], domain="local")
    nodes = [call, leaves_out] if called != "LeakyRelu" else [call]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    function = helper.make_function(
        "local", name, ["x"], [nodes[-1].output[0]], nodes, imports
    )
    function.attribute_proto.append(helper.make_attribute("alpha", alpha))
    return function


def test_attributes_that_a_call_leaves_out_have_the_defaults_of_the_function(
    tmp_path: Path,
) -> None:
    """In the graph, in a branch, and in the body of another function."""
    import onnxruntime as ort

    net = networks.Net()
    x = net.op("Leaky", "data", domain="local", out="default")
    x = net.op("Leaky", x, domain="local", alpha=0.9, out="stated")
    x = net.op("Nested", x, domain="local", out="nested")
    branch = helper.make_graph(
        [helper.make_node("Leaky", [x], ["inner"], domain="local")],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", 1, None)],
    )
    yes = net.constant(np.array(True))
    x = net.op("If", yes, then_branch=branch, else_branch=branch, out="chosen")
    model = net.model(net.op("Identity", x, out="scores"))
    model.functions.extend([_leaky("Leaky", 0.5), _leaky("Nested", 0.7, "Leaky")])
    model.opset_import.append(helper.make_opsetid("local", 1))
    read = read_model(Path(networks.save(model, tmp_path / "a.onnx")))
    options = {"providers": ["CPUExecutionProvider"]}
    image = -np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    whole, inlined = (
        ort.InferenceSession(each.SerializeToString(), **options).run(
            None, {"data": image}
        )[0]
        for each in (model, read)
    )
    np.testing.assert_allclose(inlined, whole, rtol=1e-5)
    np.testing.assert_allclose(inlined, image * 0.5**3 * 0.9 * 0.7, rtol=1e-5)


def test_nodes_in_any_order_are_sorted() -> None:
    nodes = list(networks.resnet().graph.node)
    order = np.random.default_rng(0).permutation(len(nodes))
    done = {"data"} | {t.name for t in networks.resnet().graph.initializer}
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
    model = networks.resnet(opset=7)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    read = read_model(Path(networks.save(model, tmp_path / "old.onnx")))
    assert [value.name for value in read.graph.input] == ["data"]
    assert read.ir_version >= 4


def test_an_outline_has_shapes_but_no_weights(tmp_path: Path) -> None:
    path = Path(networks.save(networks.alexnet(), tmp_path / "net.onnx"))
    outline, model = read_outline(path), read_model(path)
    assert outline.ByteSize() < 0.6 * model.ByteSize()
    assert outline.graph.node == model.graph.node
    for light, whole in zip(
        outline.graph.initializer, model.graph.initializer, strict=True
    ):
        assert (light.name, light.dims) == (whole.name, whole.dims)
        assert light == whole or np.prod(whole.dims) > 4096


def test_a_file_is_parsed_once_until_it_changes(
    tmp_path: Path, plain: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counting(path: Path) -> onnx.ModelProto:
        read.append(path)
        return read_model(path)

    monkeypatch.setattr(model_files, "read_model", counting)
    path = Path(networks.save(networks.resnet(), tmp_path / "net.onnx"))
    for _ in range(2):
        backbone = load_backbone(path, plain)
        assert len(backbone.layers) == 5
    assert read == [path]
    networks.save(networks.squeezenet(), path)
    assert len(load_backbone(path, plain).layers) == 3
    assert read == [path, path]
