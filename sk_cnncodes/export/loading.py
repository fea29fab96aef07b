"""Load saved pipelines, with errors that explain what is wrong with a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib

from sk_cnncodes.base.exceptions import SavedModelError, first_line
from sk_cnncodes.base.files import working_folder
from sk_cnncodes.base.public import public
from sk_cnncodes.export.onnx_classifier import OnnxClassifier

# Types in pipelines of this library that skops.io does not trust by default: the
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
    """Load a saved pipeline from a joblib, pickle, skops or ONNX file.

    Parameters
    ----------
    path : str or path-like
        The suffix decides: ``.skops`` is a file of `skops.io.dump`, ``.onnx`` one of
        `to_onnx`, and any other one of `joblib.dump` or `pickle.dump`. Loading joblib
        and pickle files runs the code in them: load only files that you trust.

    Returns
    -------
    object
        The saved object; for an ``.onnx`` file, an `OnnxClassifier`.

    Raises
    ------
    SavedModelError
        If the file is missing, damaged, edited, or saved by a newer version, or
        contains types that `skops` does not trust.
    ExportError
        If an ``.onnx`` file was not written by `to_onnx`.

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
    if file.suffix.lower() == ".onnx":
        return OnnxClassifier(file)
    load = _load_skops if file.suffix.lower() == ".skops" else joblib.load
    try:
        return load(file)
    except (ImportError, MemoryError, SavedModelError):
        raise
    except Exception as error:
        # Unpickling a damaged file can raise nearly anything.
        raise SavedModelError(
            f"model {str(path)!r}: cannot be loaded ({type(error).__name__}: "
            f"{first_line(error)}). Expected a whole file of joblib.dump or "
            f"skops.io.dump; this one ({file.stat().st_size} bytes) is truncated or "
            "damaged, or needs other package versions."
        ) from error


def _load_skops(file: Path) -> Any:
    """Load a skops file whose types are all trusted."""
    import skops.io

    unknown = skops.io.get_untrusted_types(file=file)
    unknown = sorted(set(unknown) - set(SKOPS_TRUSTED_TYPES))
    if unknown:
        raise SavedModelError(
            f"model {str(file)!r}: contains types that are not trusted: {unknown}. "
            "If you trust them, call skops.io.load(path, trusted=[...]) with these and "
            f"{list(SKOPS_TRUSTED_TYPES)}."
        )
    return skops.io.load(file, trusted=list(SKOPS_TRUSTED_TYPES))
