"""Images: from an element of X to an upright RGB image and the crops of a network.

Containers, image files, decoding, resizing and cropping, views, and the configuration
formats of preprocessing. Imports `base`.
"""
