"""The house: floors, and who may import whom. `CONTRIBUTING.md` draws it."""

from __future__ import annotations

import ast
import graphlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "sk_cnncodes"
# Each folder, and the folders that it may import.
FLOORS: dict[str, set[str]] = {"base": set()}
FLOORS["graphs"] = {"base"}
FLOORS["images"] = {"base"}
FLOORS["engines"] = {"base"}
FLOORS["datasets"] = {"images", "base"}
FLOORS["cache"] = {"base"}
FLOORS["layers"] = {"graphs", "base"}
FLOORS["backbones"] = {"layers", "images", "engines", "graphs", "base"}
FLOORS["codes"] = {"backbones", "cache", *FLOORS["backbones"]}
FLOORS["ranking"] = {"codes", *FLOORS["codes"]}
FLOORS["heads"] = {"ranking", *FLOORS["ranking"]}
FLOORS["tuning"] = {"heads", *FLOORS["heads"]}
FLOORS["export"] = {"tuning", "heads", *FLOORS["heads"]}
FLOORS["inspection"] = {"export", "datasets", *FLOORS["export"]}
FLOORS["scale"] = {"export", "datasets", *FLOORS["export"]}
FLOORS["cli"] = {"inspection", "scale", *FLOORS["inspection"]}
# Modules beside the folders that all may import.
ROOT = {"_version"}

# Imports inside of functions. They keep the start of a command short; `OnnxClassifier`
# free of scikit-learn and onnx; and `import sk_cnncodes` as fast as it is. Nothing else
# is imported late.
LATE_PACKAGES = {
    *("onnx", "onnxruntime", "openvino", "skl2onnx", "skops", "torch"),
    *("PIL", "numpy", "sklearn", "joblib", "pandas", "pyarrow", "matplotlib", "tqdm"),
    *("jinja2", "umap", "usearch"),
    *("pooch", "requests", "filelock", "multiprocessing", "fsspec", "urllib3"),
    *("http", "lance", "ray"),
}
LATE_MODULES = {
    "cli.audit": {"codes.transformer", "inspection.audit"},
    "cli.backbones": {
        *("backbones.loading", "backbones.code_graph", "layers.multiply_adds"),
    },
    "cli.benchmark": {"cli.measurement"},
    "cli.diagnosis": {"codes.sessions"},
    "cli.doctor": {"cli.diagnosis"},
    "cli.embed": {
        *("codes.transformer", "images.addresses", "images.remote"),
        *("scale.embed", "scale.manifest", "scale.remote_paths", "scale.sources.local"),
    },
    "cli.common.held_out": {"inspection.intervals", "inspection.reliability"},
    "cli.common.pages": {
        *("codes.transformer", "inspection.audit", "inspection.predicting"),
        "inspection.page.report",
    },
    "cli.evaluate": {"inspection.predicting"},
    "cli.common.fine_tuning": {
        *("backbones.loading", "ranking.scoring"),
        *("tuning.estimators", "tuning.fitting", "tuning.frozen", "tuning.tail"),
        "tuning.validation",
    },
    "cli.common.tuning": {
        *("export.model_card", "inspection.tuning_display", "ranking.ranked_codes"),
    },
    "cli.common.models": {"cache.code_cache", "codes.persistence", "codes.saving"},
    "cli.serving.predictor": {
        *("export.card_files", "export.loading", "export.onnx_classifier"),
    },
    "cli.serving.sources": {"images.decode"},
    "cli.rank": {
        *("codes.transformer", "ranking.advice", "ranking.layer_codes"),
        *("ranking.ranked_codes", "ranking.rank_codes"),
    },
    "cli.common.copies": {
        *("inspection.audit", "inspection.duplicates", "ranking.layer_codes"),
    },
    "cli.common.report": {
        *("heads.presets", "inspection.intervals", "ranking.ranked_codes"),
    },
    "cli.similar": {
        *("base.exceptions", "codes.transformer"),
        *("export.loading", "export.onnx_classifier"),
        *("scale.index", "scale.index_file", "scale.manifest", "scale.shards"),
    },
    "cli.train": {
        *("codes.transformer", "export.model_card", "export.pipeline"),
        *("export.saving", "heads.code_estimators", "heads.presets"),
        *("ranking.layer_codes",),
    },
    "export.model_card": {"heads.presets"},
    # Modules that import torch.
    "tuning.fitting": {"tuning.run"},
    "tuning.tail": {"tuning.interpreter.module"},
    "engines.execution": {"engines.openvino"},
    "engines.session": {
        *("engines.openvino", "engines.precision", "engines.quantisation"),
    },
}


