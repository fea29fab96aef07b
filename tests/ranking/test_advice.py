"""What a ranking says about images, backbone and what to do next."""

from __future__ import annotations

import json
import pickle
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sk_cnncodes import Advice, Finding, list_backbones, rank_codes
from sk_cnncodes.ranking.advice import OTHER_BACKBONES
from tests.ranking.made_rankings import Made, made_codes

LABELS = np.arange(240) % 6


def two_layers(
    last: float, earlier: float, labels: np.ndarray = LABELS, **given: Any
) -> Made:
    codes = {("net", -1): made_codes(labels, last, 0)}
    codes |= {("net", -3): made_codes(labels, earlier, 1)}
    return Made(codes, labels, **given)


def finding(advice: Advice, name: str) -> Finding:
    return next(each for each in advice.findings if each.name == name)


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


# -- similarity ----------------------------------------------------------------


def test_images_like_those_of_the_backbone() -> None:
    made = two_layers(0.8, 0.2)
    found = finding(made.advice(), "similarity")
    assert found.answer == "yes"
    last, earlier = made.rows
    assert found.sentence.startswith(f"In net, layer -1 has {percent(last.score)}, +")
    assert "against the best earlier layer, -3: what its last layers" in found.sentence
    assert "by chance 16%" in found.sentence
    figures = found.figures
    assert (figures["layer"], figures["other_layer"]) == (-1, -3)
    assert figures["difference"]["value"] == pytest.approx(last.score - earlier.score)
    assert figures["same_class_neighbours"] > 0.5


def test_images_unlike_those_of_the_backbone() -> None:
    found = finding(two_layers(0.2, 0.8).advice(), "similarity")
    assert found.answer == "no"
    assert found.sentence.startswith("In net, layer -3 has ")
    assert "points against layer -1: its last layers were made" in found.sentence
    assert found.figures["layer"] == -3
    assert found.figures["difference"]["clear"]


@pytest.mark.parametrize("better", [-1, -3])
def test_no_claim_where_chance_explains_the_layers(better: int) -> None:
    signals = (0.51, 0.5) if better == -1 else (0.5, 0.51)
    found = finding(two_layers(*signals).advice(), "similarity")
    assert found.answer == "the layers do not tell"
    assert "luck" in found.sentence
    assert not found.figures["difference"]["clear"]


def test_a_single_layer_says_nothing_about_others() -> None:
    made = Made({("net", -4): made_codes(LABELS, 0.5, 0)}, LABELS)
    advice = made.advice()
    found = finding(advice, "similarity")
    assert found.answer == "not clear"
    assert (
        "Layer -1 was not ranked beside an earlier one. At layer -4" in found.sentence
    )
    assert finding(advice, "layers").answer == "not tried"


# -- layers and backbones ------------------------------------------------------


