"""Calibration: activation ranges that int8 measures on images in `fit`."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from sk_cnncodes.backbones.code_graph import CodeGraph
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import BackboneError, ImageError, first_line
from sk_cnncodes.base.forks import fork_safe_lock
from sk_cnncodes.base.threads import OrderedThreadPool
from sk_cnncodes.engines.quantisation import Calibration, measure_ranges
from sk_cnncodes.images.containers import fetch_element
from sk_cnncodes.images.decode import read_rgb
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.safe_open import MAX_PIXELS

# Largest number of images used for a calibration.
CALIBRATION_IMAGES = 256
# Number of calibrations kept: candidates of a search share the same images.
_REMEMBERED = 32
_remembered: OrderedDict[str, Calibration] = OrderedDict()
_lock = fork_safe_lock()


class _GivesGraphs(Protocol):
    def code_graphs(self, specs: list[CodeSpec]) -> Iterator[CodeGraph]: ...


def calibrate(
    images: Sequence[Any],
    backbone: _GivesGraphs,
    specs: list[CodeSpec],
    n_threads: int,
    *,
    skip_bad: bool,
    max_pixels: int | None = MAX_PIXELS,
) -> Calibration:
    """Measure a backbone's activation ranges on up to 256 images of X.

    The images are drawn without replacement with a fixed seed, since X is often sorted
    by class. The same images give the same calibration, which is remembered.

    Parameters
    ----------
    images : sequence
        Elements as accepted by `sk_cnncodes.images.decode.read_rgb`.
    backbone : Backbone or StoredBackbone
    specs : list of CodeSpec
        One for each layer whose codes will be computed.
    n_threads : int
    skip_bad : bool
        Whether bad images are skipped instead of raising an error.
    max_pixels : int or None
        An image with more pixels is a bad image. None sets no limit.

    Returns
    -------
    Calibration

    Raises
    ------
    ImageError
        If an image is bad and `skip_bad` is false, or if all drawn images are bad.
    BackboneError
        If the network cannot be run, or has nothing to quantise.
    """
    drawn = np.random.default_rng(0).permutation(len(images))[:CALIBRATION_IMAGES]

    preprocessing = specs[0].preprocessing

    def prepare(index: int) -> np.ndarray | ImageError:
        try:
            how = (max_pixels, preprocessing.min_decode_size, preprocessing.color)
            rgb = read_rgb(fetch_element(images, index), index, *how)
            return preprocessing.apply(rgb)
        except ImageError as error:
            if not skip_bad:
                raise
            return error

    indices = sorted(map(int, drawn))
    with OrderedThreadPool(n_threads, "sk_cnncodes-calibrate") as threads:
        prepared = list(threads.in_order(prepare, indices, len(indices)))
    good = [pixels for pixels in prepared if isinstance(pixels, np.ndarray)]
    if not good:
        (first, *_) = [error for error in prepared if isinstance(error, ImageError)]
        raise first
    key = hashlib.sha256(repr([spec.digest for spec in specs]).encode())
    for pixels in good:
        key.update(pixels.tobytes())
    with _lock:
        found = _remembered.get(key.hexdigest())
        if found is None:
            ranges = _ranges(backbone, specs, good, n_threads)
            found = Calibration(
                specs[0].backbone_sha256,
                len(good),
                ranges,
                preprocessing_json(preprocessing),
            )
            _remembered[key.hexdigest()] = found
        while len(_remembered) > _REMEMBERED:
            _remembered.popitem(last=False)
    return found


def preprocessing_json(preprocessing: Preprocessing) -> str:
    """A preprocessing as JSON, the form that a calibration stores."""
    return json.dumps(preprocessing.to_dict(), sort_keys=True)


def _ranges(
    backbone: _GivesGraphs,
    specs: list[CodeSpec],
    images: list[np.ndarray],
    n_threads: int,
) -> dict[str, tuple[float, float]]:
    """Activation ranges by tensor name, from the first graph that can be run."""
    fault: Exception | None = None
    for graph in backbone.code_graphs(specs):
        size = graph.batch_size or 1
        # With a fixed batch size, the last batch is padded with the first images.
        starts = range(0, len(images), size)
        filled = [*images, *(images * size)[: size - 1]]
        batches = (np.stack(filled[start : start + size]) for start in starts)
        try:
            return measure_ranges(graph.model, batches, n_threads)
        except BackboneError:
            raise
        except Exception as error:
            fault = error
    assert fault is not None
    raise BackboneError(
        f"ONNX Runtime cannot run the backbone: {first_line(fault)}"
    ) from fault
