"""A tuned ONNX model in memory -> the transformer that computes its codes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.loading import load_backbone
from sk_cnncodes.backbones.stored import store_graph, working_graph
from sk_cnncodes.codes.plan import state_of
from sk_cnncodes.codes.saving import STORED_KEY, code_parameters, make_reference
from sk_cnncodes.codes.transformer import CNNCodeTransformer


@contextmanager
def opened(model: bytes, name: str, preprocessing: Any) -> Iterator[Backbone]:
    """A tuned model as a backbone, whose file is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="sk_cnncodes-tuned-") as folder:
        path = Path(folder, name)
        path.write_bytes(model)
        yield load_backbone(path, preprocessing)


def tuned_name(backbone: Backbone) -> str:
    """What the file of a tuned backbone is called if nobody chooses a name."""
    return f"{backbone.path.stem}-tuned.onnx"


def tuned_transformer(
    backbone: Backbone, transformer: CNNCodeTransformer, code: str | int
) -> CNNCodeTransformer:
    """A fitted transformer that has the code graph of a tuned backbone in itself.

    As one that was saved with ``store_backbone=True``: it needs no file.

    Parameters
    ----------
    backbone : Backbone
        The tuned one; its file need not exist afterwards.
    transformer : CNNCodeTransformer
        With all other parameters; it is changed.
    code : str or int
        The layer.
    """
    name = backbone.path.name
    transformer.set_params(
        backbone=name, layer=code, preprocessing=None, store_backbone=True
    )
    parameters = code_parameters(state_of(transformer))
    spec = backbone.spec(code, transformer.pooling, transformer.norm)
    outputs = [spec.without_norm]
    lengths = [backbone.code_length(spec)]
    graph, _ = working_graph(backbone, outputs)
    record = store_graph(parameters, [spec], lengths, graph, outputs)
    here = replace(backbone, path=Path(name))
    transformer.fitted_backbone_ = make_reference(
        name, here, [backbone.layer(spec.layer)]
    )
    transformer._fitted_codes = (parameters, lengths)
    setattr(transformer, STORED_KEY, record)
    return transformer
