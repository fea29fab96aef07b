"""X -> the matrix of codes, and scikit-learn's face of it.

`CNNCodeTransformer`, extraction with its threads, the code cache, digests of images,
calibration of int8, saving, and the explanation of a code. Imports `backbones` and
below.
"""
