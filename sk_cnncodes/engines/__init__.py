"""Engines: run code graphs on any device.

Devices, ONNX Runtime, OpenVINO, sessions with a common interface to them, and lower
precisions. Independent of layers; images are uint8 arrays. Imports `base`.
"""
