"""CodeSpec: everything except the image that determines a code, and its digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from sk_cnncodes.backbones.code_graph import Pooling
from sk_cnncodes.images.preprocessing import Preprocessing
from sk_cnncodes.images.views import order_matters

# Increment when codes change for the same backbone and parameters.
CODE_VERSION = 4


@dataclass(frozen=True)
class CodeSpec:
    """Everything except the image that determines a code.

    Attributes
    ----------
    backbone_sha256 : str
    layer : str
        Name of the tensor.
    pooling : str
        Pooling at the layer; "auto" is resolved.
    norm : "l2", "power" or None
    preprocessing : Preprocessing
    views : {"center", "mirror", "flip", "five_crop", "ten_crop"}
    precision : str, default="float32"
    calibration : str or None, default=None
        Digest of the calibration ranges that int8 scales are computed from.
    engine : str or None, default=None
        Inference engine. It does not matter in float32; in 8 bits, codes of two engines
        differ by 1%.
    decoder : str, default="pillow"
        "gpu" if large JPEG files are decoded on a GPU, which changes codes by more than
        rounding.
    version : int or str
        Version of the code computation: `CODE_VERSION`, except for a stored graph from
        another version.
    """

    backbone_sha256: str
    layer: str
    pooling: Pooling
    norm: str | None
    preprocessing: Preprocessing
    views: str = "center"
    precision: str = "float32"
    calibration: str | None = None
    engine: str | None = None
    decoder: str = "pillow"
    version: int | str = CODE_VERSION

    @property
    def without_norm(self) -> CodeSpec:
        """The spec of what the network gives, from which these codes are computed."""
        return replace(self, norm=None)

    @property
    def digest(self) -> str:
        """SHA-256 of the spec."""
        exact = _exact_digest(self)
        if self.precision == "float32":
            return exact
        values = (exact, self.precision, self.calibration, self.engine)
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@lru_cache(maxsize=256)  # each transform needs those of all its outputs
def _exact_digest(spec: CodeSpec) -> str:
    """SHA-256 of a spec for the same codes in float32."""
    values = asdict(spec) | {"preprocessing": spec.preprocessing.to_dict()}
    del values["precision"], values["calibration"], values["engine"]
    if spec.decoder == "pillow":
        del values["decoder"]  # a later parameter: digests of before stay the same
    if order_matters(spec.preprocessing, spec.views):
        # Distinct from codes of the version that left the order to Pillow.
        values["resize_order"] = "rows first"
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
