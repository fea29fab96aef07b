"""From images X to the matrix of codes, behind scikit-learn's transformer API.

`CNNCodeTransformer`, multithreaded extraction, image digests, int8
calibration, saving, and the explanation of a code. Imports `backbones` and below.
"""
