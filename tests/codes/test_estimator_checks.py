"""scikit-learn's own checks, with an empty list of expected failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.utils import Tags
from sklearn.utils.estimator_checks import (
    check_do_not_raise_errors_in_init_or_set_params,
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
    parametrize_with_checks,
)

from sk_cnncodes import CNNCodeTransformer


class RowsToCodes(CNNCodeTransformer):
    """Turns rows of numbers into images, so that checks on 2-D data can run.

    scikit-learn's checks have no image data. The values of each row, squashed to
    (0, 1), become one gray image; everything else is unchanged.
    """

    def fit(self, X: Any, y: Any = None) -> RowsToCodes:
        return super().fit(self._images(X, reset=True), y)

    def transform(self, X: Any) -> np.ndarray:
        return super().transform(self._images(X, reset=False))

    def _images(self, X: Any, *, reset: bool) -> list[np.ndarray]:
        from sklearn.utils.validation import validate_data

        if not reset and not hasattr(self, "n_features_in_"):
            reset = True  # transform works without fit
        X = validate_data(self, X, reset=reset, dtype=np.float64)
        squashed = 0.5 + np.arctan(X) / np.pi
        return [row[None] for row in squashed]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        return tags


@parametrize_with_checks([RowsToCodes()])
def test_checks_on_two_dimensional_data(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    "check",
    [
        check_do_not_raise_errors_in_init_or_set_params,
        check_estimator_cloneable,
        check_estimator_repr,
        check_estimator_tags_renamed,
        check_get_params_invariance,
        check_mixin_order,
        check_no_attributes_set_in_init,
        check_parameters_default_constructible,
        check_set_params,
        check_valid_tag_types,
    ],
)
def test_checks_without_data(check: Any) -> None:
    check("CNNCodeTransformer", CNNCodeTransformer())
