"""Shared parts of the export recipes: torch's exporters, metadata, and a check.

Needs: onnx; `export_torch` needs torch, and onnxscript for its newer exporter. If
onnxruntime is installed, the written file is run with one image and with two.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The key and the values are those of sk_cnncodes.Preprocessing.to_metadata.
METADATA_KEY = "sk_cnncodes.preprocessing"
EXPORTERS = ("dynamo", "torchscript")
# A Protocol Buffers file is limited to 2 GiB: larger weights go to a separate file.
LARGEST_FILE = 1_900_000_000
OPSET = 18


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Parser with the arguments common to all recipes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="name in the source library")
    parser.add_argument("output", metavar="OUTPUT.onnx", type=Path)
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="export random weights, without a download, for tests",
    )
    return parser


def add_exporter(parser: argparse.ArgumentParser) -> None:
    """Add the choice between torch's two exporters."""
    parser.add_argument(
        "--exporter",
        choices=EXPORTERS,
        default="dynamo",
        help="dynamo needs onnxscript; torchscript is the older, tracing exporter",
    )


def export_torch(
    model: Any,
    input_shape: tuple[int, ...],
    output: Path,
    exporter: str = "dynamo",
    forward: Callable[[Any], Any] | None = None,
) -> None:
    """Export a torch module with a dynamic batch size and its module paths.

    Parameters
    ----------
    model : torch.nn.Module
    input_shape : tuple of int
        Shape without the batch dimension.
    output : Path
    exporter : {"dynamo", "torchscript"}
    forward : callable, optional
        Maps the output of the module to the tensor to export.
    """
    import torch

    model.eval()
    if forward is not None:
        # Not a wrapper module, which would prefix every module path.
        inner = model.forward
        model.forward = lambda image: forward(inner(image))
    images = torch.zeros(2, *input_shape)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    names = {"input_names": ["image"], "output_names": ["scores"]}
    with warnings.catch_warnings(), torch.no_grad():
        # Tracing and deprecation warnings from torch's own exporters.
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            torch.onnx.export(
                model,
                (images,),
                str(output),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=size > LARGEST_FILE,
                opset_version=OPSET,
                verbose=False,
                **names,
            )
        else:
            torch.onnx.export(
                model,
                (images,),
                str(output),
                dynamo=False,
                dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
                opset_version=OPSET,
                **names,
            )


def write_metadata(output: Path, preprocessing: dict[str, Any]) -> None:
    """Write the preprocessing into the metadata of an ONNX file."""
    import onnx

    model = onnx.load(output, load_external_data=False)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    entries[METADATA_KEY] = json.dumps(preprocessing)
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, output)


def check_file(output: Path) -> None:
    """Run the file with one image and with two, if onnxruntime is installed."""
    try:
        import onnxruntime as ort
    except ImportError:
        print(f"{output}: written; not run, because onnxruntime is not installed")
        return
    import numpy as np

    session = ort.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    noise = np.random.default_rng(0).normal(size=(2, *image.shape[1:]))
    both = session.run(None, {image.name: noise.astype(np.float32)})
    first = session.run(None, {image.name: noise[:1].astype(np.float32)})
    for value, one, two in zip(session.get_outputs(), first, both, strict=True):
        if len(two) != 2 or not np.allclose(one[0], two[0], rtol=1e-2, atol=1e-4):
            raise SystemExit(
                f"{output}: output {value.name!r} for a batch of two images (shape "
                f"{two.shape}) differs from that for one image (shape {one.shape}). "
                "Expected the same values."
            )
    print(f"{output}: written; runs with one image and with two")
