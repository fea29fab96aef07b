"""Views of an image for test-time augmentation: crops and mirrored crops."""

from __future__ import annotations

from operator import le
from typing import TYPE_CHECKING

import numpy as np

from sk_cnncodes.base.exceptions import PreprocessingError
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.resizing import OVERSHOOTING

if TYPE_CHECKING:
    from PIL import Image

# Number of views for each value of the `views` parameter.
VIEWS = {"center": 1, "flip": 2, "five_crop": 5, "ten_crop": 10}


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
    takes the central crop and its mirror image.

    Returns
    -------
    ndarray of uint8, shape (n_views, height, width, 3)
    """
    if views in ("center", "flip"):
        crops = preprocessing.apply(image)[None]
    else:
        crops = preprocessing.apply_five(image)
    if views in ("flip", "ten_crop"):
        crops = np.concatenate([crops, crops[:, :, ::-1]])
    return crops


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
