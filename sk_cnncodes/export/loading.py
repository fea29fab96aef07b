"""Saved pipelines: loaded with errors that say what is wrong with a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib

from sk_cnncodes.base.exceptions import SavedModelError, first_line
from sk_cnncodes.base.files import working_folder
from sk_cnncodes.base.public import public
from sk_cnncodes.export.onnx_classifier import OnnxClassifier

# Types of pipelines of this library that skops.io does not trust by itself: the
# transformer and its parameters, and private parts of calibrated classifiers and MLPs.
SKOPS_TRUSTED_TYPES = (
    "sk_cnncodes.CNNCodeTransformer",
    "sk_cnncodes.Preprocessing",
    "sk_cnncodes.CodeCache",
    "sk_cnncodes.Calibration",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
)


@public
def load_model(path: str | os.PathLike[str]) -> Any:
    """Load a saved pipeline, whichever way it was saved.

    Parameters
    ----------
    path : str or path-like
        By its suffix: a ``.skops`` file of `skops.io.dump`, an ``.onnx`` file of
        `to_onnx`, or else a file of `joblib.dump` or `pickle.dump`. Loading joblib
        and pickle files runs code that they hold: load only those that you trust.

    Returns
    -------
    object
        What was saved; of an ``.onnx`` file, an `OnnxClassifier`.

    Raises
    ------
    SavedModelError
        If the file is missing, damaged, edited, or saved by a newer version; or holds
        types that `skops` does not trust.
    ExportError
        If an ``.onnx`` file is none that `to_onnx` wrote.

    Examples
    --------
    >>> import os, tempfile
    >>> import joblib
    >>> from sk_cnncodes import CNNCodeTransformer, load_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "codes.joblib")
    ...     _ = joblib.dump(CNNCodeTransformer(layer=-2), path)
    ...     load_model(path)
    CNNCodeTransformer(layer=-2)
    """
    file = Path(path)
    if file.is_dir():
        raise SavedModelError(f"model {str(path)!r}: is a folder. Expected a file.")
    if not file.is_file():
        raise SavedModelError(
            f"model {str(path)!r}: no such file; relative paths start from "
            f"{working_folder()}."
        )
    if file.suffix == ".onnx":
        return OnnxClassifier(file)
    load = _load_skops if file.suffix == ".skops" else joblib.load
    try:
        return load(file)
    except (ImportError, MemoryError, SavedModelError):
        raise
    except Exception as error:
        # Unpickling raises nearly anything on a damaged file.
        raise SavedModelError(
            f"model {str(path)!r}: cannot be loaded ({type(error).__name__}: "
            f"{first_line(error)}). Expected a whole file of joblib.dump or "
            f"skops.io.dump; this one of {file.stat().st_size} bytes is truncated or "
            "damaged, or needs other versions of its packages."
        ) from error


def _load_skops(file: Path) -> Any:
    import skops.io

    unknown = skops.io.get_untrusted_types(file=file)
    unknown = sorted(set(unknown) - set(SKOPS_TRUSTED_TYPES))
    if unknown:
        raise SavedModelError(
            f"model {str(file)!r}: holds types that are not trusted: {unknown}. If you "
            "know them: skops.io.load(path, trusted=[...]) with these and "
            f"{list(SKOPS_TRUSTED_TYPES)}."
        )
    return skops.io.load(file, trusted=list(SKOPS_TRUSTED_TYPES))
