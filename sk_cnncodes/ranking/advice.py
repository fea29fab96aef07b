"""Advice: what a ranking says about images, backbone and what to do next.

Nothing is said that the figures do not support: a difference is called one where it is
clear of chance, and otherwise shown with its standard error.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from sk_cnncodes.base.public import public
from sk_cnncodes.ranking.given_codes import GIVEN
from sk_cnncodes.ranking.ranked_codes import (
    SHARES,
    CodeFigures,
    Difference,
    Joined,
    RankedCodes,
    layer_text,
    layers_of,
    short_name,
)

# Rules of thumb, not measured. Fine-tuning fits millions of weights: with fewer images
# it mostly learns them by heart, and a head on frozen codes is as good or better.
FINE_TUNING_IMAGES, FINE_TUNING_PER_CLASS = 1000, 50
# Far above: the training images have at most this share of the loss of new ones.
_FAR = 0.5
# Small backbones of the catalogue to try beside another one: of ImageNet's classes, and
# of self-supervised training on other images.
OTHER_BACKBONES = ("mobilenet_v2", "dinov2-small")
_WIDTH = 88


@public
@dataclass(frozen=True)
class Finding:
    """A sentence, and the figures in it.

    Attributes
    ----------
    name : str
        "signal", "similarity", "layers", "backbones", "images" or "fine-tuning".
    answer : str
        In a word or two, such as "yes", "no" or "not clear".
    sentence : str
    figures : dict
        Scores and differences are not in percent.
    """

    name: str
    answer: str
    sentence: str
    figures: Mapping[str, Any]


@public
@dataclass(frozen=True, repr=False)
class Advice:
    """What to do with these images; see `CodeRanking.advice`. It prints as sentences.

    Attributes
    ----------
    title : str
        What was scored, and the recommended codes.
    findings : tuple of Finding
    next_command : str
        For the terminal; for labels and values to regress, which the command does not
        take, Python.
    """

    title: str
    findings: tuple[Finding, ...]
    next_command: str

    def as_dict(self) -> dict[str, Any]:
        """Return the advice as values for JSON.

        Returns
        -------
        dict
            The keys "title", "findings" and "next_command".
        """
        found = asdict(self)
        return found | {"findings": list(found["findings"])}

    def __repr__(self) -> str:
        paragraphs = [self.title]
        paragraphs += [
            f"{_QUESTIONS[each.name]} {_sentence_case(each.answer)}. {each.sentence}"
            for each in self.findings
        ]
        wrapped = [
            textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
            for text in paragraphs
        ]
        return "\n\n".join([*wrapped, f"Next: {self.next_command}"])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<dt>{escape(_QUESTIONS[each.name])} <b>"
            f"{escape(_sentence_case(each.answer))}.</b></dt>"
            f"<dd>{escape(each.sentence)}</dd>\n"
            for each in self.findings
        )
        return (
            f"<p>{escape(self.title)}</p>\n<dl>\n{rows}</dl>\n"
            f"<p>Next: <code>{escape(self.next_command)}</code></p>\n"
        )


_QUESTIONS = {
    "signal": "Do the codes tell anything?",
    "similarity": "Like what the backbone knows?",
    "layers": "Several layers?",
    "backbones": "Another backbone?",
    "images": "More images?",
    "fine-tuning": "Fine-tuning?",
}


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def advise(
    rows: Sequence[RankedCodes],
    figures: CodeFigures,
    kind: str,
    scoring: str,
    n_images: int,
    title: str,
    folder: str,
    options: Sequence[str],
) -> Advice:
    """Put figures into words.

    Parameters
    ----------
    rows : sequence of RankedCodes
    figures : CodeFigures
    kind, scoring : str
    n_images : int
    title : str
        Of the ranking.
    folder : str
    options : sequence of str
        As for `CodeRanking.advice`.
    """
    words = _Words(rows, figures, kind, scoring, n_images)
    chosen = words.chosen
    first = (
        f"{title.rstrip(':')}. Recommended: {short_name(chosen.backbone)}, layer "
        f'{layer_text(layers_of(chosen))}, norm "{chosen.norm}": {words.row(chosen)}.'
    )
    if not figures.signal.clear:
        findings = [words.no_signal()]
    else:
        findings = [
            words.similarity(),
            words.layers(),
            words.backbones(),
            words.images(),
            words.fine_tuning(),
        ]
    following = words.next_command(folder, options)
    return Advice(first, tuple(findings), following)


@dataclass(frozen=True)
class _Words:
    """Findings about a ranking. Parameters are those of `advise`."""

    rows: Sequence[RankedCodes]
    figures: CodeFigures
    kind: str
    scoring: str
    n_images: int

    # -- numbers ---------------------------------------------------------------

    @property
    def chosen(self) -> RankedCodes:
        return next(row for row in self.rows if row.recommended)

    def score(self, value: float) -> str:
        if self.scoring in SHARES:
            return f"{100 * value:.1f}%"
        return f"{value:.3g}"

    def row(self, row: RankedCodes) -> str:
        """A score with its standard error."""
        if self.scoring in SHARES:
            return f"{100 * row.score:.1f} +- {100 * row.error:.1f}%"
        return f"{row.score:.3g} +- {row.error:.2g}"

    def gain(self, difference: Difference) -> str:
        """A difference with its sign and standard error."""
        if self.scoring in SHARES:
            return (
                f"{100 * difference.value:+.1f} +- {100 * difference.error:.1f} points"
            )
        return f"{difference.value:+.2g} +- {difference.error:.2g}"

    def loss(self, score: float) -> float:
        """How far a score is from a perfect one."""
        return (0.0 if self.scoring.startswith("neg_") else 1.0) - score

    # -- findings --------------------------------------------------------------

    def no_signal(self) -> Finding:
        signal = self.figures.signal
        return Finding(
            "signal",
            "no",
            f"The best codes are ahead of a prediction that is the same for all images "
            f"by {self.gain(signal)}, which chance explains. Look at the labels; more "
            "images or another backbone may show more.",
            {"difference": asdict(signal)},
        )

    def similarity(self) -> Finding:
        """By the layers and the neighbours."""
        pair, found = self.figures.layers, dict[str, Any]()
        if pair is None:
            answer = "not clear"
            text = "Layer -1 was not ranked beside an earlier one."
        else:
            better, other = pair.better, pair.other
            found = pair.as_dict()
            both = (
                f"layer {layer_text(layers_of(better))} has "
                f"{self.score(better.score)}, "
                f"{self.gain(pair.difference)} against"
            )
            if better.layer == -1:
                both += f" the best earlier layer, {layer_text(layers_of(other))}"
            else:
                both += " layer -1"
            name = short_name(better.backbone)
            if not pair.difference.clear:
                answer = "the layers do not tell"
                text = f"In {name}, {both}: the best of several can be that by luck."
            elif better.layer == -1:
                answer = "yes"
                text = (
                    f"In {name}, {both}: what its last layers were trained for fits "
                    "these images."
                )
            else:
                answer = "no"
                text = (
                    f"In {name}, {both}: its last layers were made for other images; "
                    "earlier, more general ones serve better."
                )
        neighbours = self.figures.neighbours
        if neighbours is not None:
            text += (
                f" At layer {layer_text(layers_of(neighbours.row))}, "
                f"{100 * neighbours.share:.0f}% of the images have one of their own "
                f"class as the nearest (by chance {100 * neighbours.chance:.0f}%)."
            )
            found |= {
                "same_class_neighbours": neighbours.share,
                "same_class_by_chance": neighbours.chance,
            }
        return Finding("similarity", answer, text, found)

    def layers(self) -> Finding:
        joined = self.figures.joined_layers
        if joined is None:
            text = "Several layers side by side were not tried."
            return Finding("layers", "not tried", text, {})
        names = " and ".join(map(str, joined.layers))
        return self._joined("layers", joined, f"Layers {names} side by side have")

    def _joined(self, name: str, joined: Joined, start: str) -> Finding:
        some = joined.n_images < self.n_images
        text = (
            f"{start} {self.score(joined.score)}"
            f"{f' (on {joined.n_images} images)' if some else ''}, "
            f"{self.gain(joined.difference)} against the better one alone"
        )
        if joined.difference.clear:
            return Finding(name, "yes", f"{text}.", joined.as_dict())
        text += ", no gain that is clear of chance."
        return Finding(name, "no clear gain", text, joined.as_dict())

    def backbones(self) -> Finding:
        pairs, best = self.figures.backbones, self.rows[0]
        name = short_name(best.backbone)
        if not pairs:
            text = f"Only {name} was ranked, and these figures say nothing of others."
            return Finding("backbones", "not tried", text, {})
        others = [
            f"{self.gain(pair.difference)} against {short_name(pair.other.backbone)}"
            + ("" if pair.difference.clear else ", which chance can explain")
            for pair in pairs
        ]
        text = f"{name} has {self.score(best.score)}: {'; '.join(others)}."
        figures: dict[str, Any] = {
            "best": best.backbone,
            "others": [pair.as_dict() for pair in pairs],
        }
        joined = self.figures.joined_backbones
        if joined is not None:
            both = self._joined("backbones", joined, "The best two side by side have")
            text += f" {both.sentence}"
            figures["joined"] = both.figures
        clear = all(pair.difference.clear for pair in pairs)
        answer = f"the best is {name}" if clear else "not clear"
        return Finding("backbones", answer, text, figures)

    def images(self) -> Finding:
        figures = self.figures
        points = figures.curve
        found: dict[str, Any] = {"curve": [asdict(point) for point in points]}
        doubling, following = figures.last_doubling, figures.next_doubling
        if doubling is None:
            text = "Half of the images are too few of a class for a learning curve"
            least = figures.least_per_class
            text += "." if least is None else f": the smallest has {least:.0f}."
            return Finding("images", "not clear", text, found)
        *few, last = [self.score(point.score) for point in points]
        counts = ", ".join(str(point.n_images) for point in points[:-1])
        text = (
            f"With {counts} and all {self.n_images} images: {', '.join(few)} and {last}"
        )
        if points[-1].one_of_each_class:
            text += ", leaving out one of each class at a time"
        text += "."
        found["last_doubling"] = asdict(doubling)
        if following is None or not following.clear:
            text += (
                f" The last doubling brought {self.gain(doubling)}, too little to tell "
                "what another one would."
            )
            return Finding("images", "no clear gain", text, found)
        text += (
            " If the loss goes on falling by the same power of the number of images, "
            f"twice as many bring about {self.gain(following)}."
        )
        found["next_doubling"] = asdict(following)
        return Finding("images", "yes", text, found)

    def fine_tuning(self) -> Finding:
        figures, chosen = self.figures, self.chosen
        fit, loss = figures.training_score, self.loss(chosen.score)
        far = self.loss(fit) <= _FAR * loss and fit - chosen.score > 2 * chosen.error
        text = (
            f"The score is {self.score(fit)} on the images that a model was fitted to, "
            f"and {self.score(chosen.score)} on those left out."
        )
        found = {
            "training_score": fit,
            "score": chosen.score,
            "images": self.n_images,
            "images_per_class": figures.mean_per_class,
        }
        per_class = figures.mean_per_class
        many = self.n_images >= FINE_TUNING_IMAGES and (
            per_class is None or per_class >= FINE_TUNING_PER_CLASS
        )
        thumb = f"at least {FINE_TUNING_IMAGES:,} images" + (
            "" if per_class is None else f" and {FINE_TUNING_PER_CLASS} of a class"
        )
        if not many:
            text += (
                f" It takes many images, by a rule of thumb {thumb}; here are "
                f"{self.n_images:,}"
            )
            text += "." if per_class is None else f", {per_class:.0f} of a class."
            return Finding("fine-tuning", "not with so few images", text, found)
        if not far:
            text += (
                " That is not far above, so what is lacking is rather in the codes; "
                "those of another backbone are cheaper to try."
            )
            return Finding("fine-tuning", "not first", text, found)
        text += (
            " The codes hold more than the classifier can use on new images, and there "
            f"are many images ({thumb}): a rule of thumb, not a measurement. "
            "sk-cnncodes train --fine-tune trains later layers after the head, and "
            "compares both on the same images."
        )
        return Finding("fine-tuning", "may be worth a try", text, found)

    # -- the next command ------------------------------------------------------

    def next_command(self, folder: str, options: Sequence[str]) -> str:
        if self.chosen.backbone == GIVEN:
            norm = self.figures.norm_left
            first = "" if norm is None else f"normalise the codes ({norm}) and "
            return (
                f"{first}fit a head to {'the codes' if norm is None else 'them'}, "
                "such as SGDClassifier by partial_fit over codes.iter_batches()"
            )
        best, joined = self.chosen, self.figures.joined_layers
        helps = joined is not None and joined.difference.clear
        layers = joined.layers if joined is not None and helps else layers_of(best)
        names = list(dict.fromkeys(row.backbone for row in self.rows))
        others = [name for name in OTHER_BACKBONES if name not in map(_stem, names)]
        if len(names) == 1 and others:
            words = ["advise", folder]
            for name in (*names, others[0]):
                words += ["--backbone", name]
            return shlex.join(["sk-cnncodes", *words, *options])
        return train_command(best.backbone, layers, folder, options)


def train_command(
    backbone: str, layers: Sequence[int | str], folder: str, options: Sequence[str]
) -> str:
    """The command that trains on the codes of layers of a backbone."""
    words = ["sk-cnncodes", "train", folder, "-o", "model.joblib"]
    words += ["--backbone", backbone, "--layer", ",".join(map(str, layers))]
    return shlex.join([*words, *options])


def _stem(name: str) -> str:
    return short_name(name).lower().removesuffix(".onnx")
