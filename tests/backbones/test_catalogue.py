"""Rows are complete, and preprocessing is searched for in the documented order."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sk_cnncodes import BackboneError, Preprocessing, PreprocessingError, load_backbone
from sk_cnncodes.backbones import catalogue
from sk_cnncodes.backbones.catalogue import (
    MODELS,
    find_row,
    list_backbones,
    read_catalogue,
)
from sk_cnncodes.backbones.loading import download_backbone
from sk_cnncodes.base.files import file_sha256
from tests import networks

# SPDX identifiers of licences that permit use and redistribution.
LICENSES = {"Apache-2.0", "BSD-3-Clause", "MIT"}


def test_every_row_is_complete() -> None:
    with open(MODELS / "catalogue.toml", "rb") as file:
        written = tomllib.load(file)
    rows = list_backbones()
    assert len(rows) >= 30
    assert [row.name for row in rows if row.bundled] == ["cnncodes-mini"]
    assert rows[0].name == "cnncodes-mini"
    assert {row.name for row in rows} == set(written)
    for row in rows:
        assert re.fullmatch(r"[0-9a-z][0-9a-z._-]*", row.name)
        assert re.fullmatch(r"[0-9a-z._-]+\.onnx", row.file)
        assert re.fullmatch(r"[0-9a-f]{64}", row.sha256)
        assert isinstance(row.size, int)
        assert 10_000 < row.size < 10**9
        assert row.license in LICENSES
        assert row.source
        assert row.architecture
        assert 16 <= row.code_length <= 4096
        assert row.top1 is None or 50 < row.top1 < 90
        # These values must be explicit, not defaults.
        assert {"crop_size", "mean"} <= set(written[row.name]["preprocessing"])
        assert row.input_size == row.preprocessing.crop_size


def test_names_files_and_addresses_are_unique() -> None:
    rows = list_backbones()
    names = [name for row in rows for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    for row in rows:
        assert all(find_row(name) is row for name in (row.name, *row.aliases))
    for value in ("sha256", "file"):
        assert len({getattr(row, value) for row in rows}) == len(rows)
    addresses = [address for row in rows for address in row.addresses]
    assert len(set(addresses)) == len(addresses)


def test_addresses() -> None:
    for row in list_backbones():
        assert row.bundled == (not row.addresses) or row.name in (
            # Converted by hand, without a public copy.
            "squeezenet1.1",
            "mobilenet_v2",
        )
        for address in row.addresses:
            parts = urlsplit(address)
            assert parts.scheme == "https"
            assert parts.netloc in ("huggingface.co", "media.githubusercontent.com")
            assert parts.path.endswith(".onnx")
            assert not parts.query
            assert not parts.fragment
        if row.source.startswith("ONNX Model Zoo") and row.addresses:
            assert len(row.addresses) == 3
            assert {a.rpartition("/")[2] for a in row.addresses} == {row.file}
        elif row.addresses:
            # Repositories of others can change, so pin a commit.
            assert re.search(r"/resolve/[0-9a-f]{40}/", row.addresses[0])


@pytest.mark.parametrize(
    ("alias", "architecture"),
    [
        ("lenet", "LeNet-style"),
        ("alexnet", "AlexNet"),
        ("caffenet", "CaffeNet"),
        ("zfnet512", "ZFNet-512"),
        ("vgg16", "VGG-16"),
        ("vgg16_bn", "VGG-16-BN"),
        ("vgg19", "VGG-19"),
        ("vgg19_bn", "VGG-19-BN"),
        ("googlenet", "GoogLeNet"),
        ("inception_v1", "Inception v1"),
        ("inception_v2", "Inception v2"),
        ("resnet18", "ResNet-18 v1"),
        ("resnet34", "ResNet-34 v1"),
        ("resnet50", "ResNet-50 v1"),
        ("resnet101", "ResNet-101 v1"),
        ("resnet18_v2", "ResNet-18 v2"),
        ("resnet34_v2", "ResNet-34 v2"),
        ("resnet50_v2", "ResNet-50 v2"),
        ("resnet101_v2", "ResNet-101 v2"),
        ("resnet152_v2", "ResNet-152 v2"),
        ("densenet121", "DenseNet-121"),
        ("mobilenetv2", "MobileNetV2"),
        ("squeezenet1_0", "SqueezeNet 1.0"),
        ("squeezenet1_1", "SqueezeNet 1.1"),
        ("shufflenet_v1", "ShuffleNet v1"),
        ("shufflenet_v2", "ShuffleNet v2"),
        ("efficientnet_lite4", "EfficientNet-Lite4"),
        ("rcnn_ilsvrc13", "R-CNN ILSVRC13"),
        ("dinov2_small", "DINOv2 ViT-S/14"),
        ("clip_vit_b32", "CLIP ViT-B/32, vision"),
    ],
)
def test_aliases(alias: str, architecture: str) -> None:
    row = find_row(alias)
    assert row is not None
    assert row.architecture == architecture
    assert row.addresses


def test_preprocessing_by_convention_is_noted() -> None:
    for row in list_backbones():
        if row.preprocessing.channels == "BGR" and row.addresses:
            stated = row.name == "googlenet-12"
            assert stated or row.notes.startswith("Preprocessing by convention: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": "MIT"}, r"'net': unknown \['licence'\]"),
        ({"preprocessing": {"crop": 224}}, r"'net': preprocessing: unknown \['crop'\]"),
        ({"preprocessing": None}, "'net': "),
        ({"sha256": None}, "'net': .*sha256"),
    ],
)
def test_an_invalid_row_is_named(
    change: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values: dict[str, object] = {
        "file": "net.onnx",
        "sha256": "0" * 64,
        "size": 1,
        "license": "MIT",
        "source": "tests",
        "architecture": "small",
        "code_length": 1,
        "preprocessing": {"crop_size": 224},
    }
    values |= change
    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items() if isinstance(v, str)]
    lines += [f"{k} = {v}" for k, v in values.items() if isinstance(v, int)]
    if isinstance(table := values["preprocessing"], dict):
        lines += ["[net.preprocessing]", *(f"{k} = {v}" for k, v in table.items())]
    (tmp_path / "catalogue.toml").write_text("\n".join(["[net]", *lines]))
    monkeypatch.setattr(catalogue, "MODELS", tmp_path)
    read_catalogue.cache_clear()
    try:
        with pytest.raises(ValueError, match=message):
            read_catalogue()
    finally:
        read_catalogue.cache_clear()


def test_a_known_name_takes_precedence_over_a_file(
    tmp_path: Path, plain: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    networks.save(networks.resnet(), tmp_path / "cnncodes-mini")
    with pytest.warns(UserWarning, match=r"write '\..cnncodes-mini'"):
        assert load_backbone("cnncodes-mini").name == "cnncodes-mini"
    for path in (Path("cnncodes-mini"), "./cnncodes-mini"):
        assert load_backbone(path, plain).name is None


def test_similar_names_are_suggested() -> None:
    with pytest.raises(BackboneError, match="no such file.*such as 'resnet50'"):
        load_backbone("resnet-50")
    with pytest.raises(BackboneError, match="such as 'resnet50'"):
        load_backbone("ResNet50")
    with pytest.raises(
        BackboneError, match="no such file; for the known.*'resnet50', a s"
    ):
        load_backbone(Path("resnet50"))
    with pytest.raises(BackboneError, match="backbone='aaa.*name too long"):
        load_backbone("a" * 5000)
    with pytest.raises(BackboneError, match="not in the catalogue.*'resnet50'"):
        download_backbone("resnet-50")
    assert download_backbone("cnncodes-mini") == MODELS / "cnncodes-mini.onnx"


def test_bundled_files_match_their_rows() -> None:
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
        # Without the row, the same tensor is found.
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

    model = networks.resnet()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    path = networks.save(model, tmp_path / "net.onnx")
    with pytest.raises(PreprocessingError, match="not known"):
        load_backbone(path)

    timm = {"input_size": [3, 40, 40], "crop_pct": 1.0, "mean": [0] * 3, "std": [1] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": timm}))
    assert load_backbone(path).preprocessing.crop_size == (40, 40)

    hugging = {
        "size": {"height": 48, "width": 48},
        "image_processor_type": "ViTImageProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(hugging))
    assert load_backbone(path).preprocessing.crop_size == (48, 48)

    # transformers 5 writes the image processor into the processor's file, and reads it
    # first; older processor files have no image processor.
    processor = tmp_path / "processor_config.json"
    processor.write_text('{"processor_class": "CLIPProcessor"}')
    assert load_backbone(path).preprocessing.crop_size == (48, 48)
    nested = hugging | {"size": {"height": 52, "width": 52}}
    processor.write_text(json.dumps({"image_processor": nested}))
    loaded = load_backbone(path)
    assert loaded.preprocessing.crop_size == (52, 52)
    assert loaded.preprocessing_origin == repr(str(processor))

    for key, value in record(56).to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    networks.save(model, tmp_path / "net.onnx")
    assert load_backbone(path).preprocessing == record(56)
    assert load_backbone(path, record(64)).preprocessing == record(64)


def test_configuration_above_a_folder_of_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exports for the web have `onnx/model.onnx`, and the configuration above it."""
    config = tmp_path / "preprocessor_config.json"
    config.write_text('{"image_processor_type": "CLIPImageProcessor"}')
    for folder in ("onnx", "other"):
        (tmp_path / folder).mkdir()
        networks.save(networks.resnet(), tmp_path / folder / "model.onnx")
    found = load_backbone(tmp_path / "onnx" / "model.onnx")
    assert found.preprocessing.interpolation == "bicubic"
    assert found.preprocessing_origin == repr(str(config))
    monkeypatch.chdir(tmp_path / "onnx")
    assert load_backbone("model.onnx").preprocessing == found.preprocessing
    with pytest.raises(PreprocessingError, match="not known"):
        load_backbone(tmp_path / "other" / "model.onnx")

    nearer = tmp_path / "onnx" / "config.json"
    nearer.write_text('{"pretrained_cfg": {"input_size": [3, 32, 32]}}')
    assert load_backbone("model.onnx").preprocessing.crop_size == (32, 32)


