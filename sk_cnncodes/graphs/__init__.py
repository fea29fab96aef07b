"""ONNX models as protos: reading, checking, rewriting, viewing and building.

Knows nodes, tensors and operator sets, but not images or layers, and never runs a
model. Imports `base`.
"""
