"""What must be known of an ONNX file before it is loaded, without the package onnx.

`OnnxClassifier` runs where onnx is not installed. ONNX Runtime would read other files
that a file asks for: in the working folder, and before its version 1.24 anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

# Fields of each message that lead to tensors, by their numbers in onnx.proto, and the
# message that they hold.
_LEADING: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 10: "TensorProto"},
        **{6: "GraphProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
_METADATA = 14  # of a ModelProto
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a TensorProto
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def asks_for_files(model: bytes) -> bool:
    """Whether any tensor of a model, however deep, lies in another file.

    Parameters
    ----------
    model : bytes
        A serialised ModelProto.

    Raises
    ------
    ValueError
        If the bytes are none.

    References
    ----------
    https://protobuf.dev/programming-guides/encoding,
    https://onnx.ai/onnx/repo-docs/ExternalData.html
    """
    waiting = [("ModelProto", memoryview(model))]
    while waiting:
        message, content = waiting.pop()
        leading = _LEADING[message]
        for number, value in _fields(content):
            if message == "TensorProto" and (
                number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
            ):
                return True
            if number in leading and isinstance(value, memoryview):
                waiting.append((leading[number], value))
    return False


def metadata_of(model: bytes) -> dict[str, str]:
    """The metadata of a serialised ModelProto.

    Raises
    ------
    ValueError
        If the bytes are none, or the metadata no UTF-8.
    """
    found = {}
    for number, value in _fields(memoryview(model)):
        if number == _METADATA and isinstance(value, memoryview):
            texts = {1: "", 2: ""}
            for field, text in _fields(value):
                if field in texts and isinstance(text, memoryview):
                    texts[field] = str(text, "utf-8")
            found[texts[1]] = texts[2]
    return found


def metadata_entry(key: str, value: str) -> bytes:
    """An entry of the metadata as it is serialised; for fewer than 124 bytes."""
    texts = [(b"\n", key.encode()), (b"\x12", value.encode())]
    entry = b"".join(tag + bytes([len(text)]) + text for tag, text in texts)
    return bytes([_METADATA << 3 | _LENGTH, len(entry)]) + entry


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Numbers of a message's fields, with integers and what has a length."""
    place, end = 0, len(content)
    value: int | memoryview | None
    while place < end:
        # protobuf itself reads no more than 32 bits of a field's number and length.
        tag, place = _varint(content, place, longest=5)
        number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if kind == _VARINT:
            value, place = _varint(content, place, longest=10)
        elif kind == _LENGTH:
            length, start = _varint(content, place, longest=5)
            place = start + length
            value = content[start:place]
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            value, place = None, place + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if place > end:
            raise ValueError("it ends within a field")
        yield number, value


def _varint(content: memoryview, place: int, longest: int) -> tuple[int, int]:
    """An integer in base 128, and where it ends."""
    value = 0
    for shift in range(longest):
        if place >= len(content):
            raise ValueError("it ends within a number")
        byte = content[place]
        place += 1
        value |= (byte & 127) << (7 * shift)
        if byte < 128:
            return value, place
    raise ValueError("a number without an end")
