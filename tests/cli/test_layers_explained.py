"""`layers --explain`: which rule decided about each tensor."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from sk_cnncodes import load_backbone
from tests import networks
from tests.cli.commands import invoke


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return Path(networks.save(networks.resnet(), tmp_path / "net.onnx"))


@pytest.fixture
def net_of_any_size(net: Path) -> Path:
    model = onnx.load(net)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    onnx.save(model, net)
    return net


def test_each_candidate_has_a_rule() -> None:
    found = json.loads(invoke("layers", "cnncodes-mini", "--explain", "--json").stdout)
    layers = load_backbone("cnncodes-mini").layers
    listed = {each["tensor"]: each for each in found if each["is_layer"]}
    assert list(listed) == [layer.name for layer in layers]
    assert [each["position"] for each in listed.values()] == [*range(-len(layers), 0)]
    dropped = [each for each in found if not each["is_layer"]]
    assert len(dropped) > len(listed)
    assert all(each["rule"] for each in found)
    assert all(each["position"] is None for each in dropped)
    # The rule of a listed layer is that of the layer.
    assert [layer.rule for layer in layers] == [e["rule"] for e in listed.values()]
    assert "catalogue" in listed[layers[-1].name]["rule"]


def test_the_table_without_a_known_preprocessing(net: Path) -> None:
    """The size is that of the file's own input."""
    result = invoke("layers", str(net), "--explain")
    assert (result.exit_code, result.stderr) == (0, "")
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["layer", "tensor", "shape", "rule"]
    last = next(line for line in lines if line.split()[0] == "-1")
    assert "classifier" in last
    assert any(not line.startswith(" -") and "block" in line for line in lines)


def test_layers_without_a_known_preprocessing(net: Path) -> None:
    result = invoke("layers", str(net))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split()[0] == "-1"


def test_a_size_that_the_file_does_not_state(net_of_any_size: Path) -> None:
    asked = invoke("layers", str(net_of_any_size), "--explain")
    assert asked.exit_code == 1
    assert "its preprocessing is not known" in asked.stderr
    assert "--size" in asked.stderr
    given = invoke("layers", str(net_of_any_size), "--explain", "--size", "64")
    assert given.exit_code == 0, given.stderr
    assert "8x32x32" in given.stdout  # the stem has half of the size


def test_what_states_the_penultimate_tensor(net: Path) -> None:
    model = onnx.load(net)
    model.metadata_props.add(key="sk_cnncodes.penultimate", value="stem")
    onnx.save(model, net)
    found = json.loads(invoke("layers", str(net), "--explain", "--json").stdout)
    assert found[-1]["tensor"] == "stem"
    assert "sk_cnncodes.penultimate" in found[-1]["rule"]


def test_a_wrong_preprocessing_file_is_an_error(net: Path) -> None:
    """It is known, and cannot be followed: no placeholder takes its place."""
    net.with_name("preprocessor_config.json").write_text('{"do_pad": true}')
    result = invoke("layers", str(net))
    assert result.exit_code == 1
    assert "do_pad" in result.stderr
