"""`--max-pixels` of every command that reads images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import invoke

BAD_IMAGES = 3


@pytest.mark.parametrize("command", ["embed", "similar", "predict"])
def test_max_pixels(
    command: str, photos: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    one = next(iter(sorted(photos.glob("china/*.jpg"))))
    arguments = {
        "embed": ("embed", one, "-o", tmp_path / "codes.npy"),
        "similar": ("similar", "cnncodes-mini", one, "--among", one),
        "predict": ("predict", models["svm"], one),
    }[command]
    for limit in ((), ("--max-pixels", "0"), ("--max-pixels", "1000000")):
        result = invoke(*arguments, *limit)
        assert result.exit_code == 0, result.stderr
    result = invoke(*arguments, "--max-pixels", "100")
    assert result.exit_code == (1 if command == "similar" else BAD_IMAGES)
    assert "Expected at most --max-pixels 100" in result.stderr + result.stdout
    assert "--max-pixels" in result.stderr + result.stdout


def test_max_pixels_of_an_exported_model(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("skl2onnx")
    import joblib

    from sk_cnncodes import to_onnx

    path = tmp_path / "model.onnx"
    to_onnx(joblib.load(models["svm"]), path)
    result = invoke("predict", path, photos, "--max-pixels", "100")
    assert result.exit_code == BAD_IMAGES
    assert result.stdout.count("--max-pixels 100") == 24


def test_max_pixels_of_benchmark(photos: Path) -> None:
    quick = ("--batch-size", "4", "--rounds", "1", "--max-pixels", "100")
    result = invoke("benchmark", "cnncodes-mini", photos, *quick)
    assert result.exit_code == 1
    assert "Expected at most --max-pixels 100" in result.stderr


def test_train_keeps_max_pixels_in_the_model(photos: Path, tmp_path: Path) -> None:
    import joblib

    path = tmp_path / "model.joblib"
    quick = ("train", photos, "-o", path, "--layer", "-1", "--head", "svm", "--cv", "3")
    assert "--max-pixels 100" in invoke(*quick, "--max-pixels", "100").stderr
    result = invoke(*quick, "--max-pixels", "0")
    assert result.exit_code == 0, result.stderr
    assert joblib.load(path)["codes"].max_pixels is None
