"""The HTML report: what it says, and what it keeps out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from sk_cnncodes import (
    CNNCodeClassifier,
    CNNCodeRegressor,
    CNNCodeTransformer,
    HTMLReport,
    OnnxClassifier,
    report,
    to_onnx,
)
from sk_cnncodes.inspection.page import report as report_module
from sk_cnncodes.inspection.page import thumbnails
from tests.inspection.page.conftest import (
    CLASSES,
    N_SWAPPED,
    Drawn,
    brightness,
    several_labels,
)
from tests.versions import needs_temperature

SECTIONS = [
    *("summary", "images", "layers", "confusion", "mistakes", "trust", "curve"),
    *("map", "next"),
]
WITHOUT_CLASSES = [
    *("summary", "images", "layers", "predictions", "mistakes", "curve", "map", "next")
]


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.headings: list[int] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "srcset", "action", "data", "poster"):
                (self.links if (value or "")[:1] == "#" else self.addresses).append(
                    value or ""
                )
            assert not name.startswith("on"), (tag, name)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def sections_of(page: Page) -> list[str]:
    known = {*SECTIONS, "predictions", "suspects", "duplicates", "outliers"}
    return [each for each in page.ids if each in known]


@pytest.fixture(scope="module")
def made(classifier: CNNCodeClassifier, drawn: Drawn) -> HTMLReport:
    return report(
        classifier,
        drawn.test,
        drawn.test_labels,
        train_images=drawn.train,
        train_labels=drawn.train_labels,
        next_commands=[("Look at it", "sk-cnncodes audit 'my <photos>'")],
        title="Drawn & found",
    )


def test_a_page_has_its_sections_in_order(made: HTMLReport) -> None:
    page = Page(made.html)
    assert sections_of(page) == SECTIONS
    assert len(page.ids) == len({*page.ids})
    # Each link leads somewhere, those of the plots too.
    assert {link[1:] for link in page.links} <= {*page.ids}
    steps = np.diff(page.headings)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert steps.max() <= 1


def test_nothing_of_a_page_is_elsewhere(made: HTMLReport) -> None:
    page = Page(made.html)
    assert page.addresses == []
    assert not {"script", "iframe", "object", "embed", "link"} & {*page.tags}
    urls = re.findall(r"url\(([^)]{0,12})", made.html)
    assert {url[:11] for url in urls if not url.startswith("#")} == {"data:image/"}
    assert re.findall(r"(?i)(?:https?:)?//[a-z0-9.-]+\.[a-z]", made.html) == []
    assert "@import" not in made.html
    assert "default-src 'none'" in made.html


def test_names_are_text(made: HTMLReport) -> None:
    """A class is called <script>, and files have & and < in their names."""
    assert "<script" not in made.html
    assert "<b>.jpg" not in made.html
    page = Page(made.html)
    assert CLASSES[2] in page.text
    assert "my <photos>" in page.text
    assert "0 &<b>.jpg" in page.text
    assert "Drawn & found" in page.text


def test_mistakes_are_the_worst_first(
    made: HTMLReport, classifier: CNNCodeClassifier, drawn: Drawn
) -> None:
    probabilities = classifier.predict_proba(drawn.test)
    predicted = classifier.classes_[probabilities.argmax(axis=1)]
    wrong = np.flatnonzero(predicted != drawn.test_labels)
    assert len(wrong) >= 3 * N_SWAPPED
    columns = {name: column for column, name in enumerate(classifier.classes_)}
    truth = np.array([columns[label] for label in drawn.test_labels])
    rows = np.arange(len(truth))
    ahead = probabilities.max(axis=1) - probabilities[rows, truth]
    expected = wrong[np.argsort(-ahead[wrong], kind="stable")]
    part = made.html.split('<ol class="mistakes">')[1].split("</ol>")[0]
    names = re.findall(r'<p class="name">(.*?)</p>', part)
    assert len(names) == len(wrong)
    shown = [Page(name).text for name in names]
    assert shown == [drawn.test[i].split("/drawn0/")[1] for i in expected]
    first = part.split("</li>\n<li class")[0]
    assert first.count('class="track"') == 3
    assert first.count(" away") == 3


def test_a_cell_leads_to_its_images(made: HTMLReport, drawn: Drawn) -> None:
    cells = re.findall(
        r'<td class="[cw]\d"><a href="#(cell-\d-\d)"[^>]*>(\d+)<', made.html
    )
    assert sum(int(count) for _, count in cells) == len(drawn.test)
    for anchor, count in cells:
        part = made.html.split(f'id="{anchor}"')[1].split('class="back"')[0]
        assert part.count('<li title="') == int(count)


def test_figures_are_those_of_the_model(
    made: HTMLReport, classifier: CNNCodeClassifier, drawn: Drawn
) -> None:
    text = Page(made.html).text
    accuracy = classifier.score(drawn.test, drawn.test_labels)
    assert f"Accuracy {100 * accuracy:.1f}%" in text
    assert f"{round(accuracy * 30)} of 30 images; 95% interval" in text
    assert "Majority baseline 33.3%" in text
    assert "Chosen: cnncodes-mini, layer" in text
    assert "SHA-256" in text
    assert "Licence Apache-2.0" in text
    for head in ("lda", "ridge"):
        mean = classifier.cv_results_["mean_test_score"][
            classifier.cv_results_["param_head"] == head
        ].max()
        assert f"{100 * mean:.1f} (" in text


def test_each_image_is_embedded_once(made: HTMLReport, drawn: Drawn) -> None:
    uris = re.findall(r"data:image/[^)]+", made.html)
    assert len(uris) == len({*uris}) == len(drawn.train) + len(drawn.test)
    assert len(made.html) < 600_000


def test_thumbnails_can_run_out(classifier: CNNCodeClassifier, drawn: Drawn) -> None:
    page = report(classifier, drawn.test, drawn.test_labels, max_thumbnails=5)
    assert len(re.findall("data:image/", page.html)) == 5
    assert "images are named without a thumbnail" in page.html
    # Mistakes come first.
    part = page.html.split('<ol class="mistakes">')[1]
    assert re.search(r'class="t t\d', part.split("</li>")[0])


def test_thumbnails_of_noise_stay_small(
    classifier: CNNCodeClassifier, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes more bytes than one of a photograph; together no more than a limit."""
    monkeypatch.setattr(thumbnails, "MOST_BYTES", 20_000)
    page = report(classifier, drawn.test, drawn.test_labels)
    embedded = re.findall(r"data:image/[^)]+", page.html)
    assert 3 < len(embedded) < 30
    assert sum(map(len, embedded)) <= 20_000
    # A file that is shown a second time is no further image.
    left = 30 - len(embedded)
    assert f" {left} images are named without a thumbnail" in page.html


