"""The format of files that `to_onnx` writes, and checks that a file follows it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.base.exceptions import ExportError, PreprocessingError
from sk_cnncodes.graphs.checks import LARGEST_BATCH
from sk_cnncodes.graphs.wire_format import (
    has_external_data,
    metadata_entry,
    metadata_of,
)
from sk_cnncodes.images.preprocessing import (
    METADATA_KEY,
    Preprocessing,
    json_object,
)

if TYPE_CHECKING:
    import onnxruntime as ort

# Metadata entries, as JSON.
CLASSES_KEY = "sk_cnncodes.classes"
MODEL_KEY = "sk_cnncodes.model"
# Metadata entry with the SHA-256 of the file without this entry.
DIGEST_KEY = "sk_cnncodes.sha256"
# Each image is decoded for each input.
MAX_INPUTS = 16
# Outputs of a classifier with probabilities, of one without, and of a regressor.
_OUTPUTS = (["label", "probabilities"], ["label", "decision"], ["values"])


@dataclass(frozen=True)
class ExportedModel:
    """What an exported file declares about itself.

    Attributes
    ----------
    outputs : list of str
        Names of the outputs.
    inputs : list of Preprocessing
        How the images of each input are resized and cropped.
    metadata : dict
        The metadata entry `MODEL_KEY`.
    classes : ndarray of shape (n_classes,), or None
        None for a regressor.
    batch_size : int or None
        Fixed batch size; None if it is dynamic.
    """

    outputs: list[str]
    inputs: list[Preprocessing]
    metadata: dict[str, Any]
    classes: np.ndarray | None
    batch_size: int | None

    def check(self, arrays: Sequence[np.ndarray]) -> None:
        """Check that outputs have the declared shapes, and labels the declared classes.

        Raises
        ------
        ExportError
            If an output does not; the message names it.
        """
        classes = [] if self.classes is None else self.classes.tolist()
        for name, array in zip(self.outputs, arrays, strict=True):
            is_valid = len(array.shape) == (1 if name == "label" else 2)
            if name == "probabilities" and is_valid:
                is_valid = array.shape[1] == len(classes)
            if not is_valid:
                raise ExportError(
                    f"its output {name!r} has the shape {array.shape}, but its classes "
                    f"are {classes[:10]}"
                )
            unknown = set(array.tolist()) - set(classes) if name == "label" else set()
            if unknown:
                raise ExportError(
                    f"label {unknown.pop()!r} is not one of the classes {classes[:10]}"
                )


def check_content(content: bytes) -> None:
    """Check that a file is unchanged and has all its weights in it.

    Raises
    ------
    ExportError
        If it was changed, or refers to weights in another file.
    """
    try:
        is_external = has_external_data(content)
        digest = metadata_of(content).get(DIGEST_KEY)
    except ValueError as error:
        raise ExportError(f"it is damaged ({error})") from error
    if is_external:
        raise ExportError("it refers to weights in another file")
    if digest is not None and not _matches_digest(content, digest):
        raise ExportError(
            "it was damaged or changed after to_onnx wrote it; remove the metadata "
            f"{DIGEST_KEY!r} from a file that was changed on purpose"
        )


def digest_of(content: bytes) -> str:
    """Digest to store as `DIGEST_KEY` in a file that does not have this entry yet."""
    return hashlib.sha256(content).hexdigest()


def _matches_digest(content: bytes, digest: str) -> bool:
    """Whether a digest is that of the content without the entry that stores it."""
    if not re.fullmatch("[0-9a-f]{64}", digest):
        return False
    before, _, after = content.rpartition(metadata_entry(DIGEST_KEY, digest))
    return digest_of(before + after) == digest


def inputs_metadata(inputs: Mapping[str, Preprocessing]) -> dict[str, str]:
    """Metadata entries of how images are prepared; those of the first have no suffix.

    A file with one input is one that older versions read.
    """
    first, *others = inputs.items()
    entries = first[1].to_metadata()
    for name, preprocessing in others:
        (text,) = preprocessing.to_metadata().values()
        entries[f"{METADATA_KEY}.{name}"] = text
    return entries


def read_exported(session: ort.InferenceSession) -> ExportedModel:
    """Read and check what a loaded file declares about itself.

    Raises
    ------
    ExportError
        If it differs from what `to_onnx` writes; the message says where.
    """
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        values = session.get_outputs()
        outputs, types = [v.name for v in values], [v.type for v in values]
        preprocessing = Preprocessing.from_metadata(metadata)
        others = [
            Preprocessing.from_dict(json_object(metadata[key], key))
            for value in session.get_inputs()[1:MAX_INPUTS]
            if (key := f"{METADATA_KEY}.{value.name}") in metadata
        ]
    except (PreprocessingError, UnicodeDecodeError) as error:
        raise ExportError(str(error).rstrip(".")) from error
    if preprocessing is None or MODEL_KEY not in metadata:
        raise ExportError(
            f"it is no saved model (no metadata {MODEL_KEY!r}); pass a backbone to "
            "CNNCodeTransformer instead, or train with it by --backbone"
        )
    facts = _json(metadata, MODEL_KEY)
    if not isinstance(facts, dict):
        raise ExportError(f"{MODEL_KEY}: expected a JSON object, got {facts!r:.200}")
    if outputs not in _OUTPUTS or not all(t.startswith("tensor(") for t in types):
        raise ExportError(f"its outputs are {outputs}, expected one of {_OUTPUTS}")
    classes = None
    if "label" in outputs:
        classes = _classes(metadata)
    elif not isinstance(facts.get("many_targets"), bool):
        raise ExportError(f"{MODEL_KEY}: 'many_targets' is neither true nor false")
    inputs = [preprocessing, *others]
    return ExportedModel(outputs, inputs, facts, classes, _batch_size(session, inputs))


def _batch_size(
    session: ort.InferenceSession, preprocessings: list[Preprocessing]
) -> int | None:
    """Check the inputs; return their fixed batch size, or None if it is dynamic."""
    inputs = [(value.type, value.shape) for value in session.get_inputs()]
    first = inputs[0][1][:1] if inputs else []
    batch_size = first[0] if first and isinstance(first[0], int) else None
    sizes = [preprocessing.crop_size for preprocessing in preprocessings]
    expected = [("tensor(uint8)", [*first, *size, 3]) for size in sizes]
    is_valid = batch_size is None or 1 <= batch_size <= LARGEST_BATCH
    if inputs != expected or not is_valid:
        shapes = ", ".join(f"[N, {height}, {width}, 3]" for height, width in sizes)
        raise ExportError(
            f"its inputs are {inputs}, expected {len(sizes)} of type 'tensor(uint8)' "
            f"and shape {shapes}, N dynamic or at most {LARGEST_BATCH}"
        )
    return batch_size


def _classes(metadata: dict[str, str]) -> np.ndarray:
    classes = _json(metadata, CLASSES_KEY)
    kinds = {type(name) for name in classes} if isinstance(classes, list) else set()
    if len(kinds) != 1 or not kinds <= {str, int, float, bool}:
        raise ExportError(
            f"{CLASSES_KEY}: expected a list of names or of numbers, got "
            f"{classes!r:.200}"
        )
    return np.array(classes)


def _json(metadata: dict[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{key}: not JSON ({error})") from error
