"""The section of a page about fine-tuning."""

from __future__ import annotations

from typing import Any

from sk_cnncodes.inspection.page.figures import figure
from sk_cnncodes.inspection.page.tiles import Table
from sk_cnncodes.inspection.tuning_display import FineTuningDisplay
from sk_cnncodes.tuning.fitting import FineTuning


def tuning_of(model: Any) -> FineTuningDisplay | None:
    """What there is to see of a model's fine-tuning; None for others."""
    if not isinstance(model, FineTuning):
        return None
    return FineTuningDisplay.from_estimator(model)


def tuning_section(display: FineTuningDisplay) -> dict[str, Any]:
    """Sentence, plot and table, for the template.

    Parameters
    ----------
    display : FineTuningDisplay
    """
    history = display.history
    factor, digits = (100, 2) if display.in_percent else (1, 4)
    unit = ", in %" if display.in_percent else ""
    scores = [f"{factor * score:.{digits}f}" for score in history["validation_score"]]
    best = history["epoch"].index(display.best_epoch)
    rows = [
        [
            f"{history['epoch'][row]:.0f}{' (best)' if row == best else ''}",
            "-" if row == 0 else f"{history['loss'][row]:.4g}",
            f"{history['validation_loss'][row]:.4g}",
            scores[row],
            *(
                f"{history[name][row]:.2g}"
                for name in ("learning_rate", "head_learning_rate")
            ),
            f"{history['seconds'][row]:.0f}",
        ]
        for row in range(len(scores))
    ]
    header = ["epoch", "training loss", "validation loss", "validation score"]
    header += ["largest rate of a block", "rate of the head", "seconds"]
    return {
        "decision": display.decision,
        "figure": figure(
            display.plot,
            "tuning",
            (6.4, 7),
            f"Validation {display.scoring} by epoch: {'; '.join(scores)}{unit}. "
            f"Frozen: {factor * display.frozen_score:.{digits}f}.",
            "Epoch 0 is before training, with a head from ridge. Grey: the frozen "
            "model, and one standard error of the difference to it on either side.",
        ),
        "table": Table(
            f"Fine-tuning by epoch; validation {display.scoring}{unit}; rates at the "
            "end of the epoch.",
            header,
            rows,
        ),
    }