def test_many_classes_have_a_list_of_confusions() -> None:
    digits = load_digits()
    X = digits.images[:300] / 16
    y = [f"{label} {i % 4}" for i, label in enumerate(digits.target[:300])]
    model = make_pipeline(CNNCodeTransformer(norm="l2"), LinearSVC()).fit(X, y)
    shown = X[::2] + 0.0
    labels = [*y[0:300:2]]
    labels[:2] = labels[1::-1]
    page = report(model, shown, labels)
    assert "40 classes are too many for a matrix" in page.html
    assert '<table class="matrix">' not in page.html
    found = Page(page.html)
    assert {link[1:] for link in found.links} <= {*found.ids}
    wrong = int((model.predict(shown) != np.array(labels)).sum())
    assert f"{wrong} of 150 images." in found.text


def test_out_of_fold(classifier: CNNCodeClassifier, drawn: Drawn) -> None:
    page = report(classifier, drawn.train, drawn.train_labels, out_of_fold=True)
    text = Page(page.html).text
    assert "36 images, each predicted by a model of others (out of fold)" in text
    right = classifier.classes_[classifier.cv_predictions_.argmax(axis=1)]
    share = np.mean(right == np.array(drawn.train_labels))
    assert f"Accuracy {100 * share:.1f}%" in text
    with pytest.raises(ValueError, match="expected the 36 images of fit"):
        report(classifier, drawn.test, drawn.test_labels, out_of_fold=True)
    with pytest.raises(TypeError, match="expected a fitted CNNCodeClassifier"):
        report(classifier.pipeline_, drawn.train, drawn.train_labels, out_of_fold=True)


