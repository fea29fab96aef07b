"""Labelled images as people have them: folders with a sub-folder per class, tables.

Finds paths and labels, and says what it left out; opens no image. Imports `images` and
`base`.
"""
