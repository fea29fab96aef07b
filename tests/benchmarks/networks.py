"""ResNet-50, VGG-16, ViT-S/16 and ViT-B/16 as ONNX files, with random weights.

python -m tests.benchmarks.networks FOLDER

The time of a run does not depend on the weights; these are scaled so that
activations neither vanish nor overflow. Batch normalisation is folded into the
convolutions, as ONNX Runtime does with files that still have it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from sk_cnncodes import Preprocessing
from tests import networks

IMAGENET = Preprocessing(
    crop_size=(224, 224),
    resize_size=256,
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def resnet(*stages: int) -> onnx.ModelProto:
    """So many bottleneck blocks in each stage (arXiv:1512.03385)."""
    net = networks.Net()
    x = net.op("Relu", net.conv("data", 3, 64, 7, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    width = 64
    for stage, blocks in enumerate(stages):
        inner, outer = 64 << stage, 256 << stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = net.op("Relu", net.conv(x, width, inner, 1))
            y = net.op("Relu", net.conv(y, inner, inner, 3, strides=[stride] * 2))
            # The variance grows at each of 16 sums; float16 has to have room for it.
            y = net.conv(y, inner, outer, 1, gain=0.5)
            short = x
            if block == 0:
                short = net.conv(x, width, outer, 1, strides=[stride] * 2, gain=0.5)
            x = net.op("Relu", net.op("Add", y, short))
            width = outer
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    return net.model(net.dense(x, width, 1000), shape=(3, 224, 224))


def vgg16() -> onnx.ModelProto:
    """Thirteen convolutions and three dense layers (arXiv:1409.1556, column D)."""
    net = networks.Net()
    x, width = "data", 3
    for out, count in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(count):
            x = net.op("Relu", net.conv(x, width, out))
            width = out
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Flatten", x, axis=1)
    x = net.op("Relu", net.dense(x, 512 * 7 * 7, 4096))
    x = net.op("Relu", net.dense(x, 4096, 4096))
    return net.model(net.dense(x, 4096, 1000), shape=(3, 224, 224))


def vit(width: int, heads: int, depth: int = 12) -> onnx.ModelProto:
    """Transformer blocks over 16x16 patches (arXiv:2010.11929, arXiv:2012.12877)."""
    net, tokens = networks.Net(), 197

    def ints(*values: int) -> str:
        return net.constant(np.array(values, np.int64))

    def normed(x: str) -> str:
        ones = net.constant(np.ones(width, np.float32))
        zeros = net.constant(np.zeros(width, np.float32))
        return net.op("LayerNormalization", x, ones, zeros, axis=-1)

    def attention(x: str) -> str:
        split = net.op("Reshape", net.linear(x, width, 3 * width), qkv_shape)
        split = net.op("Transpose", split, perm=[2, 0, 3, 1, 4])
        q, k, v = (
            net.op("Gather", split, net.constant(np.int64(i)), axis=0) for i in range(3)
        )
        k = net.op("Transpose", k, perm=[0, 1, 3, 2])
        scale = net.constant(np.float32((width // heads) ** -0.5))
        scores = net.op("Softmax", net.op("Mul", net.op("MatMul", q, k), scale))
        mixed = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
        return net.linear(net.op("Reshape", mixed, token_shape), width, width)

    def gelu(x: str) -> str:
        root = net.constant(np.float32(np.sqrt(2)))
        one, half = net.constant(np.float32(1)), net.constant(np.float32(0.5))
        phi = net.op("Add", net.op("Erf", net.op("Div", x, root)), one)
        return net.op("Mul", net.op("Mul", x, phi), half)

    qkv_shape = ints(0, tokens, 3, heads, width // heads)
    token_shape = ints(0, tokens, width)
    patches = net.op(
        "Conv",
        "data",
        net.weight(width, 3, 16, 16),
        net.weight(width),
        kernel_shape=[16, 16],
        strides=[16, 16],
    )
    patches = net.op("Reshape", patches, ints(0, width, tokens - 1))
    patches = net.op("Transpose", patches, perm=[0, 2, 1])
    count = net.op("Gather", net.op("Shape", "data"), ints(0))
    shape = net.op("Concat", count, ints(1, width), axis=0)
    token = net.op("Expand", net.weight(1, 1, width), shape)
    x = net.op("Concat", token, patches, axis=1)
    x = net.op("Add", x, net.weight(1, tokens, width))
    for _ in range(depth):
        x = net.op("Add", x, attention(normed(x)))
        inner = gelu(net.linear(normed(x), width, 4 * width))
        x = net.op("Add", x, net.linear(inner, 4 * width, width))
    first = net.op("Gather", normed(x), net.constant(np.int64(0)), axis=1)
    return net.model(net.dense(first, width, 1000), shape=(3, 224, 224))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": partial(resnet, 3, 4, 6, 3),
    "vgg16": vgg16,
    "vit_s16": partial(vit, 384, 6),
    "vit_b16": partial(vit, 768, 12),
}


def write(name: str, folder: Path) -> Path:
    """The file of a network with its preprocessing; made where it is missing."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        model = NETWORKS[name]()
        for key, value in IMAGENET.to_metadata().items():
            model.metadata_props.add(key=key, value=value)
        folder.mkdir(parents=True, exist_ok=True)
        networks.save(model, path)
    return path


if __name__ == "__main__":
    for name in NETWORKS:
        print(write(name, Path(sys.argv[1])))
