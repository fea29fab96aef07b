"""Saving and loading models as joblib, skops and ONNX files.

`OnnxClassifier` reads what `to_onnx` writes without importing scikit-learn or onnx, so
this file must not import anything. Imports `heads` and below.
"""
