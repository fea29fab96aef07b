"""Training of a tail and its head on cached maps, in torch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sk_cnncodes.base.logs import logger
from sk_cnncodes.base.progress import progress_bar
from sk_cnncodes.tuning.torch_head import TorchHead
from sk_cnncodes.tuning.validation import Parts

# Images that are run at once where no gradient is needed.
_BATCH = 256
# Largest norm of the gradient of all weights.
_MAX_NORM = 1.0
# Share of the steps in which the rates rise to their values, of one epoch at most.
_WARM_UP = 0.1
# Rates end at this share of their values.
_LEAST_RATE = 0.01


class Rows(Protocol):
    """What is trained on: `Maps`, or codes in memory."""

    n_views: int

    def read(self, images: np.ndarray, views: np.ndarray | int = 0) -> np.ndarray:
        """The maps of some images, each of one view, as float32."""
        ...


class Codes:
    """Codes in memory, for the training of a head alone."""

    n_views = 1

    def __init__(self, codes: np.ndarray) -> None:
        self._codes = codes

    def read(self, images: np.ndarray, views: np.ndarray | int = 0) -> np.ndarray:
        """As `Rows`."""
        found: np.ndarray = self._codes[images]
        return found


@dataclass(frozen=True)
class Recipe:
    """How weights are trained; attributes are those of `FineTunedClassifier`.

    Attributes
    ----------
    rates : mapping of str to float
        Learning rate of each weight of the tail.
    """

    rates: Mapping[str, float]
    head_learning_rate: float
    max_epochs: int
    patience: int
    batch_size: int
    weight_decay: float
    label_smoothing: float
    mixup: float
    precision: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a training found.

    Attributes
    ----------
    history : dict of str to list
        See `FineTunedClassifier.history_`.
    best_epoch : int
        The epoch whose weights the tail and the head have; 0 is before training.
    n_epochs : int
    values : ndarray of float64, shape (n_valid, n_targets)
        Logits, or values, of the validation part with these weights.
    interrupted : bool
        Whether Ctrl-C ended it.
    precision : {"float32", "bfloat16"}
    """

    history: dict[str, list[float]]
    best_epoch: int
    n_epochs: int
    values: np.ndarray
    interrupted: bool
    precision: str


def run_tail(
    tail: nn.Module, maps: Rows, images: np.ndarray, device: torch.device
) -> np.ndarray:
    """What a tail, or tail and head, gives for images in their first view."""
    found = []
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            part = torch.from_numpy(maps.read(images[start : start + _BATCH]))
            found.append(tail(part.to(device)).float().cpu().numpy())
    return np.concatenate(found)


def train(
    tail: nn.Module,
    head: TorchHead,
    maps: Rows,
    parts: Parts,
    recipe: Recipe,
    device: torch.device,
    *,
    verbose: bool,
) -> Outcome:
    """Train tail and head; they end with the weights of the best epoch.

    An interrupt ends the training, and keeps the best weights so far.

    Parameters
    ----------
    tail, head : Module
        On the device.
    maps : Rows
        Of all images.
    parts : Parts
    recipe : Recipe
    device : torch.device
    verbose : bool
        Whether to show a progress bar.

    Raises
    ------
    FloatingPointError
        If the loss is not finite. The weights are then those of no epoch.
    """
    model = nn.Sequential(tail, head)
    training = _Training(model, maps, parts, recipe, device)
    interrupted = False
    total = recipe.max_epochs * training.n_steps
    bar = progress_bar(total=total, desc="Fine-tune", unit="step", disable=not verbose)
    with bar:
        try:
            training.note_epoch(math.nan)
            while not training.is_over:
                training.run_epoch(bar)
                bar.set_postfix(training.shown(), refresh=False)
        except KeyboardInterrupt:
            interrupted = True
    best, rows = training.best, training.rows
    if best is None:  # interrupted before anything was known
        raise KeyboardInterrupt
    model.load_state_dict(best.state)
    history = {name: [row[name] for row in rows] for name in rows[0]}
    return Outcome(
        history,
        best.epoch,
        len(rows) - 1,
        best.values,
        interrupted,
        recipe.precision,
    )


@dataclass(frozen=True)
class _Best:
    """The weights of an epoch, and what they give for the validation part."""

    rank: tuple[float, float]
    epoch: int
    values: np.ndarray
    state: dict[str, torch.Tensor]


