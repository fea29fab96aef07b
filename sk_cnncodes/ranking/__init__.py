"""Codes of all layers, ranked by the exact leave-one-out score of ridge on them.

Closed forms, scores, the ranking with its figures, and the advice drawn from it.
Imports `codes` and below.
"""
