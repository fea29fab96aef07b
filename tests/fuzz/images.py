"""A case: a damaged image file gives pixels, or an ImageError that names it."""

from __future__ import annotations

import random
import sys

import numpy as np

from sk_cnncodes import ImageError, Preprocessing
from sk_cnncodes.images.decode import decode_content
from tests.fuzz.image_seeds import seeds
from tests.fuzz.mutations import mutated

# Crop, squash, and a crop larger than the image: all code paths of the resize.
PREPROCESSINGS = [
    Preprocessing(crop_size=(24, 24), resize_size=28),
    Preprocessing(crop_size=(24, 32), resize="squash", interpolation="bicubic"),
    Preprocessing(crop_size=(48, 48), resize_size=32, interpolation="lanczos"),
    Preprocessing(crop_size=(64, 64), resize="none"),
]


def damaged_file(case: int) -> tuple[str, bytes]:
    """Name and content of the file of a case."""
    rng = random.Random(case)
    names = sorted(seeds())
    name = names[case % len(names)]
    other = seeds()[rng.choice(names)]
    return f"{case}_{name}", mutated(seeds()[name], other, rng)


def check(case: int) -> str:
    """Decode and prepare the file of a case."""
    name, content = damaged_file(case)
    preprocessing = PREPROCESSINGS[case // len(seeds()) % len(PREPROCESSINGS)]
    try:
        pixels = preprocessing.apply(decode_content(content, name, case).rgb)
    except ImageError as error:
        assert error.index == case
        assert str(error).startswith(f"image {case} ({name!r}): "), str(error)
        return "errors"
    assert pixels.shape == (*preprocessing.crop_size, 3)
    assert pixels.dtype == np.uint8
    again = preprocessing.apply(decode_content(content, name, case).rgb)
    # Uninitialised memory would differ.
    assert np.array_equal(pixels, again), "decoded differently a second time"
    return "codes"


if __name__ == "__main__":
    print(damaged_file(int(sys.argv[1]))[0], check(int(sys.argv[1])))