def test_warnings(classifier: CNNCodeClassifier, drawn: Drawn) -> None:
    images, labels = (
        drawn.test[:9] + drawn.train[:2],
        drawn.test_labels[:9] + ["disc"] * 2,
    )
    labels[0] = "new & strange"
    page = report(
        classifier,
        images,
        labels,
        train_images=drawn.train,
        train_labels=drawn.train_labels,
        warnings=["Mind the <gap>."],
    )
    text = Page(page.html.split("<h3>Warnings</h3>")[1].split("</ul>")[0]).text
    assert "Mind the <gap>." in text
    assert "Only 11 images were tested" in text
    assert "2 of the 11 tested files are also among the training images" in text
    assert "The model does not know 'new & strange'" in text


@pytest.mark.parametrize("kind", [np.asarray, Image.fromarray])
def test_images_in_memory_are_not_taken_for_training_images(
    classifier: CNNCodeClassifier, drawn: Drawn, kind: Any
) -> None:
    """They have no names by which to tell them apart."""

    def opened(paths: Sequence[Any]) -> list[Any]:
        return [kind(np.asarray(Image.open(path).convert("RGB"))) for path in paths]

    page = report(
        classifier,
        opened(drawn.test),
        drawn.test_labels,
        train_images=opened(drawn.train),
        train_labels=drawn.train_labels,
    )
    assert "among the training images" not in Page(page.html).text


# -- other models --------------------------------------------------------------


def test_several_labels(labeller: CNNCodeClassifier, drawn: Drawn) -> None:
    page = report(
        labeller,
        drawn.test,
        several_labels(drawn.test_labels),
        train_images=drawn.train,
        train_labels=several_labels(drawn.train_labels),
        label_names=["round", "filled", "odd"],
    )
    found, text = Page(page.html), Page(page.html).text
    expected = [
        "predictions" if s == "confusion" else s for s in SECTIONS if s != "trust"
    ]
    assert sections_of(found) == expected
    assert "Mean average precision" in text
    assert re.search(r"round 10 [\d.]+% ", text)
    # Decision values decide; the most frequent mistakes are those of swapped images.
    values = labeller.pipeline_.decision_function(drawn.test)
    wrong = ((values > 0) != several_labels(drawn.test_labels)).any(axis=1)
    assert f"{wrong.sum()} of 30 images." in text


def test_values(regressor: CNNCodeRegressor, drawn: Drawn) -> None:
    truth = brightness(drawn.test)
    page = report(
        regressor,
        drawn.test,
        truth,
        train_images=drawn.train,
        train_labels=brightness(drawn.train),
    )
    found, text = Page(page.html), Page(page.html).text
    expected = [
        "predictions" if s == "confusion" else s for s in SECTIONS if s != "trust"
    ]
    assert sections_of(found) == expected
    errors = np.abs(regressor.predict(drawn.test) - truth)
    assert f"Mean absolute error {errors.mean():.4g}" in text
    worst = drawn.test[int(errors.argmax())].split("/drawn0/")[1]
    first = page.html.split('<p class="name">')[1].split("</p>")[0]
    assert Page(first).text == worst


