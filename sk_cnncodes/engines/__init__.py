"""Runs any code graph on any device.

Devices, ONNX Runtime, OpenVINO, sessions with one face for all of them, and lower
precisions. Knows neither layers nor images beyond uint8 arrays. Imports `base`.
"""
