"""A name or a file -> a `Backbone` with its preprocessing -> code graphs.

The catalogue, downloads and their check on first use, code specs with their digests,
and the part of a backbone that a saved pipeline brings along. Imports all below.
"""
