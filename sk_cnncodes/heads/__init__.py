"""What is put after the codes: classifiers, and the search for the best.

Knows scikit-learn's estimators, and backbones and layers by their names only. Imports
`codes` and below.
"""
