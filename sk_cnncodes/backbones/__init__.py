"""Backbones: from a name or a file to a `Backbone` with its preprocessing, and codes.

The catalogue, downloads and their check on first use, code specs with their digests,
and the code graph that a saved pipeline stores. Imports all lower layers.
"""
