"""The contract between `to_onnx` and its readers, and whether a file keeps it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.base.exceptions import ExportError, PreprocessingError
from sk_cnncodes.graphs.checks import LARGEST_BATCH
from sk_cnncodes.graphs.wire_format import asks_for_files, metadata_entry, metadata_of
from sk_cnncodes.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnxruntime as ort

# Entries of the metadata of a file, as JSON.
CLASSES_KEY = "sk_cnncodes.classes"
MODEL_KEY = "sk_cnncodes.model"
# An entry with the SHA-256 of the file without this entry.
DIGEST_KEY = "sk_cnncodes.sha256"
# Of a classifier with probabilities, of one without, and of a regressor.
_OUTPUTS = (["label", "probabilities"], ["label", "decision"], ["values"])


@dataclass(frozen=True)
class ExportedModel:
    """What a file says of itself.

    Attributes
    ----------
    outputs : list of str
    preprocessing : Preprocessing
    metadata : dict
    classes : ndarray of shape (n_classes,), or None
        None of a regressor.
    batch_size : int or None
        Number of images that each run takes; None for any.
    """

    outputs: list[str]
    preprocessing: Preprocessing
    metadata: dict[str, Any]
    classes: np.ndarray | None
    batch_size: int | None

    def check(self, arrays: Sequence[np.ndarray]) -> None:
        """Refuse outputs of another shape than promised, or that know other classes.

        Raises
        ------
        ExportError
            Naming the output.
        """
        classes = [] if self.classes is None else self.classes.tolist()
        for name, array in zip(self.outputs, arrays, strict=True):
            as_promised = len(array.shape) == (1 if name == "label" else 2)
            if name == "probabilities" and as_promised:
                as_promised = array.shape[1] == len(classes)
            if not as_promised:
                raise ExportError(
                    f"its output {name!r} has the shape {array.shape}, its classes are "
                    f"{classes[:10]}"
                )
            unknown = set(array.tolist()) - set(classes) if name == "label" else set()
            if unknown:
                raise ExportError(
                    f"label {unknown.pop()!r} is none of the classes {classes[:10]}"
                )


def check_content(content: bytes) -> None:
    """Refuse a file that was changed, or has weights in other files.

    Raises
    ------
    ExportError
    """
    try:
        elsewhere = asks_for_files(content)
        digest = metadata_of(content).get(DIGEST_KEY)
    except ValueError as error:
        raise ExportError(f"it is damaged ({error})") from error
    if elsewhere:
        raise ExportError("it asks for weights in another file")
    if digest is not None and not _is_whole(content, digest):
        raise ExportError(
            "it was damaged or changed after to_onnx wrote it; remove the metadata "
            f"{DIGEST_KEY!r} from a file that was changed on purpose"
        )


def digest_of(content: bytes) -> str:
    """What the entry `DIGEST_KEY` of a file says that has no such entry yet."""
    return hashlib.sha256(content).hexdigest()


def _is_whole(content: bytes, digest: str) -> bool:
    """Whether a digest is that of all but the entry that states it."""
    if not re.fullmatch("[0-9a-f]{64}", digest):
        return False
    before, _, after = content.rpartition(metadata_entry(DIGEST_KEY, digest))
    return digest_of(before + after) == digest


def read_exported(session: ort.InferenceSession) -> ExportedModel:
    """What a loaded file says of itself.

    Raises
    ------
    ExportError
        Saying where it differs from what `to_onnx` writes.
    """
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        values = session.get_outputs()
        outputs, types = [v.name for v in values], [v.type for v in values]
        preprocessing = Preprocessing.from_metadata(metadata)
    except (PreprocessingError, UnicodeDecodeError) as error:
        raise ExportError(str(error).rstrip(".")) from error
    if preprocessing is None or MODEL_KEY not in metadata:
        raise ExportError(
            f"an ONNX file without the metadata {MODEL_KEY!r}; a backbone goes to "
            "CNNCodeTransformer"
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
    return ExportedModel(
        outputs, preprocessing, facts, classes, _batch_size(session, preprocessing)
    )


def _batch_size(
    session: ort.InferenceSession, preprocessing: Preprocessing
) -> int | None:
    inputs = [(value.type, value.shape) for value in session.get_inputs()]
    type_, shape = inputs[0] if len(inputs) == 1 else ("", [])
    batch_size = shape[0] if shape and isinstance(shape[0], int) else None
    height, width = preprocessing.crop_size
    if (
        type_ != "tensor(uint8)"
        or shape[1:] != [height, width, 3]
        or (batch_size is not None and not 1 <= batch_size <= LARGEST_BATCH)
    ):
        raise ExportError(
            f"its inputs are {inputs}, expected one of type 'tensor(uint8)' and shape "
            f"[N, {height}, {width}, 3], N being free or at most {LARGEST_BATCH}"
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
