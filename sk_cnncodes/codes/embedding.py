"""EmbeddingMixin: write codes to a cache or a file, explain one, or name its values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.exceptions import NotFittedError

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.backbones.stored import StoredBackbone
from sk_cnncodes.base.callbacks import fit_task, shown_share
from sk_cnncodes.base.files import atomic_write, check_not_an_input, reserve_disk
from sk_cnncodes.cache.code_cache import CodeCache, resolve_cache
from sk_cnncodes.codes.explanation import Explanation, describe_code
from sk_cnncodes.codes.extraction import Extraction, ExtractionOptions
from sk_cnncodes.codes.parameters import check_parameters
from sk_cnncodes.codes.plan import CodePlan, fitted_specs, plan_transform, state_of
from sk_cnncodes.codes.saving import code_parameters
from sk_cnncodes.codes.streaming import CodeBatch, StreamExtraction, keyed_images
from sk_cnncodes.images.containers import as_element, as_images


class EmbeddingMixin:
    """Methods of `CNNCodeTransformer` beyond `fit` and `transform`."""

    backbone: str | os.PathLike[str]
    on_error: str
    max_pixels: int | None
    cache: str | os.PathLike[str] | CodeCache | None
    batch_size: int | str
    verbose: bool
    # The name of the column that it was fitted on.
    _fitted_column: str | None = None
    layer: int | str | Sequence[int | str]
    fit: Callable[..., Any]
    transform: Callable[..., np.ndarray]

    # Not a method of the class itself: scikit-learn would make a frame of its frame.
    @fit_task("fit-transform")
    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and compute the codes of images.

        Callbacks such as scikit-learn's `ProgressBar` show how many images are done.

        Parameters
        ----------
        X : container of images
            See Notes in the class docstring.
        y : None
            Ignored.

        Returns
        -------
        codes : ndarray of float32, shape (n_images, n_features)
            Row i is the code of image i.

        Raises
        ------
        TypeError, ValueError, ImageError, DeviceError
            As `fit` and `transform`.
        """
        codes: np.ndarray = self.fit(X, y).transform(X)
        return codes

    def precompute(self, X: Any) -> Self:
        """Compute the codes of images into the cache, with a progress bar.

        The codes of `layer` and of all `cache_layers` are stored as they are computed,
        so that after an interruption a second call continues where the first stopped.

        Parameters
        ----------
        X : container or generator of images
            See Notes in the class docstring.

        Returns
        -------
        self : CNNCodeTransformer

        Raises
        ------
        ValueError
            If ``cache=None``. Other errors are those of `transform`.

        Examples
        --------
        Before a search with several processes, which share the file:

        >>> import os, tempfile
        >>> import numpy as np
        >>> from sk_cnncodes import CNNCodeTransformer
        >>> X = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     codes = CNNCodeTransformer(
        ...         cache=os.path.join(folder, "codes.sqlite3"), cache_layers=[-1, -2]
        ...     )
        ...     codes.precompute(X).transform(X).shape
        (4, 800)
        """
        state = state_of(self)
        check_parameters(state)
        cache = resolve_cache(self.cache)
        if cache is None:
            raise ValueError(
                "cache: precompute needs a cache, got None. Expected a path, a "
                "CodeCache, or 'memory'."
            )
        images = as_images(X)
        plan = plan_transform(state)
        extraction = self._extraction(
            images, plan, cache, verbose=True, store_only=True
        )
        extraction.run()
        _check_not_empty(extraction)
        return self

    def transform_to(self, path: str | os.PathLike[str], X: Any) -> np.ndarray:
        """Compute the codes of any number of images, and write them to a file.

        Memory use does not grow with the number of images, and the write is atomic.
        If `cache` is a path, a second call after an interruption continues where the
        first stopped.

        Parameters
        ----------
        path : str or path-like
            File in NumPy's ``.npy`` format. An existing file is replaced.
        X : container or generator of images
            See Notes in the class docstring. Of a generator, the images of the batches
            in flight are in memory.

        Returns
        -------
        codes : memmap of float32, shape (n_images, n_features)
            The file as opened by ``numpy.load(path, mmap_mode="r")``. Row i is the
            code of image i.

        Raises
        ------
        ValueError
            If the file is the backbone or one of the images. Other errors are those of
            `transform`.
        OSError
            If the file cannot be written. Insufficient disk space is detected before
            any code is computed.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> from sk_cnncodes import CNNCodeTransformer
        >>> X = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     codes = CNNCodeTransformer().transform_to(f"{folder}/codes.npy", X)
        ...     codes.shape
        (4, 800)
        """
        state = state_of(self)
        check_parameters(state)
        images = as_images(X)
        target = Path(path)
        if target.exists():
            # Indexing a lazy sequence may decode the image, so these are not checked.
            held = images if isinstance(images, (list, tuple, np.ndarray)) else ()
            paths = (image for image in held if isinstance(image, (str, Path)))
            check_not_an_input(target, chain([self.backbone], paths))
        with atomic_write(target) as part:
            plan = plan_transform(state)
            length = sum(plan.code_lengths)
            file = CodeFile(part, length, fill=self.on_error == "nan")
            cache = resolve_cache(self.cache)
            verbose = bool(self.verbose)
            out: Any = file.rows
            if not isinstance(images, Iterator):
                out = file.rows(len(images))
            extraction = self._extraction(images, plan, cache, verbose=verbose, out=out)
            extraction.run()
            _check_not_empty(extraction)
            count = extraction.count
            del out, extraction  # Windows cannot move a file that is mapped
            file.close(count)
        codes: np.ndarray = np.load(target, mmap_mode="r")
        return codes

    def iter_codes(self, source: Any, *, batch: int = 256) -> Iterator[CodeBatch]:
        """Compute the codes of a stream of images, batch by batch.

        Memory use does not grow with the number of images, and the order is that of
        the stream. Images are taken from it as they are needed, in this thread.

        Parameters
        ----------
        source : iterable of (key, image), or container or generator of images
            Keys are any objects, and are given back. Without them, keys are positions.
            For images, see Notes in the class docstring.
        batch : int, default=256
            Number of images that are yielded at once; the last time, it may be less.
            How many the backbone runs at once is `batch_size`.

        Yields
        ------
        CodeBatch
            With `keys`, `codes` of shape (n_images, n_features), and `errors`.

        Raises
        ------
        TypeError, ValueError, ImageError, DeviceError
            As `transform`. With ``on_error="nan"``, bad images are in `errors`, and
            there is no warning.

        Examples
        --------
        >>> import numpy as np
        >>> from sk_cnncodes import CNNCodeTransformer
        >>> X = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
        >>> pairs = ((f"image {number}", image) for number, image in enumerate(X))
        >>> for codes in CNNCodeTransformer().iter_codes(pairs, batch=3):
        ...     codes.keys, codes.codes.shape
        (['image 0', 'image 1', 'image 2'], (3, 800))
        (['image 3', 'image 4'], (2, 800))
        """
        state = state_of(self)
        check_parameters(state)
        if not isinstance(batch, Integral) or batch < 1:
            raise ValueError(f"batch={batch!r}: expected a number of images from 1 on.")
        pairs = keyed_images(source)
        plan = plan_transform(state)
        cache, verbose = resolve_cache(self.cache), bool(self.verbose)
        extraction = self._extraction(
            pairs, plan, cache, verbose=verbose, kind=StreamExtraction
        )
        assert isinstance(extraction, StreamExtraction)
        return extraction.batches(int(batch))

    def explain(self, image: Any) -> Explanation:
        """Compute the code of one image, with everything that determines it.

        Helps to debug an unexpected prediction: shows what was read, rotated and
        resized, the input of the network, and which network, layer and engine computed
        the code. The code is looked up and stored in the cache, as in `transform`.

        Parameters
        ----------
        image : object
            One image: an element of X.

        Returns
        -------
        explanation : Explanation
            It prints as a table. Its method `save` writes the input of the network.

        Raises
        ------
        ImageError
            If the image cannot be read, regardless of `on_error`.
        ValueError, DeviceError
            As in `transform`.

        Examples
        --------
        >>> from sklearn.datasets import load_sample_images
        >>> from sk_cnncodes import CNNCodeTransformer
        >>> photograph = load_sample_images().images[0]
        >>> explanation = CNNCodeTransformer().explain(photograph)
        >>> explanation.layer_label, explanation.crop.shape, explanation.code.shape
        ('codes', (116, 116, 3), (800,))
        """
        state = state_of(self)
        check_parameters(state)
        cache = resolve_cache(self.cache)
        plan = plan_transform(state)
        image = as_element(image, 0)
        facts = describe_code(
            image, plan, cache, self.max_pixels, getattr(self, "fitted_backbone_", {})
        )
        codes = self._extraction(
            [image], plan, cache, verbose=False, on_error="raise"
        ).run()
        provider = None
        if not facts["from_cache"]:
            single = plan.n_threads > 1  # as for any image that is alone
            provider = plan.open_session(single).provider
        return Explanation(**facts, provider=provider, code=codes[0])

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Get the output feature names: the lowercase class name and a number.

        If `fit` was given a named column, as a Series or a frame of one column, its
        name stands for that of the class: ``"front_17"``. If `layer` is a list, the
        layer stands between name and number: ``"cnncodetransformer_-3_17"``.

        Parameters
        ----------
        input_features : None
            Ignored.

        Returns
        -------
        feature_names_out : ndarray of str objects, shape (n_features,)

        Raises
        ------
        NotFittedError
            Before `fit`, and after a change of a parameter that affects the codes.
        """
        # The backbone is not loaded here: scikit-learn's displays ask for the names.
        parameters, lengths = getattr(self, "_fitted_codes", (None, 0))
        if parameters != code_parameters(state_of(self)):
            raise NotFittedError(
                f"This {type(self).__name__} was not fitted with its current "
                "parameters. Call fit before get_feature_names_out."
            )
        name = self._fitted_column or type(self).__name__.lower()
        prefixes = [name if self._fitted_column is None else f"{name}_"]
        if isinstance(self.layer, (list, tuple)):
            prefixes = [f"{name}_{layer}_" for layer in self.layer]
        # One number, if an older version saved it.
        lengths = np.atleast_1d(lengths).tolist()
        names = [
            f"{prefix}{number}"
            for prefix, length in zip(prefixes, lengths, strict=True)
            for number in range(length)
        ]
        return np.array(names, object)

    def _extraction(
        self,
        images: Sequence[Any] | Iterator[Any],
        plan: CodePlan,
        cache: CodeCache | None,
        *,
        verbose: bool,
        store_only: bool = False,
        on_error: str | None = None,
        kind: type[Extraction] = Extraction,
        out: np.ndarray | Callable[[int], np.ndarray] | None = None,
    ) -> Extraction:
        """What computes, or only stores, the codes of images; see `Extraction`."""
        on_error = on_error or self.on_error
        options = ExtractionOptions(
            batch_size=None if self.batch_size == "auto" else int(self.batch_size),
            n_threads=plan.n_threads,
            on_error="nan" if on_error == "nan" else "raise",
            verbose=verbose,
            show=shown_share(self),
            max_pixels=None if self.max_pixels is None else int(self.max_pixels),
            decoding_gpu=plan.decoding_gpu,
        )
        return kind(
            images,
            plan.outputs,
            plan.specs,
            None if store_only else sum(plan.code_lengths),
            plan.open_session,
            cache,
            options,
            out,
        )

    def fitted_specs(self) -> tuple[Backbone | StoredBackbone, list[CodeSpec]]:
        """The backbone of `fit`, and the specs of its layers; used by `to_onnx`."""
        state = state_of(self)
        check_parameters(state)
        return fitted_specs(state)


class CodeFile:
    """A .npy file of codes that is mapped into memory, and may grow.

    Parameters
    ----------
    path : Path
    code_length : int
    fill : bool
        Whether rows that are not written must be NaN.
    """

    def __init__(self, path: Path, code_length: int, *, fill: bool) -> None:
        self._path = path
        self._fill = fill
        self._code_length = code_length
        self._n_rows = 0
        with open(path, "wb") as file:
            self._write_header(file, 0)
            self._offset = file.tell()

    def rows(self, count: int) -> np.ndarray:
        """The codes, with at least `count` rows."""
        more = self._n_rows + self._n_rows // 4 if self._n_rows else 0
        before, self._n_rows = self._n_rows, max(count, more)
        self._truncate()
        reserve_disk(self._path)
        shape = (self._n_rows, self._code_length)
        codes = np.memmap(self._path, np.float32, "r+", self._offset, shape)
        if self._fill:
            codes[before:] = np.nan  # rows of bad images are not written
        return codes

    def close(self, count: int) -> None:
        """Set the number of rows."""
        self._n_rows = count
        self._truncate()
        with open(self._path, "r+b") as file:
            self._write_header(file, count)
            file.flush()
            os.fsync(file.fileno())

    def _truncate(self) -> None:
        size = self._offset + 4 * self._n_rows * self._code_length
        with open(self._path, "r+b") as file:
            file.truncate(size)

    def _write_header(self, file: Any, count: int) -> None:
        """NumPy leaves room in it for any number of rows."""
        shape = (count, self._code_length)
        descr = np.lib.format.dtype_to_descr(np.dtype(np.float32))
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)


def _check_not_empty(extraction: Extraction) -> None:
    if extraction.count == 0:
        raise ValueError(
            "X: found 0 images (0 samples), while a minimum of 1 is required."
        )
