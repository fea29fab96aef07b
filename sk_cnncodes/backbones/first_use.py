"""The check of a backbone on first use, which runs it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.catalogue import CatalogueRow
from sk_cnncodes.base.exceptions import BackboneError, DownloadError
from sk_cnncodes.engines.devices import CPU, usable_threads
from sk_cnncodes.engines.session import open_session

# Relative to the largest value: above rounding errors, far below the difference
# between codes of different images.
_CODE_TOLERANCE = 1e-3


def check_backbone(path: Path, row: CatalogueRow) -> int | None:
    """Check that a file is the backbone that its row describes, by running it once.

    Input size and code length are compared with the row, and it is checked as
    `check_network` does.

    Parameters
    ----------
    path : Path
        The ONNX file.
    row : CatalogueRow

    Returns
    -------
    int or None
        Fixed batch size of the network; None if any batch size works.

    Raises
    ------
    DownloadError
        If a check fails.
    """
    backbone = Backbone(
        path, row.sha256, row.preprocessing, row.name, row.penultimate or None
    )
    try:
        length = backbone.code_length(backbone.spec(-1, "auto", None))
        fault = None
        if length != row.code_length:
            fault = _Fault(f"code length {row.code_length}", f"{length}")
    except BackboneError as error:
        fault = _does_not_run(backbone, error)
    if fault is None:
        fault, batch_size = _run_once(backbone)
    if fault is not None:
        raise DownloadError(
            f"backbone {row.name!r}: its file has the right sha256, but failed the "
            f"check on first use: expected {fault.expected}, got {fault.got}. If it "
            "was a new download, it was removed. Run `sk-cnncodes doctor` and update "
            "onnxruntime, or choose another backbone."
        )
    return batch_size


def check_network(backbone: Backbone, address: str) -> None:
    """Run a network of the Hub once, if it has a layer -1.

    Codes of two different images must be finite, differ, and not depend on the batch.

    Raises
    ------
    DownloadError
        If a check fails.
    """
    try:
        backbone.layer(-1)
    except BackboneError:
        return  # fit says so, unless it is asked for a tensor that works
    fault, _ = _run_once(backbone)
    if fault is not None:
        raise DownloadError(
            f"backbone={address!r}: its files are those of the Hub, but failed the "
            f"check on first use: expected {fault.expected}, got {fault.got}. Choose "
            "another file of the repository, or run `sk-cnncodes doctor` and update "
            "onnxruntime."
        )


class _Fault(NamedTuple):
    """Why a network failed the check."""

    expected: str
    got: str


def _does_not_run(backbone: Backbone, error: BackboneError) -> _Fault:
    size = " x ".join(map(str, backbone.preprocessing.crop_size))
    return _Fault(f"a network for images of {size} pixels that runs", str(error))


def _run_once(backbone: Backbone) -> tuple[_Fault | None, int | None]:
    """What is wrong with the codes of two images, if anything; and the batch size."""
    try:
        spec = backbone.spec(-1, "auto", None)
        # Falls back to single images if rows depend on their batch.
        session = open_session(
            backbone.code_graphs([spec]),
            CPU,
            usable_threads(-1),
        )
        photographs = [
            _synthetic_photograph(0, slope=1.0),
            _synthetic_photograph(1, slope=1.8),
        ]
        images = np.stack([backbone.preprocessing.apply(p) for p in photographs])
        (batched,) = session.run(images)
        single = np.concatenate([session.run(images[i : i + 1])[0] for i in (0, 1)])
    except BackboneError as error:
        return _does_not_run(backbone, error), None
    fault = None
    scale = np.abs(batched).max(initial=1e-30)
    if not np.isfinite(batched).all():
        fault = _Fault("finite codes", "infinite or undefined values")
    elif np.abs(batched - single).max() > _CODE_TOLERANCE * scale:
        fault = _Fault("codes independent of the batch", "codes that depend on it")
    elif np.abs(batched[0] - batched[1]).max() <= _CODE_TOLERANCE * scale:
        fault = _Fault("different codes for two different images", "equal ones")
    return fault, session.batch_size


def _synthetic_photograph(seed: int, slope: float) -> Any:
    """Random image with the falling amplitude spectrum of photographs."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    shape = (240, 320)
    down, across = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
    frequency = np.hypot(down[:, None], across)
    frequency[0, 0] = 1 / max(shape)
    noise = np.fft.rfft2(rng.normal(size=(4, *shape))) / frequency**slope
    planes = np.fft.irfft2(noise, shape)
    planes = planes[:1] + 0.3 * planes[1:]  # mostly luminance
    low, high = np.percentile(planes, (1, 99))
    pixels = np.clip((planes - low) / (high - low) * 255, 0, 255)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0), np.uint8))
