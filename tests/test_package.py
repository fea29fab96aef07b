"""The wheel contains the models and works without a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_contains_the_package_and_the_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "sk_cnncodes/models/catalogue.toml" in names
    assert "sk_cnncodes/models/cnncodes-mini.onnx" in names
    assert not [n for n in names if n.startswith(("tests/", "examples/", "models/"))]


def test_installed_wheel_transforms(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run(
        f"{sys.executable} -m pip install --no-deps --no-index --quiet "
        f"--disable-pip-version-check --target {target} {wheel}",
        shell=True,
        check=True,
        capture_output=True,
        timeout=300,
    )
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import numpy as np, sk_cnncodes\n"
        f"assert sk_cnncodes.__file__.startswith({str(target)!r})\n"
        "from sk_cnncodes.backbones.catalogue import MODELS\n"
        f"assert str(MODELS).startswith({str(target)!r})\n"
        "X = np.zeros((2, 9, 9, 3), np.uint8)\n"
        "print(sk_cnncodes.CNNCodeTransformer().fit_transform(X).shape)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert result.stdout.strip() == "(2, 800)"
