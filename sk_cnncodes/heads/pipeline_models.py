"""Base classes of estimators whose fitted pipeline predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted


class PipelineModel(BaseEstimator):
    """An estimator of images that predicts by the pipeline that `fit` sets."""

    pipeline_: Pipeline

    def predict(self, X: Any) -> np.ndarray:
        """Predict images.

        Parameters
        ----------
        X : container of images
            As for `CNNCodeTransformer`.

        Returns
        -------
        ndarray, shape (n_images,) or (n_images, n_targets)
        """
        check_is_fitted(self)
        predicted: np.ndarray = self.pipeline_.predict(X)
        return predicted

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


class PipelineRegressor(RegressorMixin, PipelineModel):
    """The same for values."""

    def predict(self, X: Any) -> np.ndarray:
        """Predict images.

        Parameters
        ----------
        X : container of images
            As for `CNNCodeTransformer`.

        Returns
        -------
        ndarray of float64, shape (n_images,) or (n_images, n_targets)
        """
        return super().predict(X).astype(float)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
