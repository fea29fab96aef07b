"""CodeSpec: everything but the image that decides a code, and its digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from sk_cnncodes.backbones.code_graph import Pooling
from sk_cnncodes.images.preprocessing import Preprocessing

# Raise it when codes change for the same backbone and parameters.
CODE_VERSION = 4


@dataclass(frozen=True)
class CodeSpec:
    """Everything but the image that decides a code.

    Attributes
    ----------
    backbone_sha256 : str
    layer : str
        Name of the tensor.
    pooling : str
        Never "auto": what it stands for at the layer.
    norm : "l2" or None
    preprocessing : Preprocessing
    views : {"center", "flip", "five_crop", "ten_crop"}
    precision : str, default="float32"
    calibration : str or None, default=None
        Digest of the ranges that int8 takes its scales from.
    engine : str or None, default=None
        What runs the network: in float32 it does not matter, in 8 bits codes of two
        engines differ by 1%.
    version : int or str
        Of the code that makes the codes: `CODE_VERSION`, except for a stored graph
        that another version made.
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
    version: int | str = CODE_VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of the spec."""
        if self.precision == "float32":
            return self._exact_digest
        values = (self._exact_digest, self.precision, self.calibration, self.engine)
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    @property
    def _exact_digest(self) -> str:
        """The digest of the same codes in float32."""
        values = asdict(self)
        del values["precision"], values["calibration"], values["engine"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
