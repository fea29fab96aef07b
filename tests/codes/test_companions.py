"""scikit-learn's callbacks, skrub, dask-ml, MLflow; and names of columns."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_cnncodes import SKOPS_TRUSTED_TYPES, CNNCodeTransformer

LABELS = [0, 1] * 4
# Names of the codes of one column.
FRONT = [f"front_{number}" for number in range(800)]
BACK = [f"back_{number}" for number in range(800)]


@pytest.fixture(scope="module")
def paths(photograph_files: list[Path]) -> list[str]:
    return [str(path) for path in photograph_files]


@pytest.fixture(params=["pandas", "polars"])
def frame(request: pytest.FixtureRequest, paths: list[str]) -> Any:
    """Two columns of images, in different orders, and one of numbers."""
    columns = {"front": paths, "back": paths[::-1], "price": [1.0] * 8}
    return {"pandas": pd, "polars": pl}[request.param].DataFrame(columns)


def library(frame: Any) -> str:
    return type(frame).__module__.partition(".")[0]


# -- names of columns ----------------------------------------------------------


def test_codes_are_named_after_their_column(frame: Any, paths: list[str]) -> None:
    for X in (frame["front"], frame[["front"]], pa.table({"front": paths})):
        fitted = CNNCodeTransformer().fit(X)
        assert list(fitted.get_feature_names_out()) == FRONT
        # Named for good: also in a file, and whatever is transformed later.
        loaded = pickle.loads(pickle.dumps(fitted)).set_output(transform="pandas")
        assert list(loaded.transform(paths).columns) == FRONT
    for X in (
        paths,
        np.array(paths),
        pd.Series(paths),
        pl.Series(paths),
        pa.array(paths),
    ):
        names = CNNCodeTransformer().fit(X).get_feature_names_out()
        assert names[-1] == "cnncodetransformer799"
    fitted.fit(paths)
    assert fitted.get_feature_names_out()[0] == "cnncodetransformer0"
    several = CNNCodeTransformer(layer=[-1, -2]).fit(frame["front"])
    names = several.get_feature_names_out()
    assert (names[0], names[800]) == ("front_-1_0", "front_-2_0")


def test_codes_of_two_columns_do_not_collide(frame: Any, paths: list[str]) -> None:
    columns = ColumnTransformer(
        [("a", CNNCodeTransformer(), "front"), ("b", CNNCodeTransformer(), ["back"])],
        verbose_feature_names_out=False,
        remainder="passthrough",
    ).set_output(transform=library(frame))
    found = columns.fit_transform(frame)
    assert list(found.columns) == [*FRONT, *BACK, "price"]
    wanted = CNNCodeTransformer().fit_transform(paths)
    np.testing.assert_array_equal(found[FRONT].to_numpy(), wanted)
    np.testing.assert_array_equal(found[BACK].to_numpy(), wanted[::-1])


# -- skrub -----------------------------------------------------------------------


def test_skrub_takes_two_columns_of_images(frame: Any, paths: list[str]) -> None:
    skrub = pytest.importorskip("skrub")
    both = skrub.ApplyToCols(CNNCodeTransformer(), cols=["front", "back"])
    found = both.fit_transform(frame)
    assert library(found) == library(frame)
    assert list(found.columns) == [*FRONT, *BACK, "price"]
    wanted = CNNCodeTransformer().fit_transform(paths)
    np.testing.assert_array_equal(found[FRONT].to_numpy(), wanted)
    np.testing.assert_array_equal(both.transform(frame)[BACK].to_numpy(), wanted[::-1])


def test_skrub_vectorizes_tables_with_images(frame: Any) -> None:
    skrub = pytest.importorskip("skrub")
    images = [(CNNCodeTransformer(), ["front", "back"])]
    table = skrub.TableVectorizer(specific_transformers=images)
    model = make_pipeline(table, LogisticRegression()).fit(frame, LABELS)
    assert list(table.get_feature_names_out()[:800]) == FRONT
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.predict(frame), model.predict(frame))


def test_a_column_in_the_way_of_skrub(frame: Any, paths: list[str]) -> None:
    """Without skrub: one column at a time, with its output in the frame's library."""
    assert CNNCodeTransformer.__single_column_transformer__
    for name, names in (("front", FRONT), ("back", BACK)):
        codes = CNNCodeTransformer().set_output(transform=library(frame))
        found = codes.fit_transform(frame[name], y=LABELS)
        assert library(found) == library(frame)
        assert list(found.columns) == names


# -- callbacks of scikit-learn 1.9 -----------------------------------------------


