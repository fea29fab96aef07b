"""`report`: all that there is to see of a model and labelled images, in one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sk_cnncodes._version import __version__
from sk_cnncodes.base.files import atomic_write
from sk_cnncodes.base.public import public
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.export.model_card import (
    ModelCard,
    OperatingPoint,
    find_threshold,
    operating_points,
)
from sk_cnncodes.export.onnx_classifier import OnnxClassifier
from sk_cnncodes.inspection.audited import Audit
from sk_cnncodes.inspection.evaluation import Evaluation
from sk_cnncodes.inspection.page import cards, kinds, sections
from sk_cnncodes.inspection.page.thumbnails import MOST, Thumbnails
from sk_cnncodes.inspection.page.tiles import MAX_LISTED, Tiles, common_folder
from sk_cnncodes.inspection.page.tuning import tuning_of, tuning_section
from sk_cnncodes.inspection.predicting import evaluate, fitted_pipeline
from sk_cnncodes.inspection.tuning_display import FineTuningDisplay

_TEMPLATES = Path(__file__).parent / "templates"
# Accuracies to suggest a threshold for: the first that not all images together reach.
_TARGETS = (0.95, 0.99, 0.999)
_NOTEBOOK_HEIGHT = 720


@public
class HTMLReport:
    """A page about a model; a notebook shows it.

    Attributes
    ----------
    html : str
        The page, which needs nothing else: no script, no file, no network.

    See Also
    --------
    report : Make one.
    """

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, which appears when it is whole.

        Parameters
        ----------
        path : str or path-like
            Such as ``"report.html"``.

        Returns
        -------
        Path
        """
        with atomic_write(Path(path)) as part:
            part.write_text(self.html, encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        return f"HTMLReport of {len(self.html) / 1e6:.2f} MB; save it with .save(path)"

    def _repr_html_(self) -> str:
        # Links within the page would otherwise lead to the notebook.
        html = self.html.replace("<head>", '<head><base href="about:srcdoc">', 1)
        return (
            f'<iframe title="Report" srcdoc="{escape(html)}" sandbox '
            f'style="width:100%;height:{_NOTEBOOK_HEIGHT}px;border:1px solid #ccc">'
            "</iframe>"
        )


@public
def report(
    model: Any,
    images: Any,
    labels: Any,
    *,
    train_images: Any = None,
    train_labels: Any = None,
    groups: Any = None,
    label_names: Sequence[Any] | None = None,
    out_of_fold: bool = False,
    card: ModelCard | None = None,
    audit: Audit | None = None,
    warnings: Sequence[str] = (),
    next_commands: Sequence[tuple[str, str]] = (),
    method: str = "auto",
    max_thumbnails: int = MOST,
    title: str = "Report",
) -> HTMLReport:
    """Show what a model makes of labelled images, and why it errs, as one HTML page.

    Needs jinja2 and matplotlib: ``pip install 'sk-cnncodes[report]'``.

    Parameters
    ----------
    model : estimator or OnnxClassifier
        Fitted: a `CNNCodeClassifier` or `CNNCodeRegressor`, whose page also shows what
        was compared; a `FineTunedClassifier` or `FineTunedRegressor`, whose page shows
        its training; a Pipeline or search; or what `load_model` returns.
    images : container of images
        That the model was not fitted to.
    labels : array-like, shape (n_images,) or (n_images, n_labels)
        Classes; for a model of several labels 0 and 1; for a regression values.
    train_images, train_labels : container of images, array-like, or None, default=None
        What the model was fitted to. The page then shows the most similar ones of each
        mistake.
    groups : array-like, shape (n_images,), or None, default=None
        What each of `images` belongs to, such as its burst: 95% intervals are then
        those on new groups.
    label_names : sequence or None, default=None
        Names of several labels, or of several values.
    out_of_fold : bool, default=False
        Whether `images` are those that a `CNNCodeClassifier` or `CNNCodeRegressor` was
        fitted to: the page is then about its `cv_predictions_`.
    card : ModelCard or None, default=None
    audit : Audit or None, default=None
        Duplicates, suspect labels and outliers, for their sections.
    warnings : sequence of str, default=()
        Sentences that stand at the top, beside those that the page finds.
    next_commands : sequence of (str, str), default=()
        What can be done next, and the command.
    method : {"auto", "pca", "tsne", "umap"}, default="auto"
        How the map of the codes is made; see `CodesMapDisplay`.
    max_thumbnails : int, default=1000
        More images are named without a thumbnail. 1,000 are about 2 MB.
    title : str, default="Report"

    Returns
    -------
    HTMLReport
        It has ``save(path)``, and shows itself in a notebook.

    Raises
    ------
    ImportError
        If jinja2 or matplotlib is not installed.
    TypeError, ValueError
        If the model cannot predict images, or labels do not fit it.
    ImageError
        If an image cannot be read.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import CNNCodeClassifier, report
    >>> digits = load_digits()
    >>> X, y = digits.images[:120] / 16, digits.target[:120]
    >>> model = CNNCodeClassifier(layers=[-1, -2], heads="lda").fit(X[:80], y[:80])
    >>> page = report(model, X[80:], y[80:], train_images=X[:80], train_labels=y[:80])
    >>> page.save("report.html")  # doctest: +SKIP
    >>> "Confusion matrix" in page.html
    True
    """
    check_installed()
    evaluation = evaluate(
        model,
        images,
        labels,
        train_images=train_images,
        train_labels=train_labels,
        groups=groups,
        label_names=label_names,
        out_of_fold=out_of_fold,
    )
    if card is None and hasattr(model, "best_params_") and hasattr(model, "ranking_"):
        fitted_to = labels if out_of_fold else train_labels
        if fitted_to is not None and len(fitted_to) == model.ranking_.n_images:
            card = ModelCard.from_estimator(model, fitted_to, classes=label_names)
    return page_of(
        evaluation,
        model,
        card=card,
        audit=audit,
        tuning=tuning_of(model),
        warnings=warnings,
        next_commands=next_commands,
        method=method,
        max_thumbnails=max_thumbnails,
        title=title,
    )


def check_installed() -> None:
    """Raise an ImportError that says what to install."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"A report needs {' and '.join(missing)}, which must be installed: pip "
            "install 'sk-cnncodes[report]'."
        )


def page_of(
    evaluation: Evaluation,
    model: Any,
    *,
    card: ModelCard | None = None,
    audit: Audit | None = None,
    tuning: FineTuningDisplay | None = None,
    warnings: Sequence[str] = (),
    next_commands: Sequence[tuple[str, str]] = (),
    method: str = "auto",
    max_thumbnails: int = MOST,
    title: str = "Report",
) -> HTMLReport:
    """The page of an evaluation that is already there; parameters as of `report`."""
    thumbnails = Thumbnails(max_thumbnails)
    tiles = Tiles(evaluation, thumbnails)
    kind = evaluation.kind
    found: dict[str, Any] = {
        **_frame(title),
        "kind": kind,
        "evaluation": evaluation,
        "count": len(evaluation.tested),
        "n_train": None if evaluation.train is None else len(evaluation.train),
        "card": _card(model, card),
        "verdict": "" if card is None else cards.verdict(card),
        "warnings": [
            *warnings,
            *sections.own_warnings(evaluation),
            *([] if audit is None else audit.warnings),
        ],
        "next_commands": list(next_commands),
        # What is looked at the longest comes first: thumbnails may run out.
        "n_mistakes": len(evaluation.worst_first),
        "mistakes": tiles.mistakes(evaluation.worst_first[:MAX_LISTED]),
    }
    if audit is not None:
        lists = sections.Findings(audit, thumbnails, tiles.folder)
        found |= {"audited": True, **lists.as_dict()}
    if kind == "regression":
        found |= {
            "numbers": kinds.value_numbers(evaluation),
            "samples": sections.value_samples(evaluation, tiles),
            "values": kinds.value_histogram(evaluation.tested.truth[:, 0], "images"),
            "figures": kinds.value_figures(evaluation),
        }
    else:
        header, rows = sections.class_rows(evaluation, tiles)
        found |= {"class_header": header, "class_rows": rows}
    if kind == "multilabel":
        found |= {
            "numbers": kinds.label_numbers(evaluation),
            "label_table": kinds.label_table(evaluation),
            "figures": kinds.label_figures(evaluation),
        }
    if kind == "classification":
        found |= {
            "numbers": kinds.class_numbers(evaluation),
            "cells": kinds.confusion_cells(evaluation, tiles),
            "with_matrix": len(evaluation.classes) <= kinds.MAX_MATRIX,
        }
        if evaluation.has_probabilities:
            found |= _trust(evaluation, card)
    layer_figures, head_table = sections.layer_figures(model)
    curve, curve_text = sections.learning_curve(getattr(model, "ranking_", None))
    points, names, method = sections.map_points(evaluation, tiles, method)
    found |= {
        "layer_figures": layer_figures,
        "head_table": head_table,
        "curve": curve,
        "curve_text": curve_text,
        "points": points,
        "map_names": names,
        "map_method": {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[method],
        "tuning": None if tuning is None else tuning_section(tuning),
        "css": thumbnails.css(),
        "n_without": thumbnails.left_out,
        "missing": _missing(evaluation, model, audit),
    }
    return _rendered("report.html", found)


def audit_page(audit: Audit, title: str) -> HTMLReport:
    """The page of an audit alone.

    Parameters
    ----------
    audit : Audit
    title : str
    """
    thumbnails = Thumbnails()
    count = len(audit.images)
    names = [audit.name(image) for image in range(count)]
    lists = sections.Findings(audit, thumbnails, common_folder(names))
    contradictions = sum(each.is_contradiction for each in audit.duplicates)
    in_sets = len({image for each in audit.duplicates for image in each.images})
    found = {
        **_frame(title),
        **lists.as_dict(),
        "count": count,
        "warnings": audit.warnings,
        "numbers": [
            kinds.Number(
                "Suspect labels",
                str(len(audit.suspects)),
                "models of the other images prefer another class",
            ),
            kinds.Number(
                "Duplicates",
                str(len(audit.duplicates)),
                f"sets, of {in_sets} images; {contradictions} with several labels",
            ),
            kinds.Number("Outliers", str(len(audit.outliers)), "images like no other"),
        ],
        "rows": lists.class_rows(),
    }
    found |= {"css": thumbnails.css(), "n_without": thumbnails.left_out}
    return _rendered("audit.html", found)


def _frame(title: str) -> dict[str, str]:
    """What all pages say of themselves."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"title": title, "version": __version__, "made": made}


def _rendered(name: str, found: dict[str, Any]) -> HTMLReport:
    html = _environment().get_template(name).render(found)
    # Names of files can have bytes that are no text.
    return HTMLReport(html.encode("utf-8", "replace").decode("utf-8"))


def _card(model: Any, card: ModelCard | None) -> list[tuple[str, str]]:
    if card is not None:
        return cards.card_rows(card)
    inner = fitted_pipeline(model)
    if isinstance(inner, OnnxClassifier):
        return [("File", inner.path.name), *cards.onnx_rows(inner.metadata)]
    steps = getattr(inner, "steps", [])
    codes = next((s for _, s in steps if isinstance(s, CNNCodeTransformer)), None)
    if codes is None:
        return [("Model", type(inner).__name__)]
    return cards.transformer_rows(codes, steps[-1][1])


def _trust(evaluation: Evaluation, card: ModelCard | None) -> dict[str, Any]:
    """Calibration, accuracy over coverage, and the suggested threshold."""
    assert evaluation.scores is not None
    numbers = np.arange(evaluation.n_known)
    own = operating_points(evaluation.scores, numbers, evaluation.tested.truth)
    in_training = card is not None and bool(card.operating_points)
    if card is not None and in_training:
        suggested = _suggested(card.operating_points, card.n_tested)
    else:
        suggested = _suggested(own, len(evaluation.tested))
    threshold = None if suggested is None else suggested[1].threshold
    curve = [(p.threshold, p.accuracy, p.coverage) for p in own]
    found: dict[str, Any] = {
        "trust": kinds.trust(evaluation, curve, threshold),
        "threshold": suggested,
        "in_training": in_training,
    }
    if threshold is not None:
        above = evaluation.certainty >= threshold
        right = evaluation.right[above].mean() if above.any() else None
        found |= {"n_above": int(above.sum()), "right_above": right}
    return found


def _suggested(
    points: Sequence[OperatingPoint], n_tested: int
) -> tuple[float, OperatingPoint] | None:
    """An accuracy that is better than that of all images, and the threshold for it."""
    if not points:
        return None
    for target in _TARGETS:
        if target <= points[0].accuracy:
            continue
        try:
            return target, find_threshold(points, n_tested, target)
        except ValueError:
            continue
    return None


def _missing(evaluation: Evaluation, model: Any, audit: Audit | None) -> list[str]:
    """What a page of another model would have, and why this one has not."""
    found = []
    if getattr(model, "ranking_", None) is None:
        found.append(
            "No ranking of layers and no learning curve: a saved model does not keep "
            "them. sk-cnncodes train --report FILE shows them."
        )
    if getattr(model, "cv_results_", None) is None:
        found.append("No table of layers and heads: the model is no search.")
    if evaluation.train is None:
        found.append(
            "No similar training images: they were not given (--train DATA; in "
            "Python train_images)."
        )
    if evaluation.kind == "classification" and not evaluation.has_probabilities:
        found.append(
            "No reliability diagram and no threshold: the model gives no probabilities."
        )
    if audit is None:
        found.append(
            "No suspect labels, duplicates and outliers: sk-cnncodes audit DATA "
            "finds them (in Python audit)."
        )
    return found


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["percent"] = kinds.percent
    return environment
