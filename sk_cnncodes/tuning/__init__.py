"""Fine-tuning: later layers of an ONNX backbone are trained, and written back.

Torch runs the trained part, and is imported by nothing else in the package. Imports
`heads` and below.
"""