@needs_temperature
def test_an_onnx_file(
    classifier: CNNCodeClassifier, drawn: Drawn, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    to_onnx(classifier.pipeline_, path)
    page = report(
        OnnxClassifier(path),
        drawn.test,
        drawn.test_labels,
        train_images=drawn.train,
        train_labels=drawn.train_labels,
    )
    found, text = Page(page.html), Page(page.html).text
    left = [s for s in SECTIONS if s not in ("layers", "curve")]
    assert sections_of(found) == left
    assert "by the codes of the backbone cnncodes-mini, as the model gives none" in text
    assert "No ranking of layers and no learning curve" in text
    accuracy = np.mean(
        OnnxClassifier(path).predict(drawn.test) == np.array(drawn.test_labels)
    )
    assert f"Accuracy {100 * accuracy:.1f}%" in text


def test_a_search_without_probabilities() -> None:
    """Arrays are images too, and a grid search shows what it compared."""
    digits = load_digits()
    X, y = digits.images[:120] / 16, digits.target[:120]
    pipeline = make_pipeline(CNNCodeTransformer(norm="l2"), LinearSVC())
    grid = {"cnncodetransformer__layer": [-1, -3]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X[:90], y[:90])
    page = report(search, X[90:], y[90:])
    text = Page(page.html).text
    assert "layer -3" in text
    assert "No reliability diagram and no threshold" in text
    assert "No similar training images" in text
    assert re.search(r"image \d+", text)
    accuracy = search.score(X[90:], y[90:])
    assert f"Accuracy {100 * accuracy:.1f}%" in text


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["disc"] * 3, ValueError, "labels: expected one for each of 2 images, got 3"),
        (["cat", "dog"], ValueError, "labels: none is a class of the model"),
        ([["disc"], ["disc"]], ValueError, r"got an array of shape \(2, 1\)"),
    ],
)
def test_wrong_labels(
    classifier: CNNCodeClassifier,
    drawn: Drawn,
    labels: Any,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        report(classifier, drawn.test[:2], labels)


def test_what_cannot_predict(drawn: Drawn) -> None:
    with pytest.raises(TypeError, match="expected a fitted classifier or regressor"):
        report(CNNCodeTransformer(), drawn.test, drawn.test_labels)


# -- the object ----------------------------------------------------------------


def test_a_notebook_shows_it_in_a_frame(made: HTMLReport, tmp_path: Path) -> None:
    shown = made._repr_html_()
    assert re.match(r'<iframe title="Report" srcdoc="&lt;!DOCTYPE html&gt;', shown)
    assert "sandbox" in shown
    path = made.save(tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == made.html
    assert repr(made).startswith("HTMLReport of 0.")


def test_names_that_are_no_text(classifier: CNNCodeClassifier, tmp_path: Path) -> None:
    name = tmp_path / "caf\udce9.png"
    try:
        name.write_bytes(b"")
    except (OSError, UnicodeError):
        pytest.skip("the file system takes only names that are text")
    from PIL import Image

    Image.new("RGB", (60, 60), "red").save(str(name))
    page = report(classifier, [str(name)], ["disc"])
    page.save(tmp_path / "report.html")
    assert "caf?.png" in page.html


def test_what_to_install(
    classifier: CNNCodeClassifier, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sk-cnncodes\[report\]'"):
        report(classifier, drawn.test, drawn.test_labels)


def test_matplotlib_keeps_its_state(
    classifier: CNNCodeClassifier, drawn: Drawn
) -> None:
    """A report opens no figure and changes no setting of a notebook."""
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    report(classifier, drawn.test, drawn.test_labels)
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_templates_are_in_the_package() -> None:
    folder = files("sk_cnncodes.inspection.page") / "templates"
    assert {each.name for each in folder.iterdir()} == {
        *("audit.html", "findings.html", "foot.html", "head.html", "macros.html"),
        *("report.html", "style.css"),
    }


def test_intervals_are_those_of_groups(
    classifier: CNNCodeClassifier, drawn: Drawn
) -> None:
    groups = [number // 5 for number in range(30)]
    shown = {
        given is None: re.search(
            r"of 30 images; 95% interval ([\d.]+) to ([\d.]+)%",
            Page(
                report(classifier, drawn.test, drawn.test_labels, groups=given).html
            ).text,
        )
        for given in (None, groups)
    }
    widths = {}
    for alone, found in shown.items():
        assert found is not None
        widths[alone] = float(found[2]) - float(found[1])
    assert widths[False] > widths[True]
    with pytest.raises(ValueError, match="groups: expected one for each of 30 images"):
        report(classifier, drawn.test, drawn.test_labels, groups=[1])
