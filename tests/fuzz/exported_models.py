"""A case: a damaged file of `to_onnx` gives correct outputs, or an ExportError.

Correct outputs are those that ONNX Runtime computes for the same images. The digest is
removed from the files, as an attacker would do, except before ONNX Runtime 1.30.
"""

from __future__ import annotations

import random
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sk_cnncodes import CNNCodeTransformer, ExportError, OnnxClassifier, to_onnx
from sk_cnncodes.engines.onnxruntime import import_onnxruntime
from sk_cnncodes.export.onnx_classifier import _SESSIONS
from tests import networks
from tests.fuzz.models import PLAIN, damage_graph, damaged, images
from tests.fuzz.mutations import mutated

# Without the digest, these versions crash, hang or overread on huge inputs, a missing
# intercept of LinearClassifier, or a scalar as the bias of a convolution.
_VERSION = import_onnxruntime().__version__.split(".")
OLD_RUNTIME = [int(part) for part in _VERSION[:2]] < [1, 30]
_ODD_METADATA = ["", "{", "null", "[]", "{}", "[1]", '["a"]', "[[1]]", '{"a": 1}', "é"]


@lru_cache(maxsize=1)
def seeds() -> list[bytes]:
    """Two classifiers and a regressor on small networks."""
    rng = np.random.default_rng(0)
    X = [
        *images(),
        *rng.integers(0, 256, (4, networks.SIDE, networks.SIDE, 3), np.uint8),
    ]
    heads = [
        (LogisticRegression(), ["a", "b", "a", "b", "a", "b"]),
        (LinearSVC(), [1, 2, 3, 1, 2, 3]),
        (Ridge(), [0.5, 1.5, 2.5, 0.0, 1.0, 2.0]),
    ]
    models = []
    with tempfile.TemporaryDirectory() as folder:
        for net, (head, y) in zip(
            (networks.resnet(), networks.squeezenet(), networks.vit()),
            heads,
            strict=True,
        ):
            path = networks.save(net, Path(folder, "net.onnx"))
            codes = CNNCodeTransformer(path, preprocessing=PLAIN, device="cpu")
            pipeline = make_pipeline(codes, StandardScaler(), head).fit(X, y)
            model = to_onnx(pipeline)
            if not OLD_RUNTIME:
                del model.metadata_props[-1]  # the digest, which detects all damage
            models.append(model.SerializeToString())
    return models


def damaged_file(case: int) -> bytes:
    rng = random.Random(case)
    content = seeds()[case % len(seeds())]
    if rng.random() < 0.4:
        return mutated(content, rng.choice(seeds()), rng)
    return damaged(content, _damage, rng)


def _damage(model: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.3:
        entry = rng.choice(model.metadata_props)
        entry.value = rng.choice([*_ODD_METADATA, entry.value[:-2]])
    else:
        damage_graph(model, rng)


def check(case: int) -> str:
    """Predict two images with the file of a case."""
    _SESSIONS.clear()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.onnx")
        path.write_bytes(damaged_file(case))
        try:
            classifier = OnnxClassifier(path, device="cpu", n_jobs=1)
            found = classifier.run(images())
            predicted = classifier.predict(images())
        except ExportError as error:
            assert "damaged.onnx" in str(error), f"does not name the file: {error}"
            return "errors"
        wanted = reference(path)
    assert len(predicted) == len(images())
    if "label" in found:
        assert list(predicted) == list(found["label"])
        assert set(predicted.tolist()) <= set(classifier.classes_.tolist())
    for array, expected in zip(found.values(), wanted, strict=True):
        if array.dtype == object:
            assert list(array) == list(expected)
        else:
            np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-4)
    return "predictions"


def reference(path: Path) -> list[np.ndarray]:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    (value,) = session.get_inputs()
    batch = value.shape[0] if isinstance(value.shape[0], int) else None
    if batch is None:
        return list(session.run(None, {value.name: np.stack(images())}))
    each = [session.run(None, {value.name: np.stack([i] * batch)}) for i in images()]
    return [np.stack([o[0] for o in outputs]) for outputs in zip(*each, strict=True)]


if __name__ == "__main__":
    print(check(int(sys.argv[1])))
