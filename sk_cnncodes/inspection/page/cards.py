"""The model card of a page, and what stands in its place for models without one."""

from __future__ import annotations

from typing import Any

from sk_cnncodes.export.model_card import ModelCard
from sk_cnncodes.ranking.ranked_codes import SHARES


def verdict(card: ModelCard) -> str:
    """What was chosen, and its score, in a sentence."""
    layers = ", ".join(map(str, card.layers))
    score = f"{card.scoring} {card.cv_score:.3f}"
    if card.scoring in SHARES:
        score = f"{100 * card.cv_score:.1f}% {card.scoring.replace('_', ' ')}"
    return (
        f"Chosen: {card.backbone}, layer {layers}, {card.norm or 'no'} norm, "
        f"{card.head}: {score} "
        + ("on validation images." if card.n_folds == 1 else "in cross-validation.")
    )


def card_rows(card: ModelCard) -> list[tuple[str, str]]:
    """The model card as terms and values."""
    rows = [
        ("Backbone", card.backbone),
        ("SHA-256", card.backbone_sha256),
        ("Licence", card.backbone_license or "not known; the file is no catalogue row"),
        ("Layer", ", ".join(map(str, card.layers))),
        ("Norm", card.norm or "none"),
        ("Head", card.head),
        ("Images", f"{card.n_images:,}"),
        _score_row(card),
        ("Seed", "not fixed" if card.seed is None else str(card.seed)),
        ("Versions", ", ".join(f"{k} {v}" for k, v in card.versions.items())),
        ("Made", card.created.replace("T", " ").replace("Z", " UTC")),
    ]
    return rows + ([("Command", card.command)] if card.command else [])


def _score_row(card: ModelCard) -> tuple[str, str]:
    score = f"{card.scoring} {card.cv_score:.4g}"
    if card.n_folds == 1:
        return "Validation", f"{score} on {card.n_tested:,} images"
    return "Cross-validation", f"{score} in {card.n_folds} folds"


def transformer_rows(codes: Any, head: Any) -> list[tuple[str, str]]:
    """What can be said of a pipeline that has no card."""
    layer = codes.layer
    text = (
        ", ".join(map(str, layer)) if isinstance(layer, (list, tuple)) else str(layer)
    )
    rows = [("Backbone", str(codes.backbone).rpartition("/")[2])]
    reference = getattr(codes, "fitted_backbone_", None)
    if isinstance(reference, dict) and "sha256" in reference:
        rows.append(("SHA-256", str(reference["sha256"])))
    return [
        *rows,
        ("Layer", text),
        ("Norm", codes.norm or "none"),
        ("Head", type(head).__name__),
    ]


def onnx_rows(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """What an ONNX file says of itself."""
    return [
        (str(key).replace("_", " ").capitalize(), str(value))
        for key, value in metadata.items()
        if isinstance(value, (str, int, float)) and str(value)
    ]
