"""CNNCodeTransformer: the scikit-learn face of the library."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import Tags

from sk_cnncodes.backbone import Backbone, CodeSpec
from sk_cnncodes.cache import MEMORY, CacheWarning, CodeCache, resolve_cache
from sk_cnncodes.catalogue import load_backbone
from sk_cnncodes.containers import as_image_sequence
from sk_cnncodes.exceptions import BackboneError
from sk_cnncodes.extraction import Extraction, ExtractionOptions
from sk_cnncodes.image_files import MAX_PIXELS
from sk_cnncodes.preprocessing import Preprocessing
from sk_cnncodes.runtime import (
    SESSIONS,
    CodeSession,
    Device,
    open_session,
    resolve_device,
    usable_threads,
)

POOLINGS = ("auto", "avg", "max", "gem", "cls", "mean", "flatten")


class CNNCodeTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Turn images into CNN codes: activations of a pretrained network's layer.

    Each image is decoded, resized and normalised as the backbone was trained, run
    through the backbone up to a layer, and pooled to a vector. Later layers are cut
    off and not executed. Nothing is learned from the data: `fit` only checks the
    parameters.

    Parameters
    ----------
    backbone : str or path-like, default="cnncodes-mini"
        A known backbone by its name, as `list_backbones` shows them, or the path of an
        ONNX file. One that is not bundled is downloaded when it is first needed.
    layer : int or str, default=-1
        Where the backbone is cut. -1 is the penultimate activation, -2 the block
        boundary before it, and so on towards the image; a string is a layer's label
        or the name of any tensor of the file. ``load_backbone(backbone).layers``
        lists them.
    pooling : str, default="auto"
        How the activations of an image become one vector.

        - ``"avg"``, ``"max"``: average or maximum of each channel of a map;
        - ``"gem"``: generalised mean of each channel of a map, with exponent 3 [1]_;
        - ``"cls"``: the class token of tokens that have one;
        - ``"mean"``: mean of all tokens; ``"max"`` is their maximum;
        - ``"flatten"``: all values, row by row;
        - ``"auto"``: the average of a map, the class token of tokens that have one,
          else their mean, and a vector as it is.
    norm : {"l2"} or None, default=None
        Whether each code is scaled to unit length.
    preprocessing : Preprocessing, dict or None, default=None
        Resize, crop and normalisation. None takes what belongs to the backbone: its
        own metadata, the catalogue's row of its SHA-256, a Hugging Face
        `preprocessor_config.json` or a timm `config.json` beside it. It is never
        guessed: where none of these exists, `fit` fails.
    on_error : {"raise", "nan"}, default="raise"
        What a bad image does: raise an `ImageError` with its position and path, or
        give a row of NaN, with one warning that lists all of them.
    max_pixels : int or None, default=52_000_000
        An image with more pixels (width times height) is a bad image; None sets no
        limit. With the default, decoding an image takes less than 1 GB of memory in
        each thread, whatever its file claims. It does not change the codes.
    cache : "memory", str, path-like, CodeCache or None, default="memory"
        Where codes are kept, so that each image is embedded once, however many
        folds, candidates and calls ask for it. ``"memory"`` is shared by all
        transformers of this process and bounded; a path is a file that processes and
        days share, which a search with several processes needs; None keeps nothing.
    cache_layers : iterable of int or str, or None, default=None
        Further layers, whose codes the same forward pass computes and puts into the
        cache. `layer_grid` writes a grid that uses it.
    batch_size : int or "auto", default="auto"
        Number of images in each run of the backbone. It does not change the codes.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``: a GPU where there is one
        that works, else the CPU.
    n_jobs : int or None, default=-1
        Number of threads that decode images and, on the CPU, run the backbone. -1
        uses all the cores that this process may use, in a worker of joblib its share
        of them. None means 1.
    verbose : bool, default=False
        Whether `transform` shows a progress bar.

    See Also
    --------
    load_backbone : The layers and the preprocessing of a backbone.
    CodeCache : Size, size bound and clearing of a cache.
    layer_grid : A grid over layers that runs the backbone once for all of them.
    Preprocessing : Resize, crop and normalisation.

    Notes
    -----
    X is a list, tuple, one-dimensional array, pandas or polars Series or one-column
    frame of paths, bytes, open binary files, PIL images or arrays, or one array of
    shape (n_images, height, width, channels) or (n_images, height, width). Arrays
    hold uint8, bool, or floats in [0, 1]. Images are turned upright by their EXIF
    data and converted to RGB, transparency over white; of an animation the first
    frame is taken.

    A pickled transformer holds its parameters and, if fitted, the SHA-256 of its
    backbone, not the backbone itself: the file must be there where it is loaded, and
    a file with other content is refused. Loaded networks are kept in a table of the
    process, so that clones and unpickled copies share them.

    References
    ----------
    .. [1] F. Radenovic, G. Tolias, O. Chum, "Fine-tuning CNN Image Retrieval with No
       Human Annotation", TPAMI 2018, arXiv:1711.02512.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> from sk_cnncodes import CNNCodeTransformer
    >>> photographs = load_sample_images().images
    >>> CNNCodeTransformer().fit_transform(photographs).shape
    (2, 512)

    In a pipeline, with a search over the layer:

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> digits = load_digits()
    >>> X, y = digits.images[:60] / 16, digits.target[:60]
    >>> pipeline = make_pipeline(
    ...     CNNCodeTransformer(), StandardScaler(), LogisticRegression(C=0.01)
    ... )
    >>> grid = {"cnncodetransformer__layer": [-1, -2]}
    >>> search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    >>> search.predict(X[:3]).shape
    (3,)
    """

    # Where the link of the HTML display leads.
    _doc_link_module = "sk_cnncodes"
    _doc_link_template = "https://github.com/sk-cnncodes/sk-cnncodes#{estimator_name}"

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        return {"estimator_name": type(self).__name__.lower()}

    def __init__(
        self,
        backbone: str | os.PathLike[str] = "cnncodes-mini",
        *,
        layer: int | str = -1,
        pooling: str = "auto",
        norm: str | None = None,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        on_error: str = "raise",
        max_pixels: int | None = MAX_PIXELS,
        cache: str | os.PathLike[str] | CodeCache | None = "memory",
        cache_layers: Iterable[int | str] | None = None,
        batch_size: int | str = "auto",
        device: str = "auto",
        n_jobs: int | None = -1,
        verbose: bool = False,
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.pooling = pooling
        self.norm = norm
        self.preprocessing = preprocessing
        self.on_error = on_error
        self.max_pixels = max_pixels
        self.cache = cache
        self.cache_layers = cache_layers
        self.batch_size = batch_size
        self.device = device
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters, and that X can hold images; no image is opened.

        Parameters
        ----------
        X : container of images
            See the notes of the class.
        y : ignored

        Returns
        -------
        self : CNNCodeTransformer

        Raises
        ------
        ValueError
            If a parameter or X is not as described: BackboneError, LayerError and
            PreprocessingError are among them.
        DeviceError
            If a GPU is asked for that does not work.
        """
        self._check_parameters()
        resolve_device(self.device)
        as_image_sequence(X)
        backbone = self._load_backbone(check_digest=False)
        self._specs(backbone)
        # What a saved pipeline needs to recognise its backbone by.
        self.fitted_backbone_ = (os.fspath(self.backbone), backbone.sha256)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Compute the codes of images.

        Parameters
        ----------
        X : container of images
            See the notes of the class.

        Returns
        -------
        codes : ndarray of float32, shape (n_images, n_features)
            Row i is the code of image i.

        Raises
        ------
        ImageError
            If an image is bad and ``on_error="raise"``; it names position and path.
        ValueError
            If X is not a container of images, or a parameter is wrong.
        BackboneError
            If the backbone is missing, changed since `fit`, or does not run.
        DeviceError
            If a GPU is asked for that does not work.
        """
        self._check_parameters()
        cache = resolve_cache(self.cache)
        _advise_worker(cache)
        return self._extract(X, cache, verbose=bool(self.verbose), store_only=False)

    def precompute(self, X: Any) -> Self:
        """Put the codes of images into the cache, with a progress bar.

        The codes of `layer` and of all `cache_layers` are stored as they come, so
        that after an interruption a second call goes on where the first one stopped.

        Parameters
        ----------
        X : container of images
            See the notes of the class.

        Returns
        -------
        self : CNNCodeTransformer

        Raises
        ------
        ValueError
            If ``cache=None``; otherwise as `transform`.

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
        (4, 512)
        """
        self._check_parameters()
        cache = resolve_cache(self.cache)
        if cache is None:
            raise ValueError(
                "cache: precompute needs a cache, got None. Expected a path, a "
                "CodeCache, or 'memory'."
            )
        self._extract(X, cache, verbose=True, store_only=True)
        return self

    def _extract(
        self, X: Any, cache: CodeCache | None, *, verbose: bool, store_only: bool
    ) -> np.ndarray:
        images = as_image_sequence(X)
        backbone = self._load_backbone(check_digest=True)
        specs, wanted = self._specs(backbone)
        device = resolve_device(self.device)
        n_threads = usable_threads(self.n_jobs)
        options = ExtractionOptions(
            batch_size=None if self.batch_size == "auto" else int(self.batch_size),
            n_threads=n_threads,
            on_error="nan" if self.on_error == "nan" else "raise",
            verbose=verbose,
            max_pixels=None if self.max_pixels is None else int(self.max_pixels),
        )
        return Extraction(
            images,
            specs,
            wanted,
            None if store_only else backbone.code_length(specs[wanted]),
            lambda few: _session(backbone, specs, device, n_threads, few=few),
            cache,
            options,
        ).run()

    # -- parameters ----------------------------------------------------------

    def _check_parameters(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, (Integral, str)):
            raise TypeError(
                f"layer: expected a negative int or a name, got {self.layer!r}."
            )
        if isinstance(self.cache_layers, (str, int)):
            raise TypeError(
                "cache_layers: expected a list of layers or None, got "
                f"{self.cache_layers!r}."
            )
        resolve_cache(self.cache)
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_choice("norm", self.norm, ("l2", None))
        _check_choice("on_error", self.on_error, ("raise", "nan"))
        if self.max_pixels is not None and not _is_int(self.max_pixels, minimum=1):
            raise ValueError(
                "max_pixels: expected None or an int of at least 1, got "
                f"{self.max_pixels!r}."
            )
        if not isinstance(self.device, str):
            raise TypeError(f"device: expected a string, got {self.device!r}.")
        if self.batch_size != "auto" and not _is_int(self.batch_size, minimum=1):
            raise ValueError(
                f"batch_size: expected 'auto' or an int of at least 1, got "
                f"{self.batch_size!r}."
            )
        if self.n_jobs is not None and (
            not _is_int(self.n_jobs, minimum=None) or self.n_jobs == 0
        ):
            raise ValueError(
                f"n_jobs: expected None or an int other than 0, got {self.n_jobs!r}."
            )

    def _load_backbone(self, *, check_digest: bool) -> Backbone:
        backbone = load_backbone(self.backbone, self.preprocessing)
        name, digest = getattr(self, "fitted_backbone_", (None, None))
        same_name = name == os.fspath(self.backbone)
        if check_digest and same_name and digest != backbone.sha256:
            raise BackboneError(
                f"backbone={name!r}: the file {str(backbone.path)!r} is not the one "
                f"this transformer was fitted with. Expected sha256 {digest}, got "
                f"{backbone.sha256}. Put the former file back, or fit again."
            )
        return backbone

    def _specs(self, backbone: Backbone) -> tuple[list[CodeSpec], int]:
        """Code specs of all layers to compute, and which of them is `layer`'s.

        Without a cache, there is only one. In the same order for every candidate of
        a search, so that all share one session.
        """
        layer = self.layer if isinstance(self.layer, str) else int(self.layer)
        wanted = backbone.spec(layer, self.pooling, self.norm)
        specs = {wanted.layer: wanted}
        if self.cache is not None:
            for other in self.cache_layers or ():
                which = other if isinstance(other, str) else int(other)
                spec = backbone.spec(which, self.pooling, self.norm)
                specs[spec.layer] = spec
        order = sorted(specs)
        return [specs[name] for name in order], order.index(wanted.layer)

    # -- scikit-learn's conventions --------------------------------------------

    @property
    def _n_features_out(self) -> int:
        backbone = self._load_backbone(check_digest=True)
        specs, wanted = self._specs(backbone)
        return backbone.code_length(specs[wanted])

    def __sklearn_is_fitted__(self) -> bool:
        return True  # nothing is learned

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _session(
    backbone: Backbone,
    specs: list[CodeSpec],
    device: Device,
    n_threads: int,
    *,
    few: bool,
) -> CodeSession:
    """The session of code specs on a device, from the table of this process.

    On the CPU, runs of one thread each go on at once, which gives the most images a
    second; for `few` images, one run has all threads.
    """
    n_callers = 1 if few or device.gpu is not None else n_threads
    key = (tuple(spec.digest for spec in specs), device, n_threads, n_callers)

    def make() -> CodeSession:
        graphs = backbone.code_graphs(specs)
        try:
            return open_session(graphs, device, n_threads, n_callers)
        except BackboneError as error:
            where = f"backbone file {str(backbone.path)!r}: "
            known = str(error).startswith(where)
            raise BackboneError(f"{'' if known else where}{error}") from error

    return SESSIONS.get(key, make)


_advised = False


def _advise_worker(cache: CodeCache | None) -> None:
    """Say once in a worker process that its memory is not shared."""
    global _advised
    if cache is not MEMORY or _advised or multiprocessing.parent_process() is None:
        return
    _advised = True
    warnings.warn(
        "cache='memory' in a worker process: every process embeds the images for "
        "itself. Pass a path, cache='codes.sqlite3', so that all share one cache; or "
        "cache=None to compute without one.",
        CacheWarning,
        stacklevel=3,
    )


def _is_int(value: Any, minimum: int | None) -> bool:
    return (
        isinstance(value, Integral)
        and not isinstance(value, bool)
        and (minimum is None or int(value) >= minimum)
    )


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}.")
