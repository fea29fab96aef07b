"""TailModule: a planned tail as a torch module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sk_cnncodes.backbones.code_graph import GEM_EXPONENT, GEM_FLOOR
from sk_cnncodes.base.exceptions import BackboneError, first_line
from sk_cnncodes.layers.layer import Layer
from sk_cnncodes.tuning.interpreter import arithmetic, rearranging, windows
from sk_cnncodes.tuning.interpreter.arithmetic import Operator
from sk_cnncodes.tuning.interpreter.node import TailNode
from sk_cnncodes.tuning.interpreter.plan import TailPlan

OPERATORS: dict[str, Operator] = {
    **arithmetic.OPERATORS,
    **rearranging.OPERATORS,
    **windows.OPERATORS,
}


@dataclass
class _Step:
    """A node, what computes it, the names of what it reads, and what is unread then."""

    node: TailNode
    function: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    unread: tuple[str, ...] = ()


class TailModule(torch.nn.Module):
    """Computes codes from maps; its parameters have the names of the ONNX file.

    Parameters
    ----------
    plan : TailPlan
    """

    def __init__(self, plan: TailPlan) -> None:
        super().__init__()
        self._shape = plan.input_shape
        self._input, self._output = plan.input_name, plan.output_name
        self._layer, self._pooling = plan.layer, plan.pooling
        self._frozen_shapes = plan.frozen_shapes
        # Attributes may not have dots, which the names in files have.
        self._attributes: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        for number, weight in enumerate(plan.weights):
            attribute = f"weight_{number}"
            value = torch.from_numpy(weight.value.copy())
            self.register_parameter(attribute, torch.nn.Parameter(value))
            self._attributes[weight.name] = attribute
        steps = self._steps(plan)
        self._buffer_names: dict[str, str] = {}
        self._whole: dict[str, Tensor] = {}
        self._run = self._planned(self._computed_once(plan, steps))

    def named_parameters(  # type: ignore[override, unused-ignore]
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The weights, by the names of their initializers in the file."""
        for name, attribute in self._attributes.items():
            yield f"{prefix}{'.' if prefix else ''}{name}", getattr(self, attribute)

    def forward(self, maps: Tensor) -> Tensor:
        """Codes of maps: [N, d] of [N, *input_shape]."""
        maps = maps.reshape(-1, *self._shape)
        values: dict[str, Tensor] = {self._input: maps}
        for name, attribute in self._attributes.items():
            values[f"weight {name}"] = getattr(self, attribute)
        for name, attribute in self._buffer_names.items():
            values[name] = getattr(self, attribute)
        values.update(self._whole)
        for name, shape in self._frozen_shapes.items():
            # Only its shape is read: one value stands for all.
            values[name] = maps.new_zeros(()).expand(len(maps), *shape)
        for step in self._run:
            _compute(step, values)
            for name in step.unread:
                values.pop(name, None)  # outputs that nobody reads are not computed
        return pooled(values[self._output], self._layer, self._pooling)

    def _steps(self, plan: TailPlan) -> list[_Step]:
        """The nodes with normalisations folded, and their weights."""
        weights = {
            slot: f"weight {weight.name}"
            for weight in plan.weights
            for slot in weight.slots
        }
        convs = {f.conv.outputs[0]: f for f in plan.foldings if f.conv is not None}
        merged = {f.node.outputs[0] for f in convs.values()}
        alone = {f.node.outputs[0]: f for f in plan.foldings if f.conv is None}
        steps = []
        for node in plan.nodes:
            output = node.outputs[0]
            if output in merged:
                continue
            inputs = tuple(
                weights.get((output, position), name)
                for position, name in enumerate(node.inputs)
            )
            function, outputs = OPERATORS[node.operator], node.outputs
            if output in convs:
                normalisation = convs[output].node.outputs[0]
                shift = weights[(normalisation, 2)]
                inputs, outputs = (*inputs[:2], shift), (normalisation,)
            elif output in alone:
                function, inputs = _affine, inputs[:4]
            steps.append(_Step(node, function, inputs, outputs))
        return steps

    def _computed_once(self, plan: TailPlan, steps: list[_Step]) -> list[_Step]:
        """Compute what depends on constants alone; return the other steps."""
        constants: dict[str, Tensor] = {
            name: torch.from_numpy(array.copy()) for name, array in plan.arrays.items()
        }
        varying = {self._input, *self._frozen_shapes}
        varying.update(f"weight {weight.name}" for weight in plan.weights)
        rest = []
        with torch.no_grad():
            for step in steps:
                if varying.isdisjoint(step.inputs):
                    _compute(step, constants)
                else:
                    rest.append(step)
                    varying.update(step.outputs)
        read = {name for step in rest for name in step.inputs} | {self._output}
        for name in read & constants.keys() - varying:
            value = constants[name]
            if value.is_floating_point():
                attribute = f"constant_{len(self._buffer_names)}"
                self.register_buffer(attribute, value, persistent=False)
                self._buffer_names[name] = attribute
            else:
                self._whole[name] = value  # shapes, axes, indices
        return rest

    def _planned(self, steps: list[_Step]) -> list[_Step]:
        """Note after which step each tensor is read no more."""
        last: dict[str, int] = {}
        for number, step in enumerate(steps):
            for name in (*step.inputs, *step.outputs):
                last[name] = number
        for number, step in enumerate(steps):
            names = dict.fromkeys((*step.inputs, *step.outputs))
            step.unread = tuple(
                name
                for name in names
                if name and last[name] == number and name != self._output
            )
        return steps


def _compute(step: _Step, values: dict[str, Tensor]) -> None:
    """Compute a node; its outputs go to the values."""
    inputs = [values[name] if name else None for name in step.inputs]
    try:
        found = step.function(step.node, *inputs)
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        shapes = [None if x is None else tuple(x.shape) for x in inputs]
        raise BackboneError(
            f"the node {step.node.title} with inputs of shapes {shapes} cannot be "
            f"computed with torch ({first_line(error)})."
        ) from error
    if isinstance(found, tuple):
        values.update(zip(step.outputs, found, strict=False))
    else:
        values[step.outputs[0]] = found


def _affine(
    node: TailNode, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor
) -> Tensor:
    """BatchNormalization whose gain has the deviation folded in."""
    mean, gain, bias = (windows.channels(each, x.ndim) for each in (mean, gain, bias))
    return (x - mean) * gain + bias


def pooled(values: Tensor, layer: Layer, pooling: str) -> Tensor:
    """Pool activations to codes as code graphs do."""
    if pooling == "cls":
        return values[:, 0]
    if pooling == "flatten":
        return values.flatten(1)
    axes = [axis for axis in range(1, values.ndim) if axis != layer.channel_axis]
    if pooling == "max":
        return values.amax(axes)
    if pooling == "gem":
        powers = (values.relu() + GEM_FLOOR) ** GEM_EXPONENT
        return powers.mean(axes) ** (1 / GEM_EXPONENT)
    return values.mean(axes)
