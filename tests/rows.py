"""Rows of numbers as images, for scikit-learn's checks of estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data


class TakesRows:
    """Turns rows of numbers into images."""

    def fit(self, X: Any, y: Any, groups: Any = None) -> Any:
        return super().fit(self._images(X, reset=True), y)  # type: ignore[misc]

    def predict(self, X: Any) -> np.ndarray:
        return super().predict(self._images(X, reset=False))  # type: ignore[misc]

    def _images(self, X: Any, *, reset: bool) -> list[np.ndarray]:
        if not reset:
            check_is_fitted(self)
        X = validate_data(self, X, reset=reset, dtype=np.float64)
        return [row[None] for row in 0.5 + np.arctan(X) / np.pi]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        return tags
