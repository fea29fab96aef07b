"""What runs for hours with nobody there: it goes on after bad images."""

from __future__ import annotations

from sk_cnncodes.codes.parameters import check_parameters
from sk_cnncodes.codes.plan import state_of
from sk_cnncodes.codes.transformer import CNNCodeTransformer
from sk_cnncodes.images.sources import describe_image
from sk_cnncodes.scale.sources.stream import SourceImage


def unattended(transformer: CNNCodeTransformer) -> CNNCodeTransformer:
    """A copy that goes on after bad images, and collects no codes in memory.

    Raises
    ------
    TypeError, ValueError
        If it is no transformer, or a parameter is invalid.
    """
    if not isinstance(transformer, CNNCodeTransformer):
        raise TypeError(
            f"transformer: got {type(transformer).__name__}. Expected a "
            "CNNCodeTransformer."
        )
    own = object.__new__(type(transformer))
    own.__dict__.update(vars(transformer))
    own.on_error = "nan"
    if isinstance(own.cache, str) and own.cache == "memory":
        own.cache = None
    check_parameters(state_of(own))
    return own


def reason(fault: Exception | None, item: SourceImage) -> str | None:
    """Why an image is bad, without its position in this call; None if it is not.

    With its address, if the key is another.
    """
    if fault is None:
        return None
    message = str(fault)
    for image in (item, item.image):
        message = message.removeprefix(f"{describe_image(image, item.position)}: ")
    known = item.uri is None or item.uri == item.key
    return message if known else f"{item.uri!r}: {message}"
