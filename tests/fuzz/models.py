"""A case: a damaged ONNX file gives the codes of its layer, or a BackboneError.

Correct codes are those that ONNX Runtime computes from the whole file, uncut.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from sk_cnncodes import BackboneError, CNNCodeTransformer, Preprocessing, load_backbone
from sk_cnncodes.codes.sessions import SESSIONS
from sk_cnncodes.engines.onnxruntime import import_onnxruntime
from tests import networks
from tests.fuzz.image_seeds import photographs
from tests.fuzz.mutations import mutated

SIDE = networks.SIDE
PLAIN = Preprocessing(crop_size=(SIDE, SIDE), scale=1 / 127.5, mean=(1, 1, 1))
_ODD = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 2**16, 2**31 - 1, 2**40, 2**63 - 1]
_LARGEST_BATCH = 64  # with which the whole file is run
_OPS = ["Relu", "Add", "Conv", "Reshape", "Concat", "Gather", "Slice", "Transpose"]
_OPS += ["If", "Loop", "Constant", "Shape", "Expand", "Tile", "Split", "TopK", "Cast"]
_OPS += ["MatMul", "Gemm", "Flatten", "Unsqueeze", "MaxPool", "NotAnOperator", "Einsum"]
_OPS += [
    "ConstantOfShape",
    "Resize",
    "Pad",
    "Range",
    "Where",
    "LSTM",
    "QLinearConv",
    "DequantizeLinear",
    "StringNormalizer",
]


@lru_cache(maxsize=1)
def seeds() -> list[bytes]:
    models = [
        networks.resnet(),
        networks.alexnet(),
        networks.squeezenet(),
        networks.vit(),
    ]
    models += [networks.with_if(), networks.with_function(), networks.resnet(batch=1)]
    models += [networks.vit(baked=True), networks.resnet(reshape=True, batch=2)]
    data = np.stack([pixels(image) for image in images()])
    for operators in (False, True):
        models.append(
            networks.quantised(networks.squeezenet(), data, operators=operators)
        )
    return [model.SerializeToString() for model in models]


def pixels(image: np.ndarray) -> np.ndarray:
    """An image as the networks read it."""
    return (image / 127.5 - 1).transpose(2, 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def images() -> list[np.ndarray]:
    """Two images of the size that the networks take."""
    return [np.asarray(p.resize((SIDE, SIDE))) for p in photographs()[:2]]


def damaged_model(case: int) -> bytes:
    rng = random.Random(case)
    content = seeds()[case % len(seeds())]
    if rng.random() < 0.4:
        return mutated(content, rng.choice(seeds()), rng)
    return damaged(content, damage_graph, rng)


def damaged(
    content: bytes,
    damage: Callable[[onnx.ModelProto, random.Random], None],
    rng: random.Random,
) -> bytes:
    """Apply `damage` to a model one to four times."""
    model = onnx.load_from_string(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        try:
            damage(model, rng)
        except (ValueError, OverflowError, TypeError, IndexError):
            continue  # this field does not accept this value
    return bytes(model.SerializeToString())


def damage_graph(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change one thing in a model: a name, a number, a type, an operator."""
    graph = model.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    names = [t.name for t in graph.initializer] + [
        o for n in graph.node for o in n.output
    ]
    which = rng.randrange(24)
    if which == 0:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nowhere"])
    elif which == 1:
        node.output[0] = rng.choice([*names, "", "nowhere"])
    elif which == 2:
        node.op_type = rng.choice(_OPS)
    elif which == 3:
        node.domain = rng.choice(
            ["custom", "com.microsoft", "ai.onnx.ml", "local", "é"]
        )
    elif which == 4:
        graph.node.remove(node)
    elif which == 5:
        graph.node.append(node)
    elif which == 6:
        del node.input[rng.randrange(len(node.input)) :]
    elif which == 7:
        graph.initializer.remove(tensor)
    elif which == 8:
        graph.initializer.append(tensor)
    elif which == 9:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_ODD)
    elif which == 10:
        tensor.dims.append(rng.choice(_ODD))
    elif which == 11:
        tensor.data_type = rng.choice([0, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99])
    elif which == 12:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif which == 13:
        tensor.name = rng.choice([*names, "", "data"])
    elif which == 14:
        attribute = rng.choice(node.attribute)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_ODD)
        attribute.i = rng.choice(_ODD)
    elif which == 15:
        attribute = rng.choice(node.attribute)
        attribute.type = rng.randrange(15)
    elif which == 16:
        node.attribute.remove(rng.choice(node.attribute))
    elif which == 17:
        node.attribute.append(rng.choice(rng.choice(graph.node).attribute))
    elif which == 18:
        model.opset_import[0].version = rng.choice([*_ODD, 1, 6, 9, 13, 21, 99])
    elif which == 19:
        shape = graph.input[0].type.tensor_type.shape
        shape.dim[rng.randrange(4)].dim_value = rng.choice(_ODD)
    elif which == 20:
        graph.input[0].type.tensor_type.elem_type = rng.choice([0, 2, 7, 8, 10, 11, 99])
    elif which == 21:
        tensor.data_location = TensorProto.EXTERNAL
        location = rng.choice(
            ["../outside", "/etc/hostname", "missing", ".", "", "a\0b"]
        )
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="offset", value=str(rng.choice(_ODD)))
    elif which == 22:
        graph.output[0].name = rng.choice([*names, "", "nowhere", "data"])
    else:
        values = rng.randbytes(len(tensor.raw_data))
        tensor.raw_data = values


