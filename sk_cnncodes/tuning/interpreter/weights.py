"""Which constants of a tail are weights; normalisations are folded into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sk_cnncodes.tuning.interpreter.node import TailNode

# Where a node reads a constant: its first output, and the position of the input.
Slot = tuple[str, int]

# Positions of the weights among the inputs of operators that have some.
_WEIGHTS = {
    **{"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,)},
    **{"BatchNormalization": (1, 2), "LayerNormalization": (1, 2), "PRelu": (1,)},
    **{"InstanceNormalization": (1, 2), "GroupNormalization": (1, 2)},
    **{"RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,)},
    **{"com.microsoft.BiasGelu": (1,), "com.microsoft.FastGelu": (1,)},
    **{"Gather": (0,)},
}
# Values this low, added to scores, hide places from attention.
_HIDDEN = -90.0
# A channel is dead if its variance is below this fraction of the channels' median.
_DEAD = 1e-4


@dataclass
class Weight:
    """A constant of the file that is trained.

    Attributes
    ----------
    name : str
        Of the initializer; with the tensor that it leads to, if the initializer became
        several weights.
    value : ndarray
        As the tail computes with it, float32.
    slots : list of Slot
        Where the value is read.
    also : list of (Slot, ndarray)
        Constants that have to be written with it: statistics of a normalisation that
        was folded into it.
    """

    name: str
    value: np.ndarray
    slots: list[Slot]
    also: list[tuple[Slot, np.ndarray]] = field(default_factory=list)


class WeightFinder:
    """Decides which constants of a tail are weights.

    Parameters
    ----------
    nodes : list of TailNode
    arrays : mapping of str to ndarray
        The constants.
    varying : set of str
        Tensors that depend on the maps.
    frozen : set of str
        Tensors that the frozen part computes: nothing that leads to them is trained.
    """

    def __init__(
        self,
        nodes: list[TailNode],
        arrays: Mapping[str, np.ndarray],
        varying: set[str],
        frozen: set[str],
    ) -> None:
        self._varying = varying
        self._frozen = frozen
        self.arrays = arrays
        self.readers: dict[str, list[tuple[TailNode, int]]] = {}
        for node in nodes:
            for position, name in enumerate(node.inputs):
                if name:
                    self.readers.setdefault(name, []).append((node, position))

    def slots(self, name: str) -> list[Slot]:
        """Where a constant is read as a weight."""
        array = self.arrays[name]
        if array.dtype.kind != "f":
            return []
        return [
            (node.outputs[0], position)
            for node, position in self.readers.get(name, [])
            if self._is_weight(node, position, array)
        ]

    def first_uses(self, name: str) -> list[TailNode]:
        """The nodes that depend on the maps and read a constant, or what it becomes."""
        found = []
        for node, _ in self.readers.get(name, []):
            if node.outputs[0] in self._varying:
                found.append(node)
            else:
                found += [each for out in node.outputs for each in self.first_uses(out)]
        return found

    def _is_weight(self, node: TailNode, position: int, array: np.ndarray) -> bool:
        operator = node.operator
        if not self._frozen.isdisjoint(node.outputs):
            return False
        if operator in _WEIGHTS:
            if position in _WEIGHTS[operator]:
                return True
            return operator == "MatMul" and node.inputs[1] in self._varying
        depends = node.outputs[0] in self._varying
        if array.size > 1:
            if operator in ("Add", "Sub", "Sum"):
                if array.min() > _HIDDEN:  # otherwise a mask of attention
                    return True
            elif operator in ("Mul", "Div"):
                # Tables that are multiplied are rotations of attention, not scales.
                if sum(side > 1 for side in array.shape) == 1:
                    return True
            elif operator == "Concat" and depends:
                return True
        if depends:
            return False
        # A constant computed from it may be a weight.
        return any(
            self._is_weight(reader, place, array)
            for out in node.outputs
            for reader, place in self.readers.get(out, [])
        )


@dataclass
class Folding:
    """A normalisation with constant statistics, as gain and shift of its channels.

    Attributes
    ----------
    node : TailNode
        The BatchNormalization.
    conv : TailNode or None
        The convolution before it, whose kernels the gain is multiplied into.
    weights : list of Weight
    dead : int
        Number of dead channels that were treated.
    """

    node: TailNode
    conv: TailNode | None
    weights: list[Weight]
    dead: int = 0


def fold(
    node: TailNode, conv: TailNode | None, arrays: Mapping[str, np.ndarray]
) -> Folding:
    """Fold the statistics of a BatchNormalization.

    Without a convolution before it, the mean stays, and the scale is that of the
    channel as it is. The file gets a variance with which the network computes the same.

    A dead channel has a variance close to none: what comes in is nearly constant, and
    is multiplied by up to 10,000. Training would change what comes in, and the network
    would diverge. Its kernel is made as small as that of the largest live channel; the
    constant that it puts out is kept.
    """
    scale, bias, mean, var = (
        arrays[name].astype(np.float64) for name in node.inputs[1:5]
    )
    epsilon = node.get("epsilon", 1e-5)
    gain = scale / np.sqrt(var + epsilon)
    kernel = np.ones_like(gain)
    if conv is not None:
        kernel = arrays[conv.inputs[1]].astype(np.float64)
    rows = np.sqrt((kernel**2).reshape(len(gain), -1).sum(1)) * np.abs(gain)
    dead = var + epsilon < _DEAD * np.median(var + epsilon)
    largest = rows[~dead].max(initial=0.0)
    treated = dead & (rows > largest)
    gain[treated] *= largest / rows[treated]
    output = node.outputs[0]
    one = np.full(len(gain), 1 - epsilon, np.float32)
    if conv is None:
        weights = [
            Weight(node.inputs[1], gain.astype(np.float32), [(output, 1)]),
            Weight(node.inputs[2], bias.astype(np.float32), [(output, 2)]),
        ]
        weights[0].also = [((output, 4), one)]
        return Folding(node, None, weights, int(treated.sum()))
    offset = np.zeros_like(gain)
    if len(conv.inputs) > 2 and conv.inputs[2]:
        offset = arrays[conv.inputs[2]].astype(np.float64)
    folded = kernel * gain.reshape(-1, *[1] * (kernel.ndim - 1))
    shift = bias + gain * (offset - mean)
    weights = [
        Weight(conv.inputs[1], folded.astype(np.float32), [(conv.outputs[0], 1)]),
        Weight(node.inputs[2], shift.astype(np.float32), [(output, 2)]),
    ]
    zero = np.zeros(len(gain), np.float32)
    weights[0].also = [
        ((output, 1), np.ones(len(gain), np.float32)),
        ((output, 3), zero),
        ((output, 4), one),
    ]
    if offset.any():
        weights[0].also.append(((conv.outputs[0], 2), zero))
    return Folding(node, conv, weights, int(treated.sum()))


def can_fold(
    node: TailNode, conv: TailNode | None, finder: WeightFinder, output: str
) -> bool:
    """Whether a normalisation can be folded into the convolution before it."""
    if conv is None or conv.operator != "Conv":
        return False
    constants = [name for name in conv.inputs[1:] if name]
    if not all(name in finder.arrays for name in constants):
        return False
    # Other readers would see values without the normalisation.
    alone = len(finder.readers[conv.outputs[0]]) == 1 and conv.outputs[0] != output
    return alone and all(len(finder.readers[name]) == 1 for name in constants[:1])


def is_constant_normalisation(node: TailNode, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a node is a BatchNormalization whose statistics are in the file."""
    if node.operator != "BatchNormalization" or node.get("training_mode", 0):
        return False
    return all(name in arrays for name in node.inputs[1:5])