class _Training:
    """A training in progress: its optimiser, schedule and best weights.

    Attributes
    ----------
    rows : list of dict
        Of the history, from epoch 0 on.
    best : _Best or None
        None before the first validation.
    n_steps : int
        Of an epoch.
    is_over : bool
    """

    def __init__(
        self,
        model: nn.Sequential,
        maps: Rows,
        parts: Parts,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self._model, self._maps, self._parts = model, maps, parts
        self._recipe, self._device = recipe, device
        self._rng = np.random.default_rng(recipe.seed)
        values = parts.targets.values
        self._classifies = parts.targets.kind == "classification"
        # Classes as 0 and 1.
        shown = (values + 1) / 2 if self._classifies else values
        self._targets = np.asarray(shown, np.float32)
        self._spread = torch.tensor(np.float32(parts.spread)).to(device)
        weights = parts.weights / parts.weights[parts.train].mean()
        self._weights = weights.astype(np.float32)
        self.n_steps = math.ceil(len(parts.train) / recipe.batch_size)
        self._n_total = self.n_steps * recipe.max_epochs
        self._n_warm = min(self.n_steps, max(1, int(_WARM_UP * self._n_total)))
        self._step = 0
        self._optimizer = _optimizer(model, recipe)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._start = time.perf_counter()
        self.best: _Best | None = None
        self.rows: list[dict[str, float]] = []

    @property
    def is_over(self) -> bool:
        assert self.best is not None
        recipe, n_epochs = self._recipe, len(self.rows) - 1
        # The first epoch, with its warm-up, may be worse than none.
        since = max(self.best.epoch, 1)
        return n_epochs >= recipe.max_epochs or n_epochs - since >= recipe.patience

    def run_epoch(self, bar: Any) -> None:
        """Train on each image once, in one of its views, and validate."""
        self._model.train()
        order = self._rng.permutation(self._parts.train)
        views = self._rng.integers(0, self._maps.n_views, len(order))
        losses = []
        for start in range(0, len(order), self._recipe.batch_size):
            rows = slice(start, start + self._recipe.batch_size)
            losses.append(self._step_on(order[rows], views[rows]))
            bar.update(1)
        self.note_epoch(float(np.mean(losses)))

    def _step_on(self, images: np.ndarray, views: np.ndarray) -> float:
        """One step of the optimiser; returns the loss."""
        recipe = self._recipe
        share = self._schedule()
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        maps, targets, weights = (
            torch.from_numpy(np.ascontiguousarray(each)).to(self._device)
            for each in (
                self._maps.read(images, views),
                self._targets[images],
                self._weights[images],
            )
        )
        if recipe.mixup:
            kept = float(self._rng.beta(recipe.mixup, recipe.mixup))
            other = torch.from_numpy(self._rng.permutation(len(images)))
            other = other.to(self._device)
            maps = kept * maps + (1 - kept) * maps[other]
            targets = kept * targets + (1 - kept) * targets[other]
            weights = kept * weights + (1 - kept) * weights[other]
        self._optimizer.zero_grad(set_to_none=True)
        tail, head = self._model
        with self._autocast():
            codes = tail(maps)
        # In bfloat16, with its 3 digits, the head that ridge found was worse.
        values = head(codes.float())
        if self._classifies:
            losses = nn.functional.cross_entropy(
                values,
                targets,
                reduction="none",
                label_smoothing=recipe.label_smoothing,
            )
        else:
            losses = (((values - targets) / self._spread) ** 2).mean(dim=1)
        loss = (losses * weights).mean()
        found = float(loss.detach())
        if not math.isfinite(found):
            raise FloatingPointError(
                f"the loss became {found} in epoch {len(self.rows)}, step "
                f"{self._step % self.n_steps + 1} of {self.n_steps}. Expected a finite "
                f"one: {self._cure()}."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), _MAX_NORM)
        self._optimizer.step()
        self._step += 1
        return found

    def _schedule(self) -> float:
        """Share of the rates in this step: a linear warm-up, then a cosine."""
        if self._step < self._n_warm:
            return (self._step + 1) / self._n_warm
        done = (self._step - self._n_warm) / max(1, self._n_total - self._n_warm)
        return _LEAST_RATE + (1 - _LEAST_RATE) * (1 + math.cos(math.pi * done)) / 2

    def _autocast(self) -> Any:
        enabled = self._recipe.precision == "bfloat16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def _cure(self) -> str:
        """What to change if the training diverges."""
        recipe = self._recipe
        rates = [f"head_learning_rate ({recipe.head_learning_rate:g})"]
        if recipe.rates:
            largest = max(recipe.rates.values())
            rates.insert(0, f"learning_rate (the largest is {largest:g})")
        other = "" if recipe.precision == "float32" else ", or use precision='float32'"
        return f"lower {' or '.join(rates)}{other}"

    def note_epoch(self, loss: float) -> None:
        """Validate, write the history, and keep the weights if they are the best."""
        epoch = len(self.rows)
        self._model.eval()
        found = run_tail(self._model, self._maps, self._parts.valid, self._device)
        values = found.astype(np.float64)
        if not np.isfinite(values).all():
            raise FloatingPointError(
                f"the network gave NaN or infinity after epoch {epoch}. Expected "
                f"finite values: {self._cure()}."
            )
        score = float(self._parts.samples(values).mean())
        validation_loss = self._parts.loss(values)
        rates = {group["is_head"]: 0.0 for group in self._optimizer.param_groups}
        for group in self._optimizer.param_groups if epoch else ():
            rates[group["is_head"]] = max(rates[group["is_head"]], group["lr"])
        row = {
            "epoch": epoch,
            "loss": loss,
            "validation_loss": validation_loss,
            "validation_score": score,
            "learning_rate": rates.get(False, 0.0),
            "head_learning_rate": rates[True],
            "seconds": time.perf_counter() - self._start,
        }
        self.rows.append(row)
        logger.info("fine-tuning: %s", row)
        # A loss tells more of each image than whether it is right.
        rank = (-validation_loss, score)
        if self.best is None or rank > self.best.rank:
            state = self._model.state_dict()
            copied = {name: each.detach().clone() for name, each in state.items()}
            # In one step, which an interrupt does not split.
            self.best = _Best(rank, epoch, values, copied)

    def shown(self) -> dict[str, str]:
        """What the progress bar shows of the last epoch."""
        row = self.rows[-1]
        return {
            "epoch": str(row["epoch"]),
            "loss": f"{row['loss']:.3f}",
            "validation": f"{row['validation_score']:.4f}",
        }


def _optimizer(model: nn.Sequential, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with a rate for each weight; biases and scales do not decay."""
    tail, head = model
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, weight in tail.named_parameters():
        key = (recipe.rates[name], weight.ndim > 1, False)
        groups.setdefault(key, []).append(weight)
    for _, weight in head.named_parameters():
        key = (recipe.head_learning_rate, weight.ndim > 1, True)
        groups.setdefault(key, []).append(weight)
    return torch.optim.AdamW(
        [
            {
                "params": weights,
                "lr": rate,
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "is_head": is_head,
            }
            for (rate, decays, is_head), weights in groups.items()
        ]
    )
