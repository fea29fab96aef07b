"""Compares codes with what the library that a network comes from computes itself."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from sk_cnncodes import (
    Backbone,
    CNNCodeTransformer,
    LayerError,
    Preprocessing,
    load_backbone,
)
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.engines.devices import Device
from sk_cnncodes.engines.session import open_session
from sk_cnncodes.tuning.tail import read_tail, tuned_model
from tests.conftest import prepared

RECIPES = Path(__file__).parents[2] / "models" / "recipes"
# Where the table of `models/README.md` is written to, if anywhere.
TABLE = "SK_CNNCODES_ARCHITECTURE_TABLE"
TITLES = (
    "Architecture",
    "Exported by",
    "Length of -1",
    "Boundaries",
    "Compared",
    "Largest relative difference",
)
# The same for the layers that can be trained.
TAILS = "SK_CNNCODES_TAIL_TABLE"
TRAINED_FROM = (-2, -4)
TAIL_TITLES = (
    "Architecture",
    "Exported by",
    *(f"Weights after {position}" for position in TRAINED_FROM),
    "Largest relative difference",
)
# `.ci/run architectures-nightly` adds torch's newer exporter to small networks.
NIGHTLY = "SK_CNNCODES_ARCHITECTURES_NIGHTLY"
EXPORTERS = ["torchscript", *(["dynamo"] if os.environ.get(NIGHTLY) else [])]
# Of a code's largest value, and of how much codes differ between images.
LARGEST_DIFFERENCE = 1e-3
LARGEST_SHARE_OF_SPREAD = 2e-2
# Of layer -1, where the source library has a function that computes it.
LARGEST_DIFFERENCE_OF_LAST = 1e-4
SMALLEST_SPREAD = 2e-3
# Of what torch computes, to what ONNX Runtime computes, before and after training.
LARGEST_DIFFERENCE_OF_TAIL = 1e-4
# Seconds; generous for machines with other work.
LONGEST_ANALYSIS = 30.0

Pool = Callable[[np.ndarray], np.ndarray]


def recipe(name: str) -> ModuleType:
    """A script of `models/recipes`, as a module."""
    if str(RECIPES) not in sys.path:
        sys.path.insert(0, str(RECIPES))
    return importlib.import_module(name)


def photographs() -> list[np.ndarray]:
    """Three parts of the photographs that scikit-learn brings."""
    first, second = load_sample_images().images
    return [first[:400, :400], second[:400, 200:600], second[20:420, :400]]


def whole(preprocessing: dict[str, Any]) -> Preprocessing:
    """A recipe's preprocessing, but for the crop."""
    read = Preprocessing.from_dict(preprocessing)
    return replace(read, resize="exact", resize_size=None)


def network_input(preprocessing: Preprocessing) -> np.ndarray:
    """What the network is given, computed in numpy: float32."""
    pixels = prepared(photographs(), preprocessing).astype(np.float64)
    if preprocessing.channels == "BGR":
        pixels = pixels[..., ::-1]
    elif preprocessing.channels == "GRAY":
        pixels = pixels @ np.array([[0.299], [0.587], [0.114]])
    pixels = pixels * preprocessing.scale - preprocessing.mean
    pixels = pixels / preprocessing.std
    if preprocessing.layout == "NCHW":
        pixels = pixels.transpose(0, 3, 1, 2)
    return pixels.astype(np.float32)


def averaged(values: np.ndarray, channels_last: bool = False) -> np.ndarray:
    """The mean over places of a map; the mean over tokens; or a vector as it is."""
    if values.ndim == 4:
        return values.mean((1, 2) if channels_last else (2, 3))
    return values.mean(1) if values.ndim == 3 else values


def class_token(values: np.ndarray) -> np.ndarray:
    return values[:, 0] if values.ndim == 3 else values


def check_codes(
    path: Path,
    preprocessing: Preprocessing,
    references: list[np.ndarray | None],
    labels: list[str | None],
    row: tuple[str, str],
    largest_of_last: float = LARGEST_DIFFERENCE,
) -> None:
    """Compare the codes of all boundaries with references, element by element.

    Parameters
    ----------
    path : Path
        The exported network.
    preprocessing : Preprocessing
    references : list of ndarray
        Codes of the images by the source library, from the image to layer -1; None
        where it has none.
    labels : list of str
        Expected labels of the layers; None where any will do.
    row : (str, str)
        Architecture and exporter.
    largest_of_last : float
        Largest difference that layer -1 may have, relative to its largest value.
    """
    stated = load_backbone(path).preprocessing  # of the file's own metadata
    assert whole(stated.to_dict()) == preprocessing
    start = time.perf_counter()
    backbone = load_backbone(path, preprocessing)
    layers = backbone.layers
    assert time.perf_counter() - start < LONGEST_ANALYSIS
    found = [layer.label for layer in layers]
    wanted = [b if a is None else a for a, b in zip(labels, found, strict=False)]
    assert found == wanted + [f"{len(labels)} layers"] * (len(labels) != len(found))
    maps, codes = boundary_codes(backbone)
    last = CNNCodeTransformer(path, preprocessing=preprocessing)
    codes[-1] = last.fit_transform(photographs())
    worst = 0.0
    for label, code, reference in zip(found, codes, references, strict=True):
        if reference is not None:
            worst = max(worst, _difference(label, code, reference))
    assert references[-1] is not None
    assert _difference(found[-1], codes[-1], references[-1]) < largest_of_last
    compared = sum(reference is not None for reference in references)
    write_row(
        (
            *row,
            f"{codes[-1].shape[1]:,}",
            str(len(layers)),
            str(compared),
            f"{worst:.1e}",
        )
    )
    check_tails(backbone, maps, codes[-1], row)


