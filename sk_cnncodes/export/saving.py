"""Save models with all transformers in them, wherever they are."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes.base.exceptions import SavedModelError
from sk_cnncodes.base.files import atomic_write, check_not_an_input
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.persistence import (
    Visit,
    find_transformers,
    ineffective_parameters,
    is_fitted,
    stored_records,
    visiting,
)
from sk_cnncodes.export.card_files import (
    COMPRESSED,
    add_card_to_skops,
    append_card,
)
from sk_cnncodes.export.model_card import ModelCard


@public
def save_model(
    model: Any,
    path: str | os.PathLike[str],
    store_backbone: bool = False,
    card: ModelCard | None = None,
) -> Path:
    """Save a model that contains `CNNCodeTransformer`, at any depth.

    Pipelines, unions, searches, ensembles, calibrated and multi-class estimators and
    whatever else pickle can save: each transformer in it is found. If several store
    their backbone, the network is in the file once.

    Parameters
    ----------
    model : object
        A fitted estimator, or any object that contains some.
    path : str or path-like
        The suffix decides: ``.skops`` is written by `skops.io.dump`; any other is a
        pickle file, which `joblib.load` reads too, and which is compressed if it is
        ``.gz``, ``.bz2`` or ``.xz``. The file appears when it is complete.
    store_backbone : bool, default=False
        True stores the backbones of all fitted transformers, so that the file needs no
        other. False leaves that to the parameter `store_backbone` of each.
    card : ModelCard or None, default=None
        Stored beside the model, for `read_model_card`; loading needs none.

    Returns
    -------
    path : Path
        The file.

    Raises
    ------
    BackboneError
        If a backbone is to be stored and its file is missing or has changed.
    SavedModelError
        If ``store_backbone=True`` and the model has no fitted transformer.
    ValueError
        If the suffix is ``.onnx``, which `to_onnx` writes, or the file is a backbone.
    OSError
        If the file cannot be written.

    Warns
    -----
    UserWarning
        If parameters of transformers were set on a fitted meta-estimator, whose `fit`
        had cloned them: its fitted parts do not have them.

    See Also
    --------
    load_model : Load the file, and set device, cache and threads.
    read_model_card : Read the card of the file.
    to_onnx : One ONNX file with network and classifier.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.ensemble import VotingClassifier
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sk_cnncodes import CNNCodeTransformer, load_model, save_model
    >>> digits = load_digits()
    >>> X, y = digits.images[:60] / 16, digits.target[:60]
    >>> parts = [
    ...     (f"C={C}", make_pipeline(CNNCodeTransformer(), LogisticRegression(C=C)))
    ...     for C in (0.001, 0.01)
    ... ]
    >>> vote = VotingClassifier(parts, voting="soft").fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_model(vote, f"{folder}/vote.joblib", store_backbone=True)
    ...     loaded = load_model(path, device="cpu")
    >>> bool((loaded.predict(X) == vote.predict(X)).all())
    True
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        raise ValueError(
            f"path {str(path)!r}: save_model writes pickle and skops files. "
            "Expected another suffix, or to_onnx."
        )
    transformers = find_transformers(model)
    fitted = [each for each in transformers if is_fitted(each)]
    if store_backbone and not fitted:
        raise SavedModelError(
            f"model: store_backbone=True, but this {type(model).__name__} contains no "
            f"fitted CNNCodeTransformer ({len(transformers)} not fitted). Fit it first."
        )
    check_not_an_input(file, [each.fitted_backbone_["path"] for each in fitted])
    _warn_of_ineffective(transformers, store_backbone)
    records = stored_records(
        each for each in fitted if store_backbone or each.store_backbone
    )
    if suffix == ".skops":
        # skops stores an array that several objects share once, but not bytes.
        arrays: dict[str, np.ndarray] = {}
        for number, record in records.items():
            array = np.frombuffer(record["model"], np.uint8)
            array = arrays.setdefault(record["sha256"], array)
            records[number] = record | {"model": array}
    with atomic_write(file) as part, visiting(Visit(records=records)):
        if suffix == ".skops":
            import skops.io

            skops.io.dump(model, part)
            add_card_to_skops(part, card)
        else:
            # Not joblib.dump, which pickles arrays of objects apart from the rest: what
            # they share with it is then stored twice.
            with COMPRESSED.get(suffix, open)(part, "wb") as opened:
                pickle.dump(model, opened, 5)
                append_card(opened, card)
    return file


def _warn_of_ineffective(transformers: list[Any], store_backbone: bool) -> None:
    """Say which parameters `set_params` gave to estimators that `fit` had cloned."""
    found = ineffective_parameters(transformers)
    if store_backbone:
        found.pop("store_backbone", None)
    if not found:
        return
    parts = []
    for name, (value, theirs) in found.items():
        others = ", ".join(sorted(set(map(repr, theirs))))
        parts.append(f"{name}={value!r} (the fitted ones have {others})")
    cure = "set them on the fitted parts, such as best_estimator_, or fit again"
    if "store_backbone" in found:
        cure += "; save_model(..., store_backbone=True) reaches all"
    warnings.warn(
        "set_params after fit has no effect on the fitted CNNCodeTransformers of this "
        f"model, which are clones: {'; '.join(parts)}. To change what is saved, "
        f"{cure}.",
        UserWarning,
        stacklevel=3,
    )