def test_layers_that_know_different_things() -> None:
    codes = {
        ("net", -1): made_codes(LABELS % 2, 0.8, 0),
        ("net", -2): made_codes(LABELS // 2, 0.8, 1),
        ("other", -1): made_codes(LABELS, 0.05, 1),
    }
    advice = Made(codes, LABELS).advice()
    found = finding(advice, "layers")
    assert found.answer == "yes"
    assert "-1 and -2" in found.sentence or "-2 and -1" in found.sentence
    words = shlex.split(advice.next_command)
    assert words[:2] == ["sk-cnncodes", "train"]
    assert set(words[words.index("--layer") + 1].split(",")) == {"-1", "-2"}


def test_layers_that_know_the_same() -> None:
    codes = made_codes(LABELS, 0.5, 0)
    copies = {("net", -1): codes, ("net", -2): codes}
    found = finding(Made(copies, LABELS).advice(), "layers")
    assert found.answer == "no clear gain"
    assert "no gain that is clear of chance" in found.sentence


def test_other_backbones() -> None:
    good, bad = made_codes(LABELS, 0.8, 0), made_codes(LABELS, 0.2, 1)
    made = Made({("good.onnx", -1): good, ("bad.onnx", -1): bad}, LABELS)
    found = finding(made.advice(), "backbones")
    assert found.answer == "the best is good.onnx"
    assert f"good.onnx has {percent(made.rows[0].score)}: +" in found.sentence
    assert "points against bad.onnx." in found.sentence
    assert "The best two side by side have" in found.sentence
    assert made.advice().next_command.startswith("sk-cnncodes train DIR ")
    same = Made({("a", -1): good, ("b", -1): made_codes(LABELS, 0.8, 2)}, LABELS)
    found = finding(same.advice(), "backbones")
    assert found.answer == "not clear"
    assert "which chance can explain" in found.sentence


def test_one_backbone_says_nothing_about_others() -> None:
    made = two_layers(0.8, 0.2)
    found = finding(made.advice(), "backbones")
    assert found.answer == "not tried"
    assert "Only net was ranked" in found.sentence
    words = made.advice("my photos", ["--groups", "a b", "--cache", "c"]).next_command
    assert shlex.split(words) == [
        *("sk-cnncodes", "advise", "my photos", "--backbone", "net"),
        *("--backbone", OTHER_BACKBONES[0], "--groups", "a b", "--cache", "c"),
    ]


def test_the_backbones_to_try_are_in_the_catalogue() -> None:
    known = {row.name for row in list_backbones()}
    assert {*OTHER_BACKBONES} <= known


def test_a_second_backbone_is_another_one() -> None:
    codes = {(f"folder/{OTHER_BACKBONES[0]}.onnx", -1): made_codes(LABELS, 0.5, 0)}
    words = shlex.split(Made(codes, LABELS).advice().next_command)
    assert words[-1] == OTHER_BACKBONES[1]


# -- images and fine-tuning ----------------------------------------------------


def test_more_images_help() -> None:
    made = two_layers(0.35, 0.1)
    found = finding(made.advice(), "images")
    assert found.answer == "yes"
    curve = made.figures().curve
    scores = [percent(point.score) for point in curve]
    start = f"With 30, 60, 120 and all 240 images: {', '.join(scores[:-1])} and "
    assert found.sentence.startswith(f"{start}{scores[-1]}, leaving out one of each")
    following = found.figures["next_doubling"]
    assert following["value"] > 2 * following["error"]
    gain = f"{100 * following['value']:+.1f} +- {100 * following['error']:.1f} points"
    assert f"twice as many bring about {gain}" in found.sentence


def test_a_last_doubling_that_chance_explains_promises_nothing() -> None:
    made = two_layers(0.4, 0.1)
    figures, found = made.figures(), finding(made.advice(), "images")
    assert figures.last_doubling is not None
    assert 0 < figures.last_doubling.value < 2 * figures.last_doubling.error
    assert found.answer == "no clear gain"
    assert "too little to tell what another one would" in found.sentence


def test_more_images_do_not_help_a_perfect_score() -> None:
    found = finding(two_layers(3, 0.2).advice(), "images")
    assert found.answer == "no clear gain"
    assert "too little to tell" in found.sentence


def test_few_images_have_no_learning_curve() -> None:
    advice = two_layers(0.9, 0.2, np.arange(18) % 6).advice()
    found = finding(advice, "images")
    assert found.answer == "not clear"
    assert found.sentence.endswith("for a learning curve: the smallest has 3.")
    found = finding(advice, "fine-tuning")
    assert found.answer == "not with so few images"
    assert found.sentence.endswith("here are 18, 3 of a class.")


def test_fine_tuning_takes_many_images_and_a_far_better_training_fit() -> None:
    labels = np.arange(1000) % 2
    wide = made_codes(labels, 0.05, 0, n_features=600)
    narrow = made_codes(labels, 0.5, 0, n_features=4)
    far = Made({("net", -1): wide}, labels)
    found = finding(far.advice(), "fine-tuning")
    assert found.answer == "may be worth a try"
    assert "a rule of thumb, not a measurement" in found.sentence
    assert percent(found.figures["training_score"]) in found.sentence
    assert percent(far.rows[0].score) in found.sentence
    close = Made({("net", -1): narrow}, labels)
    found = finding(close.advice(), "fine-tuning")
    assert found.answer == "not first"
    many_classes = np.arange(1000) % 25
    few = Made({("net", -1): made_codes(many_classes, 0.4, 0)}, many_classes)
    found = finding(few.advice(), "fine-tuning")
    assert found.answer == "not with so few images"
    assert found.sentence.endswith("here are 1,000, 40 of a class.")


# -- the whole -----------------------------------------------------------------


def test_no_advice_without_a_signal() -> None:
    advice = two_layers(0, 0).advice()
    (found,) = advice.findings
    assert (found.name, found.answer) == ("signal", "no")
    assert "which chance explains" in found.sentence


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_other_targets(kind: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(200, 16))
    values = codes[:, :3] + rng.normal(size=(200, 3))
    y = values if kind == "regression" else (values > 0).astype(int)
    made = Made({("net", -1): codes, ("net", -2): codes[:, 2:]}, y)
    advice = made.advice()
    assert advice.next_command.startswith("sk-cnncodes advise DIR --backbone net")
    assert "class" not in repr(advice)
    if kind == "regression":
        assert "%" not in repr(advice)


@pytest.fixture(scope="module")
def advice() -> Advice:
    """Of handwritten digits, each of them twice, slightly changed."""
    bunch = load_digits()
    images = np.concatenate([bunch.images[:80], bunch.images[:80] + 0.1]) / 17
    return rank_codes(
        images,
        np.tile(bunch.target[:80], 2),
        groups=np.tile(np.arange(80), 2),
        layers=[-1, -3, -5],
        gammas=(1,),
    ).advice("digits")


def test_groups(advice: Advice) -> None:
    assert advice.title.startswith(
        "160 images of 10 classes in 80 groups; leave-one-group-out accuracy, in %. "
        "Recommended: cnncodes-mini, layer -"
    )
    neighbours = finding(advice, "similarity").figures["same_class_neighbours"]
    assert 0.5 < neighbours < 1  # the other image of a pair is none


def test_it_prints_as_sentences(advice: Advice) -> None:
    title, *paragraphs, last = repr(advice).split("\n\n")
    assert title.replace("\n", " ") == advice.title
    for text, found in zip(paragraphs, advice.findings, strict=True):
        assert text.replace("\n", " ").endswith(found.sentence)
        assert f"? {found.answer[0].upper()}{found.answer[1:]}. " in text.replace(
            "\n", " "
        )
    assert last == f"Next: {advice.next_command}"
    assert max(map(len, repr(advice).splitlines())) <= 88


def test_it_becomes_json(advice: Advice) -> None:
    found = json.loads(json.dumps(advice.as_dict()))
    assert found["next_command"] == advice.next_command
    names = ["similarity", "layers", "backbones", "images", "fine-tuning"]
    assert [each["name"] for each in found["findings"]] == names
    assert found["findings"][3]["figures"]["curve"][-1]["n_images"] == 160


def test_it_shows_as_html() -> None:
    codes = {("<b>", -1): made_codes(LABELS, 0.5, 0)}
    text = Made(codes, LABELS).advice("<i>")._repr_html_()
    assert "<b>'" not in text
    assert "&lt;i&gt;" in text
    assert text.count("<dt>") == 5


def test_it_can_be_pickled(advice: Advice) -> None:
    assert repr(pickle.loads(pickle.dumps(advice))) == repr(advice)


def test_photographs_of_clothes(shared: Path) -> None:
    """Real codes; 300 more images of Fashion-MNIST are known to help."""
    with np.load(shared / "data" / "fashion_mnist.npz") as data:
        images, y = data["x_train"][:600], data["y_train"][:600]
    ranking = rank_codes(images, y, gammas=())
    advice = ranking.advice()
    assert finding(advice, "similarity").figures["same_class_by_chance"] < 0.12
    curve = finding(advice, "images").figures["curve"]
    assert [point["n_images"] for point in curve] == [75, 150, 300, 600]
    assert curve[-1]["score"] == pytest.approx(ranking.recommended.score, abs=0.02)
    assert finding(advice, "images").answer == "yes"
    assert finding(advice, "fine-tuning").answer == "not with so few images"