def check(case: int) -> str:
    """Fit and transform with the file of a case."""
    return check_model(
        damaged_model(case), random.Random(case).choice([-1, -1, -2, -3])
    )


def check_model(content: bytes, layer: int | str) -> str:
    """Compute codes of two images; "codes" if they are known to be correct."""
    SESSIONS.clear()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.onnx")
        path.write_bytes(content)
        codes = CNNCodeTransformer(
            path, layer=layer, preprocessing=PLAIN, cache=None, device="cpu", n_jobs=1
        )
        try:
            found = codes.fit_transform(images())
            tensor = load_backbone(path, PLAIN).layer(layer)
        except BackboneError as error:
            assert "damaged.onnx" in str(error) or "image " in str(error), (
                f"does not name the file: {error}"
            )
            return "errors"
        assert found.shape[0] == len(images())
        assert np.isfinite(found).all()
        wanted = reference(content, tensor.name, tensor.kind, tensor.channel_axis)
    if wanted is None or wanted.shape != found.shape:
        return "codes_unchecked"
    largest = max(1.0, float(np.abs(wanted).max()))
    difference = float(np.abs(found - wanted).max())
    assert difference <= 1e-3 * largest, (
        f"codes differ by {difference}, scale {largest}"
    )
    return "codes"


def reference(content: bytes, name: str, kind: str, axis: int) -> np.ndarray | None:
    """Averages of a tensor per image; None if the file does not run."""
    ort = import_onnxruntime()
    try:
        model = onnx.load_from_string(content)
        (value,) = [v for v in model.graph.input if v.name == "data"]
        if name not in [o.name for o in model.graph.output]:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        rows = []
        batch = value.type.tensor_type.shape.dim[0].dim_value or 1
        if batch > _LARGEST_BATCH:
            return None
        for image in images():
            data = pixels(image)[None].repeat(batch, axis=0)
            (row,) = session.run([name], {"data": data})
            rows.append(row[:1])
    except (DecodeError, ValueError, RuntimeError, MemoryError, UnicodeError):
        return None
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            return None
        raise
    together = np.concatenate(rows)
    if kind == "map":
        return together.mean(axis=(2, 3) if axis == 1 else (1, 2))
    if kind == "vector":
        return together.reshape(len(together), -1)
    return None


if __name__ == "__main__":
    print(check(int(sys.argv[1])))
