"""Inspects serialised ONNX models before they are loaded, without the package onnx.

`OnnxClassifier` works without onnx. ONNX Runtime would read the external data that a
model refers to: in the working directory, and before version 1.24 anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

# Fields of each message that lead to tensors: numbers in onnx.proto, and the types of
# the messages that they hold.
_TENSOR_FIELDS: dict[str, dict[int, str]] = {
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
# Field numbers of a ModelProto, and of a TensorProto.
_METADATA = 14
_DIMS, _DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 9, 13, 14
# Bytes per element by ONNX data type: float32, uint8, int8, uint16, int16, int32,
# int64, bool, float16, float64, uint32, uint64, bfloat16.
ELEMENT_BYTES = {
    **{1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8},
    **{9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2},
}
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def has_external_data(model: bytes) -> bool:
    """Whether any tensor of a model, however deep, has external data.

    Parameters
    ----------
    model : bytes
        A serialised ModelProto.

    Raises
    ------
    ValueError
        If the bytes are malformed, or the data of a tensor do not match its shape:
        ONNX Runtime 1.24 reads past the end.

    References
    ----------
    https://protobuf.dev/programming-guides/encoding,
    https://onnx.ai/onnx/repo-docs/ExternalData.html
    """
    waiting = [("ModelProto", memoryview(model))]
    while waiting:
        message, content = waiting.pop()
        if message == "TensorProto" and _is_external(content):
            return True
        fields = _TENSOR_FIELDS[message]
        waiting += [
            (fields[number], value)
            for number, value in _fields(content)
            if number in fields and isinstance(value, memoryview)
        ]
    return False


def _is_external(tensor: memoryview) -> bool:
    """Whether a tensor has external data; a ValueError if its size is wrong."""
    elements, kind, content = 1, 0, None
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            return True
        if number == _DIMS and isinstance(value, memoryview):  # packed
            position = 0
            while position < len(value):
                dim, position = _varint(value, position, longest=10)
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
    """Return the metadata of a serialised ModelProto.

    Raises
    ------
    ValueError
        If the bytes are malformed, or the metadata is not UTF-8.
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
    """Serialise a metadata entry of fewer than 124 bytes."""
    texts = [(b"\n", key.encode()), (b"\x12", value.encode())]
    entry = b"".join(tag + bytes([len(text)]) + text for tag, text in texts)
    return bytes([_METADATA << 3 | _LENGTH, len(entry)]) + entry


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Yield number and value of each field; None for fixed-size values."""
    position, end = 0, len(content)
    value: int | memoryview | None
    while position < end:
        # protobuf itself reads only 32 bits of a field's number and length.
        tag, position = _varint(content, position, longest=5)
        number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if kind == _VARINT:
            value, position = _varint(content, position, longest=10)
        elif kind == _LENGTH:
            length, start = _varint(content, position, longest=5)
            position = start + length
            value = content[start:position]
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            value, position = None, position + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")
        if position > end:
            raise ValueError("it ends inside a field")
        yield number, value


def _varint(content: memoryview, position: int, longest: int) -> tuple[int, int]:
    """Decode a base-128 integer; return it and the position after it."""
    value = 0
    for shift in range(longest):
        if position >= len(content):
            raise ValueError("it ends inside a number")
        byte = content[position]
        position += 1
        value |= (byte & 127) << (7 * shift)
        if byte < 128:
            return value, position
    raise ValueError("a number is not terminated")
