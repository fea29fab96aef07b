"""The command that trains a classifier on a folder of images."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sk_cnncodes.base.files import atomic_write
from sk_cnncodes.cli.common.copies import copies_of
from sk_cnncodes.cli.common.fine_tuning import (
    FineTuneOption,
    TrainFromOption,
    check_fine_tuning,
    fine_tuned,
    read_train_from,
    trained_anew,
)
from sk_cnncodes.cli.common.frame import (
    CacheOption,
    DeviceOption,
    check_output,
    end_with,
    interruptible,
    note,
    parse_layer,
)
from sk_cnncodes.cli.common.image_arguments import MaxPixelsOption, pixel_limit
from sk_cnncodes.cli.common.labelled_images import (
    BackbonesOption,
    DataArgument,
    DataOptions,
    TestOption,
    cache_file,
    embed_labelled,
    found_as_dict,
    labelled_images,
    takes_data_options,
)
from sk_cnncodes.cli.common.pages import (
    ReportOption,
    audited,
    check_page,
    evaluated,
    evaluated_out_of_fold,
    next_commands,
    write_page,
)
from sk_cnncodes.cli.common.report import Report
from sk_cnncodes.cli.common.scoring import ScoringOption, score_name
from sk_cnncodes.cli.common.splitting import split_images, with_test

if TYPE_CHECKING:
    from sk_cnncodes.export.model_card import ModelCard


class Head(StrEnum):
    """What chooses heads, and keys of `HEADS` and `REGRESSORS`, in their module."""

    auto = "auto"
    svm = "svm"
    logistic = "logistic"
    knn = "knn"
    lda = "lda"
    ridge = "ridge"
    rbf = "rbf"
    svc = "svc"
    svr = "svr"


class Norm(StrEnum):
    """Same as `sk_cnncodes.ranking.rank_codes.NORMS`, whose import takes a second."""

    l2 = "l2"
    power = "power"


class ClassWeight(StrEnum):
    """Weights of classes that have a name."""

    balanced = "balanced"


@takes_data_options
def train(
    data: DataArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="The joblib file to write, such as model.joblib.",
        ),
    ],
    backbone: BackbonesOption = ["cnncodes-mini"],  # noqa: B006
    layer: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help="-1: penultimate, -2: the one before, and so on; or a name; -1,-3: "
            "the codes of both side by side; repeatable.  [default: all layers]",
        ),
    ] = None,
    norm: Annotated[
        list[Norm],
        typer.Option(
            help="l2: codes of unit length; power: after signed square roots; "
            "repeatable."
        ),
    ] = list(Norm),  # noqa: B006
    head: Annotated[
        list[Head],
        typer.Option(
            help="Linear SVM, logistic regression, nearest neighbours, shrinkage LDA, "
            "ridge, ridge with an RBF kernel, RBF SVM for classes or (svr) values; "
            "repeatable; or auto: those that suit the number of images."
        ),
    ] = [Head.auto],  # noqa: B006
    scoring: ScoringOption = None,
    class_weight: Annotated[
        ClassWeight | None,
        typer.Option(
            help="balanced: classes of few images count as much as those of many.",
            show_default=False,
        ),
    ] = None,
    fine_tune: FineTuneOption = False,
    train_from: TrainFromOption = None,
    held_out: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of images held out for the report, unless DATA or --test says "
            "which; 0: none.",
        ),
    ] = 0.2,
    test: TestOption = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            show_default=False,
            help="Fit the saved model to all images, or only to those that are not "
            "held out.  [default: to all, but not to those of a given test part]",
        ),
    ] = None,
    cv: Annotated[
        int,
        typer.Option(
            min=2, help="Folds; fewer if a class has fewer images, but several."
        ),
    ] = 5,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**32 - 1, help="Seed of held-out images and folds."),
    ] = 0,
    jobs: Annotated[int, typer.Option(help="Number of threads; -1: all cores.")] = -1,
    onnx: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Also write the model as an ONNX file (needs skl2onnx).",
        ),
    ] = None,
    report: ReportOption = None,
    store_backbone: Annotated[
        bool,
        typer.Option(
            "--store-backbone",
            help="Store the backbone in the joblib file, for machines without it; an "
            "ONNX file always contains it.",
        ),
    ] = False,
    data_options: DataOptions = DataOptions(),  # noqa: B008
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON.")
    ] = False,
    max_pixels: MaxPixelsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a classifier on labelled images.

    DATA is a folder with a sub-folder of images for each class, or a table of image
    files and their labels: classes, several labels, or values to regress. All layers
    are ranked by the exact leave-one-out score of ridge on their codes, classifiers are
    compared on the best of them by cross-validation, and the probabilities of the best
    combination are calibrated. Images that are held out take no part in this: the
    report is about them. The saved model is then the same combination, fitted to all
    images. Images of a group are kept on one side of each split. Images that cannot be
    read are reported and skipped; the exit code is then 3.

    With --fine-tune, later layers of the chosen backbone are trained too, and compared
    with this frozen model on images that they are not trained on. The frozen model is
    kept unless the tuned one is better by more than chance. A tuned model is
    trained on all images only with --refit.

    \b
    Examples:
      sk-cnncodes train photos -o model.joblib
      sk-cnncodes train photos -o model.joblib --backbone cnncodes-mini --backbone \\
          resnet50 --cache codes.sqlite3
      sk-cnncodes train photos -o model.joblib --head logistic --onnx model.onnx
      sk-cnncodes train labels.csv -o model.joblib --group-column burst \\
          --scoring balanced_accuracy --class-weight balanced
      sk-cnncodes train photos/train --test photos/test -o model.joblib
      sk-cnncodes train photos -o model.joblib --report report.html
      sk-cnncodes train photos -o model.joblib --backbone mobilenet_v2 --fine-tune
    """
    from sk_cnncodes.codes.transformer import CNNCodeTransformer
    from sk_cnncodes.export.model_card import ModelCard
    from sk_cnncodes.heads.code_estimators import CNNCodeClassifier, CNNCodeRegressor
    from sk_cnncodes.ranking.layer_codes import compared_backbones

    if output.suffix.lower() == ".onnx":
        raise typer.BadParameter(
            f"{str(output)!r}: expected the name of a joblib file, such as "
            "model.joblib; --onnx FILE also writes an ONNX file."
        )
    check_output(output, inputs=[*backbone, cache])
    if onnx is not None:
        check_output(onnx, (".onnx",), [*backbone, cache, output])
        if find_spec("skl2onnx") is None:
            raise ImportError(
                "--onnx needs skl2onnx, which is not installed: pip install "
                "'sk-cnncodes[export]'."
            )
    check_page(report, [*backbone, cache, output, onnx])
    if jobs == 0:
        raise typer.BadParameter("--jobs: expected a number other than 0.")
    layers: Any = "all"
    if layer:
        layers = [parse_layer(text) for text in dict.fromkeys(layer)]
    heads = _parse_heads(head)
    start = read_train_from(fine_tune, train_from)
    found = labelled_images(data, data_options)
    if test is not None:
        found = with_test(found, labelled_images(test, data_options))
    if class_weight is not None and found.task != "classification":
        raise typer.BadParameter(f"--class-weight: expected classes, got {found.task}.")
    for path in filter(None, [output, onnx, report]):
        check_output(path, inputs=found.paths)
    written = f"{str(output)!r} was not written."
    with interruptible(cache, written), cache_file(cache) as codes:
        transformers = [
            CNNCodeTransformer(
                name,
                cache=codes,
                device=device,
                n_jobs=jobs,
                **pixel_limit(max_pixels),
            )
            for name in dict.fromkeys(backbone)
        ]
        # Fail early on a wrong layer, and on too few images.
        compared = compared_backbones(transformers, layers)
        expected = split_images(found, held_out, seed).train
        _check_neighbours(heads, len(expected))
        if fine_tune:
            check_fine_tuning(expected, transformers, start, pixel_limit(max_pixels))
        images, bad = embed_labelled(
            [(each.transformer, each.single_layers) for each in compared], found
        )
        copies = copies_of(images, compared[0])
        parts = split_images(images, held_out, seed, copies.together)
        warnings = [*copies.notes, *parts.notes]
        for each in warnings:
            note(each)
        n_layers = sum(len(each.layers) for each in compared)
        layer_noun = "layer" if n_layers == 1 else "layers"
        note(f"Ranking {n_layers} {layer_noun}, and comparing heads on the best ...")
        parameters: dict[str, Any] = {
            "norms": [name.value for name in dict.fromkeys(norm)],
            "cv": cv,
            "scoring": score_name(scoring, found.task),
            "cache": codes,
            "device": device,
            "n_jobs": jobs,
            "random_state": seed,
            "verbose": sys.stderr is not None and sys.stderr.isatty(),
        }
        model: CNNCodeClassifier | CNNCodeRegressor
        if found.task == "regression":
            model = CNNCodeRegressor(transformers, layers, heads, **parameters)
        else:
            parameters["class_weight"] = class_weight and class_weight.value
            model = CNNCodeClassifier(transformers, layers, heads, **parameters)
        model.fit(parts.train.paths, parts.train.targets, parts.train.groups)
        n_folds = sum(key.startswith("split") for key in model.cv_results_)
        if n_folds < cv:
            note(
                f"{n_folds} folds instead of {cv}: as many as the smallest class with "
                "several images has to train on, or as there are groups."
            )
        tuning = None
        if fine_tune:
            tuning = fine_tuned(model, parts.train, start, cache)
        tuned = tuning is not None and tuning.taken
        final: Any = tuning.estimator if tuning is not None and tuned else model
        # A tuned model is trained again only if that is asked for.
        refits = parts.drawn and not tuned if refit is None else refit
        refits = refits and len(parts.held_out) > 0
        evaluation = frozen = None
        if len(parts.held_out):
            evaluation = evaluated(final, parts.train, parts.held_out)
            frozen = evaluated(model, None, parts.held_out) if tuned else None
        groups = parts.held_out.groups
        summary = Report(
            model, parts.train, evaluation, refits, groups, warnings, tuning, frozen
        )
        if report is not None and evaluation is None:
            if tuning is not None and tuned:
                evaluation = evaluated(final, *tuning.parts())
                warnings.append(tuning.caution)
            else:
                evaluation = evaluated_out_of_fold(model, parts.train)
        fitted = parts.everything if refits else parts.train
        if refits:
            note(f"Fitting the best to all {len(fitted)} images ...")
            if tuning is not None and tuned:
                tuning = trained_anew(tuning, model, fitted, cache)
                final = tuning.estimator
            else:
                model.refit(fitted.paths, fitted.targets, fitted.groups)
        # The saved model refers neither to the cache nor to the threads of this run.
        final.pipeline_["codes"].set_params(cache="memory", n_jobs=-1)
        card = ModelCard.from_estimator(
            model,
            parts.train.targets,
            classes=images.classes if images.task == "multilabel" else None,
            n_images=len(fitted),
            command=["sk-cnncodes", *sys.argv[1:]],
        )
        if tuning is not None and tuned:
            card = tuning.described(card)
        _save(final.pipeline_, card, output, onnx, store_backbone)
        if report is not None and evaluation is not None:
            write_page(
                report,
                evaluation,
                model,
                warnings,
                card=card,
                tuning=None if tuning is None else tuning.display(),
                audit=audited(model, images, codes, copies.duplicates),
                title=f"{output.name}, trained on {data.name}",
                next_commands=next_commands(output, data),
            )
    if as_json:
        files = {
            "model": str(output),
            "onnx": None if onnx is None else str(onnx),
            "report": None if report is None else str(report),
        }
        rest = found_as_dict(images, bad)
        rest |= {"copies": copies.as_list(images.paths)}
        typer.echo(json.dumps(summary.as_dict() | rest | files, indent=1))
    else:
        typer.echo(summary.as_text())
        size = output.stat().st_size / 1e6
        typer.echo(f"\nSaved {output} ({size:.2f} MB).")
        if onnx is not None:
            typer.echo(f"Saved {onnx} ({onnx.stat().st_size / 1e6:.2f} MB).")
        if report is not None:
            typer.echo(f"Saved {report} ({report.stat().st_size / 1e6:.2f} MB).")
    end_with(len(bad))


