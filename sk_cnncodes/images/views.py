"""Views of an image for test-time augmentation: crops and mirrored crops."""

from __future__ import annotations

from dataclasses import dataclass
from operator import le
from typing import TYPE_CHECKING

import numpy as np

from sk_cnncodes.base.exceptions import PreprocessingError
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.resizing import (
    OVERSHOOTING,
    Coefficients,
    aspect_ratio_box,
    coefficients,
    five_corners,
)

if TYPE_CHECKING:
    from PIL import Image

# Number of views for each value of the `views` parameter.
VIEWS = {"center": 1, "mirror": 1, "flip": 2, "five_crop": 5, "ten_crop": 10}


def check_views(preprocessing: Preprocessing, views: str) -> None:
    """Check that the preprocessing leaves room for five different crops.

    Raises
    ------
    PreprocessingError
        If the resized image is no larger than the crop.
    """
    if views not in ("five_crop", "ten_crop") or preprocessing.resize in (
        "shorter",
        "none",
    ):
        return
    if preprocessing.resized_size(1, 1) == preprocessing.crop_size:
        size = " x ".join(map(str, preprocessing.crop_size))
        raise PreprocessingError(
            f"views={views!r}: the preprocessing resizes the whole image to its crop, "
            f"{size}, so all five crops would be the same. Expected 'center' or "
            "'flip', or a preprocessing with a larger resize_size."
        )


def order_matters(preprocessing: Preprocessing, views: str) -> bool:
    """Whether images may be resized as a whole, and rows first differs from columns.

    That is so if no side of the resized image is longer than the crop, or there are
    several crops; otherwise the crop is taken inside of the resize.
    """
    if (
        preprocessing.interpolation not in OVERSHOOTING
        or preprocessing.resize == "none"
    ):
        return False
    # The shorter side; a square image is the only one that may not be longer.
    smallest = preprocessing.resized_size(1, 1)
    within = all(map(le, smallest, preprocessing.crop_size))
    return within or views in ("five_crop", "ten_crop")


def take_views(
    image: Image.Image, preprocessing: Preprocessing, views: str
) -> np.ndarray:
    """Take the views of an upright RGB image.

    "five_crop" takes the four corners and the centre of the resized image, like
    torchvision's FiveCrop; "ten_crop" adds their mirror images, like TenCrop; "flip"
    takes the central crop and its mirror image, "mirror" the latter alone.

    Returns
    -------
    ndarray of uint8, shape (n_views, height, width, 3)
    """
    if views in ("center", "mirror", "flip"):
        crops = preprocessing.apply(image)[None]
    else:
        crops = preprocessing.apply_five(image)
    return _with_mirrored(crops, views)


def _with_mirrored(crops: np.ndarray, views: str) -> np.ndarray:
    if views == "mirror":
        return np.ascontiguousarray(crops[:, :, ::-1])
    if views in ("flip", "ten_crop"):
        crops = np.concatenate([crops, crops[:, :, ::-1]])
    return crops


@dataclass(frozen=True)
class ViewResize:
    """How the views of an image are computed by two multiplications with matrices.

    The product with `columns`, rounded and clipped to whole levels, and then that with
    `rows`, is the part of the resized, upright image that the views need.

    Attributes
    ----------
    rows, columns : Coefficients
        Along the upright image's height and width.
    turned : bool
        Whether the rows of the upright image are the columns of the stored one.
    corner : (int, int)
        Top and left of the part in the resized image.
    crops : list of (int, int)
        Top and left of each crop in the resized image.
    crop_size : (int, int)
    views : str
    """

    rows: Coefficients
    columns: Coefficients
    turned: bool
    corner: tuple[int, int]
    crops: list[tuple[int, int]]
    crop_size: tuple[int, int]
    views: str

    def take(self, part: np.ndarray) -> np.ndarray:
        """The views, as `take_views` returns them, from the part that they need."""
        height, width = self.crop_size
        taken = np.zeros((len(self.crops), height, width, 3), np.uint8)
        for out, (top, left) in zip(taken, self.crops, strict=True):
            # The part lies inside of the resized image; outside of it is black.
            y, x = top - self.corner[0], left - self.corner[1]
            inside = part[max(y, 0) : y + height, max(x, 0) : x + width]
            start = max(-y, 0), max(-x, 0)
            end = start[0] + len(inside), start[1] + inside.shape[1]
            out[start[0] : end[0], start[1] : end[1]] = inside
        return _with_mirrored(taken, self.views)


def view_resize(
    preprocessing: Preprocessing,
    views: str,
    size: tuple[int, int],
    orientation: int = 1,
) -> ViewResize | None:
    """How the views of an image are computed by matrices; None if only Pillow can.

    Parameters
    ----------
    preprocessing : Preprocessing
    views : str
    size : (int, int)
        Height and width of the image as stored.
    orientation : int, default=1
        Its EXIF orientation.
    """
    if not preprocessing.antialias:
        return None
    turned = orientation >= 5
    height, width = size[::-1] if turned else size
    full, crop = preprocessing.resized_size(height, width), preprocessing.crop_size
    crops = [preprocessing.crop_corner(*full)]
    if views in ("five_crop", "ten_crop"):
        crops = five_corners(full, crop, crops[0])
    box: tuple[int, int, int, int] | None = None
    if preprocessing.resize == "crop_to_aspect_ratio":
        box = aspect_ratio_box(height, width, crop)
    sides, corner = [], []
    for axis, (length, mirrored) in enumerate(
        [(height, orientation in (3, 4, 7, 8)), (width, orientation in (2, 3, 6, 7))]
    ):
        starts = [each[axis] for each in crops]
        first = max(min(starts), 0)
        count = min(max(starts) + crop[axis], full[axis]) - first
        part = None if box is None else (box[1 - axis], box[3 - axis])
        method = preprocessing.interpolation
        side = coefficients(length, full[axis], first, count, method, part, mirrored)
        if side is None:
            return None
        sides.append(side)
        corner.append(first)
    rows, columns = sides
    where = (corner[0], corner[1])
    return ViewResize(rows, columns, turned, where, crops, crop, views)


def average_views(codes: np.ndarray, n_views: int) -> np.ndarray:
    """Average the codes of the views of each image.

    A norm comes after the average, as for the descriptors averaged over crops in
    Chatfield et al. (2014), arXiv:1405.3531: each view is weighted by how strongly it
    activates the layer.

    Parameters
    ----------
    codes : ndarray of float32, shape (n_images * n_views, d)
        Not normalised; the views of an image are consecutive rows.
    n_views : int

    Returns
    -------
    ndarray of float32, shape (n_images, d)
    """
    means: np.ndarray = codes.reshape(-1, n_views, codes.shape[1]).mean(1)
    return means
