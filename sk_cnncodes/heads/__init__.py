"""Classifiers on codes, the ranking of layers, and the search for the best combination.

Uses scikit-learn's estimators; backbones and layers are referred to by name only.
Imports `codes` and below.
"""