def _parse_heads(heads: list[Head]) -> str | list[str]:
    """Read --head; "auto" stands alone."""
    if Head.auto not in heads:
        return [head.value for head in dict.fromkeys(heads)]
    if {*heads} != {Head.auto}:
        raise typer.BadParameter("--head auto: expected no other head beside it.")
    return Head.auto.value


def _check_neighbours(heads: str | list[str], n_images: int) -> None:
    """Raise a ValueError if there are fewer images than neighbours."""
    from sk_cnncodes.heads.presets import NEIGHBOURS

    if "knn" in heads and n_images < 2 * NEIGHBOURS:
        raise ValueError(
            f"too few images for {NEIGHBOURS} nearest neighbours: {n_images} to train "
            "on. Add images, or choose other classifiers with --head."
        )


# -- files -------------------------------------------------------------------


def _save(
    pipeline: Any,
    card: ModelCard,
    output: Path,
    onnx: Path | None,
    store_backbone: bool,
) -> None:
    """Write the model to both files, or to none on an error."""
    from sk_cnncodes.export.saving import save_model

    with atomic_write(output) as part:
        save_model(pipeline, part, store_backbone, card)
        if onnx is not None:
            from sk_cnncodes.export.pipeline import to_onnx

            note("Converting to ONNX ...")
            to_onnx(pipeline, onnx, card)
