"""What older versions of scikit-learn lack."""

from __future__ import annotations

import pytest
import sklearn
from sklearn.utils.fixes import parse_version

# By a sigmoid, before, there are no thresholds, class weights are undone in part, and
# steep slopes leave float32 too few digits for an export.
HAS_TEMPERATURE = parse_version(sklearn.__version__) >= parse_version("1.8")
needs_temperature = pytest.mark.skipif(
    not HAS_TEMPERATURE, reason="scikit-learn 1.8 calibrates by a temperature"
)
