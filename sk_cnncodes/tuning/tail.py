"""Tail: the later part of a backbone as torch computes and trains it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.code_graph import code_length
from sk_cnncodes.base.exceptions import BackboneError, LayerError
from sk_cnncodes.layers.layer import Layer
from sk_cnncodes.tuning.interpreter.plan import ALL, TailPlan, plan_tail
from sk_cnncodes.tuning.interpreter.writing import write_weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tail:
    """The part of a backbone from one layer to the codes, as torch computes it.

    Attributes
    ----------
    plan : TailPlan
    module : torch.nn.Module
        From maps, float32 [N, *input_shape], to codes [N, d]. Its parameters are the
        weights, by the names of their initializers in the file.
    """

    plan: TailPlan
    module: torch.nn.Module

    @property
    def input_name(self) -> str:
        """Name of the tensor of the maps."""
        return self.plan.input_name

    @property
    def output_name(self) -> str:
        """Name of the tensor of the layer, before pooling."""
        return self.plan.output_name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image's maps, in the order of the file."""
        return self.plan.input_shape

    @property
    def blocks(self) -> dict[str, int]:
        """Block of each weight, by name; 0 is the nearest to the frozen part."""
        return self.plan.blocks

    @property
    def n_dead_channels(self) -> int:
        """Number of dead channels whose kernels were made smaller."""
        return sum(folding.dead for folding in self.plan.foldings)


def start_layer(backbone: Backbone, train_from: int | str) -> Layer:
    """The layer before the first trained one.

    Raises
    ------
    LayerError
        If there is no such layer.
    """
    try:
        return backbone.layer(train_from)
    except LayerError as error:
        text = re.sub("^layer=", "train_from=", str(error))
        cure = f"Set train_from={-len(backbone.layers)}, or"
        if isinstance(train_from, str):
            cure = "Or"
        cure += " 'all' for everything after the image."
        raise LayerError(f"{text} {cure}") from error


def read_tail(
    backbone: Backbone,
    train_from: int | str,
    layer: int | str = -1,
    pooling: str = "auto",
) -> Tail:
    """Read the part of a backbone after a layer as a torch module.

    Parameters
    ----------
    backbone : Backbone
    train_from : int or str
        A layer, as in `Backbone.layer`: everything after it is trained. "all" is
        everything after the image, whose maps are the network's input.
    layer : int or str, default=-1
        The layer of the codes.
    pooling : str, default="auto"
        As in `CNNCodeTransformer`.

    Raises
    ------
    LayerError
        If there are no such layers, or the second does not come after the first.
    BackboneError
        If the part has an operator that torch does not compute here, or is quantised.
    """
    import torch

    from sk_cnncodes.tuning.interpreter.module import OPERATORS, TailModule

    if train_from != ALL:
        start_layer(backbone, train_from)
    plan = plan_tail(backbone, train_from, layer, pooling, OPERATORS)
    expected = code_length(plan.layer, plan.pooling)
    try:
        module = TailModule(plan)
        with torch.no_grad():
            found = module(torch.zeros(2, *plan.input_shape))
        if found.shape != (2, expected):
            raise BackboneError(
                f"torch computes codes of shape {tuple(found.shape)} for two images, "
                f"expected (2, {expected})."
            )
    except BackboneError as error:
        raise BackboneError(
            f"{backbone.description}: the part after train_from={train_from!r} cannot "
            f"be trained: {error}"
        ) from error
    return Tail(plan, module)


def tuned_model(backbone: Backbone, tail: Tail, provenance: Mapping[str, Any]) -> bytes:
    """The whole ONNX file of a backbone with the weights of a trained tail.

    See `sk_cnncodes.tuning.interpreter.writing.write_weights`.
    """
    values = {
        name: parameter.detach().cpu().numpy()
        for name, parameter in tail.module.named_parameters()
    }
    return write_weights(backbone, tail.plan, values, provenance)
