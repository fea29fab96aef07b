"""The option `--report`, and the HTML page that it writes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sk_cnncodes.cli.common.frame import check_output, note
from sk_cnncodes.datasets.labelled_images import LabelledImages

if TYPE_CHECKING:
    from sk_cnncodes.heads.code_estimators import CNNCodeClassifier, CNNCodeRegressor
    from sk_cnncodes.inspection.audited import Audit
    from sk_cnncodes.inspection.evaluation import Evaluation
    from sk_cnncodes.inspection.findings import DuplicateImages

ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        show_default=False,
        help="Also write an HTML page with pictures (needs the extra report): of a "
        "model its mistakes, the worst first, similar images, and how far to trust "
        "figures; suspect labels, duplicates. It holds thumbnails, and loads nothing.",
    ),
]


def check_page(page: Path | None, inputs: Iterable[str | Path | None]) -> None:
    """Check, before any work is done, that a page can be made and written."""
    if page is None:
        return
    from sk_cnncodes.inspection.page.report import check_installed

    check_output(page, (".html", ".htm"), inputs)
    check_installed()


def evaluated(
    model: Any, train: LabelledImages | None, tested: LabelledImages
) -> Evaluation:
    """What a model predicts for images, beside those that it was fitted to."""
    from sk_cnncodes.inspection.predicting import evaluate

    return evaluate(
        model,
        tested.paths,
        tested.targets,
        train_images=None if train is None else train.paths,
        train_labels=None if train is None else train.targets,
        groups=tested.groups,
        label_names=tested.classes if tested.task == "multilabel" else None,
    )


def evaluated_out_of_fold(model: Any, train: LabelledImages) -> Evaluation:
    """What was predicted for the images of `fit`, each left out."""
    from sk_cnncodes.inspection.predicting import evaluate

    return evaluate(
        model,
        train.paths,
        train.targets,
        groups=train.groups,
        label_names=train.classes if train.task == "multilabel" else None,
        out_of_fold=True,
    )


def copies_among(tested: LabelledImages, train: LabelledImages) -> list[str]:
    """A warning if tested images are copies of training images; otherwise nothing."""
    from sk_cnncodes.codes.transformer import CNNCodeTransformer
    from sk_cnncodes.inspection.audit import image_digests

    reader = CNNCodeTransformer()
    known = {*image_digests(train.paths, reader)}
    count = sum(digest in known for digest in image_digests(tested.paths, reader))
    if not count:
        return []
    return [
        f"{count} of the {len(tested)} tested images are equal to training images: the "
        "figures are too good. Test with other images."
    ]


def audited(
    model: CNNCodeClassifier | CNNCodeRegressor,
    images: LabelledImages,
    cache: Path,
    duplicates: Sequence[DuplicateImages],
) -> Audit:
    """What is noteworthy about the images of a training, from codes in its cache."""
    from sk_cnncodes.inspection.audit import audit_codes, configured

    backbone = model.best_params_["backbone"]
    layers = [row.layer for row in model.ranking_.rows if row.backbone == backbone]
    layer = -1 if -1 in layers else layers[0]
    transformer = configured(
        model.pipeline_["codes"], layer, cache, model.device, model.n_jobs
    )
    return audit_codes(
        images.paths,
        transformer.fit_transform(images.paths),
        images.labels,
        images.groups,
        duplicates=duplicates,
        n_jobs=model.n_jobs,
    )


def audited_tested(evaluation: Evaluation, images: LabelledImages) -> Audit:
    """What is noteworthy about tested images, by the codes that the model reads."""
    from sk_cnncodes.inspection.audit import audit_codes

    codes = evaluation.tested.codes
    return audit_codes(images.paths, codes, images.labels, images.groups)


def write_page(
    page: Path,
    evaluation: Evaluation,
    model: Any,
    warnings: Sequence[str],
    **more: Any,
) -> None:
    """Write the page; `more` are parameters of `page_of`."""
    from sk_cnncodes.inspection.page.report import page_of

    note("Writing the report ...")
    page_of(evaluation, model, warnings=warnings, **more).save(page)


def write_audit_page(page: Path, audit: Audit, title: str) -> None:
    """Write the page of an audit."""
    from sk_cnncodes.inspection.page.report import audit_page

    note("Writing the report ...")
    audit_page(audit, title).save(page)


def next_commands(output: Path, data: Path) -> list[tuple[str, str]]:
    """What can be done with a model, for the page."""
    model, images = shlex.quote(str(output)), shlex.quote(str(data))
    return [
        (
            "Classify other images",
            f"sk-cnncodes predict {model} DIR -o labels.csv",
        ),
        (
            "Evaluate the model on images of another day or place",
            f"sk-cnncodes evaluate {model} DIR --train {images} --report other.html",
        ),
        (
            "Look for duplicates and wrong labels",
            f"sk-cnncodes audit {images}",
        ),
    ]
