"""The head in torch: power norm, and the layers of `HeadWeights` after it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from sk_cnncodes.tuning.head_weights import HeadWeights

# Share of the mean magnitude of the codes below which slopes of the root are bounded:
# at zero, where channels without activation are, it has none.
_SMALL = 1e-2


class _SignedRoots(torch.autograd.Function):
    """Signed square roots, whose slope is bounded near zero."""

    @staticmethod
    def forward(ctx: Any, codes: torch.Tensor, small: float) -> torch.Tensor:
        roots = codes.abs().sqrt()
        ctx.save_for_backward(roots)
        ctx.least = math.sqrt(small)
        return torch.copysign(roots, codes)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None]:
        (roots,) = ctx.saved_tensors
        return slopes[0] / (2 * roots.clamp_min(ctx.least)), None


class TorchHead(nn.Module):
    """A head on codes without norm.

    Parameters
    ----------
    weights : HeadWeights
        On power-normalised codes.
    magnitude : float
        Mean magnitude of the codes.
    mean, spread : ndarray, shape (n_targets,), or float
        Of the values to regress: weights are those of values without them, for which
        the rates are right.
    """

    def __init__(
        self,
        weights: HeadWeights,
        magnitude: float,
        mean: np.ndarray | float = 0.0,
        spread: np.ndarray | float = 1.0,
    ) -> None:
        super().__init__()
        self._mean, self._spread = np.asarray(mean), np.asarray(spread)
        self._small = max(_SMALL * magnitude, 1e-12)
        # Codes of unit length have values of about 1 / sqrt(d); multiplied by sqrt(d),
        # a step of the optimiser changes the logits as it would for other layers.
        self._scale = math.sqrt(len(weights.layers[0][0]))
        matrix, bias = weights.layers[-1]
        last = (matrix / self._spread, (bias - self._mean) / self._spread)
        for number, (matrix, bias) in enumerate([*weights.layers[:-1], last]):
            factor = 1 / self._scale if number == 0 else 1.0
            tensor = torch.tensor(matrix * factor, dtype=torch.float32)
            self.register_parameter(f"weight_{number}", nn.Parameter(tensor))
            tensor = torch.tensor(bias, dtype=torch.float32)
            self.register_parameter(f"bias_{number}", nn.Parameter(tensor))
        self._n_layers = len(weights.layers)
        for name in ("mean", "spread"):
            value = np.float32(getattr(self, f"_{name}"))
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        roots = _SignedRoots.apply(codes.float(), self._small)
        values = nn.functional.normalize(roots, eps=1e-20) * self._scale
        for number in range(self._n_layers):
            values = torch.relu(values) if number else values
            weight = getattr(self, f"weight_{number}")
            values = values @ weight + getattr(self, f"bias_{number}")
        return values * self.spread + self.mean

    def weights(self) -> HeadWeights:
        """The weights as they are now, in float64."""
        layers = []
        for number in range(self._n_layers):
            factor = 1 / self._scale if number == 0 else 1.0
            weight = getattr(self, f"weight_{number}").detach().cpu().numpy()
            bias = getattr(self, f"bias_{number}").detach().cpu().numpy()
            # The codes are not multiplied by the scale outside of torch.
            layers.append((weight.astype(np.float64) / factor, bias.astype(np.float64)))
        matrix, bias = layers[-1]
        last = (matrix * self._spread, bias * self._spread + self._mean)
        return HeadWeights([*layers[:-1], last])
