"""Classifiers on codes, their comparison, and the search for the best combination.

Uses scikit-learn's estimators; backbones and layers are referred to by name only.
Imports `ranking` and below.
"""
