"""Export a fitted pipeline to ONNX, from uint8 images to labels and scores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from sk_cnncodes._version import __version__
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.base.exceptions import ExportError
from sk_cnncodes.base.files import atomic_write, check_not_an_input
from sk_cnncodes.base.public import public
from sk_cnncodes.engines.devices import CPU, usable_threads
from sk_cnncodes.engines.onnxruntime import load_session
from sk_cnncodes.export.card_files import CARD_KEY
from sk_cnncodes.export.composition import Sources, model_steps
from sk_cnncodes.export.conversion import naming, transformed
from sk_cnncodes.export.exported_model import (
    CLASSES_KEY,
    DIGEST_KEY,
    MODEL_KEY,
    digest_of,
    inputs_metadata,
)
from sk_cnncodes.export.head_graph import at_opset
from sk_cnncodes.export.head_model import build_head, check_predictions
from sk_cnncodes.export.joint_codes import code_lengths, joint_code_graph
from sk_cnncodes.export.model_card import ModelCard, last_part
from sk_cnncodes.export.onnx_classifier import run_images
from sk_cnncodes.graphs.builder import merge_opsets
from sk_cnncodes.graphs.view import default_opset

if TYPE_CHECKING:
    import onnx

# Tried in turn if a head needs a newer operator set than the backbone has.
_NEWER_OPSETS = (13, 18)
_CHECK_IMAGES = 12
_CHECK_ROWS = 100
_RESERVED = {"label", "probabilities", "decision", "values"}


@public
def to_onnx(
    model: Any,
    path: str | os.PathLike[str] | None = None,
    card: ModelCard | None = None,
) -> onnx.ModelProto:
    """Convert a fitted pipeline of codes and a head to one ONNX model.

    This needs the extra `export`: ``pip install 'sk-cnncodes[export]'``. Each step is
    compared with its ONNX nodes before anything is written.

    Parameters
    ----------
    model : Pipeline or fitted search
        A fitted `Pipeline` that starts with a `CNNCodeTransformer` and ends in a
        classifier or regressor. It may also start with a `FeatureUnion` of
        transformers and pipelines that do, or a `ColumnTransformer` of them that takes
        one column of images. Of a search its `best_estimator_` is used.
        FrozenEstimator, FixedThresholdClassifier and TunedThresholdClassifierCV may
        stand around the pipeline or its head.
    path : str, path-like or None, default=None
        File to write; None writes no file.
    card : ModelCard or None, default=None
        Stored as ``sk_cnncodes.card`` in the metadata, for `read_model_card`.

    Returns
    -------
    onnx.ModelProto
        Its input is ``images``, uint8 [N, height, width, 3]: RGB images, resized and
        cropped to the input size of the backbone. Backbones that resize or crop in
        another way have inputs ``images_1`` and so on, for the same images. Its outputs
        are those of the head:

        - ``label`` [N], in the type of the classes, and ``probabilities`` float32 [N,
          n_classes];
        - ``label`` and ``decision`` float32 [N, n], decision values, where the head
          has no probabilities; with two classes, n = 1;
        - ``values`` float32 [N, n_targets] of a regressor.

        Its metadata contain, as JSON, the classes (``sk_cnncodes.classes``), resize
        and crop (``sk_cnncodes.preprocessing``), and versions, backbone, layer and
        steps (``sk_cnncodes.model``); and the SHA-256 of everything else
        (``sk_cnncodes.sha256``), by which `OnnxClassifier` detects damage.

    Raises
    ------
    ExportError
        If a step cannot be converted, or its ONNX nodes compute something else; the
        message names the step.
    NotFittedError
        If the pipeline is not fitted.
    ImportError
        If skl2onnx is not installed.

    See Also
    --------
    OnnxClassifier : Predict with such a file without scikit-learn.

    Notes
    -----
    The steps are converted by skl2onnx to float32; labels of images on the boundary
    between two classes can differ from scikit-learn's, which computes in float64.

    Nearest neighbours keep the training codes in the file, 4 bytes a value and less
    than 2 GB in all. N images and n training codes need 4 N n bytes while they are
    compared, and 4 N (k + 16) values of a code for the k nearest. Codes that differ by
    rounding alone count as equal, at distance 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sk_cnncodes import CNNCodeTransformer, to_onnx
    >>> digits = load_digits()
    >>> X, y = digits.images[:60] / 16, digits.target[:60]
    >>> pipeline = make_pipeline(
    ...     CNNCodeTransformer(), StandardScaler(), LogisticRegression(C=0.01)
    ... ).fit(X, y)
    >>> model = to_onnx(pipeline)
    >>> [output.name for output in model.graph.output]
    ['label', 'probabilities']
    """
    _require_skl2onnx()
    check_is_fitted(model)
    steps = model_steps(model)
    sources = Sources(code_lengths)
    after = sources.split(steps)
    backbones = {name: each.backbone for name, each in sources.transformers}
    if path is not None:
        check_not_an_input(Path(path), backbones.values())
    joint = joint_code_graph(sources.transformers)
    images = [_test_images(each.crop_size) for each in joint.inputs.values()]
    session = load_session(joint.content, CPU, usable_threads(-1))
    codes = run_images(session, *images)[0]
    merged = _merged(joint.content, after, _with_mixtures(codes))
    head_input = _input_of_last(after, codes)
    _check_model(merged, steps[-1], images, head_input)
    metadata = inputs_metadata(joint.inputs)
    metadata |= _metadata(
        [backbones[name] for name in joint.names], joint.specs, steps, head_input
    )
    if card is not None:
        metadata[CARD_KEY] = card.to_json()
    del merged.metadata_props[:]
    for key, value in metadata.items():
        merged.metadata_props.add(key=key, value=value)
    digest = digest_of(merged.SerializeToString())
    merged.metadata_props.add(key=DIGEST_KEY, value=digest)
    if path is not None:
        with atomic_write(Path(path)) as part:
            part.write_bytes(merged.SerializeToString())
    return merged


def _require_skl2onnx() -> None:
    try:
        import skl2onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "to_onnx needs skl2onnx: pip install 'sk-cnncodes[export]'."
        ) from error


# -- one graph ---------------------------------------------------------------


def _merged(
    code_graph: bytes, steps: list[tuple[str, Any]], rows: np.ndarray
) -> onnx.ModelProto:
    """Join code graph and head at the first operator set that works for both."""
    import onnx

    codes = onnx.load_model_from_string(code_graph)
    own = default_opset(codes)
    fault: ExportError | None = None
    for opset in (own, *(o for o in _NEWER_OPSETS if o > own)):
        try:
            head = build_head(steps, rows, opset)
            converted = onnx.ModelProto()
            converted.CopyFrom(codes)
            return _joined(at_opset(converted, opset), head)
        except ExportError as error:
            fault = error
    assert fault is not None
    raise fault


def _joined(codes: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """Connect two models, renaming tensors whose names the outputs need."""
    import onnx
    import onnx.compose

    names = {name for node in codes.graph.node for name in node.output}
    names |= {tensor.name for tensor in codes.graph.initializer}
    if names & _RESERVED:
        codes = onnx.compose.add_prefix(codes, "backbone/", rename_inputs=False)
    links = [(codes.graph.output[0].name, head.graph.input[0].name)]
    return onnx.helper.make_model(
        onnx.compose.merge_graphs(codes.graph, head.graph, links, name="sk_cnncodes"),
        opset_imports=merge_opsets(codes.opset_import, head.opset_import),
        ir_version=max(codes.ir_version, head.ir_version),
        producer_name="sk_cnncodes",
        producer_version=__version__,
    )


def _metadata(
    backbones: list[str | os.PathLike[str]],
    specs: list[CodeSpec],
    steps: list[tuple[str, Any]],
    head_input: np.ndarray,
) -> dict[str, str]:
    """Metadata entries of model and classes."""
    head = steps[-1][1]
    codes = [
        {
            "backbone": last_part(os.fspath(backbone)),  # a file may be passed on
            "backbone_sha256": spec.backbone_sha256,
            "layer": spec.layer,
            "pooling": spec.pooling,
            "norm": spec.norm,
        }
        for backbone, spec in zip(backbones, specs, strict=True)
    ]
    facts: dict[str, Any] = {
        "version": __version__,
        **(codes[0] if len(codes) == 1 else {"codes": codes}),
        "steps": [[name, type(step).__name__] for name, step in steps],
    }
    if is_classifier(head):
        classes = np.asarray(head.classes_).tolist()
        return {MODEL_KEY: json.dumps(facts), CLASSES_KEY: json.dumps(classes)}
    facts["many_targets"] = np.ndim(head.predict(head_input[:1])) == 2
    return {MODEL_KEY: json.dumps(facts)}


# -- checks ------------------------------------------------------------------


def _test_images(size: tuple[int, int]) -> np.ndarray:
    """Random images, from coarse to fine patches."""
    height, width = size
    rng = np.random.default_rng(0)
    images = []
    for number in range(_CHECK_IMAGES):
        side = 2 + 3 * number
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        resized = coarse.resize((width, height), Image.Resampling.BICUBIC)
        images.append(np.asarray(resized))
    return np.stack(images)


def _with_mixtures(codes: np.ndarray) -> np.ndarray:
    """The codes and random mixtures of them: more rows to test a head on."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(len(codes), 0.3), _CHECK_ROWS - len(codes))
    return np.concatenate([codes, (weights @ codes).astype(np.float32)])


def _input_of_last(steps: list[tuple[str, Any]], codes: np.ndarray) -> np.ndarray:
    """Input of the last step for given codes."""
    for name, step in steps[:-1]:
        with naming(name, step):
            codes = transformed(step, codes)
    return codes


def _check_model(
    model: onnx.ModelProto,
    last: tuple[str, Any],
    images: list[np.ndarray],
    head_input: np.ndarray,
) -> None:
    """Run the complete model on images, and compare it with the last step."""
    session = load_session(model.SerializeToString(), CPU, usable_threads(-1))
    with naming(*last):
        check_predictions(run_images(session, *images), last[1], head_input)
