"""ICC profiles made from their specification, and what they mean in sRGB."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import product

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
# Of D65, adapted to D50 (Bradford): columns are the colorants' XYZ.
SRGB = np.array(
    [[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
)
ADOBE_RGB = np.array(
    [[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]]
)
DISPLAY_P3 = np.array(
    [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]]
)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _curve(gamma: float | Sequence[float]) -> bytes:
    """A gamma, or linear light at equal steps of the stored value."""
    if isinstance(gamma, float):
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    points = [round(value * 65535) for value in gamma]
    return b"curv\0\0\0\0" + struct.pack(f">I{len(points)}H", len(points), *points)


def _description(name: str) -> bytes:
    text = name.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)


def _profile(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50)} | tags
    table, content = b"", b""
    offset = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", offset + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    size = offset + len(content)
    header = struct.pack(">I4s4s", size, b"", b"\x02\x40\0\0") + kind + space + pcs
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    header += bytes(68 - len(header)) + _fixed(*D50)
    header += bytes(128 - len(header))
    return header + struct.pack(">I", len(tags)) + table + content


def rgb_profile(name: str, colorants: np.ndarray, gamma: float) -> bytes:
    """A matrix profile of a display."""
    tags = {b"desc": _description(name)}
    for letter, column in zip(b"rgb", colorants.T, strict=True):
        tags[bytes([letter]) + b"XYZ"] = _xyz(column)
        tags[bytes([letter]) + b"TRC"] = _curve(gamma)
    return _profile(b"RGB ", b"mntr", b"XYZ ", tags)


def gray_profile(name: str, gamma: float | Sequence[float]) -> bytes:
    tags = {b"desc": _description(name), b"kTRC": _curve(gamma)}
    return _profile(b"GRAY", b"mntr", b"XYZ ", tags)


def cmyk_lab(inks: tuple[int, ...]) -> tuple[int, int, int]:
    """Lab (8 bits) of solid inks of `cmyk_profile`: not the colours of any press."""
    cyan, magenta, yellow, black = inks
    lightness = (255 - 90 * cyan - 110 * magenta - 20 * yellow) * (1 - black)
    reds = 128 + (-40 * cyan + 70 * magenta) * (1 - black)
    yellows = 128 + (-45 * cyan - 5 * magenta + 90 * yellow) * (1 - black)
    return max(lightness, 0), reds, yellows


def cmyk_profile(name: str) -> bytes:
    """A table with two points for each ink."""
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += ramp * 4
    table += bytes(v for inks in product((0, 1), repeat=4) for v in cmyk_lab(inks))
    table += ramp * 3
    return _profile(
        b"CMYK", b"prtr", b"Lab ", {b"desc": _description(name), b"A2B0": table}
    )


# -- expected colours ----------------------------------------------------------


def _encode(linear: np.ndarray) -> np.ndarray:
    """Linear light to values of sRGB from 0 to 255."""
    linear = np.clip(linear, 0, 1)
    low, high = linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055
    return 255 * np.where(linear <= 0.0031308, low, high)


def rgb_in_srgb(pixels: np.ndarray, colorants: np.ndarray, gamma: float) -> np.ndarray:
    """What pixels with a `rgb_profile` are in sRGB."""
    xyz = (pixels / 255) ** gamma @ colorants.T
    return _encode(xyz @ np.linalg.inv(SRGB).T)


def gray_in_srgb(pixels: np.ndarray, gamma: float) -> np.ndarray:
    return np.repeat(_encode((pixels / 255) ** gamma)[..., None], 3, axis=-1)


def lab_in_srgb(lab: tuple[int, int, int]) -> np.ndarray:
    """What a Lab colour in 8 bits is in sRGB."""
    lightness, a, b = lab[0] * 100 / 255, lab[1] - 128, lab[2] - 128
    y = (lightness + 16) / 116
    ratios = np.array([y + a / 500, y, y - b / 200])
    large = ratios**3
    xyz = D50 * np.where(large > 0.008856, large, (ratios - 16 / 116) / 7.787)
    return _encode(np.linalg.inv(SRGB) @ xyz)
