"""One element of X -> an upright RGB image -> the crop that a network sees.

Containers, files and folders of images, decoding, resize and crop, views, and the file
formats in which preprocessing is stated. Imports `base`.
"""
