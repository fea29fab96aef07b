"""Operators that rearrange values, and those of shapes, on torch tensors.

Each function computes one ONNX operator: the node, then its inputs. Shapes, axes and
indices are integer tensors in the computer's memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sk_cnncodes.tuning.interpreter.arithmetic import Operator, together
from sk_cnncodes.tuning.interpreter.node import TailNode


def _listed(node: TailNode, name: str, given: Tensor | None) -> list[int] | None:
    """Integers that are an attribute in older opsets and an input in newer ones."""
    if given is not None:
        return [int(value) for value in given.tolist()]
    stated: list[int] | None = node.get(name)
    return stated


def identity(node: TailNode, x: Tensor) -> Tensor:
    """Identity."""
    return x


def dropout(node: TailNode, x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    """Dropout of a trained network: all values are kept."""
    return x, torch.ones_like(x, dtype=torch.bool)


def reshape(node: TailNode, x: Tensor, shape: Tensor) -> Tensor:
    """Reshape."""
    wanted = shape.tolist()
    if not node.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(node: TailNode, x: Tensor) -> Tensor:
    """Flatten: a matrix."""
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(node: TailNode, x: Tensor) -> Tensor:
    """Transpose."""
    return x.permute(node.get("perm") or [*reversed(range(x.ndim))])


def squeeze(node: TailNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze."""
    wanted = _listed(node, "axes", axes)
    if wanted is None:
        return x.squeeze()
    return x.squeeze([axis % x.ndim for axis in wanted]) if wanted else x