def test_the_kind_of_model_decides_the_class_of_an_old_file(tmp_path: Path) -> None:
    path = networks.save(networks.resnet(), tmp_path / "net.onnx")
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32}')
    with pytest.raises(PreprocessingError, match="image_processor_type.*missing"):
        load_backbone(path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert load_backbone(path).preprocessing == Preprocessing(
        crop_size=32,
        resize="exact",
        rounding="huggingface",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        scale=1 / 255,
    )


def test_invalid_configuration_next_to_the_file(tmp_path: Path) -> None:
    path = networks.save(networks.resnet(), tmp_path / "net.onnx")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(PreprocessingError, match="preprocessor_config.json.*not JSON"):
        load_backbone(path)
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(PreprocessingError, match="expected a JSON object"):
        load_backbone(path)
    processor = tmp_path / "processor_config.json"
    processor.write_text('{"image_processor": "CLIPImageProcessor"}')
    with pytest.raises(PreprocessingError, match="processor_config.json.*an object"):
        load_backbone(path)
    processor.unlink()
    # A transformers config.json states no preprocessing.
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(PreprocessingError, match="not known"):
        load_backbone(path)


def test_the_digest_includes_external_weights(
    tmp_path: Path, plain: Preprocessing
) -> None:
    path = networks.save(
        networks.resnet(),
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
    model = networks.resnet()
    model.metadata_props.add(key="sk_cnncodes.penultimate", value="block1")
    path = networks.save(model, tmp_path / "net.onnx")
    assert load_backbone(path, plain).layer(-1).name == "block1"
