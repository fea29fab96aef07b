"""Networks of the Hub: only what is asked for, pinned, checked, and found offline."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_html_repr

from sk_cnncodes import (
    BackboneError,
    CNNCodeTransformer,
    DownloadError,
    Preprocessing,
    PreprocessingError,
    download_backbone,
    load_backbone,
    load_model,
    save_model,
)
from sk_cnncodes.backbones import loading
from sk_cnncodes.backbones.hub_address import CHOICE, choose_file, parse_address
from tests import networks
from tests.cli.commands import invoke
from tests.conftest import run_python
from tests.hub_server import Hub, commit_of, running_hub

constants: Any = pytest.importorskip(
    "huggingface_hub.constants", reason="networks of the Hub need huggingface_hub"
)

ADDRESS = "hf://owner/net"
CONFIGURATION = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 36},
    "crop_size": {"height": 32, "width": 32},
}
TIMM = {"pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.9}}
# A search in worker processes; prints the number of different codes' lengths.
SEARCH = """
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sk_cnncodes import CNNCodeTransformer
rng = np.random.default_rng(0)
X = list(rng.integers(0, 255, (24, 40, 40, 3), dtype=np.uint8))
pipeline = make_pipeline(CNNCodeTransformer(n_jobs=1), LogisticRegression())
grid = {"cnncodetransformer__backbone": ["hf://owner/net", "hf://owner/other"]}
search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2, error_score="raise")
search.fit(X, np.arange(24) % 2)
print(len(search.cv_results_["mean_test_score"]))
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the repository owner/net, and empty caches."""
    with running_hub() as server:
        environment = {
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "SK_CNNCODES_HOME": str(tmp_path / "home"),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in ("SK_CNNCODES_OFFLINE", "SK_CNNCODES_BACKBONES", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        # It reads its variables when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        loading._check_once.cache_clear()
        server.add("owner/net", files())
        yield server


def network(seed: int = 0) -> onnx.ModelProto:
    model = networks.resnet()
    kernel = model.graph.initializer[0]
    scaled = onnx.numpy_helper.to_array(kernel) * np.float32(1 + seed)
    kernel.CopyFrom(onnx.numpy_helper.from_array(scaled, kernel.name))
    return model


def files(seed: int = 0, path: str = "onnx/model.onnx") -> dict[str, bytes]:
    """A repository as exports for the web have it."""
    return {
        path: network(seed).SerializeToString(),
        "preprocessor_config.json": json.dumps(CONFIGURATION).encode(),
        "config.json": b'{"model_type": "dinov2"}',
        "README.md": b"# A network",
        "onnx/model_quantized.onnx": b"not fetched",
        "pytorch_model.bin": b"not fetched",
    }


def external(folder: Path, location: str = "model.onnx_data") -> dict[str, bytes]:
    """A network whose weights are in a file of their own."""
    folder.mkdir()
    networks.save(
        network(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return files() | {
        "onnx/model.onnx": model.SerializeToString(),
        "onnx/model.onnx_data": (folder / "model.onnx_data").read_bytes(),
    }


def codes(backbone: Any, images: list[np.ndarray], **parameters: Any) -> np.ndarray:
    transformer = CNNCodeTransformer(backbone, cache=None, **parameters)
    return transformer.fit_transform(images[:4])


def cached_files(tmp_path: Path) -> list[str]:
    """Files of the snapshots in the Hub's cache."""
    found = (tmp_path / "hf" / "hub").glob("*/snapshots/*/**/*")
    return sorted(path.name for path in found if path.is_file())


# -- first and second use ------------------------------------------------------


def test_only_what_is_needed_is_fetched(
    hub: Hub, tmp_path: Path, photographs: list[np.ndarray]
) -> None:
    found = codes(ADDRESS, photographs)
    path = Path(networks.save(network(), tmp_path / "net.onnx"))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIGURATION))
    np.testing.assert_array_equal(found, codes(path, photographs))
    needed = ["config.json", "onnx/model.onnx", "preprocessor_config.json"]
    assert sorted(hub.fetched()) == needed
    cached = ["config.json", "model.onnx", "preprocessor_config.json"]
    assert cached_files(tmp_path) == cached


def test_the_second_use_asks_nobody(hub: Hub, photographs: list[np.ndarray]) -> None:
    first = codes(ADDRESS, photographs)
    hub.requests.clear()
    np.testing.assert_array_equal(codes(ADDRESS, photographs), first)
    assert hub.requests == []


