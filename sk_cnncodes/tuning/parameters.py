"""Checks of the parameters of fine-tuning, and the learning rates of blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.base.exceptions import LayerError
from sk_cnncodes.engines.devices import check_device, check_n_jobs
from sk_cnncodes.tuning.maps import TRAINING_VIEWS

_CHOICES: dict[str, tuple[Any, ...]] = {
    "head": ("linear", "mlp"),
    "views": tuple(TRAINING_VIEWS),
    "precision": ("float32", "bfloat16", "auto"),
    "maps": ("float16", "float32"),
}
# Least values, and whether they are allowed themselves.
_NUMBERS: dict[str, tuple[float, bool, float]] = {
    "layer_decay": (0, False, 1),
    "head_learning_rate": (0, False, math.inf),
    "weight_decay": (0, True, math.inf),
    "label_smoothing": (0, True, 0.999),
    "mixup": (0, True, math.inf),
    "validation_fraction": (0, False, 0.5),
}


def check_tuning(parameters: Mapping[str, Any]) -> None:
    """Refuse values that are invalid for any backbone.

    Raises
    ------
    TypeError, ValueError
        If a value is invalid. The message names the parameter, what was expected and
        what was got.
    """
    for name, choices in _CHOICES.items():
        if parameters[name] not in choices:
            raise ValueError(
                f"{name}: expected one of {list(choices)}, got {parameters[name]!r}."
            )
    for name, (least, itself, most) in _NUMBERS.items():
        if name not in parameters:
            continue
        value = parameters[name]
        _check_number(name, value, least, itself, most)
    for name in ("max_epochs", "patience", "batch_size"):
        value = parameters[name]
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected an int of at least 1, got {value!r}.")
    rates = parameters["learning_rate"]
    if not isinstance(rates, Mapping):
        _check_number("learning_rate", rates, 0, False, math.inf)
    else:
        for key, rate in rates.items():
            _check_number(f"learning_rate[{key!r}]", rate, 0, True, math.inf)
    for name in ("layer", "train_from"):
        value = parameters[name]
        if isinstance(value, bool) or not isinstance(value, (Integral, str)):
            raise TypeError(
                f"{name}: expected a negative int or the name of a layer, got "
                f"{value!r}."
            )
    hidden_sizes(parameters["hidden"])
    check_n_jobs(parameters["n_jobs"])
    device = parameters["device"]
    check_device(device)
    if not isinstance(device, str):
        raise TypeError(f"device: expected one device, got {device!r}.")


def _check_number(
    name: str, value: Any, least: float, itself: bool, most: float
) -> None:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    fits = is_real and (least < value <= most or (itself and value == least))
    if fits and math.isfinite(value):
        return
    between = f"{'from' if itself else 'above'} {least:g}"
    limit = "" if most == math.inf else f" up to {most:g}"
    raise ValueError(f"{name}: expected a number {between}{limit}, got {value!r}.")


def hidden_sizes(hidden: Any) -> tuple[int, ...]:
    """Sizes of the new hidden layers."""
    given = hidden.tolist() if isinstance(hidden, np.ndarray) else hidden
    sizes = tuple(given) if isinstance(given, Sequence) else (given,)
    for size in sizes:
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"hidden: expected an int of at least 1, or several, got {hidden!r}."
            )
    if not sizes:
        raise ValueError("hidden: expected at least one size, got none.")
    return tuple(int(size) for size in sizes)


def block_rates(
    learning_rate: Any,
    layer_decay: float,
    backbone: Backbone,
    train_from: int | str,
    blocks: Mapping[str, int],
) -> dict[str, float]:
    """The learning rate of each weight of a tail.

    Parameters
    ----------
    learning_rate : float, or mapping of int or str to float
        Of the last block; or of the blocks that end at these layers.
    layer_decay : float
        Factor from each block to the one before it. Not used with a mapping.
    backbone : Backbone
    train_from : int or str
    blocks : mapping of str to int
        The block of each weight; 0 is the first after `train_from`.

    Raises
    ------
    LayerError, ValueError
        If a mapping names other layers than those that are trained.
    """
    last = max(blocks.values(), default=0)
    if not isinstance(learning_rate, Mapping):
        decay = float(layer_decay)
        rates = [float(learning_rate) * decay ** (last - n) for n in range(last + 1)]
        return {name: rates[number] for name, number in blocks.items()}
    if not blocks:
        raise ValueError(
            "learning_rate: no layer is trained, so that there are no blocks to give "
            f"rates to. Expected one number, got {learning_rate!r}."
        )
    position = None
    if train_from != "all":
        position = backbone.layer(train_from).position
        if position is None:
            raise LayerError(
                f"train_from={train_from!r} is no numbered layer, so that "
                "learning_rate cannot name the blocks after it. Expected one number."
            )
    first = -len(backbone.layers) if position is None else position + 1
    numbers = range(first, first + last + 1)
    found: dict[int, float] = {}
    for key, rate in learning_rate.items():
        try:
            number = backbone.layer(key).position
        except LayerError:
            number = None
        if number is None or number not in numbers:
            raise ValueError(
                f"learning_rate: {key!r} is not among the trained layers, "
                f"{list(numbers)}."
            )
        found[numbers.index(number)] = float(rate)
    missing = [numbers[n] for n in sorted(set(blocks.values()) - found.keys())]
    if missing:
        raise ValueError(
            "learning_rate: expected a rate for the block of each trained layer, got "
            f"none for {missing}. 0 freezes a block."
        )
    return {name: found[number] for name, number in blocks.items()}