class Recorder:
    """A callback that counts tasks, and those that `ProgressBar` shows as one line."""

    max_propagation_depth = None

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.n_parts = 0
        self.n_ended = 0

    def setup(self, estimator: Any, context: Any) -> None:
        self.n_open = 1

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        if context.max_subtasks and context.estimator_name == "CNNCodeTransformer":
            self.lines.append(context.task_name)

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        if context.estimator_name == "CNNCodeTransformer":
            self.n_parts += context.max_subtasks == 0
            self.n_ended += context.max_subtasks > 0

    def teardown(self, estimator: Any, context: Any) -> None:
        self.n_open -= 1


def test_callbacks_see_the_images(paths: list[str]) -> None:
    pytest.importorskip("sklearn.callback")
    recorder = Recorder()
    steps = [CNNCodeTransformer(), StandardScaler(), LogisticRegression()]
    model = make_pipeline(*steps).set_callbacks(recorder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(paths, LABELS)
        model.predict(paths)
    assert (recorder.lines, recorder.n_parts) == (["fit-transform"], 100)
    assert (recorder.n_ended, recorder.n_open) == (1, 0)
    assert not {"_callback_fit_ctx", "_fit_task", "_skl_callbacks"} & {*vars(model[0])}

    alone = CNNCodeTransformer(cache=None).set_callbacks(recorder)
    alone.fit(paths)
    assert recorder.lines == ["fit-transform", "fit"]
    frame = alone.set_output(transform="pandas").fit_transform(pd.Series(paths))
    assert frame.shape == (8, 800)
    assert recorder.n_parts == 200
    with pytest.raises(ValueError, match=r"gone\.jpg"):
        alone.fit_transform([*paths, "gone.jpg"])
    assert recorder.n_open == 0
    wanted = CNNCodeTransformer(cache=None).fit_transform(paths)
    np.testing.assert_array_equal(frame.to_numpy(), wanted)


def test_the_codes_step_is_in_the_progress_bar(
    paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    callback = pytest.importorskip("sklearn.callback")
    pytest.importorskip("rich")
    CNNCodeTransformer().set_callbacks(callback.ProgressBar()).fit_transform(paths)
    shown = capsys.readouterr().out
    assert "CNNCodeTransformer - fit-transform" in shown
    assert "100%" in shown


# -- others ------------------------------------------------------------------------


def test_a_search_has_the_parameters_of_its_grid(paths: list[str]) -> None:
    model = make_pipeline(CNNCodeTransformer(), LogisticRegression())
    grid = {"cnncodetransformer__layer": [-1, -2], "logisticregression__C": [0.1, 1]}
    search = GridSearchCV(model, grid, cv=2).fit(paths, LABELS)
    assert set(search.best_params_) == set(grid)
    assert all(set(each) == set(grid) for each in search.cv_results_["params"])


def test_parallel_post_fit_of_dask_ml(paths: list[str]) -> None:
    wrappers = pytest.importorskip("dask_ml.wrappers")
    import dask.array
    import dask.dataframe

    model = make_pipeline(CNNCodeTransformer(), LogisticRegression())
    parallel = wrappers.ParallelPostFit(
        model.fit(paths, LABELS),
        predict_meta=np.empty(0, np.int64),
        predict_proba_meta=np.empty((0, 2)),
        transform_meta=np.empty((0, 800), np.float32),
    )
    table = pd.DataFrame({"path": paths})
    frame = dask.dataframe.from_pandas(table, npartitions=3)
    column = dask.array.from_array(table[["path"]].to_numpy(object), chunks=(3, 1))
    for X in (frame, column):
        labels = parallel.predict(X).compute()
        np.testing.assert_array_equal(labels, model.predict(paths))
        probabilities = parallel.predict_proba(X).compute()
        np.testing.assert_allclose(probabilities, model.predict_proba(paths), atol=1e-6)
    codes = wrappers.ParallelPostFit(model[0], transform_meta=parallel.transform_meta)
    found = codes.transform(frame).compute()
    np.testing.assert_array_equal(found, model[0].transform(paths))


@pytest.mark.filterwarnings("ignore")  # of its import
def test_mlflow_saves_as_skops(paths: list[str], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow.sklearn")
    codes = CNNCodeTransformer(store_backbone=True)
    model = make_pipeline(codes, LogisticRegression()).fit(paths, LABELS)
    mlflow.save_model(
        model,
        tmp_path / "model",
        serialization_format="skops",
        skops_trusted_types=SKOPS_TRUSTED_TYPES,
        pip_requirements=[],
    )
    loaded = mlflow.load_model(str(tmp_path / "model"))
    np.testing.assert_array_equal(loaded.predict(paths), model.predict(paths))
