"""The commands that list, inspect and download backbones."""

from __future__ import annotations

import json
from pathlib import Path

import sk_cnncodes
from sk_cnncodes.backbones.catalogue import list_backbones
from tests.cli.commands import invoke


def test_backbones(tmp_path: Path) -> None:
    rows = {row.name: row for row in list_backbones()}
    # The table checks only names and sizes.
    with open(tmp_path / "mnist-12.onnx", "wb") as file:
        file.truncate(rows["mnist-12"].size)
    result = invoke("backbones", SK_CNNCODES_HOME=str(tmp_path))
    assert (result.exit_code, result.stderr) == (0, "")
    head, *lines = result.stdout.splitlines()
    assert head.split()[:2] == ["name", "aliases"]
    local = {line.split()[0]: line[head.index("local") :] for line in lines}
    assert list(local) == list(rows)
    assert local["cnncodes-mini"] == "bundled"
    assert local["mnist-12"] == "yes"
    assert local["resnet50-v1-12"] == "no"
    assert local["mobilenet_v2"] == "no, cannot be downloaded"


def test_backbones_as_json(tmp_path: Path) -> None:
    result = invoke("backbones", "--json", SK_CNNCODES_HOME=str(tmp_path))
    found = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(found) == [row.name for row in list_backbones()]
    mini, resnet = found["cnncodes-mini"], found["resnet50-v1-12"]
    assert Path(mini["path"]).is_file()
    assert resnet["path"] is None
    assert resnet["aliases"] == ["resnet50"]
    assert resnet["preprocessing"]["crop_size"] == [224, 224]


def test_layers() -> None:
    result = invoke("layers", "cnncodes-mini")
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    columns = ["layer", "name", "shape", "code", "compute", "parameters"]
    assert head.split() == columns
    assert len(lines) == len(sk_cnncodes.load_backbone("cnncodes-mini").layers)
    position, _, shape, length, compute, parameters = lines[-1].split()
    assert (position, shape, length) == ("-1", "800", "800")
    assert 90 < float(compute.rstrip("%")) < 100
    assert 40 < float(parameters.rstrip("%")) < 60


def test_layers_as_json() -> None:
    found = json.loads(invoke("layers", "--json", "cnncodes-mini").stdout)
    layers = sk_cnncodes.load_backbone("cnncodes-mini").layers
    assert [fact["position"] for fact in found] == [x.position for x in layers]
    assert [fact["tensor"] for fact in found] == [x.name for x in layers]
    shares = [fact["compute_share"] for fact in found]
    assert shares == sorted(shares)
    assert found[-1]["code_length"] == 800


def test_download_of_a_local_backbone() -> None:
    result = invoke("download", "cnncodes-mini", SK_CNNCODES_OFFLINE="1")
    assert result.exit_code == 0
    name, _, path = result.stdout.strip().partition(": ")
    assert name == "cnncodes-mini"
    assert Path(path).is_file()


def test_download_without_the_network(tmp_path: Path) -> None:
    result = invoke(
        "download",
        "resnet50",
        SK_CNNCODES_OFFLINE="1",
        SK_CNNCODES_HOME=str(tmp_path),
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: backbone 'resnet50-v1-12': its file")
    assert str(tmp_path / "resnet50-v1-12.onnx") in result.stderr
    assert len(result.stderr.splitlines()) == 2
