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
# Of a TensorProto.
_DIMS, _DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 9, 13, 14
# Bytes of an element, by the number of its type in ONNX: float32, uint8, int8, uint16,
# int16, int32, int64, bool, float16, float64, uint32, uint64, bfloat16.
ELEMENT_BYTES = {
    **{1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8},
    **{9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2},
}
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
        If the bytes are none, or a tensor has not as much content as its shape says:
        ONNX Runtime 1.24 reads on behind it.

    References
    ----------
    https://protobuf.dev/programming-guides/encoding,
    https://onnx.ai/onnx/repo-docs/ExternalData.html
    """
    waiting = [("ModelProto", memoryview(model))]
    while waiting:
        message, content = waiting.pop()
        if message == "TensorProto" and _is_elsewhere(content):
            return True
        leading = _LEADING[message]
        waiting += [
            (leading[number], value)
            for number, value in _fields(content)
            if number in leading and isinstance(value, memoryview)
        ]
    return False


def _is_elsewhere(tensor: memoryview) -> bool:
    """Whether a tensor lies in another file; a ValueError if it is cut short."""
    elements, kind, content = 1, 0, None
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            return True
        if number == _DIMS and isinstance(value, memoryview):  # all in one field
            place = 0
            while place < len(value):
                dim, place = _varint(value, place, longest=10)
                elements *= dim
        elif number == _DIMS and isinstance(value, int):
            elements *= value
        elif number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _RAW_DATA and isinstance(value, memoryview):
            content = len(value)
    size = ELEMENT_BYTES.get(kind)
    if size is not None and content is not None and content != size * elements:
        raise ValueError(f"a tensor has {content} bytes instead of {size * elements}")
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
