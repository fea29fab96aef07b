"""Load saved pipelines, with errors that explain what is wrong with a file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import EllipsisType
from typing import Any

import joblib
from sklearn.exceptions import InconsistentVersionWarning

from sk_cnncodes.base.exceptions import SavedModelError, first_line
from sk_cnncodes.base.files import working_folder
from sk_cnncodes.base.public import public
from sk_cnncodes.cache.code_cache import CodeCache
from sk_cnncodes.codes.parameters import check_parameters
from sk_cnncodes.codes.persistence import Visit, visiting
from sk_cnncodes.codes.plan import state_of
from sk_cnncodes.export.card_files import read_model_card
from sk_cnncodes.export.onnx_classifier import OnnxClassifier

# Untrusted types that a message names.
_MAX_TYPES = 5
# Packages whose name in `pip install` is another.
_PIP_NAMES = {"sklearn": "scikit-learn", "cv2": "opencv-python", "PIL": "pillow"}
# Types in pipelines of this library that skops.io does not trust by default: the
# transformer and its parameters, kernel ridge, and parts of calibrated classifiers,
# MLPs, searches, votes and stacks.
SKOPS_TRUSTED_TYPES = (
    "sk_cnncodes.CNNCodeTransformer",
    "sk_cnncodes.Preprocessing",
    "sk_cnncodes.CodeCache",
    "sk_cnncodes.Calibration",
    "sk_cnncodes.KernelRidgeCV",
    "sk_cnncodes.KernelRidgeClassifierCV",
    "sk_cnncodes.FineTunedClassifier",
    "sk_cnncodes.FineTunedRegressor",
    "sk_cnncodes.ShrinkageLDA",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.metrics._classification.balanced_accuracy_score",
    "sklearn.metrics._scorer._CurveScorer",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.model_selection._search_successive_halving.HalvingGridSearchCV",
    "sklearn.model_selection._search_successive_halving.HalvingRandomSearchCV",
    "sklearn.model_selection._split.GroupKFold",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.PredefinedSplit",
    "sklearn.model_selection._split.StratifiedGroupKFold",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
)


@public
def load_model(
    path: str | os.PathLike[str],
    *,
    device: str | list[str] | None = None,
    cache: str | os.PathLike[str] | CodeCache | EllipsisType | None = ...,
    n_jobs: int | None = None,
) -> Any:
    """Load a saved model from a joblib, pickle, skops or ONNX file.

    Parameters
    ----------
    path : str or path-like
        The suffix decides: ``.skops`` is a file of `skops.io.dump`, ``.onnx`` one of
        `to_onnx`, and any other one of `joblib.dump` or `pickle.dump`; `save_model`
        writes all but ``.onnx``. Loading joblib and pickle files runs the code in them:
        load only files that you trust.
    device : str, list of str or None, default=None
        Parameter of all `CNNCodeTransformer` in the model, wherever they are. None
        leaves what was saved.
    cache : "memory", str, path-like, CodeCache or None, default=...
        Likewise; ``...`` leaves what was saved, and None disables caching.
    n_jobs : int or None, default=None
        Number of threads of all `CNNCodeTransformer`. None leaves what was saved.

    Returns
    -------
    object
        The saved object; for an ``.onnx`` file, an `OnnxClassifier`.

    Raises
    ------
    SavedModelError
        If the file is missing, damaged, edited, or saved by a newer version, or
        contains types that `skops` does not trust; or if it has no transformer for
        `device`, `cache` or `n_jobs`.
    ExportError
        If an ``.onnx`` file was not written by `to_onnx`.
    TypeError, ValueError
        If `device`, `cache` or `n_jobs` is invalid.

    See Also
    --------
    save_model : Save a model, with the backbones of all transformers in it.

    Examples
    --------
    >>> import os, tempfile
    >>> import joblib
    >>> from sk_cnncodes import CNNCodeTransformer, load_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "codes.joblib")
    ...     _ = joblib.dump(CNNCodeTransformer(layer=-2), path)
    ...     load_model(path, n_jobs=1)
    CNNCodeTransformer(layer=-2, n_jobs=1)
    """
    model, transformers = load_with_transformers(path)
    changes: dict[str, Any] = {"device": device, "cache": cache, "n_jobs": n_jobs}
    unchanged = {"device": None, "cache": ..., "n_jobs": None}
    changes = {n: v for n, v in changes.items() if v is not unchanged[n]}
    if isinstance(model, OnnxClassifier):
        if "cache" in changes:
            raise SavedModelError(
                f"model {str(path)!r}: an OnnxClassifier computes labels, and no codes "
                "to cache. Expected cache only for other files."
            )
        return OnnxClassifier(path, **changes) if changes else model
    if changes and not transformers:
        raise SavedModelError(
            f"model {str(path)!r}: contains no CNNCodeTransformer that has "
            f"{' and '.join(changes)}. Expected a model with some."
        )
    for transformer in transformers:
        transformer.set_params(**changes)
        if changes:
            check_parameters(state_of(transformer))
    return model


def load_with_transformers(path: str | os.PathLike[str]) -> tuple[Any, list[Any]]:
    """Load a saved model, and list the transformers in it at any depth.

    Raises
    ------
    SavedModelError, ExportError
        As `load_model`.
    """
    file = Path(path)
    if file.is_dir():
        raise SavedModelError(f"model {str(path)!r}: is a folder. Expected a file.")
    if not file.is_file():
        raise SavedModelError(
            f"model {str(path)!r}: no such file; relative paths start from "
            f"{working_folder()}."
        )
    if file.suffix.lower() == ".onnx":
        return OnnxClassifier(file), []
    load = _load_skops if file.suffix.lower() == ".skops" else joblib.load
    try:
        with visiting(Visit()) as visit, _versions_compared(path):
            return load(file), list(visit.found.values())
    except (MemoryError, SavedModelError):
        raise
    except ImportError as error:
        if error.name is None:
            raise
        package = error.name.partition(".")[0]
        raise ImportError(
            f"model {str(path)!r}: needs the package {package!r}, which is not "
            f"installed here. Try: pip install {_PIP_NAMES.get(package, package)}",
            name=error.name,
        ) from error
    except Exception as error:
        # Unpickling a damaged file can raise nearly anything.
        raise SavedModelError(
            f"model {str(path)!r}: cannot be loaded. Expected a whole file of "
            f"joblib.dump or skops.io.dump; this one ({file.stat().st_size} bytes) is "
            f"damaged, of another kind, or needs other versions{_saved_with(file)}. "
            f"Reading it stopped at: {type(error).__name__}: {first_line(error)}"
        ) from error


def _saved_with(file: Path) -> str:
    """The versions that a file was saved with, if it has a card."""
    with suppress(SavedModelError):
        card = read_model_card(file)
        if card is not None:
            found = ", ".join(f"{name} {v}" for name, v in card.versions.items())
            return f" (it was saved with {found})"
    return ""


@contextmanager
def _versions_compared(path: str | os.PathLike[str]) -> Iterator[None]:
    """One warning of another version of scikit-learn, instead of one per estimator."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InconsistentVersionWarning)
        yield
    others = [
        each.message
        for each in caught
        if isinstance(each.message, InconsistentVersionWarning)
    ]
    for each in caught:
        if each.message not in others:
            warnings.warn_explicit(
                each.message, each.category, each.filename, each.lineno
            )
    if others:
        saved = others[0].original_sklearn_version
        warnings.warn(
            f"model {str(path)!r}: scikit-learn {saved} saved it, and "
            f"{others[0].current_sklearn_version} is installed, whose predictions may "
            f"differ. Train it again, or: pip install scikit-learn=={saved}",
            UserWarning,
            stacklevel=5,
        )


def _load_skops(file: Path) -> Any:
    """Load a skops file whose types are all trusted."""
    import skops.io

    unknown = skops.io.get_untrusted_types(file=file)
    unknown = sorted(set(unknown) - set(SKOPS_TRUSTED_TYPES))
    if unknown:
        shown = ", ".join(unknown[:_MAX_TYPES])
        more = f" and {len(unknown) - _MAX_TYPES} more" * (len(unknown) > _MAX_TYPES)
        raise SavedModelError(
            f"model {str(file)!r}: contains types that are not trusted: {shown}{more}. "
            "If you trust them, load it in Python by skops.io.load(path, trusted=[...])"
            " with these and sk_cnncodes.SKOPS_TRUSTED_TYPES."
        )
    return skops.io.load(file, trusted=list(SKOPS_TRUSTED_TYPES))
