"""EmbeddingMixin: codes into a cache, into a file, or explained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from sk_cnncodes.backbones.code_graph import CodeGraph
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.backbones.stored import working_graph
from sk_cnncodes.base.files import atomic_write, check_not_an_input, reserve_disk
from sk_cnncodes.codes.cache import CodeCache, resolve_cache
from sk_cnncodes.codes.explanation import Explanation, describe_code
from sk_cnncodes.codes.extraction import Extraction, ExtractionOptions
from sk_cnncodes.codes.parameters import check_parameters
from sk_cnncodes.codes.plan import CodePlan, plan_transform
from sk_cnncodes.engines.session import CodeSession
from sk_cnncodes.images.containers import as_image_sequence


class EmbeddingMixin:
    """What `CNNCodeTransformer` can do beyond scikit-learn's protocol."""

    backbone: str | os.PathLike[str]
    on_error: str
    max_pixels: int | None
    cache: str | os.PathLike[str] | CodeCache | None
    batch_size: int | str
    verbose: bool

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
        (4, 800)
        """
        check_parameters(vars(self))
        cache = resolve_cache(self.cache)
        if cache is None:
            raise ValueError(
                "cache: precompute needs a cache, got None. Expected a path, a "
                "CodeCache, or 'memory'."
            )
        images = as_image_sequence(X)
        plan = plan_transform(vars(self))
        self._extract(images, plan, cache, verbose=True, store_only=True)
        return self

    def transform_to(self, path: str | os.PathLike[str], X: Any) -> np.ndarray:
        """Compute the codes of any number of images, and write them to a file.

        Memory does not grow with the number of images, and the file is put in place
        when it is whole. With a path as `cache`, a second call after an interruption
        goes on where the first one stopped.

        Parameters
        ----------
        path : str or path-like
            The file, in NumPy's ``.npy`` format; one that exists is replaced.
        X : container of images
            See the notes of the class.

        Returns
        -------
        codes : memory map of float32, shape (n_images, n_features)
            The file as ``numpy.load(path, mmap_mode="r")`` opens it: row i is the
            code of image i.

        Raises
        ------
        ValueError
            As `transform`, or if the file is the backbone or one of the images.
        OSError
            If the file cannot be written; a disk that is too full is found before the
            first code is computed.

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
        check_parameters(vars(self))
        images = as_image_sequence(X)
        whole = Path(path)
        if whole.exists():
            # Other sequences may decode an image when they are asked for it.
            held = images if isinstance(images, (list, tuple, np.ndarray)) else ()
            named = (image for image in held if isinstance(image, (str, Path)))
            check_not_an_input(whole, chain([self.backbone], named))
        plan = plan_transform(vars(self))
        with atomic_write(whole) as part:
            out = np.lib.format.open_memmap(
                part, "w+", np.float32, (len(images), plan.code_length)
            )
            reserve_disk(part)
            if self.on_error == "nan":
                out[:] = np.nan  # rows of bad images stay so
            cache = resolve_cache(self.cache)
            self._extract(images, plan, cache, verbose=bool(self.verbose), out=out)
            out.flush()
            del out  # Windows does not move files that are mapped
        codes: np.ndarray = np.load(whole, mmap_mode="r")
        return codes

    def explain(self, image: Any) -> Explanation:
        """Everything that decides the code of one image, and the code.

        For a person with an unexpected prediction: what was read, turned and resized,
        what the network saw, and which network, layer and engine gave the code.

        Parameters
        ----------
        image : object
            One image: an element of X.

        Returns
        -------
        Explanation
            Printed, it is a table. Its method `save` writes what the network saw.

        Raises
        ------
        ImageError
            If the image is bad, whatever `on_error` says.
        ValueError, DeviceError
            As `transform`.

        Examples
        --------
        >>> from sklearn.datasets import load_sample_images
        >>> from sk_cnncodes import CNNCodeTransformer
        >>> photograph = load_sample_images().images[0]
        >>> explanation = CNNCodeTransformer().explain(photograph)
        >>> explanation.layer_label, explanation.crop.shape, explanation.code.shape
        ('codes', (116, 116, 3), (800,))
        """
        check_parameters(vars(self))
        cache = resolve_cache(self.cache)
        plan = plan_transform(vars(self))
        facts = describe_code(
            image, plan, cache, self.max_pixels, getattr(self, "fitted_backbone_", {})
        )
        codes = self._extract([image], plan, cache, verbose=False, on_error="raise")
        return Explanation(**facts, code=codes[0])

    def _extract(
        self,
        images: Sequence[Any],
        plan: CodePlan,
        cache: CodeCache | None,
        *,
        verbose: bool,
        store_only: bool = False,
        on_error: str | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        on_error = on_error or self.on_error
        options = ExtractionOptions(
            batch_size=None if self.batch_size == "auto" else int(self.batch_size),
            n_threads=plan.n_threads,
            on_error="nan" if on_error == "nan" else "raise",
            verbose=verbose,
            max_pixels=None if self.max_pixels is None else int(self.max_pixels),
        )
        return Extraction(
            images,
            plan.specs,
            plan.wanted,
            None if store_only else plan.code_length,
            plan.open_session,
            cache,
            options,
            out,
        ).run()

    def code_graph(self) -> tuple[CodeSpec, CodeGraph, CodeSession]:
        """The spec of the codes, the graph that gives them, and its CPU session.

        For `to_onnx` and saving; not needed to compute codes.
        """
        check_parameters(vars(self))
        plan = plan_transform(vars(self))
        spec = plan.float32_specs[plan.wanted]
        return spec, *working_graph(plan.backbone, spec)
