"""A ranking as a table, a frame and a picture."""

from __future__ import annotations

import builtins
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sk_cnncodes import CodeRanking, rank_codes


@pytest.fixture(scope="module")
def ranking() -> CodeRanking:
    bunch = load_digits()
    images, y = bunch.images[:60] / 16, bunch.target[:60]
    return rank_codes(images, np.array(list("abcdefghij"))[y], cache=None)


def test_it_prints_as_a_table(ranking: CodeRanking) -> None:
    title, table, legend = repr(ranking).split("\n\n")
    assert title == "60 images of 10 classes; leave-one-out accuracy, in %:"
    header, *lines = table.splitlines()
    assert header.split() == [
        *("score", "+-", "backbone", "layer", "norm", "kernel", "alpha", "code"),
        *("MACs", "compute"),
    ]
    assert len(lines) == len(ranking.rows) == 20
    for row, line in zip(ranking.rows, lines, strict=True):
        assert f"{100 * row.score:.2f}  " in line
        assert f"  {row.norm}  " in line
        assert line[0] == (
            "*" if row.recommended else "=" if row.indistinguishable else " "
        )
    chosen = ranking.recommended
    assert f"Recommended: cnncodes-mini, layer {chosen.layer}, norm" in legend
    assert all(note in legend for note in ranking.notes)


def test_a_long_table_shows_the_best_and_the_recommended(ranking: CodeRanking) -> None:
    rows = [row for row in ranking.rows if not row.recommended]
    long = CodeRanking(
        **{
            **vars(ranking),
            "rows": (*rows, *rows, ranking.recommended, *rows),
        }
    )
    lines = repr(long).split("\n\n")[1].splitlines()
    assert lines[-1] == "37 more in .rows"
    assert lines[-3] == "..."
    assert lines[-2].startswith("*")
    assert len(lines) == 1 + 20 + 3


def test_other_scores_are_no_percentages() -> None:
    bunch = load_digits()
    images = bunch.images[:40] / 16
    found = rank_codes(images, images.mean(axis=(1, 2)), layers=[-1], groups=range(40))
    title, table, _ = repr(found).split("\n\n")
    assert title == "40 images in 40 groups; leave-one-group-out r2:"
    score = float(table.splitlines()[1].split()[1])
    assert score == pytest.approx(found.best.score, rel=1e-3)


def test_it_shows_as_html(ranking: CodeRanking) -> None:
    text = ranking._repr_html_()
    assert text.count("<tr") == 21
    assert text.count("font-weight: bold") == 1
    hostile = vars(ranking.rows[0]) | {"backbone": "<script>"}
    rows = (type(ranking.rows[0])(**hostile), *ranking.rows[1:])
    text = CodeRanking(**{**vars(ranking), "rows": rows})._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_it_becomes_a_frame(ranking: CodeRanking) -> None:
    frame = ranking.to_frame()
    assert len(frame) == len(ranking.rows)
    assert frame["score"].tolist() == [row.score for row in ranking.rows]
    assert frame["recommended"].sum() == 1


def test_it_can_be_pickled(ranking: CodeRanking) -> None:
    again = pickle.loads(pickle.dumps(ranking))
    assert again.rows == ranking.rows
    assert repr(again) == repr(ranking)
    np.testing.assert_array_equal(again.predictions(3), ranking.predictions(3))


def test_it_can_be_plotted(ranking: CodeRanking, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    ax = ranking.plot()
    assert ax.get_ylabel() == "leave-one-out accuracy, in %"
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "cnncodes-mini, l2" in names
    assert "cnncodes-mini, power" in names
    assert ranking.plot(ax) is ax
    ax.figure.savefig(tmp_path / "ranking.png")
    matplotlib.pyplot.close(ax.figure)


def test_a_plot_without_matplotlib(
    ranking: CodeRanking, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"sk-cnncodes\[plot\]"):
        ranking.plot()
