"""Whether two images show the same pixels."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from sk_cnncodes.inspection.pixel_matching import pixel_similarity, thumbnails
from tests.inspection.scenes import arrays, scene


def _recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=20)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change",
    [
        _recompressed,
        lambda image: image.resize((60, 60)),
        lambda image: image.resize((500, 500)),
        lambda image: image.crop((0, 0, 144, 144)),
        lambda image: image.crop((30, 20, 150, 140)),
        lambda image: image.crop((0, 40, 112, 152)),
        lambda image: image.rotate(2, Image.Resampling.BILINEAR),
        lambda image: image.convert("L"),
        ImageEnhance.Brightness,
    ],
)
def test_copies_match_and_other_scenes_do_not(change: Callable[..., object]) -> None:
    images = [scene(seed) for seed in range(12)]
    changed = [change(image) for image in images]
    changed = [
        each.enhance(0.7) if hasattr(each, "enhance") else each for each in changed
    ]
    ours = thumbnails(arrays(images), range(12))
    theirs = thumbnails(arrays(changed), range(12))
    assert pixel_similarity(ours, theirs).min() > 0.87
    assert pixel_similarity(theirs, ours).min() > 0.87
    assert pixel_similarity(ours, np.roll(theirs, 1, axis=0)).max() < 0.7


def test_mirrored_images_match_if_asked() -> None:
    images = arrays([scene(seed) for seed in range(6)])
    ours = thumbnails(images, range(6))
    theirs = thumbnails([image[:, ::-1] for image in images], range(6))
    assert pixel_similarity(ours, theirs).max() < 0.7
    assert pixel_similarity(ours, theirs, mirrored=True).min() > 0.95


def test_no_contrast_is_no_evidence() -> None:
    plain = np.full((2, 48, 48), [[[30]], [[200]]], np.uint8)
    faint = plain + np.random.default_rng(0).integers(0, 2, plain.shape, np.uint8)
    assert abs(pixel_similarity(plain, faint)).max() < 0.3
    assert abs(pixel_similarity(faint, faint)).max() < 0.6
    ours = thumbnails(arrays([scene(0)] * 2), range(2))
    assert pixel_similarity(ours, faint).max() < 0.5


def test_pairs_do_not_depend_on_each_other() -> None:
    thumbs = thumbnails(arrays([scene(seed) for seed in range(20)]), range(20))
    first, second = np.divmod(np.arange(400), 20)
    together = pixel_similarity(thumbs[first], thumbs[second])
    alone = [pixel_similarity(thumbs[:1], thumbs[k : k + 1])[0] for k in range(20)]
    assert together[:20] == pytest.approx(alone, abs=1e-5)
    assert pixel_similarity(thumbs[:0], thumbs[:0]).shape == (0,)