@pytest.mark.parametrize("switch", ["SK_CNNCODES_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("has_pin", [True, False])
def test_offline(
    hub: Hub,
    tmp_path: Path,
    photographs: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    switch: str,
    has_pin: bool,
) -> None:
    """What is in the cache is used, also if it was fetched from another home folder."""

    def forbid() -> None:
        monkeypatch.setenv(switch, "1")
        if switch == "HF_HUB_OFFLINE":
            monkeypatch.setattr(constants, switch, True)

    with monkeypatch.context() as context:
        context.setenv("SK_CNNCODES_OFFLINE", "1")
        with pytest.raises(DownloadError, match="SK_CNNCODES_OFFLINE=1 forbids"):
            load_backbone(ADDRESS)
    first = codes(ADDRESS, photographs)
    hub.requests.clear()
    forbid()
    if not has_pin:
        monkeypatch.setenv("SK_CNNCODES_HOME", str(tmp_path / "another"))
    np.testing.assert_array_equal(codes(ADDRESS, photographs), first)
    assert download_backbone(ADDRESS).name == "model.onnx"
    with pytest.raises(DownloadError, match=f"{switch}=1 forbids fetching"):
        load_backbone("hf://owner/other")
    assert hub.requests == []


def test_variables_of_the_hubs_library_decide(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoint, cache and offline switch, in a process of its own."""
    program = f"""
import os
from sk_cnncodes import load_backbone
backbone = load_backbone({ADDRESS!r})
print(os.path.relpath(backbone.path, {str(tmp_path)!r}))
"""
    commit = hub.repositories["owner/net"].references["main"]
    expected = f"hf/hub/models--owner--net/snapshots/{commit}/onnx/model.onnx"
    assert expected in run_python(program).replace(os.sep, "/")
    hub.requests.clear()
    run_python(program, HF_HUB_OFFLINE="1")
    assert hub.requests == []


def test_looking_opens_nothing(hub: Hub, tmp_path: Path) -> None:
    transformer = CNNCodeTransformer(ADDRESS)
    pipeline = make_pipeline(transformer)
    repr(clone(pipeline))
    estimator_html_repr(pipeline)
    transformer.get_params()
    pickle.loads(pickle.dumps(transformer))
    assert hub.requests == []
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "hf").exists()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'sk-cnncodes\[hub\]'"):
        CNNCodeTransformer(ADDRESS).fit([np.zeros((40, 40, 3), np.uint8)])


# -- revisions -----------------------------------------------------------------


def test_a_fitted_transformer_stays_with_its_commit(
    hub: Hub, tmp_path: Path, photographs: list[np.ndarray]
) -> None:
    images = photographs[:4]
    fitted = CNNCodeTransformer(ADDRESS, cache=None).fit(images)
    repository = hub.repositories["owner/net"]
    commit = repository.references["main"]
    pinned = f"{ADDRESS}@{commit}/onnx/model.onnx"
    assert fitted.fitted_backbone_["address"] == pinned
    first = fitted.transform(images)
    save_model(fitted, tmp_path / "model.joblib")
    later = repository.push(files(seed=1))
    np.testing.assert_array_equal(fitted.transform(images), first)
    # A fit elsewhere gets the new one; the saved model gets its own, by its commit.
    for name in ("hf", "home"):
        (tmp_path / name).rename(tmp_path / f"{name}-elsewhere")
    elsewhere = CNNCodeTransformer(ADDRESS, cache=None).fit(images)
    assert later in elsewhere.fitted_backbone_["address"]
    assert np.abs(elsewhere.transform(images) - first).max() > 1e-3
    loaded = load_model(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.transform(images), first)


def test_download_asks_what_the_branch_is_now(hub: Hub) -> None:
    first = load_backbone(ADDRESS)
    later = hub.repositories["owner/net"].push(files(seed=1))
    assert load_backbone(ADDRESS) == first
    result = invoke("download", ADDRESS)
    assert result.exit_code == 0, result.output
    assert later in result.output
    assert load_backbone(ADDRESS).sha256 != first.sha256


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", "refs%2Fpr%2F1", "commit"])
def test_revisions(hub: Hub, revision: str) -> None:
    repository = hub.repositories["owner/net"]
    old = repository.references["main"]
    repository.references |= {"v1": old, "refs/pr/1": old}
    repository.push(files(seed=1))
    at = old if revision == "commit" else revision
    for address in (f"{ADDRESS}@{at}", f"{ADDRESS}@{at}/onnx/model.onnx"):
        assert old in str(load_backbone(address).path)


def test_a_saved_model_refuses_another_file(
    hub: Hub,
    tmp_path: Path,
    photographs: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = CNNCodeTransformer(ADDRESS, cache=None).fit(photographs[:2])
    path = load_backbone(ADDRESS).path
    save_model(fitted, tmp_path / "model.joblib")
    blob = path.resolve()
    blob.write_bytes(network(seed=2).SerializeToString())
    loaded = load_model(tmp_path / "model.joblib")
    refusal = "not the one this transformer was fitted"
    with monkeypatch.context() as context:
        context.setenv("SK_CNNCODES_OFFLINE", "1")
        with pytest.raises(BackboneError, match=refusal):
            loaded.transform(photographs[:2])
    with pytest.raises(DownloadError, match="changed after it was fetched"):
        load_backbone(ADDRESS)
    # The Hub has the right one, and then another.
    download_backbone(ADDRESS)
    loaded.transform(photographs[:2])
    repository = hub.repositories["owner/net"]
    repository.commits[repository.references["main"]] = files(seed=2)
    for name in ("hf", "home"):
        (tmp_path / name).rename(tmp_path / f"{name}-elsewhere")
    with pytest.raises(BackboneError, match=refusal):
        loaded.transform(photographs[:2])


def test_a_stored_network_needs_no_hub(
    hub: Hub, tmp_path: Path, photographs: list[np.ndarray]
) -> None:
    fitted = CNNCodeTransformer(ADDRESS, cache=None).fit(photographs[:2])
    first = fitted.transform(photographs[:2])
    save_model(fitted, tmp_path / "model.joblib", store_backbone=True)
    (tmp_path / "hf").rename(tmp_path / "gone")
    hub.requests.clear()
    loaded = load_model(tmp_path / "model.joblib")
    np.testing.assert_allclose(loaded.transform(photographs[:2]), first, atol=1e-6)
    assert hub.requests == []


# -- which file ----------------------------------------------------------------


@pytest.mark.parametrize("position", range(len(CHOICE)))
def test_the_usual_names_in_their_order(position: int) -> None:
    names = ["onnx/model_fp16.onnx", "onnx/text_model.onnx", *CHOICE[position:]]
    assert choose_file(parse_address(ADDRESS), names) == CHOICE[position]


def test_the_only_network_of_a_repository(hub: Hub) -> None:
    only = {"weights/best.onnx": network().SerializeToString()}
    hub.add("owner/only", {"weights/preprocessor_config.json": b"{}"} | only)
    configuration = json.dumps(CONFIGURATION).encode()
    hub.repositories["owner/only"].push(
        only | {"weights/preprocessor_config.json": configuration}
    )
    assert load_backbone("hf://owner/only").path.name == "best.onnx"


def test_it_lists_the_files_if_it_is_unclear(hub: Hub) -> None:
    content = network().SerializeToString()
    hub.add("owner/many", {"a.onnx": content, "b.onnx": content})
    with pytest.raises(BackboneError, match=r"'hf://owner/many/a.onnx': a.onnx, b.onn"):
        load_backbone("hf://owner/many")
    with pytest.raises(BackboneError, match="no such file.*a.onnx, b.onnx"):
        load_backbone("hf://owner/many/c.onnx")
    hub.add("owner/none", {"model.safetensors": b""})
    with pytest.raises(BackboneError, match="has no ONNX file"):
        load_backbone("hf://owner/none")
    assert hub.fetched() == []


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://owner",
        "hf://owner/",
        "hf://owner/net/",
        "hf://owner/net@",
        "hf://../net",
        "hf://owner/..",
        "hf://owner/net/../../x.onnx",
        "hf://owner/net/a\\b.onnx",
        "hf://owner/net@..%2F..%2Fx",
        "hf://owner/net@main/model.bin",
        "hf://owner/net/C:/x.onnx",
    ],
)
def test_malformed_addresses_ask_nobody(hub: Hub, address: str) -> None:
    with pytest.raises(BackboneError, match="Expected hf://owner/name"):
        load_backbone(address)
    assert hub.requests == []


def test_a_path_is_no_address(hub: Hub) -> None:
    with pytest.raises(BackboneError, match="no such file"):
        load_backbone(Path(ADDRESS))
    assert hub.requests == []


# -- preprocessing ---------------------------------------------------------------


def test_preprocessing_of_timm(hub: Hub) -> None:
    model = {"model.onnx": network().SerializeToString()}
    hub.add("owner/timm", model | {"config.json": json.dumps(TIMM).encode()})
    backbone = load_backbone("hf://owner/timm")
    assert backbone.preprocessing.crop_size == (32, 32)
    assert backbone.preprocessing_origin.endswith("config.json'")


def test_without_a_configuration(hub: Hub, plain: Preprocessing) -> None:
    hub.add("owner/bare", {"model.onnx": network().SerializeToString()})
    with pytest.raises(PreprocessingError, match="its preprocessing is not known"):
        load_backbone("hf://owner/bare")
    assert load_backbone("hf://owner/bare", plain).preprocessing == plain
    result = invoke("layers", "hf://owner/bare")
    assert result.exit_code == 0, result.output
    assert invoke("download", "hf://owner/bare").exit_code == 0


# -- external data ---------------------------------------------------------------


def test_external_data(hub: Hub, tmp_path: Path, photographs: list[np.ndarray]) -> None:
    hub.add("owner/large", external(tmp_path / "export"))
    found = codes("hf://owner/large", photographs)
    np.testing.assert_allclose(found, codes(ADDRESS, photographs), atol=1e-6)
    assert "onnx/model.onnx_data" in hub.fetched()
    backbone = load_backbone("hf://owner/large")
    # As a path of the cache too, where names are links to blobs.
    preprocessing = backbone.preprocessing
    again = codes(backbone.path, photographs, preprocessing=preprocessing)
    np.testing.assert_array_equal(again, found)
    # The digest is that of the same files elsewhere.
    for name in ("model.onnx", "model.onnx_data"):
        source = backbone.path.with_name(name)
        (tmp_path / name).write_bytes(source.read_bytes())
    copy = load_backbone(tmp_path / "model.onnx", preprocessing)
    assert copy.sha256 == backbone.sha256


@pytest.mark.parametrize(
    "location", ["../../x_data", "/etc/passwd", "missing_data", "..\\x_data"]
)
def test_hostile_locations_of_external_data(
    hub: Hub, tmp_path: Path, location: str
) -> None:
    content = external(tmp_path / "export", location)
    hub.add("owner/hostile", content | {"../../x_data": b"", "../x_data": b""})
    with pytest.raises(BackboneError, match="no file in its folder of the repository"):
        load_backbone("hf://owner/hostile")
    assert hub.fetched() == ["onnx/model.onnx"]


def test_a_hostile_name_of_the_network(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/hostile", {"../../../x.onnx": network().SerializeToString()})
    with pytest.raises(BackboneError, match="leads out of the repository"):
        load_backbone("hf://owner/hostile")
    assert hub.fetched() == []


@pytest.mark.parametrize("target", ["secret", "models--a--b/secret", "blobs-not/x"])
def test_links_out_of_the_blobs_are_refused(
    tmp_path: Path, plain: Preprocessing, photographs: list[np.ndarray], target: str
) -> None:
    """Also in a folder that looks like the Hub's cache."""
    content = external(tmp_path / "export")
    snapshot = tmp_path / "models--a--b" / "snapshots" / commit_of(1)
    snapshot.mkdir(parents=True)
    (snapshot / "model.onnx").write_bytes(content["onnx/model.onnx"])
    secret = tmp_path / target
    secret.parent.mkdir(exist_ok=True)
    secret.write_bytes(content["onnx/model.onnx_data"])
    (snapshot / "model.onnx_data").symlink_to(secret)
    with pytest.raises(BackboneError, match="cannot be read"):
        codes(snapshot / "model.onnx", photographs, preprocessing=plain)


# -- faults ------------------------------------------------------------------------


def test_cut_transfers_are_resumed(hub: Hub) -> None:
    hub.cuts = 1
    with contextlib.suppress(DownloadError):  # huggingface_hub 1.0 does not resume
        load_backbone(ADDRESS)
    assert load_backbone(ADDRESS).layer(-1).n_channels > 0
    assert hub.fetched().count("onnx/model.onnx") >= 2


def test_cut_transfers_leave_nothing_usable(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's tries
    hub.cuts = 1000
    with pytest.raises(DownloadError, match="no connection, or it broke off"):
        load_backbone(ADDRESS)
    assert cached_files(tmp_path) == []
    hub.cuts = 0
    assert load_backbone(ADDRESS).layer(-1).n_channels > 0


def test_other_bytes_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.lies = True
    with pytest.raises(DownloadError, match="not the one that the Hub states"):
        load_backbone(ADDRESS)
    assert cached_files(tmp_path) == []
    hub.lies = False
    assert load_backbone(ADDRESS).layer(-1).n_channels > 0


def test_files_without_a_digest_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.no_digests = True
    with pytest.raises(DownloadError, match="states no digest of .*'onnx/model.onnx'"):
        load_backbone(ADDRESS)
    assert (cached_files(tmp_path), hub.fetched()) == ([], [])


def test_private_and_gated_repositories(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/gated", files()).gated = True
    with pytest.raises(DownloadError, match=r"gated. Accept its terms at .*/owner/gat"):
        load_backbone("hf://owner/gated")
    hub.add("owner/private", files()).private = True
    with pytest.raises(DownloadError, match="or it is private.*hf auth login"):
        load_backbone("hf://owner/private")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(DownloadError, match="refuses access .HTTP status 401"):
        load_backbone("hf://owner/private")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    load_backbone("hf://owner/private")
    # The token is for the Hub alone, not for its storage.
    tokens = {t for _, path, t in hub.requests if path.startswith("/storage/")}
    assert tokens == {None}


@pytest.mark.parametrize(
    ("status", "said"), [(403, "refuses access"), (429, "too often"), (500, "500")]
)
def test_statuses(hub: Hub, status: int, said: str) -> None:
    hub.status = status
    with pytest.raises(DownloadError, match=said) as caught:
        load_backbone(ADDRESS)
    assert caught.value.__notes__


def test_missing_repository_and_revision(hub: Hub) -> None:
    with pytest.raises(DownloadError, match="no repository 'owner/typo'"):
        load_backbone("hf://owner/typo")
    with pytest.raises(DownloadError, match="no revision 'v9'"):
        load_backbone(f"{ADDRESS}@v9")


def test_no_server(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="no connection") as caught:
        load_backbone(ADDRESS)
    assert "HF_ENDPOINT" in str(caught.value)


def test_a_network_that_fails_the_check(hub: Hub) -> None:
    model = network()
    weights = model.graph.initializer[0]
    dims = tuple(weights.dims)
    broken = np.full(dims, np.nan, np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(broken, weights.name))
    hub.add("owner/broken", files() | {"onnx/model.onnx": model.SerializeToString()})
    with pytest.raises(DownloadError, match="failed the check on first use.*finite"):
        load_backbone("hf://owner/broken")


def test_a_damaged_pin_is_made_again(hub: Hub, tmp_path: Path) -> None:
    first = load_backbone(ADDRESS)
    (pin,) = (tmp_path / "home" / "hub").glob("*.json")
    for damage in ("", "[]", "{", '{"address": "hf://owner/net", "commit": 1}'):
        pin.write_text(damage)
        assert load_backbone(ADDRESS) == first
        assert json.loads(pin.read_text())["checked"] == first.sha256


def test_a_home_that_cannot_be_written(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SK_CNNCODES_HOME", str(tmp_path / "file" / "home"))
    assert load_backbone(ADDRESS) == load_backbone(ADDRESS)


# -- several at once -----------------------------------------------------------------


def test_threads_fetch_once(hub: Hub) -> None:
    found = list[str]()

    def load() -> None:
        found.append(load_backbone(ADDRESS).sha256)

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert hub.fetched().count("onnx/model.onnx") == 1


def test_a_search_over_several_repositories(hub: Hub) -> None:
    hub.add("owner/other", files(seed=1))
    assert run_python(SEARCH).startswith("2")
    storage = [path for _, path, _ in hub.requests if path.startswith("/storage/")]
    assert len(set(storage)) == 6
    assert len(storage) == 6


# -- the command -----------------------------------------------------------------------


def test_commands(hub: Hub, tmp_path: Path, photographs: list[np.ndarray]) -> None:
    from PIL import Image

    for number, image in enumerate(photographs[:8]):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    result = invoke("layers", ADDRESS)
    assert result.exit_code == 0, result.output
    assert "-1" in result.output
    output = tmp_path / "codes.npz"
    images = tmp_path / "images"
    result = invoke("embed", images, "-o", output, "--backbone", ADDRESS)
    assert result.exit_code == 0, result.output
    model = tmp_path / "model.joblib"
    result = invoke("train", images, "-o", model, "--backbone", ADDRESS)
    assert result.exit_code == 0, result.output
    result = invoke("layers", "hf://owner/typo")
    assert result.exit_code == 1
    assert "no repository 'owner/typo'" in result.output
