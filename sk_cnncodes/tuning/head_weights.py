"""The head as plain matrices: its start by ridge, and its end as an estimator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import LabelBinarizer

from sk_cnncodes.ranking.ridge_scores import best_ridge
from sk_cnncodes.ranking.scoring import SCORINGS, Targets, temperature_factors

Matrices = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class HeadWeights:
    """Layers of a head on power-normalised codes, with ReLU between them.

    Attributes
    ----------
    layers : list of (ndarray of shape (n_in, n_out), ndarray of shape (n_out,))
        Weights and biases. The last gives the logits of the classes, or the values.
    """

    layers: Matrices

    def scaled(self, factor: float) -> HeadWeights:
        """With all logits multiplied by a number."""
        weights, bias = self.layers[-1]
        last = (weights * factor, bias * factor)
        return replace(self, layers=[*self.layers[:-1], last])

    def classifier(self, classes: np.ndarray) -> Any:
        """A fitted classifier of scikit-learn, whose probabilities are their softmax.

        A `LogisticRegression`, or an `MLPClassifier` if there are hidden layers.
        """
        layers = self.layers
        if len(classes) == 2:  # the sigmoid of the difference is the softmax of both
            weights, bias = layers[-1]
            last = (weights[:, 1:] - weights[:, :1], bias[1:] - bias[:1])
            layers = [*layers[:-1], last]
        if len(layers) > 1:
            found = _as_mlp(MLPClassifier, layers)
            found.out_activation_ = "logistic" if len(classes) == 2 else "softmax"
            found._label_binarizer = LabelBinarizer().fit(classes)
        else:
            weights, bias = layers[0]
            found = LogisticRegression()
            found.coef_, found.intercept_ = np.ascontiguousarray(weights.T), bias
            found.n_iter_ = np.zeros(1, np.int32)
            found.n_features_in_ = len(weights)
        found.classes_ = classes
        return found

    def regressor(self, one: bool) -> Any:
        """A fitted regressor of scikit-learn: a `Ridge` or an `MLPRegressor`.

        Parameters
        ----------
        one : bool
            Whether the targets are a vector.
        """
        if len(self.layers) > 1:
            found = _as_mlp(MLPRegressor, self.layers)
            found.out_activation_ = "identity"
            return found
        weights, bias = self.layers[0]
        found = Ridge()
        found.coef_ = weights[:, 0] if one else np.ascontiguousarray(weights.T)
        found.intercept_ = float(bias[0]) if one else bias
        found.n_features_in_ = len(weights)
        return found


def _as_mlp(kind: Any, layers: Matrices) -> Any:
    hidden = tuple(len(bias) for _, bias in layers[:-1])
    found = kind(hidden, activation="relu")
    found.coefs_ = [weights for weights, _ in layers]
    found.intercepts_ = [bias for _, bias in layers]
    found.n_layers_ = len(layers) + 1
    found.n_outputs_ = len(layers[-1][1])
    found.n_features_in_ = len(layers[0][0])
    found.n_iter_ = 0
    return found


def ridge_start(
    codes: np.ndarray, targets: Targets, groups: np.ndarray | None
) -> HeadWeights:
    """The closed-form ridge head of codes; its logits have a fitted temperature.

    Alpha and temperature are those of the leave-one-out predictions.

    Parameters
    ----------
    codes : ndarray of float32, shape (n_images, n_features)
        Power-normalised.
    targets : Targets
        With the weights of the images.
    groups : ndarray or None
        What is left out together.
    """
    scoring = SCORINGS[targets.kind][0]
    found = best_ridge(codes, targets, scoring, groups=groups)
    ridge = Ridge(found.alpha, solver="cholesky")
    values = targets.values.astype(float)
    ridge.fit(codes.astype(float), values, sample_weight=targets.weights)
    coefficients = np.atleast_2d(ridge.coef_).T
    bias = np.broadcast_to(ridge.intercept_, coefficients.shape[1]).astype(float)
    start = HeadWeights([(coefficients, bias)])
    if targets.kind == "regression":
        return start
    assert found.predictions is not None
    factor = temperature_factors(found.predictions, targets.numbers)
    return start.scaled(float(factor))


def random_hidden(
    n_in: int,
    hidden: tuple[int, ...],
    rng: Any,
    mean: np.ndarray,
    spread: np.ndarray,
) -> HeadWeights:
    """A head with hidden layers to be trained: He's initialisation, small outputs.

    Parameters
    ----------
    n_in : int
    hidden : tuple of int
    rng : Generator
    mean, spread : ndarray, shape (n_targets,)
        Around which the outputs begin, and in which unit.
    """
    layers: Matrices = []
    for n_out in hidden:
        # Codes of unit length have values of about 1 / sqrt(n_in).
        scale = np.sqrt(2.0) if not layers else np.sqrt(2.0 / n_in)
        layers.append((rng.normal(0, scale, (n_in, n_out)), np.zeros(n_out)))
        n_in = n_out
    weights = rng.normal(0, np.sqrt(0.1 / n_in), (n_in, len(mean)))
    return HeadWeights([*layers, (weights * spread, np.array(mean, float))])
