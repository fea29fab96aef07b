"""CNNCodeTransformer: the scikit-learn transformer from images to CNN codes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.base.callbacks import CallbackSupportMixin, fit_task
from sk_cnncodes.base.public import public
from sk_cnncodes.cache.code_cache import CodeCache, resolve_cache
from sk_cnncodes.codes.calibration import calibrate
from sk_cnncodes.codes.embedding import EmbeddingMixin
from sk_cnncodes.codes.parameters import check_parameters
from sk_cnncodes.codes.persistence import SavingMixin
from sk_cnncodes.codes.plan import (
    execution_of,
    plan_fit,
    plan_transform,
    state_of,
)
from sk_cnncodes.codes.saving import code_parameters, make_reference
from sk_cnncodes.codes.shared_pass import SHARED_PARAMETERS, register, siblings
from sk_cnncodes.images.containers import as_image_sequence, column_name
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.safe_open import MAX_PIXELS


@public
class CNNCodeTransformer(
    SavingMixin, EmbeddingMixin, CallbackSupportMixin, TransformerMixin, BaseEstimator
):
    """Turn images into CNN codes: activations of one layer of a pretrained network.

    Each image is decoded, resized and normalised as the backbone requires, run through
    the backbone up to the chosen layer, and pooled into one vector. Later layers are
    removed and never executed. Nothing is learned from the data: `fit` checks the
    parameters and, for ``precision="int8"``, calibrates the quantisation.

    Parameters
    ----------
    backbone : str or path-like, default="cnncodes-mini"
        Name of a known backbone, as listed by `list_backbones`, path of an ONNX file,
        or address on the Hugging Face Hub, such as
        ``"hf://onnx-community/dinov2-small"`` (`load_backbone` describes them). What is
        not on this machine is downloaded on first use.
    layer : int, str or list of them, default=-1
        Layer at which the backbone is cut. -1 is the penultimate activation, -2 the
        block boundary before it, and so on towards the input. A string is the label of
        a layer, or the name of any tensor in the file that needs one image and no
        other input; this works without numbered layers too. A list, such as
        ``[-1, -3]``, gives the codes of several layers side by side, from one forward
        pass; `norm` is applied to each layer's code by itself.
        ``load_backbone(backbone).layers`` lists the layers.
    pooling : str, default="auto"
        How the activations of an image are reduced to one vector.

        - ``"auto"``: ``"avg"`` for a feature map; for tokens, ``"cls"`` if there is a
          class token, otherwise ``"mean"``. A vector is left unchanged.
        - ``"avg"``: mean of each channel of a feature map.
        - ``"max"``: maximum of each channel of a feature map, or over all tokens.
        - ``"gem"``: generalised mean, with exponent 3, of each channel of a feature
          map [1]_.
        - ``"cls"``: class token.
        - ``"mean"``: mean of all tokens.
        - ``"flatten"``: all values, in row-major order.
    norm : {"l2", "power"} or None, default=None
        What is done to each code at the end.

        - ``"l2"``: it is scaled to unit Euclidean length.
        - ``"power"``: its values are replaced by their signed square roots, then it is
          scaled to unit length [2]_. This keeps a few large activations from deciding
          distances, and helps most at earlier layers.
    views : str, default="center"
        Test-time augmentation: the crops of each image whose codes are averaged,
        before `norm` is applied. Each image is decoded once.

        - ``"center"``: the central crop.
        - ``"mirror"``: its mirror image.
        - ``"flip"``: the central crop and its mirror image.
        - ``"five_crop"``: the four corners and the centre of the resized image.
        - ``"ten_crop"``: the five crops and their mirror images.
    preprocessing : Preprocessing, dict or None, default=None
        Resize, crop and normalisation. None uses the preprocessing that belongs to the
        backbone: from the file's metadata, from the catalogue (by SHA-256), or from a
        Hugging Face or timm configuration beside the file (`load_backbone` lists
        them). It is never guessed: `fit` raises an error if there is none.
    on_error : {"raise", "nan"}, default="raise"
        What to do about an image that cannot be read: raise an `ImageError` that names
        its position and path, or return a row of NaN for it and issue one warning that
        lists all such images.
    max_pixels : int or None, default=52_000_000
        Largest width times height of an image; a larger image counts as one that
        cannot be read. None sets no limit. It limits memory, 16 bytes per pixel: with
        the default, decoding takes less than 1 GB per thread, whatever a file declares.
        A JPEG counts by the size that it is decoded at, which is up to 8 times smaller,
        and by half of these pixels; a progressive one also by its coefficients. The
        codes do not depend on it, except for halftones that fit only at a smaller size,
        and an image whose code is in the cache is not checked again.
    cache : "memory", str, path-like, CodeCache or None, default="memory"
        Where codes are kept, so that each image is embedded only once across folds,
        candidates and calls. ``"memory"`` is one bounded cache, shared by all
        transformers of this process and by its worker processes; what exceeds 512 MiB
        is in a temporary file. A path is a file that persists. None disables caching.
    cache_layers : iterable of int or str, or None, default=None
        Additional layers whose codes the same forward pass computes and caches.
        `layer_grid` builds a parameter grid that uses it. Without them, a search over
        `layer` stores all numbered layers. Ignored if ``cache=None``.
    batch_size : int or "auto", default="auto"
        Number of images per run of the backbone. The codes do not depend on it.
    device : str or list of str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"tensorrt"``,
        ``"tensorrt:N"``, or a list of GPUs to use together. ``"auto"`` uses a GPU if
        one works and supports `precision`, otherwise the CPU. TensorRT compiles each
        network on first use, which takes minutes, and keeps the result in the cache
        folder.
    precision : str, default="float32"
        Number format in which the network is computed. The codes are always float32.

        - ``"float32"``: CPU and GPU agree within 1e-3.
        - ``"tf32"``: NVIDIA GPUs; multiplications with a 10-bit mantissa.
        - ``"float16"``: NVIDIA GPUs.
        - ``"bfloat16"``: CPUs with AMX or AVX512-BF16, through OpenVINO.
        - ``"int8"``: CPUs with VNNI or AMX. `fit` measures the scales on up to 256
          images of X. Codes from different calibrations or engines differ and are
          cached separately.
    engine : {"auto", "onnxruntime", "openvino"}, default="auto"
        Engine that runs the network. ``"auto"`` uses OpenVINO for bfloat16 and, if it
        is installed, for int8; otherwise ONNX Runtime.
    n_jobs : int or None, default=-1
        Number of threads that decode images and, on the CPU, run the backbone; for
        many images and a GPU, each decodes in a process of its own (Linux). -1 uses all
        cores available to this process, which in a joblib worker is its share of
        them. None means 1. If you call `transform` from several threads at once, each
        call uses this many threads; ``n_jobs=1`` is then enough.
    verbose : bool, default=False
        Whether `transform` shows a progress bar.
    store_backbone : bool, default=False
        Whether a saved transformer includes the part of the backbone that its codes
        need, so that it works without the backbone's file. It can be set after `fit`,
        before saving; `save_model` sets it for all transformers of a model.
    decoder : {"auto", "pillow", "gpu"}, default="auto"
        What decodes JPEG files.

        - ``"auto"``, ``"pillow"``: Pillow, on the CPU. Both give the same codes on
          every machine: ``"auto"`` would use a GPU only if codes did not change.
        - ``"gpu"``: an NVIDIA GPU decodes and resizes large JPEG files, with
          nvImageCodec (``pip install 'sk-cnncodes[nvimgcodec]'``): baseline files of at
          least a megapixel, gray or YCbCr. Pillow decodes all others, as always.
          Such files are always decoded at full size, by other rounding than Pillow's;
          Pillow mostly decodes them at 1/2 to 1/8 of it, so that codes differ by 1 to
          4%. Codes are cached apart from Pillow's, and a model should use the decoder
          that it was fitted with. A file that the GPU does not read is decoded by
          Pillow at full size. Which files the GPU decodes depends on the file alone.

    Attributes
    ----------
    fitted_backbone_ : dict
        Name, path, SHA-256 and preprocessing of the backbone used in `fit`.
    calibration_ : Calibration
        Activation ranges measured by `fit`. Only present if ``precision="int8"``.

    See Also
    --------
    load_backbone : Layers and preprocessing of a backbone.
    CodeCache : Code cache with a bounded size, in memory or in a file.
    save_model : Save a model, with the backbones of all transformers in it.
    layer_grid : Grid over layers that runs the backbone once for all of them.
    Preprocessing : Resize, crop and normalisation.

    Notes
    -----
    X is a list, tuple, one-dimensional array, pandas or polars Series or one-column
    frame, pyarrow array or table, or a lazy sequence such as a Hugging Face column, of
    paths, bytes, open binary files, PIL images, arrays or tensors (channels last),
    dicts ``{"bytes", "path"}``, pairs (path, label), or paths of other libraries
    (`zipfile.Path`, fsspec). Addresses (URIs) are read where the environment variable
    `SK_CNNCODES_REMOTE` allows it: 1, or their beginnings, separated by spaces; a saved
    transformer does not bring that along. Or it is one array of shape (n_images,
    height, width, channels) or (n_images, height, width), of numpy, torch, zarr, h5py
    or dask, which is read by chunk. `transform_to` and `precompute` take generators
    too. Elements of a lazy sequence are fetched once in each call, in bounded memory.
    Arrays hold uint8, bool, or floats in [0, 1]. Images are rotated upright by their
    EXIF orientation and converted to RGB, with transparency over white. The first frame
    of an animation is used.

    A pickled transformer holds its parameters and, once fitted, the name, path, SHA-256
    and preprocessing of its backbone. When it is used after loading, the backbone is
    searched for at its path, in the folders listed in the environment variable
    `SK_CNNCODES_BACKBONES`, and in the home folder, and downloaded if it is a known
    one; a file with different content is refused. Paths are saved as strings, so that
    they load on other operating systems. Clones and unpickled copies share the
    networks loaded in a process.

    References
    ----------
    .. [1] F. Radenovic, G. Tolias, O. Chum, "Fine-tuning CNN Image Retrieval with No
       Human Annotation", TPAMI 2018, arXiv:1711.02512.
    .. [2] F. Perronnin, J. Sanchez, T. Mensink, "Improving the Fisher Kernel for
       Large-Scale Image Classification", ECCV 2010.

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

    # Parameters set by `set_params` that a search varies, and the `id` of the X of the
    # last `fit`. They decide what a pass computes besides the codes, and are not saved.
    _searched: frozenset[str] = frozenset()
    _search_is_over = False
    _fitted_on: int | None = None
    # For skrub: it takes one column, not a frame of several.
    __single_column_transformer__ = True

    def __init__(
        self,
        backbone: str | os.PathLike[str] = "cnncodes-mini",
        *,
        layer: int | str | Sequence[int | str] = -1,
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
        decoder: str = "auto",
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
        self.decoder = decoder
        register(self)

    @fit_task("fit")
    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters, and that X is a container of images.

        No image is opened, except for ``precision="int8"``: the activation ranges are
        then measured on up to 256 images of X.

        Parameters
        ----------
        X : container of images
            See Notes in the class docstring.
        y : None
            Ignored.

        Returns
        -------
        self : CNNCodeTransformer

        Raises
        ------
        TypeError, ValueError
            If a parameter or X is invalid. BackboneError, LayerError and
            PreprocessingError are subclasses of ValueError.
        ImageError
            If ``precision="int8"`` and an image cannot be read: any image with
            ``on_error="raise"``, all of them with ``on_error="nan"``.
        DeviceError
            If this machine does not have the device or does not support the precision.
        """
        state = state_of(self)
        check_parameters(state)
        execution = execution_of(state)
        images = as_image_sequence(X)
        plan = plan_fit(state, execution)
        if self.precision == "int8":
            self.calibration_ = calibrate(
                images,
                plan.backbone,
                plan.float32_outputs,
                plan.n_threads,
                skip_bad=self.on_error == "nan",
                max_pixels=self.max_pixels,
            )
        elif hasattr(self, "calibration_"):
            del self.calibration_
        # A saved pipeline recognises its backbone by this.
        if isinstance(plan.backbone, Backbone):
            layers = [plan.backbone.layer(spec.layer) for spec in plan.float32_specs]
            self.fitted_backbone_ = make_reference(self.backbone, plan.backbone, layers)
        self._fitted_codes = (code_parameters(state), plan.code_lengths)
        self._fitted_on = id(X)
        self._fitted_column = column_name(X)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Compute the codes of images.

        Parameters
        ----------
        X : container of images
            See Notes in the class docstring.

        Returns
        -------
        codes : ndarray of float32, shape (n_images, n_features)
            Row i is the code of image i.

        Raises
        ------
        ImageError
            If an image cannot be read and ``on_error="raise"``. The message names its
            position and path.
        TypeError, ValueError
            If X is not a container of images, or a parameter is invalid.
        BackboneError
            If the backbone is missing, has changed since `fit`, or cannot be run.
        DeviceError
            If this machine does not have the device or does not support the precision.
        NotFittedError
            If ``precision="int8"`` and `fit` was not called.
        """
        state = state_of(self)
        check_parameters(state)
        cache = resolve_cache(self.cache)
        images = as_image_sequence(X)
        fitting = self._fitted_on == id(X)
        others = [state_of(other) for other in siblings(self, fitting=fitting)]
        plan = plan_transform(state, len(images), others)
        extraction = self._extraction(images, plan, cache, verbose=bool(self.verbose))
        codes = extraction.run()
        if self._searched and fitting:
            # If so, new images need the codes of this layer alone.
            self._search_is_over = extraction.n_computed == 0
        return codes

    # -- passes shared with others ---------------------------------------------

    def set_params(self, **params: Any) -> Self:
        """Set parameters, as scikit-learn's estimators do.

        A transformer whose `layer` or `pooling` was set in this way is taken for a
        candidate of a search: its passes compute and cache the codes of all numbered
        layers, or poolings, until all images of a `fit_transform` are in the cache.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self : CNNCodeTransformer
        """
        super().set_params(**params)
        self._searched |= SHARED_PARAMETERS.intersection(params)
        self._note_set(params)
        return self

    # -- scikit-learn's conventions --------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        # `fit` learns nothing but the calibration.
        return self.precision != "int8" or hasattr(self, "calibration_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.precision == "int8"
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags
