"""CNNCodeTransformer: the scikit-learn face of the library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.stored import store_graph
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.cache import (
    CodeCache,
    resolve_cache,
    warn_memory_cache_in_worker,
)
from sk_cnncodes.codes.calibration import calibrate
from sk_cnncodes.codes.embedding import EmbeddingMixin
from sk_cnncodes.codes.parameters import check_parameters
from sk_cnncodes.codes.plan import load_fitted, plan_fit, plan_transform
from sk_cnncodes.codes.saving import (
    STORED_KEY,
    code_parameters,
    make_reference,
    restored_state,
    saved_state,
)
from sk_cnncodes.images.containers import as_image_sequence
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.safe_open import MAX_PIXELS


@public
class CNNCodeTransformer(EmbeddingMixin, TransformerMixin, BaseEstimator):
    """Turn images into CNN codes: activations of a pretrained network's layer.

    Each image is decoded, resized and normalised as the backbone was trained, run
    through the backbone up to a layer, and pooled to a vector. Later layers are cut
    off and not executed. Nothing is learned from the data: `fit` only checks the
    parameters, and calibrates ``precision="int8"``.

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
    views : str, default="center"
        Parts of each image whose codes are averaged, before `norm`; the image is
        decoded once.

        - ``"center"``: the central crop;
        - ``"flip"``: that and its mirror image;
        - ``"five_crop"``: the four corners and the centre of the resized image;
        - ``"ten_crop"``: those and their mirror images.
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
        each thread, whatever its file claims. It does not change the codes; an image
        whose code is in the cache is not looked at again.
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
    device : str or list of str, default="auto"
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"tensorrt"``, ``"tensorrt:N"``, a list
        of GPUs that are used at once, or ``"auto"``: a GPU where there is one that
        works and can compute in `precision`, else the CPU. TensorRT compiles a network
        for minutes when it first meets it, and keeps the result in the cache folder.
    precision : str, default="float32"
        Numbers that the network computes with. Codes are float32 always.

        - ``"float32"``: CPU and GPU agree within 1e-3;
        - ``"tf32"``: on NVIDIA GPUs, products of 10 bits of the mantissa;
        - ``"float16"``: on NVIDIA GPUs;
        - ``"bfloat16"``: on CPUs that have AMX or AVX512-BF16, through OpenVINO;
        - ``"int8"``: on CPUs that have VNNI or AMX. `fit` measures the scales on up to
          256 images of X; codes of different calibrations or engines are different
          codes.
    engine : {"auto", "onnxruntime", "openvino"}, default="auto"
        What runs the network. ``"auto"`` takes OpenVINO for bfloat16, and for int8
        where it is installed, else ONNX Runtime.
    n_jobs : int or None, default=-1
        Number of threads that decode images and, on the CPU, run the backbone. -1
        uses all the cores that this process may use, in a worker of joblib its share
        of them. None means 1. Threads of your own that call `transform` at once use as
        many each: 1 is enough there.
    verbose : bool, default=False
        Whether `transform` shows a progress bar.
    store_backbone : bool, default=False
        Whether a saved transformer holds the part of the backbone that its codes need,
        so that it works where the backbone's file is absent. It can be set after
        `fit`, before saving.

    Attributes
    ----------
    fitted_backbone_ : dict
        Name, path, SHA-256 and preprocessing of the backbone that `fit` saw.

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

    A pickled transformer holds its parameters and, if fitted, name, path, SHA-256 and
    preprocessing of its backbone. Where it is loaded, the backbone is looked for at
    its path, in the folders of the environment variable `SK_CNNCODES_BACKBONES`, and
    in the home folder, or downloaded if its name is known; a file with other content
    is refused. Paths are saved as strings, so that other systems can load them. Loaded
    networks are kept in a table of the process, so that clones and unpickled copies
    share them.

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
    (2, 800)

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

    def __init__(
        self,
        backbone: str | os.PathLike[str] = "cnncodes-mini",
        *,
        layer: int | str = -1,
        pooling: str = "auto",
        norm: str | None = None,
        views: str = "center",
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        on_error: str = "raise",
        max_pixels: int | None = MAX_PIXELS,
        cache: str | os.PathLike[str] | CodeCache | None = "memory",
        cache_layers: Iterable[int | str] | None = None,
        batch_size: int | str = "auto",
        device: str | Sequence[str] = "auto",
        precision: str = "float32",
        engine: str = "auto",
        n_jobs: int | None = -1,
        verbose: bool = False,
        store_backbone: bool = False,
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.pooling = pooling
        self.norm = norm
        self.views = views
        self.preprocessing = preprocessing
        self.on_error = on_error
        self.max_pixels = max_pixels
        self.cache = cache
        self.cache_layers = cache_layers
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.engine = engine
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.store_backbone = store_backbone

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters, and that X can hold images; no image is opened.

        With ``precision="int8"``, up to 256 images of X are run, and the ranges of the
        activations kept.

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
            If this machine does not have the device, or cannot do the precision.
        """
        state = vars(self)
        check_parameters(state)
        images = as_image_sequence(X)
        plan = plan_fit(state)
        if self.precision == "int8":
            self.calibration_ = calibrate(
                images,
                plan.backbone,
                plan.float32_specs,
                plan.n_threads,
                skip_bad=self.on_error == "nan",
                max_pixels=self.max_pixels,
            )
        elif hasattr(self, "calibration_"):
            del self.calibration_
        # What a saved pipeline needs to recognise its backbone by.
        if isinstance(plan.backbone, Backbone):
            layer = plan.backbone.layer(plan.float32_specs[plan.wanted].layer)
            self.fitted_backbone_ = make_reference(self.backbone, plan.backbone, layer)
        self._fitted_codes = (code_parameters(state), plan.code_length)
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
            If this machine does not have the device, or cannot do the precision.
        NotFittedError
            If ``precision="int8"`` and `fit` was not called.
        """
        check_parameters(vars(self))
        cache = resolve_cache(self.cache)
        warn_memory_cache_in_worker(cache)
        images = as_image_sequence(X)
        plan = plan_transform(vars(self))
        return self._extract(images, plan, cache, verbose=bool(self.verbose))

    # -- saving --------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = saved_state(super().__getstate__())
        if not self.store_backbone or not hasattr(self, "fitted_backbone_"):
            state.pop(STORED_KEY, None)
            return state
        backbone = load_fitted(vars(self))
        if isinstance(backbone, Backbone):
            spec, graph, _ = self.code_graph()
            length = backbone.code_length(spec)
            state[STORED_KEY] = store_graph(
                code_parameters(vars(self)), spec, length, graph
            )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(restored_state(state, type(self)))

    # -- scikit-learn's conventions --------------------------------------------

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the values of a code: the name of the class and a number.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        ndarray of str objects, shape (n_features,)
            Known after `fit`; before, and after a parameter that decides the codes was
            changed, the backbone is looked at.
        """
        parameters, length = getattr(self, "_fitted_codes", (None, 0))
        if parameters != code_parameters(vars(self)):
            length = plan_transform(vars(self)).code_length
        prefix = type(self).__name__.lower()
        return np.array([f"{prefix}{number}" for number in range(length)], object)

    def __sklearn_is_fitted__(self) -> bool:
        # Nothing is learned but the calibration.
        return self.precision != "int8" or hasattr(self, "calibration_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.precision == "int8"
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags
