"""The head in torch: power norm, and the layers of `HeadWeights` after it."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    mean, spread : ndarray, shape (n_targets,)
        Of the values to regress: weights are those of values without them, for which
        the rates are right.
    """

    def __init__(
        self,
        weights: HeadWeights,
        magnitude: float,
        mean: np.ndarray,
        spread: np.ndarray,
    ) -> None:
        super().__init__()
        self._small = max(_SMALL * magnitude, 1e-12)
        # Codes of unit length have values of about 1 / sqrt(d); multiplied by sqrt(d),
        # a step of the optimiser changes the logits as it would for other layers.
        self._scale = math.sqrt(len(weights.layers[0][0]))
        matrix, bias = weights.layers[-1]
        layers = [*weights.layers[:-1], (matrix / spread, (bias - mean) / spread)]
        matrix, bias = layers[0]
        layers[0] = (matrix / self._scale, bias)
        self.matrices, self.biases = (
            nn.ParameterList(torch.tensor(each, dtype=torch.float32) for each in kind)
            for kind in zip(*layers, strict=True)
        )
        self.mean: torch.Tensor
        self.spread: torch.Tensor
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("spread", torch.tensor(spread), persistent=False)

    def _layers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(self.matrices, self.biases, strict=True)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        roots = _SignedRoots.apply(codes.float(), self._small)
        values = nn.functional.normalize(roots, eps=1e-20) * self._scale
        for number, (matrix, bias) in enumerate(self._layers()):
            values = torch.relu(values) if number else values
            values = values @ matrix + bias
        return values * self.spread.float() + self.mean.float()

    def weights(self) -> HeadWeights:
        """The weights as they are now, in float64."""
        layers = [
            tuple(each.detach().cpu().numpy().astype(np.float64) for each in pair)
            for pair in self._layers()
        ]
        # The codes are not multiplied by the scale outside of torch.
        matrix, bias = layers[0]
        layers[0] = (matrix * self._scale, bias)
        mean, spread = (each.cpu().numpy() for each in (self.mean, self.spread))
        matrix, bias = layers[-1]
        return HeadWeights([*layers[:-1], (matrix * spread, bias * spread + mean)])