class Import(NamedTuple):
    """An import of a module: by whom, of what, and whether inside of a function."""

    importer: str
    imported: str
    late: bool
    only_for_types: bool


def modules(package: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names below it; "" is itself."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports_of(name: str, path: Path, known: set[str]) -> Iterator[Import]:
    """All imports of a module; those of the package by their names below it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, functions)
        for node in ast.walk(function)
    }
    for_types = {
        id(node)
        for condition in ast.walk(tree)
        if isinstance(condition, ast.If)
        and ast.unparse(condition.test) == "TYPE_CHECKING"
        for node in ast.walk(condition)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            found = full
            if full.partition(".")[0] == "sk_cnncodes":
                below = full.removeprefix("sk_cnncodes").removeprefix(".")
                parts = below.split(".")
                tries = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
                found = "." + next((each for each in tries if each in known), "")
            yield Import(name, found, id(node) in late, id(node) in for_types)


def all_imports(package: Path) -> list[Import]:
    found = modules(package)
    return [i for name, path in found.items() for i in imports_of(name, path, {*found})]


def broken_floors(package: Path) -> list[str]:
    """Imports that go up or sideways, those inside of functions included."""
    broken = []
    for each in all_imports(package):
        folder = each.importer.partition(".")[0]
        if not each.imported.startswith(".") or folder not in FLOORS:
            continue  # another package; the files beside the folders
        target = each.imported[1:]
        if target == "" and folder == "cli":
            continue  # the public names
        other = target.partition(".")[0]
        if other not in {folder} | FLOORS[folder] | ROOT:
            broken.append(f"{each.importer} imports {target or 'sk_cnncodes'}")
    return broken


def test_no_import_goes_up() -> None:
    assert broken_floors(PACKAGE) == []


def test_each_folder_is_on_a_floor() -> None:
    folders = {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    assert folders == set(FLOORS)


@pytest.mark.parametrize(("low", "high"), [("graphs", "layers"), ("base", "cli")])
@pytest.mark.parametrize("late", [False, True])
def test_an_import_upwards_is_found(
    tmp_path: Path, low: str, high: str, late: bool
) -> None:
    copied = tmp_path / "sk_cnncodes"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    module = next(path for path in sorted((copied / low).glob("[a-z]*.py")))
    line = f"from sk_cnncodes import {high}\n"
    added = f"\n\ndef late() -> None:\n    {line}" if late else f"\n{line}"
    module.write_text(module.read_text(encoding="utf-8") + added, encoding="utf-8")
    (found,) = broken_floors(copied)
    assert found == f"{low}.{module.stem} imports {high}"


def test_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for each in all_imports(PACKAGE):
        if each.imported.startswith("."):
            graph.setdefault(each.importer, set()).add(each.imported[1:])
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_late_imports_are_those_named_above() -> None:
    packages, late_modules = set[str](), dict[str, set[str]]()
    for each in all_imports(PACKAGE):
        if not each.late:
            continue
        if each.imported.startswith("."):
            late_modules.setdefault(each.importer, set()).add(each.imported[1:])
        else:
            packages.add(each.imported.partition(".")[0])
    assert packages <= LATE_PACKAGES
    assert late_modules == LATE_MODULES


def test_imports_for_types_are_of_what_may_be_missing_or_is_below() -> None:
    """Otherwise a circle could hide behind TYPE_CHECKING."""
    for each in all_imports(PACKAGE):
        if each.only_for_types and each.imported.startswith("."):
            assert each.importer.startswith("cli."), each


def test_rooms_are_small() -> None:
    long = {
        name: lines
        for name, path in modules(PACKAGE).items()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert long == {}
    for folder in FLOORS:
        rooms = [p for p in (PACKAGE / folder).glob("*.py") if p.stem != "__init__"]
        assert len(rooms) <= 16, folder


@pytest.mark.parametrize("folder", FLOORS)
def test_each_folder_says_what_it_knows(folder: str) -> None:
    source = (PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source))
    assert text is not None
    assert len(text.splitlines()) >= 3
