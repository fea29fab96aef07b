"""Loading: from a name or a path to a Backbone with its preprocessing."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.catalogue import (
    CatalogueRow,
    bundled_file,
    find_row,
    find_row_by_digest,
    list_backbones,
)
from sk_cnncodes.backbones.download import obtain_file
from sk_cnncodes.backbones.first_use import check_network
from sk_cnncodes.backbones.hub import HubFile, obtain_hub_file
from sk_cnncodes.backbones.hub_address import is_hub_address
from sk_cnncodes.base.exceptions import BackboneError, PreprocessingError
from sk_cnncodes.base.files import file_sha256, working_folder
from sk_cnncodes.base.forks import import_fork_safe
from sk_cnncodes.base.public import public
from sk_cnncodes.graphs.reading import digest_with_data, read_outline
from sk_cnncodes.graphs.view import value_shape
from sk_cnncodes.images.preprocessing import METADATA_KEY, Preprocessing, json_object
from sk_cnncodes.images.preprocessing_formats import (
    CONFIGURATION_FILES,
    configuration_folders,
    read_huggingface,
    read_timm,
)
from sk_cnncodes.layers.typed_graph import image_input

if TYPE_CHECKING:
    import onnx

T = TypeVar("T")


@public
def download_backbone(name: str, progress: bool | None = None) -> Path:
    """Download the file of a known backbone, unless it is already there.

    Parameters
    ----------
    name : str
        Its name in the catalogue, or an alias; or an address of the Hugging Face Hub,
        such as ``"hf://onnx-community/dinov2-small"``. The Hub is then asked what the
        address stands for now.
    progress : bool or None, default=None
        Whether to show a progress bar; None shows one on a terminal.

    Returns
    -------
    Path
        Path of the file.

    Raises
    ------
    BackboneError
        If no backbone has this name.
    DownloadError
        If the file is missing and cannot be downloaded, or fails its check.
    ImportError
        If an address of the Hub needs huggingface_hub, which is not installed.
    """
    if is_hub_address(name):
        found = obtain_hub_file(name, newest=True, progress=progress)
        with suppress(PreprocessingError):  # which load_backbone can be given
            _load(found.path, None, found)
        return found.path
    row = find_row(name)
    if row is None:
        raise BackboneError(
            f"backbone={name!r}: not in the catalogue. Expected {_similar_names(name)}."
        )
    return bundled_file(row) if row.bundled else obtain_file(row, progress)


def _similar_names(name: str) -> str:
    """Similar names of known backbones, for a message."""
    rows = list_backbones()
    names = [each for row in rows for each in (row.name, *row.aliases)]
    close = difflib.get_close_matches(name.strip().lower(), names, n=4)
    nearest = " or ".join(repr(each) for each in close or [rows[0].name])
    return f"a name in list_backbones(), such as {nearest}"


@public
def load_backbone(
    name_or_path: str | os.PathLike[str],
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
) -> Backbone:
    """Load a backbone and its preprocessing.

    Parameters
    ----------
    name_or_path : str or path-like
        The name or an alias of a known backbone, such as ``"cnncodes-mini"`` or
        ``"resnet50"``, or the path of an ONNX file. A string that is a known name is
        never read as a path. If a file has the same name, a warning is issued; use
        ``"./resnet50"`` or a `pathlib.Path` to load the file. Or an address of the
        Hugging Face Hub: ``"hf://owner/name"``, ``"hf://owner/name@revision"`` or
        ``"hf://owner/name/path/file.onnx"``.
    preprocessing : Preprocessing, dict or None, default=None
        None takes the first of: the file's own metadata, the catalogue's row for the
        file's SHA-256, and a Hugging Face `processor_config.json` or
        `preprocessor_config.json` or a timm `config.json` in the same folder, or in the
        folder above if this one is called ``onnx``. Keys that such a file leaves out
        have the defaults of its own library and class.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If there is no such backbone, or the file is not an ONNX image network.
    DownloadError
        If the file of a known backbone is missing and cannot be downloaded.
    ImportError
        If an address of the Hub needs huggingface_hub, which is not installed.
    PreprocessingError
        If no preprocessing is known for the file.

    Notes
    -----
    The file of a known backbone is searched for in the package and in the home folder;
    otherwise it is downloaded to the home folder. The home folder is
    `SK_CNNCODES_HOME`, or the user's cache folder. A download is compared with the
    catalogue's SHA-256 and run once before it is moved into place.
    `SK_CNNCODES_OFFLINE=1` disables downloads. `SK_CNNCODES_MIRROR`, such as
    ``"https://mirror.example.org"``, replaces scheme and host of the addresses.

    An address of the Hub needs the extra ``hub``: ``pip install 'sk-cnncodes[hub]'``.
    huggingface_hub then fetches the ONNX file, the files that hold its weights and its
    configuration files into the user's Hub cache, with the user's token, and the
    network is run once. Of a repository with several networks, the first of
    ``onnx/vision_model.onnx``, ``vision_model.onnx``, ``onnx/model.onnx`` and
    ``model.onnx`` is taken; if it has none of them, an error lists its files. The
    commit and the digests are kept in the home folder: what is in the cache is then
    used without asking the Hub, until `download_backbone` asks again.
    `SK_CNNCODES_OFFLINE=1` and `HF_HUB_OFFLINE=1` forbid it to be asked.

    Examples
    --------
    >>> from sk_cnncodes import load_backbone
    >>> backbone = load_backbone("cnncodes-mini")
    >>> backbone.preprocessing.crop_size
    (116, 116)
    >>> len(backbone.layers) >= 4
    True
    """
    path, found = _find_file(name_or_path)
    return _load(path, preprocessing, found)


def _load(
    path: Path,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
    from_hub: HubFile | None,
) -> Backbone:
    """Load the backbone of a file; one of the Hub is run on first use."""
    for module in ("onnx", "onnx.inliner", "onnx.version_converter"):
        import_fork_safe(module)
    model, row = read_outline(path), find_row_by_digest(file_sha256(path))
    origin = "the parameter preprocessing"
    if isinstance(preprocessing, Mapping):
        preprocessing = Preprocessing.from_dict(preprocessing)
    if preprocessing is None:
        found = _known_preprocessing(path, model, row)
        if found is None:
            raise _unknown_preprocessing(path)
        preprocessing, origin = found
    elif not isinstance(preprocessing, Preprocessing):
        raise TypeError(
            "preprocessing: expected a Preprocessing, a dict of its parameters, or "
            f"None, got {preprocessing!r}."
        )
    backbone = Backbone(
        path=path,
        sha256=digest_with_data(path, model),
        preprocessing=preprocessing,
        name=row.name if row else None,
        penultimate=(row.penultimate or None) if row else None,
        preprocessing_origin=origin,
        address=str(from_hub.pinned) if from_hub else None,
    )
    if from_hub is not None and from_hub.pin.get("checked") != backbone.sha256:
        _check_once(backbone)
        from_hub.pin["checked"] = backbone.sha256
        from_hub.save_pin()
    return backbone


@lru_cache(maxsize=64)
def _check_once(backbone: Backbone) -> None:
    """Check a network of the Hub, at most once per process."""
    check_network(backbone, str(backbone.address))


def load_network(
    name_or_path: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> Backbone:
    """Load a backbone to inspect its layers, not to compute codes.

    If its preprocessing is unknown, a placeholder is used, with the input size `size`
    (height, width) or the one that the file states.

    Raises
    ------
    PreprocessingError
        If the input size is unknown too.
    """
    path, found = _find_file(name_or_path)
    model, row = read_outline(path), find_row_by_digest(file_sha256(path))
    if _known_preprocessing(path, model, row) is not None:
        return _load(path, None, found)
    try:
        value = image_input(model)
    except BackboneError as error:
        raise BackboneError(f"backbone file {str(path)!r}: {error}") from error
    stated = list(value_shape(value) or (None,) * 4)[1:]
    channels_last = stated[0] not in (1, 3) and stated[2] in (1, 3)
    channels = stated[2] if channels_last else stated[0]
    height, width = stated[:2] if channels_last else stated[1:]
    if height is not None and width is not None:
        size = size or (height, width)
    if size is None:
        raise PreprocessingError(
            f"{_unknown_preprocessing(path)} To list the layers only, use --size to "
            "give height and width of the input, which the file does not state."
        )
    placeholder = Preprocessing(
        crop_size=size,
        channels="GRAY" if channels == 1 else "RGB",
        layout="NHWC" if channels_last else "NCHW",
    )
    return _load(path, placeholder, None)


def _find_file(name_or_path: str | os.PathLike[str]) -> tuple[Path, HubFile | None]:
    """Resolve a name, an address or a path to the path of an ONNX file."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(
            "backbone: expected the name of a known backbone, the path of an ONNX file "
            f"or an address hf://owner/name, got {name_or_path!r}."
        )
    if isinstance(name_or_path, str) and is_hub_address(name_or_path):
        found = obtain_hub_file(name_or_path)
        return found.path, found
    path = Path(name_or_path)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # name too long, or no permission
        raise BackboneError(f"backbone={str(name_or_path)!r}: {error}.") from error
    if isinstance(name_or_path, str) and find_row(name_or_path) is not None:
        if is_file:
            warnings.warn(
                f"backbone={name_or_path!r} is taken as the name of a known backbone, "
                f"not as the file of that name in {working_folder()}. For the file, "
                f"write {f'.{os.sep}{name_or_path}'!r}.",
                stacklevel=3,
            )
        return download_backbone(name_or_path), None
    if is_file:
        return path, None
    what = "is a folder" if is_folder else "no such file"
    if find_row(str(path)) is not None:
        what += f"; for the known backbone of this name, pass {str(path)!r}, a string"
    else:
        what += ", and no known backbone has this name"
    raise BackboneError(
        f"backbone={str(name_or_path)!r}: {what}. "
        f"Expected {_similar_names(str(name_or_path))}, the path of an ONNX file, or "
        "an address of the Hugging Face Hub (hf://owner/name). "
        f"Relative paths start from {working_folder()}."
    )