def boundary_codes(
    backbone: Backbone,
) -> tuple[dict[int, np.ndarray], list[np.ndarray]]:
    """Maps that tails begin with, and codes of all numbered layers, by one graph."""
    count = len(backbone.layers)
    starts = [position for position in TRAINED_FROM if position >= -count]
    specs = [backbone.spec(position, "flatten", None) for position in starts]
    specs += [backbone.spec(position, "auto", None) for position in range(-count, 0)]
    found = computed(backbone, specs)
    return dict(zip(starts, found, strict=False)), found[len(starts) :]


def computed(backbone: Backbone, specs: list[CodeSpec]) -> list[np.ndarray]:
    """Codes of the photographs by several specs, by one code graph."""
    session = open_session(backbone.code_graphs(specs), Device(None, True), 2)
    return [*session.run(prepared(photographs(), backbone.preprocessing))]


def _difference(label: str, codes: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference relative to the largest value."""
    assert codes.shape == reference.shape, label
    largest = np.abs(reference).max()
    spread = reference.std(axis=0).max()
    assert spread > SMALLEST_SPREAD * largest, (
        f"{label}: nearly the same codes for all images"
    )
    difference = np.abs(codes - reference).max()
    found = f"{label}: {difference=}, {largest=}, {spread=}"
    assert difference < LARGEST_DIFFERENCE * largest, found
    assert difference < LARGEST_SHARE_OF_SPREAD * spread, found
    return float(difference / largest)


def write_row(
    cells: tuple[str, ...], table: str = TABLE, titles: tuple[str, ...] = TITLES
) -> None:
    """Append a row to a table, where the environment names one."""
    if table not in os.environ:
        return
    path = Path(os.environ[table])
    lines = [cells] if path.exists() else [titles, ("---",) * len(titles), cells]
    with path.open("a") as file:
        file.writelines(f"| {' | '.join(line)} |\n" for line in lines)


# -- tails -------------------------------------------------------------------


def check_tails(
    backbone: Backbone,
    maps: Mapping[int, np.ndarray],
    codes: np.ndarray,
    row: tuple[str, str],
) -> None:
    """The layers after -2 and after -4 can be trained, and written back.

    Compared with ONNX Runtime: codes before, and after a random change of all weights.
    The layer that the weights come after has the same codes to the last bit.
    """
    torch = pytest.importorskip("torch")
    counts, worst = [], 0.0
    for position, found in maps.items():
        try:
            tail = read_tail(backbone, position)
        except LayerError as error:
            # Cells of NASNet read the last two before them.
            assert "also depends on the tensor" in str(error)
            counts.append("not one path")
            continue
        torch.manual_seed(0)
        with torch.no_grad():
            begun = tail.module(torch.from_numpy(found)).numpy()
            worst = max(worst, _relative(begun, codes))
            weights = dict(tail.module.named_parameters())
            for weight in weights.values():
                # What begins with zeros keeps gradients from what it multiplies.
                size = weight.abs().mean().clamp(min=1e-2)
                weight += 0.02 * size * torch.randn(weight.shape)
        output = tail.module(torch.from_numpy(found))
        (output * torch.randn(output.shape)).sum().backward()
        changed = output.detach().numpy()
        # NFNet's normalisation of weights is in training mode: it reads no statistics.
        unread = any(node.get("training_mode", 0) for node in tail.plan.nodes)
        still = [
            name
            for name, weight in weights.items()
            if not (unread and weight.grad is None) and not weight.grad.abs().max() > 0
        ]
        assert still == [], f"no gradients from {position}"
        counts.append(f"{len(weights):,}")
        if position != min(maps):
            continue
        written = backbone.path.with_name("tuned.onnx")
        written.write_bytes(tuned_model(backbone, tail, {"n_images": len(codes)}))
        tuned = load_backbone(written, backbone.preprocessing)
        assert [layer.name for layer in tuned.layers] == [
            layer.name for layer in backbone.layers
        ]
        specs = [tuned.spec(position, "flatten", None), tuned.spec(-1, "auto", None)]
        frozen, expected = computed(tuned, specs)
        np.testing.assert_array_equal(frozen, found)
        worst = max(worst, _relative(changed, expected))
        assert _relative(codes, expected) > LARGEST_DIFFERENCE_OF_TAIL
        written.unlink()
    assert worst < LARGEST_DIFFERENCE_OF_TAIL
    cells = (*row, *counts, *["-"] * (len(TRAINED_FROM) - len(counts)))
    write_row((*cells, f"{worst:.1e}"), TAILS, TAIL_TITLES)
    for shown in shown_rows(TAIL_TITLES):
        assert shown[:2] != row or shown[: len(cells)] == cells, "models/README.md"


def shown_rows(titles: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The rows of the table with these titles in `models/README.md`."""
    lines = iter((RECIPES.parent / "README.md").read_text("utf-8").splitlines())
    for line in lines:
        if line == f"| {' | '.join(titles)} |":
            break
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [tuple(row.strip("| ").split(" | ")) for row in rows][1:]


def _relative(values: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest value."""
    assert values.shape == expected.shape
    return float(np.abs(values - expected).max() / np.abs(expected).max())


# -- torch -------------------------------------------------------------------


def enliven(model: Any) -> None:
    """Undo initial weights so small that blocks would hardly add to their input."""
    import torch

    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith(("gamma", "gamma_1", "gamma_2", "lambda1", "layer_scale")):
                values.fill_(1.0)
            elif values.ndim == 2 and 0 < values.std() < 0.025:
                values.mul_(4.0)


def calibrated(model: Any, images: Any) -> Any:
    """Give batch normalisations the statistics of images, so that nothing vanishes.

    Their bias is one: with none, random weights make deep networks multiply rounding
    errors in each block, in float32 to a thousandth for Inception v4.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for layer in layers:
        torch.nn.init.ones_(layer.bias)
        layer.momentum = None  # a plain average
        layer.reset_running_stats()
        layer.train()
    with torch.no_grad():
        model(images)
        for layer in layers:
            # Neither may channels that hardly vary multiply rounding errors.
            layer.running_var.clamp_(min=float(layer.running_var.mean()) / 10)
    return model.eval()


@contextmanager
def watched(model: Any, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """What modules put out, or for ``<name`` are given, in the next call."""
    values: dict[str, np.ndarray] = {}

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        values[name] = value.detach().clone().numpy()

    modules, hooks = dict(model.named_modules()), []
    for name in names:
        module = modules[name.removeprefix("<")]
        if name.startswith("<"):
            hooks.append(
                module.register_forward_pre_hook(lambda _, i, n=name: keep(n, i))
            )
        else:
            hooks.append(
                module.register_forward_hook(lambda _, __, o, n=name: keep(n, o))
            )
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


# Title, modules that put out the boundaries before layer -1, and layer -1; ``<name``
# is what a module is given, and there any label will do.
Network = tuple[str, list[str], str]
# As layer -1: what timm computes as such.
PRE_LOGITS = "forward_head(pre_logits=True)"


def check_torch(
    network: Network,
    model: Any,
    preprocessing: dict[str, Any],
    library: str,
    exporter: str,
    folder: Path,
    pool: Pool = averaged,
    forward: Callable[[Any], Any] | None = None,
) -> None:
    """Export a torch module and compare its codes with what forward hooks see.

    Parameters
    ----------
    network : Network
    model, preprocessing
        What a recipe's `build` gives.
    library, exporter : str
        Where the model comes from, and which of torch's exporters is taken.
    folder : Path
        Where to export to.
    pool : callable
        From activations to codes.
    forward : callable, optional
        From what the model gives to the tensor that is exported.
    """
    import torch

    common = recipe("export_common")
    exact = whole(preprocessing)
    images = torch.from_numpy(network_input(exact))
    enliven(model)
    calibrated(model, images)
    title, blocks, last = network
    names = [*blocks, last]
    hooked = blocks if last == PRE_LOGITS else names
    with watched(model, hooked) as values, torch.no_grad():
        model(images)
    if last == PRE_LOGITS:
        with torch.no_grad():
            features = model.forward_features(images)
            values[last] = model.forward_head(features, pre_logits=True).numpy()
    shape = tuple(images.shape[1:])
    path = folder / "network.onnx"
    common.export_torch(model, shape, path, exporter, forward)
    common.write_metadata(path, preprocessing)
    common.check_file(path)
    references: list[np.ndarray | None] = [pool(values[name]) for name in names]
    if last == PRE_LOGITS:
        references[-1] = values[last].reshape(len(images), -1)
    if pool is class_token:
        references[0] = None  # before the first block it knows nothing of the image
    labels = [
        None if name.startswith("<") or name == PRE_LOGITS else name for name in names
    ]
    check_codes(
        path,
        exact,
        references,
        labels,
        (title, f"{library}, {exporter}"),
        LARGEST_DIFFERENCE_OF_LAST if last == PRE_LOGITS else LARGEST_DIFFERENCE,
    )
    path.unlink()
