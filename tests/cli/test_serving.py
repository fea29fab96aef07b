"""An engineer serves a model from the shell: a stream, a watched folder, folders."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from sk_cnncodes import load_model, read_model_card
from tests.cli.commands import interrupt, invoke, only_posix, start, wait_until
from tests.versions import needs_temperature

# A row comes within a few hundredths of a second; machines that run tests are busy.
GENEROUS = 2.0


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Path:
    return models["rbf"]


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))


def read_line(process: subprocess.Popen[str]) -> tuple[str, float]:
    """The next line of output, and the seconds that it took."""
    assert process.stdout is not None
    began = time.monotonic()
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    return line, time.monotonic() - began


def test_a_stream_is_answered_path_by_path(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "predict", model, "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    paths = [photos / "china" / "0001.jpg", photos / "flower" / "0002.jpg"]
    for number, path in enumerate([*paths, tmp_path / "missing.jpg", *paths]):
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        if number == 0:
            assert read_line(process)[0] == "path,label,probability,error\n"
        line, seconds = read_line(process)
        assert line.startswith(f"{path},{path.parent.name if number != 2 else ''},")
        assert number == 0 or seconds < GENEROUS  # the first loads the model
    process.stdin.writelines(f"{path}\n" for path in 50 * paths)
    printed, message = process.communicate(timeout=60)
    assert len(printed.splitlines()) == 100
    assert message.splitlines()[-1] == "1 image could not be read."
    assert process.returncode == 3


def test_nothing_is_printed_before_the_first_row(model: Path) -> None:
    result = invoke("predict", model, "-", given="")
    assert (result.exit_code, result.stdout) == (1, "")


@only_posix
def test_ctrl_c_ends_a_stream_that_waits(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "predict", model, "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(f"{photos / 'china' / '0001.jpg'}\n")
    process.stdin.flush()
    read_line(process)
    read_line(process)
    printed, message = interrupt(process)
    assert (process.returncode, printed) == (130, "")
    assert "Interrupted. The printed rows are complete." in message
    assert "Fatal" not in message
    assert "Traceback" not in message


@needs_temperature
def test_reject_and_top(model: Path, photos: Path, tmp_path: Path) -> None:
    card = read_model_card(model)
    assert card is not None
    point = card.threshold_for(0.9)
    noise = tmp_path / "noise.png"
    Image.effect_noise((120, 120), 90).convert("RGB").save(noise)
    result = invoke(
        "predict", model, photos / "china", noise, "--reject", "0.9", "--top", "5"
    )
    assert result.exit_code == 0
    assert f"below a probability of {point.threshold:.4f}. In training, " in (
        result.stderr
    )
    rows = rows_of(result.stdout)
    probabilities = load_model(model).predict_proba([row["path"] for row in rows])
    for row, certain in zip(rows, probabilities.max(axis=1), strict=True):
        assert float(row["probability"]) == pytest.approx(certain, abs=1e-5)
        is_unknown = float(row["probability"]) < round(point.threshold, 6)
        assert row["label"] == ("unknown" if is_unknown else row["best_label"])
        assert {row["best_label"], row["label2"]} == {"china", "flower"}
        both = float(row["probability"]) + float(row["probability2"])
        assert both == pytest.approx(1, abs=1e-5)


def test_a_plain_threshold(model: Path, photos: Path) -> None:
    result = invoke("predict", model, photos, "--reject-below", "1", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 24
    for row in rows:
        assert row["best_label"] in ("china", "flower")
        is_unknown = row["probability"] < 1
        assert row["label"] == ("unknown" if is_unknown else row["best_label"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reject", "95"], "expected a share above 0 and below 1, such as 0.95"),
        pytest.param(
            ["--reject", "0.999"],
            "images, and 1000 are needed",
            marks=needs_temperature,
        ),
        (["--reject", "0.9", "--reject-below", "0.5"], "not both"),
        (["--link"], "--link: expected --sort-into DIR"),
        ([], "expected IMAGES: files, folders or -; or --watch DIR"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, model: Path, photos: Path
) -> None:
    images = [photos] if options else []
    result = invoke("predict", model, *images, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())


def test_a_model_without_a_card(model: Path, photos: Path, tmp_path: Path) -> None:
    import joblib

    joblib.dump(load_model(model), tmp_path / "old.joblib")
    result = invoke("predict", tmp_path / "old.joblib", photos, "--reject", "0.9")
    assert result.exit_code == 2
    assert "does not say which probability gives which accuracy" in result.stderr
    result = invoke("predict", tmp_path / "old.joblib", photos, "--top", "2")
    assert result.exit_code == 0


def test_images_are_sorted_into_folders(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "in" / "other").mkdir(parents=True)
    for source, name in (("china/0001.jpg", "a.jpg"), ("flower/0002.jpg", "b.jpg")):
        shutil.copy(photos / source, tmp_path / "in" / name)
    shutil.copy(photos / "china" / "0003.jpg", tmp_path / "in" / "other" / "a.jpg")
    for summary in ("3 copies in", "0 copies in"):
        result = invoke(
            "predict", model, tmp_path / "in", "--sort-into", tmp_path / "out"
        )
        assert result.exit_code == 0
        assert summary in result.stderr
        out = tmp_path / "out"
        files = [p.relative_to(out).as_posix() for p in out.rglob("*.jpg")]
        assert sorted(files) == ["china/a-2.jpg", "china/a.jpg", "flower/b.jpg"]
    assert len(list((tmp_path / "in").rglob("*.jpg"))) == 3
    inside = invoke("predict", model, tmp_path / "in", "--sort-into", tmp_path / "in/x")
    assert inside.exit_code == 2
    assert not (tmp_path / "in" / "x").exists()


@only_posix
def test_a_watched_folder(model: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("inbox", "work"):
        (tmp_path / name).mkdir()
    rows, inbox = tmp_path / "work" / "rows.csv", tmp_path / "inbox"
    shutil.copy(photos / "flower" / "0001.jpg", inbox / "before.jpg")
    options = ("--watch", inbox, "-o", rows, "--sort-into", tmp_path / "sorted")

    def count() -> int:
        text = rows.read_text(encoding="utf-8") if rows.exists() else ""
        return len(rows_of(text[: text.rfind("\n") + 1]))

    for round_ in (1, 2):
        # The second time, rows are added to those of the first.
        process = start(tmp_path / "work", "predict", model, *options)
        assert process.stderr is not None
        started = f"Watching {str(inbox)!r}; Ctrl-C ends it.\n"
        assert process.stderr.readline() == started
        content = (photos / "china" / "0002.jpg").read_bytes() + bytes([round_])
        with open(inbox / f"slow{round_}.jpg", "wb") as slow:
            slow.write(content[:2000])
            slow.flush()
            shutil.copy(photos / "flower" / "0003.jpg", inbox / f"new{round_}.jpg")
            wait_until(process, lambda: count() == 2 * round_ - 1)  # noqa: B023
            slow.write(content[2000:])
        wait_until(process, lambda: count() == 2 * round_)  # noqa: B023
        printed, message = interrupt(process)
        assert (process.returncode, printed) == (130, "")
        assert f"Interrupted. The rows in {str(rows)!r} are complete." in message
        assert "Traceback" not in message
    found = rows_of(rows.read_text(encoding="utf-8"))
    assert [(Path(row["path"]).name, row["label"]) for row in found] == [
        ("new1.jpg", "flower"),
        ("slow1.jpg", "china"),
        ("new2.jpg", "flower"),
        ("slow2.jpg", "china"),
    ]
    sorted_files = {p.relative_to(tmp_path) for p in (tmp_path / "sorted").rglob("*.*")}
    assert sorted_files == {
        Path("sorted/flower/new1.jpg"),
        Path("sorted/china/slow1.jpg"),
        Path("sorted/flower/new2.jpg"),
        Path("sorted/china/slow2.jpg"),
    }
