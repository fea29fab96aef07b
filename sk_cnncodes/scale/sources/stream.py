"""Source and SourceImage: what all sources of images have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sk_cnncodes.base.exceptions import (
    ImageError,
    ImageNotFoundError,
    is_scarcity,
    reason_of,
    shorten,
)
from sk_cnncodes.images.addresses import is_uri
from sk_cnncodes.images.containers import as_element
from sk_cnncodes.images.remote import RemoteReader, TooLarge
from sk_cnncodes.images.sources import (
    FileContent,
    describe_image,
    is_opener,
    read_content,
)
from sk_cnncodes.scale.sources.archives import BadMember

# Whether the image at a position is needed; others are not read.
Wanted = Callable[[int], bool]
# Bytes of an image that is read before it is its turn.
_LARGEST_AHEAD = 2**24


@dataclass
class SourceImage:
    """An image of a source. As an element of X it is a file of another library.

    Attributes
    ----------
    key : str
    image : object
        An element of X; None if it was not asked for.
    columns : dict of str to str or None
        Other columns, as text.
    digest : str or None
        SHA-256 of the file, once it was read; None of pixels.
    position : int
        In the X that it is an element of, for messages.
    remote : RemoteReader or None
        What reads the image if it is an address.
    uri : str or None
        That address, once it was read ahead.
    """

    key: str
    image: Any
    columns: Mapping[str, str | None] = field(default_factory=dict)
    digest: str | None = None
    position: int = 0
    remote: RemoteReader | None = None
    uri: str | None = None

    def fetch(self) -> None:
        """Read the image if it is at an address, and not very large."""
        image = self.image
        if isinstance(image, Mapping) and image.get("bytes") is None:
            image = image.get("path")
        if self.remote is None or not self.remote.prefixes or not is_uri(image):
            return
        self.uri = image
        try:
            self.image = FileContent(self.remote.read(image, _LARGEST_AHEAD), image)
        except TooLarge:
            pass  # it is read when it is its turn
        except ImageError as error:
            self.image = BadMember(image, reason_of(error))
        except Exception as error:  # a lack of memory can pass until then
            if not is_scarcity(error):
                raise

    @property
    def full_name(self) -> str:
        """The name in messages."""
        return self.key

    def read_bytes(self) -> bytes:
        """Read the file, and remember its digest."""
        try:
            image = as_element(self.image, self.position, self.remote)
            content = read_content(image, self.position)
        except ImageError as error:
            name = describe_image(self, self.position)
            path = _path_in_table(self.image)
            if path and isinstance(error, ImageNotFoundError):
                # Not from the working folder on, as of a path in X.
                raise ImageNotFoundError(
                    f"{name}: no such file: {shorten(repr(path))}. Expected the path "
                    "of an image.",
                    self.position,
                ) from error
            if error.index is not None:
                raise
            raise ImageError(f"{name}: {error}", self.position) from error
        self.digest = hashlib.sha256(content).hexdigest()
        return content

    @property
    def element(self) -> Any:
        """The element of X: itself if it is a file, otherwise its pixels."""
        files = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, FileContent)
        is_content = isinstance(self.image, files) or is_opener(self.image)
        return self if is_content else self.image


def _path_in_table(image: Any) -> str:
    """The whole path of a file of this machine that a table names; "" of all else."""
    path = image.get("path") if isinstance(image, Mapping) else None
    if not isinstance(path, str) or is_uri(path):
        return ""
    return os.path.abspath(path)  # noqa: PTH100 - keeps symlinks


class Source(Protocol):
    """A stream of images in pieces, each of which is always read in the same order.

    Attributes
    ----------
    pieces : list of str
        Their names. Pieces that are files are listed with their sizes, and do not
        change.
    image_column : str or None
        The column of the images, where there are columns.
    """

    pieces: list[str]
    image_column: str | None

    def read(self, piece: int, wanted: Wanted) -> Iterator[SourceImage]:
        """Yield the images of a piece: all keys, but only the images that are wanted.

        Parameters
        ----------
        piece : int
        wanted : callable
            Is asked by the position in the piece.
        """
        ...
