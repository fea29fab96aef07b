"""Exports without a classifier: layer -1 is what their library calls the features."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sk_cnncodes import CNNCodeTransformer, Preprocessing, load_backbone
from tests.architectures.helpers import network_input, photographs, watched

pytestmark = [
    pytest.mark.slow,
    # The exporters call parts of torch that torch deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 16,
    "bos_token_id": 98,
    "eos_token_id": 99,
}
PIXELS = "pixel_values"


@pytest.fixture(scope="module")
def transformers(torchvision: Any) -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def timm(torchvision: Any) -> Any:
    return pytest.importorskip("timm")


def preprocessing(side: int) -> Preprocessing:
    return Preprocessing(crop_size=side, resize="exact", scale=1 / 127.5, mean=(1,) * 3)


def export(
    model: Any, side: int, outputs: list[str], path: Path, words: Any = None
) -> dict[str, np.ndarray]:
    """Export chosen outputs of a model; return their values for the photographs.

    The batch size of a model with texts is that of the images.
    """
    import torch

    class Chosen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> list[Any]:
            names = [PIXELS] if words is None else ["input_ids", PIXELS]
            found = self.model(**dict(zip(names, inputs, strict=True)))
            return [getattr(found, name) for name in outputs]

    images = torch.from_numpy(network_input(preprocessing(side)))
    inputs = (images,) if words is None else (words, images)
    names = [PIXELS] if words is None else ["input_ids", PIXELS]
    chosen = Chosen().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            chosen,
            inputs,
            str(path),
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: {0: name} for name in names},
            dynamo=False,
        )
        values = chosen(*inputs)
    return {name: value.numpy() for name, value in zip(outputs, values, strict=True)}


def codes(path: Path, side: int, layer: int | str = -1, **options: Any) -> np.ndarray:
    transformer = CNNCodeTransformer(
        str(path),
        layer=layer,
        norm=None,
        preprocessing=preprocessing(side),
        **options,
    )
    return transformer.fit_transform(photographs())


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std(axis=0).max() > 0
    np.testing.assert_allclose(
        found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )


TOWERS = {
    "CLIPVisionModel": "CLIPVisionConfig",
    "CLIPVisionModelWithProjection": "CLIPVisionConfig",
    "SiglipVisionModel": "SiglipVisionConfig",
    "BlipVisionModel": "BlipVisionConfig",
    "BeitModel": "BeitConfig",
}


@pytest.mark.parametrize("name", TOWERS)
def test_vision_tower(name: str, transformers: Any, tmp_path: Path) -> None:
    """The pooled embedding; the mean of the tokens by the name of the output."""
    import torch

    torch.manual_seed(0)
    config = getattr(transformers, TOWERS[name])(**VISION)
    model = getattr(transformers, name)(config).eval()
    pooled = "image_embeds" if "Projection" in name else "pooler_output"
    outputs = ["last_hidden_state", pooled]
    values = export(model, 32, outputs, tmp_path / "net.onnx")
    assert_same(codes(tmp_path / "net.onnx", 32), values[pooled])
    assert_same(codes(tmp_path / "net.onnx", 32, pooled), values[pooled])
    means = codes(tmp_path / "net.onnx", 32, "last_hidden_state", pooling="mean")
    assert_same(means, values["last_hidden_state"].mean(1))


def test_the_tanh_pooler_is_not_used(transformers: Any, tmp_path: Path) -> None:
    """ViTModel: its classifiers read the class token."""
    model = transformers.ViTModel(transformers.ViTConfig(**VISION)).eval()
    outputs = ["last_hidden_state", "pooler_output"]
    values = export(model, 32, outputs, tmp_path / "net.onnx")
    assert_same(codes(tmp_path / "net.onnx", 32), values["last_hidden_state"][:, 0])


@pytest.mark.parametrize("with_features", [True, False])
@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_image_text_model(
    name: str, with_features: bool, transformers: Any, tmp_path: Path
) -> None:
    """Two towers, with the features of both as outputs, or with scores alone."""
    import torch

    torch.manual_seed(0)
    text = TEXT | ({"projection_size": 64} if name == "Siglip" else {})
    config = getattr(transformers, f"{name}Config")(
        vision_config=VISION, text_config=text
    )
    model = getattr(transformers, f"{name}Model")(config).eval()
    scores = ["logits_per_image", "logits_per_text"]
    outputs = scores + ["text_embeds", "image_embeds"] * with_features
    words = torch.randint(2, 90, (2, 8))
    export(model, 32, outputs, tmp_path / "net.onnx", words)
    images = torch.from_numpy(network_input(preprocessing(32)))
    with torch.no_grad():
        expected = model(input_ids=words, pixel_values=images).image_embeds.numpy()
    assert_same(codes(tmp_path / "net.onnx", 32), expected)


def test_feature_pyramid_of_timm(timm: Any, tmp_path: Path) -> None:
    model = timm.create_model("mobilenetv2_050", pretrained=False, features_only=True)
    check_pyramid(model, lambda found: found, 5, tmp_path)


def test_feature_pyramid_of_torchvision(torchvision: Any, tmp_path: Path) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    stages = [f"layer{number}" for number in range(1, 5)]
    model = create_feature_extractor(torchvision.models.resnet18(), stages)
    check_pyramid(model, lambda found: [found[name] for name in stages], 4, tmp_path)


def check_pyramid(
    model: Any, maps: Callable[[Any], list[Any]], count: int, folder: Path
) -> None:
    """The last map is layer -1, and all maps are numbered layers."""
    import torch

    class Outputs:
        def __init__(self, found: list[Any]) -> None:
            vars(self).update({f"map{i}": value for i, value in enumerate(found)})

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, pixel_values: Any) -> Outputs:
            return Outputs(maps(self.model(pixel_values)))

    path = folder / "net.onnx"
    outputs = [f"map{number}" for number in range(count)]
    values = export(Wrapped().eval(), 64, outputs, path)
    layers = load_backbone(path, preprocessing(64)).layers
    numbered = {layer.name: layer.position for layer in layers}
    assert set(outputs) <= set(numbered)
    assert numbered[outputs[-1]] == -1
    for name in outputs:
        assert_same(codes(path, 64, numbered[name]), values[name].mean((2, 3)))


@pytest.mark.parametrize("name", ["segformer", "dpt"])
def test_dense_predictor(name: str, transformers: Any, tmp_path: Path) -> None:
    """The last block of the encoder."""
    import torch

    torch.manual_seed(0)
    if name == "segformer":
        config = transformers.SegformerConfig(hidden_sizes=[16, 32, 64, 96])
        config.decoder_hidden_size = 32
        model = transformers.SegformerForSemanticSegmentation(config).eval()
        output = "logits"
        ends = [n for n, m in model.named_modules() if n.endswith("blocks.1")]
    else:
        changed = {
            "image_size": 64,
            "patch_size": 16,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 64, 64],
            "fusion_hidden_size": 32,
        }
        config = transformers.DPTConfig(**(VISION | changed))
        model = transformers.DPTForDepthEstimation(config).eval()
        output, ends = "predicted_depth", ["dpt.encoder.layer.3"]
    images = torch.from_numpy(network_input(preprocessing(64)))
    with watched(model, ends[-1:]) as values, torch.no_grad():
        model(images)
    export(model, 64, [output], tmp_path / "net.onnx")
    tokens = values[ends[-1]]
    expected = tokens.mean(1) if name == "segformer" else tokens[:, 0]
    assert_same(codes(tmp_path / "net.onnx", 64), expected)