def unsqueeze(node: TailNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Unsqueeze."""
    wanted = _listed(node, "axes", axes) or []
    rank = x.ndim + len(wanted)
    for axis in sorted(axis % rank for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def concat(node: TailNode, *inputs: Tensor) -> Tensor:
    """Concat."""
    return torch.cat(together(*inputs), node.get("axis", 1))


def slice_(
    node: TailNode,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Slice: attributes before opset 10, then inputs."""
    first = _listed(node, "starts", starts) or []
    last = _listed(node, "ends", ends) or []
    along = _listed(node, "axes", axes) or [*range(len(first))]
    by = _listed(node, "steps", steps) or [1] * len(first)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        size = x.shape[axis]
        # As Python's slices, but an end before the first value is -1 here.
        if step > 0:
            chosen = slice(start, end, step)
        else:
            chosen = slice(start, None if end < -size else end, step)
        picked = range(*chosen.indices(size))
        if step > 0:
            index: list[Any] = [slice(None)] * x.ndim
            # Torch warns of the smallest integer, by which exporters say "from 0".
            index[axis] = slice(picked.start, picked.stop, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor([*picked], device=x.device))
    return x


def split(node: TailNode, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split: sizes are an attribute before opset 13, then an input."""
    axis = node.get("axis", 0)
    stated = _listed(node, "split", sizes)
    if stated is None:
        whole, count = x.shape[axis], node.get("num_outputs", len(node.outputs))
        size = -(-whole // count)
        stated = [size] * (count - 1) + [whole - size * (count - 1)]
    return tuple(x.split(stated, axis))


def expand(node: TailNode, x: Tensor, shape: Tensor) -> Tensor:
    """Expand: broadcasts both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


def tile(node: TailNode, x: Tensor, repeats: Tensor) -> Tensor:
    """Tile."""
    return x.repeat(repeats.tolist())


def gather(node: TailNode, x: Tensor, indices: Tensor) -> Tensor:
    """Gather: negative indices count from the end."""
    axis = node.get("axis", 0) % x.ndim
    indices = indices.long()
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1)
    if flat.numel() == 1:
        found = x.narrow(axis, int(flat), 1)
    else:
        found = x.index_select(axis, flat.to(x.device))
    return found.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(node: TailNode, x: Tensor, indices: Tensor) -> Tensor:
    """GatherElements."""
    axis = node.get("axis", 0)
    indices = indices.long()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    return x.gather(axis, indices.to(x.device))


def gather_nd(node: TailNode, x: Tensor, indices: Tensor) -> Tensor:
    """GatherND, without batch dimensions."""
    if node.get("batch_dims", 0):
        raise ValueError("batch_dims: expected 0")
    return x[tuple(indices.long().to(x.device).unbind(-1))]


def scatter_nd(node: TailNode, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterND, without a reduction."""
    if node.get("reduction", "none") != "none":
        raise ValueError("reduction: expected 'none'")
    x, updates = together(x, updates)
    places = tuple(indices.long().to(x.device).unbind(-1))
    return x.index_put(places, updates)


def shape(node: TailNode, x: Tensor) -> Tensor:
    """Shape."""
    sizes = list(x.shape)[slice(node.get("start", 0), node.get("end"))]
    return torch.tensor(sizes, dtype=torch.int64)


def size(node: TailNode, x: Tensor) -> Tensor:
    """Size."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def range_(node: TailNode, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Range."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def constant_of_shape(node: TailNode, sizes: Tensor) -> Tensor:
    """ConstantOfShape."""
    from onnx import numpy_helper

    value = node.get("value")
    if value is None:
        return torch.zeros(sizes.tolist())
    array = torch.from_numpy(numpy_helper.to_array(value).copy()).reshape(())
    if array.is_floating_point():
        array = array.to(torch.get_default_dtype())
    return array.expand(sizes.tolist()).clone()


def pad(
    node: TailNode,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Pad; negative pads crop."""
    stated = _listed(node, "pads", pads) or []
    number = node.get("value", 0.0) if value is None else value.item()
    along = [a % x.ndim for a in _listed(node, "axes", axes) or range(x.ndim)]
    both = [(0, 0)] * x.ndim
    for axis, pair in zip(
        along, zip(stated[: len(along)], stated[len(along) :], strict=True), strict=True
    ):
        both[axis] = pair
    mode = node.get("mode", "constant")
    if mode == "constant":
        return functional.pad(
            x, [n for pair in reversed(both) for n in pair], value=number
        )
    for axis, (before, after) in enumerate(both):
        x = _pad_by_values(x, axis, before, after, mode)
    return x


def _pad_by_values(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Pad an axis with its own values."""
    count = x.shape[axis]
    places = torch.arange(-before, count + after)
    if mode == "edge":
        places = places.clamp(0, count - 1)
    elif mode == "wrap":
        places = places % count
    elif mode == "reflect":
        period = max(2 * (count - 1), 1)
        places = places % period
        places = torch.where(places >= count, period - places, places)
    else:
        raise ValueError(f"mode={mode!r}: expected constant, edge, reflect or wrap")
    if before == after == 0:
        return x
    return x.index_select(axis, places.to(x.device))


def depth_to_space(node: TailNode, x: Tensor) -> Tensor:
    """DepthToSpace."""
    n, c, h, w = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(node: TailNode, x: Tensor) -> Tensor:
    """SpaceToDepth."""
    n, c, h, w = x.shape
    b = node.get("blocksize")
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b**2, h // b, w // b)


def triangle(node: TailNode, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """Trilu."""
    number = 0 if diagonal is None else int(diagonal)
    return x.triu(number) if node.get("upper", 1) else x.tril(number)


def cumulative_sum(node: TailNode, x: Tensor, axis: Tensor) -> Tensor:
    """CumSum."""
    along = int(axis)
    if node.get("reverse", 0):
        x = x.flip(along)
    total = x.cumsum(along)
    if node.get("exclusive", 0):
        total = total - x
    return total.flip(along) if node.get("reverse", 0) else total


OPERATORS: dict[str, Operator] = {
    "Identity": identity,
    "Dropout": dropout,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Slice": slice_,
    "Split": split,
    "Expand": expand,
    "Tile": tile,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    "Shape": shape,
    "Size": size,
    "Range": range_,
    "ConstantOfShape": constant_of_shape,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Trilu": triangle,
    "CumSum": cumulative_sum,
}
