"""The part of an ONNX network after a layer, computed and trained with torch.

One function an operator, and back to ONNX. `sk_cnncodes.tuning.tail` is its face; the
modules `arithmetic`, `rearranging`, `windows` and `module` need torch.
"""
