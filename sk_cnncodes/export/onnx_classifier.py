"""OnnxClassifier: predicts with a file of `to_onnx`, without scikit-learn or onnx.

numpy, Pillow and ONNX Runtime are all that it imports.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.base.exceptions import ExportError, first_line
from sk_cnncodes.base.public import public
from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.engines.devices import check_n_jobs, resolve_devices, usable_threads
from sk_cnncodes.engines.onnxruntime import (
    available_providers,
    is_out_of_memory,
    load_session,
    padded,
)
from sk_cnncodes.engines.session_table import SessionTable
from sk_cnncodes.export.exported_model import check_content, read_exported
from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.safe_open import MAX_PIXELS, check_max_pixels

if TYPE_CHECKING:
    import onnxruntime as ort

_BATCH_SIZE = 16
_EXPECTED = "Expected a whole file that to_onnx wrote."


class _OnlyWithOutput:
    """Makes a method exist only where the file has an output, for `hasattr`."""

    def __init__(self, output: str) -> None:
        self._output = output

    def __call__(self, method: Callable[..., Any]) -> Any:
        self._method = method
        self.__doc__ = method.__doc__
        return self

    def __get__(self, instance: OnnxClassifier | None, owner: type) -> Any:
        if instance is None:
            return self._method
        if self._output not in instance.outputs:
            raise AttributeError(
                f"{instance!r} has no {self._method.__name__}: its head gives "
                f"{instance.outputs}, expected {self._output!r} among them."
            )
        return partial(self._method, instance)


@public
class OnnxClassifier:
    """A classifier or regressor that `to_onnx` wrote, from image files to labels.

    It decodes, resizes and crops with Pillow, as `CNNCodeTransformer` does, and runs
    the rest with ONNX Runtime. scikit-learn, joblib and onnx need not be installed,
    and nothing of the file is executed but its network.

    Parameters
    ----------
    path : str or path-like
        File that `to_onnx` wrote.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``: a GPU where there is one
        that works, else the CPU.
    n_jobs : int or None, default=-1
        Number of threads that decode images and, on the CPU, run the network. -1 uses
        all cores, None means 1.
    max_pixels : int or None, default=52_000_000
        An image with more pixels (width times height) is a bad image; None sets no
        limit. The file has no say in it.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        Of a classifier.
    outputs : list of str
        ``["label", "probabilities"]``, ``["label", "decision"]`` or ``["values"]``.
    preprocessing : Preprocessing
        How images are resized and cropped.
    metadata : dict
        Versions, backbone, layer and steps that the file was made of.

    Raises
    ------
    ExportError
        If the file is missing, damaged, or none that `to_onnx` wrote.
    DeviceError
        If a GPU is asked for that does not work.
    ValueError
        If `max_pixels` is no limit, or `n_jobs` no number of threads.

    See Also
    --------
    to_onnx : Writes such files.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import LinearSVC
    >>> from sk_cnncodes import CNNCodeTransformer, OnnxClassifier, to_onnx
    >>> digits = load_digits()
    >>> X, y = digits.images[:60] / 16, digits.target[:60]
    >>> pipeline = make_pipeline(CNNCodeTransformer(), LinearSVC()).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "digits.onnx")
    ...     _ = to_onnx(pipeline, path)
    ...     classifier = OnnxClassifier(path)
    >>> classifier.predict(X[:5])
    array([0, 1, 2, 3, 4])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        n_jobs: int | None = -1,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        check_max_pixels(max_pixels)
        check_n_jobs(n_jobs)
        self.path = Path(path)
        self.device = device
        self.n_jobs = n_jobs
        self.max_pixels = max_pixels
        content = self._content()
        self._sha256 = hashlib.sha256(content).hexdigest()
        with self._naming():
            check_content(content)
        session = self._session()
        with self._naming():
            self._exported = read_exported(session)
        self.outputs = self._exported.outputs
        self.preprocessing = self._exported.preprocessing
        self.metadata = self._exported.metadata
        if self._exported.classes is not None:
            self.classes_ = self._exported.classes

    # -- predictions ---------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray:
        """Classes of images, or values of a regressor.

        Parameters
        ----------
        X : container of images
            As `CNNCodeTransformer.transform` takes it.

        Returns
        -------
        ndarray, shape (n_images,), or (n_images, n_targets) for several targets

        Raises
        ------
        ImageError
            If an image is bad; it names position and path.
        """
        found = self.run(X)
        if "values" in found:
            values = found["values"]
            return values if self.metadata["many_targets"] else values[:, 0]
        return found["label"].astype(self.classes_.dtype)

    @_OnlyWithOutput("probabilities")
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes.

        Parameters
        ----------
        X : container of images

        Returns
        -------
        ndarray of float32, shape (n_images, n_classes)
            Columns in the order of `classes_`.
        """
        return self.run(X)["probabilities"]

    @_OnlyWithOutput("decision")
    def decision_function(self, X: Any) -> np.ndarray:
        """Decision values of a head without probabilities.

        Parameters
        ----------
        X : container of images

        Returns
        -------
        ndarray of float32, shape (n_images,) or (n_images, n)
            As the head's own `decision_function` gives them.
        """
        decision = self.run(X)["decision"]
        return decision[:, 0] if len(self.classes_) == 2 else decision

    def run(self, X: Any) -> dict[str, np.ndarray]:
        """All outputs at once: label and scores take one run of the network.

        Parameters
        ----------
        X : container of images

        Returns
        -------
        dict
            An array of n_images rows for each of `outputs`.
        """
        images = as_image_sequence(X)
        session = self._session()
        size = self._exported.batch_size or _BATCH_SIZE
        parts = []
        pixels = partial(self._pixels, images)
        with OrderedThreadPool(
            usable_threads(self.n_jobs), "sk_cnncodes-classifier"
        ) as threads:
            for start in range(0, len(images), size):
                indices = range(start, min(start + size, len(images)))
                batch = np.stack(list(threads.in_order(pixels, indices, size)))
                parts.append(self._run(session, batch))
        joined = [np.concatenate(output) for output in zip(*parts, strict=True)]
        return dict(zip(self.outputs, joined, strict=True))

    def _run(
        self, session: ort.InferenceSession, batch: np.ndarray
    ) -> list[np.ndarray]:
        with self._naming():
            try:
                arrays = run_images(session, batch)
            except ExportError:
                raise
            except Exception as error:
                if isinstance(error, MemoryError) or is_out_of_memory(error):
                    raise
                reason = first_line(error).rstrip(".")
                raise ExportError(f"ONNX Runtime cannot run it ({reason})") from error
            self._exported.check(arrays)
        return arrays

    def _pixels(self, images: Sequence[Any], index: int) -> np.ndarray:
        min_decode_size = self.preprocessing.min_decode_size
        image = read_rgb(images[index], index, self.max_pixels, min_decode_size)
        return self.preprocessing.apply(image)

    # -- the session ---------------------------------------------------------

    def _session(self) -> ort.InferenceSession:
        """From the table of this process: copies, threads and forks share it."""
        key = (os.path.realpath(self.path), self._sha256, self.device, self.n_jobs)
        return _SESSIONS.get(key, self._load)

    def _load(self) -> ort.InferenceSession:
        (device,) = resolve_devices(self.device, providers=available_providers())
        content = self._content()
        if hashlib.sha256(content).hexdigest() != self._sha256:
            raise ExportError(
                f"model {str(self.path)!r}: the file is another one than when this "
                "OnnxClassifier was made. Make a new one of it."
            )
        n_threads = usable_threads(self.n_jobs)
        try:
            return load_session(content, device, n_threads)
        except Exception as error:
            on_gpu = device.required and device.gpu is not None
            if on_gpu or isinstance(error, MemoryError):
                raise
            raise ExportError(
                f"model {str(self.path)!r}: ONNX Runtime cannot load it "
                f"({first_line(error).rstrip('.')}). {_EXPECTED}"
            ) from error

    def _content(self) -> bytes:
        # A pipe or a device might never end.
        if self.path.exists() and not self.path.is_file():
            raise ExportError(f"model {str(self.path)!r}: no file. {_EXPECTED}")
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ExportError(
                f"model {str(self.path)!r}: cannot be read ({reason}). {_EXPECTED}"
            ) from error

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Say which file it is that breaks the contract."""
        try:
            yield
        except ExportError as error:
            message = f"model {str(self.path)!r}: {error}. {_EXPECTED}"
            raise ExportError(message) from error.__cause__

    def __repr__(self) -> str:
        return f"OnnxClassifier({str(self.path)!r})"


def run_images(session: ort.InferenceSession, images: np.ndarray) -> list[np.ndarray]:
    """Outputs of a session for prepared images, also where its batch size is fixed.

    Raises
    ------
    ExportError
        If they are not one row for each image.
    """
    value = session.get_inputs()[0]
    size = value.shape[0] if isinstance(value.shape[0], int) else len(images)
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        outputs = session.run(None, {value.name: padded(part, size)})
        for output in outputs:
            if output.shape[:1] != (size,):
                raise ExportError(
                    f"an output has the shape {output.shape} for {size} images"
                )
        parts.append([output[: len(part)] for output in outputs])
    return [np.concatenate(output) for output in zip(*parts, strict=True)]


_SESSIONS: SessionTable[Any] = SessionTable()
