"""Saved models, written and read: joblib, skops, ONNX.

`OnnxClassifier` reads what `to_onnx` writes and imports neither scikit-learn nor onnx:
this file stays without imports. Imports `heads` and below.
"""
