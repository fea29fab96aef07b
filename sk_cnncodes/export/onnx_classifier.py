"""OnnxClassifier: predicts with a file that `to_onnx` wrote.

It imports only numpy, Pillow and ONNX Runtime, not scikit-learn or onnx.
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
from sk_cnncodes.images.containers import as_image_sequence, fetch_element
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.safe_open import MAX_PIXELS, check_max_pixels

if TYPE_CHECKING:
    import onnxruntime as ort

_BATCH_SIZE = 16
_EXPECTED = "Expected a whole file that to_onnx wrote."


class _OnlyWithOutput:
    """Make a method exist, for `hasattr`, only if the file has a given output."""

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
                f"{instance!r} has no {self._method.__name__}: its outputs are "
                f"{instance.outputs}. Expected {self._output!r} among them."
            )
        return partial(self._method, instance)


@public
class OnnxClassifier:
    """Classifier or regressor of image files, loaded from a file of `to_onnx`.

    It decodes, resizes and crops images with Pillow, as `CNNCodeTransformer` does, and
    runs the rest with ONNX Runtime. scikit-learn, joblib and onnx need not be
    installed. Only the network in the file is executed.

    Parameters
    ----------
    path : str or path-like
        File that `to_onnx` wrote.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``: a working GPU if there is
        one, otherwise the CPU.
    n_jobs : int or None, default=-1
        Number of threads that decode images and, on the CPU, run the network. -1 uses
        all cores, None means 1.
    max_pixels : int or None, default=52_000_000
        Images with more pixels are rejected, as by `CNNCodeTransformer`; None sets no
        limit. The file cannot change this.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        Only for classifiers.
    outputs : list of str
        ``["label", "probabilities"]``, ``["label", "decision"]`` or ``["values"]``.
    preprocessing : Preprocessing
        How images are resized and cropped; of a file with several inputs, for the
        first.
    metadata : dict
        Versions, backbone, layer and steps from which the file was created.

    Raises
    ------
    ExportError
        If the file is missing, damaged, or was not written by `to_onnx`.
    DeviceError
        If the requested GPU does not work.
    ValueError
        If `max_pixels` or `n_jobs` is invalid.

    See Also
    --------
    to_onnx : Write such a file.

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
        with self._with_path():
            check_content(content)
        session = self._session()
        with self._with_path():
            self._exported = read_exported(session)
        self.outputs = self._exported.outputs
        self.preprocessing = self._exported.inputs[0]
        self.metadata = self._exported.metadata
        if self._exported.classes is not None:
            self.classes_ = self._exported.classes

    # -- predictions ---------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray:
        """Predict the classes of images, or the values of a regressor.

        Parameters
        ----------
        X : container of images
            As for `CNNCodeTransformer.transform`.

        Returns
        -------
        ndarray, shape (n_images,), or (n_images, n_targets) for several targets

        Raises
        ------
        ImageError
            If an image is bad; the message names its position and path.
        """
        found = self.run(X)
        if "values" in found:
            values = found["values"]
            return values if self.metadata["many_targets"] else values[:, 0]
        return found["label"].astype(self.classes_.dtype)

    @_OnlyWithOutput("probabilities")
    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities.

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
        """Compute the decision values of a head without probabilities.

        Parameters
        ----------
        X : container of images

        Returns
        -------
        ndarray of float32, shape (n_images,) or (n_images, n)
            The shape is that of the head's own `decision_function`.
        """
        decision = self.run(X)["decision"]
        return decision[:, 0] if len(self.classes_) == 2 else decision

    def run(self, X: Any) -> dict[str, np.ndarray]:
        """Compute all outputs in one run of the network.

        Parameters
        ----------
        X : container of images

        Returns
        -------
        dict
            One array with n_images rows for each name in `outputs`.
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
                rows = threads.in_order(pixels, indices, size)
                batch = [np.stack(part) for part in zip(*rows, strict=True)]
                parts.append(self._run(session, batch))
        joined = [np.concatenate(output) for output in zip(*parts, strict=True)]
        return dict(zip(self.outputs, joined, strict=True))

    def _run(
        self, session: ort.InferenceSession, batch: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Run one batch and check its outputs."""
        with self._with_path():
            try:
                arrays = run_images(session, *batch)
            except ExportError:
                raise
            except Exception as error:
                if isinstance(error, MemoryError) or is_out_of_memory(error):
                    raise
                reason = first_line(error).rstrip(".")
                raise ExportError(f"ONNX Runtime cannot run it ({reason})") from error
            self._exported.check(arrays)
        return arrays

    def _pixels(self, images: Sequence[Any], index: int) -> list[np.ndarray]:
        """Decode and preprocess one image for each input."""
        pixels = []
        for values in self._exported.inputs:
            how = (self.max_pixels, values.min_decode_size, values.color)
            rgb = read_rgb(fetch_element(images, index), index, *how)
            pixels.append(values.apply(rgb))
        return pixels

    # -- the session ---------------------------------------------------------

    def _session(self) -> ort.InferenceSession:
        """The session, shared by copies, threads and forks of this process."""
        key = (os.path.realpath(self.path), self._sha256, self.device, self.n_jobs)
        return _SESSIONS.get(key, self._load)

    def _load(self) -> ort.InferenceSession:
        (device,) = resolve_devices(self.device, providers=available_providers())
        content = self._content()
        if hashlib.sha256(content).hexdigest() != self._sha256:
            raise ExportError(
                f"model {str(self.path)!r}: the file changed after this "
                "OnnxClassifier loaded it. Create a new one."
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
        # Reading a pipe or a device might never end.
        if self.path.exists() and not self.path.is_file():
            raise ExportError(
                f"model {str(self.path)!r}: not a regular file. {_EXPECTED}"
            )
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ExportError(
                f"model {str(self.path)!r}: cannot be read ({reason}). {_EXPECTED}"
            ) from error

    @contextmanager
    def _with_path(self) -> Iterator[None]:
        """Add the path of the file to export errors."""
        try:
            yield
        except ExportError as error:
            message = f"model {str(self.path)!r}: {error}. {_EXPECTED}"
            raise ExportError(message) from error.__cause__

    def __repr__(self) -> str:
        return f"OnnxClassifier({str(self.path)!r})"


def run_images(session: ort.InferenceSession, *images: np.ndarray) -> list[np.ndarray]:
    """Run a session on images prepared for each of its inputs.

    Batches are padded if the batch size is fixed.

    Raises
    ------
    ExportError
        If an output does not have one row per image.
    """
    values, count = session.get_inputs(), len(images[0])
    size = values[0].shape[0] if isinstance(values[0].shape[0], int) else count
    parts = []
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        feeds = {
            value.name: padded(each[rows], size)
            for value, each in zip(values, images, strict=True)
        }
        outputs = session.run(None, feeds)
        for output in outputs:
            if output.shape[:1] != (size,):
                raise ExportError(
                    f"an output has the shape {output.shape} for {size} images"
                )
        parts.append([output[: rows.stop - start] for output in outputs])
    return [np.concatenate(output) for output in zip(*parts, strict=True)]


_SESSIONS: SessionTable[Any] = SessionTable()
