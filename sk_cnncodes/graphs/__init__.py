"""ONNX models as protos: reading, checking, rewriting, viewing and building.

Knows nodes, tensors and operator sets; neither images nor layers, and never runs a
model. Imports `base`.
"""
