"""Model cards in the files of saved models.

A card is JSON at the end of a pickle file, a member of a skops file, or a metadata
entry of an ONNX file. Reading one runs no code of the file, and needs no scikit-learn.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from sk_cnncodes.base.exceptions import SavedModelError, first_line
from sk_cnncodes.base.files import working_folder
from sk_cnncodes.base.public import public
from sk_cnncodes.export.model_card import ModelCard
from sk_cnncodes.graphs.wire_format import metadata_of

# Metadata entry of an ONNX file, and member of a skops file.
CARD_KEY = "sk_cnncodes.card"
CARD_MEMBER = "sk_cnncodes.card.json"
# The end of a pickle file with a card: the JSON, its length, and this.
_END = b"sk_cnncodes.card"
_LENGTH_BYTES = 8
_LARGEST = 10_000_000
# Compressed pickle files that joblib.load recognises.
COMPRESSED: dict[str, Callable[..., Any]] = {
    ".gz": partial(gzip.open, compresslevel=3),  # as joblib.dump
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


@public
def read_model_card(path: str | os.PathLike[str]) -> ModelCard | None:
    """Read the card of a saved model, without loading the model.

    Parameters
    ----------
    path : str or path-like
        File of `save_model`, `to_onnx` or ``sk-cnncodes train``. No code in it is run.

    Returns
    -------
    ModelCard or None
        None if the file has no card, such as one of an older version.

    Raises
    ------
    SavedModelError
        If the file cannot be read, or its card is damaged.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_digits
    >>> from sk_cnncodes import (
    ...     CNNCodeClassifier, ModelCard, read_model_card, save_model
    ... )
    >>> digits = load_digits()
    >>> X, y = digits.images[:100] / 16, digits.target[:100]
    >>> model = CNNCodeClassifier(layers=[-1], heads="lda").fit(X, y)
    >>> card = ModelCard.from_estimator(model, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_model(model.pipeline_, f"{folder}/m.joblib", card=card)
    ...     read_model_card(path) == card
    True
    """
    file = Path(path)
    try:
        content = _stored_card(file)
    except FileNotFoundError as error:
        raise SavedModelError(
            f"model {str(path)!r}: no such file; relative paths start from "
            f"{working_folder()}."
        ) from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise SavedModelError(
            f"model {str(path)!r}: cannot be read ({first_line(error)})."
        ) from error
    if content is None:
        return None
    try:
        return ModelCard.from_json(content)
    except ValueError as error:
        raise SavedModelError(
            f"model {str(path)!r}: its model card: {error}"
        ) from error


def _stored_card(file: Path) -> bytes | str | None:
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        return metadata_of(file.read_bytes()).get(CARD_KEY)
    if suffix == ".skops":
        with zipfile.ZipFile(file) as archive:
            if CARD_MEMBER not in archive.namelist():
                return None
            return archive.read(CARD_MEMBER)
    with COMPRESSED.get(suffix, open)(file, "rb") as opened:
        if suffix not in COMPRESSED:
            opened.seek(max(0, file.stat().st_size - _LARGEST))
        content: bytes = opened.read()
    rest = content.removesuffix(_END)
    length = int.from_bytes(rest[-_LENGTH_BYTES:], "big")
    if rest == content or length > len(rest) - _LENGTH_BYTES:
        return None
    return rest[-_LENGTH_BYTES - length : -_LENGTH_BYTES]


def append_card(file: IO[bytes], card: ModelCard | None) -> None:
    """Write a card behind a pickle, where whoever loads the pickle does not look."""
    if card is not None:
        content = card.to_json().encode()
        file.write(content + len(content).to_bytes(_LENGTH_BYTES, "big") + _END)


def add_card_to_skops(file: Path, card: ModelCard | None) -> None:
    """Add a card to a file of skops, which reads the members that it knows."""
    if card is not None:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(CARD_MEMBER, card.to_json())
