"""OnnxClassifier: predictions of exported pipelines, and files that it refuses."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import onnx
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sk_cnncodes import (
    CNNCodeTransformer,
    ExportError,
    ImageError,
    OnnxClassifier,
    Preprocessing,
    download_backbone,
    to_onnx,
)
from sk_cnncodes.export import onnx_classifier
from tests import networks

ROOT = Path(__file__).parents[2]
LABELS = ["china"] * 4 + ["flower"] * 4
# Packages of an environment with only numpy, Pillow and ONNX Runtime.
PACKAGES = ["numpy", "PIL", "onnxruntime"]


@pytest.fixture(scope="module")
def pipeline(photographs: list[np.ndarray]) -> Pipeline:
    steps = (CNNCodeTransformer(), StandardScaler(), LogisticRegression())
    return make_pipeline(*steps).fit(photographs, LABELS)


@pytest.fixture(scope="module")
def exported(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    to_onnx(pipeline, path)
    return path


def test_predicts_as_the_pipeline(
    exported: Path,
    pipeline: Pipeline,
    photographs: list[np.ndarray],
    photograph_files: list[Path],
) -> None:
    classifier = OnnxClassifier(exported)
    assert list(classifier.classes_) == ["china", "flower"]
    for X in (photographs, photograph_files, [str(p) for p in photograph_files]):
        assert list(classifier.predict(X)) == list(pipeline.predict(X))
        np.testing.assert_allclose(
            classifier.predict_proba(X), pipeline.predict_proba(X), atol=1e-4
        )
    assert classifier.metadata["backbone"] == "cnncodes-mini"
    assert not hasattr(classifier, "decision_function")
    with pytest.raises(AttributeError, match="no decision_function.*probabilities"):
        _ = classifier.decision_function


def test_decision_values(photographs: list[np.ndarray], tmp_path: Path) -> None:
    pipeline = make_pipeline(CNNCodeTransformer(norm="l2"), LinearSVC())
    for labels in (LABELS, list("aabbccdd")):
        pipeline.fit(photographs, labels)
        to_onnx(pipeline, tmp_path / "m.onnx")
        classifier = OnnxClassifier(tmp_path / "m.onnx")
        assert not hasattr(classifier, "predict_proba")
        np.testing.assert_allclose(
            classifier.decision_function(photographs),
            pipeline.decision_function(photographs),
            atol=1e-4,
        )


@pytest.mark.parametrize("n_targets", [None, 1, 3])
def test_regressors(
    n_targets: int | None, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    y = np.random.default_rng(0).normal(size=(8, n_targets or 1))
    y = y[:, 0] if n_targets is None else y
    pipeline = make_pipeline(CNNCodeTransformer(norm="l2"), Ridge(alpha=0.1))
    pipeline.fit(photographs, y)
    to_onnx(pipeline, tmp_path / "m.onnx")
    regressor = OnnxClassifier(tmp_path / "m.onnx")
    expected = pipeline.predict(photographs)
    values = regressor.predict(photographs)
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, atol=1e-3)
    assert not hasattr(regressor, "classes_")
    assert not hasattr(regressor, "predict_proba")


def test_a_bad_image_is_named(exported: Path, photograph_files: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"image 8 .*gone\.jpg"):
        OnnxClassifier(exported).predict([*photograph_files, "gone.jpg"])


def test_max_pixels(exported: Path, photograph_files: list[Path]) -> None:
    with pytest.raises(ImageError, match="image 0 .*max_pixels=2000"):
        OnnxClassifier(exported, max_pixels=2000).predict(photograph_files)
    whole = OnnxClassifier(exported).predict(photograph_files)
    unlimited = OnnxClassifier(exported, max_pixels=None).predict(photograph_files)
    assert list(unlimited) == list(whole)
    with pytest.raises(ValueError, match="max_pixels: expected None or .* got 0"):
        OnnxClassifier(exported, max_pixels=0)


def test_a_replaced_file_is_refused(
    exported: Path, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.read_bytes())
    classifier = OnnxClassifier(path)
    saved = pickle.dumps(classifier)
    pipeline = make_pipeline(CNNCodeTransformer(), LinearSVC())
    to_onnx(pipeline.fit(photographs, range(8)), path)
    onnx_classifier._SESSIONS.clear()  # as in another process
    for model in (classifier, pickle.loads(saved)):
        with pytest.raises(ExportError, match="model.onnx.*the file changed after"):
            model.predict(photographs)
    assert list(OnnxClassifier(path).predict(photographs)) == list(range(8))


def test_copies_and_threads(
    exported: Path, pipeline: Pipeline, photographs: list[np.ndarray]
) -> None:
    classifier = OnnxClassifier(exported, n_jobs=2)
    expected = list(pipeline.predict(photographs))
    for each in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert list(each.predict(photographs)) == expected
    found: list[list[str]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append([*classifier.predict(photographs)])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 4
    from_workers = joblib.Parallel(n_jobs=2)(
        joblib.delayed(classifier.predict)(photographs) for _ in range(2)
    )
    assert [list(labels) for labels in from_workers] == [expected] * 2


@pytest.mark.parametrize("network", ["fixed batch", "opset 7"])
def test_old_opsets_and_fixed_batch_sizes(
    network: str, photographs: list[np.ndarray], tmp_path: Path, plain: Preprocessing
) -> None:
    if network == "opset 7":
        model = networks.resnet(opset=7)
    else:  # an addition for exactly three images
        net = networks.Net()
        zeros = net.constant(np.zeros((3, 4, 1, 1), np.float32))
        x = net.op("Relu", net.op("Add", net.conv("data", 3, 4), zeros))
        x = net.op("Flatten", net.op("GlobalAveragePool", x))
        model = net.model(net.dense(x, 4, 5), batch=3)
    path = networks.save(model, tmp_path / "net.onnx")
    codes = CNNCodeTransformer(path, preprocessing=plain)
    pipeline = make_pipeline(codes, StandardScaler(), LogisticRegression())
    pipeline.fit(photographs, LABELS)
    to_onnx(pipeline, tmp_path / "m.onnx")
    np.testing.assert_allclose(
        OnnxClassifier(tmp_path / "m.onnx").predict_proba(photographs),
        pipeline.predict_proba(photographs),
        atol=1e-4,
    )


def test_files_that_to_onnx_did_not_write(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"gone\.onnx.*cannot be read"):
        OnnxClassifier(tmp_path / "gone.onnx")
    backbone = download_backbone("cnncodes-mini")
    with pytest.raises(ExportError, match="pass a backbone to CNNCodeTransformer"):
        OnnxClassifier(backbone)
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    with pytest.raises(ExportError, match=r"text\.onnx.*it is damaged"):
        OnnxClassifier(text)
    with pytest.raises(ExportError, match="not a regular file"):
        OnnxClassifier(tmp_path)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9, -100, -10])
def test_a_changed_byte_is_detected(
    position: float, exported: Path, tmp_path: Path
) -> None:
    content = bytearray(exported.read_bytes())
    index = int(position * len(content)) if position > 0 else int(position)
    content[index] ^= 1
    path = tmp_path / "changed.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"changed\.onnx': it was damaged or changed"):
        OnnxClassifier(path)


def test_saved_by_onnx_or_changed_on_purpose(
    exported: Path, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    expected = list(OnnxClassifier(exported).predict(photographs))
    path = tmp_path / "saved.onnx"
    model = onnx.load(exported)
    onnx.save(model, path)
    assert list(OnnxClassifier(path).predict(photographs)) == expected
    model.doc_string = "For the museum."
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"remove the metadata 'sk_cnncodes\.sha256'"):
        OnnxClassifier(path)
    model = _without_digest(path)
    onnx.save(model, path)
    assert list(OnnxClassifier(path).predict(photographs)) == expected
    model.metadata_props.add(key="sk_cnncodes.sha256", value="é" * 64)
    onnx.save(model, path)
    with pytest.raises(ExportError, match="it was damaged or changed"):
        OnnxClassifier(path)


def _without_digest(path: Path) -> onnx.ModelProto:
    """The model without its digest, to change it on purpose."""
    model = onnx.load(path)
    (entry,) = [e for e in model.metadata_props if e.key == "sk_cnncodes.sha256"]
    model.metadata_props.remove(entry)
    return model


def _set(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (entry,) = [e for e in model.metadata_props if e.key == f"sk_cnncodes.{key}"]
        entry.value = value

    return change


def _large_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 100_000


def _make_first_weight_external(model: onnx.ModelProto) -> None:
    """Move a weight unchanged to a file in the working directory."""
    tensor = model.graph.initializer[0]
    Path("weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def _floats(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _without_labels(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_make_first_weight_external, "refers to weights in another file"),
        (_set("classes", "{"), "sk_cnncodes.classes: not JSON"),
        (_set("classes", '{"china": 1}'), "classes: expected a list of names"),
        (_set("classes", '["china", 1]'), "classes: expected a list of names"),
        (
            _set("classes", '["china", "flower", "g"]'),
            "'probabilities' has the shape .*, 2",
        ),
        (_set("classes", '["chin", "flow"]'), "label '.*' is not one of the classes"),
        (_set("model", "[]"), "sk_cnncodes.model: expected a JSON object"),
        (_set("preprocessing", "[]"), "preprocessing: expected a JSON object"),
        (_set("preprocessing", '{"crop_size": [9, 9]}'), r"shape \[N, 9, 9, 3\]"),
        (_large_batch, "at most 4096"),
        (_floats, "its inputs are .*'tensor\\(float"),
        (_without_labels, r"its outputs are \['probabilities'\]"),
    ],
)
def test_invalid_files_are_refused(
    change: Callable[[onnx.ModelProto], None],
    fault: str,
    exported: Path,
    photographs: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = _without_digest(exported)
    change(model)
    path = tmp_path / "models" / "changed.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=rf"changed\.onnx': .*{fault}"):
        OnnxClassifier(path).predict(photographs)


def test_a_network_that_cannot_run(
    exported: Path, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    """The wrong shape only appears at run time."""
    model = _without_digest(exported)
    (last,) = [n for n in model.graph.node if n.output[0] == "label"]
    shape = onnx.numpy_helper.from_array(np.array([7, -1]), "seven")
    model.graph.initializer.append(shape)
    shaped = onnx.helper.make_node("Reshape", [last.input[0], "seven"], ["shaped"])
    model.graph.node.insert(len(model.graph.node) - 2, shaped)
    last.input[0] = "shaped"
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"changed\.onnx': ONNX Runtime cannot"):
        OnnxClassifier(path).predict(photographs)


PROGRAM = """
import importlib.util, json, sys
sys.path[:0] = sys.argv[3:]
from sk_cnncodes import OnnxClassifier
classifier = OnnxClassifier(sys.argv[1])
images = json.loads(sys.argv[2])
absent = ["sklearn", "scipy", "joblib", "onnx", "tqdm", "pooch", "typer"]
print(json.dumps({
    "labels": classifier.predict(images).tolist(),
    "probabilities": classifier.predict_proba(images).tolist(),
    "found": [name for name in absent if importlib.util.find_spec(name)],
}))
"""


def test_only_numpy_pillow_and_onnxruntime(
    exported: Path, pipeline: Pipeline, photograph_files: list[Path], tmp_path: Path
) -> None:
    """Nothing but symlinks to these packages can be imported."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        (folder / name).symlink_to(package)
        for libraries in ("numpy.libs", "pillow.libs"):
            beside, link = package.parent / libraries, folder / libraries
            if beside.is_dir() and not link.exists():
                link.symlink_to(beside)
    (folder / "sk_cnncodes").symlink_to(ROOT / "sk_cnncodes")
    images = [str(path) for path in photograph_files]
    result = subprocess.run(
        [
            *(sys.executable, "-I", "-S", "-c", PROGRAM),
            *(str(exported), json.dumps(images), str(folder)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout)
    assert output["found"] == []
    assert output["labels"] == list(pipeline.predict(images))
    np.testing.assert_allclose(
        output["probabilities"], pipeline.predict_proba(images), atol=1e-4
    )


def test_import_of_the_package_imports_nothing_else() -> None:
    program = (
        "import sys, sk_cnncodes\n"
        "assert 'CNNCodeTransformer' in dir(sk_cnncodes)\n"
        "heavy = {'sklearn', 'onnx', 'onnxruntime', 'joblib', 'numpy', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from sk_cnncodes import *\n"
        "print(CNNCodeTransformer.__name__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=ROOT,
    )
    assert result.stdout.split("\n")[:2] == ["[]", "CNNCodeTransformer"]
