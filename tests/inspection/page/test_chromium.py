"""Pages in headless Chromium: no fault, no request, links that lead, access for all."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from sk_cnncodes import CNNCodeClassifier, CNNCodeRegressor, audit, report
from sk_cnncodes.inspection.page.report import audit_page
from tests.inspection.page.chromium import Browser
from tests.inspection.page.conftest import Drawn, brightness, several_labels

KINDS = ("classification", "multilabel", "regression", "audit")
PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="module")
def pages(
    classifier: CNNCodeClassifier,
    labeller: CNNCodeClassifier,
    regressor: CNNCodeRegressor,
    drawn: Drawn,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A page of each kind, with everything that one can have."""
    folder = tmp_path_factory.mktemp("pages")
    models: dict[str, Any] = {
        "classification": (classifier, list),
        "multilabel": (labeller, several_labels),
        "regression": (regressor, None),
    }
    audited = audit(drawn.train + drawn.test, drawn.train_labels + drawn.test_labels)
    found = {"audit": audit_page(audited, "Audit").save(folder / "audit.html")}
    for kind, (model, read) in models.items():
        labels = [
            brightness(paths) if read is None else read(given)
            for paths, given in (
                (drawn.test, drawn.test_labels),
                (drawn.train, drawn.train_labels),
            )
        ]
        page = report(
            model,
            drawn.test,
            labels[0],
            train_images=drawn.train,
            train_labels=labels[1],
            warnings=["A warning."],
            audit=audited,
            next_commands=[("Predict", "sk-cnncodes predict model.joblib photos")],
        )
        found[kind] = page.save(folder / f"{kind}.html")
    return found


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_sound(
    chromium: Browser, pages: dict[str, Path], axe: str, kind: str, width: int
) -> None:
    """No message, no request, no fault of accessibility, nothing beside the screen."""
    address = pages[kind].as_uri()
    chromium.open(address, width)
    assert chromium.requests == [address]
    assert chromium.messages == []
    assert chromium.run("document.documentElement.scrollWidth") <= width
    sizes = chromium.run(
        "[...document.querySelectorAll('main > section')].map(s => [s.id, "
        "s.getBoundingClientRect().height])"
    )
    assert len(sizes) >= (5 if kind == "audit" else 11)
    assert [name for name, height in sizes if height < 40] == []
    chromium.run(axe)
    faults = json.loads(
        chromium.run(
            "axe.run(document, {resultTypes: ['violations']}).then(found => "
            "JSON.stringify(found.violations.map(v => [v.id, v.impact, "
            "v.nodes[0].html, v.nodes.length])))"
        )
    )
    assert faults == []


def test_a_fault_would_be_seen(chromium: Browser, axe: str, tmp_path: Path) -> None:
    """What the test above asserts can fail: a script, a request, a missing text."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>x</title><script>console.log('here')</script>"
        "<img src='other.png'><p style='color:#bbb;background:#fff'>pale</p>"
    )
    chromium.open(page.as_uri())
    assert chromium.requests[1:] == [(tmp_path / "other.png").as_uri()]
    assert any("here" in message for message in chromium.messages)
    chromium.run(axe)
    found = chromium.run("axe.run().then(f => f.violations.map(v => v.id).join())")
    assert {"image-alt", "color-contrast", "html-has-lang"} <= {*found.split(",")}


def test_a_cell_of_the_matrix_leads_to_its_images(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    """By keyboard too; right predictions are hidden until then."""
    chromium.open(pages["classification"].as_uri())
    for cell in (".matrix td[class^=w] a", ".matrix td[class^=c] a"):
        anchor = chromium.run(f"document.querySelector('{cell}').hash.slice(1)")
        count = int(chromium.run(f"document.querySelector('{cell}').textContent"))
        chromium.run(f"document.querySelector('{cell}').focus()")
        chromium.press("Enter")
        chromium.run("new Promise(done => setTimeout(done, 200))")
        assert chromium.run("location.hash.slice(1)") == anchor
        seen = chromium.run(
            f"""(() => {{
                const cell = document.getElementById("{anchor}");
                const box = cell.getBoundingClientRect();
                const images = [...cell.querySelectorAll("[role=img]")];
                const painted = images.filter(image => {{
                    const style = getComputedStyle(image);
                    return style.backgroundImage.startsWith('url("data:image/')
                        && image.getBoundingClientRect().width > 40;
                }});
                return [box.top >= 0 && box.top < innerHeight, painted.length];
            }})()"""
        )
        assert seen == [True, count]


def test_points_of_the_map_show_their_image(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    """To the pointer and to the keyboard."""
    chromium.open(pages["classification"].as_uri())
    shown = (
        "[...document.querySelectorAll('.map .pop')]"
        ".filter(each => each.getBoundingClientRect().width > 0).length"
    )
    assert chromium.run(shown) == 0
    chromium.run("document.querySelector('.map a').focus()")
    assert chromium.run(shown) == 1
    chromium.run("document.activeElement.blur()")
    x, y = chromium.run(
        """(() => {
            const point = document.querySelector(".map .train");
            point.scrollIntoView({block: "center"});
            const box = point.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        })()"""
    )
    chromium.hover(x, y)
    assert chromium.run(shown) == 1


def test_it_is_printed(
    chromium: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    """With thumbnails and colours, without what leads elsewhere."""
    chromium.open(pages["classification"].as_uri())
    chromium.call("Emulation.setEmulatedMedia", media="print")
    styles = chromium.run(
        "[getComputedStyle(document.querySelector('nav')).display, "
        "getComputedStyle(document.querySelector('.t')).printColorAdjust]"
    )
    chromium.call("Emulation.setEmulatedMedia", media="")
    assert styles == ["none", "exact"]
    chromium.pdf(tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Subtype /Image") > 20


def test_links_lead_inside_of_a_notebook(
    chromium: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    """A frame without an address of its own, as notebooks make it."""
    from sk_cnncodes import HTMLReport

    html = pages["classification"].read_text(encoding="utf-8")
    page = tmp_path / "notebook.html"
    frame = HTMLReport(html)._repr_html_()
    page.write_text(f"<!DOCTYPE html><title>x</title>{frame}", encoding="utf-8")
    chromium.open(page.as_uri())
    assert chromium.messages == []
    assert chromium.requests == [page.as_uri()]
    with chromium.frame():
        chromium.run("document.querySelector('nav [href=\"#images\"]').click()")
        time.sleep(0.3)  # no script runs in the frame, nor a timer
        place = "document.getElementById('images').getBoundingClientRect().top"
        assert chromium.run("location.href") == "about:srcdoc#images"
        assert -1 < chromium.run(place) < 100
