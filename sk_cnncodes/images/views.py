"""Views of an image: crops and mirror images whose codes are averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sk_cnncodes.base.exceptions import PreprocessingError
from sk_cnncodes.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

# How many there are.
VIEWS = {"center": 1, "flip": 2, "five_crop": 5, "ten_crop": 10}


def check_views(preprocessing: Preprocessing, views: str) -> None:
    """Refuse five crops where the resize leaves nothing around the central one.

    Raises
    ------
    PreprocessingError
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
            f"{size}, so that all five crops would be the same. Expected 'center' or "
            "'flip', or a preprocessing with a larger resize_size."
        )


def take_views(
    image: Image.Image, preprocessing: Preprocessing, views: str
) -> np.ndarray:
    """The views of an upright RGB image.

    "five_crop" are the four corners and the centre of the resized image, as
    torchvision's FiveCrop; "ten_crop" those and their mirror images, as TenCrop;
    "flip" the central crop and its mirror image.

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


def average_views(codes: np.ndarray, n_views: int, norm: str | None) -> np.ndarray:
    """Codes of images from those of their views.

    The average comes before the norm: a code of norm="l2" has unit length, as the
    descriptors averaged over crops of Chatfield et al. (2014), arXiv:1405.3531; and
    what a view contributes depends on how strongly it activates the layer.

    Parameters
    ----------
    codes : ndarray of float32, shape (n_images * n_views, d)
        Not normalised; the views of an image one after another.
    n_views : int
    norm : "l2" or None

    Returns
    -------
    ndarray of float32, shape (n_images, d)
    """
    means: np.ndarray = codes.reshape(-1, n_views, codes.shape[1]).mean(1)
    if norm == "l2":
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        means = means / np.where(lengths == 0, 1, lengths)
    return means