def _known_preprocessing(
    path: Path, model: onnx.ModelProto, row: CatalogueRow | None
) -> tuple[Preprocessing, str] | None:
    """The preprocessing stated in or for a file, and its source; never a guess.

    None if it is not stated anywhere.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    own = _read_values(path, Preprocessing.from_metadata, metadata)
    if own is not None:
        return own, f"the file's metadata {METADATA_KEY!r}"
    if row is not None:
        return row.preprocessing, f"the catalogue's row {row.name!r}"
    for place in configuration_folders(path.absolute().parent):
        found = _read_configuration(place)
        if found is not None:
            return found
    return None


def _read_configuration(folder: Path) -> tuple[Preprocessing, str] | None:
    """The preprocessing that Hugging Face or timm state in a folder, and its source.

    As in transformers, the processor's file comes before the image processor's.
    """
    *processors, model_name = CONFIGURATION_FILES
    model_path = folder / model_name
    for name in processors:
        path = folder / name
        config = _read_json(path)
        if config is not None and name == "processor_config.json":
            config = config.get("image_processor")  # absent in older files
        if config is None:
            continue
        if not isinstance(config, Mapping):
            raise PreprocessingError(
                f"{str(path)!r}: expected an object image_processor, got "
                f"{config!r:.200}."
            )
        model_type = None
        if not {"image_processor_type", "feature_extractor_type"} & set(config):
            model_type = (_read_json(model_path) or {}).get("model_type")
        read = partial(read_huggingface, model_type=model_type)
        return _read_values(path, read, config), f"{str(path)!r}"
    config = _read_json(model_path)
    if config is not None and ("pretrained_cfg" in config or "input_size" in config):
        return _read_values(model_path, read_timm, config), f"{str(model_path)!r}"
    return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None if there is no such file."""
    if not path.is_file():
        return None
    return json_object(path.read_bytes(), repr(str(path)))


def _unknown_preprocessing(path: Path) -> PreprocessingError:
    digest = file_sha256(path)
    return PreprocessingError(
        f"backbone {str(path)!r}: its preprocessing is not known. It is not in its "
        f"metadata ({METADATA_KEY}), in the catalogue (sha256 {digest[:12]}...), or in "
        "a processor_config.json, preprocessor_config.json or timm config.json in its "
        "folder, or in the parent of a folder 'onnx'. Expected "
        "preprocessing=Preprocessing(crop_size=..., resize_size=..., scale=..., "
        "mean=..., std=...), with the values that the network was trained with."
    )


def _read_values(
    path: Path, read: Callable[[Mapping[str, Any]], T], config: Mapping[str, Any]
) -> T:
    """Read values with a reader; errors name the file."""
    try:
        return read(config)
    except PreprocessingError as error:
        raise PreprocessingError(f"{str(path)!r}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise PreprocessingError(
            f"{str(path)!r}: a preprocessing value is invalid ({error})."
        ) from error
