"""A fitted pipeline -> one ONNX file."""

from sk_cnncodes.export.pipeline import to_onnx

__all__ = ["to_onnx"]
