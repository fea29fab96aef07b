"""The public names: exactly `__all__`, typed, documented, and looked at for free."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sklearn

import sk_cnncodes

PACKAGE = Path(sk_cnncodes.__file__).parent
NAMES = sk_cnncodes.__all__
CALLABLES = [name for name in NAMES if callable(getattr(sk_cnncodes, name))]
# What has an example in its docstring; exceptions and plain records have none.
WITH_EXAMPLES = [
    *("CNNCodeTransformer", "CodeCache", "OnnxClassifier", "Preprocessing"),
    *("code_search", "code_union", "find_labelled_images", "layer_grid"),
    *("list_backbones", "load_backbone", "load_model", "rank_codes", "save_model"),
    *("to_onnx", "embed_to", "open_codes"),
]


def test_the_stub_names_what_the_package_has() -> None:
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    stated = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = {
        name: f"sk_cnncodes.{module}.{name}"
        for name, module in sk_cnncodes._MODULE_OF.items()
    }
    assert stated == loaded
    (listed,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    ]
    assert sorted(listed) == NAMES
    assert (PACKAGE / "py.typed").is_file()


def test_dir_shows_public_names_only() -> None:
    assert set(dir(sk_cnncodes)) == {*NAMES, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sk_cnncodes.nothing  # noqa: B018


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_name_says_that_it_is_of_the_package(name: str) -> None:
    """A saved model names its classes so, and files may move."""
    thing = getattr(sk_cnncodes, name)
    assert (thing.__module__, thing.__name__) == ("sk_cnncodes", name)
    assert pickle.loads(pickle.dumps(thing)) is thing


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_name_is_documented(name: str) -> None:
    thing = getattr(sk_cnncodes, name)
    text = inspect.getdoc(thing) or ""
    assert text
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return
    if inspect.isfunction(thing):
        assert "Returns\n-------" in text
        parameters = [
            "**" * (each.kind is each.VAR_KEYWORD) + each.name
            for each in inspect.signature(thing).parameters.values()
        ]
        assert not parameters or "Parameters\n----------" in text
        assert all(f"\n{each}" in text or f", {each}" in text for each in parameters)
    else:
        assert "Parameters\n----------" in text or "Attributes\n----------" in text


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    """pytest finds them by module, and a public class names another one."""
    thing = getattr(sk_cnncodes, name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [t for t in finder.find(thing, name, module=False) if t.examples]
    assert tests
    for test in tests:
        result = doctest.DocTestRunner(verbose=False).run(test)
        assert (result.failed, result.attempted) == (0, len(test.examples))


# -- looking at an object ----------------------------------------------------

LOOK = """
import inspect, json, pydoc, sys
from sklearn.base import clone
from sk_cnncodes import CNNCodeTransformer

def look(transformer):
    repr(transformer), str(transformer), transformer._repr_html_()
    for name in dir(transformer):
        hasattr(transformer, name)
    transformer.get_params(), clone(transformer), bool(transformer)
    pydoc.render_doc(transformer), inspect.signature(type(transformer))
    transformer.__sklearn_tags__(), transformer.__sklearn_is_fitted__()

look(CNNCodeTransformer())  # what Python and scikit-learn themselves read
seen = []
sys.addaudithook(
    lambda event, arguments: seen.append([event, str(arguments[0])])
    if event in ("open", "socket.connect", "socket.getaddrinfo", "sqlite3.connect")
    else None
)
look(CNNCodeTransformer("resnet50", cache="codes.sqlite3"))
print(json.dumps(seen))
"""


def test_looking_at_a_transformer_opens_nothing(tmp_path: Path) -> None:
    """`dir` of a transformer of an unknown backbone once began a download."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env=os.environ | {"SK_CNNCODES_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    opened: list[Any] = json.loads(done.stdout)
    own = str(Path(sklearn.__file__).parent)  # the style sheets of its displays
    assert [each for each in opened if not each[1].startswith(own)] == []
    assert list(tmp_path.iterdir()) == []
