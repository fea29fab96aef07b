"""Every row is complete, and preprocessing is found in the documented order."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sk_cnncodes import Preprocessing, PreprocessingError, load_backbone
from sk_cnncodes.backbone import file_sha256
from sk_cnncodes.catalogue import MODELS, read_catalogue
from tests import graphs


def test_every_row_is_complete() -> None:
    rows = read_catalogue()
    assert "cnncodes-mini" in rows
    assert len({row.sha256 for row in rows.values()}) == len(rows)
    for name, row in rows.items():
        assert row.name == name
        assert re.fullmatch(r"[0-9a-f]{64}", row.sha256)
        assert row.size > 0
        assert row.license
        assert row.source
        assert row.code_length > 0


def test_bundled_files_are_as_their_rows_say() -> None:
    for row in read_catalogue().values():
        if not row.bundled:
            continue
        path = MODELS / row.file
        assert path.stat().st_size == row.size < 5_000_000
        assert file_sha256(path) == row.sha256
        backbone = load_backbone(row.name)
        assert backbone.preprocessing == row.preprocessing
        assert backbone.layer(-1).name == row.penultimate
        assert backbone.layer(-1).n_channels == row.code_length
        assert len(backbone.layers) >= 4
        # It is found to be what the row says it is.
        unnamed = type(backbone)(path, row.sha256, row.preprocessing)
        assert unnamed.layer(-1).name == row.penultimate


def test_rows_of_the_shared_backbones(shared: Path) -> None:
    for row in read_catalogue().values():
        path = shared / "backbones" / row.file
        if not path.exists():
            continue
        assert path.stat().st_size == row.size
        backbone = load_backbone(path)
        assert backbone.name == row.name
        unnamed = type(backbone)(path, row.sha256, row.preprocessing)
        assert unnamed.layer(-1).name == row.penultimate
        assert unnamed.layer(-1).n_channels == row.code_length


def test_order_of_preprocessing(tmp_path: Path) -> None:
    def record(size: int) -> Preprocessing:
        return Preprocessing(crop_size=(size, size), resize_size=size)

    model = graphs.resnet()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    path = graphs.save(model, tmp_path / "net.onnx")
    with pytest.raises(PreprocessingError, match="not known"):
        load_backbone(path)

    timm = {"input_size": [3, 40, 40], "crop_pct": 1.0, "mean": [0] * 3, "std": [1] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": timm}))
    assert load_backbone(path).preprocessing.crop_size == (40, 40)

    hugging = {"size": {"height": 48, "width": 48}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(hugging))
    assert load_backbone(path).preprocessing.crop_size == (48, 48)

    for key, value in record(56).to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    graphs.save(model, tmp_path / "net.onnx")
    assert load_backbone(path).preprocessing == record(56)
    assert load_backbone(path, record(64)).preprocessing == record(64)


def test_broken_configuration_beside_the_file(tmp_path: Path) -> None:
    path = graphs.save(graphs.resnet(), tmp_path / "net.onnx")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(PreprocessingError, match="preprocessor_config.json.*not JSON"):
        load_backbone(path)
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(PreprocessingError, match="expected a JSON object"):
        load_backbone(path)
    # A config.json of a transformers model that states no preprocessing.
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(PreprocessingError, match="not known"):
        load_backbone(path)


def test_weights_outside_of_the_file_are_in_the_digest(
    tmp_path: Path, plain: Preprocessing
) -> None:
    path = graphs.save(
        graphs.resnet(),
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    digest = load_backbone(path, plain).sha256
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[100] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert load_backbone(path, plain).sha256 != digest


def test_stated_penultimate(tmp_path: Path, plain: Preprocessing) -> None:
    model = graphs.resnet()
    model.metadata_props.add(key="sk_cnncodes.penultimate", value="block1")
    path = graphs.save(model, tmp_path / "net.onnx")
    assert load_backbone(path, plain).layer(-1).name == "block1"
