"""Heads for codes: estimators whose parameters suit what networks give."""

from __future__ import annotations

from typing import Any

from sklearn.base import ClassifierMixin, RegressorMixin, clone
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import SVC, SVR, LinearSVC

from sk_cnncodes.heads.kernel_ridge import (
    ALPHAS,
    KernelRidgeClassifierCV,
    KernelRidgeCV,
)
from sk_cnncodes.heads.shrinkage_lda import ShrinkageLDA

NEIGHBOURS = 5
# What each is, and an estimator for codes of unit length. These differ little from each
# other, and bear a weaker regularisation than scikit-learn's defaults; ridge and kernel
# ridge choose it by leave-one-out, LDA by the Ledoit-Wolf formula. Test accuracy in %
# with ``norm="power"`` on 600 photographs of 20 classes, and on 6,000 images of
# Fashion-MNIST:
#
#                     cnncodes-mini, 600    MobileNetV2, 600    cnncodes-mini, 6,000
#                      -1     -2     -4        -1     -2           -1     -3
#   svm      C=10    95.50  95.75  91.75     98.00  97.00        89.65  90.15
#   logistic C=10    94.75  95.00  87.75     98.50  97.25        89.65  87.50
#   logistic C=100   94.75  94.75  91.50     98.75  97.25        89.80  89.80
#   knn              88.25  88.75  82.25     96.50  92.50        87.15  86.90
#   lda              95.00  95.00  94.50     98.75  98.25        88.20  88.35
#   ridge            95.75  95.50  93.25     98.75  97.00        89.10  88.80
#   rbf              96.25  96.25  95.25     99.00  98.00        91.45  91.60
#   svc      C=10    94.25  94.25  91.25     98.50  97.50        90.70  91.15
HEADS: dict[str, tuple[str, ClassifierMixin]] = {
    "svm": ("linear SVM", LinearSVC(C=10, random_state=0)),
    "logistic": ("logistic regression", LogisticRegression(C=100, max_iter=1000)),
    "knn": (f"{NEIGHBOURS} nearest neighbours", KNeighborsClassifier(NEIGHBOURS)),
    "lda": ("shrinkage LDA", ShrinkageLDA()),
    "ridge": ("ridge", RidgeClassifierCV(ALPHAS)),
    "rbf": ("RBF kernel ridge", KernelRidgeClassifierCV()),
    "svc": ("RBF SVM", SVC(C=10)),
}
# An RBF SVM was nowhere better than kernel ridge by more than chance.
DEFAULT_HEADS = tuple(name for name in HEADS if name != "svc")
REGRESSORS: dict[str, tuple[str, RegressorMixin]] = {
    "ridge": ("ridge", RidgeCV(ALPHAS)),
    "rbf": ("RBF kernel ridge", KernelRidgeCV()),
    "knn": (f"{NEIGHBOURS} nearest neighbours", KNeighborsRegressor(NEIGHBOURS)),
    "svr": ("RBF SVM", SVR(C=10)),
}
# Values worth comparing where accuracy depends on them; the other heads choose theirs.
HEAD_GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "svm": {"C": (1, 10, 100)},
    "logistic": {"C": (10, 100)},
    "knn": {"n_neighbors": (1, 5, 9)},
    "svc": {"C": (1, 10, 100)},
    "svr": {"C": (1, 10, 100)},
}


def weighted_head(name: str, head: Any, class_weight: Any) -> Any:
    """A head of `HEADS` with class weights.

    Parameters
    ----------
    name : str
    head : estimator
    class_weight : dict, "balanced" or None
        None returns the head itself.

    Raises
    ------
    ValueError
        If the head has no class weights.
    """
    if class_weight is None:
        return head
    if "class_weight" not in head.get_params():
        raise ValueError(
            f"class_weight={class_weight!r}: the head {name!r} has no class weights. "
            "Expected others, or None."
        )
    return clone(head).set_params(class_weight=class_weight)
