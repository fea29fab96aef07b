"""Sources: where images come from, as streams of pairs of a key and an image.

Knows folders, tables, archives, data sets and addresses, and that a piece of a source
is always read in the same order. Knows no codes and no shards.
"""
