"""What a person wants to see of data and models: duplicates, suspect labels, mistakes.

Findings, displays in scikit-learn's manner, and the HTML report. Imports `export` and
what is below it, and `datasets`.
"""
