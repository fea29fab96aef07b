"""Choose backbone, layer and head by cross-validation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, ParameterGrid

from sk_cnncodes.heads.presets import DEFAULT_HEADS, HEADS
from sk_cnncodes.heads.selection import (
    chosen,
    code_search,
    score_table,
    scores,
    short_name,
    verdict,
)
from tests.forwards import counted_forwards


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    bunch = load_digits()
    return bunch.images[:80] / 16, bunch.target[:80]


@pytest.fixture(scope="module")
def search(digits: tuple[Any, Any]) -> GridSearchCV:
    # Layers and heads in an order other than their sorted one.
    found = code_search(
        *(["cnncodes-mini"], [-3, -1], ["knn", "svm"]),
        norms=["l2", "power"],
        cv=2,
        cache="memory",
    )
    return found.fit(*digits)


def test_scores_are_those_of_the_search(search: GridSearchCV) -> None:
    found = scores(search)
    assert [(c.backbone, c.layer, c.norm, c.head) for c in found] == [
        ("cnncodes-mini", layer, norm, head)
        for layer in (-3, -1)
        for norm in ("l2", "power")
        for head in ("knn", "svm")
    ]
    means = sorted(c.mean for c in found)
    assert means == sorted(search.cv_results_["mean_test_score"])
    assert chosen(search).mean == search.best_score_ == means[-1]
    assert search.best_estimator_["codes"].layer == chosen(search).layer
    assert search.best_estimator_["codes"].norm == chosen(search).norm
    assert type(search.best_estimator_["head"]) is type(HEADS[chosen(search).head][1])


def test_table_and_verdict(search: GridSearchCV) -> None:
    head, *lines = score_table(search).splitlines()
    assert head == "backbone       layer   norm    knn    svm"
    assert len({len(line) for line in (head, *lines)}) == 1
    assert [line.split()[1:3] for line in lines] == [
        *(["-3", "l2"], ["-3", "power"], ["-1", "l2"], ["-1", "power"])
    ]
    values = [float(cell) for line in lines for cell in line.split()[3:]]
    np.testing.assert_allclose(
        values, [100 * c.mean for c in scores(search)], atol=0.051
    )
    best = chosen(search)
    assert (
        f"layer {best.layer}, {best.norm} norm, {HEADS[best.head][0]}: "
        f"{100 * best.mean:.2f}%"
    ) in verdict(search)


@pytest.mark.parametrize(
    ("heads", "norms", "names"),
    [
        (DEFAULT_HEADS, ["l2", "power"], ["backbone", "layer", "norm"]),
        (tuple(HEADS), ["power"], ["backbone", "layer"]),
    ],
)
def test_a_table_fits_a_terminal(
    heads: tuple[str, ...], norms: list[str], names: list[str]
) -> None:
    search = code_search(["squeezenet1.1.onnx"], [-1, -10], heads, norms=norms)
    found = list(ParameterGrid(search.param_grid))
    search.cv_results_ = {
        "params": found,
        "mean_test_score": np.ones(len(found)),
        "std_test_score": np.zeros(len(found)),
    }
    lines = score_table(search).splitlines()
    assert len(lines) == 1 + 2 * len(norms)
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [*names, *heads]
    assert lines[1].split()[len(names) :] == ["100.0"] * len(heads)


def test_norms_none_and_a_head_that_does_not_exist() -> None:
    search = code_search(["cnncodes-mini"], [-1], ["lda"], norms=[None])
    assert search.param_grid["codes__norm"] == [None]
    with pytest.raises(ValueError, match=r"expected some of \['svm'.*got \['tree'\]"):
        code_search(["cnncodes-mini"], heads=["tree"])


def test_layers_side_by_side_are_candidates(digits: tuple[Any, Any]) -> None:
    found = code_search(["cnncodes-mini"], [[-2, -1], -2], ["svm"], cv=2).fit(*digits)
    assert [c.layer for c in scores(found)] == [[-2, -1], -2]
    assert chosen(found).layer in ([-2, -1], -2)
    _, first, second = score_table(found).splitlines()
    assert first.startswith("cnncodes-mini  [-2, -1]  ")
    assert second.startswith("cnncodes-mini        -2  ")


def test_each_image_takes_one_forward_pass(digits: tuple[Any, Any]) -> None:
    from sk_cnncodes import CodeCache

    images, labels = digits
    with counted_forwards() as count:
        code_search(["cnncodes-mini"], [-1, -2], cv=2, cache=CodeCache()).fit(
            images, labels
        )
    assert count.images <= len(images)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_bar_counts_the_fits(
    n_jobs: int, digits: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    search = code_search(
        ["cnncodes-mini"], [-1, -2], ["svm"], cv=3, n_jobs=n_jobs, verbose=True
    )
    search.fit(*digits)
    out, err = capfd.readouterr()
    assert out == ""
    bar = re.findall(r"Compare:.*?(\d+)/6", err)
    assert (bar[0], bar[-1]) == ("0", "6")
    assert search.verbose is True


def test_an_error_ends_the_bar(
    digits: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    search = code_search(["cnncodes-mini"], [-1], ["svm"], cv=2, verbose=True)
    search.set_params(param_grid={"head__C": [1.0, -1.0]})
    with pytest.raises(ValueError, match="'C' parameter"):
        search.fit(*digits)
    out, err = capfd.readouterr()
    assert (out, err.endswith("\n")) == ("", True)
    assert re.findall(r"(\d+)/4", err)[-1] == "2"
    assert search.verbose is True


def test_a_search_is_silent(
    digits: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    code_search(["cnncodes-mini"], [-1], ["svm"], cv=2).fit(*digits)
    assert capfd.readouterr() == ("", "")


def test_short_name() -> None:
    assert short_name("cnncodes-mini") == "cnncodes-mini"
    assert short_name("models/resnet50.onnx") == "resnet50.onnx"
